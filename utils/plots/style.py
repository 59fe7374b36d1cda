"""The look of all figures, what they share, and how they are saved."""

import contextlib
import io
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
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
    "font.size": 10,
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
LONG_NAME = 22  #: characters; a longer layer name gets a line of its own in the title of its panel

Layers = Mapping[str, Mapping[str, Any]]  #: name of a layer -> its statistics, as utils.projections.measure gives


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure to `<path>.pdf` and `<path>.png`, atomically. Creates the folder.

    Returns:
        the paths of the two files.

    Raises:
        OSError: the disk, the folder or the permissions do not allow it.
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
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # titles may contain any letter
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def panel_per_layer(
    layers: Layers, title: str, share_x: bool = False, share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a figure with one panel per layer, and the panels in network order."""
    columns = min(len(layers), 3 if len(layers) <= 9 else 4 if len(layers) <= 20 else 5)
    rows = math.ceil(len(layers) / columns)
    figure = Figure(figsize=(1 + 2.5 * columns, 1.4 + 1.6 * rows), layout="constrained")
    figure.suptitle(title)
    panels = list(figure.subplots(rows, columns, sharex=share_x, sharey=share_y, squeeze=False).flat)
    for axes, (name, layer) in zip(panels, layers.items(), strict=False):
        is_long = len(name) > LONG_NAME  # features.denseblock1.denselayer1.conv2
        separator, size = ("\n", 8) if is_long else (" ", STYLE["axes.titlesize"])
        axes.set_title(f"{name}{separator}({layer['filters']} filters)", fontsize=size)
    for index in range(len(layers), len(panels)):
        panels[index].set_axis_off()
        panels[index - columns].tick_params(labelbottom=True)
    return figure, panels[: len(layers)]


def label_epochs(axes: Axes, intervals: int = 4) -> None:
    """Put the ticks of the x axis at whole epochs, with at most so many intervals between them."""
    axes.xaxis.set_major_locator(MaxNLocator(intervals, integer=True, steps=[1, 2, 5, 10]))


def label_below(figure: Figure, label: str, colors: Mapping[str, str]) -> None:
    """Label the x axes of all panels, and explain the colours (text -> colour) below the label."""
    patches = [Patch(color=color, label=text, linewidth=0) for text, color in colors.items()]
    columns = len(patches) if len(patches) <= 4 else math.ceil(len(patches) / 2)
    # The label is the title of the legend: the layout would draw the legend over a supxlabel.
    figure.legend(handles=patches, loc="outside lower center", ncols=columns, title=label, title_fontsize=11)
