"""One run at a time in a folder, by a lock of the operating system: a process that died holds none."""

import contextlib
import errno
import fcntl
import os
import socket
from pathlib import Path

NAME = ".lock"


class FolderLock:
    """The right to write into a folder, held from `hold` to the end of a `with` block.

    The lock is one on the file `.lock` in the folder, which says who holds it. That and the folders made for it go
    when the block ends, the folders where nothing else is in them. What a killed process leaves of it holds nobody
    up, and goes when the next one ends.
    """

    def __init__(self):
        self.path: Path | None = None
        self._file: int | None = None
        self._made: list[Path] = []

    def hold(self, folder: Path) -> str | None:
        """Lock a folder, which is created; a lock on another one is released, one on the same is kept.

        Returns:
            None; or who else holds the lock, as "process 123 on host gpu7".

        Raises:
            OSError: the folder or the file in it cannot be made; ENOLCK: the file system has no locks.
        """
        path = folder / NAME
        if self.path == path:
            return None
        self.release()
        missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        while True:
            file = self._open(path)
            self._made = missing
            try:
                # Not flock: data workers would inherit that, and hold it for a while when this process is killed.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                holder = os.pread(file, 1000, 0).decode(errors="replace").strip()
                os.close(file)
                self._remove_folders()
                return holder or "another process"
            except OSError as error:
                os.close(file)
                path.unlink(missing_ok=True)
                self._remove_folders()
                raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), str(path)) from error
            if self._is_still_there(file, path):
                break
            os.close(file)  # the one who held it has just removed it: it locks nobody else out
        self.path, self._file = path, file
        try:
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on host {socket.gethostname()}\n".encode(), 0)
        except OSError as error:  # the disk is full
            error.filename = str(path)
            raise
        return None

    @staticmethod
    def _open(path: Path) -> int:
        """Open the file, and create it and its folders where they are missing."""
        for attempts_left in reversed(range(100)):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except (FileNotFoundError, FileExistsError):  # another process took the empty folders away meanwhile
                if not attempts_left:
                    raise

    @staticmethod
    def _is_still_there(file: int, path: Path) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let go of the lock, and leave nothing of it; does nothing where it is not held."""
        if self.path is None:
            return
        with contextlib.suppress(OSError):
            self.path.unlink()
        os.close(self._file)
        self._remove_folders()
        self.path = self._file = None

    def _remove_folders(self) -> None:
        with contextlib.suppress(OSError):  # the first that is not empty
            for folder in self._made:
                folder.rmdir()
        self._made = []

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *exception) -> None:
        self.release()
