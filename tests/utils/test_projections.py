"""The projection statistic equals independent computations: NumPy, exact fractions, and the authors' numbers."""

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
    """Compute the projections by their definition, filter by filter."""
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
    """Sum the probabilities of all outcomes of N fair coins that are at most as probable as the observed one."""
    observed = math.comb(filters, non_positive)
    at_most = sum(ways for k in range(filters + 1) if (ways := math.comb(filters, k)) <= observed)
    return Fraction(at_most, 2**filters)


@given(filter_banks, types, st.booleans())
@settings(deadline=None, max_examples=200)
def test_projections_equal_their_definition(values, dtype, normalize):
    weight = torch.from_numpy(values).to(dtype)
    found = projections.project(weight, normalize)
    assert found.dtype == torch.float64
    assert found.shape == (len(values),)
    np.testing.assert_allclose(found.numpy(), by_numpy(weight, normalize), rtol=1e-10, atol=1e-10)
    if normalize:
        assert found.abs().max() <= 1
        torch.testing.assert_close(projections.project(weight.double() * 2.0**40, normalize=True), found)


@given(filter_banks, types)
@settings(deadline=None)
def test_statistics_equal_their_definition(values, dtype):
    weight = torch.from_numpy(values).to(dtype)
    p = by_numpy(weight, False)
    zeros = sum(not one.any() for one in weight.double().numpy())
    assert projections.count_zero_filters(weight) == zeros
    # The weights have few bits and their sums are exact: no sign depends on rounding.
    statistics = projections.layer_statistics(projections.project(weight), zeros)
    n, k = len(p), int((p <= 0).sum())
    without_zeros = pytest.approx(float(exact_p_value(k - zeros, n - zeros))) if zeros < n else None
    assert statistics == {
        "projections": pytest.approx(p.tolist(), abs=1e-10),
        "mass": pytest.approx(k / n),
        "mean": pytest.approx(p.mean(), abs=1e-10),
        "std": pytest.approx(p.std(), abs=1e-6),
        "filters": n,
        "zero_filters": zeros,
        "p_value": pytest.approx(float(exact_p_value(k, n))),
        "p_value_without_zeros": without_zeros,
    }


@given(filter_banks, types, st.integers(0, 2**31))
@settings(deadline=None)
def test_distances_equal_their_definition(values, dtype, seed):
    weight = torch.from_numpy(values).to(dtype)
    start = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    w, w0 = weight.double().numpy().ravel(), start.double().numpy().ravel()
    found = projections.distances(weight, start)
    assert found["l2_dist"] == pytest.approx(math.sqrt(math.fsum((w - w0) ** 2) / math.fsum(w0**2)))
    assert found["l_inf_dist"] == pytest.approx(np.abs(w - w0).max() / np.abs(w0).max())
    assert projections.distances(weight, start * 0) == {"l2_dist": None, "l_inf_dist": None}


@pytest.mark.parametrize("filters", [1, 2, 7, 64, 512, 1001])
def test_p_value_equals_the_exact_binomial_test(filters):
    from scipy.stats import binomtest

    for count in sorted({0, 1, filters // 3, filters // 2, (filters + 1) // 2, filters}):
        p_value = projections.sign_test(count, filters)
        assert p_value == pytest.approx(float(exact_p_value(count, filters)), rel=1e-9)
        assert p_value == pytest.approx(binomtest(count, filters, 0.5).pvalue, rel=1e-9)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        # projections <= 0, zero filters, p-value, p-value without zero filters
        ([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [2.0, 0.0]], (2, 2, 1, 0.5)),
        ([[1.0, -1.0], [0.0, 0.0]], (2, 1, 0.5, 1)),  # the weights of the first filter cancel
        ([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], (3, 3, 0.25, None)),
        ([[-0.5, -1.0]], (1, 0, 1, 1)),
    ],
)
def test_zero_filters_count_as_non_positive(weight, expected, normalize):
    statistics = projections.measure({"layer": torch.tensor(weight)}, normalize)["layer"]
    non_positive = statistics["mass"] * len(weight)
    p_values = statistics["p_value"], statistics["p_value_without_zeros"]
    assert (non_positive, statistics["zero_filters"], *p_values) == expected


def test_projection_of_a_grouped_convolution_is_its_output_for_an_image_of_ones():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 12, 3, groups=4, bias=False)
    output = conv(torch.ones(1, 8, 3, 3)).flatten().detach().numpy()
    np.testing.assert_allclose(projections.project(conv.weight).numpy(), output, rtol=1e-5, atol=1e-6)
    w = conv.weight.detach().double().numpy().reshape(12, 18)
    cosine = w.sum(1) / np.sqrt((w**2).sum(1) * 18)
    np.testing.assert_allclose(projections.project(conv.weight, normalize=True).numpy(), cosine, rtol=1e-12)


@pytest.mark.parametrize("size", [2.0**-140, 2.0**120])
def test_extreme_weights_neither_overflow_nor_underflow(size):
    weight = torch.tensor([[3.0, 4.0]]) * size
    assert projections.project(weight, normalize=True).item() == pytest.approx(7 / (5 * math.sqrt(2)), rel=1e-9)
    half = torch.tensor([[60000.0], [2.0**-10]]).half().expand(2, 4096)
    assert projections.project(half).tolist() == [60000.0 * 4096, 4.0]


def test_layers_larger_than_a_chunk_are_measured_completely():
    weight = torch.randn(70, 40_000, generator=torch.Generator().manual_seed(0))
    start = torch.randn(70, 40_000, generator=torch.Generator().manual_seed(1))
    for normalize in (False, True):
        found = projections.project(weight, normalize).numpy()
        np.testing.assert_allclose(found, by_numpy(weight, normalize), rtol=1e-9, atol=1e-12)
    moved = (weight.double() - start.double()).numpy()
    found = projections.distances(weight, start)
    assert found["l2_dist"] == pytest.approx(np.linalg.norm(moved) / np.linalg.norm(start.double().numpy()))
    assert found["l_inf_dist"] == pytest.approx(np.abs(moved).max() / start.abs().max().item())


def test_weights_may_be_parameters_of_any_memory_layout():
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = by_numpy(weight, True)
    strided = weight.permute(3, 2, 1, 0).clone().permute(3, 2, 1, 0)
    for same in (weight.to(memory_format=torch.channels_last), strided, nn.Parameter(weight)):
        found = projections.project(same, True)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
        assert projections.measure({"layer": same}, initial={"layer": same})["layer"]["l2_dist"] == 0


def test_network_statistics_cover_the_filters_of_all_layers():
    weights = {"wide": torch.randn(30, 4), "narrow": torch.cat([torch.ones(2, 9), torch.zeros(1, 9)])}
    network = projections.network_statistics(projections.measure(weights).values())
    p = np.concatenate([by_numpy(weight, False) for weight in weights.values()])
    found = [network[key] for key in ("filters", "zero_filters", "mass", "mean", "std")]
    assert found == pytest.approx([33, 1, (p <= 0).mean(), p.mean(), p.std()])
    assert projections.network_statistics([])["mass"] is None


@pytest.mark.parametrize(
    ("weight", "initial", "text"),
    [
        (torch.tensor([[1.0, math.nan]]), torch.ones(1, 2), "not finite"),
        (torch.tensor([[1.0, math.inf]]), torch.ones(1, 2), "not finite"),
        (torch.ones(1, 2), torch.tensor([[1.0, math.nan]]), "at initialization not finite"),
        (torch.ones(3), torch.ones(3), "two or more dimensions"),
        (torch.ones(2, 2, dtype=torch.complex64), torch.ones(2, 2), "real"),
        (torch.ones(2, 3), torch.ones(3, 2), r"\(3, 2\) at initialization"),
    ],
)
def test_error_about_weights_names_the_layer(weight, initial, text):
    with pytest.raises(ValueError, match=f"conv1.*{text}"):
        projections.measure({"conv1": weight}, initial={"conv1": initial})


@pytest.mark.parametrize("filters", [1, 5, 6, 64, 513])
def test_band_of_the_mass_contains_what_the_sign_test_does_not_reject(filters):
    low, high = projections.chance_of_mass(filters)
    for count in range(filters + 1):
        assert (exact_p_value(count, filters) > Fraction(1, 20)) == (low <= count / filters <= high)


def test_band_of_the_mean_contains_95_percent_of_random_signs():
    generator = np.random.default_rng(0)
    sizes = generator.exponential(size=200)
    means = (sizes * generator.choice([-1, 1], size=(20_000, 200))).mean(1)
    width = projections.chance_of_mean(sizes.mean(), sizes.std(), 200)
    assert (np.abs(means) <= width).mean() == pytest.approx(0.95, abs=0.01)


def test_statistics_equal_those_of_the_authors_program():
    """The reference: LeNet after three epochs on MNIST, with the fully connected layers."""
    expected = json.loads((REFERENCE / "projections_lenet_2_normalized_with_linear.json").read_text())
    trained = torch.load(REFERENCE / "lenet_2.tar", weights_only=True)["model_state_dict"]
    initial = torch.load(REFERENCE / "lenet_init_0.pt", weights_only=True)
    weights = {name: weight for name, weight in trained.items() if name.endswith("weight")}
    measured = projections.measure(weights, normalize=True, initial=initial)
    blocks = [block for stage in "0123" for block in expected[stage].values()]
    assert len(blocks) == len(measured) == 9
    network = projections.network_statistics(measured.values())
    for theirs, ours in zip([*blocks, expected["net"]], [*measured.values(), network], strict=True):
        for key, value in theirs.items():
            assert ours[key] == pytest.approx(value, abs=1e-5), key


@pytest.mark.cuda
@pytest.mark.parametrize("normalize", [False, True])
def test_gpu_and_cpu_give_the_same_statistics(normalize):
    generator = torch.Generator().manual_seed(0)
    weights = {str(n): torch.randn(n, 64, 3, 3, generator=generator) for n in (1, 64, 512)}
    weights["half"] = weights["64"].half()
    weights["dead"] = torch.zeros(4, 9)
    initial = {name: torch.randn(weight.shape, generator=generator) for name, weight in weights.items()}
    on_gpu = ({name: weight.cuda() for name, weight in tensors.items()} for tensors in (weights, initial))
    on_cpu = projections.measure(weights, normalize, initial)
    on_gpu = projections.measure(next(on_gpu), normalize, next(on_gpu))
    for name in weights:
        for key in on_cpu[name]:
            assert on_gpu[name][key] == pytest.approx(on_cpu[name][key], abs=1e-6), (name, key)
