"""The figures of reinit_layers.py: the accuracy lost when a layer is reset, and how it depends on bias."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from utils import correlation, reinit
from utils.plots import style

MOST_ROWS = 40  #: of a heat map with a number in each cell and a label at each row
NAMES_PER_COLUMN = 40  #: of the legend of layers
NUMBER_SIZE_PT = (9, 7)  #: width and height of the number at a point


@style.apply()
def accuracy_loss(results: Mapping[str, Any], title: str) -> Figure:
    """Draw the relative accuracy loss as a heat map: one row per initialization, one column per layer.

    results: of reinit_layers.py, with `layers`, `relative_drop` and `top1_test`.
    """
    names, drops = results["layers"], results["relative_drop"]
    values = np.array(list(drops.values()), dtype=float)  # None becomes NaN, which is not drawn
    figure = Figure(figsize=(2.6 + 0.62 * len(names), max(3.6, 2.1 + 0.36 * len(drops))), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values * 100, cmap="magma_r", vmin=0, vmax=100, aspect="auto")
    axes.grid(visible=False)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    labels = ["fresh random" if row == "rand" else row for row in drops]
    shown = range(0, len(labels), math.ceil(len(labels) / MOST_ROWS))
    axes.set_yticks(shown, [labels[index] for index in shown])
    axes.set_xlabel("layer that is reset")
    axes.set_ylabel("reset to epoch")
    if len(labels) <= MOST_ROWS:
        for (row, column), value in np.ndenumerate(values):
            text = "" if math.isnan(value) else str(round(100 * value))
            color = "white" if value > 0.4 else "black"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
    figure.suptitle(f"{title}:\naccuracy lost (trained: {results['top1_test']:.2f} %)")
    figure.colorbar(image, label="relative loss of\ntop-1 accuracy (%)")
    return figure


@style.apply()
def bias_and_criticality(results: Mapping[str, Any], title: str) -> Figure:
    """Draw the accuracy lost when a layer is reset to its initialization against its bias, with their correlation.

    If no layer was reset to its initialization, the last row of `relative_drop` is drawn instead.
    results: of reinit_layers.py.
    """
    initialization = reinit.initialization_row(results["relative_drop"])
    row = initialization or list(results["relative_drop"])[-1]
    sources = {"0": "its initialization", "-1": "the model zoo's weights", "rand": "fresh random weights"}
    losses = dict(zip(results["layers"], results["relative_drop"][row], strict=True))
    names = [name for name, loss in losses.items() if loss is not None]  # None: the loss is not defined
    bias = correlation.bias([results["projections"][name]["mass"] for name in names])
    drops = [100 * losses[name] for name in names]
    figure, axes = criticality_axes(names, bias, np.array(drops), sources.get(row, f"epoch {row}"))
    axes.text(0.002, 51, "critical: more than half is lost", fontsize=9, color="#555555")
    number_points(axes, bias, drops, names)
    found = results["correlation"]
    text = "not defined" if initialization else "only for layers reset to their initialization"
    if found["spearman"] is not None:
        coins = found["fair_coins"]
        text = (
            f"{found['spearman']:+.2f} (p = {found['p_value']:.2g}, {len(names)} layers)\n"
            f"with fair coins instead of bias: {coins['mean']:+.2f} "
            f"(95 % of draws {coins['low']:+.2f} to {coins['high']:+.2f})"
        )
    axes.set_title(f"Spearman's rank correlation: {text}")
    figure.suptitle(f"{title}: bias and criticality")
    return figure


def criticality_axes(
    names: Sequence[str], bias: np.ndarray, drops: np.ndarray, reset_to: str
) -> tuple[Figure, Axes]:
    """Return a figure of the accuracy lost (in percent) against bias, with room for a legend of all layers."""
    columns = math.ceil(len(names) / NAMES_PER_COLUMN)
    width = max(8, 5.7 + columns * (0.6 + 0.075 * max(map(len, names), default=0)))
    height = max(5, 1 + 0.21 * min(len(names), NAMES_PER_COLUMN))
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.axhspan(50, 200, color=style.CHANCE, alpha=0.5, linewidth=0)
    axes.set_xlim(0, min(0.5, 1.2 * bias.max(initial=0.05)))
    axes.set_ylim(drops.min(initial=0) - 4, drops.max(initial=100) + 4)
    axes.set_xlabel("bias |mass - 1/2| (share of filters)")
    axes.set_ylabel(f"relative loss of top-1 accuracy,\nlayer reset to {reset_to} (%)")
    return figure, axes


def number_points(axes: Axes, xs: Sequence[float], ys: Sequence[float], names: Sequence[str]) -> np.ndarray:
    """Draw a numbered point for each layer, coloured by its depth, and a legend of the numbers on the right.

    Each number is at the nearest place where it hides neither a point nor another number.

    Args:
        axes: with their final limits.
        xs, ys, names: the point and the name of each layer, in network order.

    Returns:
        the colours of the layers, (N, 4).
    """
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(names)))
    axes.scatter(xs, ys, s=25, c=colors, zorder=3, clip_on=False)
    # The size of the axes in points is an estimate: the layout is computed when the figure is drawn.
    size = np.array([5 * 72, 0.8 * 72 * axes.figure.get_size_inches()[1]])
    taken = np.column_stack([xs, ys]) * size / [np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())]
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    directions = np.column_stack([np.cos(angles), np.sin(angles)])
    shifts = np.concatenate([distance * directions for distance in range(8, 800, 2)])
    label = {"ha": "center", "va": "center", "fontsize": 7, "annotation_clip": False, "zorder": 2.5}
    label["arrowprops"] = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0}
    for index, point in enumerate(zip(xs, ys, strict=True)):
        places = taken[index] + shifts
        nearest = (np.abs(places[:, None] - taken) > NUMBER_SIZE_PT).any(2).all(1).argmax()
        taken = np.vstack([taken, places[nearest]])
        axes.annotate(str(index + 1), point, shifts[nearest], textcoords="offset points", **label)
    if names:
        handles = [Line2D([], [], marker="o", linestyle="", markersize=7, color=color) for color in colors]
        labels = [f"{number} {name}" for number, name in enumerate(names, 1)]
        legend = {"loc": "outside right center", "ncols": math.ceil(len(labels) / NAMES_PER_COLUMN)}
        axes.figure.legend(handles, labels, title="layer", fontsize=9, handletextpad=0.1, **legend)
    return colors
