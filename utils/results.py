"""Results as strict JSON files."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.options import option
from utils.runs.configuration import HYPERPARAMETERS, IDENTITY
from utils.snapshots.files import atomic_write

#: Options without bearing on what is measured, and one that the folder is named by.
NOT_COMPARED = ("data_path", "batch_size", "cuda", "subsample_classes")
#: What tells the weights of a layer from others, and those that their distance is measured from.
WEIGHTS, DISTANCES = ("mean", "std"), ("l2_dist", "l_inf_dist")
PATHS = ("load_from", "init_from", "inits_from")  #: what is in these files is compared, not what they are called


def differing_options(path: Path, content: dict[str, Any]) -> list[str]:
    """In what the results in a file differ from those that are about to replace them.

    Args:
        path: of the file.
        content: of it soon, with `provenance`, and perhaps `trained_by`.

    Returns:
        the options of the measurement and of the training that differ, as far as both tell; where none does,
        "weights", "initial weights" or "initializations" if those do; none where the same thing was measured in
        the same way, or there are no results.
    """
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        theirs, ours = _options(recorded), _options(content)
        found = [name for name in theirs if name in ours and theirs[name] != ours[name]]
        if not found and not _are_close(_measured(recorded, WEIGHTS), _measured(content, WEIGHTS)):
            found = ["weights"]
        if not found and not _are_close(_measured(recorded, DISTANCES), _measured(content, DISTANCES)):
            found = ["initial weights"]
        key = "initializations"  # which results of before do not record
        if not found and key in recorded and recorded[key] != content.get(key):
            found = ["initializations"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # there are none, or not of these programs
        return []
    return found


def _options(results: dict[str, Any]) -> dict[str, Any]:
    """The options that tell results from those of something else."""
    found = {}
    for name, value in results["provenance"]["arguments"].items():
        if name not in (*NOT_COMPARED, *PATHS):
            found[option(name)] = value
        elif name in PATHS:
            found[option(name)] = value is not None
    for name, value in results.get("trained_by", {}).get("arguments", {}).items():
        if name in IDENTITY or name in HYPERPARAMETERS:
            found[f"{option(name)} of the training"] = value
    return found


def _measured(results: dict[str, Any], keys: tuple[str, ...]) -> dict[str, float | None]:
    """These statistics of each layer."""
    layers = results["projections"] if "projections" in results else layers_of(results)
    return {f"{name} {key}": layer[key] for name, layer in layers.items() for key in keys if key in layer}


def _are_close(some: dict[str, float | None], others: dict[str, float | None]) -> bool:
    """Whether the numbers are the same, but for the rounding of another device."""
    return some.keys() == others.keys() and all(
        value == others[name] if None in (value, others[name]) else math.isclose(value, others[name], rel_tol=1e-6)
        for name, value in some.items()
    )


def layers_of(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The layers in results of compute_projections.py, in network order: name -> statistics."""
    blocks = (content[stage] for stage in content if stage.isdigit())
    return {layer.get("name", "?"): layer for block in blocks for layer in block.values()}


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
