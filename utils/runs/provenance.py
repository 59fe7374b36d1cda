"""What produced a result: program, arguments, versions, device. A file found years later explains itself."""

import argparse
import contextlib
import functools
import importlib.metadata
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import data
from utils.process import devices

ROOT = Path(__file__).parent.parent.parent
#: Options that say where the output goes or how fast it is made, and have no bearing on what is in it.
NOT_RECORDED = ("log", "plots", "results", "workers", "models_path", "tb_logdir")


def provenance(program: str, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What a result or a snapshot records of its making: the same whenever the same command is given.

    Args:
        program: the name of its file.
        args: the options in effect, given or not.
        device: that it computes on.
    """
    arguments = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(args).items()
        if name not in ("given", *NOT_RECORDED)
    }
    return {
        "program": program,
        **_program_version(),
        "arguments": arguments,
        "device": devices.describe(device),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # of a class of its own, which no snapshot may hold
        **{package: importlib.metadata.version(package) for package in ("torchvision", "numpy")},
        "data_protocol": data.PROTOCOL,
    }


@functools.cache
def _program_version() -> dict[str, str | None]:
    """The version of these programs, and the git commit where they are in a checkout (`-dirty`: with changes)."""
    version = commit = None
    with contextlib.suppress(OSError):  # where only the programs were copied
        version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    if (ROOT / ".git").exists():  # not where they lie within a repository of something else
        git = ["git", "--no-optional-locks", "-C", str(ROOT)]
        try:
            head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
            # Of the code alone: results that are kept in the repository change nothing.
            changes = [*git, "diff", "--quiet", "HEAD", "--", "*.py", "*.txt", "*.toml"]
            changed = subprocess.run(changes, capture_output=True).returncode
            # Networks and datasets that were added, one file each.
            folders = ("core/*.py", "data/*.py", "models/*.py", "utils/*.py", "utils/*/*.py")
            added = [*git, "ls-files", "--others", "--exclude-standard", "--", *folders]
            changed = changed or subprocess.run(added, capture_output=True).stdout
            commit = head.stdout.strip() + ("-dirty" if changed else "")
        except (OSError, subprocess.CalledProcessError):  # no git here, or none that may read this checkout
            commit = None
    return {"version": version, "commit": commit}
