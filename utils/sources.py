"""What is measured: new networks, snapshots, and the weights that layers are reset to."""

import dataclasses
import functools
import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import data
import models
from core import seeds
from core.errors import UsageError
from utils import options, snapshots
from utils.arguments import Settings, input_path
from utils.options import check_recorded
from utils.process import distributed
from utils.results import result_stem
from utils.runs.folders import dataset_folder, describe_data, noise_of_snapshot, run_folder
from utils.runs.record import Record, Snapshot, expected_network, load_snapshot, read_snapshot, structure
from utils.snapshots import SnapshotError
from utils.snapshots.names import SUFFIXES, number_in_name
from utils.snapshots.weights import check_finite, describe_difference

RAND = "rand"  #: the row of the new random initialization
COMPUTED = "is pruned or parametrized: see prune.remove, remove_parametrizations and remove_weight_norm of PyTorch"


@dataclasses.dataclass(frozen=True)
class Source:
    """Something to measure. Its weights are not read yet."""

    name: str  #: in messages; of a snapshot: its path
    epoch: int | None  #: epochs trained: 0 for an initialization, -1 for the model zoo's weights; None: not known
    layers: list[models.Layer]
    classes: str  #: how many, and what says so; "" if it makes no difference
    dataset: str | None  #: with the number of classes if they are subsampled
    data: str | None  #: the same for people, with its noise
    read: Callable[[], dict[str, Any]]  #: returns its content, with `model_state_dict`. Raises SnapshotError
    result: Path  #: the file of its results
    record: Record | None = None  #: of its run; None: it says nothing of its run
    notes: Sequence[str] = ()  #: what it does not say, and how it was read


def layers_of(net: nn.Module, settings: Settings) -> list[models.Layer]:
    """Return the layers of a network that are to be measured or reset. Raise UsageError if there are none.

    Raise it also if the weights of one are computed from other tensors, as by pruning or weight norm.
    """
    layers = models.layers(net, settings.with_linear)
    if not layers:
        raise UsageError(f"--arch {settings.arch} has no convolutional layers: add --with-linear")
    for layer in layers:
        if not all(isinstance(one, nn.Parameter | None) for one in (layer.module.weight, layer.module.bias)):
            raise UsageError(f"{layer.name} {COMPUTED}")
    return layers


def layers_in(snapshot: Snapshot, layers: list[models.Layer], settings: Settings) -> list[models.Layer]:
    """Return the layers of a network, or if there is none (--arch weights) those of a snapshot."""
    if layers:
        return layers
    for name in snapshot.content["structure"]:
        if re.search(r"(^|\.)(parametrizations\.|weight_(orig|mask|[gv])$)", name):
            raise UsageError(f"{snapshot.path}: {name} {COMPUTED}")
    found = models.layers_of_weights(snapshot.content["structure"], settings.with_linear)
    if not found:
        raise UsageError(f"{snapshot.path} has no convolutions larger than 1x1 (for other layers: --with-linear)")
    return found


def new_network(settings: Settings, layers: list[models.Layer]) -> Source:
    """Return a random initialization, or the weights of the model zoo."""
    arch, spec, num_classes = settings.arch, data.info(settings.dataset), options.images(settings).num_classes
    pretrained, new_layers = settings.pretrained, []
    used_seed = seeds.draw() if settings.seed is None else settings.seed
    if pretrained:
        imagenet = data.info("imagenet")
        zoo = structure(arch, imagenet.num_classes, imagenet.in_channels, spec.image_size).state_dict()
        new_layers = [one.name for one in layers if one.module.weight.shape != zoo[one.weight].shape]

    def read() -> dict[str, Any]:
        torch.manual_seed(used_seed)
        net = models.build(arch, num_classes, spec.in_channels, spec.image_size, pretrained, must_fit=False)
        content = {"model_state_dict": net.state_dict()}
        return {**content, "init_seed": used_seed} if new_layers or not pretrained else content

    folder, kind = run_folder(settings.results, settings, None), "pretrained" if pretrained else "init"
    new = f"there are new layers, with random weights of seed {used_seed}, not ImageNet's: {', '.join(new_layers)}"
    return Source(
        name="ImageNet weights" if pretrained else f"random initialization with seed {used_seed}",
        epoch=-1 if pretrained else 0,
        layers=layers,
        classes=count_classes(settings, {}),
        dataset=dataset_folder(settings.dataset, settings.subsample_classes),
        data=describe_data(settings.dataset, settings.subsample_classes),
        read=read,
        result=folder / f"{kind}_{arch}.json",
        notes=[f"for these images or classes {new}"] if new_layers else [],
    )


def find_snapshots(settings: Settings, layers: list[models.Layer]) -> tuple[list[Source], list[str]]:
    """Return the snapshots of --load-from in order of training, and messages about the damaged ones.

    Raise UsageError if one is not of this network, the only one is damaged, or two results would go to one file.
    """
    given: dict[Path, Path] = {}  # each file once
    for asked_for in settings.load_from:
        for path in in_folder(asked_for, settings.arch) if asked_for.is_dir() else [asked_for]:
            given.setdefault(path.parent.resolve() / path.name, path)
    if settings.epoch is not None and len(given) > 1:
        raise UsageError(f"--epoch {settings.epoch}: it is of one snapshot, and --load-from gives {len(given)}")
    tars = {path.stem for path in given.values() if path.suffix == ".tar"}
    found: dict[Path, Source] = {}
    damaged: list[str] = []
    for path in given.values():
        try:
            snapshot = read_of_this_network(path, settings, lambda name: False, epoch=settings.epoch)
            measured = layers_in(snapshot, layers, settings)
        except UsageError as error:
            # A file of a folder whose name says nothing may be of another network.
            may_be_other = path not in settings.load_from and number_in_name(path, settings.arch) is None
            if len(given) == 1 or not (isinstance(error, SnapshotError) or may_be_other):
                raise
            damaged.append(str(error))
            continue
        kept = settings.subsample_classes or snapshot.config.get("subsample_classes") or 0
        noise = noise_of_snapshot(path, snapshot.config)
        folder = run_folder(settings.results, settings.replace(subsample_classes=kept), noise)
        result = folder / f"{result_stem(path, tars)}.json"
        if result in found:
            raise UsageError(f"--load-from: {found[result].name} and {path} would both write {result}")
        found[result] = Source(
            name=str(path),
            epoch=snapshot.epochs_trained,
            layers=measured,
            classes=count_classes(settings, snapshot.config),
            dataset=dataset_folder(settings.dataset, kept),
            data=describe_data(settings.dataset, kept, noise),
            read=functools.partial(load_snapshot, path, settings, {one.weight for one in measured}.__contains__),
            result=result,
            record=snapshot.record,
            notes=snapshot.describe("the options say what it is" if layers else ""),
        )

    def place(one: Source) -> tuple:
        # The final weights, which share an epoch with the last training state, come after it. Those of unknown
        # epoch come last, in the order given.
        return (1,) if one.epoch is None else (0, one.epoch, one.name.endswith(".pt"), one.name)

    return sorted(found.values(), key=place), damaged


def in_folder(folder: Path, arch: str) -> list[Path]:
    """Return the files of a folder that are named as snapshots of ARCH; if there are none, all files of weights.

    They are in the order of their names, numbers in the order of their values.
    """
    found = [path for path in folder.glob("[!.]*") if path.suffix in SUFFIXES and path.is_file()]
    if not found:
        raise UsageError(f"--load-from {folder}: there is no snapshot of {arch} (such as {arch}_0.tar)")
    found.sort(key=lambda one: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", one.name)])
    named = [path for path in found if path.suffix in (".pt", ".tar") and number_in_name(path, arch) is not None]
    return named or found


def read_of_this_network(
    path: Path,
    settings: Settings,
    wanted: Callable[[str], bool] | None,
    epoch: int | None = None,
    of_this_run: bool = True,
) -> Snapshot:
    """Read a snapshot (see `read_snapshot`), and check that it is of the network in question.

    `of_this_run`: whether it must be of the run that the options describe. Raise UsageError if it is not.
    """
    snapshot = read_snapshot(path, settings, wanted, epoch)
    if settings.arch == models.WEIGHTS_ALONE:
        return snapshot
    config, theirs = snapshot.config, snapshot.content["structure"]
    for name in ("arch", "dataset", "seed", "subsample_classes") if of_this_run else ("arch",):
        if config.get(name) is not None:
            check_recorded(settings, name, config[name], path)
    expected = expected_network(settings, config).state_dict()
    differing = describe_difference(expected, theirs)
    if differing:
        num_classes = config.get("num_classes", options.images(settings).num_classes)
        same_names = theirs.keys() == expected.keys()
        hint = " (--subsample-classes gives the number of classes)" if same_names and not config else ""
        hint += "; --arch weights measures it without a network"
        raise UsageError(f"{path} is no snapshot of {settings.arch} with {num_classes} classes: {differing}{hint}")
    return snapshot


def count_classes(settings: Settings, config: dict[str, Any]) -> str:
    """Return how many classes a network has, and what says so."""
    if settings.arch == models.WEIGHTS_ALONE:
        return ""
    if "num_classes" in config:
        return f"{config['num_classes']} (recorded)"
    says_so = "--subsample-classes" if settings.subsample_classes else f"--dataset {settings.dataset}"
    return f"{options.images(settings).num_classes} ({says_so})"


def classes_of_head(
    settings: Settings, dataset: data.Dataset, weights: Mapping[str, Tensor] | None = None
) -> tuple[int, list[str]]:
    """Return how many classes the head of a network has, and a warning if a folder of images has fewer.

    `weights` are those of the network; None: of the model zoo.
    """
    num_classes, image = dataset.num_classes, (dataset.in_channels, dataset.image_size)
    if data.info(settings.dataset).in_memory or settings.subsample_classes:
        return num_classes, []
    if weights is None:
        weights = structure(settings.arch, data.info("imagenet").num_classes, *image).state_dict()
    net = structure(settings.arch, num_classes, *image).state_dict()
    differing = [name for name in net if name in weights and net[name].shape != weights[name].shape]
    heads = {weights[name].shape[0] for name in differing if net[name].shape[:1] == (num_classes,)}
    head = max(heads, default=0)
    if len(heads) != 1 or head <= num_classes:
        return num_classes, []
    kept = f"the network has {head:,} classes and {settings.data_path} has {num_classes:,}: its head is kept"
    labels = "the folders, in alphabetical order, are taken for its first classes"
    return head, [f"{kept}, and {labels}; if they are others, accuracies mean nothing"]


def weights_of(layers: list[models.Layer], content: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
    """Return the weights of each layer by its name, on the device."""
    return {layer.name: content["model_state_dict"][layer.weight].to(device) for layer in layers}


@dataclasses.dataclass(frozen=True)
class Initialization:
    """Weights that layers are reset to: a row of the results."""

    epoch: int | None  #: epochs trained; None for a new random initialization
    source: str  #: in messages
    weights: dict[str, Tensor]  #: by parameter name
    seed: int | None = None  #: of a random one

    @property
    def row(self) -> str:
        return RAND if self.epoch is None else str(self.epoch)


def read_list(path: Path) -> list[tuple[Path, int | None]]:
    """Read the paths in a text file, one on each line; an epoch may follow after a space.

    Raise UsageError if there is no such file, it holds no paths, or some of them do not exist.
    """
    if not os.path.isfile(path):  # a pipe or a device might be read for ever
        raise UsageError(f"--inits-from {path}: there is no such file")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"--inits-from {path}: not a text file that can be read") from None
    listed: list[tuple[Path, int | None]] = []
    for line in filter(None, map(str.strip, lines)):
        with_epoch = re.fullmatch(r"(.*\S)\s+(\d{1,9})", line)
        name, epoch = (with_epoch[1], int(with_epoch[2])) if with_epoch else (line, None)
        listed.append((input_path(name), epoch))
    if not listed:
        raise UsageError(f"--inits-from {path}: there is no path in it")
    missing = [textwrap.shorten(str(path), 300) for path, _ in listed if not os.path.isfile(path)]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UsageError(f"--inits-from {path}: there is no file {missing[0]}{more}")
    return listed


def read_initializations(
    paths: list[tuple[Path, int | None]],
    settings: Settings,
    net: nn.Module,
    layers: list[models.Layer],
    trained: Record | None,
) -> tuple[list[Initialization], list[str]]:
    """Read the snapshots that layers are reset to, by epoch: only the weights of these layers.

    Return also warnings about those that are of another run than the trained network, or without checksums. Raise
    UsageError if one is of another network, two of the same epoch differ, or the epoch of one is not known.
    """
    wanted = {f"{layer.name}.{name}" for layer in layers for name in ("weight", "bias")}
    expected, warnings = net.state_dict(), []
    found: dict[int, Initialization] = {}
    for path, given in paths:
        snapshot = read_snapshot(path, settings, wanted.__contains__, given)
        for name in ("arch", "dataset"):
            if name in snapshot.config:
                check_recorded(settings, name, snapshot.config[name], path)
        differing = describe_difference(expected, snapshot.content["structure"])
        if differing:
            raise snapshots.SnapshotError(f"{path} is no snapshot of this {settings.arch}: {differing}")
        check_finite(path, snapshot.weights)
        warnings += [*snapshot.describe(), *warn_of_another_run(snapshot, trained)]
        epoch = snapshot.epochs_trained
        if epoch is None:
            unknown = f"nothing says after how many epochs {path} is, as the name {settings.arch}_3.pt does"
            raise UsageError(f"--inits-from: {unknown}: write the number after it, as in {path} 3")
        one = found.setdefault(epoch, Initialization(epoch, str(path), snapshot.weights))
        if any(weight.ne(one.weights[name]).any() for name, weight in snapshot.weights.items()):
            raise UsageError(f"{one.source} and {path} are different weights, both after epoch {epoch}")
    return [found[epoch] for epoch in sorted(found)], warnings


def warn_of_another_run(snapshot: Snapshot, trained: Record | None) -> list[str]:
    """Return a warning if a snapshot is of another run than the trained network, as far as both tell."""
    differing = ""
    if None not in (trained, snapshot.record):
        differing = trained.difference(snapshot.record)
    elif trained is not None and trained.initial_weights and snapshot.epochs_trained in (0, -1):
        is_other = snapshots.checksum(snapshot.path) not in (None, trained.initial_weights)
        differing = "other initial weights" if is_other else ""
    return [f"{snapshot.path} is of another run than the trained network: {differing}"] if differing else []


def random_initialization(
    settings: Settings, config: dict[str, Any], build: Callable[[], nn.Module]
) -> Initialization:
    """Return new random weights, of a seed derived from that of the training, or from a drawn one."""
    trained_with = settings.seed if settings.seed is not None else config.get("seed")
    if trained_with is None:
        trained_with = distributed.from_rank_0(seeds.draw)
    derived = seeds.derive(trained_with, "reinitialization")
    torch.manual_seed(derived)
    return Initialization(None, f"random weights of seed {derived}", build().state_dict(), derived)
