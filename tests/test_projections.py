"""The projection statistic against independent computations in NumPy, exact fractions and the reference values."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from programs import REFERENCE
from torch import nn

from utils import projections

filter_banks = hnp.arrays(
    np.float64,
    st.one_of(
        st.tuples(*[st.integers(1, size) for size in (9, 4, 3, 3)]),  # (N, C, k, k)
        st.tuples(st.integers(1, 20), st.integers(1, 40)),  # (N, D)
    ),
    elements=st.floats(-8, 8, width=16),
    fill=st.just(0.0),
)
types = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])


def by_numpy(weight: torch.Tensor, normalize: bool) -> np.ndarray:
    """The definition, in float64, filter by filter."""
    values = []
    for one in weight.detach().double().numpy():
        w = one.reshape(-1)
        p = math.fsum(w)
        if normalize:
            length = math.sqrt(math.fsum(w * w))
            p = p / (length * math.sqrt(w.size)) if length else 0.0
        values.append(p)
    return np.array(values)


def exact_p_value(non_positive: int, filters: int) -> Fraction:
    """The sum over all outcomes of N fair coins that are at most as probable as the observed one."""
    observed = math.comb(filters, non_positive)
    at_most = sum(ways for k in range(filters + 1) if (ways := math.comb(filters, k)) <= observed)
    return Fraction(at_most, 2**filters)


@given(filter_banks, types, st.booleans())
@settings(deadline=None, max_examples=200)
def test_projections_equal_their_definition(values, dtype, normalize):
    weight = torch.from_numpy(values).to(dtype)
    ours = projections.project(weight, normalize)
    assert ours.dtype == torch.float64
    assert ours.shape == (len(values),)
    np.testing.assert_allclose(ours.numpy(), by_numpy(weight, normalize), rtol=1e-10, atol=1e-10)


@given(filter_banks, types)
@settings(deadline=None)
def test_statistics_equal_their_definition(values, dtype):
    weight = torch.from_numpy(values).to(dtype)
    p = by_numpy(weight, False)
    zeros = sum(not one.any() for one in weight.double().numpy())
    assert projections.count_zero_filters(weight) == zeros
    # Inputs of few bits, which sum exactly: no sign depends on rounding.
    statistics = projections.layer_statistics(projections.project(weight), zeros)
    n, k = len(p), int((p <= 0).sum())
    assert statistics["projections"] == pytest.approx(p.tolist(), abs=1e-10)
    assert statistics["mass"] == pytest.approx(k / n)
    assert statistics["mean"] == pytest.approx(p.mean(), abs=1e-10)
    assert statistics["std"] == pytest.approx(p.std(), abs=1e-6)
    assert statistics["filters"] == n
    assert statistics["zero_filters"] == zeros
    assert statistics["p_value"] == pytest.approx(float(exact_p_value(k, n)))
    if zeros < n:
        assert statistics["p_value_without_zeros"] == pytest.approx(float(exact_p_value(k - zeros, n - zeros)))
    else:
        assert statistics["p_value_without_zeros"] is None


@given(filter_banks, types)
@settings(deadline=None)
def test_cosines_stay_within_one_and_ignore_the_scale(values, dtype):
    weight = torch.from_numpy(values).to(dtype)
    cosines = projections.project(weight, normalize=True)
    assert cosines.abs().max() <= 1
    torch.testing.assert_close(projections.project(weight.double() * 2.0**40, normalize=True), cosines)


@given(filter_banks, types, st.integers(0, 2**31))
@settings(deadline=None)
def test_distances_equal_their_definition(values, dtype, seed):
    weight = torch.from_numpy(values).to(dtype)
    start = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    w, w0 = weight.double().numpy().ravel(), start.double().numpy().ravel()
    ours = projections.distances(weight, start)
    assert ours["l2_dist"] == pytest.approx(math.sqrt(math.fsum((w - w0) ** 2) / math.fsum(w0**2)))
    assert ours["l_inf_dist"] == pytest.approx(np.abs(w - w0).max() / np.abs(w0).max())


@pytest.mark.parametrize("filters", [1, 2, 7, 64, 512, 1001])
def test_p_value_is_that_of_the_exact_binomial_test(filters):
    from scipy.stats import binomtest

    for count in sorted({0, 1, filters // 3, filters // 2, (filters + 1) // 2, filters}):
        ours = projections.sign_test(count, filters)
        assert ours == pytest.approx(float(exact_p_value(count, filters)), rel=1e-9)
        assert ours == pytest.approx(binomtest(count, filters, 0.5).pvalue, rel=1e-9)


def test_dead_filters_count_as_non_positive():
    weight = torch.ones(4, 2, 3, 3)
    weight[1:3] = 0
    for normalize in (False, True):
        statistics = projections.measure({"layer": weight}, normalize)["layer"]
        assert statistics["projections"][1:3] == [0, 0]
        assert statistics["mass"] == 0.5
        assert statistics["zero_filters"] == 2
        assert statistics["p_value"] == 1
        assert statistics["p_value_without_zeros"] == 0.5


def test_filter_whose_weights_cancel_is_no_zero_filter():
    weight = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    statistics = projections.measure({"layer": weight})["layer"]
    assert statistics["mass"] == 1
    assert statistics["zero_filters"] == 1


def test_layer_of_dead_filters_has_no_p_value_without_them():
    statistics = projections.measure({"layer": torch.zeros(3, 5)}, normalize=True)["layer"]
    assert statistics["p_value"] == 0.25
    assert statistics["p_value_without_zeros"] is None


def test_one_filter_is_no_evidence():
    statistics = projections.measure({"layer": torch.full((1, 3, 3, 3), -0.5)})["layer"]
    assert statistics["projections"] == [-13.5]
    assert (statistics["mass"], statistics["std"], statistics["p_value"]) == (1.0, 0.0, 1.0)


def test_what_is_undefined_without_filters_is_none():
    statistics = projections.layer_statistics(projections.project(torch.empty(0, 3)))
    for name in ("mass", "mean", "std", "p_value", "p_value_without_zeros"):
        assert statistics[name] is None


def test_channels_of_one_group_are_what_a_grouped_filter_sees():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 12, 3, groups=4, bias=False)
    # The projection is the layer's answer to an image of ones, away from the border.
    answer = conv(torch.ones(1, 8, 3, 3)).flatten()
    np.testing.assert_allclose(
        projections.project(conv.weight).numpy(), answer.detach().numpy(), rtol=1e-5, atol=1e-6
    )
    length = conv.weight.detach().double().numpy().reshape(12, 18)
    cosine = length.sum(1) / np.sqrt((length**2).sum(1) * 18)
    np.testing.assert_allclose(projections.project(conv.weight, normalize=True).numpy(), cosine, rtol=1e-12)


def test_half_precision_sums_do_not_overflow_or_drown():
    weight = torch.cat([torch.full((1, 4096), 60000.0), torch.full((1, 4096), 2.0**-10)]).half()
    assert projections.project(weight).tolist() == [60000.0 * 4096, 4.0]
    assert projections.project(weight, normalize=True).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("size", [1e-300, 1e-45, 1e37, 1e300])
def test_cosine_of_very_small_and_very_large_weights(size):
    weight = torch.tensor([[3.0, 4.0]], dtype=torch.float64) * size
    assert projections.project(weight, normalize=True).item() == pytest.approx(7 / (5 * math.sqrt(2)), rel=1e-9)


def test_layers_larger_than_a_chunk_are_complete():
    weight = torch.randn(70, 40_000, generator=torch.Generator().manual_seed(0))
    start = torch.randn(70, 40_000, generator=torch.Generator().manual_seed(1))
    for normalize in (False, True):
        np.testing.assert_allclose(
            projections.project(weight, normalize).numpy(), by_numpy(weight, normalize), rtol=1e-9, atol=1e-12
        )
    moved = (weight.double() - start.double()).numpy()
    ours = projections.distances(weight, start)
    assert ours["l2_dist"] == pytest.approx(np.linalg.norm(moved) / np.linalg.norm(start.double().numpy()))
    assert ours["l_inf_dist"] == pytest.approx(np.abs(moved).max() / start.abs().max().item())


def test_weights_that_are_not_contiguous():
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = by_numpy(weight, True)
    for same in (
        weight.to(memory_format=torch.channels_last),
        weight.permute(3, 2, 1, 0).clone().permute(3, 2, 1, 0),
    ):
        np.testing.assert_allclose(projections.project(same, True).numpy(), expected, rtol=1e-12)


def test_weights_that_are_trained_need_not_be_detached():
    weight = nn.Parameter(torch.ones(2, 3))
    assert not projections.project(weight).requires_grad
    assert projections.measure({"layer": weight}, initial={"layer": weight})["layer"]["l2_dist"] == 0


def test_distance_from_a_zero_initialization_is_undefined():
    assert projections.distances(torch.ones(2, 3), torch.zeros(2, 3)) == {"l2_dist": None, "l_inf_dist": None}


def test_whole_network_counts_every_filter_once():
    weights = {"wide": torch.randn(30, 4), "narrow": torch.cat([torch.ones(2, 9), torch.zeros(1, 9)])}
    network = projections.network_statistics(projections.measure(weights).values())
    p = np.concatenate([by_numpy(weight, False) for weight in weights.values()])
    assert network["filters"] == 33
    assert network["zero_filters"] == 1
    assert network["mass"] == pytest.approx((p <= 0).mean())
    assert network["mean"] == pytest.approx(p.mean())
    assert network["std"] == pytest.approx(p.std())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value):
    weight = torch.ones(2, 3)
    broken = weight.clone()
    broken[1, 1] = value
    with pytest.raises(ValueError, match=r"conv1.*not finite"):
        projections.measure({"conv1": broken})
    with pytest.raises(ValueError, match=r"conv1.*initialization not finite"):
        projections.measure({"conv1": weight}, initial={"conv1": broken})


@pytest.mark.parametrize("weight", [torch.ones(3), torch.ones(2, 2, dtype=torch.complex64)])
def test_what_is_no_filter_bank_is_refused(weight):
    with pytest.raises(ValueError, match="not the weights of filters"):
        projections.project(weight)


def test_more_zero_filters_than_zero_projections_are_refused():
    with pytest.raises(ValueError, match="cannot be all zero"):
        projections.layer_statistics(torch.tensor([1.0, 0.0]), zero_filters=2)


def test_weights_of_another_shape_than_at_initialization_are_refused():
    with pytest.raises(ValueError, match="conv1"):
        projections.measure({"conv1": torch.ones(2, 3)}, initial={"conv1": torch.ones(3, 2)})


@pytest.mark.parametrize("filters", [1, 5, 6, 64, 513])
def test_band_of_the_mass_holds_what_the_test_does_not_reject(filters):
    low, high = projections.chance_of_mass(filters)
    for count in range(filters + 1):
        assert (exact_p_value(count, filters) > Fraction(1, 20)) == (low <= count / filters <= high)


def test_band_of_the_mean_holds_95_percent_of_random_signs():
    generator = np.random.default_rng(0)
    sizes = generator.exponential(size=200)
    means = (sizes * generator.choice([-1, 1], size=(20_000, 200))).mean(1)
    width = projections.chance_of_mean(sizes.mean(), sizes.std(), 200)
    assert (np.abs(means) <= width).mean() == pytest.approx(0.95, abs=0.01)


def test_numbers_of_the_reference():
    """Those of the authors' program, for LeNet after three epochs on MNIST, with fully connected layers."""
    expected = json.loads((REFERENCE / "projections_lenet_2_normalized_with_linear.json").read_text())
    trained = torch.load(REFERENCE / "lenet_2.tar", weights_only=True)["model_state_dict"]
    initial = torch.load(REFERENCE / "lenet_init_0.pt", weights_only=True)
    names = [name for name in trained if name.endswith("weight")]
    measured = projections.measure(
        {name: trained[name] for name in names}, normalize=True, initial={name: initial[name] for name in names}
    )
    blocks = [block for stage in "0123" for block in expected[stage].values()]
    assert len(blocks) == len(measured) == 9
    for theirs, ours in zip(blocks, measured.values(), strict=True):
        for key, value in theirs.items():
            assert ours[key] == pytest.approx(value, abs=1e-5), key
    network = projections.network_statistics(measured.values())
    for key, value in expected["net"].items():
        assert network[key] == pytest.approx(value, abs=1e-5), key


@pytest.mark.cuda
@pytest.mark.parametrize("normalize", [False, True])
def test_gpu_gives_the_numbers_of_the_cpu(normalize):
    generator = torch.Generator().manual_seed(0)
    weights = {str(n): torch.randn(n, 64, 3, 3, generator=generator) for n in (1, 64, 512)}
    weights["half"] = weights["64"].half()
    weights["dead"] = torch.zeros(4, 9)
    initial = {name: torch.randn(weight.shape, generator=generator) for name, weight in weights.items()}
    on_cpu = projections.measure(weights, normalize, initial)
    on_gpu = projections.measure(
        {name: weight.cuda() for name, weight in weights.items()},
        normalize,
        {name: weight.cuda() for name, weight in initial.items()},
    )
    for name in weights:
        for key in on_cpu[name]:
            assert on_gpu[name][key] == pytest.approx(on_cpu[name][key], abs=1e-6), (name, key)
