"""Figures: one look for all of them, each as PDF for the paper and PNG for the screen."""

import contextlib
import functools
import io
import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox, DrawingArea
from matplotlib.patches import Circle, Patch
from matplotlib.ticker import MaxNLocator

from utils import correlation, projections, reinit
from utils.results import layers_of
from utils.snapshots.files import atomic_write

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
    "text.parse_math": False,  # names of files and of networks may have a $
}
LONG_NAME = 22  #: characters; with more, a panel has two lines of title
GROUPS = ("#c8553d", "#3d7ea6", "#5a9367", "#8a5a9e", "#c9a227", "#444444")  #: of runs; a seventh has the first's
NON_POSITIVE, POSITIVE, CHANCE = "#c8553d", "#3d7ea6", "#dcdcdc"  # told apart also by the colour-blind

Layers = Mapping[str, Mapping[str, Any]]  #: name of a layer -> its statistics, as utils.projections.measure gives


def save(figure: Figure, path: Path) -> list[Path]:
    """Write `<path>.pdf` and `<path>.png`, atomically; returns the two. Creates the folder.

    Raises:
        OSError: the disk, the folder or the permissions do not allow it.
    """
    files = []
    path.parent.mkdir(parents=True, exist_ok=True)
    for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        files.append(path.with_name(f"{path.name}.{kind}"))
        drawn = io.BytesIO()  # matplotlib, unlike atomic_write, has no plain word for a full disk
        with _style():
            figure.savefig(drawn, format=kind, metadata=metadata)
        with atomic_write(files[-1]) as file:
            file.write(drawn.getbuffer())
    return files


@contextlib.contextmanager
def _style():
    """`STYLE`, whatever the style of the caller, and the matplotlibrc of the user."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of a name in letters that it lacks
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorator: draw a figure in the style of all of them."""

    @functools.wraps(draw)
    def with_style(*args, **kwargs) -> Figure:
        with _style():
            return draw(*args, **kwargs)

    return with_style


@styled
def distributions(layers: Layers, normalized: bool, title: str) -> Figure:
    """The distribution of projections layer by layer, with the mass at or below zero.

    Args:
        layers: with `projections` and `mass`.
        normalized: whether projections are cosines.
        title: which network this is.
    """
    figure, panels = _grid(layers, title)
    for axes, layer in zip(panels, layers.values(), strict=True):
        values = np.asarray(layer["projections"])
        limit = np.abs(values).max() * 1.001 or 1.0
        bins = 2 * min(20, max(5, round(math.sqrt(len(values)))))  # even: zero is an edge
        edges = np.linspace(-limit, limit, bins + 1)
        edges[bins // 2] = 0.0
        for part, color in ((values[values <= 0], NON_POSITIVE), (values[values > 0], POSITIVE)):
            # Zero belongs to the left, where the bin next to it is closed on both sides.
            own = edges[: bins // 2 + 1] if color == NON_POSITIVE else edges[bins // 2 :]
            axes.stairs(np.histogram(part, own)[0], own, fill=True, color=color)
        axes.axvline(0, color="black", linewidth=0.8)
        label = {"va": "top", "color": NON_POSITIVE, "weight": "bold"}
        axes.text(0.03, 0.95, f"mass {layer['mass']:.2f}", transform=axes.transAxes, **label)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.25)
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(4, symmetric=True, steps=[1, 2, 5, 10]))
    figure.supylabel("number of filters")
    _label_below(figure, _quantity(normalized), {"≤ 0 (their share is the mass)": NON_POSITIVE, "> 0": POSITIVE})
    return figure


@styled
def mass_by_epoch(points: Mapping[int, Layers], title: str) -> Figure:
    """The mass of each layer against epoch, with the band in which fair coins stay with probability 95 % or more.

    Args:
        points: epochs trained -> layers, with `mass` and `filters`.
        title: which network this is.
    """
    epochs = sorted(points)
    layers = points[epochs[-1]]
    figure, panels = _grid(layers, f"{title}: mass of each layer", share_x=True, share_y=True)
    for axes, (name, layer) in zip(panels, layers.items(), strict=True):
        axes.axhspan(*projections.chance_of_mass(layer["filters"]), color=CHANCE, linewidth=0)
        axes.plot(
            epochs, [points[epoch][name]["mass"] for epoch in epochs], "o-", color=NON_POSITIVE, clip_on=False
        )
        axes.set(ylim=(0, 1), yticks=[0, 0.5, 1])
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    figure.supylabel("mass (share of filters)")
    _label_below(
        figure,
        "training (epochs)",
        {
            "share of filters with projection ≤ 0": NON_POSITIVE,
            "chance: at least 95 %, if signs are fair coins": CHANCE,
        },
    )
    return figure


@styled
def mean_by_epoch(points: Mapping[int, Layers], normalized: bool, title: str) -> Figure:
    """The mean projection of each layer against epoch, with the band of 95 % if signs were fair coins.

    Args:
        points: epochs trained -> layers, with `mean`, `std` and `filters`.
        normalized: whether projections are cosines.
        title: which network this is.
    """
    epochs = sorted(points)
    layers = points[epochs[-1]]
    figure, panels = _grid(layers, f"{title}: mean of each layer", share_x=True)
    for axes, name in zip(panels, layers, strict=True):
        layer = [points[epoch][name] for epoch in epochs]
        band = np.array([projections.chance_of_mean(at["mean"], at["std"], at["filters"]) for at in layer])
        axes.fill_between(epochs, -band, band, color=CHANCE, linewidth=0)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.plot(epochs, [at["mean"] for at in layer], "o-", color=POSITIVE)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    figure.supylabel(f"mean {_quantity(normalized)}")
    colors = {"mean over filters": POSITIVE, "chance: 95 %, if signs are fair coins": CHANCE}
    _label_below(figure, "training (epochs)", colors)
    return figure


@styled
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
    figure = Figure(figsize=(10, max(4.2, 0.27 * len(names))), layout="constrained")
    figure.suptitle(f"{title}: distance from initialization")
    for axes, (kind, label) in zip(figure.subplots(1, 2), kinds.items(), strict=True):
        for index, name in enumerate(names):
            values = [points[epoch][name][kind] for epoch in epochs]
            defined = [math.nan if value is None else value for value in values]
            axes.plot(epochs, defined, color=colors[index], marker=markers[index % len(markers)], label=name)
        axes.set_xlabel("training (epochs)")
        axes.set_ylabel(f"relative distance {label}", parse_math=True)
        if all(points[epoch][name][kind] is None for epoch in epochs for name in names):
            place = {"transform": axes.transAxes, "ha": "center", "va": "center"}
            axes.text(0.5, 0.5, "not defined: initial weights are zero", **place)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", title="layer", fontsize=9)
    return figure


def _quantity(normalized: bool) -> str:
    return f"projection ({'cosine' if normalized else 'sum of weights'}, dimensionless)"


def _grid(layers: Layers, title: str, share_x: bool = False, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with a panel per layer, in network order."""
    columns = min(len(layers), 3 if len(layers) <= 9 else 4 if len(layers) <= 20 else 5)
    rows = math.ceil(len(layers) / columns)
    figure = Figure(figsize=(1 + 2.5 * columns, 1.4 + 1.6 * rows), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, sharex=share_x, sharey=share_y, squeeze=False)
    panels = list(grid.flat)
    for axes, (name, layer) in zip(panels, layers.items(), strict=False):
        filters = f"({layer['filters']} filter{'s' if layer['filters'] != 1 else ''})"
        if len(name) > LONG_NAME:  # features.denseblock1.denselayer1.conv2
            axes.set_title(f"{name}\n{filters}", fontsize=8)
        else:
            axes.set_title(f"{name} {filters}")
    for index in range(len(layers), len(panels)):
        panels[index].set_axis_off()
        panels[index - columns].tick_params(labelbottom=True)
    return figure, panels[: len(layers)]


def _label_below(figure: Figure, label: str, colors: Mapping[str, str]) -> None:
    """The label of the x axes, and below it a line that explains colours: text -> colour."""
    patches = [Patch(color=color, label=text, linewidth=0) for text, color in colors.items()]
    columns = len(patches) if len(patches) <= 4 else math.ceil(len(patches) / 2)
    # The label is the legend's title: the layout would put a supxlabel on top of the legend.
    figure.legend(handles=patches, loc="outside lower center", ncols=columns, title=label, title_fontsize=11)


@styled
def accuracy_loss(results: Mapping[str, Any], title: str) -> Figure:
    """The heat map of relative accuracy loss: a row for each initialization, a column for each layer.

    Args:
        results: as reinit_layers.py writes them.
        title: which network this is.
    """
    names, drops = results["layers"], results["relative_drop"]
    values = np.array([[math.nan if drop is None else drop for drop in row] for row in drops.values()])
    figure = Figure(figsize=(2.6 + 0.62 * len(names), max(3.6, 2.1 + 0.36 * len(drops))), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values * 100, cmap="magma_r", vmin=0, vmax=100, aspect="auto")
    axes.grid(visible=False)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    labels = ["fresh random" if row == "rand" else row for row in drops]
    shown = range(0, len(labels), math.ceil(len(labels) / 40))
    axes.set_yticks(shown, [labels[index] for index in shown])
    axes.set_xlabel("layer that is reset")
    axes.set_ylabel("reset to epoch")
    if len(labels) <= 40:
        for (row, column), value in np.ndenumerate(values):
            color = "white" if value > 0.4 else "black"
            told = "" if math.isnan(value) else str(round(100 * value))
            axes.text(column, row, told, ha="center", va="center", color=color, fontsize=9)
    figure.suptitle(f"{title}:\naccuracy lost (trained: {results['top1_test']:.2f} %)")
    figure.colorbar(image, label="relative loss of\ntop-1 accuracy (%)")
    return figure


@styled
def bias_and_criticality(results: Mapping[str, Any], title: str) -> Figure:
    """Bias of each layer against the accuracy lost when it is reset to its initialization, with the correlation.

    Where no initialization was measured, the loss is that with the last weights that were.

    Args:
        results: as reinit_layers.py writes them.
        title: which network this is.
    """
    initialization = reinit.initialization_row(results["relative_drop"])
    row = initialization or list(results["relative_drop"])[-1]
    where = {"0": "its initialization", "-1": "the model zoo's weights", "rand": "fresh random weights"}
    where = where.get(row, f"epoch {row}")
    losses = dict(zip(results["layers"], results["relative_drop"][row], strict=True))
    names = [name for name, loss in losses.items() if loss is not None]  # None: there was no accuracy to lose
    bias = correlation.bias([results["projections"][name]["mass"] for name in names])
    drops = [100 * losses[name] for name in names]
    figure, axes = _criticality_axes(names, bias, np.array(drops), where)
    place = {"xy": (0.01, 50), "xycoords": ("axes fraction", "data"), "xytext": (0, 3), "va": "bottom"}
    axes.annotate(
        "critical: more than half is lost", **place, textcoords="offset points", fontsize=9, color="#555555"
    )
    _number_points(axes, bias, drops, names)
    found = results["correlation"]
    told = "not defined" if initialization else "only for layers reset to their initialization"
    if found["spearman"] is not None:
        coins = found["fair_coins"]
        told = (
            f"{found['spearman']:+.2f} (p = {found['p_value']:.2g}, {len(names)} layers)\n"
            f"with fair coins instead of bias: {coins['mean']:+.2f} "
            f"(95 % of draws {coins['low']:+.2f} to {coins['high']:+.2f})"
        )
    axes.set_title(f"Spearman's rank correlation: {told}")
    figure.suptitle(f"{title}: bias and criticality")
    return figure


NAMES_A_COLUMN = 40  #: of a legend


def _criticality_axes(
    names: Sequence[str], bias: np.ndarray, drops: np.ndarray, reset_to: str
) -> tuple[Figure, Axes]:
    """A figure for the accuracy lost (in percent) against bias, with room for a legend of numbered layers."""
    columns = math.ceil(len(names) / NAMES_A_COLUMN)
    width = max(8, 5.7 + columns * (0.6 + 0.075 * max(map(len, names), default=0)))
    figure = Figure(figsize=(width, max(5, 1 + 0.21 * min(len(names), NAMES_A_COLUMN))), layout="constrained")
    axes = figure.subplots()
    axes.axhspan(50, 200, color=CHANCE, alpha=0.5, linewidth=0)
    axes.set_xlim(0, min(0.5, 1.2 * bias.max(initial=0.05)))
    axes.set_ylim(drops.min(initial=0) - 4, drops.max(initial=100) + 4)
    axes.set_xlabel("bias |mass - 1/2| (share of filters)")
    axes.set_ylabel(f"relative loss of top-1 accuracy,\nlayer reset to {reset_to} (%)")
    return figure, axes


def _number_points(axes: Axes, xs: Sequence[float], ys: Sequence[float], names: Sequence[str]) -> np.ndarray:
    """A numbered disc a layer, coloured by its depth, and the names on the right; returns the colours.

    A disc that would hide another one is moved aside, and tied to its point by a line. The axes have their limits.
    """
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 1, len(names)))
    diameter = 11  # points, of 72 an inch, as all lengths here
    width, height = 5 * 72, 0.8 * 72 * axes.figure.get_size_inches()[1]  # of the axes, roughly: layout comes last
    scale = np.array([width / np.ptp(axes.get_xlim()), height / np.ptp(axes.get_ylim())])
    ways = [(math.cos(angle), math.sin(angle)) for angle in np.linspace(0, 2 * math.pi, 16, endpoint=False)]
    discs = np.empty((0, 2))  # their centres
    for number, (x, y, color) in enumerate(zip(xs, ys, colors, strict=True), 1):
        point = scale * (x, y)
        for distance in range(0, 1000, 2):
            aside = np.multiply(ways, distance)
            apart = np.linalg.norm(point + aside[:, None] - discs, axis=2)
            free = (apart > diameter + 1).all(1)
            if free.any():
                break
        shift = aside[free.argmax()]
        discs = np.vstack([discs, point + shift])
        place = {"xy": (x, y), "xytext": shift, "textcoords": "offset points", "annotation_clip": False}
        if shift.any():
            line = {"arrowstyle": "-", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", **place, arrowprops=line, zorder=2.5)
            axes.plot(x, y, "o", markersize=3, color="black", zorder=2.5, clip_on=False)
        disc = DrawingArea(0, 0)
        disc.add_artist(Circle((0, 0), diameter / 2, facecolor=color, edgecolor="black", linewidth=0.7))
        axes.add_artist(
            AnnotationBbox(disc, (x, y), shift, boxcoords="offset points", pad=0, frameon=False, zorder=3)
        )
        dark = number <= 0.6 * len(names)
        axes.annotate(
            str(number),
            **place,
            ha="center",
            va="center",
            fontsize=7,
            color="white" if dark else "black",
            zorder=4,
        )
    handles = [Line2D([], [], marker="o", linestyle="", markersize=7, color=color) for color in colors]
    labels = [f"{number} {name}" for number, name in enumerate(names, 1)]
    if labels:
        legend = {"loc": "outside right center", "ncols": math.ceil(len(labels) / NAMES_A_COLUMN)}
        axes.figure.legend(handles, labels, title="layer", fontsize=9, handletextpad=0.1, **legend)
    return colors


@styled
def compare_runs(groups: Mapping[str, Sequence[Mapping[int, Layers]]], statistic: str, title: str) -> Figure:
    """Mass or mean of each layer against epoch in one or more groups of runs: the mean over seeds, and the spread.

    Args:
        groups: label -> of each run: epochs trained -> layers, with `mass`, `mean` and `filters`.
        statistic: "mass" or "mean" (of normalized projections).
        title: which network this is.
    """
    first = next(iter(groups.values()))[0]
    layers = first[max(first)]
    colors = dict(zip(groups, itertools.cycle(GROUPS), strict=False))
    figure, panels = _grid(
        layers, f"{title}: {statistic} of each layer", share_x=True, share_y=statistic == "mass"
    )
    for axes, (name, layer) in zip(panels, layers.items(), strict=True):
        if statistic == "mass":
            axes.axhspan(*projections.chance_of_mass(layer["filters"]), color=CHANCE, linewidth=0)
        axes.axhline(0.5 if statistic == "mass" else 0, color="black", linewidth=0.6)
        for label, runs in groups.items():
            epochs = sorted(set.intersection(*(set(run) for run in runs)))
            values = np.array([[run[epoch][name][statistic] for epoch in epochs] for run in runs])
            mean, spread = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else 0
            if len(groups) == 1:
                axes.plot(epochs, values.T, color=colors[label], linewidth=0.6, alpha=0.45)
            else:
                axes.fill_between(
                    epochs, mean - spread, mean + spread, color=colors[label], alpha=0.12, linewidth=0
                )
            axes.plot(epochs, mean, "o-", color=colors[label], clip_on=False)
        if statistic == "mass":
            axes.set(ylim=(0, 1), yticks=[0, 0.5, 1])
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    figure.supylabel("mass (share of filters)" if statistic == "mass" else f"mean {_quantity(True)}")
    band = {"chance (95 %)": CHANCE} if statistic == "mass" else {}
    numbers = sorted({len(runs) for runs in groups.values()})
    seeds = " to ".join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))
    spread = "thin: each" if len(groups) == 1 else "band: one standard deviation"
    _label_below(figure, f"training (epochs); line: mean of {seeds} seeds, {spread}", {**colors, **band})
    return figure


@styled
def bias_and_criticality_of_runs(results: Sequence[Mapping[str, Any]], title: str, told: str) -> Figure:
    """Bias against the accuracy lost at initialization, a small point a layer and run, a large one its mean.

    Args:
        results: as reinit_layers.py writes them, of several runs of one architecture.
        title: which network this is.
        told: what is said of the correlation.
    """
    row = reinit.initialization_row(results[0]["relative_drop"])
    names = results[0]["layers"]
    bias = correlation.bias([[one["projections"][name]["mass"] for name in names] for one in results])
    drops = 100 * np.array([one["relative_drop"][row] for one in results])
    figure, axes = _criticality_axes(names, bias, drops, "its initialization")
    for column, color in enumerate(_number_points(axes, bias.mean(0), drops.mean(0), names)):
        axes.scatter(bias[:, column], drops[:, column], s=14, color=color, alpha=0.7, linewidth=0, clip_on=False)
    axes.set_title(told)
    legend = "numbered: mean, beside its point where it would hide another; grey: critical"
    figure.suptitle(f"{title}: bias and criticality, {len(results)} seeds\n({legend})", fontsize=11)
    return figure


@styled
def masses_of_networks(results: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """The mass of every layer of several networks: a row a network, a point a layer, coloured by its depth.

    Args:
        results: architecture -> results of compute_projections.py.
        title: which networks these are.
    """
    figure = Figure(figsize=(8, 1.6 + 0.28 * len(results)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0.5, color="black", linewidth=0.8)
    for row, content in enumerate(results.values()):
        masses = [layer["mass"] for layer in layers_of(content).values()]
        depth = np.linspace(0, 1, len(masses))
        points = axes.scatter(
            masses, [row] * len(masses), s=22, c=depth, cmap="viridis", vmin=0, vmax=1, alpha=0.8
        )
    axes.set_yticks(range(len(results)), results)
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("mass of a layer (share of filters with projection \u2264 0)")
    figure.colorbar(points, label="depth (0: first, 1: last)")
    figure.suptitle(f"{title}: mass of each layer")
    return figure
