"""Several runs of the same network side by side: means and spreads over seeds, and how sure a correlation is."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils import correlation, reinit
from utils.results import layers_of

LEVEL = 0.05  #: a layer counts as biased where chance alone is less likely than this to take it as far

Layers = dict[str, dict[str, Any]]  #: name -> statistics, as utils.projections.measure gives them


class ResultError(ValueError):
    """Results that are not there, or not of one experiment; the message is one line and names the file."""


class Run(NamedTuple):
    """The projections of one training run."""

    seed: str  #: the name of its folder
    files: list[Path]  #: that this is from
    epochs: dict[int, Layers]  #: epochs trained -> its layers, in network order
    accuracy: float | None  #: top-1 in percent after the last of them, on the images that training is watched with
    accuracy_trained_on: float | None  #: in percent, on the batches of the last epoch as they were trained on


class Interval(NamedTuple):
    low: float
    high: float


def read_run(folder: Path, last_epoch: int) -> Run:
    """The results of compute_projections.py for the snapshots of one run, up to an epoch.

    Args:
        folder: `<results>/<dataset>/<arch>/<seed>`.
        last_epoch: epochs trained; later ones are left out.

    Raises:
        ResultError: there is nothing about that epoch, or what there is was measured in different ways.
    """
    found: dict[int, dict[str, Any]] = {}
    files: dict[int, Path] = {}
    ways = set()
    for path in sorted(folder.glob("*.json")):
        content = read(path)
        if "init_from_epoch" in content or content.get("epoch") is None:
            continue
        epoch = max(int(content["epoch"]), 0)
        if epoch <= last_epoch and "top1_acc" not in found.get(epoch, {}):  # a final `.pt` knows no accuracy
            found[epoch], files[epoch] = content, path
            ways.add(content.get("provenance", {}).get("arguments", {}).get("normalize"))
    for epoch, what in ((0, "the initialization"), (last_epoch, f"{last_epoch} epochs of training")):
        if epoch not in found:
            raise ResultError(f"{folder} has no results of {what}")
    if len({tuple(layers_of(content)) for content in found.values()}) > 1:
        raise ResultError(f"{folder} has results of different layers")
    if len(ways) > 1:
        raise ResultError(f"{folder} has results with and without --normalize")
    last = found[last_epoch]
    return Run(
        folder.name,
        [files[epoch] for epoch in sorted(found)],
        {epoch: layers_of(found[epoch]) for epoch in sorted(found)},
        last.get("top1_acc"),
        last.get("top1_acc_train_running"),
    )


def read(path: Path) -> dict[str, Any]:
    """Results of any of the programs.

    Raises:
        ResultError: the file does not exist, or is not what they write.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ResultError(f"{path} is no result: {error}") from None
    if not isinstance(content, dict) or "arch" not in content:
        raise ResultError(f"{path} is no result of these programs")
    return content


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (of the sample, n - 1; 0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def expected_bias(filters: int) -> float:
    """The mean of |mass - 1/2| for a layer whose signs are fair coins: E|X/N - 1/2| with X ~ B(N, 1/2)."""
    # De Moivre's closed form of the mean absolute deviation of the binomial distribution, at p = 1/2.
    half = filters // 2 + 1
    log_probability = math.lgamma(filters + 1) - math.lgamma(half + 1) - math.lgamma(filters - half + 1)
    return half * math.exp(log_probability - filters * math.log(2)) / filters


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval | None:
    """The confidence interval for the mean of one value a seed, from Student's t distribution.

    The seeds are the independent units: the layers of one network are not independent of one another.

    Returns:
        None with fewer than two values.
    """
    if len(values) < 2:
        return None
    from scipy.stats import t

    mean, spread = mean_and_spread(values)
    half = float(t.ppf((1 + level) / 2, len(values) - 1)) * spread / math.sqrt(len(values))
    return Interval(mean - half, mean + half)


def bias_table(groups: Mapping[str, Sequence[Run]], epoch: int) -> str:
    """How biased the layers of several groups of runs are after training, in Markdown.

    Args:
        groups: label -> its runs, one a seed; all of one architecture.
        epoch: epochs trained.
    """
    lines = [
        "| layer | filters | chance | " + " | ".join(groups) + " |",
        "| --- | --: | --: |" + " --- |" * len(groups),
    ]
    for name, layer in next(iter(groups.values()))[0].epochs[epoch].items():
        cells = []
        for runs in groups.values():
            of_seeds = [run.epochs[epoch][name] for run in runs]
            mass, spread = mean_and_spread([one["mass"] for one in of_seeds])
            projection, _ = mean_and_spread([one["mean"] for one in of_seeds])
            biased = sum(map(is_biased, of_seeds))
            cells.append(f"{mass:.2f} ± {spread:.2f}, {projection:+.3f}, {biased}/{len(runs)}")
        lines.append(
            f"| {name} | {layer['filters']} | {expected_bias(layer['filters']):.2f} | {' | '.join(cells)} |"
        )
    layers = next(iter(groups.values()))[0].epochs[epoch].values()
    chance = statistics.fmean(expected_bias(layer["filters"]) for layer in layers)
    for when, label in ((0, "at initialization"), (epoch, f"after {epoch} epoch{'s' if epoch > 1 else ''}")):
        cells = []
        for runs in groups.values():
            mean, spread = mean_and_spread([bias(run.epochs[when]) for run in runs])
            cells.append(f"{mean:.3f} ± {spread:.3f}")
        lines.append(f"| **mean bias** \\|mass - 1/2\\| {label} | | {chance:.3f} | {' | '.join(cells)} |")
    first, *others = groups.values()
    seeds = [[run.seed for run in runs] for runs in groups.values()]
    if others and all(of_group == seeds[0] for of_group in seeds):
        cells = []
        for runs in others:
            pairs = zip(runs, first, strict=True)
            differences = [bias(run.epochs[epoch]) - bias(other.epochs[epoch]) for run, other in pairs]
            lower = sum(difference < 0 for difference in differences)
            interval = mean_interval(differences)
            between = "" if interval is None else f" ({interval.low:+.3f} to {interval.high:+.3f})"
            cells.append(f"{statistics.fmean(differences):+.3f}{between}, lower in {lower}/{len(runs)}")
        lines.append(
            f"| less that of {next(iter(groups))}, seed by seed (95 % interval) | | | | {' | '.join(cells)} |"
        )
    for label, key in (
        ("accuracy (%)** on the test set, or the validation split where there is one", "accuracy"),
        ("training accuracy (%)**", "accuracy_trained_on"),
    ):
        values = [[getattr(run, key) for run in runs] for runs in groups.values()]
        if all(None not in of_seeds for of_seeds in values):
            cells = ["{:.2f} ± {:.2f}".format(*mean_and_spread(of_seeds)) for of_seeds in values]
            lines.append(f"| **{label} | | | {' | '.join(cells)} |")
    return "\n".join(lines)


def is_biased(layer: Mapping[str, Any]) -> bool:
    """Whether the filters of a layer, without those that are all zero, lie to one side beyond chance."""
    p_value = layer["p_value_without_zeros"]
    return p_value is not None and p_value < LEVEL


def without_zeros(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Filters and mass of a layer without the filters that are all zero, which count as non-positive."""
    live = layer["filters"] - layer["zero_filters"]
    return {"filters": live, "mass": (layer["mass"] * layer["filters"] - layer["zero_filters"]) / live}


def bias(layers: Layers) -> float:
    """The bias |mass - 1/2| of a network: its mean over the layers."""
    return statistics.fmean(abs(layer["mass"] - 0.5) for layer in layers.values())


def correlation_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The rank correlation of bias and criticality in each of several runs, and their mean, in Markdown.

    Args:
        results: label of a run -> results of reinit_layers.py.
    """
    lines = [
        "| run | test accuracy (%) | rank correlation | p | critical layers |",
        "| --- | --: | --: | --: | --- |",
    ]
    for label, result in results.items():
        found = result["correlation"]
        is_critical = reinit.critical(initial_drops(result))
        critical = [name for name, is_one in zip(result["layers"], is_critical, strict=True) if is_one]
        told = (
            ("", "")
            if found["spearman"] is None
            else tuple(f"{found[key]:{form}}" for key, form in (("spearman", "+.2f"), ("p_value", ".2g")))
        )
        lines.append(
            f"| {label} | {result['top1_test']:.2f} | {told[0] or 'not defined'} | {told[1]} | "
            f"{', '.join(critical) or 'none'} |"
        )
    defined = [value for value in correlations(results) if value is not None]
    if defined:
        interval = mean_interval(defined)
        between = "" if interval is None else f", 95 % interval {interval.low:+.2f} to {interval.high:+.2f}"
        lines.append(f"| **mean** | | **{statistics.fmean(defined):+.2f}**{between} | | |")
        coins = fair_coins(results)
        lines.append(
            "| of fair coins | | {mean:+.2f}, 95 % of draws {low:+.2f} to {high:+.2f} | | |".format(**coins)
        )
    return "\n".join(lines)


def fair_coins(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The mean rank correlation of several runs if the signs of their filters were fair coins.

    Args:
        results: label of a run -> results of reinit_layers.py; runs whose correlation is not defined are left out,
            and so are draws in which one is not.

    Returns:
        `mean`, `low` and `high`, as of utils.correlation.summary.
    """
    drawn = []
    for seed, result in enumerate(results.values()):
        if result["correlation"]["spearman"] is not None:
            filters = [result["projections"][name]["filters"] for name in result["layers"]]
            drawn.append(correlation.fair_coins(filters, initial_drops(result), seed))
    return correlation.summary(np.mean(drawn, axis=0))


def initial_drops(result: Mapping[str, Any]) -> list[float]:
    """The relative drops of the layers reset to the weights that training started from."""
    return result["relative_drop"][reinit.initialization_row(result["relative_drop"])]


def critical_of_biased(results: Mapping[str, Mapping[str, Any]]) -> str:
    """How many of the biased layers, and of the others, are critical, all runs together; in words."""
    counts = {True: [0, 0], False: [0, 0]}
    for result in results.values():
        for name, is_critical in zip(result["layers"], reinit.critical(initial_drops(result)), strict=True):
            of_kind = counts[is_biased(result["projections"][name])]
            of_kind[0] += is_critical
            of_kind[1] += 1
    (biased_critical, biased), (other_critical, others) = counts[True], counts[False]
    return (
        f"Of the {biased} biased layers of all runs {biased_critical} are critical, of the {others} others "
        f"{other_critical}."
    )


def check_resets(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ResultError where results of reinit_layers.py cannot be averaged.

    Args:
        results: label of a run -> results.
    """
    first_label, first = next(iter(results.items()))
    for label, result in results.items():
        drops = result.get("relative_drop", {})
        if reinit.initialization_row(drops) is None:
            raise ResultError(f"{label}: layers were not reset to the initialization")
        if result["layers"] != first["layers"] or drops.keys() != first["relative_drop"].keys():
            raise ResultError(f"{first_label} and {label} have other layers, or were reset to other epochs")
        if any(None in row for row in drops.values()):
            raise ResultError(f"{label}: the trained network has no accuracy to lose")


def correlations(results: Mapping[str, Mapping[str, Any]]) -> list[float | None]:
    return [result["correlation"]["spearman"] for result in results.values()]


def criticality_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The bias of each layer and the accuracy lost with it, over several runs, in Markdown.

    Args:
        results: label of a run -> results of reinit_layers.py; all of one architecture and with the same rows.
    """
    runs = list(results.values())
    start = reinit.initialization_row(runs[0]["relative_drop"])
    rows = [row for row in (start, "rand") if row in runs[0]["relative_drop"]]
    heads = {start: "lost when reset to initialization", "rand": "lost when reset to fresh weights"}
    lines = [
        "| layer | mass | biased | " + " | ".join(f"{heads[row]} (%) | critical" for row in rows) + " |",
        "| --- | --- | --: |" + " --- | --: |" * len(rows),
    ]
    for index, name in enumerate(runs[0]["layers"]):
        layers = [run["projections"][name] for run in runs]
        mass = "{:.2f} ± {:.2f}".format(*mean_and_spread([layer["mass"] for layer in layers]))
        cells = [mass, f"{sum(map(is_biased, layers))}/{len(runs)}"]
        for row in rows:
            drops = [run["relative_drop"][row][index] for run in runs]
            cells.append("{:.0f} ± {:.0f}".format(*mean_and_spread([100 * drop for drop in drops])))
            cells.append(f"{sum(reinit.critical(drops))}/{len(runs)}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def network_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """How many layers of several networks are biased, and how strongly, in Markdown.

    Args:
        results: architecture -> results of compute_projections.py.
    """
    lines = [
        "| network | layers | filters | zero filters | biased layers | mean bias | chance | mass of all filters |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for arch, content in results.items():
        layers, net = layers_of(content), content["net"]
        biased = sum(map(is_biased, layers.values()))
        live = {
            name: without_zeros(layer)
            for name, layer in layers.items()
            if layer["filters"] > layer["zero_filters"]
        }
        chance = statistics.fmean(expected_bias(layer["filters"]) for layer in live.values())
        lines.append(
            f"| {arch} | {len(layers)} | {net['filters']:,} | {net['zero_filters']:,} | {biased} "
            f"({100 * biased / len(layers):.0f} %) | {bias(live):.3f} | {chance:.3f} | {net['mass']:.3f} |"
        )
    return "\n".join(lines)


def mean_of_runs(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Results of reinit_layers.py averaged over runs, as far as the heat map needs them."""
    first = results[0]
    drops = {
        row: [
            statistics.fmean(of_layer)
            for of_layer in zip(*(one["relative_drop"][row] for one in results), strict=True)
        ]
        for row in first["relative_drop"]
    }
    top1 = statistics.fmean(one["top1_test"] for one in results)
    return {"layers": first["layers"], "relative_drop": drops, "top1_test": top1}


def made_by(provenances: Sequence[Mapping[str, Any]]) -> str:
    """On what device and with which versions something was made, in a line; differing ones one after the other."""
    keys = {
        "device": "",
        "python": "Python ",
        "torch": "PyTorch ",
        "torchvision": "torchvision ",
        "commit": "commit ",
    }
    parts = []
    for key, word in keys.items():
        values = {str(provenance.get(key, "not recorded")) for provenance in provenances}
        parts.append(word + " / ".join(sorted(values)))
    return ", ".join(parts)
