"""Files that a reader sees whole or not at all."""

import contextlib
import errno
import os
from pathlib import Path


def make_writable(folder: Path) -> None:
    """Create a folder where it is missing, and find out before any work whether files can be written into it.

    Raises:
        OSError: they cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, "files cannot be written there", str(folder))


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb"):
    """Open a temporary file beside `path` that becomes `path` when the block ends, and vanishes when it fails.

    The temporary name is the same each time (`.<name>.tmp`), so that what a killed process left behind is
    used up by the next one that writes the file.

    Raises:
        OSError: what the operating system says about the disk, the folder or the permissions.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # of a disk that has become read-only: the first error says more
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # a full disk does not say which file, others name the temporary one
            error.filename = str(path)
        raise
    # The new name is on the disk only when its folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
