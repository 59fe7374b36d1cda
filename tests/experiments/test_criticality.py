"""Tests over seeds equal enumerations, and have the errors and the power that they should."""

import itertools

import numpy as np
import pytest
from scipy import stats

from experiments import criticality
from experiments.criticality import Counts
from utils import reinit

RANDOM = np.random.default_rng(3)


def result(mass: list[float], drops: dict[str, list[float]]) -> dict:
    names = [f"layer{number}" for number in range(len(mass))]
    layers = {
        name: {"mass": m, "mean": 0.0, "filters": 8, "p_value_without_zeros": 0.01 if m > 0.9 else 0.5}
        for name, m in zip(names, mass, strict=True)
    }
    return {"layers": names, "hidden_layers": names[1:], "projections": layers, "corrected_drop": drops}


def test_layers_are_shuffled_in_one_order_for_all_seeds():
    values, drops = RANDOM.random((2, 3, 4))

    def mean(order):
        pairs = zip(values[:, order], drops, strict=True)
        return np.mean([stats.spearmanr(*pair).statistic for pair in pairs])

    found = [mean(list(order)) for order in itertools.permutations(range(4))]
    expected = np.mean(np.abs(found) >= abs(found[0]) - 1e-9)
    assert criticality.p_of_shuffled_layers(values, drops) == pytest.approx(expected)
    # Twenty networks with the same layers say no more about the layers than one.
    perfect = [[1, 2, 3, 4]] * 20
    assert criticality.p_of_shuffled_layers(perfect, perfect) == pytest.approx(2 / 24)
    assert criticality.p_of_shuffled_layers([[1, 1]], [[1, 2]]) is None


def test_seeds_are_shuffled_whole():
    biased, critical = RANDOM.random((2, 5, 4)) < 0.5
    found = [(biased[list(order)] & critical).sum() for order in itertools.permutations(range(5))]
    counts = Counts(biased, critical)
    assert counts.p_of_shuffled_seeds() == pytest.approx(np.mean(np.array(found) >= found[0]))
    # Where all networks have the same biased and critical layers, seeds say nothing; Fisher's test is deceived.
    same = Counts(np.tile([True, False], (10, 1)), np.tile([True, False], (10, 1)))
    assert same.p_of_shuffled_seeds() == 1
    assert same.p_of_fisher() < 1e-4
    assert same.table() == [[10, 0], [0, 10]]


def test_random_orders_are_as_good_as_all_of_them():
    values, drops = RANDOM.random((2, 2, 8))
    every = np.array(list(itertools.permutations(range(8))))
    found = sum(
        stats.rankdata(value)[every] @ (stats.rankdata(drop) - 4.5)
        for value, drop in zip(values, drops, strict=True)
    )
    expected = np.mean(np.abs(found) >= abs(found[0]) - 1e-9)
    assert criticality.p_of_shuffled_layers(values, drops) == pytest.approx(expected, abs=0.02)


def test_power_is_the_level_without_an_effect_and_grows_with_it():
    assert criticality.power(10, 6, 0.0) == pytest.approx(0.025, abs=0.01)
    powers = [criticality.power(5, 6, effect) for effect in (0.3, 0.5, 0.7, 0.9)]
    assert powers == sorted(powers)
    assert powers[1] == pytest.approx(0.47, abs=0.03)
    least = criticality.detectable(10, 6)
    assert criticality.power(10, 6, least) >= 0.8 > criticality.power(10, 6, round(least - 0.05, 2))
    assert criticality.detectable(2, 3) is None


def test_interventions_are_compared_seed_by_seed():
    line, largest = reinit.DIRECTIONS
    runs = {
        f"seed {seed}": result(
            [0.5, 0.8, 1.0],
            {"0": [0.9, 0.5, 0.3], line: [0.9, 0.1 * seed, 0.3], largest: [0.9, 0.0, 0.02]},
        )
        for seed in (1, 2, 3)
    }
    (told,) = criticality.interventions(runs)
    half = 5 * stats.t.ppf(0.975, 2) / 3**0.5
    assert f"a layer loses 25.0 % (95 % interval {25 - half:.1f} to {25 + half:.1f})" in told
    assert f"which is less by 24.0 % (95 % interval {24 - half:.1f} to {24 + half:.1f})" in told
    del runs["seed 2"]["corrected_drop"][largest]
    assert criticality.interventions(runs) == []
