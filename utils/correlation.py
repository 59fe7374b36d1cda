"""How far bias and its rivals explain which layers of one network are critical, and what chance gives.

Spearman's rank correlation, over the hidden layers of a network, of the accuracy lost when a layer is reset with
what may explain it. The mass of an unbiased layer is as often below 1/2 as above it, so fair coins correlate with
nothing on average. That is not so of the bias |mass - 1/2|: for N fair coins it is about 0.4 / sqrt(N), so it is
largest for layers with few filters, which in many networks are early and critical. Depth and the distance that the
weights have moved are the rivals of bias. A partial correlation says what is left of it where they are known.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from utils.projections import CONFIDENCE

EXACT_LAYERS = 8  #: the p-value enumerates all pairings (8! of them) up to this number of layers
DRAWS = 100_000  #: of fair coins: gives the ends of their interval to 0.01
RIVALS = ("depth", "l2_dist")
#: What may explain that a layer is critical, in words. The mean goes on where mass has reached 1.
NAMES = {
    **{"mass": "mass", "bias": "bias |mass - 1/2|", "mean": "mean projection"},
    **{"depth": "depth", "l2_dist": "distance moved"},
}


def bias(mass: float | np.ndarray) -> np.ndarray:
    """Return |mass - 1/2|, rounded: without rounding k/N and (N - k)/N may differ in the last bit."""
    return np.round(np.abs(np.asarray(mass) - 0.5), 12)


#: What has a distribution if the signs of all filters are fair coins, as a function of the mass.
OF_MASS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"mass": np.asarray, "bias": bias}


def quantities(layers: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return each of NAMES as a number for each layer; `l2_dist` only if it is known of all layers.

    layers: in network order, with `mass`, `mean` and, where the initialization is known, `l2_dist`.
    """
    mass = [layer["mass"] for layer in layers]
    found = {"mass": mass, "bias": bias(mass).tolist(), "mean": [layer["mean"] for layer in layers]}
    found["depth"] = list(range(1, len(layers) + 1))
    moved = [layer.get("l2_dist") for layer in layers]
    return found if None in moved else {**found, "l2_dist": moved}


def correlations(layers: Sequence[Mapping[str, Any]], drops: Sequence[float | None]) -> dict[str, dict[str, Any]]:
    """Correlate each of the `quantities` of the layers of a network with the accuracy lost.

    layers: as for `quantities`, with `filters`. drops: accuracy lost when the layer is reset to its
    initialization, one per layer; None: not defined.

    Return quantity -> `spearman` and `p_value` (see `rank_correlation`); `given_depth` and `given_l2_dist` (see
    `partial`); of mass and bias also `fair_coins`, the `summary` of the correlation if the signs of all filters
    were fair coins, or None if `spearman` is. {} for fewer than three layers, or without all drops.
    """
    if len(layers) < 3 or None in drops:
        return {}
    values, found = quantities(layers), {}
    for name, explaining in values.items():
        found[name] = rank_correlation(explaining, drops)
        for rival in RIVALS:
            if rival in values and rival != name:
                found[name][f"given_{rival}"] = partial(explaining, drops, values[rival])
        if name in OF_MASS:
            coins = fair_coins([layer["filters"] for layer in layers], drops, of=name)
            found[name]["fair_coins"] = None if found[name]["spearman"] is None else summary(coins)
    return found


def rank_correlation(values: Sequence[float], drops: Sequence[float]) -> dict[str, float | None]:
    """Return Spearman's rank correlation of two sequences of numbers, `spearman`, and its two-sided `p_value`.

    The p-value is exact up to EXACT_LAYERS layers, with all pairings equally likely; above that it is from the t
    distribution, whose p-values for few layers are far too small. Both None: all values or all drops are equal.
    """
    from scipy.stats import permutation_test, spearmanr

    if len(set(values)) == 1 or len(set(drops)) == 1:
        return {"spearman": None, "p_value": None}
    result = spearmanr(values, drops)
    p_value = result.pvalue
    if len(values) <= EXACT_LAYERS:
        ranks, others = centred_ranks([values, drops])

        def covariance(ranks, axis):  # orders the pairings as the correlation does
            return abs((ranks * others).sum(axis))

        p_value = permutation_test(
            (ranks,), covariance, permutation_type="pairings", alternative="greater", n_resamples=math.inf
        ).pvalue
    return {"spearman": float(result.statistic), "p_value": float(p_value)}


def partial(values: Sequence[float], drops: Sequence[float], given: Sequence[float]) -> float | None:
    """Return the partial rank correlation of values and drops given a third quantity.

    It is what is left of their correlation when that with the third one is taken away from both. None if it is
    undefined: one of them orders the layers as the third one does, or its numbers are all equal.
    """
    ranks = centred_ranks([values, drops, given])
    if not ranks.any(1).all():
        return None
    (_, direct, first), (_, _, second), _ = np.corrcoef(ranks)
    if max(abs(first), abs(second)) > 1 - 1e-9:
        return None
    return float((direct - first * second) / np.sqrt((1 - first**2) * (1 - second**2)))


def centred_ranks(values: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """Return the ranks of numbers along the last axis, less their mean. Equal numbers have the same rank."""
    from scipy.stats import rankdata

    return rankdata(values, axis=-1) - (np.shape(values)[-1] + 1) / 2


def summary(draws: np.ndarray) -> dict[str, float]:
    """Return the `mean` of draws, and `low` and `high`, between which 95 % of them lie. NaN are left out."""
    low, high = np.nanquantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {"mean": float(np.nanmean(draws)), "low": float(low), "high": float(high)}


def fair_coins(filters: Sequence[int], drops: Sequence[float], seed: int = 0, of: str = "bias") -> np.ndarray:
    """Draw the rank correlation of mass, or bias, and drops for layers whose signs are fair coins.

    filters: number of filters of each layer. drops: one per layer. of: "mass" or "bias".
    Return (DRAWS,) correlations; NaN where they are undefined.
    """
    filters, random = np.asarray(filters), np.random.default_rng(seed)
    ranks = centred_ranks(OF_MASS[of](random.binomial(filters, 0.5, (DRAWS, len(filters))) / filters))
    others = centred_ranks(drops)
    with np.errstate(invalid="ignore"):
        return ranks @ others / np.sqrt((ranks**2).sum(1) * (others @ others))
