"""The figures of compute_projections.py: projections, mass, mean and distance of each layer."""

import itertools
import math
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils import projections
from utils.plots import style


@style.apply()
def distributions(layers: style.Layers, normalized: bool, title: str) -> Figure:
    """Draw the histogram of the projections of each layer, and its mass.

    layers: name -> statistics with `projections`, `mass` and `filters`. normalized: the projections are cosines.
    """
    figure, panels = style.panel_per_layer(layers, title)
    for axes, layer in zip(panels, layers.values(), strict=True):
        values = np.asarray(layer["projections"])
        limit = np.abs(values).max() * 1.001 or 1.0
        half = min(20, max(5, round(math.sqrt(len(values)))))  # bins on each side of 0
        edges = np.linspace(-limit, limit, 2 * half + 1)
        edges[half] = 0.0
        # np.histogram closes the last bin on both sides: a projection of 0 counts on the left.
        for part, own_edges, color in (
            (values[values <= 0], edges[: half + 1], style.NON_POSITIVE),
            (values[values > 0], edges[half:], style.POSITIVE),
        ):
            axes.stairs(np.histogram(part, own_edges)[0], own_edges, fill=True, color=color)
        axes.axvline(0, color="black", linewidth=0.8)
        label = {"va": "top", "color": style.NON_POSITIVE, "weight": "bold"}
        axes.text(0.03, 0.95, f"mass {layer['mass']:.2f}", transform=axes.transAxes, **label)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.25)
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(4, symmetric=True, steps=[1, 2, 5, 10]))
    figure.supylabel("number of filters")
    style.label_below(
        figure, quantity(normalized), {"≤ 0 (their share is the mass)": style.NON_POSITIVE, "> 0": style.POSITIVE}
    )
    return figure


@style.apply()
def mass_by_epoch(points: Mapping[int, style.Layers], title: str) -> Figure:
    """Draw the mass of each layer against epoch, with the band that holds 95 % or more of fair coins.

    points: epochs trained -> layers, with `mass` and `filters`.
    """
    epochs = sorted(points)
    layers = points[epochs[-1]]
    figure, panels = style.panel_per_layer(layers, f"{title}: mass of each layer", share_x=True, share_y=True)
    for axes, (name, layer) in zip(panels, layers.items(), strict=True):
        axes.axhspan(*projections.chance_of_mass(layer["filters"]), color=style.CHANCE, linewidth=0)
        masses = [points[epoch][name]["mass"] for epoch in epochs]
        axes.plot(epochs, masses, "o-", color=style.NON_POSITIVE, clip_on=False)
        axes.set(ylim=(0, 1), yticks=[0, 0.5, 1])
        style.label_epochs(axes)
    figure.supylabel("mass (share of filters)")
    chance = "chance: at least 95 %, if signs are fair coins"
    colors = {"share of filters with projection ≤ 0": style.NON_POSITIVE, chance: style.CHANCE}
    style.label_below(figure, "training (epochs)", colors)
    return figure


@style.apply()
def mean_by_epoch(points: Mapping[int, style.Layers], normalized: bool, title: str) -> Figure:
    """Draw the mean projection of each layer against epoch, with the 95 % band of fair coins.

    points: epochs trained -> layers, with `mean`, `std` and `filters`. normalized: the projections are cosines.
    """
    epochs = sorted(points)
    layers = points[epochs[-1]]
    figure, panels = style.panel_per_layer(layers, f"{title}: mean of each layer", share_x=True)
    for axes, name in zip(panels, layers, strict=True):
        layer = [points[epoch][name] for epoch in epochs]
        band = np.array([projections.chance_of_mean(at["mean"], at["std"], at["filters"]) for at in layer])
        axes.fill_between(epochs, -band, band, color=style.CHANCE, linewidth=0)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.plot(epochs, [at["mean"] for at in layer], "o-", color=style.POSITIVE)
        style.label_epochs(axes)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    figure.supylabel(f"mean {quantity(normalized)}")
    colors = {"mean over filters": style.POSITIVE, "chance: 95 %, if signs are fair coins": style.CHANCE}
    style.label_below(figure, "training (epochs)", colors)
    return figure


@style.apply()
def distance_by_epoch(points: Mapping[int, style.Layers], title: str) -> Figure:
    """Draw the relative distance of each layer from its initialization against epoch.

    points: epochs trained -> layers, with `l2_dist` and `l_inf_dist`; None where they are undefined.
    """
    epochs = sorted(points)
    names = list(points[epochs[-1]])
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(names)))
    figure = Figure(figsize=(10, max(4.2, 0.27 * len(names))), layout="constrained")
    figure.suptitle(f"{title}: distance from initialization")
    for axes, kind, norm in zip(figure.subplots(1, 2), ("l2_dist", "l_inf_dist"), ("2", r"\infty"), strict=True):
        # None becomes NaN, which is not drawn.
        values = np.array([[points[epoch][name][kind] for epoch in epochs] for name in names], dtype=float)
        for name, of_layer, color, marker in zip(names, values, colors, itertools.cycle("osv^D"), strict=False):
            axes.plot(epochs, of_layer, color=color, marker=marker, label=name)
        axes.set_xlabel("training (epochs)")
        label = rf"relative distance $\|W - W_0\|_{norm}\;/\;\|W_0\|_{norm}$"
        axes.set_ylabel(label, parse_math=True)
        if np.isnan(values).all():
            place = {"transform": axes.transAxes, "ha": "center", "va": "center"}
            axes.text(0.5, 0.5, "not defined: initial weights are zero", **place)
        axes.set_ylim(bottom=0)
        style.label_epochs(axes, 6)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", title="layer", fontsize=9)
    return figure


def quantity(normalized: bool) -> str:
    """Return the name of the projection and its unit, for an axis."""
    return f"projection ({'cosine' if normalized else 'sum of weights'}, dimensionless)"
