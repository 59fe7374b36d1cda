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
ROOMS, PROGRAMS = ("core", "data", "models", "utils"), ("train", "compute_projections", "reinit_layers")
CODE = [
    *(f"{room}/*.py" for room in ROOMS),
    *(f"{program}.py" for program in PROGRAMS),
    "*.toml",
    "requirements.txt",
]


def provenance(program: str, arguments: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return what a result or a snapshot records of its making: the same whenever the same command is given.

    Args:
        program: name of its file.
        arguments: the options in effect, given or not.
        device: the device that the program computes on.
    """
    return {
        "program": program,
        **_program_version(),
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()},
        "device": devices.describe(device),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # its own class would be refused when a snapshot is read
        **{package: importlib.metadata.version(package) for package in ("torchvision", "numpy")},
        "data_protocol": options.images(arguments).protocol,
    }


@functools.cache
def _program_version() -> dict[str, str | None]:
    """Return the programs' version, and the commit of their git checkout (`-dirty` if the code was changed)."""
    version = commit = None
    with contextlib.suppress(OSError):  # where only the programs were copied
        version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    if (ROOT / ".git").exists():  # not where the programs lie within another repository
        git = ["git", "--no-optional-locks", "-C", str(ROOT)]
        status = ["status", "--porcelain", "--untracked-files=all", "--", *CODE]
        with contextlib.suppress(
            OSError, subprocess.CalledProcessError
        ):  # no git, or it may not read this checkout
            head = subprocess.check_output([*git, "rev-parse", "HEAD"], stderr=subprocess.DEVNULL, text=True)
            changes = subprocess.check_output([*git, *status], stderr=subprocess.DEVNULL)
            commit = head.strip() + ("-dirty" if changes else "")
    return {"version": version, "commit": commit}
