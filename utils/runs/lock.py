"""One run at a time in a folder, by a lock of the operating system."""

import contextlib
import errno
import fcntl
import os
import socket
from pathlib import Path


class FolderLock:
    """The right to write into a folder, from `hold` to the end of a `with` block.

    It is a lock on the file `.lock` in the folder, which names the process and host that hold it. A killed process
    holds no lock; the file that it leaves behind is used by the next run.
    """

    def __init__(self):
        self.path: Path | None = None
        self._file: int | None = None

    def hold(self, folder: Path) -> str | None:
        """Lock a folder, which is created if it is missing. A lock on another folder is released first.

        Returns:
            None; or the holder, if another process holds the lock: "process 123 on host gpu7".

        Raises:
            OSError: the folder or the file cannot be created. ENOLCK: the file system has no locks.
        """
        path = folder / ".lock"
        if self.path == path:
            return None
        self.release()
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # Not flock: data workers would inherit that lock, and they may outlive a killed run for a while.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.pread(file, 1000, 0).decode(errors="replace").strip()
            os.close(file)
            return holder or "another process"
        except OSError as error:
            os.close(file)
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), str(path)) from error
        if os.fstat(file).st_nlink == 0:  # its holder has just removed the file: lock the one that others see
            os.close(file)
            return self.hold(folder)
        self.path, self._file = path, file
        try:
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on host {socket.gethostname()}\n".encode(), 0)
        except OSError as error:  # the disk is full
            error.filename = str(path)
            raise
        return None

    def release(self) -> None:
        """Remove the file and release the lock, if it is held."""
        if self.path is None:
            return
        with contextlib.suppress(OSError):
            self.path.unlink()
        os.close(self._file)
        self.path = self._file = None

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *exception) -> None:
        self.release()
