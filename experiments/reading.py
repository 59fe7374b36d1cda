"""Read the results of several runs, one per seed, from the files of the programs."""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from utils import reinit
from utils.options import CONFIGURATION, flag
from utils.results import layers_of

Layers = dict[str, dict[str, Any]]  #: name -> statistics, as utils.projections.measure returns them


class ResultError(ValueError):
    """Results are missing, or do not belong together; the message is one line and names the file."""


class Run(NamedTuple):
    """The projections of one training run."""

    seed: str  #: name of its folder
    files: list[Path]  #: that were read
    epochs: dict[int, Layers]  #: epochs trained -> layers in network order
    accuracy: float | None  #: top-1 in percent after the last epoch, on the test set or the validation split
    accuracy_trained_on: float | None  #: in percent, on the training batches of the last epoch, during training


def read_run(folder: Path, last_epoch: int) -> Run:
    """Read the results of compute_projections.py for the snapshots of one run, up to an epoch.

    Args:
        folder: `<results>/<dataset>/<arch>/<seed>`.
        last_epoch: epochs trained; later snapshots are ignored.

    Raises:
        ResultError: results of the first or last epoch are missing, or some results are not of cosines.
    """
    found: dict[int, dict[str, Any]] = {}
    files: dict[int, Path] = {}
    for path in sorted(folder.glob("*.json")):
        content = read(path)
        if "init_from_epoch" in content or content.get("epoch") is None:
            continue
        if path.stem in (f"init_{content['arch']}", f"pretrained_{content['arch']}"):  # without --load-from
            continue
        check_layers(path, content)
        epoch = max(int(content["epoch"]), 0)
        if epoch <= last_epoch and "top1_acc" not in found.get(epoch, {}):  # results of a `.pt` have no accuracy
            found[epoch], files[epoch] = content, path
    for epoch, what in ((0, "the initialization"), (last_epoch, f"{last_epoch} epochs of training")):
        if epoch not in found:
            raise ResultError(f"{folder} has no results of {what}: complete the run, or remove it")
    if len({tuple(layers_of(content)) for content in found.values()}) > 1:
        raise ResultError(f"{folder} has results of different layers")
    for epoch, content in found.items():
        if content.get("provenance", {}).get("arguments", {}).get("normalize") is False:
            raise ResultError(f"{files[epoch]} was measured without --normalize")
    last = found[last_epoch]
    return Run(
        folder.name,
        [files[epoch] for epoch in sorted(found)],
        {epoch: layers_of(found[epoch]) for epoch in sorted(found)},
        last.get("top1_acc"),
        last.get("top1_acc_train_running"),
    )


def read(path: Path) -> dict[str, Any]:
    """Read a result of one of the programs.

    Raises:
        ResultError: the file does not exist, or is not such a result.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ResultError(f"{path} is not a result: {error}") from None
    if not isinstance(content, dict) or "arch" not in content:
        raise ResultError(f"{path} is not a result of these programs")
    return content


def check_layers(path: Path, content: Mapping[str, Any]) -> None:
    """Raise ResultError if a file lacks layers, or statistics of a layer."""
    needed = {"mass", "mean", "filters", "zero_filters", "p_value_without_zeros"}
    try:
        layers = layers_of(content).values()
    except AttributeError:
        layers = ()
    if not layers:
        raise ResultError(f"{path} is not a result of compute_projections.py")
    missing = sorted(set().union(*(needed - layer.keys() for layer in layers)))
    if missing:
        raise ResultError(f"{path} lacks {', '.join(missing)} of a layer: measure the snapshot again")


def check_resets(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ResultError if results of reinit_layers.py (label of a run -> results) cannot be averaged."""
    needed = {"layers", "hidden_layers", "corrected_drop", "top1_test", "projections", "correlation"}
    for label, result in results.items():
        missing = sorted(needed - result.keys())
        if missing:
            raise ResultError(f"{label}: the results lack {', '.join(missing)}: reset the layers again")
    first_label, first = next(iter(results.items()))
    for label, result in results.items():
        drops = result["corrected_drop"]
        if reinit.initialization_row(drops) is None:
            raise ResultError(f"{label}: layers were not reset to the initialization")
        if result["layers"] != first["layers"] or drops.keys() != first["corrected_drop"].keys():
            raise ResultError(f"{first_label} and {label} have different layers, or resets to different epochs")
        if any(None in row for row in drops.values()):
            problem = "it does not guess better than chance, or a reset breaks it"
            raise ResultError(f"{label}: the accuracy lost is not defined for all layers: {problem}")


def check_seeds(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line about options, seeds apart, that were not the same for all runs in training; [] if all were.

    results: label of a run -> its results. Raise ResultError if two of them are of the same weights.
    """
    runs: dict[str, str] = {}
    for label, one in results.items():
        same = runs.setdefault(one.get("weights", label), label)
        if same != label:
            raise ResultError(f"{same} and {label} are results of the same weights: they are one run, not two")
    trained = [one.get("trained_by", {}).get("arguments", {}) for one in results.values()]
    values = {
        flag(name): sorted({str(one[name]) for one in trained if name in one})
        for name, row in CONFIGURATION.items()
        if not row.drawn  # a seed
    }
    differing = ", ".join(f"{name} {' / '.join(found)}" for name, found in values.items() if len(found) > 1)
    return [f"Not all were trained with the same options: {differing}"] if differing else []


def seeds_in(folder: Path) -> list[Path]:
    """Return the subfolders whose names are numbers, in the order of these numbers."""
    if not folder.is_dir():
        raise ResultError(f"{folder} is not a folder")
    found = [path for path in folder.iterdir() if re.fullmatch("[0-9]+", path.name)]
    if not found:
        raise ResultError(f"{folder} has no subfolders named by seeds")
    return sorted(found, key=lambda path: int(path.name))


def labelled_folders(parser: argparse.ArgumentParser, given: list[str]) -> dict[str, Path]:
    """Return the arguments LABEL FOLDER LABEL FOLDER ... as a dict; end the program if they are not such pairs."""
    folders = dict(zip(given[::2], map(Path, given[1::2]), strict=False))
    if 2 * len(folders) != len(given):
        parser.error("LABEL FOLDER: give each folder a label of its own")
    return folders
