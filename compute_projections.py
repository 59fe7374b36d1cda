"""Measure how a network's filters are oriented towards the identity line, in one snapshot or a training run.

List networks and datasets; measure a random initialization, weights from the
model zoo, and a training run, with figures:

    python compute_projections.py
    python compute_projections.py --arch lenet --dataset mnist --seed 1
    python compute_projections.py --arch vgg19 --dataset imagenet --pretrained
    python compute_projections.py --arch lenet --dataset mnist --seed 1 \\
        --normalize --load-from models/mnist/lenet/1 \\
        --init-from models/mnist/lenet/1/lenet_init_0.pt --plots plots

For every layer of N filters: their projections, the share of projections that
are not positive (mass; 1/2 if signs are fair coins), mean, standard deviation,
and the p-value against mass 1/2. With --init-from also how far the weights
have moved. Each snapshot gets one JSON file in
<results>/<dataset>/[<noise>/]<arch>/[<name>/][<seed>/]; projections.csv there
has one row per snapshot and layer of all of them.

Only the weights that are measured are read from a snapshot. Then reset its layers:

    python reinit_layers.py --arch lenet --dataset mnist --seed 1 --rand \\
        --load-from models/mnist/lenet/1/lenet_20.pt
"""

if __name__ == "__main__":  # first: the other imports take seconds
    from utils.process import signals

    signals.handle_during_imports()

import logging
import math
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import models
from core.errors import RunError, UsageError
from utils import options, projections, sources
from utils.arguments import Settings
from utils.process import devices, distributed
from utils.process.ending import DONE, FAILED, exit_status, memory_for
from utils.process.logging import open_log, progress
from utils.results import differing_options, layers_of, write_json, write_projections
from utils.runs.provenance import provenance
from utils.runs.record import expected_network
from utils.snapshots import SnapshotError
from utils.snapshots.files import try_folder
from utils.snapshots.weights import check_finite, fingerprint
from utils.sources import Source


@exit_status
def main(argv=None) -> int:
    settings = options.parse("compute_projections", __doc__, argv)
    if options.list_choices(settings):
        return DONE
    if distributed.WORLD_SIZE > 1:
        raise UsageError("torchrun: measuring is the work of one process; start it with python instead")
    check_arguments(settings)
    device = devices.choose(settings.cuda)
    settings = settings.replace(cuda=device.type == "cuda")
    devices.take(device)

    alone = settings.arch == models.WEIGHTS_ALONE  # then each file has layers of its own
    layers = [] if alone else sources.layers_of(expected_network(settings, {}), settings)
    warnings: defaultdict[str, list[str]] = defaultdict(list)  # by kind: of each the first one is logged
    initial = initial_weights = None
    if settings.init_from is not None:
        wanted = {layer.weight for layer in layers}.__contains__ if layers else None
        initial = sources.read_of_this_network(settings.init_from, settings, wanted, of_this_run=False)
        initial_layers = sources.layers_in(initial, layers, settings)
        check_finite(initial.path, {layer.weight: initial.weights[layer.weight] for layer in initial_layers})
        warnings["initial notes"] += initial.describe()
        with memory_for("the initialization"):
            initial_weights = sources.weights_of(initial_layers, initial.content, device)
    if settings.load_from:
        found, damaged = sources.find_snapshots(settings, layers)
    else:
        found, damaged = [sources.new_network(settings, layers)], []
    for source in found:
        missing = [one.name for one in source.layers if initial is not None and one.name not in initial_weights]
        if missing:
            raise UsageError(f"--init-from {initial.path}: it has no {missing[0]}, which {source.name} has")
        below = source.result.parent.relative_to(settings.results)
        try_folder("--log", Path("log", below, settings.log).parent, b"")
        try_folder("--results", source.result.parent)
        if settings.plots is not None:
            try_folder("--plots", settings.plots / below)

    log = None  # not yet: if a file is wrong, and alone, nothing is left behind
    runs: dict[Path, list[tuple[Source, dict]]] = {}  # by folder, in order of training: what, and its results
    for source in progress(found, unit=" snapshots"):
        try:
            results = measure(source, settings, initial_weights, device)
        except SnapshotError as error:  # only the text is kept: the error would keep the file mapped in memory
            damaged.append(str(error))
            continue
        for note in source.notes:
            warnings[note.removeprefix(source.name)].append(note)
        if initial is not None:
            warnings["initial"] += sources.warn_of_another_run(initial, source.record)
        differing = differing_options(source.result, results)
        if differing:
            message = f"{source.result} held results that differ in {', '.join(differing)}, and are replaced"
            warnings["replaced"].append(message)
        write_json(results, source.result)
        if log is None:
            log = start_log(settings, found, device)
        series = runs.setdefault(source.result.parent, [])
        for _, before in series[-1:]:
            for part in (*layers_of(before).values(), before["net"]):
                part.pop("projections")  # figures over epochs do not need those of all snapshots
        series.append((source, results))
    if log is None and len(damaged) == 1:
        raise SnapshotError(damaged[0])
    if log is None:
        raise RunError(f"{damaged[0]} (and {len(damaged) - 1} more like this)")

    for folder in runs:
        warnings["no results"] += write_projections(folder, settings)
    report(log, settings, list(runs.values()))
    for first, *others in (dict.fromkeys(kind) for kind in warnings.values() if kind):
        log.warning(first + (f" (and {len(others)} more like this)" if others else ""))
    for problem in damaged:
        log.error(problem)
    return FAILED if damaged else DONE


def check_arguments(settings: Settings) -> None:
    """Refuse options that contradict each other, and files that do not exist."""
    if settings.load_from and settings.pretrained:
        raise UsageError("--pretrained: contradicts --load-from, which says where the weights come from")
    if settings.epoch is not None and not settings.load_from:
        raise UsageError(f"--epoch {settings.epoch}: it is of the network of --load-from, which is not given")
    if settings.arch != models.WEIGHTS_ALONE:
        models.check(settings.arch, settings.pretrained)
        options.images(settings).check()
    elif not settings.load_from:
        raise UsageError("--arch weights: which weights? Give files with --load-from")
    for path in settings.load_from or []:
        if not os.path.exists(path):  # unlike Path.exists, False also for a name that is too long
            raise UsageError(f"--load-from {path}: there is no such file or folder")


def measure(
    source: Source, settings: Settings, initial_weights: dict[str, Tensor] | None, device: torch.device
) -> dict[str, Any]:
    """Return the results of a source. Raise SnapshotError if it is damaged or cannot be measured."""
    with memory_for(source.name):
        content = source.read()
        weights = sources.weights_of(source.layers, content, device)
        try:
            measured = projections.measure(weights, settings.normalize, initial_weights)
        except ValueError as error:
            raise SnapshotError(f"{source.name} cannot be measured: {error}") from None
    return as_results(measured, settings, source, content, device)


def as_results(
    measured: dict[str, dict], settings: Settings, source: Source, content: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """Return stage -> block -> statistics, then those of the network, and what was measured and how.

    Where some layers are depthwise, there are statistics of these and of the others apart, too.
    """
    results: dict[str, Any] = {}
    for layer in source.layers:
        statistics = {"name": layer.name, **measured[layer.name]}
        results.setdefault(str(layer.stage), {})[str(layer.block)] = statistics
        if layer.depthwise:
            statistics["depthwise"] = True
    results["net"] = projections.network_statistics(measured.values())
    depthwise = [measured[layer.name] for layer in source.layers if layer.depthwise]
    if 0 < len(depthwise) < len(measured):
        dense = [measured[layer.name] for layer in source.layers if not layer.depthwise]
        results["net_dense"] = projections.network_statistics(dense)
        results["net_depthwise"] = projections.network_statistics(depthwise)
    left_out = Counter(
        "1x1 convolutions" if one.shape[2:] == (1, 1) else "kernels of integers"
        for one in content.get("structure", content["model_state_dict"]).values()
        if one.dim() == 4 and one.dtype != torch.bool  # a mask
        if one.shape[2:] == (1, 1) or not one.is_floating_point()
    )
    if left_out:
        results["left_out"] = left_out
    results["arch"] = settings.arch
    results["dataset"] = source.dataset
    if settings.seed is not None:
        results["seed"] = str(settings.seed)
    results["epoch"] = None if source.epoch is None else str(source.epoch)
    # As of the command that measures this snapshot alone: the results are the same.
    asked = settings.replace(load_from=source.name if settings.load_from else None)
    results["provenance"] = provenance("compute_projections.py", options.recorded_arguments(asked), device)
    if source.record is not None and source.record.provenance and (source.epoch or 0) > 0:
        results["trained_by"] = source.record.provenance
    if "init_seed" in content:
        results["init_seed"] = content["init_seed"]
    if settings.load_from:
        results["weights"] = fingerprint(sources.weights_of(source.layers, content, torch.device("cpu")))
    for key in ("top1_acc", "top5_acc", "top1_acc_train_running"):  # of a training state, in percent
        if isinstance(content.get(key), (int, float)) and math.isfinite(content[key]):
            results[key] = content[key]
    return results


def start_log(settings: Settings, found: list[Source], device: torch.device) -> logging.Logger:
    """Open the log file and log what is measured."""
    log, _ = open_log(Path("log") / found[0].result.parent.relative_to(settings.results), settings.log)
    what = found[0].name if len(found) == 1 else f"{len(found)} snapshots"
    kind = "cosines" if settings.normalize else "sums of weights"
    network = " on ".join(filter(None, [settings.arch, settings.dataset]))
    log.info(f"{network}: {what}; projections are {kind}; on {devices.describe(device)}")
    for classes, count in Counter(source.classes for source in found if source.classes).items():
        log.info(f"classes: {classes}" + (f" for {count} snapshots" if count > 1 else ""))
    return log


def report(log: logging.Logger, settings: Settings, runs: list[list[tuple[Source, dict]]]) -> None:
    """Log the statistics of the last snapshot of each run, and draw the figures that were asked for."""
    for run in runs:
        source, results = run[-1]
        folder = source.result.parent
        if len(run) > 1:
            log.info(f"\n{table_by_snapshot(run)}")
        log.info(f"\n{source.name}" + ("" if len(run) == 1 else f", the last of {len(run)} snapshots"))
        log.info(table(results))
        log.info(f"results: {source.result if len(run) == 1 else f'{len(run)} files in {folder}'}")
        log.info(f"table: {folder / 'projections.csv'}")
        for figure in draw(run, settings) if settings.plots is not None else ():
            log.info(f"figure: {figure}")


def table_by_snapshot(run: list[tuple[Source, dict]]) -> str:
    """Return a line per snapshot: mean and mass of the network, and how many of its layers are biased."""
    level, width = 1 - projections.CONFIDENCE, max(8, *(len(Path(source.name).name) for source, _ in run))
    lines = [f"{'snapshot':{width}}  epoch     mean   mass  layers biased (p < {level:.2g})"]
    for source, results in run:
        layers, network = layers_of(results).values(), results["net"]
        biased = f"{sum(layer['p_value'] < level for layer in layers)} of {len(layers)}"
        row = f"{Path(source.name).name:{width}}  {'-' if source.epoch is None else source.epoch:>5}"
        lines.append(f"{row}  {network['mean']:+7.3f}  {network['mass']:5.3f}  {biased}")
    return "\n".join(lines)


def table(results: dict[str, Any]) -> str:
    """Return a line per layer, and one for the network."""
    names = {"net": "network", "net_dense": "dense layers", "net_depthwise": "depthwise layers"}
    rows = {**layers_of(results), **{name: results[key] for key, name in names.items() if key in results}}
    width = max(map(len, rows))
    lines = [f"{'layer':{width}}  filters     mean   mass  p-value"]
    for name, row in rows.items():
        numbers = f"{row['filters']:7d}  {row['mean']:+7.3f}  {row['mass']:5.3f}  {row['p_value']:7.1e}"
        lines.append(f"{name:{width}}  {numbers}" + ("  depthwise" if row.get("depthwise") else ""))
    zeros = results["net"]["zero_filters"]
    if zeros:
        lines.append(f"{zeros} filters are all zero; the results also have p-values without them")
    lines += [f"{kind} left out: {count}" for kind, count in results.get("left_out", {}).items()]
    return "\n".join(lines)


def draw(run: list[tuple[Source, dict]], settings: Settings) -> list[Path]:
    """Draw the figures of a run's snapshots. Return their files."""
    from utils import plots

    last, measured = run[-1][0], layers_of(run[-1][1])
    folder = settings.plots / last.result.parent.relative_to(settings.results)
    network = " on ".join(filter(None, [settings.arch, last.data]))
    when = {None: Path(last.name).name, 0: "at initialization", -1: "ImageNet weights", 1: "after 1 epoch"}
    title = f"{network}, {when.get(last.epoch, f'after {last.epoch} epochs')}"
    figures = {
        f"projections_{last.result.stem}": plots.distributions(measured, settings.normalize, title),
        f"profile_{last.result.stem}": plots.profile(measured, title),
    }
    same = [(one, layers_of(results)) for one, results in run]
    same = [(one, layers) for one, layers in same if layers.keys() == measured.keys()]
    by_name = any(one.epoch is None for one, _ in same)
    points = {Path(one.name).name if by_name else max(one.epoch, 0): layers for one, layers in same}
    if len(points) > 1:
        figures[f"mass_{settings.arch}"] = plots.by_epoch(points, "mass", network)
        if len(measured) <= plots.MOST_PANELS:  # else mass_<arch> is the heat map
            figures[f"heatmap_{settings.arch}"] = plots.by_epoch(points, "mass", network, as_map=True)
        figures[f"mean_{settings.arch}"] = plots.by_epoch(points, "mean", network, settings.normalize)
        if settings.init_from is not None:
            figures[f"distance_{settings.arch}"] = plots.distance_by_epoch(points, network)
    return [path for name, figure in figures.items() for path in plots.save(figure, folder / name)]


if __name__ == "__main__":
    sys.exit(main())
