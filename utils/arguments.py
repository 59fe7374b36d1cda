"""How a command line is read: kinds of values, the parser, and the settings that it gives."""

import argparse
import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import models
from core.text import did_you_mean
from utils.process import distributed
from utils.process.ending import WRONG_USE
from utils.process.logging import last_words


@dataclasses.dataclass(frozen=True)
class Number:
    """An int or a finite float in a range. Called with text it converts it, as an argparse type."""

    kind: type
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    zero_is_off: bool = False  #: 0 stands for None

    def __call__(self, text: str) -> int | float | None:
        try:
            value = self.kind(text)
        except ValueError:
            wanted = "a whole number" if self.kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None
        if value == 0 and self.zero_is_off:
            return None
        problem = self._problem(value)
        if problem:
            raise argparse.ArgumentTypeError(f"{text} {problem}")
        return value

    def accepts(self, value: Any) -> bool:
        """Return whether a recorded value is one that the command line would take."""
        kinds = (int, float) if self.kind is float else int
        return isinstance(value, kinds) and not isinstance(value, bool) and not self._problem(value)

    def _problem(self, value: float) -> str:
        if self.least <= value <= self.most and self.above < value < self.below:
            return ""
        limits = {"at least": self.least, "at most": self.most, "more than": self.above, "less than": self.below}
        stated = [f"{words} {limit}" for words, limit in limits.items() if math.isfinite(limit)]
        return f"is not {' and '.join(stated) or 'a finite number'}"


def path_text(text: str) -> str:
    """Replace `~` at the beginning of a path by the home folder, as the shell does not in `--option=~/path`.

    Refuse the empty text of an unset shell variable: as a path it would be the current folder.
    """
    if not text:
        raise argparse.ArgumentTypeError("the value is empty")
    return os.path.expanduser(text)


def input_path(text: str) -> Path:
    """Convert the path of something to read."""
    return Path(path_text(text))


def name_of_file(text: str) -> str:
    """Check the name of a file or folder, without a path."""
    if not text or "/" in text or text in (".", ".."):
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a file")
    return text


def log_file(text: str) -> str:
    """Check the name of a log file. With a slash it is a path, which becomes absolute."""
    if "/" not in text:
        return name_of_file(text)
    path = input_path(text).absolute()
    if text.endswith("/") or (path.exists() and not (path.is_file() and os.access(path, os.W_OK))):
        raise argparse.ArgumentTypeError(f"{text} is not a file that can be written")
    return str(path)


def name_of_runs(text: str) -> str:
    """Check a name for runs. A number would look like the folder of a seed."""
    if text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is a number: it would look like the folder of a seed")
    return name_of_file(text)


def folder(text: str) -> Path:
    """Convert the path of a folder that exists or can be made."""
    path = Path(path_text(text))
    for part in (path, *path.parents):
        if os.path.lexists(part) and not part.is_dir():
            raise argparse.ArgumentTypeError(f"{part} is not a folder")
    return path


class Settings(dict):
    """The options in effect, by name and as attributes. Do not change them: `replace` gives a changed copy."""

    def __init__(self, program: str, values: Mapping[str, Any], given: Iterable[str]):
        super().__init__(values)
        self.program, self.given = program, frozenset(given)  #: given: names of the options on the command line

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def replace(self, **changes: Any) -> "Settings":
        """Return a copy with other values; what was given on the command line stays the same."""
        return Settings(self.program, {**self, **changes}, self.given)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line.

    The manual is the docstring of the program: its first line stands before the options, the rest after them.
    """

    def __init__(self, program: str, manual: str | None):
        description, _, rest = (manual or "").partition("\n")
        super().__init__(
            f"{program}.py",
            description=description,
            epilog=rest.strip("\n"),
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.program = program

    def parse(self, argv: list[str] | None = None) -> Settings:
        """Parse a command line (default: the one of this process), and load the file that --arch may name."""
        values = vars(self.parse_args(argv))
        unset: list = []  # a list, because repeatable options extend a copy of their default
        marked = argparse.Namespace(**dict.fromkeys(values, unset))
        given = {name for name, value in vars(self.parse_args(argv, marked)).items() if value is not unset}
        own = models.load_own(values["arch"] or "")
        if own is not None:
            values["arch"] = own.name
            given.add("arch_sha256")
        values |= {"arch_file": own and own.path, "arch_sha256": own and own.sha256}
        return Settings(self.program, values, given)

    def error(self, message: str):
        unknown = re.search(r"unrecognized arguments: (-\S+)", message)
        if unknown:
            message += did_you_mean(unknown[1], self._option_string_actions)
        if distributed.LOCAL_RANK == 0:
            last_words(f"{self.prog}: error: {message}")
        self.exit(WRONG_USE)
