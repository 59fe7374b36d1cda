"""What a training run is: the options that determine its weights, as snapshots record them."""

import argparse
from pathlib import Path
from typing import Any

import models
from utils.options import option
from utils.snapshots.archive import SnapshotError

#: The options that determine the weights and stay what they are for the whole of a run, and their kinds. An option
#: stands after those that decide whether it has an effect.
IDENTITY: dict[str, type] = {
    **dict.fromkeys(("arch", "dataset", "optimizer"), str),
    **dict.fromkeys(("subsample_classes", "class_sample_seed"), int),
    **dict.fromkeys(("noise", "split"), float),
    **dict.fromkeys(("stratified", "shuffle", "augmentation", "upscale", "upscale_padding", "unnormalize"), bool),
    **dict.fromkeys(("noise_seed", "split_seed", "batch_size", "seed"), int),
    **dict.fromkeys(("pretrained", "sync_bn", "amp", "tf32"), bool),
}
LARGEST = 1e30  #: of hyperparameters: products of two of them are still float32 numbers, or nearly so
#: Those that `--override` replaces, and with them the batch size where it is given.
HYPERPARAMETERS: dict[str, type] = {
    "lr": float,
    "lr_step": int,
    "lr_decay": float,
    "weight_decay": float,
    "momentum": float,
}
#: The least and the greatest value of options that are not any number from 0 on. `--noise -1` is none.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("class_sample_seed", "noise_seed", "split_seed"), (0, 2**32 - 1)),
    **dict.fromkeys(("noise", "split"), (0, 1)),
    **{name: (0, LARGEST) for name, kind in HYPERPARAMETERS.items() if kind is float},
    "batch_size": (1, 2**31 - 1),
}
#: Those without bearing on the evaluation of a network that is trained.
OF_TRAINING_ALONE = ("optimizer", "augmentation", "batch_size", "sync_bn")
#: Drawn where they are needed and not given.
DRAWN_SEEDS = ("seed", "noise_seed", "split_seed")
#: Recorded as None where the run has no such thing.
MAY_BE_NONE = {*DRAWN_SEEDS, "class_sample_seed", "lr_step", "lr_decay", "momentum"}


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
    if args.sync_bn and not models.has_batch_norm(args.arch):
        found["sync_bn"] = f"with {args.arch}, which has no batch norm"
    return found


def configuration(args: argparse.Namespace) -> dict[str, Any]:
    """What determines the weights: the options, off or None where without effect, and the weights started from."""
    without_effect = ineffective(args)
    options = {
        name: getattr(args, name) if name not in without_effect else False if kind is bool else None
        for name, kind in {**IDENTITY, **HYPERPARAMETERS}.items()
    }
    return {**options, "started_from": args.started_from}


def difference(mine: dict[str, Any], recorded: dict[str, Any], ignore: set[str] = frozenset()) -> str:
    """The first thing in which two configurations differ, in words; "" where they do not.

    A switch that is not recorded was not there yet when the snapshot was written: off.
    """
    for name, value in mine.items():
        theirs = recorded.get(name, False if isinstance(value, bool) else None)
        if name not in ignore and theirs != value:
            what = "started from" if name == "started_from" else option(name)
            return f"{what} {theirs}, not {value}"
    return ""


def is_sound(name: str, value: Any) -> bool:
    """Whether a recorded value is one that the option can have."""
    kind = {**IDENTITY, **HYPERPARAMETERS}[name]
    if value is None:
        return name in MAY_BE_NONE
    if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool) != (kind is bool):
        return False
    if kind in (int, float):
        least, most = RANGES.get(name, (0, 2**63 - 1))
        return least <= value <= most or (name, value) == ("noise", -1)
    return True


def check_sound(path: Path, config: dict[str, Any]) -> None:
    """Raise SnapshotError where a snapshot records what no option can be."""
    for name, value in config.items():
        if (name in IDENTITY or name in HYPERPARAMETERS) and not is_sound(name, value):
            raise SnapshotError(f"{path} is no snapshot: it records {option(name)} {value!r}")
    for name in ("num_classes", "in_channels"):
        value = config.get(name, 1)
        if type(value) is not int or not 1 <= value <= 2**31:
            raise SnapshotError(f"{path} is no snapshot: it records {value!r} as {name}")
    if not isinstance(config.get("started_from"), (str, type(None))):
        raise SnapshotError(f"{path} is no snapshot: started_from is not a text")
    if config.get("optimizer") == "sgd" and config.get("momentum", 0) is None:
        raise SnapshotError(f"{path} is no snapshot: it records no momentum, with sgd")


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
