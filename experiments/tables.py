"""The tables of the findings, in Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.over_seeds import (
    bootstrap_interval,
    correlation_interval,
    correlations,
    expected_bias,
    fair_coins,
    initial_drops,
    is_biased,
    mean_bias,
    mean_interval,
    p_of_mean,
    with_spread,
    without_zeros,
)
from experiments.reading import Run
from utils import reinit
from utils.results import layers_of


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
            mass = with_spread([one["mass"] for one in of_seeds], ".2f")
            projection = statistics.fmean(one["mean"] for one in of_seeds)
            biased = sum(map(is_biased, of_seeds))
            cells.append(f"{mass}, {projection:+.3f}, {biased}/{len(runs)}")
        lines.append(
            f"| {name} | {layer['filters']} | {expected_bias(layer['filters']):.2f} | {' | '.join(cells)} |"
        )
    layers = next(iter(groups.values()))[0].epochs[epoch].values()
    chance = statistics.fmean(expected_bias(layer["filters"]) for layer in layers)
    for when in sorted({0, 1, epoch}):
        if any(when not in run.epochs for runs in groups.values() for run in runs):
            continue
        label = f"after {when} epoch{'s' if when > 1 else ''}" if when else "at initialization"
        cells = [with_spread([mean_bias(run.epochs[when]) for run in runs], ".3f") for runs in groups.values()]
        lines.append(f"| **mean bias** \\|mass - 1/2\\| {label} | | {chance:.3f} | {' | '.join(cells)} |")
    first, *others = groups.values()
    seeds = [[run.seed for run in runs] for runs in groups.values()]
    if others and all(of_group == seeds[0] for of_group in seeds):
        cells = []
        for runs in others:
            pairs = zip(runs, first, strict=True)
            differences = [mean_bias(run.epochs[epoch]) - mean_bias(other.epochs[epoch]) for run, other in pairs]
            lower = sum(difference < 0 for difference in differences)
            interval = mean_interval(differences)
            between = "" if interval is None else f" ({interval.low:+.3f} to {interval.high:+.3f})"
            p_value = p_of_mean(differences)
            told = "" if p_value is None else f", p = {p_value:.2g}"
            cells.append(f"{statistics.fmean(differences):+.3f}{between}{told}, lower in {lower}/{len(runs)}")
        lines.append(
            f"| less that of {next(iter(groups))}, seed by seed (95 % interval) | | | | {' | '.join(cells)} |"
        )
    for label, key in (
        ("accuracy (%)** on the test set, or the validation split where there is one", "accuracy"),
        ("accuracy (%)** on the training batches, while they were trained on", "accuracy_trained_on"),
    ):
        values = [[getattr(run, key) for run in runs] for runs in groups.values()]
        if all(None not in of_seeds for of_seeds in values):
            cells = [with_spread(of_seeds, ".2f") for of_seeds in values]
            lines.append(f"| **{label} | | | {' | '.join(cells)} |")
    return "\n".join(lines)


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
        mass = with_spread([layer["mass"] for layer in layers], ".2f")
        cells = [mass, f"{sum(map(is_biased, layers))}/{len(runs)}"]
        for row in rows:
            drops = [run["relative_drop"][row][index] for run in runs]
            cells.append(with_spread([100 * drop for drop in drops], ".0f"))
            cells.append(f"{sum(reinit.critical(drops))}/{len(runs)}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


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
        between = ""
        if len(defined) > 1:
            interval, bootstrap = correlation_interval(defined), bootstrap_interval(defined)
            between = f", 95 % interval {interval.low:+.2f} to {interval.high:+.2f}"
            between += f", by bootstrap {bootstrap.low:+.2f} to {bootstrap.high:+.2f}"
        lines.append(f"| **mean** | | **{statistics.fmean(defined):+.2f}**{between} | | |")
        coins = fair_coins(results)
        lines.append(
            "| of fair coins | | {mean:+.2f}, 95 % of draws {low:+.2f} to {high:+.2f} | | |".format(**coins)
        )
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
        means = "- | -"
        if live:
            chance = statistics.fmean(expected_bias(layer["filters"]) for layer in live.values())
            means = f"{mean_bias(live):.3f} | {chance:.3f}"
        lines.append(
            f"| {arch} | {len(layers)} | {net['filters']:,} | {net['zero_filters']:,} | {biased} "
            f"({100 * biased / len(layers):.0f} %) | {means} | {net['mass']:.3f} |"
        )
    return "\n".join(lines)


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
