"""compute_projections.py as a user runs it."""

import math
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import REFERENCE, ROOT, files_below, refused, results, run_main, table

import compute_projections
import models
import train
from utils.options import parse
from utils.results import write_projections

LENET = ("--arch", "lenet", "--dataset", "mnist")
MINI = ("--arch", "lenet", "--dataset", "fashion_mnist_mini")
TRAINED, INITIAL = REFERENCE / "lenet_2.tar", REFERENCE / "lenet_init_0.pt"


run = partial(run_main, compute_projections)


def layers_of(content: dict) -> list[dict]:
    return [content[stage][block] for stage in content if stage.isdigit() for block in content[stage]]


def write(content, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, **options)
    return path


def snapshot(path: Path, epoch: int, weights: dict | None = None, **config) -> Path:
    """A training state with the given weights, by default those of the reference run."""
    weights = weights or torch.load(TRAINED, weights_only=True)["model_state_dict"]
    recorded = {"arch": "lenet", "dataset": "mnist", "num_classes": 10, "in_channels": 1, "noise": 0.0, **config}
    content = {"epoch": epoch, "model_state_dict": weights, "format": 2, "config": recorded}
    return write({**content, "optimizer_state_dict": {"state": {0: {"momentum_buffer": torch.ones(5)}}}}, path)


def network(arch: str, num_classes: int = 10, in_channels: int = 3, image_size=(28, 28)) -> dict:
    """A small file of a large network: convolutions are random, everything else one number, repeated."""
    with torch.device("meta"):
        needs_size = arch.startswith("mlp")
        net = models.build(arch, num_classes, in_channels, image_size if needs_size else None)
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(weight.shape, generator=generator)
        if weight.dim() == 4 and weight.shape[-1] > 1
        else torch.full((1,) * weight.dim(), -0.5, dtype=weight.dtype).expand(weight.shape)
        for name, weight in net.state_dict().items()
    }


def damage(path: Path, weights: torch.Tensor) -> Path:
    """Flip one bit in the middle of a tensor in a file."""
    content = bytearray(path.read_bytes())
    at = content.index(weights.contiguous().numpy().tobytes())
    content[at + weights.nbytes // 2] ^= 1
    path.write_bytes(content)
    return path


# ---- the numbers ----


def test_results_are_those_of_the_reference():
    assert (
        run(*LENET, "--normalize", "--with-linear", "--load-from", TRAINED, "--init-from", INITIAL, "--seed", 1)
        == 0
    )
    ours = results("results/mnist/lenet/1/lenet_2.json")
    reference = results(REFERENCE / "projections_lenet_2_normalized_with_linear.json")
    assert list(ours)[: len(reference)] == list(reference)  # newer keys come after them

    def compare(ours, reference):
        for key, value in reference.items():
            if isinstance(value, dict):
                compare(ours[key], value)
            elif isinstance(value, str):
                assert ours[key] == value
            else:
                assert ours[key] == pytest.approx(value, abs=1e-5), key

    compare(ours, reference)
    for stage in "0123":
        assert list(ours[stage]) == list(reference[stage])


def test_new_numbers_of_a_layer():
    assert run(*LENET, "--load-from", TRAINED) == 0
    layer = results("results/mnist/lenet/lenet_2.json")["1"]["0"]
    weight = torch.load(TRAINED, weights_only=True)["model_state_dict"]["features.5.weight"].double().numpy()
    p = weight.reshape(16, -1).sum(1)
    assert layer["name"] == "features.5"
    assert layer["filters"] == 16
    assert layer["projections"] == pytest.approx(p.tolist())
    assert layer["std"] == pytest.approx(p.std())
    assert layer["zero_filters"] == 0
    assert layer["p_value"] == layer["p_value_without_zeros"] == pytest.approx(2 * (1 + 16) / 2**16)  # 15 of 16


@pytest.mark.parametrize(
    ("arch", "blocks"),
    {
        "lenet": [2, 2, 2],
        "alexnet": [1, 1, 3],
        "vgg11": [1, 1, 2, 2, 2],
        "vgg13": [2, 2, 2, 2, 2],
        "vgg16": [2, 2, 3, 3, 3],
        "vgg19": [2, 2, 4, 4, 4],
        "vgg19_orig": [2, 2, 4, 4, 4],
        "vgg11bn": [1, 1, 2, 2, 2],
        "vgg13bn": [2, 2, 2, 2, 2],
        "vgg16bn": [2, 2, 3, 3, 3],
        "vgg19bn": [2, 2, 4, 4, 4],
        "resnet18": [1, 4, 4, 4, 4],
        "resnet34": [1, 6, 8, 12, 6],
        "resnet50": [1, 3, 4, 6, 3],
    }.items(),
)
def test_every_architecture_by_stage_and_block(arch, blocks, tmp_path, capsys):
    weights = network(arch)
    path = write(weights, tmp_path / f"{arch}_3.pt")
    assert run("--arch", arch, "--dataset", "cifar10", "--load-from", path, "--normalize") == 0
    path.unlink()
    content = results(f"results/cifar10/{arch}/{arch}_3.json")
    assert [len(content[str(stage)]) for stage in range(len(blocks))] == blocks
    measured = layers_of(content)
    convolutions = {name[:-7]: w for name, w in weights.items() if w.dim() == 4 and w.shape[2:] != (1, 1)}
    assert [layer["name"] for layer in measured] == list(convolutions)
    left_out = re.findall(r"^1x1 convolutions left out: (\d+)$", capsys.readouterr().out, re.M)
    of_1x1 = sum(w.dim() == 4 for w in weights.values()) - len(convolutions)
    assert left_out == ([str(of_1x1)] if of_1x1 else [])
    for layer, weight in zip(measured, convolutions.values(), strict=True):
        w = weight.double().numpy().reshape(len(weight), -1)
        cosines = w.sum(1) / np.sqrt((w**2).sum(1) * w.shape[1])
        assert layer["projections"] == pytest.approx(cosines.tolist(), abs=1e-9)
        assert layer["mass"] == (cosines <= 0).mean()


@pytest.mark.parametrize("arch", ["mlp", "mlp_bn"])
def test_multilayer_perceptrons(arch, tmp_path):
    path = write(network(arch, in_channels=1), tmp_path / f"{arch}_3.pt")
    assert run("--arch", arch, "--dataset", "mnist", "--with-linear", "--load-from", path) == 0
    content = results(f"results/mnist/{arch}/{arch}_3.json")
    sizes = [28 * 28, 4096, 1024, 4096, 1024, 4096, 1024, 4096]
    assert [layer["filters"] for layer in layers_of(content)] == [4096, 1024, 4096, 1024, 4096, 1024, 4096, 10]
    assert [layer["projections"][0] for layer in layers_of(content)] == [-0.5 * size for size in sizes]
    assert content["net"]["mass"] == 1


@pytest.mark.parametrize("upscaling", ["upscale", "upscale_padding"])
def test_input_size_of_a_perceptron_is_recorded(upscaling, tmp_path):
    weights = network("mlp", in_channels=1, image_size=(224, 224))
    path = snapshot(tmp_path / "mlp_2.tar", 2, weights, arch="mlp", **{upscaling: True})
    assert run("--arch", "mlp", "--dataset", "mnist", "--with-linear", "--load-from", path) == 0
    assert layers_of(results("results/mnist/mlp/mlp_2.json"))[0]["projections"][0] == -0.5 * 224 * 224


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_types(dtype, tmp_path):
    weights = {name: w.to(dtype) for name, w in torch.load(INITIAL, weights_only=True).items()}
    path = write(weights, tmp_path / "lenet_init_0.pt")
    assert run(*LENET, "--load-from", path) == 0
    for layer in layers_of(results("results/mnist/lenet/lenet_init_0.json")):
        w = weights[f"{layer['name']}.weight"].double().numpy()
        assert layer["projections"] == pytest.approx(w.reshape(len(w), -1).sum(1).tolist(), abs=1e-9)


@pytest.mark.parametrize("kind", ["old non-zip file", "DataParallel", "saved on a GPU"])
def test_other_forms_of_the_same_weights(kind, tmp_path, capsys):
    weights = torch.load(INITIAL, weights_only=True)
    path = tmp_path / "lenet_init_0.pt"
    if kind == "DataParallel":
        write({re.sub("^", "module.", name): w for name, w in weights.items()}, path)
    else:
        write(weights, path, _use_new_zipfile_serialization=False)
        if kind == "saved on a GPU":
            path.write_bytes(path.read_bytes().replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0"))
    assert run(*LENET, "--load-from", path, "--results", "other") == 0
    assert ("no checksums" in capsys.readouterr().err) == (kind != "DataParallel")
    assert run(*LENET, "--load-from", INITIAL) == 0
    other, same = (results(f"{folder}/mnist/lenet/lenet_init_0.json") for folder in ("other", "results"))
    assert other.pop("provenance")["arguments"]["load_from"] == str(path)
    assert same.pop("provenance")["arguments"]["load_from"] == str(INITIAL)
    assert other == same


def test_dead_filters_are_told(tmp_path, capsys):
    weights = torch.load(TRAINED, weights_only=True)["model_state_dict"]
    weights["features.10.weight"][:60] = 0
    path = snapshot(tmp_path / "lenet_2.tar", 2, weights)
    assert run(*LENET, "--load-from", path, "--normalize") == 0
    layer = results("results/mnist/lenet/lenet_2.json")["2"]["0"]
    assert layer["zero_filters"] == 60
    assert layer["projections"][:60] == [0] * 60
    assert layer["p_value"] < 1e-15
    assert layer["p_value_without_zeros"] >= 0.125
    assert "60 filters are all zero" in capsys.readouterr().out


def test_distance_from_a_zero_initialization_is_null(tmp_path):
    zeros = {name: torch.zeros_like(w) for name, w in torch.load(INITIAL, weights_only=True).items()}
    path = write(zeros, tmp_path / "zeros.pt")
    assert run(*LENET, "--load-from", TRAINED, "--init-from", path, "--plots", "plots") == 0
    for layer in layers_of(results("results/mnist/lenet/lenet_2.json")):
        assert layer["l2_dist"] is None
        assert layer["l_inf_dist"] is None


def test_random_initialization_is_that_of_its_seed():
    assert run(*LENET, "--seed", 1) == 0
    content = results("results/mnist/lenet/1/init_lenet.json")
    assert (content["seed"], content["epoch"]) == ("1", "0")
    for layer in layers_of(content):
        w = torch.load(INITIAL, weights_only=True)[f"{layer['name']}.weight"].double().numpy()
        assert layer["projections"] == pytest.approx(w.reshape(len(w), -1).sum(1).tolist(), abs=1e-9)


def test_random_initialization_without_a_seed_says_which_it_drew(capsys):
    assert run(*LENET) == 0
    drawn = re.search(r"random initialization with seed (\d+)", capsys.readouterr().out)[1]
    content = results("results/mnist/lenet/init_lenet.json")
    assert "seed" not in content
    assert content["init_seed"] == int(drawn)
    assert run(*LENET, "--seed", drawn) == 0
    again = results(f"results/mnist/lenet/{drawn}/init_lenet.json")
    assert again["net"] == content["net"]


def test_weights_of_the_model_zoo(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "zoo"))
    weights = network("resnet18", num_classes=1000)
    write(weights, tmp_path / "zoo/hub/checkpoints/resnet18-f37072fd.pth")
    assert run("--arch", "resnet18", "--dataset", "imagenet", "--pretrained") == 0
    content = results("results/imagenet/resnet18/pretrained_resnet18.json")
    assert content["epoch"] == "-1"
    w = weights["conv1.weight"].double().numpy().reshape(64, -1)
    assert content["0"]["0"]["projections"] == pytest.approx(w.sum(1).tolist(), abs=1e-9)


def test_layers_that_the_model_zoo_has_no_weights_for_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "zoo"))
    write(network("resnet18", num_classes=1000), tmp_path / "zoo/hub/checkpoints/resnet18-f37072fd.pth")
    measured = {}
    for dataset, options, new in (
        ("mnist", ("--with-linear",), "conv1, fc"),
        ("mnist", (), "conv1"),
        ("cifar10", ("--with-linear",), "fc"),
        ("cifar10", (), None),
    ):
        options = ("--arch", "resnet18", "--dataset", dataset, "--pretrained", *options)
        assert run(*options) == 0
        warned = re.search(
            r"new layers, with random weights of seed (\d+).*: (.*)$", capsys.readouterr().err, re.M
        )
        content = results(f"results/{dataset}/resnet18/pretrained_resnet18.json")
        assert (warned and warned[2]) == new
        assert content.get("init_seed") == (int(warned[1]) if new else None)
        measured[options] = content
    # The seed gives them again, and another one others.
    again = ("--arch", "resnet18", "--dataset", "mnist", "--pretrained", "--seed")
    first = measured[again[:-1]]
    assert run(*again, first["init_seed"]) == run(*again, 5) == 0
    same, other = (
        results(f"results/mnist/resnet18/{seed}/pretrained_resnet18.json") for seed in (first["init_seed"], 5)
    )
    assert same["0"] == first["0"] != other["0"]
    assert same["1"] == first["1"] == other["1"]


@pytest.mark.cuda
def test_gpu_gives_the_results_of_the_cpu():
    options = (*LENET, "--with-linear", "--normalize", "--load-from", TRAINED, "--init-from", INITIAL)
    assert run(*options, "--results", "cpu") == 0
    assert run(*options, "--results", "gpu", "--cuda") == 0
    on_cpu, on_gpu = (results(f"{device}/mnist/lenet/lenet_2.json") for device in ("cpu", "gpu"))
    for ours, theirs in zip(layers_of(on_gpu), layers_of(on_cpu), strict=True):
        for key, value in theirs.items():
            assert ours[key] == (value if isinstance(value, str) else pytest.approx(value, abs=1e-6))


# ---- where results go ----


def test_folder_is_measured_in_order_of_training(tmp_path, capsys):
    weights = torch.load(INITIAL, weights_only=True)
    for epoch in (0, 2, 10):
        snapshot(tmp_path / f"lenet_{epoch}.tar", epoch)
    for name in ("lenet_init_0.pt", "lenet_11.pt"):
        write(weights, tmp_path / name)
    write(network("resnet18"), tmp_path / "resnet18_0.pt")
    (tmp_path / "lenet_notes.txt").write_text("not a snapshot")
    assert run(*LENET, "--load-from", tmp_path, "--init-from", INITIAL, "--log", "measured.log") == 0
    folder = Path("results/mnist/lenet")
    epochs = {"lenet_init_0": "0", "lenet_0": "1", "lenet_2": "3", "lenet_10": "11", "lenet_11": "11"}
    measured = {path.stem: results(path) for path in folder.glob("*.json")}
    assert {name: content["epoch"] for name, content in measured.items()} == epochs
    said = capsys.readouterr().out
    for name, content in measured.items():  # a line per snapshot with what is in its file
        mean, mass = (content["net"][key] for key in ("mean", "mass"))
        biased = sum(layer["p_value"] < 0.05 for layer in layers_of(content))
        (line,) = re.findall(rf"^{name}\.(?:pt|tar) +(.*)$", said, re.M)
        assert line.split() == [content["epoch"], f"{mean:+.3f}", f"{mass:.3f}", str(biased), "of", "6"]
    assert re.findall(r"^(lenet_\w+)\.", said, re.M) == list(epochs)
    assert "lenet_11.pt, the last of 5 snapshots" in said
    assert "5 files in results/mnist/lenet" in said
    (log,) = Path("log/mnist/lenet").glob("*_measured.log")
    assert "features.12" in log.read_text()


def cells(values) -> list[str]:
    """Values as a CSV file has them."""
    return ["" if value is None else str(value) for value in values]


def test_table_has_a_row_for_each_snapshot_and_layer_whichever_command_measured_it(tmp_path, capsys):
    for epoch in (9, 10):
        snapshot(tmp_path / f"lenet_{epoch}.tar", epoch, noise=0.2)
    weights = torch.load(INITIAL, weights_only=True)
    for name in ("lenet_10.pt", "lenet_2.pt", "best, of all.pt"):
        write(weights, tmp_path / "noise_20" / name)
    asked = (*LENET, "--seed", 3, "--name", "tried, twice", "--normalize")
    assert run(*asked, "--load-from", tmp_path, tmp_path / "noise_20") == 0
    assert run(*asked, "--load-from", tmp_path / "noise_20" / "best, of all.pt", "--init-from", INITIAL) == 0
    folder = Path("results/mnist/noise_20/lenet/tried, twice/3")
    rows = table(folder / "projections.csv")
    in_order = ["lenet_2", "lenet_9", "lenet_10.pt", "lenet_10", "best, of all"]
    assert [row["snapshot"] for row in rows[::6]] == in_order
    assert [row["epoch"] for row in rows[::6]] == ["2", "10", "10", "11", ""]
    assert len(rows) == 30
    for name, of_snapshot in zip(in_order, (rows[start : start + 6] for start in range(0, 30, 6)), strict=True):
        content = results(folder / f"{name}.json")
        for depth, (row, layer) in enumerate(zip(of_snapshot, layers_of(content), strict=True), start=1):
            run_columns = (row[key] for key in ("dataset", "noise", "arch", "name", "seed", "snapshot", "depth"))
            assert [*run_columns] == ["mnist", "noise_20", "lenet", "tried, twice", "3", name, str(depth)]
            assert row["normalized"] == "True"
            assert content[row["stage"]][row["block"]] == layer
            assert row["layer"] == layer["name"]
            statistics = [key for key in layer if key not in ("name", "projections")]
            assert [row[key] for key in statistics] == cells(layer[key] for key in statistics)
            assert bool(row["l2_dist"]) == (name == "best, of all")
    documented = (ROOT / "docs/files.md").read_text()
    assert [column for column in rows[0] if f"`{column}`" not in documented] == []


def test_files_that_are_no_results_are_not_in_the_table_and_damaged_ones_are_named(capsys):
    folder = Path("results/mnist/lenet")
    folder.mkdir(parents=True)
    for name, content in {"notes": '{"epoch": "1"}', "list": "[1]", "reinit_lenet_2": '{"epoch": null}'}.items():
        (folder / f"{name}.json").write_text(content)
    (folder / "truncated.json").write_text('{"net": {}')
    (folder / "other.json").write_text('{"net": {}, "epoch": "best"}')
    assert run(*LENET, "--load-from", TRAINED) == 0
    warning = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"(other|truncated)\.json is not a result .* \(and 1 more like this\)$", warning)
    assert {row["snapshot"] for row in table(folder / "projections.csv")} == {"lenet_2"}


def test_commands_at_once_make_one_table():
    assert run(*LENET, "--load-from", TRAINED) == 0
    folder = Path("results/mnist/lenet")
    content = (folder / "lenet_2.json").read_text()
    settings = parse("compute_projections", None, list(LENET))

    def measure(first: int) -> None:
        for number in range(first, 40, 4):
            (folder / f"lenet_{number}.json").write_text(content)
            write_projections(folder, settings)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(measure, range(4)))
    assert len({row["snapshot"] for row in table(folder / "projections.csv")}) == 40


def test_table_has_a_line_per_layer(capsys):
    assert run(*LENET, "--load-from", TRAINED, "--normalize") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["layer", "filters", "mean", "mass", "p-value"] in rows
    assert ["features.10", "64", "-0.302", "0.969", "2.3e-16"] in rows
    assert any(row[:2] == ["network", "172"] for row in rows)


@pytest.mark.parametrize(
    ("config", "folders", "said"),
    [
        ({"noise": 0.29}, "mnist/noise_29/lenet", "mnist, 29 % label noise"),
        ({"noise": -1, "noise_seed": 3}, "mnist/pixel_shuffle/lenet", "mnist, shuffled pixels"),
        ({"noise": 0.0}, "mnist/lenet", "mnist"),
    ],
)
def test_noise_is_that_of_the_configuration(config, folders, said, tmp_path, titles):
    path = snapshot(tmp_path / "noise_50" / "lenet_2.tar", 2, **config)
    assert run(*LENET, "--load-from", path, "--plots", "plots") == 0
    assert files_below(Path("results")) == {f"{folders}/lenet_2.json", f"{folders}/projections.csv"}
    assert f"{folders}/projections_lenet_2.png" in files_below(Path("plots"))
    assert titles[0].replace("\n", " ") == f"lenet on {said}, after 3 epochs"
    assert all(name.startswith(f"{folders}/") for name in files_below(Path("log")))


@pytest.mark.parametrize("name", ["noise_20", "noise_0.5", "pixel_shuffle"])
def test_noise_folder_is_that_of_the_path_where_none_is_recorded(name, tmp_path):
    path = tmp_path / "mnist" / name / "lenet" / "1" / "lenet_3.pt"
    write(torch.load(INITIAL, weights_only=True), path)
    assert run(*LENET, "--seed", 1, "--load-from", os.path.relpath(path)) == 0
    assert {str(path) for path in Path("results").rglob("*.json")} == {
        f"results/mnist/{name}/lenet/1/lenet_3.json"
    }


@pytest.mark.parametrize("given", [(), ("--subsample-classes", 3)])
def test_number_of_classes_is_recorded(given, tmp_path, capsys):
    path = snapshot(
        tmp_path / "lenet_2.tar", 2, network("lenet", 3, in_channels=1), num_classes=3, subsample_classes=3
    )
    assert run(*LENET, "--load-from", path, *given) == 0
    assert results("results/mnist_3/lenet/lenet_2.json")["dataset"] == "mnist_3"
    assert "classes: 3 (recorded)" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["both", "the .pt", "both, from two folders"])
def test_final_weights_beside_a_training_state_of_the_same_name(given, tmp_path):
    tar = snapshot(tmp_path / ("a" if "two" in given else "") / "lenet_3.tar", 3)
    pt = write(torch.load(INITIAL, weights_only=True), tmp_path / "lenet_3.pt")
    assert run(*LENET, "--load-from", *([pt] if given == "the .pt" else [pt, tar])) == 0
    assert results("results/mnist/lenet/lenet_3.pt.json")["epoch"] == "3"
    assert Path("results/mnist/lenet/lenet_3.json").exists() == (given != "the .pt")


def test_noisy_and_clean_snapshots_of_one_name_stay_apart(tmp_path):
    clean, noisy = snapshot(tmp_path / "a/lenet_2.tar", 2), snapshot(tmp_path / "b/lenet_2.tar", 2, noise=0.2)
    assert run(*LENET, "--load-from", clean, noisy) == 0
    folders = ("mnist/lenet", "mnist/noise_20/lenet")
    written = {f"{folder}/{name}" for folder in folders for name in ("lenet_2.json", "projections.csv")}
    assert files_below(Path("results")) == written


@pytest.mark.parametrize(
    ("name", "epoch"),
    [
        ("lenet_init_0.pt", "0"),
        ("lenet_pretrained_0.pt", "-1"),
        ("lenet_pretrained_7.pt", "7"),
        ("lenet_7.pt", "7"),
        ("lenet_7.tar", "8"),
        ("best.pt", None),
    ],
)
def test_epoch_follows_from_the_name_of_bare_weights(name, epoch, tmp_path):
    path = write(torch.load(INITIAL, weights_only=True), tmp_path / name)
    assert run(*LENET, "--load-from", path) == 0
    assert results(f"results/mnist/lenet/{path.stem}.json")["epoch"] == epoch


# ---- figures ----


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def test_figures_of_one_snapshot():
    assert run(*LENET, "--load-from", TRAINED, "--plots", "plots", "--seed", 1) == 0
    folder = Path("plots/mnist/lenet/1")
    names = ("projections_lenet_2", "profile_lenet_2")
    assert files_below(folder) == {f"{name}.{kind}" for name in names for kind in ("png", "pdf")}
    assert min(png_size(folder / "projections_lenet_2.png")) > 500
    assert (folder / "projections_lenet_2.pdf").read_bytes().startswith(b"%PDF")


def test_figures_of_several_snapshots():
    assert run(*LENET, "--load-from", REFERENCE, "--init-from", INITIAL, "--plots", "plots") == 0
    names = ("projections_lenet_2", "profile_lenet_2")
    names += ("mass_lenet", "mean_lenet", "distance_lenet", "heatmap_lenet")
    assert files_below(Path("plots")) == {
        f"mnist/lenet/{name}.{kind}" for name in names for kind in ("png", "pdf")
    }


def test_figures_of_dead_layers_and_of_snapshots_without_an_epoch():
    weights = {name: torch.zeros_like(w) for name, w in torch.load(INITIAL, weights_only=True).items()}
    for name in ("best.pt", "final.pt"):
        write(weights, Path(name))
    assert run(*LENET, "--normalize", "--load-from", "best.pt", "final.pt", "--plots", "plots") == 0
    names = ("projections_final", "profile_final", "mass_lenet", "mean_lenet", "heatmap_lenet")
    assert {path.stem for path in Path("plots/mnist/lenet").iterdir()} == set(names)


# ---- what goes wrong ----


def test_supported_networks_and_datasets_are_listed(capsys):
    assert run("--dataset", "mnist") == 0
    assert "vgg19_orig" in capsys.readouterr().out
    assert run("--arch", "lenet") == 0
    assert "fashion_mnist_mini" in capsys.readouterr().out


DAMAGED = {
    "empty folder": (("--load-from", "empty"), "no snapshot of lenet"),
    "truncated": (("--load-from", "truncated.tar"), "truncated.tar"),
    "weights": (("--load-from", "damaged.tar"), "features.7.weight"),
    "initialization": (("--load-from", TRAINED, "--init-from", "damaged.tar"), "features.7.weight"),
    "not finite": (("--load-from", "nan.tar"), "features.0"),
}


@pytest.mark.parametrize(("options", "named"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_snapshot_that_is_alone_is_one_line_and_nothing_written(options, named, capsys):
    Path("empty").mkdir()
    weights = torch.load(TRAINED, weights_only=True)["model_state_dict"]
    Path("truncated.tar").write_bytes(TRAINED.read_bytes()[:500_000])
    damage(snapshot(Path("damaged.tar"), 2), weights["features.7.weight"])
    weights["features.0.weight"][0, 0, 0, 0] = math.nan
    snapshot(Path("nan.tar"), 2, weights)
    assert named in refused(compute_projections, capsys, *LENET, *options)


def test_damaged_snapshots_among_many_are_reported_at_the_end(tmp_path, capsys):
    weights = torch.load(TRAINED, weights_only=True)["model_state_dict"]
    for epoch in range(4):
        snapshot(tmp_path / f"lenet_{epoch}.tar", epoch)
    damage(tmp_path / "lenet_1.tar", weights["features.12.weight"])
    (tmp_path / "lenet_2.tar").write_bytes((tmp_path / "lenet_2.tar").read_bytes()[:-1000])
    assert run(*LENET, "--load-from", tmp_path, "--plots", "plots") == 1
    assert {path.name for path in Path("results/mnist/lenet").glob("*.json")} == {"lenet_0.json", "lenet_3.json"}
    assert "mnist/lenet/mass_lenet.pdf" in files_below(Path("plots"))
    said = capsys.readouterr()
    assert "lenet_3.tar, the last of 2 snapshots" in said.out
    assert len(said.err.splitlines()) == 2
    assert "lenet_1.tar" in said.err
    assert "lenet_2.tar" in said.err
    (log,) = Path("log/mnist/lenet").iterdir()
    assert "ERROR" in log.read_text()


def test_damage_to_what_is_not_measured_does_not_matter(tmp_path):
    weights = torch.load(TRAINED, weights_only=True)["model_state_dict"]
    path = snapshot(tmp_path / "lenet_2.tar", 2)
    damage(path, torch.ones(5))  # the optimizer's state
    damage(path, weights["classifier.0.weight"])
    assert run(*LENET, "--load-from", path) == 0
    assert run(*LENET, "--load-from", path, "--with-linear", "--results", "linear") == 2
    assert not Path("linear").exists()


@pytest.mark.parametrize("options", [("--help",), (), ("--arch", "lenet"), (*LENET, "--load-from", str(TRAINED))])
def test_neither_help_nor_measuring_waits_for_slow_imports(options):
    program = f"""
import sys, compute_projections
try:
    compute_projections.main({list(options)!r})
finally:
    print("imported:", *{{"torchvision", "matplotlib", "tensorboard", "scipy.stats"}}.intersection(sys.modules))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].strip() == "imported:"


def test_run_of_train_is_measured_from_its_folder():
    noisy = (*MINI, "--seed", 1, "--noise", 0.2, "--noise-seed", 1)
    assert run_main(train, *noisy, "--epochs", 2, "--snapshot-every", 1, "--lr", 0.01) == 0
    shutil.copytree("models/fashion_mnist_mini/noise_20/lenet/1", "copied")
    asked = (*MINI, "--seed", 1, "--load-from", "copied", "--init-from", "copied/lenet_init_0.pt")
    assert run(*asked) == 0
    measured = Path("results/fashion_mnist_mini/noise_20/lenet/1")
    epochs = {"lenet_init_0": "0", "lenet_0": "1", "lenet_1": "2", "lenet_2": "2"}
    assert {path.stem: results(path)["epoch"] for path in measured.glob("*.json")} == epochs
    start, end = (results(measured / f"{name}.json") for name in ("lenet_init_0", "lenet_2"))
    assert {layer["l2_dist"] for layer in layers_of(start)} == {0.0}
    assert all(layer["l2_dist"] > 0 for layer in layers_of(end))
    assert end["trained_by"]["arguments"]["noise"] == 0.2


def test_initialization_may_be_of_any_run():
    """Weights that a network was fine-tuned from, or a control."""
    assert run_main(train, *MINI, "--seed", 2, "--epochs", 0) == 0
    initial = "models/fashion_mnist_mini/lenet/2/lenet_init_0.pt"
    assert run(*LENET, "--seed", 1, "--load-from", TRAINED, "--init-from", initial) == 0


def test_a_snapshot_that_is_named_twice_is_measured_once(capsys):
    Path("runs").mkdir()
    shutil.copy(REFERENCE / "lenet_2.tar", "runs")
    assert run(*LENET, "--load-from", "runs", "runs/lenet_2.tar", "runs/../runs/lenet_2.tar") == 0
    assert "lenet on mnist: runs/" in capsys.readouterr().out


def test_initialization_that_is_not_finite_is_named(capsys):
    weights = torch.load(REFERENCE / "lenet_init_0.pt", weights_only=True)
    weights["features.5.weight"][0] = float("inf")
    torch.save(weights, "lenet_init_0.pt")
    options = ("--load-from", REFERENCE / "lenet_2.tar", "--init-from", "lenet_init_0.pt")
    line = refused(compute_projections, capsys, *LENET, *options)
    assert "error: lenet_init_0.pt cannot be used: features.5.weight holds NaN" in line
