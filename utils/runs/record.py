"""What a run is, said once: `run.json` in its folder, and the same in each of its training states.

docs/files.md describes it, and which other files say of which run they are.
"""

import contextlib
import dataclasses
import functools
import json
import math
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import models
from core.errors import OneLineError, UsageError
from utils import options, snapshots
from utils.arguments import Number, Settings
from utils.options import CONFIGURATION, DEFAULTS, flag
from utils.snapshots import SnapshotError
from utils.snapshots.files import atomic_write
from utils.snapshots.names import epochs_trained, is_training_state, training_states

FILE = "run.json"
GO_ON_WITH_WEIGHTS = "--weights-key model_state_dict goes on with the weights alone (and --start-epoch says where)"


@dataclasses.dataclass(frozen=True)
class Record:
    """What a run is."""

    config: dict[str, Any]  #: the options that determine the weights; and num_classes, in_channels, started_from
    id: str = ""  #: of a run of this program; earlier versions had none
    class_names: list[str] = dataclasses.field(default_factory=list)
    train_fingerprint: str | None = None  #: number and checksum of the training images and labels
    initial_weights: str | None = None  #: checksum of the file of the initial weights; None: not known
    overrides: list[dict[str, Any]] = dataclasses.field(default_factory=list)  #: first epoch, and what changed
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: dict[str, str] = dataclasses.field(default_factory=dict)  #: name of a bare `.pt` -> its checksum

    @classmethod
    def of(cls, path: Path, content: Mapping[str, Any]) -> "Record | None":
        """Return what `run.json` or a training state says of its run; None: nothing. Refuse what is not valid."""
        if not content.get("config"):
            return None
        known = {field.name for field in dataclasses.fields(cls)} & content.keys()
        record = cls(**{name: content[name] for name in known})
        _check_config(path, record.config)
        try:
            json.dumps(dataclasses.astuple(record), allow_nan=False)
        except (TypeError, ValueError):
            raise SnapshotError(f"{path} is no snapshot: it says of its run what JSON cannot hold") from None
        return record

    def in_state(self) -> dict[str, Any]:
        """Return what a training state says of its run."""
        return {name: value for name, value in vars(self).items() if name != "weights"}

    def save(self, folder: Path) -> None:
        """Write `run.json`, atomically."""
        content = {"format": snapshots.FORMAT, **vars(self)}
        with atomic_write(folder / FILE, "w") as file:
            file.write(json.dumps(content, allow_nan=False, indent=1) + "\n")

    def difference(self, other: "Record") -> str:
        """Say in a few words where another record differs from this one; "" if both are of the same run."""
        if self.id and self.id == other.id:
            return ""
        differing = difference(self.config, other.config)
        if differing:
            return differing
        if self.train_fingerprint and (differing := other.difference_of_images(self.train_fingerprint)):
            return differing
        known = None not in (self.initial_weights, other.initial_weights)
        return "other initial weights" if known and self.initial_weights != other.initial_weights else ""

    def difference_of_images(self, fingerprint: str) -> str:
        """Say in a few words what the run was trained on, if that is not what the fingerprint is of."""
        ours = fingerprint.split()
        theirs = ours[:2] if self.train_fingerprint is None else self.train_fingerprint.split()
        if theirs[0] != ours[0]:
            return f"{theirs[0]} training images, not {ours[0]}"
        if theirs[1] != ours[1]:
            return "other images or labels"
        return "images that another version upscaled, without rounding" if theirs != ours else ""


def difference(mine: Mapping[str, Any], recorded: Mapping[str, Any], ignore: set[str] = frozenset()) -> str:
    """Say where two configurations differ first; "" where they do not."""
    for name in (*CONFIGURATION, "started_from"):
        if name in mine and name not in ignore:
            value, theirs = mine[name], recorded.get(name, DEFAULTS.get(name))
            if theirs != value:
                what = "started from" if name == "started_from" else flag(name)
                return f"{what} {theirs}, not {value}"
    return ""


def read(folder: Path, arch: str) -> Record | None:
    """Return the record of the run in a folder; None if there is none.

    Raise SnapshotError if `run.json` is damaged, UsageError if a later version of this program wrote it.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        snapshots.check_types(path, content)
        return Record.of(path, content)
    except FileNotFoundError:
        pass
    except OneLineError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise SnapshotError(f"{path} is damaged; without it the training states tell what the run is") from None
    for state in reversed(training_states(folder, arch).values()):
        with contextlib.suppress(SnapshotError):
            record = Record.of(state, snapshots.load_record(state))
            if record is None:
                continue
            for path in folder.glob(f"{arch}_*.pt") if not record.id else ():  # all of an earlier version
                with contextlib.suppress(SnapshotError):
                    record.weights[path.name] = snapshots.checksum(path) or ""
            return record
    return None


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A snapshot, and the record of its run."""

    path: Path
    content: dict[str, Any]  #: as `utils.snapshots.load` returns it
    record: Record | None  #: None: its run is unknown
    epochs_trained: int | None  #: 0 for an initialization, -1 for the model zoo's weights; None: not known
    is_state: bool  #: whether it is a training state, not weights alone

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of its run; empty if its run is unknown."""
        return self.record.config if self.record is not None else {}

    @property
    def weights(self) -> dict[str, Tensor]:
        return self.content["model_state_dict"]

    def describe(self, without_record: str = "") -> list[str]:
        """Return a line about how the file was read, and what says of its run what it does not; [] for nothing."""
        unchecked = "" if self.content["checksums"] else "it has no checksums: damage would go unnoticed"
        line = "; ".join(filter(None, [self.content.get("translated"), unchecked]))
        if self.record is None and without_record:
            return [f"{self.path} says nothing of its run: {without_record}{line and '; '}{line}"]
        return [f"{self.path}: {line}"] if line else []

    def check_classes(self, class_names: list[str]) -> None:
        """Raise UsageError where the network was trained on other classes than these."""
        if self.record is not None and self.record.class_names not in ([], class_names):
            names = self.record.class_names, class_names
            theirs, ours = (textwrap.shorten(", ".join(some), 60) for some in names)
            raise UsageError(f"--data-path: {self.path} was trained on the classes {theirs}, not {ours}")


@functools.cache
def structure(arch: str, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """Return a network without weights: names and shapes. Images may be too small to train it on."""
    return models.structure(arch, num_classes, in_channels, image_size, must_fit=False)


def expected_network(settings: Settings, config: Mapping[str, Any]) -> nn.Module:
    """Return the network that a configuration names, or where it says nothing the settings: without weights."""
    images = options.images({**settings, **config})
    in_channels = config.get("in_channels", images.spec.in_channels)
    return structure(settings.arch, config.get("num_classes", images.num_classes), in_channels, images.image_size)


def load_snapshot(path: Path, settings: Settings, wanted: Callable[[str], bool] | None = None) -> dict[str, Any]:
    """Read the weights of the network that the settings name: `utils.snapshots.load`."""
    network = {} if settings.arch == models.WEIGHTS_ALONE else expected_network(settings, {}).state_dict()
    return snapshots.load(path, wanted, network, settings.weights_key)


def read_snapshot(
    path: Path, settings: Settings, wanted: Callable[[str], bool] | None = None, epoch: int | None = None
) -> Snapshot:
    """Read a snapshot, and the record of its run. `wanted`, and the errors: see `utils.snapshots.load`.

    `epoch` says for how many epochs it was trained. Raise UsageError if its run records another number.
    """
    content = load_snapshot(path, settings, wanted)
    is_own = is_training_state(path, content)
    recorded = Record.of(path, content) if is_own else None
    if "epoch" not in content:
        recorded = read(path.parent, settings.arch)
        if recorded is not None and snapshots.checksum(path) not in recorded.weights.values():
            recorded = None
    trained = epochs_trained(path, content, settings.arch)
    if epoch is not None and trained != epoch and (recorded is not None or "epoch" in content):
        raise UsageError(f"{path} is after {trained} epochs, as it or its run records, not {epoch}")
    goes_on = "epoch" in content and (is_own or "optimizer_state_dict" in content)
    is_state = goes_on and settings.weights_key is None
    return Snapshot(path, content, recorded, trained if epoch is None else epoch, is_state)


def save_weights(record: Record, weights: Mapping[str, Any], path: Path, initial: bool = False) -> Record:
    """Write bare weights; `run.json` gets their checksum just before they are there. Return the record with it.

    Raise UsageError if the run in the folder began with other initial weights.
    """

    def add(checksum: str) -> None:
        nonlocal record
        if initial and record.initial_weights not in (None, checksum):
            raise UsageError(f"{path} holds other initial weights, and would be overwritten: remove the run")
        record = dataclasses.replace(
            record,
            weights={**record.weights, path.name: checksum},
            initial_weights=checksum if initial else record.initial_weights,
        )
        record.save(path.parent)

    snapshots.save(weights, path, before=add)
    return record


def legacy_configuration(path: Path, snapshot: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a training state without a record has in its optimizer and schedule.

    Raise SnapshotError if what it records is not valid, UsageError if its schedule is none of train.py.
    """
    if not snapshot.get("optimizer_state_dict"):
        return {}
    try:
        group = snapshot["optimizer_state_dict"]["param_groups"][0]
        schedule = snapshot.get("scheduler_state_dict") or {}
        config = {
            "optimizer": "adam" if "betas" in group else "sgd",
            "lr": group.get("initial_lr", group["lr"]),
            "weight_decay": group["weight_decay"],
            "momentum": group.get("momentum"),
            "lr_step": schedule.get("step_size"),
            "lr_decay": schedule.get("gamma"),
        }
        lr, steps = group["lr"], int(schedule.get("last_epoch", 0))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        problem = "its optimizer's state is not one of SGD or Adam"
        raise SnapshotError(f"{path} is no snapshot: {problem}; {GO_ON_WITH_WEIGHTS}") from None
    _check_config(path, config)
    if not is_training_state(path, snapshot):  # another program's schedule may count batches, or be no StepLR
        known = not schedule or (config["lr_step"] and config["lr_decay"] and abs(steps - snapshot["epoch"]) <= 1)
        decay = config["lr_decay"] ** (steps // config["lr_step"]) if schedule and known else 1
        if not known or not math.isclose(lr, config["lr"] * decay):
            problem = f"has a learning rate of {lr:g} by a schedule that is not ours"
            raise UsageError(f"{path} {problem}; {GO_ON_WITH_WEIGHTS}")
    return config


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raise SnapshotError where a configuration holds what no option can be."""
    for name, row in CONFIGURATION.items():
        if name in config and not row.accepts(config[name], config):
            raise SnapshotError(f"{path} is no snapshot: it records {flag(name)} {config[name]!r}")
    for name in ("num_classes", "in_channels"):
        if name in config and not Number(int, 1, 2**31).accepts(config[name]):
            raise SnapshotError(f"{path} is no snapshot: it records {config[name]!r} as {name}")
    if not isinstance(config.get("started_from"), (str, type(None))):
        raise SnapshotError(f"{path} is no snapshot: started_from is not a text")
