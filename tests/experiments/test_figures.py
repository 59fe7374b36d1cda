"""The figures of several runs show the given numbers: tests read what is drawn back from the axes."""

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from experiments import figures
from experiments.compare import mean_of_runs


def run(shift: float) -> dict[int, dict]:
    """Return a run of two layers: epochs trained -> layers."""
    return {
        epoch: {
            "first": {"mass": 0.5 + shift + epoch / 100, "mean": -0.1 - shift - epoch / 100, "filters": 6},
            "second": {"mass": 0.1 + shift, "mean": 0.2 + shift, "filters": 6},
        }
        for epoch in (0, 1, 10)
    }


def lines(axes) -> list[np.ndarray]:
    """Return the points of each line over the epochs, in the order of drawing."""
    return [line.get_xydata() for line in axes.lines if len(line.get_xdata()) == 3]


def scattered(axes) -> list[np.ndarray]:
    return [np.asarray(one.get_offsets()) for one in axes.collections if isinstance(one, PathCollection)]


@pytest.mark.parametrize(("statistic", "at_10", "sign"), [("mass", 0.6, 1), ("mean", -0.2, -1)])
def test_groups_of_runs_are_shown_by_mean_and_spread(statistic, at_10, sign):
    shifts = {"true": [0.0, 0.1, 0.35], "noise": [0.05, 0.15]}
    groups = {label: [run(shift) for shift in of_group] for label, of_group in shifts.items()}
    first, _ = figures.compare_runs(groups, statistic, "LeNet").axes
    bands = [band.get_paths()[0].vertices for band in first.collections]
    for of_group, line, band in zip(shifts.values(), lines(first), bands, strict=True):
        assert line[-1] == pytest.approx((10, at_10 + sign * np.mean(of_group)))
        assert np.ptp(band[band[:, 0] == 10, 1]) == pytest.approx(2 * np.std(of_group, ddof=1))


def test_single_group_shows_each_run_and_the_mean():
    first, _ = figures.compare_runs({"true": [run(0), run(0.1)]}, "mass", "LeNet").axes
    np.testing.assert_allclose([line[-1, 1] for line in lines(first)], [0.6, 0.7, 0.65])


def resets(drops: list[float], masses: list[float], top1: float) -> dict:
    return {
        "layers": ["a", "b"],
        "hidden_layers": ["b"],
        "relative_drop": {"0": drops, "rand": [0.9, 0.9]},
        "corrected_drop": {"0": [drop + 0.05 for drop in drops], "rand": [1.0, 1.0]},
        "top1_test": top1,
        "projections": {name: {"mass": mass} for name, mass in zip("ab", masses, strict=True)},
    }


RESETS = [resets([0.25, 0.75], [0.25, 1.0], 80), resets([0.5, 0.5], [0.625, 0.75], 90)]


def test_points_of_runs_surround_their_mean():
    (axes,) = figures.bias_and_criticality_of_runs(RESETS, "LeNet", "text").axes
    means, *of_layers = scattered(axes)
    np.testing.assert_allclose(means, [(0.4375, 42.5), (0.875, 67.5)])
    np.testing.assert_allclose(of_layers, [[(0.25, 30), (0.625, 55)], [(1, 80), (0.75, 55)]])


def test_mean_of_runs_is_taken_layer_by_layer():
    drops = {"0": [0.375, 0.625], "rand": [0.9, 0.9]}
    assert mean_of_runs(RESETS) == {"layers": ["a", "b"], "relative_drop": drops, "top1_test": 85.0}


def test_networks_are_rows_of_the_masses_of_their_layers():
    results = {
        name: {"0": {str(i): {"name": str(i), "mass": mass} for i, mass in enumerate(masses)}}
        for name, masses in (("one", (0.5, 1.0)), ("two", (0.25, 0.75)))
    }
    axes = figures.masses_of_networks(results, "Zoo").axes[0]
    np.testing.assert_allclose(scattered(axes), [[(0.5, 0), (1, 0)], [(0.25, 1), (0.75, 1)]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]
