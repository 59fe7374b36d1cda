"""Output of a program: lines on the console, the same lines with time stamps in a log file, and progress bars."""

import contextlib
import datetime
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from core.text import LOGGER, printable, say
from utils.process import distributed
from utils.process.signals import check_signals

_first_and_last: list[str] = []  # see warn_first_and_last
_handlers: list[logging.Handler] = []  # of the open log: a logger may have other ones, as in a test


class _Console(logging.Handler):
    """Standard output for information, standard error for warnings and errors. Progress bars stay intact."""

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if record.levelno == logging.WARNING:
            line = f"warning: {line}"
        say(line, sys.stderr if record.levelno >= logging.WARNING else sys.stdout)


def _make_printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), None
    return True


def open_log(folder: Path, name: str) -> tuple[logging.Logger, Path]:
    """Open a log that writes to the console and to a file. Return the logger and the path of the file.

    The path is `<folder>/<date>-<time>_<name>`, or the name if that is an absolute path. If the file exists, the
    log is appended. Ranks other than 0 write nothing.
    """
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.INFO if distributed.RANK == 0 else logging.CRITICAL + 1)
    logger.propagate = False
    logging.raiseExceptions = False  # if the disk of the log file is full, the run goes on
    logger.addFilter(_make_printable)
    if distributed.RANK > 0:
        return logger, folder / name
    path = Path(name) if Path(name).is_absolute() else folder / f"{datetime.datetime.now():%Y-%m-%d-%H%M%S}_{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for handler in (file, _Console()):
        logger.addHandler(handler)
        _handlers.append(handler)
    log_first_and_last()
    return logger, path


def warn_first_and_last(line: str) -> None:
    """Log a warning when the log is opened, and again when the program has done its work."""
    _first_and_last.append(line)


def log_first_and_last() -> None:
    """Log these warnings, if a log is open."""
    for line in _first_and_last if _handlers else ():
        logging.getLogger(LOGGER).warning(line)


def close_log() -> None:
    """Close the log file, if one is open."""
    _first_and_last.clear()
    while _handlers:
        handler = _handlers.pop()
        logging.getLogger(LOGGER).removeHandler(handler)
        with contextlib.suppress(OSError):  # its disk is full
            handler.close()


def last_words(line: str) -> None:
    """Write why the program stops to standard error, and to the log file if one is open."""
    line = " ".join(line.splitlines())  # one line, even if a file name contains line breaks
    if _handlers:
        logging.getLogger(LOGGER).error(line)
    else:
        say(printable(line), sys.stderr)


def progress(iterable: Iterable, numbers: Callable[[int, float], str] | None = None, **options) -> Iterator:
    """Iterate with a progress bar on standard error, if that is a terminal. Check for signals at each item.

    numbers: returns what the bar shows, given how many items are done, in how many seconds. It is called once a
    second.
    """
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    disable = not on_terminal or distributed.RANK > 0
    bar = tqdm(iterable, disable=disable, leave=False, dynamic_ncols=True, **options)
    began = shown = time.monotonic()
    for count, item in enumerate(bar, start=1):
        check_signals()
        yield item
        if numbers is not None and not disable and (now := time.monotonic()) >= shown + 1:
            bar.set_postfix_str(numbers(count, now - began))
            shown = now
