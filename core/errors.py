"""Errors that end a program with one line instead of a traceback."""


class OneLineError(Exception):
    """An error whose message, one line, is all that the user needs. `status` is the exit status it leads to."""

    status = 1


class UsageError(OneLineError, ValueError):
    """Wrong use or wrong input: the message names the option or the file, and says what to do."""

    status = 2


class RunError(OneLineError, RuntimeError):
    """The run failed under way, and the command line is not to blame."""

    status = 1
