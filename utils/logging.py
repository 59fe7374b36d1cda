"""What a program says: on the console as it is, in the log file with time stamps."""

import contextlib
import datetime
import glob
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from utils import distributed
from utils.signals import check_signals

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


def say(line: str, stream: TextIO | None) -> None:
    """Write a line, without tearing a progress bar.

    Where the reader went away (a closed terminal, `| head`) nothing more is written, and the program goes on: its
    files and its exit status are what matters.
    """
    if stream is None:  # it was closed before the program began
        return
    try:
        tqdm.write(line, file=stream)
        stream.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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


def printable(text: str) -> str:
    """Text as a terminal may have it.

    Names of files, and what damaged ones hold, can be anything: sequences that a terminal obeys, or bytes that
    are no text, which no stream takes.
    """
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode() for char in text
    )


def first_line(error: BaseException | str) -> str:
    """What an error says, in a line; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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

    Between two items a signal that got lost is found: see `utils.signals`.
    """
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    disable = not on_terminal or distributed.RANK > 0
    for item in tqdm(iterable, disable=disable, leave=False, dynamic_ncols=True, **options):
        check_signals()
        yield item
