"""Are biased layers the critical ones? Spearman's rank correlation over the layers of a network, beside chance's.

|mass - 1/2| is not 0 where nothing is biased: of N fair coins it is about 0.4 / sqrt(N), most for layers with few
filters. Where those are also the critical ones, as the early layers of many networks are, fair coins correlate
with criticality too. So a correlation says little before it is compared with theirs.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from utils.projections import CONFIDENCE

EXACT_LAYERS = 9  #: up to which the p-value of a correlation counts all 9! pairings
DRAWS = 100_000  #: of fair coins: the ends of their interval are then right to 0.01
DRAWS_AT_ONCE = 10_000


def bias(mass: float | np.ndarray) -> np.ndarray:
    """|mass - 1/2|, rounded so that k/N and (N - k)/N are the same, which they are not to the last bit."""
    return np.round(np.abs(np.asarray(mass) - 0.5), 12)


def rank_correlation(
    mass: Sequence[float], filters: Sequence[int], drops: Sequence[float | None] | None
) -> dict[str, Any]:
    """Spearman's rank correlation over layers between bias |mass - 1/2| and the relative drop of accuracy.

    Args:
        mass: share of filters with non-positive projection, of each layer.
        filters: of each layer.
        drops: of each layer, when it is reset to its initialization; None: not measured.

    Returns:
        `spearman` in [-1, 1]; its two-sided `p_value`, if any pairing of bias and drops were equally likely: exact
        up to EXACT_LAYERS layers, for more from the t distribution, which gives far too little for few layers (0
        for three in order, where the least possible is 1/3); and `fair_coins`, what the correlation would be if
        the signs of filters were fair coins: `mean`, and `low` and `high`, between which are 95 % of draws. All
        None where it is not defined: fewer than three layers, or one of the two is the same for all.
    """
    from scipy.stats import permutation_test, rankdata, spearmanr

    undefined = {"spearman": None, "p_value": None, "fair_coins": None}
    if drops is None or None in drops or len(mass) < 3:
        return undefined
    biases = bias(mass)
    if len(set(biases)) == 1 or len(set(drops)) == 1:
        return undefined
    result = spearmanr(biases, drops)
    p_value = result.pvalue
    if len(mass) <= EXACT_LAYERS:
        ranks, others = (rankdata(values) - (len(values) + 1) / 2 for values in (biases, drops))

        def covariance(ranks, axis):  # of the ranks, which orders the pairings as the correlation does
            return abs((ranks * others).sum(axis))

        p_value = permutation_test(
            (ranks,), covariance, permutation_type="pairings", alternative="greater", n_resamples=math.inf
        ).pvalue
    coins = summary(fair_coins(filters, drops))
    return {"spearman": float(result.statistic), "p_value": float(p_value), "fair_coins": coins}


def summary(drawn: np.ndarray) -> dict[str, float]:
    """The mean of draws, and between which values 95 % of them are (`low`, `high`); NaN are left out."""
    low, high = np.nanquantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {"mean": float(np.nanmean(drawn)), "low": float(low), "high": float(high)}


def fair_coins(filters: Sequence[int], drops: Sequence[float], seed: int = 0) -> np.ndarray:
    """The rank correlation with the drops of layers whose filters lie to either side by the toss of a fair coin.

    Args:
        filters: of each layer.
        drops: of each layer, not all the same.

    Returns:
        (DRAWS,) correlations, NaN where all biases drawn are the same.
    """
    from scipy.stats import rankdata

    filters, random = np.asarray(filters), np.random.default_rng(seed)
    others = rankdata(drops)
    others -= others.mean()
    drawn = []
    for _ in range(DRAWS // DRAWS_AT_ONCE):
        tossed = random.binomial(filters, 0.5, (DRAWS_AT_ONCE, len(filters))) / filters
        ranks = rankdata(bias(tossed), axis=1)
        ranks -= ranks.mean(1, keepdims=True)
        with np.errstate(invalid="ignore"):
            drawn.append(ranks @ others / np.sqrt((ranks**2).sum(1) * (others @ others)))
    return np.concatenate(drawn)
