"""Statistics over seeds, and the values that chance alone gives."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from utils import correlation
from utils.projections import CONFIDENCE, chance_of_mass

SIGNIFICANCE = round(1 - CONFIDENCE, 12)  #: a layer is biased if its p-value is below this


class Interval(NamedTuple):
    low: float
    high: float


def with_spread(values: Sequence[float], form: str) -> str:
    """Format mean ± standard deviation (n - 1) with a format such as ".2f"; of a single value only the mean."""
    mean = f"{statistics.fmean(values):{form}}"
    if float(mean) == 0:
        mean = mean.lstrip("-")
    return f"{mean} ± {statistics.stdev(values):{form}}" if len(values) > 1 else mean


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Return Student's confidence interval for the mean of one value per seed; None for fewer than two values.

    Seeds are independent of one another; the layers of one network are not.
    """
    if len(values) < 2:
        return None
    from scipy.stats import t

    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return Interval(mean - half, mean + half)


def correlation_interval(values: Sequence[float]) -> Interval | None:
    """Return the `mean_interval` of rank correlations, cut off at -1 and 1."""
    interval = mean_interval(values)
    return interval and Interval(max(interval.low, -1.0), min(interval.high, 1.0))


def p_of_mean(values: Sequence[float]) -> float | None:
    """Return the two-sided p-value of Student's test that the mean of one value per seed is 0.

    None if it is undefined: fewer than two values, or all are equal.
    """
    if len(set(values)) < 2:
        return None
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(values, 0).pvalue)


def expected_bias(filters: int) -> float:
    """Return the mean of |mass - 1/2| of a layer whose signs are fair coins: E|X/N - 1/2| with X ~ B(N, 1/2)."""
    # De Moivre's closed form of the mean absolute deviation of the binomial distribution, at p = 1/2.
    half = filters // 2 + 1
    log_probability = math.lgamma(filters + 1) - math.lgamma(half + 1) - math.lgamma(filters - half + 1)
    return half * math.exp(log_probability - filters * math.log(2)) / filters


def is_biased(layer: Mapping[str, Any]) -> bool:
    """Return whether the sign test rejects fair coins for a layer, without the filters of zeros."""
    p_value = layer["p_value_without_zeros"]
    return p_value is not None and p_value < SIGNIFICANCE


def biased_by_chance(filters: int) -> float:
    """Return the probability that `is_biased` finds a layer biased whose signs are fair coins: 0.05 or less."""
    from scipy.special import bdtr

    least = round(chance_of_mass(filters)[0] * filters)  # non-positive projections that are not yet bias
    return 2 * float(bdtr(least - 1, filters, 0.5)) if least else 0.0


def without_zeros(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the number of filters of a layer and its mass without the filters of zeros."""
    live = layer["filters"] - layer["zero_filters"]
    return {"filters": live, "mass": (layer["mass"] * layer["filters"] - layer["zero_filters"]) / live}


def mean_bias(layers: Mapping[str, Mapping[str, Any]]) -> float:
    """Return the mean of |mass - 1/2| over the layers of a network."""
    return float(correlation.bias([layer["mass"] for layer in layers.values()]).mean())
