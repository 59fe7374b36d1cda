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
    path, encoding = Path(path), None if "b" in mode else "utf-8"
    temporary = path.with_name(f".{path.name}.tmp")
    file = None
    try:
        # More than one turn, but not for ever: some network file systems give another inode number at each call.
        for turn in reversed(range(100)):
            with open(temporary, mode, encoding=encoding, opener=_open_or_create) as file:
                if not _wait_for_lock(file, temporary) and turn > 0:
                    continue  # the other process has renamed or removed it
                try:
                    os.ftruncate(file.fileno(), 0)
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                    os.replace(temporary, path)
                except BaseException:  # no other process has it as long as it is open
                    with contextlib.suppress(OSError):  # a disk has become read-only: the first error says more
                        temporary.unlink(missing_ok=True)
                    raise
            break
    except BaseException as error:
        with contextlib.suppress(OSError):  # a signal may come outside of that block too
            if file is not None:
                file.close()
            _remove_unused(temporary)
        if isinstance(error, OSError):  # a full disk does not say which file, others name the temporary one
            error.filename = str(path)
        raise
    # The new name is on the disk only when its folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _open_or_create(path: str, _: int) -> int:
    """Open a file for `open` without emptying it: another process may be writing it."""
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def _wait_for_lock(file, path: Path) -> bool:
    """Wait until no other process writes an open file, if the file system has locks; is it still at `path`?"""
    with contextlib.suppress(OSError):
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _remove_unused(path: Path) -> None:
    """Remove a file unless another process is writing it."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:
            pass  # no locks here
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            path.unlink()
    finally:
        os.close(descriptor)
