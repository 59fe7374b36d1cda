"""The recipes of experiments/, from the shell: on images made here, and on weights of the model zoo's form."""

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


@pytest.fixture
def recipe():
    """`recipe("1_bias_emerges", "--data-path", "images", EPOCHS=1)` runs one in a checkout of its own."""
    shutil.copytree(ROOT / "experiments", "checkout/experiments", ignore=shutil.ignore_patterns("runs", "results"))
    for name in ("train.py", "compute_projections.py", "reinit_layers.py", "core", "models", "data", "utils"):
        Path("checkout", name).symlink_to(ROOT / name)

    def run(name: str, *options: str, **variables: object) -> str:
        environment = {
            **os.environ,
            "PYTHON": sys.executable,
            **{key: str(value) for key, value in variables.items()},
        }
        command = ["bash", f"checkout/experiments/{name}.sh", *options]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    return run


def modified() -> dict[str, int]:
    """When each file below experiments/runs was written."""
    return {str(path): path.stat().st_mtime_ns for path in Path("checkout/experiments/runs").rglob("*.[tpj]*")}


@pytest.mark.long
def test_recipes_leave_tables_and_figures_and_do_nothing_twice(recipe, torture):
    write_datasets(Path("images"))
    shorter = {"EPOCHS": 1, "SEEDS": "1 2" if torture else "1"}
    every = "lenet resnet18"
    recipe("1_bias_emerges", "--data-path", "images", **shorter, NETWORKS=every if torture else "resnet18")
    recipe("3_critical_layers", "--data-path", "images", **shorter, NETWORKS=every if torture else "lenet")
    results = {"bias_resnet18_cifar10", "criticality_lenet_mnist", "criticality_lenet_fashion_mnist"}
    if torture:
        recipe("2_learning", "--data-path", "images", **shorter)
        results |= {"learning_lenet_mnist", "learning_lenet_fashion_mnist"}
        results |= {"bias_lenet_mnist", "criticality_resnet18_cifar10"}
        silent = Path("checkout/experiments/results/silent_lenet_mnist.md").read_text()
        assert "| layer | filters | true labels | 20 % corrupted |" in silent
    for name in results:
        table = Path(f"checkout/experiments/results/{name}.md").read_text()
        assert ("| layer4.1.conv2 | " if "resnet18" in name else "| features.12 | ") in table
        for suffix in ("map", "points") if name.startswith("crit") else ("mass", "mean"):
            assert Path(f"checkout/experiments/results/{name}_{suffix}.png").stat().st_size > 10_000

    before = modified()
    assert any(path.endswith("lenet_0.tar") for path in before)
    told = recipe("1_bias_emerges", "--data-path", "images", **shorter, NETWORKS="resnet18")
    assert told.count("training is finished") == len(shorter["SEEDS"].split())
    assert modified() == before


def test_recipe_of_the_model_zoo_measures_each_network_once(recipe, tmp_path):
    file = tmp_path / "zoo/hub/checkpoints/squeezenet1_1-b8a52dc0.pth"
    file.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(models.build("squeezenet1_1", 1000).state_dict(), file)
    variables = {"ARCHS": "squeezenet1_1", "TORCH_HOME": tmp_path / "zoo"}
    recipe("4_model_zoo", **variables)
    table = Path("checkout/experiments/results/model_zoo.md").read_text()
    assert "| squeezenet1_1 |" in table
    before = modified()
    assert before
    recipe("4_model_zoo", **variables)
    assert modified() == before


@pytest.mark.parametrize(
    ("options", "variables", "told"),
    [
        ((), {"EPOCHS": "0"}, "EPOCHS: a number from 1 on; not 0"),
        ((), {"EPOCHS": "08"}, "EPOCHS"),
        ((), {"SEEDS": " "}, "SEEDS, NETWORKS: at least one"),
        ((), {"NETWORKS": " "}, "SEEDS, NETWORKS: at least one"),
        ((), {"NETWORKS": "vgg16"}, "NETWORKS: lenet, resnet18, vgg11; not vgg16"),
        (("--data-path", ""), {}, "--data-path: '' is no folder"),
        (("--epochs", "3"), {}, "usage: "),
    ],
    ids=str,
)
def test_wrong_use_of_a_recipe_is_one_line(options, variables, told):
    command = ["bash", str(ROOT / "experiments/1_bias_emerges.sh"), *options]
    finished = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})
    (line,) = finished.stderr.splitlines()
    assert (finished.returncode, finished.stdout) == (2, "")
    assert told in line


def test_silent_filters_are_those_that_no_test_image_activates(capsys):
    """Filters with large negative biases are; others with such weights are not."""
    options = ("--arch", "lenet", "--dataset", "fashion_mnist_mini", "--epochs", "1", "--lr", "0.02")
    for seed in ("1", "2"):
        assert train.main([*options, "--seed", seed]) == 0
    path = Path("models/fashion_mnist_mini/lenet/2/lenet_0.tar")
    state = torch.load(path, weights_only=True)
    weights = state["model_state_dict"]
    weights["features.2.bias"][:] = torch.tensor([-1e4, -1e4, -1e4, 1e4, 1e4, 1e4])
    weights["features.2.weight"][:2] = -weights["features.2.weight"][:2].abs()
    weights["features.2.weight"][2:5] = weights["features.2.weight"][2:5].abs()
    weights["features.2.weight"][5] = -weights["features.2.weight"][5].abs()
    torch.save(state, path)
    capsys.readouterr()
    two = ("both", "models/fashion_mnist_mini/lenet")
    assert silent_filters.main(["--title", "LeNet", "--epoch", "1", "--output", "silent", *two]) == 0
    table = Path("silent.md").read_text()
    assert capsys.readouterr().out.strip() in table
    # Of the first run the projections count among the others' alone.
    first = torch.load(path.parent.parent / "1/lenet_0.tar", weights_only=True)["model_state_dict"][
        "features.2.weight"
    ]
    others = (int((first.sum((1, 2, 3)) <= 0).sum()) + 1) / 9
    assert f"| features.2 | 6 | 0, 3; 67 % / {100 * others:.0f} % |" in table
    assert re.search(r"^Trained: CPU, .*, commit \w+", table, re.M)
    assert re.search(r"^Measured on \d{4}-\d\d-\d\d: CPU, ", table, re.M)
    assert silent_filters.main(["--title", "LeNet", "--epoch", "1", "--output", "new/silent", *two]) == 0
    assert Path("new/silent.md").exists()
    assert silent_filters.main(["--title", "LeNet", "--epoch", "9", "--output", "none", *two]) == 2
    assert "has no training state after 9 epochs" in capsys.readouterr().err
    assert not Path("none.md").exists()
