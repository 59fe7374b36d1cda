"""Spearman's rank correlation between bias and criticality over the layers of a network, and what chance gives.

The bias |mass - 1/2| of an unbiased layer is not 0: for N fair coins it is about 0.4 / sqrt(N), so it is largest
for layers with few filters. In many networks the early layers have few filters and are critical. There, fair coins
correlate with criticality too. Always compare a correlation with that of fair coins.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from utils.projections import CONFIDENCE

EXACT_LAYERS = 9  #: the p-value enumerates all pairings (9! of them) up to this number of layers
DRAWS = 100_000  #: of fair coins: gives the ends of their interval to 0.01
DRAWS_AT_ONCE = 10_000


def bias(mass: float | np.ndarray) -> np.ndarray:
    """Return |mass - 1/2|, rounded: without rounding k/N and (N - k)/N may differ in the last bit."""
    return np.round(np.abs(np.asarray(mass) - 0.5), 12)


def rank_correlation(
    mass: Sequence[float], filters: Sequence[int], drops: Sequence[float | None] | None
) -> dict[str, Any]:
    """Correlate the bias |mass - 1/2| of the layers of a network with the relative drop of accuracy.

    Args:
        mass: share of filters with non-positive projection, one per layer.
        filters: number of filters, one per layer.
        drops: relative drop when the layer is reset to its initialization, one per layer; None: not measured.

    Returns:
        - spearman: the rank correlation, in [-1, 1]
        - p_value: two-sided, if all pairings of bias and drops are equally likely. Exact up to EXACT_LAYERS
          layers, above that from the t distribution (for few layers its p-values are far too small)
        - fair_coins: `summary` of the correlation if the signs of all filters were fair coins

        All None if undefined: fewer than three layers, or all biases or all drops are equal.
    """
    from scipy.stats import permutation_test, rankdata, spearmanr

    biases = bias(mass)
    if drops is None or None in drops or len(mass) < 3 or len(set(biases)) == 1 or len(set(drops)) == 1:
        return {"spearman": None, "p_value": None, "fair_coins": None}
    result = spearmanr(biases, drops)
    p_value = result.pvalue
    if len(mass) <= EXACT_LAYERS:
        ranks, others = (rankdata(values) - (len(values) + 1) / 2 for values in (biases, drops))

        def covariance(ranks, axis):  # orders the pairings as the correlation does
            return abs((ranks * others).sum(axis))

        p_value = permutation_test(
            (ranks,), covariance, permutation_type="pairings", alternative="greater", n_resamples=math.inf
        ).pvalue
    coins = summary(fair_coins(filters, drops))
    return {"spearman": float(result.statistic), "p_value": float(p_value), "fair_coins": coins}


def summary(draws: np.ndarray) -> dict[str, float]:
    """Return the `mean` of draws, and `low` and `high`, between which 95 % of them lie. NaN are left out."""
    low, high = np.nanquantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {"mean": float(np.nanmean(draws)), "low": float(low), "high": float(high)}


def fair_coins(filters: Sequence[int], drops: Sequence[float], seed: int = 0) -> np.ndarray:
    """Draw the rank correlation of bias and drops for layers whose signs are fair coins.

    filters: number of filters of each layer. drops: one per layer, not all equal.
    Return (DRAWS,) correlations; NaN where all biases of a draw are equal.
    """
    from scipy.stats import rankdata

    filters, random = np.asarray(filters), np.random.default_rng(seed)
    others = rankdata(drops)
    others -= others.mean()
    draws = []
    for _ in range(DRAWS // DRAWS_AT_ONCE):
        mass = random.binomial(filters, 0.5, (DRAWS_AT_ONCE, len(filters))) / filters
        ranks = rankdata(bias(mass), axis=1)
        ranks -= ranks.mean(1, keepdims=True)
        with np.errstate(invalid="ignore"):
            draws.append(ranks @ others / np.sqrt((ranks**2).sum(1) * (others @ others)))
    return np.concatenate(draws)
