"""Results as strict JSON files, and as long tables for pandas, R or a spreadsheet."""

import contextlib
import csv
import fcntl
import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from core.text import printable
from utils.arguments import Settings
from utils.options import CONFIGURATION, compared_arguments, flag
from utils.runs.folders import dataset_folder, noise_of_snapshot
from utils.snapshots.files import atomic_write


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write strict JSON, atomically. Create the folder.

    Raise ValueError for NaN and infinities, for which JSON has no number, and OSError if the disk, the folder or
    the permissions do not allow it.
    """
    text = json.dumps(content, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        file.write(text + "\n")


def result_stem(path: Path, tar_stems: Collection[str] = ()) -> str:
    """Return the name of a snapshot's results: without its suffix, unless a `.tar` and a `.pt` share that name.

    `tar_stems` are those of the `.tar`s that it is measured together with, in whatever folder.
    """
    beside_tar = path.suffix == ".pt" and (path.stem in tar_stems or path.with_suffix(".tar").exists())
    return path.name if beside_tar else path.stem


def layers_of(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the layers in results of compute_projections.py, in network order: name -> statistics."""
    blocks = (content[stage] for stage in content if stage.isdigit())
    return {layer.get("name", "?"): layer for block in blocks for layer in block.values()}


def differing_options(path: Path, content: Mapping[str, Any]) -> list[str]:
    """Return the options in which the results in a file differ from those that are about to replace them.

    They are those of the measurement and of the training, as far as both files record them; where none differ, but
    other weights were measured, "weights".
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
    found |= {f"{flag(name)} of the training": trained_by[name] for name in CONFIGURATION if name in trained_by}
    return found | ({"weights": results["weights"]} if "weights" in results else {})


#: Columns of the tables. Other statistics of a layer, where there are any, follow them.
_RUN = ("dataset", "noise", "arch", "name", "seed", "snapshot", "epoch")
_LAYER = ("filters", "zero_filters", "mass", "mean", "std", "p_value", "p_value_without_zeros")
MEASURED = (*_RUN, "normalized", "depth", "layer", "stage", "block", *_LAYER, "l2_dist", "l_inf_dist", "top1_acc")
_DROPS = ("relative_drop", "corrected_drop")
RESET = (*_RUN, "reset_to", "depth", "layer", *_LAYER, "top1_trained", "top1_reset", *_DROPS)


def rows_of(results: Mapping[str, Any], path: Path, settings: Settings) -> list[dict[str, Any]]:
    """Return the rows of a table: one a layer; of reinit_layers.py, one a reset and layer.

    `results` is the content of the JSON file at `path`, below `settings.results`: its folders tell the noise.
    """
    parts = path.relative_to(settings.results).parts
    arch = parts.index(settings.arch, settings.dataset is not None)  # below it is the name of the run, of any form
    run = {
        "dataset": dataset_folder(results["dataset"], results.get("subsample_classes", 0)),
        "noise": noise_of_snapshot(Path("/", *parts[: arch + 1]), {}),
        "arch": results["arch"],
        "name": settings.name,
        "seed": results.get("seed", results.get("trained_by", {}).get("arguments", {}).get("seed")),
        "snapshot": path.stem.removeprefix("reinit_"),
        "epoch": None if results["epoch"] is None else int(results["epoch"]),
    }
    if "init_from_epoch" in results:
        rows = [
            {"reset_to": row, "depth": depth, "layer": layer, **results["projections"][layer]}
            | {"top1_trained": results["top1_test"], "top1_reset": top1}
            | {name: results[name][row][depth - 1] for name in _DROPS}
            for row, accuracies in results["init_from_epoch"].items()
            for depth, (layer, top1) in enumerate(zip(results["layers"], accuracies, strict=True), start=1)
        ]
    else:
        run["normalized"] = results.get("provenance", {}).get("arguments", {}).get("normalize")
        run["top1_acc"] = results.get("top1_acc")
        blocks = ((stage, *block) for stage in filter(str.isdigit, results) for block in results[stage].items())
        rows = [
            {"depth": depth, "layer": layer.get("name"), "stage": stage, "block": block, **layer}
            for depth, (stage, block, layer) in enumerate(blocks, start=1)
        ]
    return [{**row, **run} for row in rows]


def write_csv(rows: Collection[Mapping[str, Any]], path: Path, columns: Iterable[str]) -> None:
    """Write a table, atomically. None, and a column that a row lacks, is an empty cell; lists are left out.

    `columns` are the first columns. Others, of some rows only, come last.
    """
    found = (name for row in rows for name, value in row.items() if not isinstance(value, list))
    with atomic_write(path, "w") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys([*columns, *found])), "", "ignore", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: printable(v) if isinstance(v, str) else v for name, v in row.items()})


def write_projections(folder: Path, settings: Settings) -> list[str]:
    """Write projections.csv: one row per snapshot and layer, of all results in a folder, in order of training.

    It is made from the JSON files, so that several commands, one after the other or at once, make one table.
    Return warnings about files that are no results.
    """
    table, rows, warnings = folder / "projections.csv", [], []
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)  # so that the last one to write has read the files of all
        for path in folder.glob("*.json"):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                rows += rows_of(content, path, settings) if "net" in content else []
            except (OSError, ValueError, TypeError, KeyError, AttributeError):
                warnings.append(f"{path} is not a result of these programs: {table} is without it")
        rows.sort(key=lambda row: (row["epoch"] is None, row["epoch"] or 0, len(row["snapshot"]), row["snapshot"]))
        write_csv(rows, table, MEASURED)
    finally:
        os.close(handle)
    return warnings
