"""The correlation of bias and criticality equals enumerations of all pairings and of all tosses of coins."""

import itertools

import numpy as np
import pytest
from scipy import stats

from utils import correlation


def layers(mass, filters=None, l2_dist=None):
    """Return layers as they are measured; their mean projection is half of 1/2 - mass."""
    columns = zip(mass, filters or [8] * len(mass), l2_dist or [1.0] * len(mass), strict=True)
    return [{"mass": m, "mean": (0.5 - m) / 2, "filters": n, "l2_dist": moved} for m, n, moved in columns]


def correlate(mass, drops, filters=None, of="bias"):
    return correlation.correlations(layers(mass, filters), drops)[of]


def by_definition(mass, drops) -> tuple[float, float]:
    """Return the correlation of the ranks, and the share of pairings that are at least as far from 0."""
    bias, lost = (stats.rankdata(values) for values in ([abs(m - 0.5) for m in mass], drops))
    r = stats.pearsonr(bias, lost).statistic
    others = [stats.pearsonr(bias, order).statistic for order in itertools.permutations(lost)]
    return r, np.mean(np.abs(others) >= abs(r) - 1e-9)


@pytest.mark.parametrize(
    ("mass", "drops"),
    [
        ([0.5, 0.9, 0.2, 1.0, 0.45, 0.7], [0.1, 0.8, 0.2, 0.7, 0.0, 0.3]),
        # With ties in both the distribution is asymmetric: twice the smaller tail would be 0.8 instead of 0.4.
        ([0.5, 0.5, 0.5, 0.5, 0.8], [0.9, 0.0, 0.0, 0.0, 0.9]),
        ([0.75, 1.0, 1.0], [0.7, 0.1, 0.1]),
    ],
)
def test_rank_correlation_is_spearmans_with_the_exact_p_value(mass, drops):
    r, p = by_definition(mass, drops)
    found = correlate(mass, drops)
    assert (found["spearman"], found["p_value"]) == (pytest.approx(r), pytest.approx(p))


@pytest.mark.parametrize(("layers", "p_value"), [(3, 2 / 6), (4, 2 / 24), (8, 2 / 40_320)])
def test_p_value_of_perfect_order_is_that_of_two_pairings(layers, p_value):
    found = correlate([0.5 + layer / 20 for layer in range(layers)], list(range(layers)))
    assert (found["spearman"], found["p_value"]) == (pytest.approx(1), pytest.approx(p_value))


def test_p_value_for_many_layers_is_that_of_students_t():
    mass = [0.5, 0.9, 0.2, 1.0, 0.45, 0.7, 0.65, 0.75, 0.85, 0.57]
    drops = [0.1, 0.8, 0.2, 0.7, 0.0, 0.3, 0.5, 0.4, 0.6, 0.9]
    r = stats.pearsonr(stats.rankdata([abs(m - 0.5) for m in mass]), stats.rankdata(drops)).statistic
    p = 2 * stats.t.sf(abs(r) * (8 / (1 - r * r)) ** 0.5, 8)
    assert correlate(mass, drops)["p_value"] == pytest.approx(p)


def test_equal_biases_to_different_sides_are_ties():
    mass, drops = [2 / 6, 4 / 6, 15 / 16, 11 / 16, 0.85, 0.96], [0.9, 0.1, 0.5, 0.4, 0.2, 0.3]
    ranks = [1.5, 1.5, 5, 3, 4, 6]
    expected = stats.pearsonr(ranks, stats.rankdata(drops)).statistic
    assert correlate(mass, drops)["spearman"] == pytest.approx(expected)


def test_draws_of_fair_coins_have_the_distribution_of_all_tosses():
    """The mass of a layer with one filter is always 0 or 1; with more filters it is closer to 1/2."""
    filters, drops = [1, 2, 4], [0.9, 0.5, 0.1]
    found, chance = [], []
    for toss in itertools.product(*(range(n + 1) for n in filters)):
        biases = [abs(k / n - 0.5) for k, n in zip(toss, filters, strict=True)]
        found.append(stats.spearmanr(biases, drops).statistic if len(set(biases)) > 1 else np.nan)
        chance.append(np.prod([stats.binom.pmf(k, n, 0.5) for k, n in zip(toss, filters, strict=True)]))
    found, chance = np.array(found), np.array(chance)
    defined = ~np.isnan(found)
    expected = np.average(found[defined], weights=chance[defined])
    assert expected > 0.5
    draws = correlation.fair_coins(filters, drops)
    assert np.nanmean(draws) == pytest.approx(expected, abs=0.02)
    assert np.isnan(draws).mean() == pytest.approx(chance[~defined].sum(), abs=0.02)
    assert set(np.round(draws[~np.isnan(draws)], 9)) == set(np.round(found[defined], 9))
    low, high = np.nanquantile(draws, [0.025, 0.975])
    coins = correlate([1.0, 0.5, 0.75], drops, filters)["fair_coins"]
    assert coins == {"mean": np.nanmean(draws), "low": low, "high": high}


def test_signed_mass_of_fair_coins_correlates_with_nothing_on_average():
    filters, drops = [6, 16, 64, 256], [0.9, 0.6, 0.3, 0.1]
    signed, unsigned = (np.nanmean(correlation.fair_coins(filters, drops, of=of)) for of in ("mass", "bias"))
    assert signed == pytest.approx(0, abs=0.01)
    assert unsigned > 0.3  # small layers are further from 1/2, and here they are critical


def test_partial_correlation_is_that_of_residuals_of_ranks():
    random = np.random.default_rng(1)
    values, drops, given = random.random((3, 9)).round(1)
    ranks = [stats.rankdata(one) for one in (values, drops, given)]
    lines = [np.polyval(np.polyfit(ranks[2], one, 1), ranks[2]) for one in ranks[:2]]
    residuals = [one - line for one, line in zip(ranks, lines, strict=False)]
    expected = stats.pearsonr(*residuals).statistic
    assert correlation.partial(values, drops, given) == pytest.approx(expected)
    assert correlation.partial(values, drops, drops) is None  # nothing is left to explain
    assert correlation.partial(values, drops, [1] * 9) is None


def test_bias_is_correlated_beside_its_rivals():
    mass, drops, moved = [0.5, 0.9, 0.2, 0.7], [0.1, 0.8, 0.2, 0.3], [2.0, 1.0, 4.0, 3.0]
    found = correlation.correlations(layers(mass, l2_dist=moved), drops)
    of = {
        "mass": mass,
        "bias": [0, 0.4, 0.3, 0.2],
        "mean": [-m for m in mass],
        "depth": range(4),
        "l2_dist": moved,
    }
    assert list(found) == list(of) == list(correlation.NAMES)
    for name, values in of.items():
        assert found[name]["spearman"] == pytest.approx(stats.spearmanr(values, drops).statistic)
    assert found["mass"]["given_depth"] == correlation.partial(mass, drops, range(4))
    assert found["depth"]["given_l2_dist"] == correlation.partial(range(4), drops, moved)
    assert {name for name, one in found.items() if "fair_coins" in one} == {"mass", "bias"}
    without = [{**layer, "l2_dist": None} for layer in layers(mass)]  # their initialization is all zero
    assert "l2_dist" not in correlation.correlations(without, drops)


@pytest.mark.parametrize(
    ("mass", "drops"),
    [
        ([2 / 6, 4 / 6, 2 / 6], [0.1, 0.2, 0.3]),  # equal biases to different sides
        ([0.5, 0.6, 0.7], [0.2, 0.2, 0.2]),
    ],
)
def test_undefined_correlation_is_none(mass, drops):
    found = correlate(mass, drops)
    assert (found["spearman"], found["p_value"], found["fair_coins"]) == (None, None, None)


@pytest.mark.parametrize(("mass", "drops"), [([0.5, 0.9], [0.1, 0.2]), ([0.5, 0.6, 0.7], [None, 0.1, 0.2])])
def test_there_are_no_correlations_of_too_few_layers_or_drops(mass, drops):
    assert correlation.correlations(layers(mass), drops) == {}
