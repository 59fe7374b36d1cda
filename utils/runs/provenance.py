"""What produced a result: program, arguments, versions, device. A file found years later explains itself."""

import contextlib
import functools
import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils import options
from utils.process import devices

ROOT = Path(__file__).parent.parent.parent
PROGRAMS = ("train.py", "compute_projections.py", "reinit_layers.py")
CODE = ("core/*.py", "data/*.py", "models/*.py", "utils/*.py", *PROGRAMS, "pyproject.toml", "requirements.txt")


def provenance(program: str, arguments: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return what a result or a snapshot records of its making: the same whenever the same command is given.

    `arguments` are the options in effect, given or not.
    """
    return {
        "program": program,
        **_program_version(),
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()},
        "device": devices.describe(device),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # its own class would be refused when a snapshot is read
        **{package: importlib.metadata.version(package) for package in ("torchvision", "numpy")},
        "data_protocol": options.images({"dataset": None, **arguments}).protocol,
    }


@functools.cache
def _program_version() -> dict[str, str | None]:
    """Return the programs' version, and the commit of their git checkout (`-dirty` if the code was changed)."""
    version = commit = None
    with contextlib.suppress(OSError):  # where only the programs were copied
        version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    if (ROOT / ".git").exists():  # not where the programs lie within another repository
        git = ["git", "--no-optional-locks", "-C", str(ROOT)]
        status = [*git, "status", "--porcelain", "--untracked-files=all", "--", *CODE]
        ask = functools.partial(subprocess.check_output, stderr=subprocess.DEVNULL, text=True)
        # There may be no git, or it may not read this checkout.
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            commit = ask([*git, "rev-parse", "HEAD"]).strip() + ("-dirty" if ask(status) else "")
    return {"version": version, "commit": commit}
