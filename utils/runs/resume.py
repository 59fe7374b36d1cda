"""How a training run is continued: which snapshot with, and whose snapshots are not overwritten."""

import argparse
import errno
import glob
from pathlib import Path
from typing import Any, NamedTuple

import torch

import data
from core.errors import UsageError
from utils import snapshots
from utils.options import check_recorded, option
from utils.runs.configuration import (
    DRAWN_SEEDS,
    HYPERPARAMETERS,
    IDENTITY,
    OF_TRAINING_ALONE,
    check_sound,
    configuration,
    difference,
    ineffective,
    is_sound,
    legacy_configuration,
)
from utils.runs.folders import RunFiles
from utils.runs.lock import FolderLock
from utils.snapshots.names import training_states


class Start(NamedTuple):
    """Where a run begins."""

    path: Path | None  #: of the snapshot that it continues; None: with its own initialization
    snapshot: dict[str, Any] | None  #: as utils.snapshots.load gives it
    first_epoch: int  #: the first one to train, counted from 0
    notes: list[str]  #: what to tell the user
    warnings: list[str]


def find_start(args: argparse.Namespace, training: bool) -> Start:
    """Find the snapshot to continue with, and make the arguments those of its run.

    What is not given on the command line is taken from the snapshot. Sets `args.started_from`.

    Raises:
        SnapshotError: the snapshot is damaged, or none.
        UsageError: an option contradicts it; or there is none of this run, and it was to be evaluated.
    """
    args.started_from, untrained = None, []
    if args.start_epoch:
        args.started_from = f"its own initialization at epoch {args.start_epoch}"
        untrained = [f"--start-epoch {args.start_epoch}: the network is new, and its snapshots count these epochs"]
    path, snapshot, warnings = None, None, []
    if args.resume_from == "latest":
        path, snapshot, warnings = find_latest(args)
        if path is None and not training:
            raise UsageError("--resume-from latest: there is no snapshot of this run to evaluate")
        if path is None:
            notes = ["no snapshot of this run yet: it starts from scratch"]
            return Start(None, None, args.start_epoch, notes, warnings + untrained)
    elif args.resume_from is not None:
        path = Path(args.resume_from)
        snapshot = snapshots.load(path)
        if not training:
            warnings += adopt_from_beside(args, path, snapshot)
    else:
        return Start(None, None, args.start_epoch, [], untrained if training else [])
    warnings += adopt(args, path, snapshot, training)
    first_epoch = args.start_epoch
    if "epoch" in snapshot:
        first_epoch = snapshot["epoch"] + 1
        if args.resume_from != "latest" and "start_epoch" in args.given and args.start_epoch != first_epoch:
            raise UsageError(f"--start-epoch {args.start_epoch}: {path} continues with epoch {first_epoch}")
    if "config" in snapshot:
        args.started_from = snapshot["config"].get("started_from")
    else:
        args.started_from = f"weights {snapshots.fingerprint(snapshot['model_state_dict'])} at epoch {first_epoch}"
    warnings += snapshots.without_checksums(path, snapshot)
    return Start(path, snapshot, first_epoch, [], warnings)


def find_latest(args: argparse.Namespace) -> tuple[Path | None, dict[str, Any] | None, list[str]]:
    """The intact training state of the highest epoch of this very run.

    Returns:
        its path and what it holds, or None for both; and what to warn about: snapshots of higher epochs that are
        damaged.
    """
    mine, damaged = configuration(args), []
    ignore = {name for name in DRAWN_SEEDS if name not in args.given}
    if args.override:
        ignore |= {*HYPERPARAMETERS, "batch_size"}
    for path in reversed(training_states(RunFiles(args).folder, args.arch).values()):
        try:
            config = snapshots.load_record(path).get("config")
            if config is None or difference(mine, config, ignore):
                continue
            snapshot = snapshots.load(path)
        except snapshots.SnapshotError as error:
            damaged.append(f"passed over: {error}")
            continue
        return path, snapshot, damaged
    return None, None, damaged


def adopt(args: argparse.Namespace, path: Path, snapshot: dict[str, Any], training: bool) -> list[str]:
    """Make the arguments those of the run that a snapshot is from; what it does not record stays as given.

    Returns:
        what to warn about: options that the snapshot's values stand against.

    Raises:
        UsageError: an option that was given contradicts the snapshot.
        SnapshotError: what the snapshot records is not what an option can be.
    """
    try:
        recorded = snapshot["config"] if "config" in snapshot else legacy_configuration(snapshot)
    except (KeyError, TypeError, IndexError, AttributeError):
        raise snapshots.SnapshotError(
            f"{path} is no snapshot: its optimizer's state is not what it is in one"
        ) from None
    check_sound(path, recorded)
    if "config" in snapshot:  # a switch that is not recorded was not there yet: off
        recorded = {**{name: False for name, kind in IDENTITY.items() if kind is bool}, **recorded}
    warnings = []
    for name in IDENTITY:
        kept_as_given = name in args.given and (
            name in ineffective(args)
            or (name == "batch_size" and args.override)
            or (name in OF_TRAINING_ALONE and not training)
        )
        if name in recorded and not kept_as_given:
            check_recorded(args, name, recorded[name], path)
            setattr(args, name, recorded[name])
    if recorded.get("seed_given"):  # then it is part of the paths of this run too
        args.given.add("seed")
    for name in HYPERPARAMETERS:
        asked_for = name in args.given and not training
        if name not in recorded or args.override or asked_for or name in ineffective(args):
            continue
        if name in args.given and getattr(args, name) != recorded[name]:
            warnings.append(
                f"{option(name)} {getattr(args, name)} has no effect: {path} was trained with {recorded[name]}; "
                "--override replaces it"
            )
        setattr(args, name, recorded[name])
    return warnings


def adopt_from_beside(args: argparse.Namespace, path: Path, snapshot: dict[str, Any]) -> list[str]:
    """Let final weights that are evaluated have the configuration of the training state beside them.

    Unlike a training state, they may be evaluated with other options than they were trained with, where those are
    given.

    Args:
        snapshot: of the final weights; it gets the configuration and the class names.

    Returns:
        what to warn about: such options.
    """
    state = snapshots.run_of_bare_weights(path, snapshot, args.arch)
    config = state.get("config")
    if not isinstance(config, dict):
        return []
    guessed = [f"{path} is taken to be of the run of {state['path']}"] if "guessed" in state else []
    given = {name: getattr(args, name) for name in IDENTITY if name in args.given}
    sound = {name: value for name, value in config.items() if name in IDENTITY and is_sound(name, value)}
    without_effect = ineffective(argparse.Namespace(**{**vars(args), **sound, **given}))
    given = {
        name: value
        for name, value in given.items()
        if name not in without_effect and name not in OF_TRAINING_ALONE
    }
    snapshot["config"] = {**config, **given}
    if "class_names" in state and not given.keys() & {"subsample_classes", "class_sample_seed"}:
        snapshot["class_names"] = state["class_names"]
    return guessed + [
        f"{path} was trained with {option(name)} {config[name]}, and is evaluated with {value}"
        for name, value in given.items()
        if name in config and config[name] != value
    ]


def hold_folder(args: argparse.Namespace, lock: FolderLock) -> list[str]:
    """Lock the folder of the run's snapshots, and clear away what a killed process has left half written there.

    Returns:
        what to warn about: that the file system has no locks.

    Raises:
        UsageError: another run holds it.
        OSError: it cannot be made.
    """
    folder = RunFiles(args).folder
    try:
        holder = lock.hold(folder)
    except OSError as error:
        if error.errno != errno.ENOLCK:
            raise
        return [f"{folder} is on a file system without locks: a second run in it would not be noticed"]
    if holder is not None:
        raise UsageError(f"{folder} is in use by another run: {holder}")
    for path in folder.glob(f".{glob.escape(args.arch)}_*.tmp"):
        path.unlink(missing_ok=True)
    return []


def refuse_to_overwrite(
    args: argparse.Namespace, dataset: data.Dataset, net: torch.nn.Module, start: Start
) -> None:
    """Raise UsageError where a run would overwrite the snapshots of another one, or be mixed with them.

    Args:
        args: of the run.
        dataset: of the run.
        net: with the weights that it starts from.
        start: where it begins; snapshots of earlier epochs are not overwritten.
    """
    files, mine = RunFiles(args), configuration(args)
    known = start.snapshot or {}
    starts_here = start.path is not None and start.path.parent.resolve() == files.folder.resolve()
    # In what snapshots of earlier epochs may differ from a run that goes on from them.
    may_differ: set[str] = set()
    if starts_here and "epoch" not in known:  # from bare weights
        may_differ = {*HYPERPARAMETERS, "batch_size", "started_from"}
    elif args.override or known.get("config", {}).get("overridden"):
        may_differ = {*HYPERPARAMETERS, "batch_size"}
    latest = args.resume_from == "latest"
    how = "give it the options of that run" if latest else "continue it with --resume-from latest"
    advice = f"{how}, or choose another --models-path or --seed, or remove it"
    states = training_states(files.folder, args.arch)
    for epoch, path in reversed(states.items()):
        is_earlier = epoch < start.first_epoch
        if is_earlier and starts_here and "epoch" in known:  # of the run that goes on
            continue
        fate = "would be mixed with this one" if is_earlier else "would be overwritten"
        try:
            state = snapshots.load_record(path)
        except snapshots.SnapshotError as error:
            if latest:  # it was passed over, and is done again
                continue
            raise UsageError(f"{error}; it might be of another run: remove it first") from None
        if "config" not in state:
            raise UsageError(f"{path} is of a run that recorded no configuration, and {fate}: {advice}")
        differing = difference(mine, state["config"], may_differ if is_earlier else set())
        if differing.startswith("started from"):  # which no option says
            advice = f"continue it with --resume-from {path}, or choose another --models-path, or remove it"
        if not differing and state.get("class_names", dataset.class_names) != dataset.class_names:
            differing = "other classes"
        if not differing and not (is_earlier and may_differ):
            differing = snapshots.describe_other_images(state, dataset.train_fingerprint)
        if differing:
            raise UsageError(f"{path} is of another run ({differing}), and {fate}: {advice}")
    if files.final.exists() and files.final != files.initial and args.epochs - 1 not in states:
        raise UsageError(f"{files.final} is there with no training state to tell its run by: {advice}")
    # A run with a drawn seed that was interrupted before its first snapshot begins anew, with another seed.
    begins_anew = latest and "seed" not in args.given and not states
    if start.snapshot is None and files.initial.exists() and not begins_anew:
        try:
            there = snapshots.load(files.initial)["model_state_dict"]
        except snapshots.SnapshotError as error:
            raise UsageError(f"{error}; it might be of another run: remove it first") from None
        if snapshots.fingerprint(there) != snapshots.fingerprint(snapshots.bare_weights(net)):
            raise UsageError(f"{files.initial} holds other initial weights, and would be overwritten: {advice}")
