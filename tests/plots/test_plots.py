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
    first, second = plots.by_epoch(POINTS, "mass", "LeNet").axes
    np.testing.assert_allclose(lines(first)[0], [(0, 0.5), (1, 0.51), (10, 0.6)])
    np.testing.assert_allclose(lines(second)[0], [(0, 0.1), (1, 0.11), (10, 0.2)])
    # For six filters, all on one side have p = 0.03, and five of them p = 0.22.
    heights = first.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((1 / 6, 5 / 6))


def rows_of(axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def columns_of(axes) -> list[str]:
    return [label.get_text() for label in axes.get_xticklabels()]


def test_heat_map_of_mass_is_white_at_one_half_and_marks_the_band_of_chance():
    figure = plots.by_epoch(POINTS, "mass", "LeNet on MNIST", as_map=True)
    axes = figure.axes[0]
    image = axes.images[0]
    np.testing.assert_allclose(image.get_array(), [[0.5, 0.51, 0.6], [0.1, 0.11, 0.2]])
    assert sum(image.cmap(image.norm(0.5))[:3]) == pytest.approx(2.9, abs=0.02)
    red, _, blue = image.cmap(image.norm(0.9))[:3]
    assert red > 2 * blue  # as the histogram of the projections <= 0 is
    # Of six filters one to five may be <= 0 by chance: a mass of 1/6 to 5/6.
    assert axes.collections[0].get_offsets().tolist() == [[0, 0], [1, 0], [2, 0], [2, 1]]
    assert rows_of(axes) == ["1 first (6)", "2 second (6)"]
    assert columns_of(axes) == ["0", "1", "10"]
    assert figure.get_suptitle() == "LeNet on MNIST: mass of each layer"


def test_profile_shows_the_mass_of_each_layer_in_its_band():
    (axes,) = plots.profile({"a": layer(1.0), "b": layer(0.25, filters=64)}, "LeNet").axes
    assert axes.lines[-1].get_xydata().tolist() == [[1, 0], [0.25, 1]]
    bands = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches]
    np.testing.assert_allclose(bands, [(1 / 6, 5 / 6), (24 / 64, 40 / 64)])  # p of 23 of 64: 0.03, of 24: 0.06
    assert axes.yaxis_inverted()
    assert rows_of(axes) == ["1 a (6)", "2 b (64)"]


def test_snapshots_without_epochs_are_drawn_by_name_in_the_order_given():
    points = {name: POINTS[epoch] for name, epoch in (("z.pt", 10), ("best.pt", 0), ("a.pt", 1))}
    first, _ = plots.by_epoch(points, "mass", "LeNet").axes
    np.testing.assert_allclose(lines(first)[0], [(0, 0.6), (1, 0.5), (2, 0.51)])
    distance, _ = plots.distance_by_epoch(points, "LeNet").axes
    heat_map = plots.by_epoch(points, "mass", "LeNet", as_map=True).axes[0]
    np.testing.assert_allclose(heat_map.images[0].get_array()[0], [0.6, 0.5, 0.51])
    for axes in (first, distance, heat_map):
        assert columns_of(axes) == ["z.pt", "best.pt", "a.pt"]


@pytest.mark.parametrize("depth", [20, 161])
def test_figures_of_deep_networks_have_rows_and_fit_on_a_page(depth):
    names = [f"features.denseblock{n // 20}.denselayer{n % 20}.conv2" for n in range(depth)]
    masses = [n / depth for n in range(depth)]
    more = {"l2_dist": 0.1, "l_inf_dist": 0.1, "projections": [-1.0, 2.0, 2.0]}
    layers = {name: layer(mass, filters=3, **more) for name, mass in zip(names, masses, strict=True)}
    points = dict.fromkeys(range(3), layers)
    title = "densenet201 on cifar10, 4 classes, 20 % label noise"
    found = resets([n / depth for n in range(depth)], masses)
    found = {**found, "layers": names, "hidden_layers": names[1:], "projections": layers}
    drawn = {
        "mass": plots.by_epoch(points, "mass", title),
        "mean": plots.by_epoch(points, "mean", title, normalized=True),
        "distance": plots.distance_by_epoch(points, title),
        "projections": plots.distributions(layers, True, title),
        "profile": plots.profile(layers, title),
        "loss": plots.accuracy_loss(found, title),
        "criticality": plots.bias_and_criticality(found, title),
    }
    for figure in drawn.values():
        assert (figure.get_size_inches() <= (14, 18)).all()
        assert figure.get_suptitle().replace("\n", " ").startswith(title)
    is_deep = depth > 20
    assert (len(drawn["mass"].axes) == depth) is not is_deep
    assert bool(drawn["distance"].legends) is bool(drawn["criticality"].legends) is not is_deep
    if is_deep:
        loss = drawn["loss"].axes[0]
        np.testing.assert_allclose(loss.images[0].get_array()[:, 0], 100 * np.array(masses))
        assert columns_of(loss) == ["0", "fresh random"]
        shares = drawn["projections"].axes[0].images[0].get_array()
        np.testing.assert_allclose(shares.sum(1), 100 / 3 - 200 / 3)  # projections > 0 count as negative: blue
        assert drawn["mean"].axes[0].images[0].get_array().shape == (depth, 3)
        for axes in (drawn[name].axes[0] for name in ("mass", "mean", "projections", "profile", "loss")):
            first, *_, last = rows_of(axes)
            assert first.startswith("1 \u2026ck0.denselayer0.conv2")
            assert len(last) < 36
            assert len(rows_of(axes)) <= 120
        numbers = [int(text.get_text()) for text in drawn["criticality"].axes[0].texts]
        assert sorted(numbers) == list(range(depth - 19, depth + 1))  # the 20 that lose most


def test_mean_is_drawn_against_epoch_in_the_band_of_chance():
    first, _ = plots.by_epoch(POINTS, "mean", "LeNet", normalized=True).axes
    np.testing.assert_allclose(lines(first)[0], [(0, -0.1), (1, -0.11), (10, -0.2)])
    heights = first.collections[0].get_paths()[0].vertices[:, 1]
    widest = 1.959964 * math.sqrt((0.2**2 + 0.5**2) / 6)  # at the last epoch
    assert (heights.min(), heights.max()) == pytest.approx((-widest, widest))


def test_distance_is_drawn_against_epoch_where_it_is_defined():
    l2, l_inf = plots.distance_by_epoch(POINTS, "LeNet").axes
    np.testing.assert_allclose(lines(l2), [[(0, 0), (1, 1), (10, 10)], [(0, 0), (1, 2), (10, 20)]])
    assert np.isnan([line[:, 1] for line in lines(l_inf)]).all()


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
    lost = {"0": drops, "rand": [None if drop is None else 0.9 for drop in drops]}
    return {
        "layers": names,
        "hidden_layers": names[1:],
        "relative_drop": dict(lost),
        "corrected_drop": dict(lost),
        "top1_test": 90.0,
        "projections": {name: layer(mass) for name, mass in zip(names, masses, strict=True)},
        "correlation": {},
    }


def test_heat_map_shows_the_accuracy_lost_in_percent():
    figure = plots.accuracy_loss(resets([0.25, None, -0.01], (0.5, 0.6, 0.7)), "LeNet")
    image = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(image.filled(math.nan), [[25, math.nan, -1], [90, math.nan, 90]])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "fresh random"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["25", "", "-1", "90", "", "90"]
    assert "90.00 %" in figure.get_suptitle()


def test_points_are_mass_against_the_accuracy_lost():
    (axes,) = plots.bias_and_criticality(resets([0.25, None, 0.75], (0.25, 0.6, 1.0)), "LeNet").axes
    np.testing.assert_allclose(axes.collections[0].get_offsets(), [(0.25, 25), (1, 75)])
    first, second = axes.collections[0].get_facecolors()
    assert tuple(first) == (1, 1, 1, 1) != tuple(second)  # the input layer is hollow
    assert [text.get_text() for text in axes.texts] == ["1", "3"]  # the depths of the layers


def test_numbers_of_points_stay_inside_the_axes():
    (axes,) = plots.bias_and_criticality(resets([0.0] * 12, (0.5,) * 12), "LeNet").axes
    axes.figure.draw_without_rendering()
    for text in axes.texts:
        x, y = text.get_window_extent().get_points().mean(0)
        assert axes.bbox.contains(x, y)


def test_title_says_why_there_is_no_correlation():
    results = resets([0.25, 0.75], (0.25, 1.0))
    assert "not defined" in plots.bias_and_criticality(results, "LeNet").axes[0].get_title()
    del results["corrected_drop"]["0"]
    (axes,) = plots.bias_and_criticality(results, "LeNet").axes
    assert "only for layers reset to their initialization" in axes.get_title()
    assert "fresh random weights" in axes.get_ylabel()
