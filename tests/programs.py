"""How the tests run the three programs: as a user does, from the shell or by their main function."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
REFERENCE = Path(__file__).parent / "reference"  #: values measured with the authors' code


def command(program: str, *options: object) -> list[str]:
    """The command line of a program."""
    return [sys.executable, str(ROOT / program), *map(str, options)]


def shell(program: str, *options: object, **kwargs) -> subprocess.CompletedProcess:
    """Run a program as a process of its own."""
    return subprocess.run(command(program, *options), capture_output=True, text=True, timeout=300, **kwargs)


def files_below(folder: Path) -> set[str]:
    """The paths of all files below a folder, relative to it."""
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}
