"""Download datasets with torchvision."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from core.text import first_line, say
from data.registry import DataError


def download(torchvision_name: str, root: Path, folder: str, by_hand: str, archive: str = "") -> None:
    """Let torchvision download a dataset to <root>/<folder>: either all of it arrives there, or nothing.

    If its archive is in root already, torchvision unpacks that one. Raises DataError if it cannot be downloaded or
    written; the message says what to do `by_hand`.
    """
    import torchvision.datasets

    existing = next(parent for parent in [root, *root.absolute().parents] if parent.exists())
    is_packed = (root / archive).is_file()
    how = "unpacking" if is_packed else "downloading"
    say(f"{root / folder} is not there: {how} {torchvision_name}", sys.stdout)
    try:
        # On the same file system, so that the complete dataset can be renamed.
        with tempfile.TemporaryDirectory(prefix=".download-", dir=existing) as temporary:
            if is_packed:
                shutil.copy(root / archive, temporary)
            getattr(torchvision.datasets, torchvision_name)(temporary, download=True)
            root.mkdir(parents=True, exist_ok=True)
            os.replace(Path(temporary, folder), root / folder)
    except (OSError, RuntimeError) as error:
        reason = first_line(error).rstrip(": ")
        missing = f"{folder} is not there and cannot be downloaded ({reason})"
        raise DataError(f"--data-path {root}: {missing}; {by_hand}, or say where it is") from None
