"""Write files that a reader sees whole or not at all, into folders that are tried first."""

import contextlib
import os
import secrets
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


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb"):
    """Open a temporary file in the same folder that replaces `path` when the block ends.

    If the block fails, the temporary file is removed and `path` stays as it was. A killed process leaves a file
    `.<name>.<random>.tmp` behind, which nothing reads. An OSError of the disk, the folder or the permissions names
    `path`.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # only now does the new name survive a power failure
        finally:
            os.close(folder)
    except BaseException as error:
        with contextlib.suppress(OSError):  # there is no such file, or the disk has become read-only
            temporary.unlink()
        # A full disk names no file, other errors name the temporary one.
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
