"""Text for a terminal."""

import difflib
import os
from collections.abc import Iterable
from typing import TextIO

from tqdm import tqdm

LOGGER = "hyperplanes"  #: name of the logger of the programs


def say(line: str, stream: TextIO | None) -> None:
    """Write a line to a stream without breaking a progress bar.

    If nobody reads the stream any more (a closed terminal, `| head`), the program goes on without it.
    """
    if stream is None:  # it was closed before the program started
        return
    try:
        tqdm.write(line, file=stream)
        stream.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def printable(text: str) -> str:
    """Escape the characters that a terminal should not get, such as control sequences in a file name."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode() for char in text
    )


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return the names (in lower case) nearest to a misspelled one, as the end of a clause; "" if none is near."""
    near = difflib.get_close_matches(name.lower(), names, n=4)
    return f": did you mean {' or '.join(near)}?" if near else ""


def first_line(error: BaseException | str) -> str:
    """Return the first line of an error's message, or its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
