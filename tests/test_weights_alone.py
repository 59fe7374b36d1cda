"""compute_projections.py --arch weights: files are measured without a network."""

from functools import partial
from pathlib import Path

import programs
import pytest
import torch
from programs import results, run_main
from torch.nn.utils import prune

import compute_projections
import reinit_layers
import train

run = partial(run_main, compute_projections)
refused = partial(programs.refused, compute_projections)


@pytest.fixture
def weights():
    """Weights of many kinds, saved as `some.pt`."""
    torch.manual_seed(0)
    shapes = {
        **{"stem.weight": (6, 3, 7, 7), "norm.weight": (6,), "blocks.0.depthwise.weight": (6, 1, 3, 3)},
        **{
            "blocks.0.pointwise.weight": (8, 6, 1, 1),
            "blocks.0.kernel": (8, 8, 1, 5),
            "single.weight": (1, 1, 3, 3),
        },
        **{
            "head.weight": (10, 8),
            "head.bias": (10,),
            "sequence.weight": (4, 2, 3),
            "volume.weight": (2, 2, 3, 3, 3),
        },
    }
    weights = {name: torch.randn(shape) for name, shape in shapes.items()}
    weights["counts"] = torch.ones(2, 2, 3, 3, dtype=torch.int64)
    weights["mask"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    torch.save(weights, "some.pt")
    return weights


def test_layers_are_the_weights_of_four_dimensions_in_their_order(weights, capsys):
    Path("noise_20").mkdir()
    torch.save({"weight": weights["stem.weight"]}, "noise_20/no_1x1.pt")
    assert run("--arch", "weights", "--load-from", "some.pt", "noise_20/no_1x1.pt") == 0
    found = results("results/weights/some.json")
    assert list(found["0"]) == ["0", "1", "2", "3"]
    assert "1" not in found
    names = ["stem", "blocks.0.depthwise", "blocks.0.kernel", "single"]
    assert [layer["name"] for layer in found["0"].values()] == names
    tensors = [weights.get(f"{name}.weight", weights.get(name)).double() for name in names]
    for layer, weight in zip(found["0"].values(), tensors, strict=True):
        assert layer["projections"] == pytest.approx(weight.sum([1, 2, 3]).tolist(), abs=1e-9)
        assert layer.get("depthwise", False) == (layer["name"] == "blocks.0.depthwise")
    assert (found["net"]["filters"], found["net_dense"]["filters"], found["net_depthwise"]["filters"]) == (
        21,
        15,
        6,
    )
    assert found["net_depthwise"]["mass"] == found["0"]["1"]["mass"]
    assert (found["arch"], found["dataset"]) == ("weights", None)
    lines = capsys.readouterr().out.splitlines()
    left_out = ["1x1 convolutions left out: 1", "kernels of integers left out: 1"]
    assert [line for line in lines if "left out" in line] == left_out
    assert sum(line.endswith("  depthwise") for line in lines) == 1
    assert any(line.startswith("depthwise layers          6 ") for line in lines)
    assert any(line.startswith("dense layers             15 ") for line in lines)


def test_linear_layers_distances_and_figures(weights, capsys):
    torch.save(
        {name: weight + 1 if weight.is_floating_point() else weight for name, weight in weights.items()},
        "initial.pt",
    )
    asked = ("--arch", "weights", "--dataset", "cifar10", "--load-from", "some.pt", "--with-linear", "--normalize")
    assert run(*asked, "--init-from", "initial.pt", "--plots", "plots") == 0
    found = results("results/cifar10/weights/some.json")
    assert found["0"]["4"]["name"] == "head"
    head = weights["head.weight"].double()
    expected = (head.sum(1) / (head.norm(dim=1) * 8**0.5)).tolist()
    assert found["0"]["4"]["projections"] == pytest.approx(expected, abs=1e-9)
    distance = (80**0.5 / (head + 1).norm()).item()
    assert found["0"]["4"]["l2_dist"] == pytest.approx(distance, abs=1e-6)
    assert Path("plots/cifar10/weights/projections_some.png").exists()
    capsys.readouterr()
    torch.save({"stem.weight": weights["stem.weight"]}, "other.pt")
    assert "--init-from other.pt: it has no blocks.0.depthwise" in refused(
        capsys, *asked, "--init-from", "other.pt"
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ((), "Give files with --load-from"),
        (
            ("--load-from", "vectors.pt"),
            "vectors.pt has no convolutions larger than 1x1 (for other layers: --with-linear)",
        ),
        (("--load-from", "vectors.pt", "--with-linear"), "vectors.pt has no convolutions"),
        (("--load-from", "vectors.pt", "--dataset", "nowhere"), "--dataset nowhere"),
        (("--pretrained",), "--load-from"),
    ],
)
def test_what_cannot_be_measured_without_a_network_is_refused(options, named, capsys):
    torch.save({"norm.weight": torch.ones(3)}, "vectors.pt")
    assert named in refused(capsys, "--arch", "weights", *options)
    for program, more in ((train, ()), (reinit_layers, ("--load-from", "vectors.pt", "--rand"))):
        line = programs.refused(program, capsys, "--arch", "weights", "--dataset", "mnist", *more)
        assert "only compute_projections.py" in line


def test_weights_that_others_are_computed_from_are_refused(capsys):
    kinds = {
        "pruned.pt": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        "normed.pt": torch.nn.utils.parametrizations.weight_norm,
    }
    for name, change in kinds.items():
        torch.save(torch.nn.Sequential(change(torch.nn.Conv2d(3, 4, 3))).state_dict(), name)
        assert "is pruned or parametrized" in refused(capsys, "--arch", "weights", "--load-from", name)


def test_files_of_a_folder_without_layers_are_named_at_the_end(weights, capsys):
    torch.save({"norm.weight": torch.ones(3)}, "vectors.pt")
    assert run("--arch", "weights", "--load-from", ".") == 1
    assert "vectors.pt has no convolutions" in capsys.readouterr().err.splitlines()[-1]
    assert results("results/weights/some.json")["arch"] == "weights"


def test_known_network_measured_as_weights_has_the_same_numbers(capsys):
    reference = programs.REFERENCE / "lenet_2.tar"
    for arch in ("weights", "lenet"):
        assert run("--arch", arch, "--dataset", "mnist", "--load-from", reference, "--with-linear") == 0
    with_network, alone = (results(f"results/mnist/{arch}/lenet_2.json") for arch in ("lenet", "weights"))
    expected = [layer for stage in "0123" for layer in with_network[stage].values()]
    assert alone["0"]["0"].pop("depthwise")  # grey images: its first filters have one channel
    assert list(alone["0"].values()) == expected
