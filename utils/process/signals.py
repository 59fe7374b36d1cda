"""SIGINT and SIGTERM as exceptions that are never lost."""

import contextlib
import signal
import sys
from collections.abc import Iterator


class Terminated(BaseException):
    """The process received SIGTERM."""


_received: list[type[BaseException]] = []  # the signals' exceptions, in the order of arrival


@contextlib.contextmanager
def as_exceptions(enabled: bool = True) -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGINT and Terminated on SIGTERM. If not enabled, both end the process."""
    _received.clear()
    handler = _raise if enabled else signal.SIG_DFL
    previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, handler)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job ignores it
        previous[signal.SIGINT] = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _raise(number: int, frame) -> None:
    if not _received:
        # Python prints an exception that a callback or a `__del__` raises; `check_signals` raises this one again.
        print_exception = sys.unraisablehook
        sys.unraisablehook = lambda lost: None if lost.exc_type in _received else print_exception(lost)
    _received.append(KeyboardInterrupt if number == signal.SIGINT else Terminated)
    raise _received[-1]


def received() -> type[BaseException] | None:
    """Return KeyboardInterrupt or Terminated for the first signal that has arrived; None if there was none."""
    return _received[0] if _received else None


def check_signals() -> None:
    """Raise a signal's exception again, in case C code or a callback has dropped it."""
    if _received:
        raise _received[0]
