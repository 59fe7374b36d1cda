"""The recipes run from the shell, on small datasets written here and on a small network of the model zoo."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from programs import ROOT, write_datasets

import models
import train
from experiments import silent_filters
from experiments.published_networks import NETWORKS


@pytest.fixture
def recipe():
    """`recipe("1_bias_emerges", "--data-path", "images", EPOCHS=1)` runs a recipe in a checkout of its own."""
    shutil.copytree(ROOT / "experiments", "checkout/experiments", ignore=shutil.ignore_patterns("runs", "results"))
    for name in ("train.py", "compute_projections.py", "reinit_layers.py", "core", "models", "data", "utils"):
        Path("checkout", name).symlink_to(ROOT / name)

    def run(name: str, *options: str, **variables: object) -> str:
        variables = {"PYTHON": sys.executable, **{key: str(value) for key, value in variables.items()}}
        command = ["bash", f"checkout/experiments/{name}.sh", *options]
        environment = {**os.environ, **variables}
        finished = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    return run


def modification_times() -> dict[str, int]:
    """Return when each snapshot and result below experiments/runs was written."""
    return {str(path): path.stat().st_mtime_ns for path in Path("checkout/experiments/runs").rglob("*.[tpj]*")}


@pytest.mark.long
def test_recipes_write_tables_and_figures_and_skip_finished_parts(recipe, torture):
    write_datasets(Path("images"), 3000)
    shorter = {"EPOCHS": 3, "SEEDS": "1 2" if torture else "1"}  # enough to do better than guessing
    both = "lenet resnet18"
    recipe("1_bias_emerges", "--data-path", "images", **shorter, NETWORKS=both if torture else "resnet18")
    recipe("3_critical_layers", "--data-path", "images", **shorter, NETWORKS=both if torture else "lenet")
    results = {"bias_resnet18_cifar10", "criticality_lenet_mnist", "criticality_lenet_fashion_mnist"}
    if torture:
        recipe("2_learning", "--data-path", "images", **shorter)
        results |= {"learning_lenet_mnist", "learning_lenet_fashion_mnist"}
        results |= {"bias_lenet_mnist", "criticality_resnet18_cifar10"}
        recipe("3_critical_layers", "--data-path", "images", **shorter, NETWORKS="fcn3")
        recipe("5_on_a_gpu", "--data-path", "images", **shorter, NETWORKS="mlp_bn")
        for name in ("fcn3_mnist", "mlp_bn_cifar10_3_epochs"):
            assert Path(f"checkout/experiments/results/criticality_{name}.md").exists()
        silent = Path("checkout/experiments/results/silent_lenet_mnist.md").read_text()
        assert "| layer | filters | true labels | 20 % corrupted |" in silent
    for name in results:
        table = Path(f"checkout/experiments/results/{name}.md").read_text()
        assert ("| layer4.1.conv2 | " if "resnet18" in name else "| features.12 | ") in table
        for suffix in ("map", "points") if name.startswith("crit") else ("mass", "mean"):
            assert Path(f"checkout/experiments/results/{name}_{suffix}.png").stat().st_size > 10_000

    before = modification_times()
    assert any(path.endswith("lenet_0.tar") for path in before)
    recipe("1_bias_emerges", "--data-path", "images", **shorter, NETWORKS="resnet18")
    assert modification_times() == before


@pytest.mark.long
def test_recipe_of_the_model_zoo_measures_each_network_once(recipe, tmp_path):
    file = tmp_path / "zoo/hub/checkpoints/squeezenet1_1-b8a52dc0.pth"
    file.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(models.build("squeezenet1_1", 1000).state_dict(), file)
    variables = {"ARCHS": "squeezenet1_1", "TORCH_HOME": tmp_path / "zoo"}
    recipe("4_model_zoo", **variables)
    assert "| squeezenet1_1 |" in Path("checkout/experiments/results/model_zoo.md").read_text()
    before = modification_times()
    assert before
    recipe("4_model_zoo", **variables)
    assert modification_times() == before


def test_recipe_of_published_networks_downloads_nothing_once_they_are_measured(recipe):
    folder = Path("checkout/experiments/runs/published_networks/results/weights")
    folder.mkdir(parents=True)
    statistics = {"mass": 0.75, "mean": 0.1, "filters": 8, "zero_filters": 0, "p_value_without_zeros": 0.25}
    for stem in NETWORKS:
        content = {"arch": "weights", "0": {"0": {"name": "conv1", **statistics}}}
        (folder / f"{stem}.json").write_text(json.dumps(content))
    (folder / "projections.csv").touch()
    recipe("4_published_networks", PIP_NO_INDEX=1)
    table = Path("checkout/experiments/results/published_networks.md").read_text()
    assert "| VGG-16 of HED | input | 1 | 8 | 0 | 0 | 0.0 | 0.750 | 0.750 |" in table


@pytest.mark.parametrize(
    ("options", "variables", "name"),
    [
        ((), {"EPOCHS": "0"}, "EPOCHS"),
        ((), {"EPOCHS": "08"}, "EPOCHS"),
        ((), {"SEEDS": " "}, "SEEDS"),
        ((), {"NETWORKS": " "}, "NETWORKS"),
        ((), {"NETWORKS": "vgg16"}, "NETWORKS"),
        (("--data-path", ""), {}, "--data-path"),
        (("--epochs", "3"), {}, "usage: "),
    ],
    ids=str,
)
def test_wrong_use_of_a_recipe_is_one_line(options, variables, name):
    command = ["bash", str(ROOT / "experiments/1_bias_emerges.sh"), *options]
    finished = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})
    (line,) = finished.stderr.splitlines()
    assert (finished.returncode, finished.stdout) == (2, "")
    assert name in line


def test_filters_that_no_test_image_activates_are_silent(capsys):
    """Seed 1 is as trained. In seed 2, filters 0 to 2 of a layer are silent: their biases are very negative."""
    options = ("--arch", "lenet", "--dataset", "fashion_mnist_mini", "--epochs", "1", "--lr", "0.02")
    for seed in ("1", "2"):
        assert train.main([*options, "--seed", seed]) == 0
    first, second = (Path(f"models/fashion_mnist_mini/lenet/{seed}/lenet_0.tar") for seed in (1, 2))
    state = torch.load(second, weights_only=True)
    weight, bias = (state["model_state_dict"][f"features.2.{name}"] for name in ("weight", "bias"))
    bias[:] = torch.tensor([-1e4, -1e4, -1e4, 1e4, 1e4, 1e4])
    signs = torch.tensor([-1, -1, 1, 1, 1, -1])  # of the projections
    weight.copy_(weight.abs() * signs[:, None, None, None])
    torch.save(state, second)
    weight = torch.load(first, weights_only=True)["model_state_dict"]["features.2.weight"]
    others = (int((weight.sum((1, 2, 3)) <= 0).sum()) + 1) / 9  # mass of the filters that are not silent

    command = ("--title", "LeNet", "--epoch", "1", "both", "models/fashion_mnist_mini/lenet", "--output")
    capsys.readouterr()
    assert silent_filters.main([*command, "new/silent"]) == 0
    table = Path("new/silent.md").read_text()
    assert capsys.readouterr().out.strip() in table
    assert f"| features.2 | 6 | 0, 3; 67 % / {100 * others:.0f} % |" in table
    assert re.search(r"^Trained: CPU, .*, commit \w+", table, re.M)
    assert re.search(r"^Measured on \d{4}-\d\d-\d\d: CPU, ", table, re.M)
    shutil.copytree("models/fashion_mnist_mini/lenet/1", "fewer/1")
    assert silent_filters.main([*command[:-1], "first", "fewer", "--output", "new/common"]) == 0
    assert "| features.2 | 6 | 0; " in Path("new/common.md").read_text()
    assert silent_filters.main([*command, "none", "--epoch", "9"]) == 2
    assert "models/fashion_mnist_mini/lenet/1" in capsys.readouterr().err
    assert not Path("none.md").exists()
