"""How a training run begins: from scratch, from weights, or with a snapshot of its own."""

import dataclasses
import os
import secrets
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import data
import models
from core import seeds
from core.errors import UsageError
from core.text import say
from utils import options, snapshots
from utils.arguments import Settings
from utils.options import CONFIGURATION, DEFAULTS, IDENTITY, OVERRIDABLE, TRAINING, Role, check_recorded, flag
from utils.process import distributed
from utils.runs import record
from utils.runs.folders import RunFiles
from utils.runs.lock import FolderLock
from utils.runs.record import Record, Snapshot, difference, read_snapshot
from utils.snapshots import SnapshotError
from utils.snapshots.files import try_folder
from utils.snapshots.names import is_training_state, number_in_name, training_states
from utils.snapshots.weights import fingerprint

REPLACED_BY_OVERRIDE = {name for name, row in CONFIGURATION.items() if row.role & OVERRIDABLE}
DRAWN_SEEDS = [name for name, row in CONFIGURATION.items() if row.drawn]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of train.py: what is asked for, and where it begins."""

    settings: Settings  #: completed by what the snapshot records, and by drawn seeds
    training: bool  #: False: it only evaluates
    snapshot: Snapshot | None = None  #: that the run starts from; None: its own initialization
    record: Record | None = None  #: of the run that goes on; None: a new run
    first_epoch: int = 0  #: counted from 0
    started_from: str | None = None  #: the weights of other runs that training started from, in words
    notes: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)

    @property
    def files(self) -> RunFiles:
        return RunFiles(self.settings)

    @property
    def goes_on(self) -> bool:
        """Whether training goes on with the optimizer of a training state."""
        return self.snapshot is not None and self.snapshot.is_state

    @property
    def state(self) -> Mapping[str, Any]:
        """What the snapshot says of the training that goes on; nothing if it gives weights alone."""
        return self.snapshot.content if self.goes_on else {}


def begin(settings: Settings, lock: FolderLock) -> Run | None:
    """Find where a run begins, and lock its folder if it trains. If it is finished, say so and return None.

    Raise UsageError if options contradict each other or the snapshot, or another run is in the folder.
    """
    if any(settings[name] is None and name in settings.given for name in ("lr_step", "lr_decay")):
        settings = settings.replace(lr_step=None, lr_decay=None)  # one of them is 0: off
    training = options.mode(settings) in options.WRITING
    latest = settings.resume_from == "latest"
    warnings: list[str] = []
    snapshot = unstarted = None
    files = RunFiles(settings)
    try_folder("--log", (files.log_folder / settings.log).parent, b"")
    if training:
        try_folder("--models-path", files.folder)
    if options.mode(settings) in options.TRAINING:
        try_folder("--tb-logdir", files.board_folder)
    if training and latest:  # before looking for it: another process might be about to write it
        warnings += lock.hold(files.folder)
    if latest:
        snapshot, unstarted = _find_latest(settings, training, warnings)
    elif settings.resume_from is not None:
        if not os.path.exists(settings.resume_from):
            raise UsageError(f"--resume-from {settings.resume_from}: there is no such file (or 'latest')")
        snapshot = read_snapshot(Path(settings.resume_from), settings)
    run = _start_with(snapshot, settings, training) if snapshot else _start_anew(settings, training, unstarted)
    warnings += [*run.warnings, *check_arguments(run)]
    if training and (run.goes_on or unstarted is not None) and _is_finished(run):
        return None
    if training:  # again: the snapshot may have led to another folder
        warnings += lock.hold(run.files.folder)
    settings = run.settings
    for name in DRAWN_SEEDS:
        needed = not CONFIGURATION[name].effect(settings) and (training or snapshot is None or name != "seed")
        if needed and settings[name] is None:
            settings = settings.replace(**{name: seeds.draw()})
            run.notes.append(f"{flag(name)} was not given: drawn {settings[name]}")
    return dataclasses.replace(run, settings=settings, warnings=list(dict.fromkeys(warnings)))


def _find_latest(settings: Settings, training: bool, warnings: list[str]) -> tuple[Snapshot | None, Record | None]:
    """Find the newest intact training state of this run; else its record. Add warnings about damaged ones."""
    folder, arch = RunFiles(settings).folder, settings.arch
    for path in reversed(training_states(folder, arch).values()):
        try:
            snapshot = read_snapshot(path, settings.replace(weights_key=None))
        except SnapshotError as error:
            warnings.append(f"passed over: {error}")
            continue
        if snapshot.record is None:  # of the authors' program: it is refused later, like any run in its folder
            break
        differing = _difference(settings, snapshot.record)
        if differing:
            overridable = not _difference(settings.replace(override=True), snapshot.record)
            hint = "--override goes on with the options given now; or " if overridable else ""
            advice = _advice(f"{hint}give the options of that run")
            raise UsageError(f"{path} is of another run ({differing}): {advice}")
        return snapshot, None
    if not training:
        raise UsageError("--resume-from latest: there is no snapshot of this run to evaluate")
    recorded = record.read(folder, arch)
    if recorded is None or _difference(settings, recorded):
        return None, None
    started_from = recorded.config.get("started_from") or ""
    if started_from.startswith("weights"):
        message = f"the run in {folder} started from {started_from}, and has no training state yet"
        raise UsageError(f"--resume-from latest: {message}: give --resume-from with these weights again")
    return None, recorded


def _start_with(snapshot: Snapshot, settings: Settings, training: bool) -> Run:
    """Return the run that begins with a snapshot, of its own or of another run."""
    path, first_epoch, notes = snapshot.path, settings.start_epoch, []
    if snapshot.is_state:
        first_epoch = snapshot.epochs_trained
        given = "start_epoch" in settings.given and settings.resume_from != "latest"
        if given and settings.start_epoch != first_epoch:
            raise UsageError(f"--start-epoch {settings.start_epoch}: {path} continues with epoch {first_epoch}")
    recorded = snapshot.record if snapshot.is_state or not training else None
    config = recorded.config if recorded else {}
    if recorded is None and snapshot.is_state and (training or is_training_state(path, snapshot.content)):
        config = record.legacy_configuration(path, snapshot.content)
    started_from = config.get("started_from")
    if training and recorded is None:
        weights = snapshots.checksum(path) if "translated" not in snapshot.content else None
        weights = weights or fingerprint(snapshot.weights)  # one of several in a file, or without a checksum
        started_from = f"weights {weights} at epoch {first_epoch}"
        trained = snapshot.epochs_trained or 0
        if not first_epoch and trained > 0:
            notes.append(f"{path} is after {trained} epochs; this run counts from 0 (--start-epoch)")
    settings, warnings = adopt(settings, config, path, training)
    shows_images = not training and not settings.eval_regularization_loss
    warnings += snapshot.describe("the options say how its images are prepared" if shows_images else "")
    return Run(settings, training, snapshot, recorded, first_epoch, started_from, notes, warnings)


def _start_anew(settings: Settings, training: bool, unstarted: Record | None) -> Run:
    """Return the run that begins with its own initialization. A record of this run gives it its drawn seeds."""
    first_epoch, started_from, notes, warnings = settings.start_epoch, None, [], []
    if unstarted is not None:
        settings, _ = adopt(settings, unstarted.config, RunFiles(settings).folder, training)
    if settings.resume_from == "latest":
        notes.append("there is no training state of this run yet: it starts from scratch")
    if first_epoch and training:
        started_from = f"its own initialization at epoch {first_epoch}"
        warnings.append(f"--start-epoch {first_epoch}: the network is new, and its snapshots count these epochs")
    return Run(settings, training, None, None, first_epoch, started_from, notes, warnings)


def _difference(settings: Settings, recorded: Record) -> str:
    """Say where a record differs from the run that the settings describe; "" if it is that run."""
    ignore = {name for name in DRAWN_SEEDS if name not in settings.given}
    if settings.override:
        ignore |= REPLACED_BY_OVERRIDE
    return difference(options.configuration(settings), recorded.config, ignore)


def _advice(go_on: str = "") -> str:
    """Return what to do about another run in the folder. `go_on`: how that run goes on, where it can."""
    others = "choose another --name, --seed or --models-path, or move the files of that run away"
    return f"{go_on}, or {others}" if go_on else others


def way_on(settings: Settings, run: Run, words: list[str]) -> str:
    """Say how a run goes on that is interrupted.

    `settings` and `words` are the command line, of which the last one of several --resume-from counts.
    """
    folder, recorded = run.files.folder, record.read(run.files.folder, settings.arch)
    states = training_states(folder, settings.arch)
    if not states or recorded is None or _difference(run.settings, recorded):
        return "no snapshot has been kept (--snapshot-every): give the same command again"
    same = RunFiles(settings).folder == folder and not _difference(settings, recorded)
    newest = "latest" if same else str(list(states.values())[-1])
    more = ["--resume-from", newest] if settings.resume_from != newest else []
    return f"go on with {shlex.join([*words, *more])}"


def adopt(
    settings: Settings,
    config: Mapping[str, Any],
    path: Path,
    training: bool = False,
    roles: Role = IDENTITY | OVERRIDABLE,
) -> tuple[Settings, list[str]]:
    """Complete the settings, in options of these roles, by the configuration of the run that a snapshot is from.

    `training`: whether the run goes on; else its network is measured. Return the settings, and warnings about
    options on the command line that do not count. Raise UsageError if one contradicts the configuration.
    """
    if "num_classes" in config:  # a run of ours: an option that is not recorded did not exist
        config = {**DEFAULTS, **config}
    rows = {name: row for name, row in CONFIGURATION.items() if row.role & roles and name in settings}
    recorded = {name: config[name] for name in rows if name in config}
    merged = {**settings, **{name: value for name, value in recorded.items() if name not in settings.given}}
    warnings, changes = [], {}
    for name, value in recorded.items():
        row, given = CONFIGURATION[name], name in settings.given
        if row.effect(merged) or (row.modes == TRAINING and not training):
            continue
        if settings.get("override") and row.role & OVERRIDABLE and (given or not row.role & IDENTITY):
            continue  # as on the command line, or its default
        if given and not training and not row.role & Role.NETWORK:
            if settings[name] != value and not row.role & OVERRIDABLE:
                warnings.append(f"{path} was trained with {flag(name)} {value}, not {settings[name]}")
            continue
        if row.role & IDENTITY:
            check_recorded(settings, name, value, path)
        elif given and settings[name] != value:
            message = f"{flag(name)} {settings[name]} has no effect: {path} was trained with {value}"
            warnings.append(f"{message}; --override replaces it")
        changes[name] = value
    if config.get("arch_sha256") not in (None, settings.arch_sha256):
        other = f"{flag('arch_sha256')} {config['arch_sha256']}, not {settings.arch_sha256}"
        warnings.append(f"{path} was trained with {other}: is it the same network?")
    settings = settings.replace(**changes)
    if "seed" in changes and config.get("seed_given"):  # then it is part of the paths of this run too
        settings = Settings(settings.program, settings, settings.given | {"seed"})
    return settings, warnings


def check_arguments(run: Run) -> list[str]:
    """Refuse contradictions. Return warnings about options that were given and have no effect."""
    settings = run.settings
    models.check(settings.arch, settings.pretrained)
    if settings.stratified and not settings.split:
        raise UsageError("--stratified: there is no split; give --split")
    for given, missing in (("lr_step", "lr_decay"), ("lr_decay", "lr_step")):
        if settings[given] is not None and settings[missing] is None:
            raise UsageError(f"{flag(given)}: give {flag(missing)} too")
    from_weights = run.snapshot is not None and not run.goes_on
    if from_weights and "pretrained" in settings.given and "_pretrained_" not in run.snapshot.path.name:
        raise UsageError(f"--pretrained: contradicts --resume-from {run.snapshot.path}")
    if settings.sync_bn and run.training and distributed.WORLD_SIZE > 1 and not settings.cuda:
        raise UsageError("--sync-bn: PyTorch has it only on GPUs; give --cuda too, on a machine with GPUs")
    if run.training and not run.goes_on and run.first_epoch > settings.epochs:
        raise UsageError(f"--start-epoch {run.first_epoch}: there are {settings.epochs} epochs (--epochs)")
    options.check_computation(settings)
    without_effect = options.find_without_effect(settings)
    if distributed.WORLD_SIZE == 1:
        without_effect.setdefault("sync_bn", "in one process: batch norm is over the whole batch there")
    if run.training and run.first_epoch >= options.PLATEAU_EPOCHS:
        without_effect["kill_plateaus"] = f"after the first {options.PLATEAU_EPOCHS} epochs"
    if from_weights:
        without_effect["override"] = f"with {run.snapshot.path}, which holds weights alone"
    return options.warn_without_effect(settings, without_effect)


def _is_finished(run: Run) -> bool:
    """Return whether nothing is left to do, and print why."""
    epochs, final = run.settings.epochs, run.files.final
    reason = f"the final weights {final} exist"
    if run.goes_on:
        if run.first_epoch < epochs or "unmeasured" in run.state:
            return False
        reason = f"{run.snapshot.path} is after {run.first_epoch} epochs; a larger --epochs than {epochs} goes on"
    if run.first_epoch <= epochs:
        recorded = record.read(run.files.folder, run.settings.arch)
        is_other = recorded is None or (run.record is not None and run.record.difference(recorded))
        try:
            snapshots.load(final)
            checksum = snapshots.checksum(final)
        except SnapshotError:  # it is not there, or damaged: it is written
            return False
        if is_other or recorded.weights.get(final.name) != checksum:
            raise UsageError(f"{final} is not what this run wrote, and would be overwritten: {_advice()}")
    say(f"training is finished: {reason}", sys.stdout)
    return True


def make_record(run: Run, dataset: data.Dataset, made_by: dict[str, Any]) -> Record:
    """Return what a run is, now that its images are known. `made_by` is the provenance of this process."""
    config = {
        **options.configuration(run.settings),
        "num_classes": dataset.num_classes,
        "in_channels": dataset.in_channels,
        "seed_given": "seed" in run.settings.given,
        "started_from": run.started_from,
    }
    images, new_id = dataset.train_fingerprint, secrets.token_hex(8)
    if run.record is None:
        from_file = run.snapshot is not None and not run.goes_on and run.first_epoch == 0
        from_file = from_file and "translated" not in run.snapshot.content
        initial = snapshots.checksum(run.snapshot.path) if from_file else None
        return Record(config, new_id, dataset.class_names, images, initial, provenance=made_by)
    before = run.record
    changed = {name: config[name] for name in REPLACED_BY_OVERRIDE if before.config.get(name) != config[name]}
    if before.difference_of_images(images):
        changed["train_fingerprint"] = images
    overrides = [*before.overrides, {"epoch": run.first_epoch, **changed}] if changed else before.overrides
    changes = {"config": config, "train_fingerprint": images, "overrides": overrides, "provenance": made_by}
    return dataclasses.replace(before, **changes, id=before.id or new_id)


def refuse_to_overwrite(run: Run, mine: Record) -> Record:
    """Refuse a run that would overwrite the snapshots of another one, or be mixed with them.

    A run that has written neither a training state nor final weights has nothing to lose. Return the record of the
    run that is about to begin, completed by what is recorded in the folder of this very run.
    """
    folder, arch = run.files.folder, run.settings.arch
    recorded = record.read(folder, arch)
    states = training_states(folder, arch)
    finals = [path for path in folder.glob("*.pt") if (number_in_name(path, arch) or 0) > 0]
    written = [*finals, *states.values()]
    later = [path for epoch, path in states.items() if epoch >= run.first_epoch]
    later += [run.files.final] if run.files.final in finals else []
    if not written:
        return mine
    if recorded is None and run.goes_on and run.snapshot.path.parent.resolve() == folder.resolve() and not later:
        return mine  # a run of the authors' program goes on where it was
    if recorded is None:
        can_go_on = states and run.files.final not in finals
        advice = _advice(f"give --resume-from {[*states.values()][-1]}" if can_go_on else "")
        raise UsageError(f"{(later or written)[-1]} is of a run that recorded no configuration: {advice}")
    differing = (run.record or mine).difference(recorded)
    if differing:
        advice = _advice("give the options of that run and --resume-from latest")
        raise UsageError(f"{written[-1]} is of another run ({differing}), and would be overwritten: {advice}")
    if later and mine.overrides != recorded.overrides:
        message = f"{later[0]} is of this run with other overridden options, and would be overwritten"
        raise UsageError(f"--override: {message}: remove it, or give --name")
    initial = recorded.initial_weights or mine.initial_weights
    return dataclasses.replace(mine, id=recorded.id or mine.id, weights=recorded.weights, initial_weights=initial)
