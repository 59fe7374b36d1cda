"""What a training run is, and how one is continued: configurations, compared with those that snapshots record."""

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils import snapshots
from utils.program import UsageError, check_recorded

#: The options that determine the weights and stay what they are for the whole of a run ...
IDENTITY = (
    *("arch", "dataset", "subsample_classes", "class_sample_seed", "noise", "noise_seed", "split", "stratified"),
    *("split_seed", "shuffle", "augmentation", "upscale", "upscale_padding", "unnormalize", "pretrained"),
    *("optimizer", "batch_size", "seed"),
)
#: ... and those that `--override` replaces.
HYPERPARAMETERS = ("lr", "lr_step", "lr_decay", "weight_decay", "momentum")
#: Seeds that are drawn where they are needed and not given.
DRAWN_SEEDS = ("seed", "noise_seed", "split_seed")


def option(name: str) -> str:
    """The option as on the command line: `lr_step` is `--lr-step`."""
    return "--" + name.replace("_", "-")


def ineffective(args: argparse.Namespace) -> dict[str, str]:
    """The options that have no effect beside the others, each with the reason."""
    found = {}
    if not args.subsample_classes:
        found["class_sample_seed"] = "without --subsample-classes"
    if not args.noise:
        found["noise_seed"] = "without --noise"
    if not (args.split and args.shuffle):
        found["split_seed"] = "without --split and --shuffle"
    if args.optimizer == "adam":
        found["momentum"] = "with --optimizer adam"
    return found


def configuration(args: argparse.Namespace) -> dict[str, Any]:
    """The options that determine the weights; those without effect are None."""
    without_effect = ineffective(args)
    return {
        name: None if name in without_effect else getattr(args, name) for name in (*IDENTITY, *HYPERPARAMETERS)
    }


def difference(mine: dict[str, Any], recorded: dict[str, Any], ignore: set[str] = frozenset()) -> str:
    """The first option in which two configurations differ, in words; "" where they do not."""
    for name, value in mine.items():
        if name not in ignore and recorded.get(name) != value:
            return f"{option(name)} {recorded.get(name)}, not {value}"
    return ""


def epoch_of(path: Path, arch: str) -> int | None:
    """The epoch in the name of a training state; None for any other file."""
    match = re.fullmatch(rf"{re.escape(arch)}_(\d+)\.tar", path.name)
    return int(match[1]) if match else None


def training_states(folder: Path, arch: str) -> list[Path]:
    """The `.tar` snapshots of an architecture in a folder, by epoch."""
    found = [path for path in folder.glob("*.tar") if epoch_of(path, arch) is not None]
    return sorted(found, key=lambda path: epoch_of(path, arch))


def read_config(path: Path) -> dict[str, Any] | None:
    """The configuration that a snapshot records, without reading its weights; None where it records none.

    Raises:
        SnapshotError: the file is damaged.
    """
    return snapshots.load(path, wanted=lambda name: False).get("config")


def find_latest(folder: Path, args: argparse.Namespace) -> tuple[Path | None, list[str]]:
    """The intact training state of the highest epoch of this very run.

    Returns:
        its path, or None; and what to warn about: snapshots of higher epochs that are damaged.
    """
    mine, damaged = configuration(args), []
    ignore = {name for name in DRAWN_SEEDS if name not in args.given}
    if args.override:
        ignore.update(HYPERPARAMETERS)
    for path in reversed(training_states(folder, args.arch)):
        try:
            config = read_config(path)
            if config is None or difference(mine, config, ignore):
                continue
            snapshots.load(path)
        except snapshots.SnapshotError as error:
            damaged.append(f"passed over: {error}")
            continue
        return path, damaged
    return None, damaged


def settle(args: argparse.Namespace, path: Path, snapshot: dict[str, Any]) -> list[str]:
    """Make the arguments those of the run that a snapshot is from; what it does not record stays as given.

    Returns:
        what to warn about: options that the snapshot's values stand against.

    Raises:
        UsageError: an option that was given contradicts the snapshot.
    """
    recorded = snapshot.get("config") or legacy_configuration(snapshot)
    warnings = []
    for name in IDENTITY:
        if name not in recorded:
            continue
        replaceable = name == "batch_size" and args.override
        if replaceable and name in args.given:
            continue
        check_recorded(args, name, recorded[name], path)
        setattr(args, name, recorded[name])
    if recorded.get("seed_given"):  # then it is part of the paths of this run too
        args.given.add("seed")
    for name in HYPERPARAMETERS:
        if name not in recorded or args.override:
            continue
        if name in args.given and getattr(args, name) != recorded[name]:
            warnings.append(
                f"{option(name)} {getattr(args, name)} has no effect: {path} was trained with {recorded[name]}; "
                "--override replaces it"
            )
        setattr(args, name, recorded[name])
    return warnings


def legacy_configuration(snapshot: dict[str, Any]) -> dict[str, Any]:
    """What a training state of the authors' program tells by the state of its optimizer and schedule."""
    if not snapshot.get("optimizer_state_dict"):
        return {}
    group = snapshot["optimizer_state_dict"]["param_groups"][0]
    schedule = snapshot.get("scheduler_state_dict") or {}
    return {
        "optimizer": "adam" if "betas" in group else "sgd",
        "lr": group.get("initial_lr", group["lr"]),
        "weight_decay": group["weight_decay"],
        "momentum": group.get("momentum"),
        "lr_step": schedule.get("step_size"),
        "lr_decay": schedule.get("gamma"),
    }


def refuse_to_overwrite(
    folder: Path,
    config: dict[str, Any],
    first_epoch: int,
    initial: Path,
    initial_weights: dict[str, Tensor] | None,
    final: Path,
    damaged_too: bool = False,
) -> None:
    """Raise UsageError where a run would overwrite the snapshots of another one.

    Args:
        folder: of the run.
        config: of the run.
        first_epoch: the first epoch that it trains; 0-based. Snapshots of earlier ones are not overwritten.
        initial: where its initial weights go.
        initial_weights: None: none are written.
        final: where its final weights go.
        damaged_too: whether snapshots that cannot be read, and are of whatever run, may be overwritten.
    """
    advice = "continue it with --resume-from latest, or choose another --models-path or --seed, or remove it"
    of_this_run = 0
    for path in training_states(folder, config["arch"]):
        if epoch_of(path, config["arch"]) < first_epoch:
            of_this_run += 1
            continue
        try:
            recorded = read_config(path)
        except snapshots.SnapshotError as error:
            if damaged_too:
                continue
            raise UsageError(f"{error}; it might be of another run: remove it first") from None
        if recorded is None:
            raise UsageError(
                f"{path} is of a run that recorded no configuration, and would be overwritten: {advice}"
            )
        differing = difference(config, recorded)
        if differing:
            raise UsageError(f"{path} is of another run ({differing}), and would be overwritten: {advice}")
        of_this_run += 1
    if initial_weights is not None and initial.exists():
        try:
            there = snapshots.load(initial)["model_state_dict"]
        except snapshots.SnapshotError as error:
            raise UsageError(f"{error}; it might be of another run: remove it first") from None
        same = there.keys() == initial_weights.keys() and all(
            torch.equal(weight, initial_weights[name]) for name, weight in there.items()
        )
        if not same:
            raise UsageError(f"{initial} holds other initial weights, and would be overwritten: {advice}")
    if final.exists() and not of_this_run:
        raise UsageError(f"{final} is there with no training state to tell its run by: {advice}")
