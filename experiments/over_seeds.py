"""Statistics over seeds, and what chance alone would give."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from utils import correlation, reinit
from utils.projections import CONFIDENCE

SIGNIFICANCE = 0.05  #: a layer counts as biased where chance alone is less likely than this to take it as far


class Interval(NamedTuple):
    low: float
    high: float


def with_spread(values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation (of the sample, n - 1), in a format such as ".2f"; of a single value it alone."""
    mean = f"{statistics.fmean(values):{form}}"
    if float(mean) == 0:
        mean = mean.lstrip("-")
    return f"{mean} ± {statistics.stdev(values):{form}}" if len(values) > 1 else mean


def mean_interval(values: Sequence[float]) -> Interval | None:
    """The confidence interval for the mean of one value a seed, from Student's t distribution.

    The seeds are the independent units: the layers of one network are not independent of one another.

    Returns:
        None with fewer than two values.
    """
    if len(values) < 2:
        return None
    from scipy.stats import t

    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return Interval(mean - half, mean + half)


def correlation_interval(values: Sequence[float]) -> Interval | None:
    """`mean_interval` for rank correlations, cut off at -1 and 1."""
    interval = mean_interval(values)
    return interval and Interval(max(interval.low, -1.0), min(interval.high, 1.0))


def bootstrap_interval(values: Sequence[float]) -> Interval | None:
    """The confidence interval for the mean of one value a seed, from means of values drawn from these again.

    It stays within the range of the values, but is too narrow for few seeds.

    Returns:
        None with fewer than two values.
    """
    if len(values) < 2:
        return None
    means = np.random.default_rng(0).choice(values, (correlation.DRAWS, len(values))).mean(1)
    return Interval(*np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist())


def p_of_mean(values: Sequence[float]) -> float | None:
    """The two-sided p-value of Student's test that the mean of one value a seed is 0.

    Returns:
        None with fewer than two values, or where all are the same.
    """
    if len(set(values)) < 2:
        return None
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(values, 0).pvalue)


def expected_bias(filters: int) -> float:
    """The mean of |mass - 1/2| for a layer whose signs are fair coins: E|X/N - 1/2| with X ~ B(N, 1/2)."""
    # De Moivre's closed form of the mean absolute deviation of the binomial distribution, at p = 1/2.
    half = filters // 2 + 1
    log_probability = math.lgamma(filters + 1) - math.lgamma(half + 1) - math.lgamma(filters - half + 1)
    return half * math.exp(log_probability - filters * math.log(2)) / filters


def is_biased(layer: Mapping[str, Any]) -> bool:
    """Whether the filters of a layer, without those that are all zero, lie to one side beyond chance."""
    p_value = layer["p_value_without_zeros"]
    return p_value is not None and p_value < SIGNIFICANCE


def without_zeros(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Filters and mass of a layer without the filters that are all zero, which count as non-positive."""
    live = layer["filters"] - layer["zero_filters"]
    return {"filters": live, "mass": (layer["mass"] * layer["filters"] - layer["zero_filters"]) / live}


def mean_bias(layers: Mapping[str, Mapping[str, Any]]) -> float:
    """The bias |mass - 1/2| of a network's layers, its mean."""
    return float(correlation.bias([layer["mass"] for layer in layers.values()]).mean())


def initial_drops(result: Mapping[str, Any]) -> list[float]:
    """The relative drops of the layers reset to the weights that training started from."""
    return result["relative_drop"][reinit.initialization_row(result["relative_drop"])]


def correlations(results: Mapping[str, Mapping[str, Any]]) -> list[float | None]:
    return [result["correlation"]["spearman"] for result in results.values()]


def fair_coins(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The mean rank correlation of several runs if the signs of their filters were fair coins.

    Args:
        results: label of a run -> results of reinit_layers.py; runs whose correlation is not defined are left out,
            and so are draws in which one is not.

    Returns:
        `mean`, `low` and `high`, as of utils.correlation.summary.
    """
    drawn = []
    for seed, result in enumerate(results.values()):
        if result["correlation"]["spearman"] is not None:
            filters = [result["projections"][name]["filters"] for name in result["layers"]]
            drawn.append(correlation.fair_coins(filters, initial_drops(result), seed))
    return correlation.summary(np.mean(drawn, axis=0))
