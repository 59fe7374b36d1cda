"""Results as strict JSON files."""

import json
import os
from pathlib import Path
from typing import Any

from utils.files import atomic_write
from utils.program import option
from utils.resume import HYPERPARAMETERS, IDENTITY

PATHS = ("load_from", "init_from", "inits_from")  #: options that may name the same file in several ways
WITHOUT_BEARING = ("data_path", "batch_size", "cuda")  #: options without bearing on what is measured


def differing_options(path: Path, content: dict[str, Any]) -> list[str]:
    """The options in which the results in a file differ from those that are about to replace them.

    Args:
        path: of the file.
        content: of it soon, with `provenance`, and perhaps `trained_by`.

    Returns:
        those of the measurement and of the training, as far as both tell; none where the same thing was measured
        in the same way, or there are no results.
    """
    try:
        theirs, ours = _options(json.loads(path.read_text(encoding="utf-8"))), _options(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # there are none, or not of these programs
        return []
    return [name for name in theirs if name in ours and theirs[name] != ours[name]]


def _options(results: dict[str, Any]) -> dict[str, Any]:
    """The options that tell results from those of something else."""
    found = {}
    for name, value in results["provenance"]["arguments"].items():
        if name not in WITHOUT_BEARING:
            found[option(name)] = os.path.abspath(value) if name in PATHS and value else value
    for name, value in results.get("trained_by", {}).get("arguments", {}).items():
        if name in IDENTITY or name in HYPERPARAMETERS:
            found[f"{option(name)} of the training"] = value
    return found


def write_json(content: dict[str, Any], path: Path) -> None:
    """Write `content` as strict JSON, atomically. Creates the folder.

    Raises:
        ValueError: it holds NaN or an infinity, for which JSON has no number.
        OSError: the disk, the folder or the permissions do not allow it.
    """
    text = json.dumps(content, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        file.write(text + "\n")
