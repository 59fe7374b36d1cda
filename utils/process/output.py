"""Try the places that a program writes to before it does any work."""

import os
import tempfile
from pathlib import Path

from core.errors import UsageError


def try_folder(option: str, folder: Path, trial: bytes = b"\0") -> None:
    """Raise UsageError, with the option, if files cannot be written into a folder that exists or can be made.

    Nothing is left behind. Without a `trial` that is written, a full disk is no obstacle.
    """
    existing = next(part for part in (folder, *folder.parents) if os.path.lexists(part))
    try:
        with tempfile.TemporaryFile(buffering=0, dir=existing) as file:
            file.write(trial)
    except OSError as error:
        where = "" if existing == folder else f"{existing}: "
        raise UsageError(f"{option}: files cannot be written into {folder}: {where}{error.strerror}") from None
