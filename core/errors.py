"""Errors that end a program with one line instead of a traceback."""


class OneLineError(Exception):
    """Base class of errors whose message is one line and tells the user all that is needed."""

    status = 1  #: exit status of a program that the error ends


class UsageError(OneLineError, ValueError):
    """Wrong use or wrong input. The message names the option or the file and says what to do."""

    status = 2


class RunError(OneLineError, RuntimeError):
    """The run failed, and neither its options nor its input are to blame."""
