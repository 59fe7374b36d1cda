"""The tables of the findings, in Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.over_seeds import (
    biased_by_chance,
    expected_bias,
    is_biased,
    mean_bias,
    mean_interval,
    p_of_mean,
    with_spread,
    without_zeros,
)
from experiments.published_networks import KINDS, NETWORKS, by_kind
from experiments.reading import Run
from utils.results import layers_of

Results = Mapping[str, Mapping[str, Any]]  #: label of a run, or architecture -> results of a program


def markdown(columns: Sequence[str], alignment: str, rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown. alignment: one letter per column, "l" (left) or "r" (right)."""
    rules = [{"l": "---", "r": "--:"}[letter] for letter in alignment]
    lines = [columns, rules, *rows]
    return "\n".join("".join(f"| {cell} " if cell else "| " for cell in cells) + "|" for cells in lines)


def bias_table(groups: Mapping[str, Sequence[Run]], epoch: int) -> str:
    """Return how biased the layers of groups of runs are after training.

    Args:
        groups: label -> its runs, one per seed; all of one architecture.
        epoch: epochs trained.
    """
    layers = next(iter(groups.values()))[0].epochs[epoch]
    rows = []
    for name, layer in layers.items():
        cells = []
        for runs in groups.values():
            of_seeds = [run.epochs[epoch][name] for run in runs]
            mass = with_spread([one["mass"] for one in of_seeds], ".2f")
            mean = statistics.fmean(one["mean"] for one in of_seeds)
            cells.append(f"{mass}, {mean:+.3f}, {sum(map(is_biased, of_seeds))}/{len(runs)}")
        rows.append([name, str(layer["filters"]), f"{expected_bias(layer['filters']):.2f}", *cells])

    chance = statistics.fmean(expected_bias(layer["filters"]) for layer in layers.values())
    for when in sorted({0, 1, epoch}):
        if all(when in run.epochs for runs in groups.values() for run in runs):
            label = f"after {when} epoch{'s' if when > 1 else ''}" if when else "at initialization"
            biases = [[mean_bias(run.epochs[when]) for run in runs] for runs in groups.values()]
            cells = [with_spread(of_seeds, ".3f") for of_seeds in biases]
            rows.append([rf"**mean bias** \|mass - 1/2\| {label}", "", f"{chance:.3f}", *cells])

    first, *others = groups.values()
    if others and all([run.seed for run in runs] == [run.seed for run in first] for runs in others):
        cells = [_difference(runs, first, epoch) for runs in others]
        rows.append([f"less that of {next(iter(groups))}, seed by seed (95 % interval)", "", "", "", *cells])

    for label, key in (
        ("on the test set, or the validation split where there is one", "accuracy"),
        ("on the training batches, while they were trained on", "accuracy_trained_on"),
    ):
        values = [[getattr(run, key) for run in runs] for runs in groups.values()]
        if all(None not in of_seeds for of_seeds in values):
            cells = [with_spread(of_seeds, ".2f") for of_seeds in values]
            rows.append([f"**accuracy (%)** {label}", "", "", *cells])
    return markdown(["layer", "filters", "chance", *groups], "lrr" + "l" * len(groups), rows)


def _difference(runs: Sequence[Run], others: Sequence[Run], epoch: int) -> str:
    """Return the mean difference in bias from other runs of the same seeds, with its interval and p-value."""
    pairs = zip(runs, others, strict=True)
    differences = [mean_bias(run.epochs[epoch]) - mean_bias(other.epochs[epoch]) for run, other in pairs]
    interval, p_value = mean_interval(differences), p_of_mean(differences)
    text = f"{statistics.fmean(differences):+.3f}"
    text += "" if interval is None else f" ({interval.low:+.3f} to {interval.high:+.3f})"
    text += "" if p_value is None else f", p = {p_value:.2g}"
    return f"{text}, lower in {sum(difference < 0 for difference in differences)}/{len(runs)}"


def network_table(results: Results) -> str:
    """Return how many layers of several networks are biased, and how strongly."""
    rows = []
    for arch, content in results.items():
        layers, net = layers_of(content), content["net"]
        biased = sum(map(is_biased, layers.values()))
        live = {
            name: without_zeros(layer)
            for name, layer in layers.items()
            if layer["filters"] > layer["zero_filters"]
        }
        means = ["-", "-"]
        if live:
            chance = statistics.fmean(expected_bias(layer["filters"]) for layer in live.values())
            means = [f"{mean_bias(live):.3f}", f"{chance:.3f}"]
        counts = [str(len(layers)), f"{net['filters']:,}", f"{net['zero_filters']:,}"]
        rows.append(
            [arch, *counts, f"{biased} ({100 * biased / len(layers):.0f} %)", *means, f"{net['mass']:.3f}"]
        )
    columns = ["network", "layers", "filters", "zero filters", "biased layers", "mean bias", "chance"]
    return markdown([*columns, "mass of all filters"], "lrrrrrrr", rows)


def package_table() -> str:
    """Return where the published networks come from."""
    rows = []
    for network in NETWORKS.values():
        filters = "batch norm folded" if network.folded else "as trained"
        rows.append([network.name, network.package.replace("==", " "), network.licence, network.weights, filters])
    return markdown(["network", "package", "licence", "weights", "filters"], "lllll", rows)


def published_table(results: Results) -> str:
    """Return how many layers of the published networks are biased, for each kind of layer.

    Args:
        results: as in NETWORKS -> results of compute_projections.py. Those with folded filters are added up apart.
    """
    rows = []
    for folded in (False, True):
        of_group: dict[str, list[Mapping[str, Any]]] = {kind: [] for kind in KINDS}
        for stem, network in NETWORKS.items():
            if network.folded == folded:
                for kind, layers in by_kind(layers_of(results[stem])).items():
                    rows.append([network.name, kind, *_biased_layers(list(layers.values()))])
                    of_group[kind] += layers.values()
        group = f"**all, {'batch norm folded' if folded else 'as trained'}**"
        rows += [[group, kind, *_biased_layers(layers)] for kind, layers in of_group.items() if layers]
    columns = ["network", "layers", "number", "filters", "biased, mass > 1/2", "biased, mass < 1/2", "by chance"]
    return markdown([*columns, "mass of all filters", "mass of each layer"], "llrrrrrrl", rows)


def _biased_layers(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the cells of `published_table` for layers of one kind."""
    biased = [layer["mass"] > 0.5 for layer in layers if is_biased(layer)]
    chance = sum(biased_by_chance(layer["filters"] - layer["zero_filters"]) for layer in layers)
    filters, masses = sum(layer["filters"] for layer in layers), [layer["mass"] for layer in layers]
    mass = sum(layer["filters"] * layer["mass"] for layer in layers) / filters
    counts = [str(len(layers)), f"{filters:,}", str(sum(biased)), str(len(biased) - sum(biased))]
    spread = f"{min(masses):.3f} to {max(masses):.3f}" if len(masses) > 1 else f"{masses[0]:.3f}"
    return [*counts, f"{chance:.1f}", f"{mass:.3f}", spread]


def made_by(provenances: Sequence[Mapping[str, Any]]) -> str:
    """Return the devices and versions that results were made with, in one line."""
    words = {
        "device": "",
        "python": "Python ",
        "torch": "PyTorch ",
        "torchvision": "torchvision ",
        "commit": "commit ",
    }
    parts = []
    for key, word in words.items():
        values = {str(provenance.get(key, "not recorded")) for provenance in provenances}
        parts.append(word + " / ".join(sorted(values)))
    return ", ".join(parts)
