"""The figures of several runs or networks together, in the style of the programs' figures."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.published_networks import KINDS, NETWORKS, by_kind
from utils import projections, reinit
from utils.plots import style
from utils.plots.projections import quantity
from utils.plots.reinit import criticality_axes, number_points
from utils.results import layers_of

GROUP_COLORS = ("#c8553d", "#3d7ea6", "#5a9367", "#8a5a9e", "#c9a227", "#444444")  #: a seventh group has the first


@style.apply()
def compare_runs(
    groups: Mapping[str, Sequence[Mapping[int, style.Layers]]], statistic: str, title: str
) -> style.Figure:
    """Draw the mass or mean of each layer against epoch for groups of runs: the mean over seeds, and the spread.

    Args:
        groups: label -> its runs; each run: epochs trained -> layers, with `mass`, `mean` and `filters`.
        statistic: "mass" or "mean" (of normalized projections).
        title: names the network.
    """
    is_mass = statistic == "mass"
    first = next(iter(groups.values()))[0]
    layers = first[max(first)]
    colors = dict(zip(groups, itertools.cycle(GROUP_COLORS), strict=False))
    figure, panels = style.panel_per_layer(
        layers, f"{title}: {statistic} of each layer", share_x=True, share_y=is_mass
    )
    for axes, (name, layer) in zip(panels, layers.items(), strict=True):
        if is_mass:
            axes.axhspan(*projections.chance_of_mass(layer["filters"]), color=style.CHANCE, linewidth=0)
        axes.axhline(0.5 if is_mass else 0, color="black", linewidth=0.6)
        for label, runs in groups.items():
            epochs = sorted(set.intersection(*(set(run) for run in runs)))
            values = np.array([[run[epoch][name][statistic] for epoch in epochs] for run in runs])
            mean, spread = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else 0
            if len(groups) == 1:
                axes.plot(epochs, values.T, color=colors[label], linewidth=0.6, alpha=0.45)
            else:
                band = {"color": colors[label], "alpha": 0.12, "linewidth": 0}
                axes.fill_between(epochs, mean - spread, mean + spread, **band)
            axes.plot(epochs, mean, "o-", color=colors[label], clip_on=False)
        if is_mass:
            axes.set(ylim=(0, 1), yticks=[0, 0.5, 1])
        style.label_epochs(axes)
    figure.supylabel("mass (share of filters)" if is_mass else f"mean {quantity(True)}")
    numbers = sorted({len(runs) for runs in groups.values()})
    seeds = " to ".join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))
    spread = "thin: each" if len(groups) == 1 else "band: one standard deviation"
    chance = {"chance (95 %)": style.CHANCE} if is_mass else {}
    style.label_below(figure, f"training (epochs); line: mean of {seeds} seeds, {spread}", {**colors, **chance})
    return figure


@style.apply()
def bias_and_criticality_of_runs(
    results: Sequence[Mapping[str, Any]], title: str, correlations: str
) -> style.Figure:
    """Draw the accuracy lost at initialization against mass: a small point per run, a large one per mean.

    Args:
        results: of reinit_layers.py, for several runs of one architecture.
        title: names the network.
        correlations: what to say about the correlation of the two.
    """
    row = reinit.initialization_row(results[0]["corrected_drop"])
    names = results[0]["layers"]
    mass = np.array([[one["projections"][name]["mass"] for name in names] for one in results])
    drops = 100 * np.array([one["corrected_drop"][row] for one in results])
    legend = "large: mean, small: each seed"
    title = f"{title}: bias and criticality, {len(results)} seeds\n({legend})"
    figure, axes = criticality_axes(title, drops, "its initialization")
    hidden = [name in results[0]["hidden_layers"] for name in names]
    colors = number_points(axes, mass.mean(0), drops.mean(0), dict(enumerate(names, 1)), hidden)
    for layer, color in enumerate(colors):
        axes.scatter(mass[:, layer], drops[:, layer], s=8, color=color, alpha=0.7, linewidth=0, clip_on=False)
    axes.set_title(correlations)
    return figure


@style.apply()
def masses_of_networks(results: Mapping[str, Mapping[str, Any]], title: str) -> style.Figure:
    """Draw the mass of every layer of several networks: one row per network, one point per layer.

    Args:
        results: architecture -> results of compute_projections.py.
        title: names the group of networks.
    """
    figure = style.new_figure(8, 1.6 + 0.28 * len(results), f"{title}: mass of each layer")
    axes = figure.subplots()
    axes.axvline(0.5, color="black", linewidth=0.8)
    for row, content in enumerate(results.values()):
        masses = [layer["mass"] for layer in layers_of(content).values()]
        depth = {"c": np.linspace(0, 1, len(masses)), "cmap": "viridis", "vmin": 0, "vmax": 1}
        points = axes.scatter(masses, [row] * len(masses), s=22, alpha=0.8, **depth)
    axes.set_yticks(range(len(results)), results)
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("mass of a layer (share of filters with projection ≤ 0)")
    figure.colorbar(points, label="depth (0: first, 1: last)")
    return figure


@style.apply()
def masses_by_depth(results: Mapping[str, Mapping[str, Any]], title: str) -> style.Figure:
    """Draw the mass of each layer of the published networks against its depth: a panel per network.

    Args:
        results: as in NETWORKS -> results of compute_projections.py.
        title: names the group of networks.
    """
    colors = dict(zip(KINDS, ("black", *GROUP_COLORS), strict=False))
    columns = min(3, len(results))
    rows = math.ceil(len(results) / columns)
    figure = style.new_figure(3.4 * columns, 1.4 + 2 * rows, f"{title}: mass of each layer")
    for axes, (stem, content) in zip(
        figure.subplots(rows, columns, squeeze=False).flat, results.items(), strict=False
    ):
        network, layers = NETWORKS[stem], layers_of(content)
        for depth, layer in enumerate(layers.values(), 1):
            low, high = projections.chance_of_mass(layer["filters"])
            axes.bar(depth, high - low, 1, low, color=style.CHANCE, linewidth=0)
        axes.axhline(0.5, color="black", linewidth=0.6)
        for kind, of_kind in by_kind(layers).items():
            masses = [layer["mass"] for layer in of_kind.values()]
            axes.plot([*of_kind], masses, "o-", color=colors[kind], linewidth=1, clip_on=False)
        axes.set(ylim=(0, 1), yticks=[0, 0.5, 1], xlim=(0.5, len(layers) + 0.5))
        axes.set_title(network.name + (", batch norm folded" if network.folded else ""))
        style.label_epochs(axes)
    figure.supylabel("mass (share of filters)")
    style.label_below(figure, "depth of the layer (1: first)", {**colors, "chance (95 %)": style.CHANCE})
    return figure
