"""The figures of compute_projections.py: projections, mass, mean and distance of each layer."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from utils import projections
from utils.plots import style

ROWS = "layer (number of filters)"
CHANCE_OF_MASS = "chance (95 % of fair coins give no larger bias)"
CHANCE_OF_MEAN = "chance: 95 %, if signs are fair coins"


@style.apply()
def distributions(layers: style.Layers, normalized: bool, title: str) -> Figure:
    """Draw the histogram of the projections of each layer, and its mass. Many layers are rows of a heat map.

    layers: name -> statistics with `projections`, `mass` and `filters`. normalized: the projections are cosines.
    """
    if len(layers) > style.MOST_PANELS:
        return _distributions_in_rows(layers, normalized, title)
    figure, panels = style.panel_per_layer(layers, title)
    for axes, layer in zip(panels, layers.values(), strict=True):
        half = min(20, max(5, round(math.sqrt(layer["filters"]))))
        edges, non_positive, positive = _histogram(layer["projections"], half)
        axes.stairs(non_positive, edges[: half + 1], fill=True, color=style.NON_POSITIVE)
        axes.stairs(positive, edges[half:], fill=True, color=style.POSITIVE)
        axes.axvline(0, color="black", linewidth=0.8)
        place = {"transform": axes.transAxes, "va": "top"}
        axes.text(0.03, 0.95, f"mass {layer['mass']:.2f}", color=style.NON_POSITIVE, weight="bold", **place)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.25)
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(4, symmetric=True, steps=[1, 2, 5, 10]))
    figure.supylabel("number of filters")
    colors = {"≤ 0 (their share is the mass)": style.NON_POSITIVE, "> 0": style.POSITIVE}
    style.label_below(figure, quantity(normalized), colors)
    return figure


def _histogram(projections: list[float], half: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the edges of `half` bins on each side of 0, the filters in each bin <= 0, and those in each > 0."""
    values = np.asarray(projections)
    limit = np.abs(values).max() * 1.001 or 1.0
    edges = np.linspace(-limit, limit, 2 * half + 1)
    edges[half] = 0.0
    counts = np.histogram(-values, edges)[0][::-1]  # so that a projection of 0 counts on the left
    return edges, counts[:half], counts[half:]


def _distributions_in_rows(layers: style.Layers, normalized: bool, title: str) -> Figure:
    """Draw the histograms of many layers: a row a layer, each from its largest projection on both sides."""
    halves = [_histogram(layer["projections"], 15)[1:] for layer in layers.values()]
    filters = np.array([layer["filters"] for layer in layers.values()])
    shares = 100 * np.array([[*non_positive, *-positive] for non_positive, positive in halves]) / filters[:, None]
    colors = {"cmap": "RdBu_r", "vmin": -np.abs(shares).max(), "vmax": np.abs(shares).max()}
    label = "filters of the layer in a bin (%)\nred: projection ≤ 0, blue: > 0"
    figure, axes, _ = style.heat_map(shares, style.name_layers(layers), [""] * 30, title, label, 0.2, **colors)
    axes.axvline(14.5, color="black", linewidth=0.8)
    axes.set_xticks([-0.5, 7, 14.5, 22, 29.5], ["-1", "-0.5", "0", "0.5", "1"])
    axes.set(xlabel=f"{quantity(normalized)},\ndivided by the largest of the layer", ylabel=ROWS)
    figure.axes[-1].yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    return figure


@style.apply()
def profile(layers: style.Layers, title: str) -> Figure:
    """Draw the mass of each layer by depth, a row a layer, with the band that holds 95 % or more of fair coins.

    layers: name -> statistics with `mass` and `filters`.
    """
    figure = style.new_figure(8, max(3, 2.2 + 0.24 * len(layers)), f"{title}: mass of each layer")
    axes, rows = figure.subplots(), range(len(layers))
    low, high = np.array([projections.chance_of_mass(layer["filters"]) for layer in layers.values()]).T
    axes.barh(rows, high - low, left=low, height=1, color=style.CHANCE, linewidth=0)
    axes.axvline(0.5, color="black", linewidth=0.6)
    masses = [layer["mass"] for layer in layers.values()]
    axes.plot(masses, rows, "o-", color=style.NON_POSITIVE, linewidth=0.8, clip_on=False, zorder=3)
    style.label_rows(axes, style.name_layers(layers))
    axes.set(xlim=(0, 1), ylabel=ROWS)
    colors = {"mass": style.NON_POSITIVE, CHANCE_OF_MASS: style.CHANCE}
    style.label_below(figure, "mass (share of filters with projection ≤ 0)", colors)
    return figure


@style.apply()
def by_epoch(
    points: style.Points, statistic: str, title: str, normalized: bool = False, as_map: bool = False
) -> Figure:
    """Draw the mass or the mean projection of each layer against epoch, with the band of 95 % of fair coins.

    points: layers have `filters` and `mass`, or `mean` and `std`.
    statistic: "mass" (its band may hold more than 95 %) or "mean". normalized: the projections are cosines.
    as_map: draw a heat map, as for many layers: layer by epoch, with a dot where the statistic is in its band.
    """
    epochs, positions, when = style.along_training(points)
    layers, is_mass = points[epochs[-1]], statistic == "mass"
    chance = CHANCE_OF_MASS if is_mass else CHANCE_OF_MEAN
    label = "mass (share of filters\nwith projection ≤ 0)" if is_mass else f"mean {quantity(normalized)}"
    title = f"{title}: {statistic} of each layer"
    values = np.array([[points[epoch][name][statistic] for epoch in epochs] for name in layers])
    bands = np.array([[_band(points[epoch][name], statistic) for epoch in epochs] for name in layers])
    if as_map or len(layers) > style.MOST_PANELS:
        limit = np.abs(values).max() or 1.0  # red is for projections <= 0, as NON_POSITIVE is
        colors = {"cmap": "RdBu", "vmin": -limit, "vmax": limit}
        if is_mass:
            colors = {"cmap": "RdBu_r", "vmin": 0, "vmax": 1}
        rows, columns = style.name_layers(layers), style.shorten(map(str, epochs))
        figure, axes, cell = style.heat_map(values, rows, columns, title, label, 0.4, **colors)
        rows, columns = np.nonzero((bands[..., 0] - 1e-9 <= values) & (values <= bands[..., 1] + 1e-9))
        dot = {"marker": "o", "color": "#333333", "linewidth": 0}
        axes.scatter(columns, rows, s=min(4, 0.3 * cell.min()) ** 2, **dot)
        axes.set(xlabel=when, ylabel=ROWS)
        handle = Line2D([], [], markersize=4, label=f"within {chance}", **dot)
        figure.legend(handles=[handle], loc="outside lower center")
        return figure
    figure, panels = style.panel_per_layer(layers, title, share_x=True, share_y=is_mass)
    color = style.NON_POSITIVE if is_mass else style.POSITIVE
    for axes, of_layer, of_band in zip(panels, values, bands, strict=True):
        axes.fill_between(positions, *of_band.T, color=style.CHANCE, linewidth=0)
        axes.plot(positions, of_layer, "o-", color=color, clip_on=False, zorder=3)
        if is_mass:
            axes.set(ylim=(0, 1), yticks=[0, 0.5, 1])
        else:
            axes.axhline(0, color="black", linewidth=0.6)
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        style.label_epochs(axes, epochs)
    figure.supylabel(label)
    style.label_below(figure, when, {statistic: color, chance: style.CHANCE})
    return figure


def _band(layer: Mapping[str, Any], statistic: str) -> tuple[float, float]:
    """Return the band of the mass or the mean of a layer whose signs are fair coins."""
    if statistic == "mass":
        return projections.chance_of_mass(layer["filters"])
    limit = projections.chance_of_mean(layer["mean"], layer["std"], layer["filters"])
    return -limit, limit


@style.apply()
def distance_by_epoch(points: style.Points, title: str) -> Figure:
    """Draw the relative distance of each layer from its initialization against epoch.

    points: layers have `l2_dist` and `l_inf_dist`; None: undefined.
    """
    epochs, positions, when = style.along_training(points)
    names = list(points[epochs[-1]])
    few = len(names) <= style.MOST_PANELS
    colors = style.DEPTH(np.linspace(0, 1, len(names)))
    height = max(4.2, 0.27 * len(names)) if few else 5
    figure = style.new_figure(10, height, f"{title}: distance from initialization")
    panels = figure.subplots(1, 2)
    for axes, kind, norm in zip(panels, ("l2_dist", "l_inf_dist"), ("2", r"\infty"), strict=True):
        # None becomes NaN, which is not drawn.
        values = np.array([[points[epoch][name][kind] for epoch in epochs] for name in names], dtype=float)
        of_layers = zip(style.shorten(names), values, colors, itertools.cycle("osv^D"), strict=False)
        for name, of_layer, color, marker in of_layers:
            axes.plot(positions, of_layer, color=color, marker=marker, label=name, clip_on=False, zorder=3)
        axes.set_xlabel(when)
        axes.set_ylabel(rf"relative distance $\|W - W_0\|_{norm}\;/\;\|W_0\|_{norm}$", parse_math=True)
        axes.set_ylim(bottom=0)
        style.label_epochs(axes, epochs, 6)
    if few:
        legend = {"loc": "outside right center", "title": "layer", "fontsize": 9}
        figure.legend(*axes.get_legend_handles_labels(), **legend)
    else:
        style.depth_bar(figure, panels, len(names))
    return figure


def quantity(normalized: bool) -> str:
    """Return the name of the projection and its unit, for an axis."""
    return f"projection ({'cosine' if normalized else 'sum of weights'}, dimensionless)"
