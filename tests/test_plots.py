"""Figures show the numbers that they are given: what is drawn is read back from their axes."""

import math

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.offsetbox import AnnotationBbox

from experiments.compare import mean_of_runs
from utils import plots

EPOCHS = (0, 1, 10)


def layer(mass: float, mean: float = 0.0, **more) -> dict:
    return {"mass": mass, "mean": mean, "std": 0.5, "filters": 6, **more}


def points(shift: float = 0.0) -> dict[int, dict]:
    """Two layers at three epochs, each number of its own."""
    return {
        epoch: {
            "first": layer(
                0.5 + shift + epoch / 100, -0.1 - shift - epoch / 100, l2_dist=float(epoch), l_inf_dist=None
            ),
            "second": layer(0.1 + shift + epoch / 100, 0.2 + shift, l2_dist=2.0 * epoch, l_inf_dist=None),
        }
        for epoch in EPOCHS
    }


def lines(axes) -> list[list[tuple[float, float]]]:
    """The points of each line with more than two, in the order of drawing."""
    return [line.get_xydata() for line in axes.lines if len(line.get_xdata()) == len(EPOCHS)]


def scattered(axes) -> list[np.ndarray]:
    return [np.asarray(one.get_offsets()) for one in axes.collections if isinstance(one, PathCollection)]


def numbered(axes) -> list[tuple[float, float]]:
    """Where the numbered discs belong, also those that are moved aside."""
    return [artist.xy for artist in axes.get_children() if isinstance(artist, AnnotationBbox)]


def test_mass_is_drawn_against_epoch_in_the_band_of_chance():
    first, second = plots.mass_by_epoch(points(), "LeNet").axes
    np.testing.assert_allclose(lines(first)[0], [(0, 0.5), (1, 0.51), (10, 0.6)])
    np.testing.assert_allclose(lines(second)[0], [(0, 0.1), (1, 0.11), (10, 0.2)])
    # Of six filters all on one side have p = 0.03, and five p = 0.22.
    band = first.patches[0].get_extents().transformed(first.transData.inverted())
    assert (band.y0, band.y1) == pytest.approx((1 / 6, 5 / 6))


def test_mean_is_drawn_against_epoch_in_the_band_of_chance():
    first, _ = plots.mean_by_epoch(points(), True, "LeNet").axes
    np.testing.assert_allclose(lines(first)[0], [(0, -0.1), (1, -0.11), (10, -0.2)])
    heights = first.collections[0].get_paths()[0].vertices[:, 1]
    expected = 1.959964 * math.sqrt((0.2**2 + 0.5**2) / 6)  # widest at the last epoch
    assert (heights.min(), heights.max()) == pytest.approx((-expected, expected))


def test_distance_is_drawn_against_epoch_where_it_is_defined():
    l2, l_inf = plots.distance_by_epoch(points(), "LeNet").axes
    np.testing.assert_allclose(lines(l2), [[(0, 0), (1, 1), (10, 10)], [(0, 0), (1, 2), (10, 20)]])
    assert np.isnan([line[:, 1] for line in lines(l_inf)]).all()
    assert [text.get_text() for text in l_inf.texts] == ["not defined: initial weights are zero"]


def test_figure_is_the_same_whatever_the_users_style_and_the_letters_of_a_name(tmp_path, recwarn):
    def drawn(title: str) -> bytes:
        return plots.save(plots.distance_by_epoch(points(), title), tmp_path / "figure")[1].read_bytes()

    plain = drawn("LeNet")
    with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "black", "font.size": 30}):
        assert drawn("LeNet") == plain
    assert drawn(r"run$a_{$b \x") != plain
    assert drawn("\u4e2d\u6587") != plain
    # Another test's garbage may be warned about meanwhile.
    assert [str(warned.message) for warned in recwarn.list if "glyph" in str(warned.message).lower()] == []


def test_distribution_counts_every_filter_on_its_side_of_zero():
    values = [-0.9, -0.2, 0.0, 0.0, 0.3]
    figure = plots.distributions({"only": {**layer(0.8), "projections": values}}, True, "LeNet")
    negative, positive = figure.axes[0].patches
    assert negative.get_data().values.sum() == 4
    assert negative.get_data().edges[-1] == 0
    assert positive.get_data().values.sum() == 1
    assert positive.get_data().edges[0] == 0
    assert [text.get_text() for text in figure.axes[0].texts] == ["mass 0.80"]


@pytest.mark.parametrize(("statistic", "at_10"), [("mass", 0.6), ("mean", -0.2)])
def test_runs_are_compared_by_their_mean_and_spread(statistic, at_10):
    away = 1 if statistic == "mass" else -1
    groups = {"true": [points(), points(0.1), points(0.35)], "noise": [points(0.05), points(0.15)]}
    first, _ = plots.compare_runs(groups, statistic, "LeNet").axes
    true, noise = lines(first)
    assert true[-1] == pytest.approx((10, at_10 + 0.15 * away))
    assert noise[-1] == pytest.approx((10, at_10 + 0.1 * away))
    bands = [band.get_paths()[0].vertices for band in first.collections]
    at_the_end = [band[band[:, 0] == 10, 1] for band in bands]
    spread = np.std([0, 0.1, 0.35], ddof=1)
    assert np.ptp(at_the_end[0]) == pytest.approx(2 * spread)
    assert np.ptp(at_the_end[1]) == pytest.approx(2 * np.std([0.05, 0.15], ddof=1))


def test_single_group_of_runs_shows_each_of_them():
    first, _ = plots.compare_runs({"true": [points(), points(0.1)]}, "mass", "LeNet").axes
    np.testing.assert_allclose([line[-1, 1] for line in lines(first)], [0.6, 0.7, 0.65])


def reset(drops: list[float | None], masses: tuple[float, ...], top1: float = 90.0) -> dict:
    names = [f"layer{number}" for number in range(len(drops))]
    return {
        "layers": names,
        "relative_drop": {"0": drops, "rand": [0.9 if drop is not None else None for drop in drops]},
        "top1_test": top1,
        "projections": {name: layer(mass) for name, mass in zip(names, masses, strict=True)},
        "correlation": {"spearman": None},
    }


def test_heat_map_has_the_accuracy_lost_in_percent():
    figure = plots.accuracy_loss(reset([0.25, None, -0.01], (0.5, 0.6, 0.7)), "LeNet")
    image = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(image.filled(math.nan), [[25, math.nan, -1], [90, math.nan, 90]])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "fresh random"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["25", "", "-1", "90", "", "90"]
    assert "trained: 90.00 %" in figure.get_suptitle()


def test_points_are_bias_against_the_accuracy_lost():
    figure = plots.bias_and_criticality(reset([0.25, None, 0.75], (0.25, 0.6, 1.0)), "LeNet")
    np.testing.assert_allclose(numbered(figure.axes[0]), [(0.25, 25), (0.5, 75)])


def test_points_without_a_reset_to_the_initialization_say_that_correlation_is_about_that():
    results = reset([0.25, 0.75], (0.25, 1.0))
    assert "not defined" in plots.bias_and_criticality(results, "LeNet").axes[0].get_title()
    del results["relative_drop"]["0"]
    axes = plots.bias_and_criticality(results, "LeNet").axes[0]
    assert "only for layers reset to their initialization" in axes.get_title()
    assert "fresh random weights" in axes.get_ylabel()


def test_points_of_runs_are_around_their_mean():
    runs = [reset([0.25, 0.75], (0.25, 1.0)), reset([0.5, 0.5], (0.625, 0.75))]
    axes = plots.bias_and_criticality_of_runs(runs, "LeNet", "told").axes[0]
    np.testing.assert_allclose(numbered(axes), [(0.1875, 37.5), (0.375, 62.5)])
    np.testing.assert_allclose(scattered(axes), [[(0.25, 25), (0.125, 50)], [(0.5, 75), (0.25, 50)]])


def test_mean_of_runs_is_layer_by_layer():
    mean = mean_of_runs([reset([0.25, 0.75], (0.5, 0.5), 80.0), reset([0.5, 0.5], (0.5, 0.5), 90.0)])
    assert mean["relative_drop"] == {"0": [0.375, 0.625], "rand": [0.9, 0.9]}
    assert mean["top1_test"] == 85.0


def test_networks_are_rows_of_the_masses_of_their_layers():
    results = {
        name: {"0": {str(i): {"name": str(i), "mass": mass} for i, mass in enumerate(masses)}}
        for name, masses in (("one", (0.5, 1.0)), ("two", (0.25, 0.75)))
    }
    axes = plots.masses_of_networks(results, "Zoo").axes[0]
    np.testing.assert_allclose(scattered(axes), [[(0.5, 0), (1, 0)], [(0.25, 1), (0.75, 1)]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]
