"""One run at a time in a folder, by a lock of the operating system."""

import contextlib
import fcntl
import os
import socket
from pathlib import Path

from core.errors import UsageError


class FolderLock(contextlib.ExitStack):
    """The right to write into a folder, from `hold` to the end of a `with` block.

    It is a lock on the file `.lock` in the folder, which names the process and host that hold it. A killed process
    holds no lock; the next run uses the file that it left, and removes its half-written files.
    """

    path: Path | None = None

    def hold(self, folder: Path) -> list[str]:
        """Lock a folder, which is created if it is missing. A lock on another folder is released first.

        Return a warning if the file system has no locks. Raise UsageError if another process holds the lock.
        """
        path = folder / ".lock"
        if self.path == path:
            return []
        self.close()
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115
        try:
            # Not flock: data workers would inherit that lock, and they may outlive a killed run for a while.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            with file:
                file.seek(0)
                holder = file.read().strip() or "another process"
            raise UsageError(f"{folder} is in use by another run: {holder}") from None
        except OSError:
            file.close()
            return [f"{folder} is on a file system without locks: a second run in it would not be noticed"]
        if os.fstat(file.fileno()).st_nlink == 0:  # its holder has just removed it: lock the one that others see
            file.close()
            return self.hold(folder)
        self.path = path
        self.enter_context(file)  # the last to end: closing the file releases the lock
        self.callback(path.unlink, missing_ok=True)
        file.truncate(0)
        print(f"process {os.getpid()} on host {socket.gethostname()}", file=file, flush=True)
        for kind in ("*.pt", "*.tar", "run.json", "metrics.csv"):
            for half_written in folder.glob(f".{kind}.*.tmp"):
                half_written.unlink(missing_ok=True)
        return []
