"""Figures: one look for all of them, each as PDF for the paper and PNG for the screen."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils import projections
from utils.files import atomic_write

STYLE = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.labelsize": 11,
    "figure.titlesize": 13,
    "font.size": 10,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,  # text stays text
    "savefig.dpi": 150,
}
NON_POSITIVE, POSITIVE, CHANCE = "#c8553d", "#3d7ea6", "#bbbbbb"  # told apart also by the colour-blind

Layers = Mapping[str, Mapping[str, Any]]  #: name of a layer -> its statistics, as utils.projections.measure gives


def save(figure: Figure, path: Path) -> list[Path]:
    """Write `<path>.pdf` and `<path>.png`, atomically; returns the two. Creates the folder.

    Raises:
        OSError: the disk, the folder or the permissions do not allow it.
    """
    files = []
    for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        files.append(path.with_name(f"{path.name}.{kind}"))
        with atomic_write(files[-1]) as file, matplotlib.rc_context(STYLE):
            figure.savefig(file, format=kind, metadata=metadata)
    return files


def distributions(layers: Layers, normalized: bool, title: str) -> Figure:
    """The distribution of projections layer by layer, with the mass at or below zero.

    Args:
        layers: with `projections` and `mass`.
        normalized: whether projections are cosines; they then share one axis.
        title: which network this is.
    """
    figure, panels = _grid(list(layers), title, share_x=normalized)
    widest = max(abs(p) for layer in layers.values() for p in layer["projections"])
    for axes, layer in zip(panels, layers.values(), strict=True):
        values = np.asarray(layer["projections"])
        limit = (widest if normalized else np.abs(values).max()) * 1.001 or 1.0
        bins = 2 * min(20, max(5, round(math.sqrt(len(values)))))  # even: zero is an edge
        edges = np.linspace(-limit, limit, bins + 1)
        edges[bins // 2] = 0.0
        for part, color in ((values[values <= 0], NON_POSITIVE), (values[values > 0], POSITIVE)):
            # Zero belongs to the left, where the bin next to it is closed on both sides.
            own = edges[: bins // 2 + 1] if color == NON_POSITIVE else edges[bins // 2 :]
            axes.stairs(np.histogram(part, own)[0], own, fill=True, color=color)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.text(
            0.03,
            0.95,
            f"mass {layer['mass']:.2f}",
            transform=axes.transAxes,
            va="top",
            color=NON_POSITIVE,
            weight="bold",
        )
        axes.set_ylim(0, axes.get_ylim()[1] * 1.25)
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(3, symmetric=True))
    figure.supxlabel(_quantity(normalized))
    figure.supylabel("number of filters")
    return figure


def mass_by_epoch(points: Mapping[int, Layers], title: str) -> Figure:
    """The mass of each layer against epoch, with the band in which fair coins stay with probability 95 %.

    Args:
        points: epochs trained -> layers, with `mass` and `filters`.
        title: which network this is.
    """
    epochs = sorted(points)
    layers = points[epochs[-1]]
    figure, panels = _grid(list(layers), title, share_x=True, share_y=True)
    for axes, (name, layer) in zip(panels, layers.items(), strict=True):
        axes.axhspan(*projections.chance_of_mass(layer["filters"]), color=CHANCE, alpha=0.5, linewidth=0)
        axes.plot(epochs, [points[epoch][name]["mass"] for epoch in epochs], "o-", color=NON_POSITIVE)
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([0, 0.5, 1])
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    figure.supxlabel("training (epochs)")
    figure.supylabel("mass: share of filters with projection ≤ 0")
    _explain_band(figure)
    return figure


def mean_by_epoch(points: Mapping[int, Layers], normalized: bool, title: str) -> Figure:
    """The mean projection of each layer against epoch, with the band of 95 % if signs were fair coins.

    Args:
        points: epochs trained -> layers, with `mean`, `std` and `filters`.
        normalized: whether projections are cosines; they then share one axis.
        title: which network this is.
    """
    epochs = sorted(points)
    names = list(points[epochs[-1]])
    figure, panels = _grid(names, title, share_x=True, share_y=normalized)
    for axes, name in zip(panels, names, strict=True):
        layer = [points[epoch][name] for epoch in epochs]
        band = np.array([projections.chance_of_mean(at["mean"], at["std"], at["filters"]) for at in layer])
        axes.fill_between(epochs, -band, band, color=CHANCE, alpha=0.5, linewidth=0)
        axes.plot(epochs, [at["mean"] for at in layer], "o-", color=POSITIVE)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
    figure.supxlabel("training (epochs)")
    figure.supylabel(f"mean {_quantity(normalized)}")
    _explain_band(figure)
    return figure


def distance_by_epoch(points: Mapping[int, Layers], title: str) -> Figure:
    """How far each layer is from its initialization, against epoch.

    Args:
        points: epochs trained -> layers, with `l2_dist` and `l_inf_dist`.
        title: which network this is.
    """
    epochs = sorted(points)
    names = list(points[epochs[-1]])
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(names)))
    markers = "osv^D"
    kinds = {
        "l2_dist": r"$\|W - W_0\|_2\;/\;\|W_0\|_2$",
        "l_inf_dist": r"$\|W - W_0\|_\infty\;/\;\|W_0\|_\infty$",
    }
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, max(4.2, 0.27 * len(names))), layout="constrained")
        figure.suptitle(f"{title}: distance from initialization")
        for axes, (kind, label) in zip(figure.subplots(1, 2), kinds.items(), strict=True):
            for index, name in enumerate(names):
                values = [points[epoch][name][kind] for epoch in epochs]
                defined = [math.nan if value is None else value for value in values]
                axes.plot(epochs, defined, color=colors[index], marker=markers[index % len(markers)], label=name)
            axes.set_xlabel("training (epochs)")
            axes.set_ylabel(f"relative distance {label}")
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", title="layer", fontsize=9)
    return figure


def _quantity(normalized: bool) -> str:
    return "projection (cosine, no unit)" if normalized else "projection (sum of weights, no unit)"


def _explain_band(figure: Figure) -> None:
    band = matplotlib.patches.Patch(color=CHANCE, alpha=0.5, linewidth=0)
    figure.legend([band], ["95 % of cases if every sign were a fair coin"], loc="outside lower right", fontsize=9)


def _grid(names: list[str], title: str, share_x: bool = False, share_y: bool = False):
    """A figure with a panel per layer, in network order; returns it and the panels."""
    columns = min(len(names), 3 if len(names) <= 9 else 4 if len(names) <= 20 else 6)
    rows = math.ceil(len(names) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1 + 2.5 * columns, 1.2 + 1.6 * rows), layout="constrained")
        figure.suptitle(title)
        grid = figure.subplots(rows, columns, sharex=share_x, sharey=share_y, squeeze=False)
        panels = list(grid.flat)
        for axes, name in zip(panels, names, strict=False):
            axes.set_title(name)
        for index in range(len(names), len(panels)):
            panels[index].set_axis_off()
            panels[index - columns].tick_params(labelbottom=True)
    return figure, panels[: len(names)]
