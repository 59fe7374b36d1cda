"""Signals: SIGINT and SIGTERM end a program in one line, SIGUSR1 ends training after the current epoch.

The programs import this module before all others, so it imports nothing that takes time.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator


class Terminated(BaseException):
    """The process received SIGTERM."""


#: Why a signal ends a program. The exit status is 128 and its number.
REASONS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

_received: list[type[BaseException]] = []  # the signals' exceptions, in the order of arrival
stop_requested = False  #: whether SIGUSR1, SLURM's warning before a time limit, has arrived


def handle_during_imports() -> None:
    """Let SIGINT and SIGTERM end the process at once, in one line, until `as_exceptions` is entered."""
    signal.signal(signal.SIGUSR1, _request_stop)
    for number in REASONS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, frame) -> None:
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):  # nobody reads it
            os.write(2, f"{os.path.basename(sys.argv[0])}: {REASONS[number]}\n".encode())
    os._exit(128 + number)


@contextlib.contextmanager
def as_exceptions(enabled: bool = True) -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGINT and Terminated on SIGTERM. If not enabled, both end the process."""
    global stop_requested
    _received.clear()
    handlers = {**dict.fromkeys(REASONS, _raise if enabled else signal.SIG_DFL), signal.SIGUSR1: _request_stop}
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job
        del handlers[signal.SIGINT]
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        stop_requested = False
        # _end: the program has its exit status, and has said all. None: the handler was not installed by Python.
        instead = {_end: signal.SIG_IGN, None: signal.SIG_DFL}
        for number, handler in previous.items():
            signal.signal(number, instead.get(handler, handler))


def _raise(number: int, frame) -> None:
    if not _received:
        # Python prints an exception that a callback or a `__del__` raises; `check_signals` raises this one again.
        print_exception = sys.unraisablehook
        sys.unraisablehook = lambda lost: None if lost.exc_type in _received else print_exception(lost)
    _received.append(KeyboardInterrupt if number == signal.SIGINT else Terminated)
    raise _received[-1]


def _request_stop(number: int, frame) -> None:
    global stop_requested
    stop_requested = True


def ignore_more() -> None:
    """Ignore the signals that `as_exceptions` raises, while a program ends: many people press Ctrl-C twice."""
    for number in REASONS:
        if signal.getsignal(number) is _raise:
            signal.signal(number, signal.SIG_IGN)


def received() -> type[BaseException] | None:
    """Return KeyboardInterrupt or Terminated for the first signal that has arrived; None if there was none."""
    return _received[0] if _received else None


def check_signals() -> None:
    """Raise a signal's exception again, in case C code or a callback has dropped it."""
    if _received:
        raise _received[0]
