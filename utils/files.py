"""Files that a reader sees whole or not at all."""

import contextlib
import errno
import fcntl
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
    used up by the next one that writes the file. Of several processes that write it one waits for the other.

    Raises:
        OSError: what the operating system says about the disk, the folder or the permissions.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with _open_alone(temporary, mode) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):  # a disk has become read-only: the first error says more
                    temporary.unlink(missing_ok=True)
                raise
    except OSError as error:  # a full disk does not say which file, others name the temporary one
        error.filename = str(path)
        raise
    # The new name is on the disk only when its folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _open_alone(path: Path, mode: str):
    """Open a file for writing that no other process writes, as far as the file system has locks. It is empty."""
    # More than one turn, but not for ever: some network file systems give another inode number at each call.
    for turn in reversed(range(100)):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if turn == 0 or os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    os.ftruncate(descriptor, 0)
                    return os.fdopen(descriptor, mode)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the other process has renamed or removed it
