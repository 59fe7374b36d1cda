"""The figures show the given numbers: tests read what is drawn back from the axes."""

import math

import matplotlib
import numpy as np
import pytest

from utils import plots


def layer(mass: float, mean: float = 0.0, **more) -> dict:
    return {"mass": mass, "mean": mean, "std": 0.5, "filters": 6, **more}


POINTS = {  # epochs trained -> layers
    epoch: {
        "first": layer(0.5 + epoch / 100, -0.1 - epoch / 100, l2_dist=float(epoch), l_inf_dist=None),
        "second": layer(0.1 + epoch / 100, 0.2, l2_dist=2.0 * epoch, l_inf_dist=None),
    }
    for epoch in (0, 1, 10)
}


def lines(axes) -> list[np.ndarray]:
    """Return the points of each line over the epochs, in the order of drawing."""
    return [line.get_xydata() for line in axes.lines if len(line.get_xdata()) == len(POINTS)]


def test_mass_is_drawn_against_epoch_in_the_band_of_chance():
    first, second = plots.mass_by_epoch(POINTS, "LeNet").axes
    np.testing.assert_allclose(lines(first)[0], [(0, 0.5), (1, 0.51), (10, 0.6)])
    np.testing.assert_allclose(lines(second)[0], [(0, 0.1), (1, 0.11), (10, 0.2)])
    # For six filters, all on one side have p = 0.03, and five of them p = 0.22.
    band = first.patches[0].get_extents().transformed(first.transData.inverted())
    assert (band.y0, band.y1) == pytest.approx((1 / 6, 5 / 6))


def test_mean_is_drawn_against_epoch_in_the_band_of_chance():
    first, _ = plots.mean_by_epoch(POINTS, True, "LeNet").axes
    np.testing.assert_allclose(lines(first)[0], [(0, -0.1), (1, -0.11), (10, -0.2)])
    heights = first.collections[0].get_paths()[0].vertices[:, 1]
    widest = 1.959964 * math.sqrt((0.2**2 + 0.5**2) / 6)  # at the last epoch
    assert (heights.min(), heights.max()) == pytest.approx((-widest, widest))


def test_distance_is_drawn_against_epoch_where_it_is_defined():
    l2, l_inf = plots.distance_by_epoch(POINTS, "LeNet").axes
    np.testing.assert_allclose(lines(l2), [[(0, 0), (1, 1), (10, 10)], [(0, 0), (1, 2), (10, 20)]])
    assert np.isnan([line[:, 1] for line in lines(l_inf)]).all()
    assert [text.get_text() for text in l_inf.texts] == ["not defined: initial weights are zero"]


def test_distribution_counts_every_filter_on_its_side_of_zero():
    values = [-0.9, -0.2, 0.0, 0.0, 0.3]
    (axes,) = plots.distributions({"only": layer(0.8, projections=values)}, True, "LeNet").axes
    negative, positive = (patch.get_data() for patch in axes.patches)
    assert (negative.values.sum(), positive.values.sum()) == (4, 1)
    assert (negative.edges[-1], positive.edges[0]) == (0, 0)
    assert [text.get_text() for text in axes.texts] == ["mass 0.80"]


def test_figure_does_not_depend_on_the_users_style_and_takes_any_title(tmp_path, recwarn):
    def png(title: str) -> bytes:
        return plots.save(plots.distance_by_epoch(POINTS, title), tmp_path / "figure")[1].read_bytes()

    plain = png("LeNet")
    with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "black", "font.size": 30}):
        assert png("LeNet") == plain
    assert png(r"run$a_{$b \x") != plain
    assert png("\u4e2d\u6587") != plain
    assert not [warned for warned in recwarn.list if "glyph" in str(warned.message).lower()]


def resets(drops: list[float | None], masses: tuple[float, ...]) -> dict:
    """Return results of reinit_layers.py: resets to the initialization and to fresh random weights."""
    names = [f"layer{number}" for number in range(len(drops))]
    return {
        "layers": names,
        "relative_drop": {"0": drops, "rand": [None if drop is None else 0.9 for drop in drops]},
        "top1_test": 90.0,
        "projections": {name: layer(mass) for name, mass in zip(names, masses, strict=True)},
        "correlation": {"spearman": None},
    }


def test_heat_map_shows_the_accuracy_lost_in_percent():
    figure = plots.accuracy_loss(resets([0.25, None, -0.01], (0.5, 0.6, 0.7)), "LeNet")
    image = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(image.filled(math.nan), [[25, math.nan, -1], [90, math.nan, 90]])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "fresh random"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["25", "", "-1", "90", "", "90"]
    assert "90.00 %" in figure.get_suptitle()


def test_points_are_bias_against_the_accuracy_lost():
    (axes,) = plots.bias_and_criticality(resets([0.25, None, 0.75], (0.25, 0.6, 1.0)), "LeNet").axes
    np.testing.assert_allclose(axes.collections[0].get_offsets(), [(0.25, 25), (0.5, 75)])
    assert [text.get_text() for text in axes.texts[1:]] == ["1", "2"]


def test_title_says_why_there_is_no_correlation():
    results = resets([0.25, 0.75], (0.25, 1.0))
    assert "not defined" in plots.bias_and_criticality(results, "LeNet").axes[0].get_title()
    del results["relative_drop"]["0"]
    (axes,) = plots.bias_and_criticality(results, "LeNet").axes
    assert "only for layers reset to their initialization" in axes.get_title()
    assert "fresh random weights" in axes.get_ylabel()
