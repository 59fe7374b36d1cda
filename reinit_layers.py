"""Put one layer at a time back to earlier weights, and measure the accuracy lost: which layers are critical?

List networks and datasets; reset the layers of a trained network to what they
were in the snapshots of a list, and to new random weights:

    python reinit_layers.py
    ls models/mnist/lenet/1/lenet_init_0.pt models/mnist/lenet/1/*.tar > inits.txt
    python reinit_layers.py --arch lenet --dataset mnist --seed 1 --rand \\
        --load-from models/mnist/lenet/1/lenet_20.pt --inits-from inits.txt

Each layer gets the weights (and bias) that it had in each snapshot of the
list, and with --rand also new random ones; all other layers stay trained. The
accuracy on the test set is measured each time, all in one pass over the test
set. The bias of the layers (see compute_projections.py) is measured from the
same trained weights, and compared with the accuracy lost.

Results go to
<results>/<dataset>/[<noise>/]<arch>/[<name>/][<seed>/]reinit_<snapshot>.json
and .csv, figures to the same folder below <plots>. Then compare several seeds:

    python experiments/compare.py criticality --title LeNet --epoch 20 \\
        --output criticality_lenet results/mnist/lenet
"""

if __name__ == "__main__":  # first: the other imports take seconds
    from utils.process import signals

    signals.handle_during_imports()

import functools
import math
import sys
from typing import Any

import torch

import data
import models
from core.errors import UsageError
from utils import correlation, options, projections, reinit, sources
from utils.arguments import Settings
from utils.options import Role, check_recorded
from utils.process import devices, distributed
from utils.process.ending import DONE, exit_status, memory_for
from utils.process.logging import open_log, progress
from utils.results import RESET, differing_options, result_stem, rows_of, write_csv, write_json
from utils.runs.begin import adopt
from utils.runs.folders import describe_data, noise_of_snapshot, run_folder
from utils.runs.provenance import provenance
from utils.runs.record import Snapshot, read_snapshot
from utils.snapshots.files import try_folder
from utils.snapshots.weights import bare_weights, fingerprint, load_weights
from utils.sources import RAND, Initialization, random_initialization, read_initializations, read_list
from utils.training import precision

REPORT_WIDTH = 110  #: of the table on the console, in characters


@exit_status
def main(argv=None) -> int:
    settings = options.parse("reinit_layers", __doc__, argv)
    if options.list_choices(settings):
        return DONE
    if settings.load_from is None:
        raise UsageError("--load-from: which trained network? Give the path of a snapshot")
    if settings.inits_from is None and not settings.rand:
        raise UsageError("nothing to reset layers to: give --inits-from, or --rand, or both")
    device = devices.choose(settings.cuda)
    on_gpu = device.type == "cuda"
    settings = settings.replace(cuda=on_gpu, tf32=settings.tf32 and on_gpu)
    with distributed.group(device):
        return run(settings, device)


def run(settings: Settings, device: torch.device) -> int:
    """Read what is needed, measure, write the results. Of several ranks each has its share of the images."""
    devices.take(device)
    precision.set_precision(device, settings.amp, settings.tf32)
    paths = read_list(settings.inits_from) if settings.inits_from is not None else []
    settings, trained, warnings = read_trained(settings)
    noise = noise_of_snapshot(settings.load_from, trained.config)
    results_folder, plots_folder, log_folder = (
        run_folder(base, settings, noise) for base in (settings.results, settings.plots, "./log")
    )
    if distributed.RANK == 0:
        try_folder("--log", (log_folder / settings.log).parent, b"")
        try_folder("--results", results_folder)
        try_folder("--plots", plots_folder)
    dataset = load_test_set(settings, device)
    trained.check_classes(dataset.class_names)
    num_classes, head_warnings = sources.classes_of_head(settings, dataset, trained.weights)
    build = functools.partial(models.build, settings.arch, num_classes, dataset.in_channels, dataset.image_size)
    # As in training: the network may hold more than what is in a snapshot.
    torch.manual_seed(trained.config.get("seed", settings.seed) or 0)
    net = build()
    load_weights(net, trained.weights, settings.load_from, settings.arch)
    layers = sources.layers_of(net, settings)
    with memory_for("the network"):
        precision.move(net, device, settings.amp, settings.tf32)
    reinit.check_segments(net, (2, dataset.in_channels, *dataset.image_size))
    initializations, more = read_initializations(paths, settings, net, layers, trained.record)
    if distributed.WORLD_SIZE > 1:
        weights = [bare_weights(net), *(one.weights for one in initializations)]
        asked = options.compared_arguments("reinit_layers", options.recorded_arguments(settings))
        mine = (asked, trained.config, dataset.test_fingerprint, *map(fingerprint, weights))
        if distributed.from_rank_0(lambda: mine) != mine:
            raise UsageError("torchrun: the options, weights or test images differ from those of rank 0")
    if settings.rand:
        initializations.append(random_initialization(settings, trained.config, build))
    start_row = reinit.initialization_row([one.row for one in initializations])
    start = next((one for one in initializations if one.row == start_row), None)
    if settings.identity_line and start is None:
        raise UsageError("--identity-line: --inits-from has no snapshot of the initialization")

    log, log_path = open_log(log_folder, settings.log)
    announce(log, settings, trained, dataset, initializations, device, log_path)
    for warning in dict.fromkeys([*warnings, *head_warnings, *more, *dataset.notes]):
        log.warning(warning)

    weights = {layer.name: layer.module.weight for layer in layers}
    initial = start and {layer.name: start.weights[layer.weight].to(device) for layer in layers}
    bias = projections.measure(weights, normalize=True, initial=initial)
    replacements = {
        one.row: [reinit.Replacement.of(layer.name, one.weights) for layer in layers] for one in initializations
    }
    if settings.identity_line:
        for direction in reinit.DIRECTIONS:
            replacements[direction] = [
                reinit.Replacement(name, {"weight": reinit.put_back(weight, initial[name], direction)})
                for name, weight in weights.items()
            ]
    batches = progress(dataset.test, desc="test set", unit="batch")
    with memory_for("a batch", "give a smaller --batch-size"):
        in_turn = [one for row in replacements.values() for one in row]
        measured = reinit.accuracies(net, in_turn, batches, log.info, settings.amp)
    if distributed.RANK > 0:
        return DONE
    results = as_results(settings, trained, initializations, list(replacements), measured, bias, device)
    results |= conclusions(results, reinit.hidden_layers(layers), 100 / num_classes)
    if num_classes != dataset.num_classes:
        results["head_classes"] = num_classes
    stem = result_stem(settings.load_from)
    path = results_folder / f"reinit_{stem}.json"
    differing = differing_options(path, results)
    write_json(results, path)
    table = path.with_name(f"reinit_{stem}.csv")
    write_csv(rows_of(results, path, settings), table, RESET)
    log.info(report(results))
    if measured.top1 <= results["chance_top1"]:
        guessing = f"guessing gives {results['chance_top1']:.2f} %"
        log.warning(f"the network has {measured.top1:.2f} %, and {guessing}: there is no accuracy to lose")
    if differing:
        log.warning(f"{path} held results that differ in {', '.join(differing)}, and are replaced")
    log.info(f"results: {path}")
    log.info(f"table: {table}")
    from utils import plots  # imports matplotlib: not before it is needed

    title = f"{settings.arch} on {describe_data(settings.dataset, settings.subsample_classes, noise)}"
    for name, draw in (("reinit", plots.accuracy_loss), ("criticality", plots.bias_and_criticality)):
        for figure in plots.save(draw(results, title), plots_folder / f"{name}_{stem}"):
            log.info(f"figure: {figure}")
    return DONE


def read_trained(settings: Settings) -> tuple[Settings, Snapshot, list[str]]:
    """Read the snapshot of the trained network, and complete the settings by what its run records; and warnings.

    Raise UsageError where the snapshot is damaged, or options contradict it or each other.
    """
    path = settings.load_from
    trained = read_snapshot(path, settings, epoch=settings.epoch)
    warnings = trained.describe("its images are prepared as the options say")
    config = trained.config
    if trained.record is not None:
        settings, more = adopt(settings, config, path, roles=Role.NETWORK)
        warnings += more
        images = options.images(settings.replace(mean=None, std=None))
        if (settings.mean, settings.std) not in ((None, None), tuple(map(list, images.normalization or ()))):
            raise UsageError(f"--mean, --std: {path} was trained on pixel values {describe_values(images)}")
        if config.get("seed") is not None:
            check_recorded(settings, "seed", config["seed"], path)
        for name in ("amp", "tf32"):
            if config.get(name, False) != settings[name]:
                before, now = ("with", "without") if config.get(name) else ("without", "with")
                warnings.append(f"{path} was trained {before} --{name} and is measured {now}")
    options.check_computation(settings)
    warnings += options.warn_without_effect(settings, options.find_without_effect(settings))
    if not settings.subsample_classes:
        settings = settings.replace(class_sample_seed=None)  # results record what had an effect
    return settings, trained, warnings


def load_test_set(settings: Settings, device: torch.device) -> data.Dataset:
    """Load the test images onto the device, with pixel values as the network was trained on."""
    images, batch_size = options.images(settings), settings.batch_size
    if "batch_size" not in settings.given:
        batch_size = reinit.fitting_batch_size(batch_size, device, images.spec.in_channels, images.image_size)
    advice = "keep fewer classes with --subsample-classes"
    with distributed.local_rank_0_first(), memory_for("the dataset", advice):
        return data.load(
            images,
            batch_size,
            device=device,
            workers=settings.workers,
            memory_format=precision.memory_format(device, settings.amp, settings.tf32),
            share=(distributed.RANK, distributed.WORLD_SIZE),
            test_only=True,
        )


def announce(log, settings, trained: Snapshot, dataset: data.Dataset, initializations, device, log_path) -> None:
    """Log what is being run."""
    height, width = dataset.image_size
    log.info(
        f"{settings.arch} from {settings.load_from} on the test set of {settings.dataset}: {dataset.num_classes} "
        f"classes, {dataset.test.num_images:,} images of {height}x{width} pixels"
    )
    values = describe_values(options.images(settings))
    source = "as recorded with the network" if trained.record is not None else "by the options"
    log.info(f"classes and image size {source}; pixel values are {values}")
    for initialization in initializations:
        log.info(f"reset to {initialization.row}: {initialization.source}")
    if distributed.WORLD_SIZE > 1:
        log.info(f"{distributed.WORLD_SIZE} processes, each with its share of every batch")
    log.info(f"{devices.describe(device)}; PyTorch {torch.__version__}; log in {log_path}")


def describe_values(images: data.Images) -> str:
    """Return what the values of pixels are: "normalized (mean 0.1307, std 0.3015)" or "in [0, 1]"."""
    if images.normalization is None:
        return "in [0, 1]"
    mean, std = (" ".join(map(str, values)) for values in images.normalization)
    return f"normalized (mean {mean}, std {std})"


def as_results(
    settings: Settings,
    trained: Snapshot,
    initializations: list[Initialization],
    rows: list[str],
    measured: reinit.Accuracies,
    bias: dict[str, dict],
    device: torch.device,
) -> dict[str, Any]:
    """Return what was measured for JSON: accuracies, and the bias of the layers.

    measured: of each of the rows in turn each layer. bias: of each layer, from `projections.measure`.
    """
    in_turn = iter(measured.replaced)
    epoch = trained.epochs_trained
    normalization = options.images(settings).normalization
    results: dict[str, Any] = {
        "init_from_epoch": {row: [next(in_turn) for _ in bias] for row in rows},
        "arch": settings.arch,
        "dataset": settings.dataset,
        "top1_test": measured.top1,
        "top5_test": measured.top5,
        "epoch": None if epoch is None else str(epoch),
        "normalization": normalization and dict(zip(("mean", "std"), normalization, strict=True)),
        "layers": list(bias),
        "projections": {
            name: {key: value for key, value in layer.items() if key != "projections"}
            for name, layer in bias.items()
        },
        "seed": None if settings.seed is None else str(settings.seed),
        "subsample_classes": settings.subsample_classes or None,
        "rand_seed": initializations[-1].seed,
        "weights": fingerprint(trained.weights),
        "initializations": {one.row: fingerprint(one.weights) for one in initializations},
        "provenance": provenance("reinit_layers.py", options.recorded_arguments(settings), device),
        "trained_by": (trained.record and trained.record.provenance) or None,
    }
    # Of these, only what there is.
    optional = {"seed", "subsample_classes", "rand_seed", "trained_by"}
    return {key: value for key, value in results.items() if value is not None or key not in optional}


def conclusions(results: dict[str, Any], hidden: list[str], chance: float) -> dict[str, Any]:
    """Return what follows from results: accuracies lost, and how they correlate with bias over the hidden layers.

    chance: accuracy of guessing, in percent.
    """
    top1, rows = results["top1_test"], results["init_from_epoch"]
    corrected = {row: reinit.relative_drops(top1, accuracies, chance) for row, accuracies in rows.items()}
    start, found = reinit.initialization_row(rows), {}
    if start is not None:
        drops = dict(zip(results["layers"], corrected[start], strict=True))
        measured = [results["projections"][name] for name in hidden]
        found = correlation.correlations(measured, [drops[name] for name in hidden])
    return {
        "relative_drop": {row: reinit.relative_drops(top1, accuracies) for row, accuracies in rows.items()},
        "corrected_drop": corrected,
        "chance_top1": chance,
        "hidden_layers": hidden,
        "correlation": found,
    }


def report(results: dict[str, Any]) -> str:
    """Return the table of accuracies, a row an initialization, and which layers are critical."""
    lines = [f"trained network: top-1 {results['top1_test']:.2f} %, top-5 {results['top5_test']:.2f} %"]
    lines.append("top-1 in % with one layer reset, by the epoch it is reset to:")
    names, rows = results["layers"], results["init_from_epoch"]
    column, first = max(7, *map(len, names)) + 2, max(5, *map(len, rows))
    at_once = max(1, (REPORT_WIDTH - first) // column)
    for start in range(0, len(names), at_once):
        shown = slice(start, start + at_once)
        lines.append(" " * first + "".join(f"{name:>{column}}" for name in names[shown]))
        for row, values in rows.items():
            numbers = (math.nan if value is None else value for value in values[shown])
            lines.append(f"{row:>{first}}" + "".join(f"{number:{column}.2f}" for number in numbers))
    initialization = reinit.initialization_row(rows)
    for row in [row for row in (initialization, RAND) if row in rows]:
        critical = reinit.critical(results["corrected_drop"][row])
        found = [name for name, is_critical in zip(names, critical, strict=True) if is_critical]
        layers = ", ".join(found) or "none"
        broken = [name for name, top1 in zip(names, rows[row], strict=True) if top1 is None]
        if broken:
            layers += f"; not defined for {', '.join(broken)}"
        lost = f"more than half of the accuracy beyond chance lost when reset to {row}"
        lines.append(f"critical ({lost}): {layers}")
    if results["correlation"]:
        hidden = f"the {len(results['hidden_layers'])} hidden layers"
        lines.append(f"rank correlation, over {hidden}, with the accuracy lost when reset to {initialization}:")
        lines.append(f"{'':18}{'':>8}{'p':>8}{'fair coins, 95 %':>19}{'given depth':>13}{'given distance':>16}")
        lines += (report_correlation(name, one) for name, one in results["correlation"].items())
    return "\n".join(lines)


def report_correlation(name: str, found: dict[str, Any]) -> str:
    """Return a row of the table of correlations."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:+.2f}"

    coins = found.get("fair_coins")
    between = f"{coins['low']:+.2f} to {coins['high']:+.2f}" if coins else ""
    p_value = "" if found["p_value"] is None else f"{found['p_value']:.2g}"
    given = f"{number(found.get('given_depth')):>13}{number(found.get('given_l2_dist')):>16}"
    return f"{correlation.NAMES[name]:18}{number(found['spearman']):>8}{p_value:>8}{between:>19}{given}"


if __name__ == "__main__":
    sys.exit(main())
