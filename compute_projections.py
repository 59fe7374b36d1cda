"""Measure how the filters of a network lie to the identity line: from one snapshot to a whole training run.

    python compute_projections.py                                                     list networks and datasets
    python compute_projections.py --arch lenet --dataset mnist --seed 1               a random initialization
    python compute_projections.py --arch vgg19 --dataset imagenet --pretrained        weights from the model zoo
    python compute_projections.py --arch lenet --dataset mnist --seed 1 --normalize \\
        --load-from models/mnist/lenet/1 --init-from models/mnist/lenet/1/lenet_init_0.pt --plots plots
                                                                                      a training run, with figures

For every layer of N filters: their projections, the share of them that are not positive (mass, 1/2 where signs are
fair coins), mean, standard deviation, and the p-value against mass 1/2; with --init-from also how far the weights
have moved. One JSON file a snapshot goes to <results>/<dataset>/[<noise>/]<arch>/[<seed>/].

Only the weights that are measured are read from a snapshot: the optimizer's state stays on the disk.
"""

import argparse
import functools
import logging
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import data
import models
from core import seeds
from core.errors import RunError, UsageError
from data.transforms import UPSCALED
from utils import projections, snapshots
from utils.options import Parser, check_recorded, file_name, folder, input_path, list_choices, number, seed
from utils.process import devices, distributed
from utils.process.ending import DONE, FAILED, exit_status, memory_for
from utils.process.logging import close_log, open_log, progress
from utils.results import differing_options, write_json
from utils.runs.configuration import check_sound
from utils.runs.folders import dataset_folder, noise_of_snapshot, run_folder
from utils.runs.provenance import provenance
from utils.snapshots import SnapshotError
from utils.snapshots.names import parse_snapshot_name

#: Of a training state, in percent: on the images that training was watched with, and on the batches trained on.
ACCURACIES = ("top1_acc", "top5_acc", "top1_acc_train_running")


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = Parser("compute_projections.py", __doc__)
    what = parser.add_argument_group("what is measured")
    what.add_argument("--arch", help="network (without: list the supported ones)")
    what.add_argument(
        "--dataset",
        help="the dataset the model was trained on: gives the number of classes and channels "
        "(without: list the supported ones)",
    )
    what.add_argument(
        "--subsample-classes",
        type=number(int, least=0),
        default=0,
        metavar="N",
        help="number of classes of the prediction head (default: 0, those of DATASET)",
    )
    what.add_argument(
        "--load-from",
        nargs="+",
        action="extend",
        type=input_path,
        metavar="PATH",
        help="trained network: a snapshot; also several of them, or folders, of which every snapshot of ARCH is "
        "taken, initialization first, then by epoch (without this and --pretrained: a random initialization)",
    )
    what.add_argument(
        "--init-from", type=input_path, metavar="PATH", help="initialization to measure each layer's distance from"
    )
    what.add_argument("--pretrained", action="store_true", help="ImageNet weights from the model zoo")
    what.add_argument(
        "--seed",
        type=seed,
        metavar="S",
        help="seed of a random initialization; with --load-from, the seed the model was trained with",
    )
    how = parser.add_argument_group("how it is measured")
    how.add_argument("--cuda", action="store_true", help="compute on the GPU")
    how.add_argument("--normalize", action="store_true", help="normalize projections: cosines, in [-1, 1]")
    how.add_argument("--with-linear", action="store_true", help="also the fully connected layers")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--results",
        type=folder,
        default="results",
        metavar="DIR",
        help="folder of the results (default: ./results)",
    )
    output.add_argument("--plots", type=folder, metavar="DIR", help="also write figures there (default: none)")
    output.add_argument(
        "--log",
        type=file_name,
        default="positive_orthant.log",
        metavar="NAME",
        help="name of the log file, below ./log (default: positive_orthant.log)",
    )
    return parser.parse_args(argv)


class Source(NamedTuple):
    """Something to be measured, of which everything but the weights is known."""

    name: str  #: in messages; of a snapshot: its path
    epoch: int | None  #: epochs trained: 0 for an initialization, -1 for the model zoo's weights; None: not known
    dataset: str  #: with the number of classes where they were subsampled
    classes: str  #: how many, and who says so
    read: Callable[[], dict[str, Any]]  #: what it holds, with `model_state_dict`. Raises SnapshotError
    result: Path  #: the file its results go to


class Initialization(NamedTuple):
    """What each layer's distance is measured from."""

    weights: dict[str, Tensor]  #: by layer, on the device
    fingerprint: str | None  #: of all of its weights; None: not known
    structure: dict[str, Tensor]  #: all parameters by name, without values
    warnings: list[str]


class Doubts(NamedTuple):
    """What to warn about in the end, by its kind: of each the first is told, and how many there are."""

    unchecked: list[str]
    leftover: list[str]
    otherwise_initialized: list[str]
    replaced: list[str]

    def tell(self, log: logging.Logger) -> None:
        for warnings in (list(dict.fromkeys(kind)) for kind in self):
            if warnings:
                more = f" (and so on for {len(warnings) - 1} more)" if len(warnings) > 1 else ""
                log.warning(f"{warnings[0]}{more}")


@exit_status
def main(argv=None) -> int:
    args = parse_arguments(argv)
    if list_choices(args):
        return DONE
    if distributed.WORLD_SIZE > 1:
        raise UsageError("torchrun: measuring is the work of one process; start it with python instead")
    check_arguments(args)
    device = devices.choose(args.cuda)
    devices.take(device)
    return run(args, device)


def run(args: argparse.Namespace, device: torch.device) -> int:
    """Find what is to be measured; then measure one after the other, and write the results of each at once."""
    spec = data.info(args.dataset)
    network = structure(args.arch, args.subsample_classes or spec.num_classes, spec.in_channels, spec.image_size)
    layers = models.layers(network, args.with_linear)
    models.check_own_weights(layers)
    if not layers:
        raise UsageError(f"--arch {args.arch} has no convolutional layers to measure: add --with-linear")
    wanted = {f"{layer.name}.weight" for layer in layers}.__contains__
    beside = functools.cache(lambda folder: snapshots.run_in(folder, args.arch).get("config", {}))
    initial = read_initialization(args, layers, device, beside, wanted) if args.init_from is not None else None
    random = layers_without_weights(args, layers, spec) if args.pretrained else []
    if args.load_from:
        sources, damaged = find_snapshots(args, beside, wanted, initial)
    else:
        sources, damaged = [new_network(args, random)], []
        check_initialization(args, initial, network.state_dict(), sources[0].name)
    alone = len(sources) + len(damaged) == 1

    log = None
    doubts = Doubts([], [], [], [])
    doubts.unchecked.extend(initial.warnings if initial else [])
    runs: dict[Path, list[tuple[Source, dict]]] = {}  # by the folder of the results, in order of training
    for source in progress(sources, unit=" snapshots"):
        try:
            with memory_for(source.name):
                content = source.read()
                measured = measure(source.name, weights_of(layers, content, device), args.normalize, initial)
        except SnapshotError as error:
            if alone:
                raise
            damaged.append(str(error))  # the text alone: the error would keep the file mapped in memory
            continue
        state = (snapshots.beside(Path(source.name), content) if args.load_from else None) or content
        results = as_results(measured, layers, args, source, content, state, device)
        if args.load_from:
            doubts.unchecked.extend(snapshots.without_checksums(Path(source.name), content))
        if args.load_from and state is content:  # no training state beside it holds the same
            doubts.leftover.extend(snapshots.unlike_state_beside(Path(source.name), content))
        if initial is not None and snapshots.was_trained_from_another(initial.fingerprint, state):
            told = f"{args.init_from} is not what {source.name} was trained from"
            doubts.otherwise_initialized.append(told)
        differing = differing_options(source.result, results)
        if differing:
            told = f"{source.result} held results with other {', '.join(differing)}, which are replaced"
            doubts.replaced.append(told)
        write_json(results, source.result)
        if log is None:  # not before: a file that is wrong, and alone, leaves nothing behind
            log = start_log(args, sources, device)
        series = runs.setdefault(source.result.parent, [])
        if series:  # what the figures over epochs need; all projections are kept of the last snapshot only
            series[-1] = (series[-1][0], without_projections(series[-1][1]))
        series.append((source, measured))
        del content, state
    if log is None:
        raise RunError("; ".join(damaged))

    report(log, args, runs.values())
    if random:
        told = f"with random weights of seed {results['init_seed']}, not ImageNet's"
        log.warning(f"for these images or classes there are new layers, {told}: {', '.join(random)}")
    doubts.tell(log)
    for problem in damaged:
        log.error(problem)
    close_log(log)
    return FAILED if damaged else DONE


# ---- what is measured ----


def check_arguments(args) -> None:
    """Refuse options that contradict one another, and files that are not there."""
    models.check(args.arch, args.pretrained)
    if args.load_from and args.pretrained:
        raise UsageError("--pretrained: contradicts --load-from, which says where the weights come from")
    data.check_options(args.dataset, subsample_classes=args.subsample_classes)
    for path in args.load_from or []:
        if not os.path.exists(path):  # unlike Path.exists, False also for a name that is too long
            raise UsageError(f"--load-from {path}: there is no such file or folder")
    if args.init_from is not None and not os.path.isfile(args.init_from):
        what = "it is a folder, not a snapshot" if os.path.isdir(args.init_from) else "there is no such file"
        raise UsageError(f"--init-from {args.init_from}: {what}")


@functools.cache
def structure(arch: str, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> torch.nn.Module:
    """A network without weights: names and shapes. Images may be too small to train it on."""
    return models.structure(arch, num_classes, in_channels, image_size, must_fit=False)


def layers_without_weights(args, layers: list[models.Layer], spec) -> list[str]:
    """The names of the layers that the model zoo has no weights for: what they are given is another shape."""
    of_imagenet = data.info("imagenet")
    zoo = structure(args.arch, of_imagenet.num_classes, of_imagenet.in_channels, spec.image_size).state_dict()
    return [layer.name for layer in layers if layer.module.weight.shape != zoo[f"{layer.name}.weight"].shape]


def new_network(args, random: list[str]) -> Source:
    """An initialization, or the weights of the model zoo, of which some layers may be random ones."""
    spec = data.info(args.dataset)
    num_classes = args.subsample_classes or spec.num_classes
    used_seed = seeds.draw() if args.seed is None else args.seed

    def read() -> dict[str, Any]:
        torch.manual_seed(used_seed)
        net = models.build(
            args.arch, num_classes, spec.in_channels, spec.image_size, args.pretrained, must_fit=False
        )
        content = {"model_state_dict": net.state_dict()}
        return {**content, "init_seed": used_seed} if random or not args.pretrained else content

    return Source(
        name="ImageNet weights" if args.pretrained else f"random initialization with seed {used_seed}",
        epoch=-1 if args.pretrained else 0,
        dataset=dataset_folder(args.dataset, args.subsample_classes),
        classes=f"{num_classes} ({said_by_options(args)})",
        read=read,
        result=run_folder(args.results, args.dataset, args.arch, args.seed, args.subsample_classes)
        / f"{'pretrained' if args.pretrained else 'init'}_{args.arch}.json",
    )


def read_initialization(
    args,
    layers: list[models.Layer],
    device: torch.device,
    beside: Callable[[Path], dict[str, Any]],
    wanted: Callable[[str], bool],
) -> Initialization:
    """What --init-from holds; `beside` and `wanted` are as for `inspect`."""
    content, _ = inspect(args.init_from, args, beside, wanted, of_this_run=False)
    snapshots.check_finite(args.init_from, content["model_state_dict"])
    with memory_for("the initialization"):
        return Initialization(
            weights_of(layers, content, device),
            snapshots.initial_fingerprint(args.init_from, content),
            content["structure"],
            snapshots.without_checksums(args.init_from, content),
        )


def check_initialization(args, initial: Initialization | None, expected: dict[str, Tensor], measured: str) -> None:
    """Raise UsageError where --init-from is not of the network that is measured, whose structure is expected."""
    if initial is None:
        return
    theirs, ours = (
        {name: one for name, one in weights.items() if not name.endswith("num_batches_tracked")}
        for weights in (initial.structure, expected)
    )
    differing = snapshots.describe_difference(ours, theirs)
    if differing:
        raise UsageError(f"--init-from {args.init_from} is of another network than {measured}: {differing}")


def find_snapshots(
    args,
    beside: Callable[[Path], dict[str, Any]],
    wanted: Callable[[str], bool],
    initial: Initialization | None,
) -> tuple[list[Source], list[str]]:
    """The snapshots of --load-from in order of training, and what is wrong with the damaged ones among them.

    Args:
        beside, wanted: as for `inspect`.
        initial: where one is given: it must be of the same network.

    Raises:
        UsageError: a snapshot belongs to another network or contradicts the options, or results of two would go to
            one file.
        SnapshotError: there is but one, and it is damaged.
    """
    paths = [path for given in args.load_from for path in (in_folder(given, args) if given.is_dir() else [given])]
    by_place: dict[Path, Path] = {}
    for path in paths:
        by_place.setdefault(path.parent.resolve() / path.name, path)
    paths = list(by_place.values())
    tars = {path.stem for path in paths if path.suffix == ".tar"}
    sources: list[Source] = []
    damaged: list[str] = []
    by_result: dict[Path, Source] = {}
    for path in paths:
        try:
            content, classes = inspect(path, args, beside)
        except SnapshotError as error:
            if len(paths) == 1:
                raise
            damaged.append(str(error))
            continue
        check_initialization(args, initial, content["structure"], str(path))
        kept = args.subsample_classes or content["config"].get("subsample_classes") or 0
        noise = noise_of_snapshot(path, content["config"])
        source = Source(
            name=str(path),
            epoch=snapshots.epochs_trained(path, content),
            dataset=dataset_folder(args.dataset, kept),
            classes=classes,
            read=functools.partial(snapshots.load, path, wanted),
            result=run_folder(args.results, args.dataset, args.arch, args.seed, kept, noise)
            / f"{snapshots.result_stem(path, tars)}.json",
        )
        other = by_result.setdefault(source.result, source)
        if other is not source:
            raise UsageError(f"--load-from: {other.name} and {source.name} would both write {source.result}")
        sources.append(source)
    # The final weights, which share an epoch with the last training state, come after it.
    sources.sort(key=lambda one: (one.epoch is None, one.epoch or 0, one.name.endswith(".pt"), one.name))
    return sources, damaged


def is_named_as_snapshot(path: Path, arch: str) -> bool:
    name = parse_snapshot_name(path, arch)
    return name is not None and name.suffix in (".pt", ".tar")


def in_folder(folder: Path, args) -> list[Path]:
    """The files of a folder that are named as snapshots of ARCH."""
    found = sorted(path for path in folder.iterdir() if is_named_as_snapshot(path, args.arch) and path.is_file())
    if not found:
        raise UsageError(f"--load-from {folder}: there is no snapshot of {args.arch} (such as {args.arch}_0.tar)")
    return found


def inspect(
    path: Path,
    args,
    beside: Callable[[Path], dict[str, Any]],
    wanted: Callable[[str], bool] = lambda name: False,
    of_this_run: bool = True,
) -> tuple[dict[str, Any], str]:
    """Read a snapshot, the weights only where `wanted`, and make sure it is one of the network in question.

    Args:
        beside: of a folder, the configuration that training states in it record: bare weights are of the same run.
        of_this_run: whether it is of the run that the options describe.

    Returns:
        what `snapshots.load` gives; how many classes the network has, and who says so.

    Raises:
        SnapshotError: it is damaged.
        UsageError: it belongs to another network, or contradicts the options.
    """
    content = snapshots.load(path, wanted)
    config = content.setdefault("config", {})  # a bare state_dict or a file of the authors has none
    if not config:
        recorded = beside(path.parent)
        if not (of_this_run and is_named_as_snapshot(path, args.arch)):  # it may be of any run with such a head
            recorded = {name: recorded[name] for name in ("num_classes", "subsample_classes") if name in recorded}
        config |= recorded
        if "subsample_classes" in args.given:
            for name in ("num_classes", "subsample_classes"):
                config.pop(name, None)
    check_sound(path, config)
    for name in ("arch", "dataset", "seed"):
        if config.get(name) is not None:
            check_recorded(args, name, config[name], path)
    spec = data.info(args.dataset)
    by_options = args.subsample_classes or spec.num_classes
    num_classes = config.get("num_classes", by_options)
    in_channels = config.get("in_channels", spec.in_channels)
    if "subsample_classes" in args.given and num_classes != by_options:
        raise UsageError(
            f"--subsample-classes {args.subsample_classes}: contradicts {path}, which has {num_classes} classes"
        )
    if of_this_run and "subsample_classes" in config:
        check_recorded(args, "subsample_classes", config["subsample_classes"], path)
    upscaled = (UPSCALED, UPSCALED)
    if "upscale" in config:
        sizes = [upscaled if config["upscale"] or config.get("upscale_padding") else spec.image_size]
    else:
        sizes = [spec.image_size, upscaled]  # not recorded: what fits
    networks = [structure(args.arch, num_classes, in_channels, size) for size in sizes]
    differing = [snapshots.describe_difference(net.state_dict(), content["structure"]) for net in networks]
    if all(differing):
        same_names = content["structure"].keys() == networks[0].state_dict().keys()
        may_be_classes = same_names and "num_classes" not in config
        raise UsageError(
            f"{path} is no snapshot of {args.arch} with {num_classes} classes: {differing[0]}"
            + (" (--subsample-classes gives the number of classes)" if may_be_classes else "")
        )
    return content, f"{num_classes} ({'recorded' if 'num_classes' in config else said_by_options(args)})"


def said_by_options(args) -> str:
    return "--subsample-classes" if args.subsample_classes else f"--dataset {args.dataset}"


# ---- the measurement and what is made of it ----


def weights_of(layers: list[models.Layer], content: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
    """The weights of each layer in what `snapshots.load` gives, by the layer's name, on the device."""
    return {layer.name: content["model_state_dict"][f"{layer.name}.weight"].to(device) for layer in layers}


def measure(
    name: str, weights: dict[str, Tensor], normalize: bool, initial: Initialization | None
) -> dict[str, dict]:
    try:
        return projections.measure(weights, normalize, initial.weights if initial else None)
    except ValueError as error:
        raise SnapshotError(f"{name} cannot be measured: {error}") from None


def as_results(
    measured: dict[str, dict],
    layers: list[models.Layer],
    args: argparse.Namespace,
    source: Source,
    content: dict[str, Any],
    state: dict[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    """Stage -> block -> statistics, then those of the whole network, whose they are and how they were made.

    Args:
        content: what `source` holds.
        state: the training state of the same weights, where there is one beside them; else `content`.
    """
    results: dict[str, Any] = {}
    for layer in layers:
        results.setdefault(str(layer.stage), {})[str(layer.block)] = {"name": layer.name, **measured[layer.name]}
    results["net"] = projections.network_statistics(measured.values())
    results["arch"] = args.arch
    results["dataset"] = source.dataset
    if args.seed is not None:
        results["seed"] = str(args.seed)
    results["epoch"] = None if source.epoch is None else str(source.epoch)
    # Of the command that measures this snapshot alone: the results are the same.
    asked = argparse.Namespace(**{**vars(args), "load_from": source.name if args.load_from else None})
    results["provenance"] = provenance("compute_projections.py", asked, device)
    if "provenance" in state:
        results["trained_by"] = state["provenance"]
    if "init_seed" in content:
        results["init_seed"] = content["init_seed"]
    for key in ACCURACIES:
        if isinstance(content.get(key), (int, float)) and math.isfinite(content[key]):
            results[key] = content[key]
    return results


def without_projections(measured: dict[str, dict]) -> dict[str, dict]:
    return {
        name: {key: value for key, value in layer.items() if key != "projections"}
        for name, layer in measured.items()
    }


def start_log(args, sources: list[Source], device: torch.device):
    """Open the log file and say what is measured."""
    log, _ = open_log(Path("log") / sources[0].result.parent.relative_to(args.results), args.log)
    what = sources[0].name if len(sources) == 1 else f"{len(sources)} snapshots"
    kind = "cosines" if args.normalize else "sums of weights"
    log.info(f"{args.arch} on {args.dataset}: {what}; projections are {kind}; on {devices.describe(device)}")
    for classes, count in Counter(source.classes for source in sources).items():
        log.info(f"classes: {classes}" + (f" for {count} snapshots" if count > 1 else ""))
    return log


def report(log: logging.Logger, args: argparse.Namespace, runs: Collection[list[tuple[Source, dict]]]) -> None:
    """Say what the last snapshot of each run comes to, and draw the figures that were asked for."""
    for run in runs:
        source, measured = run[-1]
        log.info(f"\n{source.name}" + ("" if len(run) == 1 else f", the last of {len(run)} snapshots"))
        log.info(table(measured))
        log.info(f"results: {source.result if len(run) == 1 else f'{len(run)} files in {source.result.parent}'}")
    if args.plots is not None:
        for run in runs:
            for figure in draw(run, args):
                log.info(f"figure: {figure}")


def table(measured: dict[str, dict]) -> str:
    """A line per layer, and one for the network."""
    rows = {**measured, "network": projections.network_statistics(measured.values())}
    width = max(map(len, rows))
    lines = [f"{'layer':{width}}  filters     mean   mass  p-value"]
    for name, row in rows.items():
        lines.append(
            f"{name:{width}}  {row['filters']:7d}  {row['mean']:+7.3f}  {row['mass']:5.3f}  {row['p_value']:7.1e}"
        )
    zeros = rows["network"]["zero_filters"]
    if zeros:
        lines.append(f"{zeros} filters are all zero; the results also have p-values without them")
    return "\n".join(lines)


def draw(run: list[tuple[Source, dict]], args) -> list[Path]:
    """The figures of a run's snapshots; returns their files."""
    from utils import plots

    last, measured = run[-1]
    folder = args.plots / last.result.parent.relative_to(args.results)
    network = f"{args.arch} on {last.dataset}"
    figures = {
        f"projections_{last.result.stem}": plots.distributions(
            measured, args.normalize, f"{network}, {when(last)}"
        )
    }
    points = {max(source.epoch, 0): layers for source, layers in run if source.epoch is not None}
    if len(points) > 1:
        figures[f"mass_{args.arch}"] = plots.mass_by_epoch(points, network)
        figures[f"mean_{args.arch}"] = plots.mean_by_epoch(points, args.normalize, network)
        if args.init_from is not None:
            figures[f"distance_{args.arch}"] = plots.distance_by_epoch(points, network)
    return [path for name, figure in figures.items() for path in plots.save(figure, folder / name)]


def when(source: Source) -> str:
    if source.epoch is None:
        return Path(source.name).name
    if source.epoch <= 0:
        return "ImageNet weights" if source.epoch else "at initialization"
    return f"after {source.epoch} epoch{'s' if source.epoch > 1 else ''}"


if __name__ == "__main__":
    sys.exit(main())
