"""The correlation of bias and criticality, beside all pairings and all tosses of the coins."""

import itertools

import numpy as np
import pytest
from scipy import stats

from utils import correlation

UNDEFINED = {"spearman": None, "p_value": None, "fair_coins": None}


def correlation_of(mass, drops, filters=None):
    return correlation.rank_correlation(mass, filters or [8] * len(mass), drops)


def by_definition(mass, drops) -> tuple[float, float]:
    """The correlation of the ranks, and the share of pairings that are at least as far from 0."""
    bias, lost = (stats.rankdata(values) for values in ([abs(m - 0.5) for m in mass], drops))
    r = stats.pearsonr(bias, lost).statistic
    others = [stats.pearsonr(bias, order).statistic for order in itertools.permutations(lost)]
    return r, np.mean(np.abs(others) >= abs(r) - 1e-9)


@pytest.mark.parametrize(
    ("mass", "drops"),
    [
        ([0.5, 0.9, 0.2, 1.0, 0.45, 0.7], [0.1, 0.8, 0.2, 0.7, 0.0, 0.3]),
        # Ties in both make the pairings lopsided: the smaller tail, doubled, would be 0.8 instead of 0.4.
        ([0.5, 0.5, 0.5, 0.5, 0.8], [0.9, 0.0, 0.0, 0.0, 0.9]),
        ([0.75, 1.0, 1.0], [0.7, 0.1, 0.1]),
    ],
)
def test_rank_correlation_is_spearmans(mass, drops):
    r, p = by_definition(mass, drops)
    result = correlation_of(mass, drops)
    assert (result["spearman"], result["p_value"]) == (pytest.approx(r), pytest.approx(p))


@pytest.mark.parametrize(("layers", "p_value"), [(3, 2 / 6), (4, 2 / 24), (8, 2 / 40_320)])
def test_layers_in_perfect_order_have_one_pairing_each_way(layers, p_value):
    result = correlation_of([0.5 + layer / 20 for layer in range(layers)], list(range(layers)))
    assert (result["spearman"], result["p_value"]) == (pytest.approx(1), pytest.approx(p_value))


def test_of_many_layers_the_p_value_is_that_of_students_t():
    mass = [0.5, 0.9, 0.2, 1.0, 0.45, 0.7, 0.65, 0.75, 0.85, 0.57]
    drops = [0.1, 0.8, 0.2, 0.7, 0.0, 0.3, 0.5, 0.4, 0.6, 0.9]
    r = stats.pearsonr(stats.rankdata([abs(m - 0.5) for m in mass]), stats.rankdata(drops)).statistic
    p = 2 * stats.t.sf(abs(r) * (8 / (1 - r * r)) ** 0.5, 8)
    assert correlation_of(mass, drops)["p_value"] == pytest.approx(p)


def test_bias_to_either_side_is_a_tie():
    mass, drops = [2 / 6, 4 / 6, 15 / 16, 11 / 16, 0.85, 0.96], [0.9, 0.1, 0.5, 0.4, 0.2, 0.3]
    ranks = [1.5, 1.5, 5, 3, 4, 6]
    expected = stats.pearsonr(ranks, stats.rankdata(drops)).statistic
    assert correlation_of(mass, drops)["spearman"] == pytest.approx(expected)


def test_fair_coins_correlate_as_all_their_tosses_do():
    """A layer of one filter is always on one side; those of two and four filters are so less often."""
    filters, drops = [1, 2, 4], [0.9, 0.5, 0.1]
    tosses = list(itertools.product(*(range(n + 1) for n in filters)))
    chance = [np.prod([stats.binom.pmf(k, n, 0.5) for k, n in zip(toss, filters, strict=True)]) for toss in tosses]
    found = [
        stats.spearmanr([abs(k / n - 0.5) for k, n in zip(toss, filters, strict=True)], drops).statistic
        if len({abs(k / n - 0.5) for k, n in zip(toss, filters, strict=True)}) > 1
        else np.nan
        for toss in tosses
    ]
    defined = ~np.isnan(found)
    expected = np.average(np.array(found)[defined], weights=np.array(chance)[defined])
    assert expected > 0.5
    drawn = correlation.fair_coins(filters, drops)
    assert np.nanmean(drawn) == pytest.approx(expected, abs=0.02)
    assert np.isnan(drawn).mean() == pytest.approx(np.array(chance)[~defined].sum(), abs=0.02)
    assert set(np.round(drawn[~np.isnan(drawn)], 9)) == set(np.round(np.array(found)[defined], 9))
    coins = correlation_of([1.0, 0.5, 0.75], drops, filters)["fair_coins"]
    assert coins == {
        "mean": np.nanmean(drawn),
        "low": np.nanquantile(drawn, 0.025),
        "high": np.nanquantile(drawn, 0.975),
    }


@pytest.mark.parametrize(
    ("mass", "drops"),
    [
        ([0.5, 0.9], [0.1, 0.2]),
        ([2 / 6, 4 / 6, 2 / 6], [0.1, 0.2, 0.3]),  # the same bias to either side
        ([0.5, 0.6, 0.7], [0.2, 0.2, 0.2]),
        ([0.5, 0.6, 0.7], [None, None, None]),
        ([0.5, 0.6, 0.7], None),
    ],
)
def test_correlation_that_is_not_defined_is_none(mass, drops):
    assert correlation_of(mass, drops) == UNDEFINED
