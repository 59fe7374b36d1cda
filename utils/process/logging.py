"""What a program says: on the console as it is, in the log file with time stamps."""

import contextlib
import datetime
import glob
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from core.text import printable, say
from utils.process import distributed
from utils.process.signals import check_signals

LOGGER = "hyperplanes"


class _File(logging.FileHandler):
    """The log file. Where it cannot be written any more the console still has every line, and the run goes on."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class _Console(logging.Handler):
    """Lines on standard output, or on standard error from warnings on, without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if record.levelno == logging.WARNING:
            line = f"warning: {line}"
        say(line, sys.stderr if record.levelno >= logging.WARNING else sys.stdout)


def open_log(folder: Path, name: str) -> tuple[logging.Logger, Path]:
    """A logger that writes to the console and to `<folder>/<date>-<time>_<name>`.

    Two programs that start within the same second get files of their own (`<date>-<time>-2_<name>`). Of several
    processes rank 0 alone has a log: the logger of the others says nothing, and there is no file.

    Returns:
        the logger and the path of the file.

    Raises:
        OSError: the folder or the file cannot be made.
    """
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addFilter(_make_printable)
    if distributed.RANK > 0:
        logger.addHandler(logging.NullHandler())
        return logger, folder / name
    folder.mkdir(parents=True, exist_ok=True)
    now = f"{datetime.datetime.now():%Y-%m-%d-%H%M%S}"
    copy = 1
    while True:
        path = folder / (f"{now}_{name}" if copy == 1 else f"{now}-{copy}_{name}")
        try:
            path.touch(exist_ok=False)
            break
        except FileExistsError:
            copy += 1
    close_log(logger)
    to_file = _File(path, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(to_file)
    logger.addHandler(_Console())
    return logger, path


def epochs_logged(folder: Path, name: str, configuration: str, snapshots: Path) -> set[int]:
    """The epochs that earlier processes of a run have logged, from their log files.

    Args:
        folder: of the log files.
        name: of them, as for `open_log`.
        configuration: the line that the processes of the run have in common.
        snapshots: the folder of the run's snapshots, which a log names as well.
    """
    found = set()
    for path in folder.glob(f"*_{glob.escape(name)}"):
        with contextlib.suppress(OSError):
            text = path.read_text(encoding="utf-8", errors="replace")
            if f" INFO {configuration}\n" in text and f" {snapshots}/" in text:
                found.update(int(epoch) for epoch in re.findall(r" INFO epoch (\d+) \(", text))
    return found


def _make_printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), None
    return True


def close_log(logger: logging.Logger | None = None) -> None:
    """Close the log file; does nothing where none is open."""
    logger = logger or logging.getLogger(LOGGER)
    for handler in [handler for handler in logger.handlers if isinstance(handler, (_Console, _File))]:
        logger.removeHandler(handler)
        handler.close()


def last_words(line: str) -> None:
    """Say on standard error, and in the log file where one is open, why the program stops."""
    line = printable(" ".join(line.splitlines()))  # a line, whatever names of files or parameters are in it
    logger = logging.getLogger(LOGGER)
    if any(isinstance(handler, _Console) for handler in logger.handlers):
        logger.error(line)
    else:
        say(line, sys.stderr)


def progress(iterable: Iterable, **options) -> Iterator:
    """The items, with a progress bar on standard error that is there only on a terminal, and goes when it is done.

    Between two items a signal that got lost is found: see `utils.process.signals`.
    """
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    disable = not on_terminal or distributed.RANK > 0
    for item in tqdm(iterable, disable=disable, leave=False, dynamic_ncols=True, **options):
        check_signals()
        yield item
