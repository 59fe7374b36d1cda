"""Results as strict JSON files."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from utils.options import CONFIGURATION, compared_arguments, flag
from utils.snapshots.files import atomic_write


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write strict JSON, atomically. Create the folder.

    Raises:
        ValueError: `content` holds NaN or an infinity, for which JSON has no number.
        OSError: the disk, the folder or the permissions do not allow it.
    """
    text = json.dumps(content, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        file.write(text + "\n")


def result_stem(path: Path, tar_stems: Collection[str] = ()) -> str:
    """Return the name of a snapshot's results: its own without the suffix, unless a `.tar` and a `.pt` share that.

    `<arch>_3.tar` is after four epochs and `<arch>_3.pt` after three: the results of the latter are `<arch>_3.pt`.

    Args:
        tar_stems: of the `.tar`s that it is measured together with, in whatever folder.
    """
    beside_tar = path.suffix == ".pt" and (path.stem in tar_stems or path.with_suffix(".tar").exists())
    return path.name if beside_tar else path.stem


def layers_of(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the layers in results of compute_projections.py, in network order: name -> statistics."""
    blocks = (content[stage] for stage in content if stage.isdigit())
    return {layer.get("name", "?"): layer for block in blocks for layer in block.values()}


def differing_options(path: Path, content: Mapping[str, Any]) -> list[str]:
    """Return the options in which the results in a file differ from those that are about to replace them.

    Args:
        path: the file.
        content: its new content, with `provenance`, and perhaps `trained_by` and `weights`.

    Returns:
        the options of the measurement and of the training that differ, as far as both are recorded; where none do,
        but other weights were measured, "weights".
    """
    try:
        theirs, ours = _options(json.loads(path.read_text(encoding="utf-8"))), _options(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # there are none, or not of these programs
        return []
    differing = [name for name in theirs if name in ours and theirs[name] != ours[name]]
    return [name for name in differing if name != "weights"] or differing


def _options(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recorded options that change what is measured."""
    made_by, trained_by = results["provenance"], results.get("trained_by", {}).get("arguments", {})
    found = compared_arguments(made_by["program"].removesuffix(".py"), made_by["arguments"])
    return (
        found
        | {f"{flag(name)} of the training": trained_by[name] for name in CONFIGURATION if name in trained_by}
        | {name: results[name] for name in ("weights",) if name in results}
    )
