"""The look of all figures, what they share, and how they are saved."""

import contextlib
import io
import math
import os
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from utils.snapshots.files import atomic_write

STYLE = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.labelsize": 11,
    "figure.titlesize": 13,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,  # text in a PDF stays text
    "savefig.dpi": 150,
    "text.parse_math": False,  # names of files and networks may contain a $
}
NON_POSITIVE, POSITIVE, CHANCE = "#c8553d", "#3d7ea6", "#dcdcdc"  # distinct for colour-blind readers too
MOST_PANELS = 20  #: layers with a panel each, or a line each in a legend; more layers are rows
MAX_WIDTH_IN, MAX_HEIGHT_IN = 14.0, 18.0
LONG_NAME = 22  #: characters; a longer name is shortened
LONG_TITLE = 30  #: characters; a longer title of a panel has two lines
DEPTH = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.92, 256)))  #: without the palest yellow

TURNED = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}  #: long labels of the x axis

Layers = Mapping[str, Mapping[str, Any]]  #: name of a layer -> its statistics, as utils.projections.measure gives
Points = Mapping[int | str, Layers]  #: epochs trained, or names of snapshots, in order of training -> layers


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure to `<path>.pdf` and `<path>.png`, atomically, and return these paths. Create the folder.

    Raise OSError if the disk, the folder or the permissions do not allow it.
    """
    files = []
    path.parent.mkdir(parents=True, exist_ok=True)
    for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        files.append(path.with_name(f"{path.name}.{kind}"))
        content = io.BytesIO()  # atomic_write reports a full disk clearly; matplotlib does not
        with apply():
            figure.savefig(content, format=kind, metadata=metadata)
        with atomic_write(files[-1]) as file:
            file.write(content.getbuffer())
    return files


@contextlib.contextmanager
def apply():
    """Draw in `STYLE`, whatever the style of the caller and the user's matplotlibrc. Also a decorator."""
    with matplotlib.style.context(STYLE, after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from ")  # titles may contain any letter
        yield


def new_figure(width: float, height: float, title: str) -> Figure:
    """Return an empty figure of this size in inches, but at most MAX_WIDTH_IN by MAX_HEIGHT_IN."""
    width, height = min(width, MAX_WIDTH_IN), min(height, MAX_HEIGHT_IN)
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle("\n".join(textwrap.fill(line, int(9.5 * width)) for line in title.splitlines()))
    return figure


def panel_per_layer(
    layers: Layers, title: str, share_x: bool = False, share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a figure with one panel per layer, and the panels in network order."""
    columns = min(len(layers), 3 if len(layers) <= 9 else 4 if len(layers) <= 20 else 5)
    rows = math.ceil(len(layers) / columns)
    figure = new_figure(max(6.5, 1 + 2.5 * columns), max(3.4, 1.4 + 1.6 * rows), title)
    panels = list(figure.subplots(rows, columns, sharex=share_x, sharey=share_y, squeeze=False).flat)
    for axes, name, layer in zip(panels, shorten(layers, 40), layers.values(), strict=False):
        filters = f"({layer['filters']} filters)"
        is_long = len(name) + len(filters) > LONG_TITLE  # features.denseblock1.denselayer1.conv2
        separator, size = ("\n", 8) if is_long else (" ", STYLE["axes.titlesize"])
        axes.set_title(f"{name}{separator}{filters}", fontsize=size)
    for index in range(len(layers), len(panels)):
        panels[index].set_axis_off()
        panels[index - columns].tick_params(labelbottom=True)
    return figure, panels[: len(layers)]


def heat_map(
    values: np.ndarray, rows: list[str], columns: list[str], title: str, label: str, width: float = 0.62, **colors
) -> tuple[Figure, Axes, np.ndarray]:
    """Draw values as a heat map; labels of rows and columns are left out where there is no room for all.

    values: (rows, columns); NaN is not drawn. label: of the colour bar. width: of a cell, in inches, where there
    is room. colors: cmap, vmin and vmax, as for `Axes.imshow`. Returns the figure, its axes, and about how wide
    and how high a cell is, in points.
    """
    margins = np.array([1.9 + 0.08 * max(map(len, rows)), 1.7 + 0.05 * max(map(len, columns))])  # about
    turned = max(map(len, columns)) > 4
    cells = np.array([len(columns), len(rows)])
    figure = new_figure(*np.maximum(margins + [width, 0.24] * cells, [6, 3.6]), title)
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto", interpolation="nearest", **colors)
    axes.grid(visible=False)
    room = figure.get_size_inches() - margins
    label_rows(axes, rows)
    shown = slice(None, None, math.ceil(len(columns) * (0.2 if turned else 0.36) / room[0]))
    axes.set_xticks(range(len(columns))[shown], columns[shown], **(TURNED if turned else {}))
    figure.colorbar(image, label=label, shrink=min(1, 3 / room[1]), anchor=(0, 1))
    return figure, axes, 72 * room / cells


def label_rows(axes: Axes, names: Sequence[str]) -> None:
    """Label the rows 0, 1, ... from the top; only some of them where there is no room for all."""
    shown = slice(None, None, math.ceil(len(names) * 0.14 / (axes.figure.get_size_inches()[1] - 1.6)))
    axes.set_yticks(range(len(names))[shown], names[shown], fontsize=10 if len(names) <= MOST_PANELS else 8)
    axes.set_ylim(len(names) - 0.5, -0.5)


def name_layers(layers: Layers) -> list[str]:
    """Return for each layer its depth, which begins with 1, its shortened name and its number of filters."""
    names = enumerate(zip(shorten(layers), layers.values(), strict=True), 1)
    return [f"{depth} {name} ({layer['filters']})" for depth, (name, layer) in names]


def shorten(names: Iterable[str], length: int = LONG_NAME) -> list[str]:
    """Shorten names of layers if one is longer than `length`: leading parts that all have go, then other ones."""
    names = list(names)
    if max(map(len, names), default=0) > length:
        shared = os.path.commonprefix(names).rfind(".") + 1  # noqa: RUF071 (names are no paths)
        names = [name[shared:] for name in names]
    return [name if len(name) <= length else f"\u2026{name[1 - length :]}" for name in names]


def along_training(points: Points) -> tuple[list[int | str], Sequence[int], str]:
    """Return the epochs or names of the points, where to draw them on the x axis, and its label."""
    epochs = list(points)
    if isinstance(epochs[0], str):
        return epochs, range(len(epochs)), "snapshot"
    return epochs, epochs, "training (epochs)"


def label_epochs(axes: Axes, epochs: Sequence[int | str] = (), intervals: int = 4) -> None:
    """Put the ticks of the x axis at whole epochs, or at names, with at most so many intervals between them."""
    if epochs and isinstance(epochs[0], str):
        shown = slice(None, None, math.ceil(len(epochs) / (2 * intervals)))
        axes.set_xticks(range(len(epochs))[shown], shorten(epochs)[shown], fontsize=8, **TURNED)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(intervals, integer=True, steps=[1, 2, 5, 10]))


def depth_bar(figure: Figure, axes: Axes | Sequence[Axes], layers: int) -> None:
    """Explain the colours of the depth of so many layers."""
    norm = matplotlib.colors.Normalize(1, layers)
    figure.colorbar(ScalarMappable(norm, DEPTH), ax=axes, label="depth of the layer (1: first)")


def label_below(figure: Figure, label: str, colors: Mapping[str, str]) -> None:
    """Label the x axes of all panels, and explain the colours (text -> colour) below the label."""
    patches = [Patch(color=color, label=text, linewidth=0) for text, color in colors.items()]
    columns = len(patches) if len(patches) <= 4 else math.ceil(len(patches) / 2)
    # The label is the title of the legend: the layout would draw the legend over a supxlabel.
    figure.legend(handles=patches, loc="outside lower center", ncols=columns, title=label, title_fontsize=11)
