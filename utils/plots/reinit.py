"""The figures of reinit_layers.py: the accuracy lost when a layer is reset, and how it depends on bias."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from utils import reinit
from utils.plots import style

NUMBER_SIZE_PT = (9, 7)  #: width and height of the number at a point


@style.apply()
def accuracy_loss(results: Mapping[str, Any], title: str) -> Figure:
    """Draw the relative accuracy loss as a heat map: one row per initialization, one column per layer.

    More than MOST_PANELS layers are rows, and the initializations are columns.

    results: of reinit_layers.py, with `layers`, `relative_drop` and `top1_test`.
    """
    names, drops = style.shorten(results["layers"]), results["relative_drop"]
    values = np.array(list(drops.values()), dtype=float) * 100  # None becomes NaN, which is not drawn
    rows = ["fresh random" if row == "rand" else row.replace("_", " ") for row in drops]
    columns, axis_labels = names, {"xlabel": "layer that is reset", "ylabel": "reset to epoch"}
    if len(names) > style.MOST_PANELS:
        rows, columns, values = [f"{depth} {name}" for depth, name in enumerate(names, 1)], rows, values.T
        axis_labels = {"xlabel": "reset to epoch", "ylabel": "layer that is reset"}
    title = f"{title}:\naccuracy lost (trained: {results['top1_test']:.2f} %)"
    label = "relative loss of\ntop-1 accuracy (%)"
    figure, axes, cell = style.heat_map(values, rows, columns, title, label, cmap="magma_r", vmin=0, vmax=100)
    size = min(9, cell[0] / 2.2, 0.7 * cell[1])
    if size >= 5:  # else there is no room for a number in each cell
        for (row, column), value in np.ndenumerate(values):
            text = "" if math.isnan(value) else str(round(value))
            color = "white" if value > 40 else "black"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=size)
    axes.set(**axis_labels)
    return figure


@style.apply()
def bias_and_criticality(results: Mapping[str, Any], title: str) -> Figure:
    """Draw the accuracy lost when a layer is reset to its initialization against its mass, with their correlation.

    If no layer was reset to its initialization, the last row of `corrected_drop` is drawn instead.
    results: of reinit_layers.py.
    """
    initialization = reinit.initialization_row(results["corrected_drop"])
    row = initialization or list(results["corrected_drop"])[-1]
    sources = {"0": "its initialization", "-1": "the model zoo's weights", "rand": "fresh random weights"}
    losses = dict(zip(results["layers"], results["corrected_drop"][row], strict=True))  # None: not defined
    names = {depth: name for depth, (name, loss) in enumerate(losses.items(), 1) if loss is not None}
    mass = np.array([results["projections"][name]["mass"] for name in names.values()])
    drops = np.array([100 * losses[name] for name in names.values()])
    hidden = [name in results["hidden_layers"] for name in names.values()]
    title, reset_to = f"{title}: bias and criticality", sources.get(row, f"epoch {row}")
    figure, axes = criticality_axes(title, drops, reset_to)
    number_points(axes, mass, drops, names, hidden)
    text = "not defined" if initialization else "only for layers reset to their initialization"
    found = results["correlation"].get("mass", {"spearman": None})
    if found["spearman"] is not None:
        coins = found["fair_coins"]
        text = (
            f"{found['spearman']:+.2f} (p = {found['p_value']:.2g}, {sum(hidden)} hidden layers)\n"
            f"with fair coins instead: {coins['low']:+.2f} to {coins['high']:+.2f} in 95 % of draws"
        )
    axes.set_title(f"Spearman's rank correlation: {text}")
    return figure


def criticality_axes(title: str, drops: np.ndarray, reset_to: str) -> tuple[Figure, Axes]:
    """Return a figure of the accuracy lost (in percent, of what is beyond chance) against mass."""
    figure = style.new_figure(8, 5.2, title)
    axes = figure.subplots()
    axes.axhspan(100 * reinit.CRITICAL, 200, color=style.CHANCE, alpha=0.5, linewidth=0)
    axes.axvline(0.5, color="black", linewidth=0.6)
    axes.set(xlim=(0, 1), ylim=(drops.min(initial=0) - 4, drops.max(initial=100) + 4))
    axes.set_xlabel("mass (share of filters with projection ≤ 0)\nhollow: input and output layer; grey: critical")
    axes.set_ylabel(f"accuracy beyond chance that is lost,\nlayer reset to {reset_to} (%)")
    return figure, axes


def number_points(
    axes: Axes, xs: Sequence[float], ys: Sequence[float], names: Mapping[int, str], hidden: Sequence[bool]
) -> np.ndarray:
    """Draw a point for each layer, coloured by its depth, with its depth as a number, and a legend on the right.

    Each number is at the nearest place in the axes where it hides neither a point nor another number. Of more than
    MOST_PANELS layers only so many have a number, those of the greatest y, and a colour bar replaces the legend.

    The axes have their final limits. xs, ys: the point of each layer, in network order. names: depth, which begins
    with 1 -> name of the layer. hidden: whether it is a hidden layer; the points of others are hollow. Returns the
    colours of the layers, (N, 4).
    """
    depths = np.array(list(names))
    colors = style.DEPTH((depths - 1) / max(1, depths.max(initial=1) - 1))
    faces = [color if one else "white" for color, one in zip(colors, hidden, strict=True)]
    axes.scatter(xs, ys, s=25, c=faces, edgecolors=colors, zorder=3, clip_on=False)
    # The size of the axes in points is an estimate: the layout is computed when the figure is drawn.
    size = np.array([5 * 72, 0.8 * 72 * axes.figure.get_size_inches()[1]])
    scale = size / [np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())]
    taken = np.column_stack([xs, ys]) * scale
    lowest, highest = np.transpose([axes.get_xlim(), axes.get_ylim()]) * scale
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    directions = np.column_stack([np.cos(angles), np.sin(angles)])
    shifts = np.concatenate([distance * directions for distance in range(8, 800, 2)])
    label = {"ha": "center", "va": "center", "fontsize": 7, "annotation_clip": False, "zorder": 2.5}
    label["arrowprops"] = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0}
    label["textcoords"] = "offset points"
    few = len(names) <= style.MOST_PANELS
    for index in range(len(names)) if few else np.argsort(-np.asarray(ys), kind="stable")[: style.MOST_PANELS]:
        places = taken[index] + shifts
        free = (np.abs(places[:, None] - taken) > NUMBER_SIZE_PT).any(2).all(1)
        free &= ((places > lowest + 4) & (places < highest - 4)).all(1)
        nearest = free.argmax()
        taken = np.vstack([taken, places[nearest]])
        axes.annotate(str(depths[index]), (xs[index], ys[index]), shifts[nearest], **label)
    if not few:
        style.depth_bar(axes.figure, axes, depths.max())
    elif names:
        handles = [Line2D([], [], marker="o", linestyle="", markersize=7, color=color) for color in colors]
        labels = [f"{depth} {name}" for depth, name in zip(names, style.shorten(names.values()), strict=True)]
        legend = {"loc": "outside right center", "fontsize": 9, "handletextpad": 0.1}
        axes.figure.legend(handles, labels, title="layer", **legend)
    return colors
