"""The signals that ask a program to end, as exceptions that do not get lost."""

import signal
import sys


class Terminated(BaseException):
    """The process was asked to end by SIGTERM."""


_asked: list[type[BaseException]] = []  #: since `forget`


def forget() -> None:
    """A program begins: no signal has asked it to end."""
    _asked.clear()


def asked_to_end() -> type[BaseException] | None:
    """KeyboardInterrupt or Terminated, by the first signal that has arrived; None: there was none."""
    return _asked[0] if _asked else None


def handler(number: int, frame) -> None:
    """Raise KeyboardInterrupt on SIGINT, Terminated on SIGTERM."""
    if not _asked:
        # In a callback or a `__del__` Python complains of an exception and goes on: see `check_signals`.
        complain = sys.unraisablehook
        sys.unraisablehook = lambda what: None if what.exc_type in _asked else complain(what)
    _asked.append(KeyboardInterrupt if number == signal.SIGINT else Terminated)
    raise _asked[-1]


def check_signals() -> None:
    """Raise again what a signal has raised, where that got lost: in C code or a callback it does now and then."""
    if _asked:
        raise _asked[0]
