"""Put one layer at a time back to earlier weights, and measure the accuracy lost: which layers are critical?

    python reinit_layers.py                                                           list networks and datasets
    ls models/mnist/lenet/1/lenet_init_0.pt models/mnist/lenet/1/*.tar > inits.txt
    python reinit_layers.py --arch lenet --dataset mnist --seed 1 --rand \\
        --load-from models/mnist/lenet/1/lenet_20.pt --inits-from inits.txt

Each layer of the trained network gets the weights (and bias) that it had in each snapshot of the list, all other
layers staying trained, and with --rand also fresh random ones; the accuracy on the test set is measured each time.
All of it is one pass over the test set. The layers' bias (see compute_projections.py) is measured from the same
trained weights, and compared with the accuracy lost.

Results go to <results>/<dataset>/[<noise>/]<arch>/[<seed>/]reinit_<snapshot>.json, figures below <plots>.
"""

import argparse
import functools
import math
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import data
import models
from core import seeds
from core.errors import UsageError
from utils import correlation, projections, reinit, snapshots
from utils.options import (
    Parser,
    add_device,
    add_test_images,
    check_dataset,
    check_recorded,
    check_tf32,
    file_name,
    folder,
    image_size,
    input_path,
    list_choices,
    seed,
    warn_of,
)
from utils.process import devices, distributed
from utils.process.ending import DONE, exit_status, memory_for
from utils.process.logging import open_log, progress
from utils.results import differing_options, write_json
from utils.runs.configuration import HYPERPARAMETERS, check_sound, difference
from utils.runs.folders import dataset_folder, noise_of_snapshot, run_folder
from utils.runs.provenance import provenance
from utils.snapshots.files import make_writable
from utils.training import precision

RAND = "rand"  #: the row of the fresh random initialization
OF_IMAGES = ("subsample_classes", "class_sample_seed", "upscale", "upscale_padding")  #: how they are prepared
REPORT_WIDTH = 110  #: of the table on the console, in characters


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = Parser("reinit_layers.py", __doc__)
    add_test_images(parser.add_argument_group("network and test images"))
    add_device(parser.add_argument_group("computation"))

    add = parser.add_argument_group("weights").add_argument
    add("--load-from", type=input_path, metavar="PATH", help="the trained network (required)")
    add(
        "--inits-from",
        type=input_path,
        metavar="PATH",
        help="a text file with the path of a snapshot on each line",
    )
    add("--rand", action="store_true", help="also replace by a fresh, independent random initialization")
    add(
        "--seed",
        type=seed,
        metavar="S",
        help="the seed the model was trained with; --rand derives another from it",
    )
    add("--with-linear", action="store_true", help="also reset the fully connected layers")

    add = parser.add_argument_group("output").add_argument
    add("--results", type=folder, default="./results", metavar="DIR", help="folder of the results (./results)")
    add("--plots", type=folder, default="./plots", metavar="DIR", help="folder of the figures (./plots)")
    add("--log", type=file_name, default="reinit_weights.log", metavar="NAME", help="log file (%(default)s)")
    return parser.parse_args(argv)


class Initialization(NamedTuple):
    """Weights that layers are reset to: a row of the results."""

    epoch: int | None  #: epochs trained; None for a fresh random initialization
    source: str  #: in messages
    weights: dict[str, Tensor]  #: by parameter name
    seed: int | None = None  #: of a random one

    @property
    def row(self) -> str:
        return RAND if self.epoch is None else str(self.epoch)


class Trained(NamedTuple):
    """The trained network's snapshot, and what is known of its training."""

    snapshot: dict[str, Any]  #: as `snapshots.load` gives it
    recorded: dict[str, Any]  #: what it records, or the training state beside it; `path` says which file
    config: dict[str, Any]  #: how it was trained, and how images are prepared; empty: not recorded
    warnings: list[str]


@exit_status
def main(argv=None) -> int:
    args = parse_arguments(argv)
    if list_choices(args):
        return DONE
    if args.load_from is None:
        raise UsageError("--load-from: which trained network? Give the path of a snapshot")
    if args.inits_from is None and not args.rand:
        raise UsageError("nothing to reset layers to: give --inits-from, or --rand, or both")
    device = devices.choose(args.cuda)
    if args.amp:
        precision.check_bfloat16(device)
    with distributed.group(device):
        return run(args, device)


def run(args: argparse.Namespace, device: torch.device) -> int:
    """Read what is needed, measure, write the results; of several ranks each has its share of the images."""
    devices.take(device)
    precision.set_precision(device, args.tf32)
    if not os.path.isfile(args.load_from):
        what = "it is a folder, not a snapshot" if os.path.isdir(args.load_from) else "there is no such file"
        raise UsageError(f"--load-from {args.load_from}: {what}")
    paths = read_list(args.inits_from) if args.inits_from is not None else []
    trained = read_trained(args)
    test_set = load_test_set(args, trained.config, device)
    snapshots.check_class_names(args.load_from, trained.recorded, test_set.class_names)
    build = functools.partial(
        models.build, args.arch, test_set.num_classes, test_set.in_channels, test_set.image_size
    )
    net, layers = load_network(args, trained, build, device)
    reinit.check_segments(net, (2, test_set.in_channels, *test_set.image_size))
    initializations, doubts = read_initializations(paths, args, net, layers, trained.recorded)
    if distributed.WORLD_SIZE > 1:
        check_the_same_on_all_ranks(args, net, initializations, test_set, trained.config)
    if args.rand:
        initializations.append(random_initialization(args, trained.config, build))

    noise = noise_of_snapshot(args.load_from, trained.config)
    results_folder, plots_folder, log_folder = (
        run_folder(base, args.dataset, args.arch, args.seed, args.subsample_classes, noise)
        for base in (args.results, args.plots, "./log")
    )
    for folder_of_files in (results_folder, plots_folder):  # which are written when hours have gone into them
        make_writable(folder_of_files)
    log, log_path = open_log(log_folder, args.log)
    announce(log, args, trained.recorded, test_set, initializations, device, log_path)
    for warning in dict.fromkeys(trained.warnings + doubts + test_set.notes):
        log.warning(warning)

    bias = projections.measure({layer.name: layer.module.weight for layer in layers}, normalize=True)
    replacements = [
        reinit.Replacement(layer.name, layer_parameters(initialization.weights, layer.name))
        for initialization in initializations
        for layer in layers
    ]
    batches = progress(test_set.test, desc="test set", unit="batch")
    with memory_for("a batch", "give a smaller --batch-size"):
        measured = reinit.accuracies(net, replacements, batches, log.info, args.amp)
    if distributed.RANK > 0:
        return DONE
    results = as_results(args, trained, initializations, measured, bias, device)
    stem = snapshots.result_stem(args.load_from)
    path = results_folder / f"reinit_{stem}.json"
    differing = differing_options(path, results)
    write_json(results, path)
    log.info(report(results))
    for warning in warnings_about(results, test_set.num_classes):
        log.warning(warning)
    if differing:
        log.warning(f"{path} held results with other {', '.join(differing)}, which are replaced")
    log.info(f"results: {path}")
    for figure in draw(results, args, plots_folder, stem):
        log.info(f"figure: {figure}")
    return DONE


def read_trained(args: argparse.Namespace) -> Trained:
    """Read the trained network's snapshot, and let the options that it records be those of its training.

    Raises:
        SnapshotError: it is damaged, or what it says is not what an option can be.
        UsageError: an option contradicts it, or another one.
    """
    snapshot = snapshots.load(args.load_from)
    recorded = snapshots.run_of_bare_weights(args.load_from, snapshot, args.arch)
    warnings = [] if recorded else snapshots.unlike_state_beside(args.load_from, snapshot)
    recorded = recorded or {**snapshot, "path": args.load_from}
    config = recorded.get("config") or {}
    if "guessed" in recorded:  # then what is given says better how its images were prepared
        warnings.append(f"{args.load_from} is taken to be of the run of {recorded['path']}")
        config = {**config, **{name: getattr(args, name) for name in OF_IMAGES if name in args.given}}
        if args.given & {"subsample_classes", "class_sample_seed"}:
            recorded.pop("class_names", None)
    adopt(args, config)
    warnings += check_arguments(args) + snapshots.without_checksums(args.load_from, snapshot)
    if not args.subsample_classes:
        args.class_sample_seed = None  # results record what had an effect
    for name in ("amp", "tf32"):
        if config and config.get(name, False) != getattr(args, name):
            before, now = ("with", "without") if config.get(name) else ("without", "with")
            warnings.append(f"{args.load_from} was trained {before} --{name} and is measured {now}")
    if not config:
        warnings.append(f"{args.load_from} does not say how its images were prepared: taken as normalized")
    return Trained(snapshot, recorded, config, warnings)


def load_network(
    args: argparse.Namespace, trained: Trained, build: Callable[[], nn.Module], device: torch.device
) -> tuple[nn.Module, list[models.Layer]]:
    """The trained network, on the device, and those of its layers that are to be reset."""
    # With its initialization, as in training: it may hold more than what is in a snapshot.
    torch.manual_seed(trained.config.get("seed", args.seed) or 0)
    net = build()
    snapshots.load_weights(net, trained.snapshot["model_state_dict"], args.load_from, args.arch)
    layers = models.layers(net, args.with_linear)
    models.check_own_weights(layers)
    if not layers:
        raise UsageError(f"--arch {args.arch} has no convolutional layers: add --with-linear")
    with memory_for("the network"):
        net.to(device, memory_format=precision.memory_format(device, args.amp, args.tf32))
    return net, layers


def random_initialization(
    args: argparse.Namespace, config: dict[str, Any], build: Callable[[], nn.Module]
) -> Initialization:
    """Fresh random weights, of a seed derived from that of the training, or from a drawn one."""
    trained_with = args.seed if args.seed is not None else config.get("seed")
    if trained_with is None:
        trained_with = distributed.from_main(seeds.draw)
    derived = seeds.derive(trained_with, "reinitialization")
    torch.manual_seed(derived)
    return Initialization(None, f"random weights of seed {derived}", build().state_dict(), derived)


def load_test_set(args: argparse.Namespace, config: dict[str, Any], device: torch.device) -> data.TestSet:
    """The test images, on the device, with pixel values as the network was trained on."""
    batch_size = args.batch_size
    if "batch_size" not in args.given:
        in_channels = data.info(args.dataset).in_channels
        batch_size = reinit.fitting_batch_size(batch_size, device, in_channels, image_size(args))
    with (
        distributed.one_a_machine_first(),
        memory_for("the dataset", "keep fewer classes with --subsample-classes"),
    ):
        return data.load_test(
            args.dataset,
            args.data_path,
            batch_size,
            device=device,
            subsample_classes=args.subsample_classes,
            class_sample_seed=args.class_sample_seed,
            upscale=args.upscale,
            upscale_padding=args.upscale_padding,
            unnormalize=config.get("unnormalize", False),
            workers=args.workers,
            memory_format=precision.memory_format(device, args.amp, args.tf32),
            share=(distributed.RANK, distributed.WORLD_SIZE),
        )


def adopt(args: argparse.Namespace, config: dict[str, Any]) -> None:
    """Prepare the images as the network was trained, as far as its snapshot says how.

    Raises:
        UsageError: an option contradicts it.
        SnapshotError: what it says is not what an option can be.
    """
    check_sound(args.load_from, config)
    for name in ("arch", "dataset", *OF_IMAGES, "seed"):
        if name in config:
            if name != "class_sample_seed" or args.subsample_classes:  # else it is warned about
                check_recorded(args, name, config[name], args.load_from)
            if name != "seed":  # part of the paths where it was given here
                setattr(args, name, config[name])


def check_arguments(args: argparse.Namespace) -> list[str]:
    """Refuse contradictions; returns what to warn about: options that were given and have no effect."""
    check_tf32(args)
    without_effect = check_dataset(args)
    if not args.subsample_classes:
        without_effect["class_sample_seed"] = "without --subsample-classes"
    return warn_of(without_effect, args)


def read_list(path: Path) -> list[Path]:
    """The paths in a text file, one a line.

    Raises:
        UsageError: there is no such file, it holds no paths, or there is nothing where some of them point.
    """
    if os.path.exists(path) and not path.is_file():  # a pipe or a device might be read for ever
        raise UsageError(f"--inits-from {path}: not a file")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--inits-from {path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    paths = [Path(line.strip()) for line in lines if line.strip()]
    if not paths:
        raise UsageError(f"--inits-from {path}: there is no path in it")
    missing = [textwrap.shorten(str(path), 300) for path in paths if not os.path.isfile(path)]
    if missing:
        more = f" (and {len(missing) - 5} more)" if len(missing) > 5 else ""
        raise UsageError(f"--inits-from {path}: there is no file {', '.join(missing[:5])}{more}")
    return paths


def check_the_same_on_all_ranks(
    args: argparse.Namespace,
    net: nn.Module,
    initializations: list[Initialization],
    test_set: data.TestSet,
    config: dict[str, Any],
) -> None:
    """Raise UsageError where rank 0 measures something else: its counts and this rank's do not belong together."""
    may_differ = {"data_path", "workers", "load_from", "inits_from", "results", "plots", "log", "given"}
    weights = {"the trained network": snapshots.bare_weights(net)}
    weights |= {f"epoch {one.row}": one.weights for one in initializations}
    mine = {what: snapshots.fingerprint(of_net) for what, of_net in weights.items()}
    mine["the options"] = {name: value for name, value in vars(args).items() if name not in may_differ}
    mine["what is recorded of its training"] = repr(sorted(config.items()))
    mine["the test images"] = (test_set.test_fingerprint, test_set.class_names)
    theirs = distributed.from_main(lambda: mine)
    differing = [what for what in {**mine, **theirs} if mine.get(what) != theirs.get(what)]
    if differing:
        raise UsageError(f"torchrun: rank 0 measures something else: {', '.join(differing)}")


def layer_parameters(weights: dict[str, Tensor], layer: str) -> dict[str, Tensor]:
    return {name: weights[f"{layer}.{name}"] for name in ("weight", "bias") if f"{layer}.{name}" in weights}


def read_initializations(
    paths: list[Path],
    args: argparse.Namespace,
    net: nn.Module,
    layers: list[models.Layer],
    recorded: dict[str, Any],
) -> tuple[list[Initialization], list[str]]:
    """The snapshots that layers are reset to, by epoch; of each only the weights of these layers are read.

    Args:
        recorded: of the trained network's training.

    Returns:
        them, and what to warn about: those that are of another run than the trained network, as far as the two
        tell, or without checksums.

    Raises:
        SnapshotError: one is damaged, or of another network.
        UsageError: two of the same epoch differ, or the epoch of one is not known.
    """
    wanted = {f"{layer.name}.{name}" for layer in layers for name in ("weight", "bias")}
    expected = net.state_dict()
    found: dict[int, Initialization] = {}
    warnings = []
    for path in paths:
        content = snapshots.load(path, wanted.__contains__)
        warnings += snapshots.without_checksums(path, content)
        for name in ("arch", "dataset"):
            if name in (content.get("config") or {}):
                check_recorded(args, name, content["config"][name], path)
        differing = snapshots.describe_difference(expected, content["structure"])
        if differing:
            raise snapshots.SnapshotError(f"{path} is no snapshot of this {args.arch}: {differing}")
        snapshots.check_finite(path, content["model_state_dict"])
        warnings += doubts_about(path, content, recorded, args)
        epoch = snapshots.epochs_trained(path, content)
        if epoch is None:
            raise UsageError(f"{path}: its name does not say after how many epochs (as {args.arch}_3.pt does)")
        initialization = Initialization(epoch, str(path), content["model_state_dict"])
        other = found.setdefault(epoch, initialization)
        differ = any(
            not torch.equal(weight, other.weights[name]) for name, weight in initialization.weights.items()
        )
        if other is not initialization and differ:
            raise UsageError(f"{other.source} and {path} are different weights, both after epoch {epoch}")
    return [found[epoch] for epoch in sorted(found)], warnings


def doubts_about(
    path: Path, content: dict[str, Any], recorded: dict[str, Any], args: argparse.Namespace
) -> list[str]:
    """What says that a snapshot is of another run than the trained network, as far as the two tell.

    Args:
        path, content: the snapshot, as `snapshots.load` gives it.
        recorded: of the trained network's training.

    Raises:
        SnapshotError: all of an initialization's weights are read for this, and some are damaged.
    """
    config = recorded.get("config") or {}
    state = content if content.get("config") else snapshots.beside(path, content)
    if config and state.get("config"):
        ignore = {"seed_given", "overridden"}
        overridden = config.get("overridden") or state["config"].get("overridden")
        same_start = recorded.get("initial_fingerprint") == state.get("initial_fingerprint") is not None
        if overridden and same_start:
            ignore |= {*HYPERPARAMETERS, "batch_size"}  # of one run: --override replaces them on the way
        other_run = difference(config, state["config"], ignore)
        if other_run:
            return [f"{path} is of another run than the trained network: {other_run}"]
    epoch = snapshots.epochs_trained(path, content)
    if "epoch" not in content and (epoch is None or epoch > 0):
        return []  # it does not tell what its run was trained from
    if not snapshots.was_trained_from_another(snapshots.initial_fingerprint(path, content), recorded):
        return []
    if "epoch" in content:
        return [f"{path} is of a run that started from other weights than {args.load_from}"]
    return [f"{path} is not the initialization of {args.load_from}"]


def announce(log, args, recorded, test_set: data.TestSet, initializations, device, log_path: Path) -> None:
    """Say what is being run."""
    height, width = test_set.image_size
    log.info(
        f"{args.arch} from {args.load_from} on the test set of {args.dataset}: {test_set.num_classes} classes, "
        f"{test_set.test.num_images:,} images of {height}x{width} pixels"
    )
    config = recorded.get("config") or {}
    values = "in [0, 1]" if config.get("unnormalize") else "normalized"
    source = f"as {recorded['path']} records" if config else "by the options"
    log.info(f"classes and image size {source}; pixel values are {values}")
    for initialization in initializations:
        log.info(f"reset to {initialization.row}: {initialization.source}")
    if distributed.WORLD_SIZE > 1:
        log.info(f"{distributed.WORLD_SIZE} processes, each with its share of every batch")
    log.info(f"{devices.describe(device)}; PyTorch {torch.__version__}; log in {log_path}")


def as_results(
    args: argparse.Namespace,
    trained: Trained,
    initializations: list[Initialization],
    measured: reinit.Accuracies,
    bias: dict[str, dict],
    device: torch.device,
) -> dict[str, Any]:
    """What is written as JSON: accuracies, relative drops, the bias of the layers and its rank correlation.

    Args:
        measured: of each initialization in turn each layer.
        bias: of each layer, as `projections.measure` gives it.
    """
    in_turn = iter(measured.replaced)
    rows = {initialization.row: [next(in_turn) for _ in bias] for initialization in initializations}
    drops = {row: reinit.relative_drops(measured.top1, accuracies) for row, accuracies in rows.items()}
    epoch = snapshots.epochs_trained(args.load_from, trained.snapshot)
    results: dict[str, Any] = {
        "init_from_epoch": rows,
        "arch": args.arch,
        "dataset": args.dataset,
        "top1_test": measured.top1,
        "top5_test": measured.top5,
        "epoch": None if epoch is None else str(epoch),
        "layers": list(bias),
        "relative_drop": drops,
        "projections": {
            name: {key: value for key, value in layer.items() if key != "projections"}
            for name, layer in bias.items()
        },
        "correlation": correlation.rank_correlation(
            [layer["mass"] for layer in bias.values()],
            [layer["filters"] for layer in bias.values()],
            drops.get(reinit.initialization_row(drops)),
        ),
    }
    if args.seed is not None:
        results["seed"] = str(args.seed)
    if args.subsample_classes:
        results["subsample_classes"] = args.subsample_classes
    for initialization in initializations:
        if initialization.seed is not None:
            results["rand_seed"] = initialization.seed
    results["initializations"] = {one.row: snapshots.fingerprint(one.weights) for one in initializations}
    results["provenance"] = provenance("reinit_layers.py", args, device)
    if "provenance" in trained.recorded:
        results["trained_by"] = trained.recorded["provenance"]
    return results


def warnings_about(results: dict[str, Any], num_classes: int) -> list[str]:
    """What to mind when results are read."""
    warnings = []
    top1, chance = results["top1_test"], 100 / num_classes
    if top1 / 2 < chance:
        warnings.append(
            f"half of {top1:.2f} % is less than guessing gives ({chance:.2f} %): even a layer that is needed may "
            "not be critical"
        )
    for row, values in results["init_from_epoch"].items():
        broken = [name for name, top1 in zip(results["layers"], values, strict=True) if top1 is None]
        if broken:
            warnings.append(
                f"reset to {row} the outputs are not finite, and have no accuracy: {', '.join(broken)}"
            )
    return warnings


def report(results: dict[str, Any]) -> str:
    """The table of accuracies, a row an initialization and a column a layer, and which layers are critical."""
    lines = [f"trained network: top-1 {results['top1_test']:.2f} %, top-5 {results['top5_test']:.2f} %"]
    lines.append("top-1 in % with one layer reset, by the epoch it is reset to:")
    names, rows = results["layers"], results["init_from_epoch"]
    column = max(7, *map(len, names)) + 2
    first = max(5, *map(len, rows))
    at_once = max(1, (REPORT_WIDTH - first) // column)
    for start in range(0, len(names), at_once):
        shown = slice(start, start + at_once)
        lines.append(" " * first + "".join(f"{name:>{column}}" for name in names[shown]))
        lines += [
            f"{row:>{first}}"
            + "".join(f"{math.nan if value is None else value:{column}.2f}" for value in values[shown])
            for row, values in rows.items()
        ]
    initialization = reinit.initialization_row(rows)
    for row in [row for row in (initialization, RAND) if row in rows]:
        critical = reinit.critical(results["relative_drop"][row])
        told = ", ".join(name for name, is_critical in zip(names, critical, strict=True) if is_critical) or "none"
        broken = [name for name, top1 in zip(names, rows[row], strict=True) if top1 is None]
        if broken:
            told += f"; not defined for {', '.join(broken)}"
        lines.append(f"critical (more than half of the accuracy lost when reset to {row}): {told}")
    found = results["correlation"]
    if found["spearman"] is not None:
        coins = found["fair_coins"]
        lines.append(
            f"rank correlation of bias |mass - 1/2| and accuracy lost when reset to {initialization}, "
            f"over {len(names)} layers: {found['spearman']:+.2f} (p = {found['p_value']:.2g}); "
            f"fair coins instead of bias: {coins['mean']:+.2f} "
            f"(95 % of draws {coins['low']:+.2f} to {coins['high']:+.2f})"
        )
    return "\n".join(lines)


def draw(results: dict[str, Any], args: argparse.Namespace, plots_folder: Path, stem: str) -> list[Path]:
    """The figures of the results; returns their files."""
    from utils import plots

    title = f"{args.arch} on {dataset_folder(args.dataset, args.subsample_classes)}"
    figures = {
        f"reinit_{stem}": plots.accuracy_loss(results, title),
        f"criticality_{stem}": plots.bias_and_criticality(results, title),
    }
    return [file for name, figure in figures.items() for file in plots.save(figure, plots_folder / name)]


if __name__ == "__main__":
    sys.exit(main())
