"""Networks of packages are converted, measured and compared: here of packages and files that the tests write."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import run_main
from scipy.stats import binom, binomtest

import compute_projections
from experiments import compare, figures, published_networks
from experiments.over_seeds import biased_by_chance
from experiments.published_networks import NETWORKS, Network, as_weights, by_kind, from_keras, read_kernels


@pytest.fixture
def networks():
    """Two networks instead of the published ones: the second has folded filters. Returns their kernels."""
    published = dict(NETWORKS)
    NETWORKS.clear()
    NETWORKS["some"] = Network("Some", "some-net==1.0", "some_net/some.pt", "MIT", "here")
    NETWORKS["other"] = Network("Other", "some-net==1.0", "some_net/other.pt", "MIT", "there", folded=True)
    torch.manual_seed(0)
    kernels = {
        "stem.weight": torch.randn(6, 3, 3, 3),
        "expand.weight": torch.randn(12, 6, 1, 1) + 1,  # of mass < 1/2
        "depthwise.weight": torch.randn(12, 1, 3, 3),
        "dense.weight": torch.randn(16, 12, 3, 3) - 1,  # of mass > 1/2
    }
    kernels["depthwise.weight"][3] = 0
    Path("folder/packages").mkdir(parents=True)
    with zipfile.ZipFile("folder/packages/some_net-1.0-py3-none-any.whl", "w") as wheel:
        for stem in NETWORKS:
            content = io.BytesIO()
            torch.save({**kernels, "stem.bias": torch.ones(6), "head.weight": torch.ones(4, 16)}, content)
            wheel.writestr(NETWORKS[stem].file, content.getvalue())
    yield kernels
    NETWORKS.clear()
    NETWORKS.update(published)


def test_packages_are_converted_measured_and_compared_by_kind_of_layer(networks, capsys):
    assert published_networks.main(["packages"]) == 0
    assert capsys.readouterr().out == "some-net==1.0\n"
    assert published_networks.main(["convert", "folder"]) == 0
    options = ("--arch", "weights", "--with-linear", "--normalize", "--load-from", "folder/weights")
    assert run_main(compute_projections, *options, "--results", "results") == 0
    files = ("--output", "out/table", "results/weights")
    assert run_main(compare, "published", "--title", "Packages", *files) == 0
    text = Path("out/table.md").read_text()
    assert "| Other | some-net 1.0 | MIT | there | batch norm folded |" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    rows = {(row[0], row[1]): row[2:] for row in rows if len(row) == 9}
    for name in ("Some", "**all, as trained**", "Other", "**all, batch norm folded**"):
        for kind, weight in zip(("input", "1x1", "depthwise", "larger than 1x1"), networks.values(), strict=True):
            non_positive = int((weight.sum((1, 2, 3)) <= 0).sum())
            zeros = int((weight == 0).all(-1).all(-1).all(-1).sum())
            biased = binomtest(non_positive - zeros, len(weight) - zeros).pvalue < 0.05
            assert biased == (kind in ("1x1", "larger than 1x1"))
            mass = f"{non_positive / len(weight):.3f}"
            more, fewer = int(biased and kind != "1x1"), int(biased and kind == "1x1")
            found = rows[name, kind]
            assert found[:4] + found[5:] == ["1", str(len(weight)), str(more), str(fewer), mass, mass]
    assert Path("out/table_mass.png").exists()


def test_a_1x1_convolution_is_stored_as_the_matrix_of_a_fully_connected_layer():
    kernels = {"a": torch.randn(4, 3, 3, 3), "b": torch.randn(5, 4, 1, 1), "c": torch.randn(2, 5, 1, 3)}
    weights = as_weights(kernels)
    assert list(weights) == ["a", "b (1x1)", "c"]
    image = torch.randn(4, 7, 7)
    at_positions = torch.nn.functional.linear(image.flatten(1).T, weights["b (1x1)"])
    assert torch.allclose(at_positions.T.view(5, 7, 7), torch.nn.functional.conv2d(image, kernels["b"]), atol=1e-6)
    assert weights["a"] is kernels["a"]
    assert weights["c"] is kernels["c"]


def test_kernels_of_keras_are_turned_to_filters():
    kernel = torch.randn(2, 3, 5, 4)
    converted = from_keras(kernel)
    for n, c, i, j in np.ndindex(4, 5, 2, 3):
        assert converted[n, c, i, j] == kernel[i, j, c, n]
    side_output = as_weights({"dsn": from_keras(torch.randn(1, 1, 64, 1))})
    assert side_output["dsn (1x1)"].shape == (1, 64)


def test_kernels_of_a_keras_file_are_in_the_order_of_their_names():
    h5py = pytest.importorskip("h5py")
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file["block2/conv/vars/0"] = np.zeros((3, 3, 8, 16), np.float32)
        file["block1/conv/vars/0"] = np.zeros((3, 3, 3, 8), np.float32)
        file["block1/conv/vars/1"] = np.zeros(8, np.float32)
    found = read_kernels("some.weights.h5", content.getvalue())
    shapes = {name: tuple(kernel.shape) for name, kernel in found.items()}
    assert list(shapes.items()) == [("block1/conv", (8, 3, 3, 3)), ("block2/conv", (16, 8, 3, 3))]


def test_kernels_of_an_onnx_file_are_those_of_its_convolutions_in_the_order_of_the_graph():
    onnx = pytest.importorskip("onnx")
    arrays = {"z": np.random.rand(4, 3, 3, 3), "a": np.random.rand(4, 4, 1, 1), "up": np.random.rand(4, 4, 2, 2)}
    tensors = {
        name: onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()
    }
    make = onnx.helper.make_node
    nodes = [
        make("Constant", [], ["a"], value=tensors["a"]),
        make("Conv", ["x", "z"], ["1"]),
        make("Conv", ["1", "a"], ["2"]),
        make("Conv", ["2", "a"], ["3"]),
        make("ConvTranspose", ["3", "up"], ["y"]),
    ]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    graph = onnx.helper.make_graph(nodes, "net", ends[:1], ends[1:], [tensors["z"], tensors["up"]])
    found = read_kernels("some.onnx", onnx.helper.make_model(graph).SerializeToString())
    assert list(found) == ["z", "a"]
    assert all(np.array_equal(found[name].numpy(), arrays[name].astype(np.float32)) for name in found)


@pytest.mark.parametrize("filters", [1, 5, 6, 8, 31, 64])
def test_chance_of_a_biased_layer_is_that_of_all_counts_that_the_test_rejects(filters):
    rejected = [count for count in range(filters + 1) if binomtest(count, filters).pvalue < 0.05]
    assert biased_by_chance(filters) == pytest.approx(binom.pmf(rejected, filters, 0.5).sum(), abs=1e-12)


def test_masses_are_drawn_by_depth_with_a_line_for_each_kind_of_layer(networks):
    masses = {"stem": 0.5, "dense": 0.9, "expand (1x1)": 0.25, "last": 0.8}
    layers = {str(i): {"name": name, "mass": mass, "filters": 8} for i, (name, mass) in enumerate(masses.items())}
    content = {"0": layers}
    assert {
        kind: list(of_kind) for kind, of_kind in by_kind({one["name"]: one for one in layers.values()}).items()
    } == {
        "input": [1],
        "larger than 1x1": [2, 4],
        "1x1": [3],
    }
    some, other = figures.masses_by_depth({"some": content, "other": content}, "Packages").axes
    assert (some.get_title(), other.get_title()) == ("Some", "Other, batch norm folded")
    drawn = [line.get_xydata().tolist() for line in some.lines[1:]]
    assert drawn == [[[1, 0.5]], [[2, 0.9], [4, 0.8]], [[3, 0.25]]]
    assert {(bar.get_y(), bar.get_y() + bar.get_height()) for bar in some.patches} == {(1 / 8, 7 / 8)}
