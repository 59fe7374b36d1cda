"""Statistics over seeds equal those of NumPy and SciPy; tables hold the numbers of the results."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from programs import ROOT, run_main, shell
from scipy.stats import binom

from experiments import compare
from experiments.over_seeds import expected_bias, mean_interval, with_spread
from experiments.reading import ResultError, read, read_run
from experiments.tables import made_by
from utils import correlation
from utils.results import layers_of


def layer(name: str, mass: float, p_value: float | None = 0.5, zero_filters: int = 0) -> dict:
    return {
        "name": name,
        "mass": mass,
        "mean": 0.25 - mass / 2,
        "filters": 8,
        "zero_filters": zero_filters,
        "p_value": None if p_value is None else 1 - p_value,  # with filters of zeros: must not be used
        "p_value_without_zeros": p_value,
    }


def write_projections(path: str, epoch: object, masses: dict[str, float], **more) -> None:
    """Write a result of compute_projections.py: layers with a mass above 0.8 are biased."""
    blocks = {
        str(i): layer(name, mass, 0.01 if mass > 0.8 else 0.5) for i, (name, mass) in enumerate(masses.items())
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps({"0": blocks, "arch": "lenet", "epoch": str(epoch), **more}))


def write_resets(folder: str, masses: list[float], drops: list[float | None], **more) -> None:
    """Write a result of reinit_layers.py, after two epochs, without distances: the first layer is the input."""
    names = [f"layer{index}" for index in range(len(masses))]
    layers = [layer(name, mass, 0.01 if mass > 0.8 else 0.5) for name, mass in zip(names, masses, strict=True)]
    content = {
        "init_from_epoch": {"0": [90 * (1 - (drop or 0)) for drop in drops]},
        "relative_drop": {"0": drops},
        "corrected_drop": {"0": drops},
        "chance_top1": 10.0,
        "layers": names,
        "hidden_layers": names[1:],
        "arch": "lenet",
        "epoch": "2",
        "top1_test": 90.0,
        "projections": dict(zip(names, layers, strict=True)),
        "correlation": correlation.correlations(layers[1:], drops[1:]),
        **more,
    }
    Path(folder).mkdir(parents=True)
    Path(folder, "reinit_lenet_2.json").write_text(json.dumps(content))


def table(kind: str, *options) -> str:
    """Return the table of a comparison that succeeds."""
    assert run_main(compare, kind, "--title", "LeNet", "--output", "out/table", *options) == 0
    return Path("out/table.md").read_text()


def error(capsys, kind: str, *options) -> str:
    """Return the error of a comparison that fails, and check that it is one line and nothing is written."""
    assert run_main(compare, kind, "--title", "LeNet", "--output", "out/table", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("compare.py: error: ")
    assert not Path("out").exists()
    return line


def row(table: str, name: str) -> list[str]:
    """Return the cells of the row with this name."""
    lines = [line.replace("\\|", "/") for line in table.splitlines()]
    (line,) = [line for line in lines if line.startswith(f"| {name} ")]
    return [cell.strip() for cell in line.split("|")[1:-1]]


@pytest.mark.parametrize("filters", [1, 2, 5, 6, 64, 511])
def test_expected_bias_is_that_of_the_binomial_distribution(filters):
    counts = np.arange(filters + 1)
    expected = (binom.pmf(counts, filters, 0.5) * np.abs(counts / filters - 0.5)).sum()
    assert expected_bias(filters) == pytest.approx(expected, rel=1e-9)


def test_interval_of_a_mean_is_students():
    values = [0.1, 0.9, 0.4, -0.3]
    quantile = 3.1824463  # 97.5 %, three degrees of freedom, from a table
    half = quantile * np.std(values, ddof=1) / 2
    assert mean_interval(values) == pytest.approx((np.mean(values) - half, np.mean(values) + half))
    assert mean_interval([0.5]) is None
    assert mean_interval([0.5, 0.5]) == (0.5, 0.5)


def test_spread_is_shown_for_several_values_only():
    assert with_spread([0.1, 0.3], ".2f") == "0.20 ± 0.14"
    assert with_spread([0.1], ".2f") == "0.10"
    assert with_spread([-0.3, 0.1], ".0f") == "0 ± 0"


def test_run_is_read_up_to_an_epoch_with_its_accuracy():
    write_projections("results/1/alexnet_init_0.json", 0, {"a": 0.5}, arch="alexnet")
    write_projections("results/1/init_alexnet.json", 0, {"a": 0.25}, arch="alexnet")  # without --load-from
    write_projections("results/1/lenet_0.json", 1, {"a": 0.75}, top1_acc=70.0)
    write_projections("results/1/lenet_1.json", 2, {"a": 1.0}, top1_acc=80.0, top1_acc_train_running=85.0)
    write_projections("results/1/lenet_2.pt.json", 2, {"a": 1.0})  # the final weights, without accuracy
    write_projections("results/1/lenet_2.json", 3, {"a": 0.0}, top1_acc=90.0)
    write_projections("results/1/reinit_lenet_2.json", 2, {"a": 0.0}, init_from_epoch={})
    run = read_run(Path("results/1"), 2)
    assert {epoch: layers["a"]["mass"] for epoch, layers in run.epochs.items()} == {0: 0.5, 1: 0.75, 2: 1.0}
    assert (run.accuracy, run.accuracy_trained_on) == (80.0, 85.0)
    with pytest.raises(ResultError, match="results/1"):
        read_run(Path("results/1"), 4)


def test_results_of_format_2_are_read():
    content = read(ROOT / "tests/reference/format2/lenet_0.json")
    assert list(layers_of(content))[:2] == ["features.0", "features.2"]
    assert read(ROOT / "tests/reference/format2/reinit_lenet_1.json")["layers"][0] == "features.0"
    assert "not recorded" in made_by([content])


def test_bias_is_compared_over_seeds_and_groups():
    made = {"device": "a device", "python": "3.1", "torchvision": "1.0", "commit": "abc"}
    masses = {"true": {1: (0.75, 1.0), 2: (0.875, 0.5)}, "noise": {1: (0.5, 0.5), 2: (0.5, 0.625)}}
    for group, seeds in masses.items():
        for seed, (first, second) in seeds.items():
            write_projections(f"{group}/{seed}/lenet_init_0.json", 0, {"a": 0.5, "b": 0.375})
            made["arguments"] = {"lr": 0.1 if group == "true" else seed / 100, "seed": seed, "epochs": seed}
            more = {"top1_acc": 80.0 + seed, "trained_by": {**made, "torch": f"2.{seed}"}}
            write_projections(f"{group}/{seed}/lenet_0.json", 1, {"a": first, "b": second}, **more)
            write_projections(f"{group}/{seed}/lenet_1.json", 2, {"a": second, "b": second}, **more)
    found = table("bias", "--epoch", 1, "--note", "A note.", "true labels", "true", "corrupted", "noise")
    assert (
        "\n\nA note.\n\ncorrupted: Not all were trained with the same options: --lr 0.01 / 0.02\n\n| layer |"
        in found
    )
    assert "\n\nTrained: a device, Python 3.1, PyTorch 2.1 / 2.2, torchvision 1.0, commit abc\n\n" in found
    # Mean and standard deviation of the masses 0.75 and 0.875; one of them has a p-value of 0.01.
    assert row(found, "a") == ["a", "8", "0.14", "0.81 ± 0.09, -0.156, 1/2", "0.50 ± 0.00, +0.000, 0/2"]
    assert row(found, "b")[3] == "0.75 ± 0.35, -0.125, 1/2"
    bias = [(abs(0.75 - 0.5) + abs(1 - 0.5)) / 2, (abs(0.875 - 0.5) + abs(0.5 - 0.5)) / 2]
    after_1 = "**mean bias** /mass - 1/2/ after 1 epoch"
    assert row(found, after_1)[3] == f"{np.mean(bias):.3f} ± {np.std(bias, ddof=1):.3f}"
    # The bias of the runs with noise is 0 and 0.0625.
    less = np.array([0, 0.0625]) - bias
    error = less.std(ddof=1) / 2**0.5
    low, high = less.mean() - 12.7062 * error, less.mean() + 12.7062 * error  # one degree of freedom
    p = 1 - 2 / math.pi * math.atan(abs(less.mean()) / error)  # Cauchy's distribution
    assert row(found, "less that of true labels, seed by seed (95 % interval)")[3:] == [
        "",
        f"{less.mean():+.3f} ({low:+.3f} to {high:+.3f}), p = {p:.2g}, lower in 2/2",
    ]
    accuracy = row(found, "**accuracy (%)** on the test set, or the validation split where there is one")
    assert accuracy[3] == f"81.50 ± {math.sqrt(0.5):.2f}"
    figures = {f"table_{what}.{suffix}" for what in ("mass", "mean") for suffix in ("png", "pdf")}
    assert {path.name for path in Path("out").iterdir()} == {"table.md", *figures}

    later = table("bias", "--epoch", 2, "true labels", "true")
    assert row(later, after_1)[3] == row(found, after_1)[3]
    assert row(later, "**mean bias** /mass - 1/2/ after 2 epochs")[3] != row(found, after_1)[3]
    Path("true/1/lenet_0.json").unlink()
    assert "after 1 epoch |" not in table("bias", "--epoch", 2, "true labels", "true", "corrupted", "noise")


def test_criticality_is_compared_over_seeds():
    write_resets("runs/1", [0.5, 0.9, 0.75, 0.5], [0.9, 0.6, 0.5, 0.0])
    write_resets("runs/2", [0.5, 0.75, 0.75, 0.75], [0.7, 0.1, 0.0, 0.2])
    write_resets("runs/10", [0.5, 0.5, 0.75, 1.0], [0.2, 0.3, 0.4, 0.3])
    Path("runs/10/reinit_lenet_2.json").rename("runs/10/reinit_lenet_1.json")  # of lenet_1.tar, after two epochs
    found = table("criticality", "--epoch", 2, "runs")
    lost, over = "60 ± 36", ["2/3", "3/3"]
    assert row(found, "*layer0*") == ["*layer0*", "0.50 ± 0.00", "+0.000", "0/3", lost, *over]  # the input layer
    assert row(found, "layer1")[3] == "1/3"
    assert row(found, "layer2")[-2:] == ["0/3", "2/3"]  # a loss of half of the accuracy is not critical
    # The mass of seed 2 correlates with nothing; the ranks of seed 10 are 1, 2, 3 and 1.5, 3, 1.5.
    assert row(found, "mass")[1] == "+0.50 (-1.00 to +1.00), 2 of 3"
    assert row(found, "seed 1")[:3] == ["seed 1", "90.00", "+1.00"]
    assert row(found, "seed 2")[2] == ""
    assert row(found, "distance moved")[1] == "not defined"
    drops = {0: [0.6, 0.5, 0.0], 2: [0.3, 0.4, 0.3]}  # by place of the seed, where there is a correlation
    means = np.mean([correlation.fair_coins([8, 8, 8], one, seed, "mass") for seed, one in drops.items()], 0)
    low, high = np.nanquantile(means, [0.025, 0.975])
    assert row(found, "mass")[2] == f"{low:+.2f} to {high:+.2f}"
    assert row(found, "more than 50 %")[1:3] == ["1 of 2", "0 of 7"]
    assert row(found, "more than 10 %")[1:3] == ["2 of 2", "4 of 7"]
    assert found.index("seed 2") < found.index("seed 10")
    assert "did not learn" not in found
    write_resets("runs/11", [0.5, 0.9, 0.9, 0.9], [0.9, 0.9, 0.9, 0.9], top1_test=11.35)
    all_runs, learned = table("criticality", "--epoch", 2, "runs").split("Without seed 11, which did not learn")
    assert row(all_runs, "more than 50 %")[1:3] == ["4 of 5", "0 of 7"]
    assert row(learned, "more than 50 %")[1:3] == ["1 of 2", "0 of 7"]
    assert row(learned, "mass") == row(found, "mass")


def test_settings_are_rows_of_the_overview(capsys):
    for folder in ("first", "second"):
        write_resets(f"{folder}/1", [0.5, 0.9, 0.75, 0.5], [0.9, 0.6, 0.5, 0.0])
        write_resets(f"{folder}/2", [0.5, 0.5, 0.75, 1.0], [0.2, 0.3, 0.4, 0.3])
    put_back = {name: [0.9, 0.6, 0.2] for name in ("0", "identity_line", "largest_direction")}
    write_resets("two hidden/1", [0.5, 0.9, 0.75], [0.9, 0.6, 0.2], corrected_drop=put_back)
    write_resets("flat/1", [0.5, 0.75, 0.75, 0.75], [0.9, 0.6, 0.5, 0.0])
    groups = ("LeNet", "first", "again", "second", "small", "two hidden", "flat", "flat")
    correlated, claimed, moved = re.split(r"\n\n[A-Z][^|]*:\n\n", table("overview", *groups))[1:]
    assert row(correlated, "LeNet")[1:5] == row(correlated, "again")[1:5]
    assert row(correlated, "LeNet")[1:4] == ["2", "3", "+0.50 (-1.00 to +1.00)"]
    assert "| small |" not in correlated
    assert row(claimed, "LeNet")[1:3] == ["1 of 2", "0 of 4"]
    assert row(correlated, "flat")[3:5] == ["not defined", ""]
    assert row(claimed, "**all**")[1:3] == ["3 of 5", "1 of 12"]
    assert row(moved, "small") == ["small", *["40.0 %"] * 3]
    assert row(moved, "flat")[2:] == ["", ""]
    assert "A rank correlation takes three hidden layers" in table("criticality", "--epoch", 2, "two hidden")
    write_resets("first/3", [0.5], [0.1])
    shutil.copy("first/3/reinit_lenet_2.json", "first/3/reinit_lenet_1.json")
    assert run_main(compare, "overview", "--title", "LeNet", "--output", "out/again", *groups) == 2
    assert "first/3 has 2 results" in capsys.readouterr().err


def test_networks_are_compared():
    for name, p_values in (("one", (0.01, 0.2, None)), ("two", (0.001, 0.001, 0.001))):
        blocks = {str(i): layer(f"l{i}", 0.75, p_value, zero_filters=i) for i, p_value in enumerate(p_values)}
        net = {"filters": 24, "zero_filters": 1, "mass": 0.625}
        Path(f"{name}.json").write_text(json.dumps({"0": blocks, "net": net, "arch": name, "epoch": "-1"}))
    command = ("experiments/compare.py", "networks", "--title", "Zoo", "--output", "out/zoo")
    finished = shell(*command, "one.json", "two.json")
    assert (finished.returncode, finished.stderr) == (0, "")
    found = Path("out/zoo.md").read_text()
    # Without filters of zeros, the second layer has 5 of 7 filters on one side, the third one 4 of 6.
    bias, chance = (0.25 + 5 / 7 - 0.5 + 4 / 6 - 0.5) / 3, (0.13671875 + 0.15625 + 0.15625) / 3
    assert row(found, "one") == ["one", "3", "24", "1", "1 (33 %)", f"{bias:.3f}", f"{chance:.3f}", "0.625"]
    assert row(found, "two")[4] == "3 (100 %)"
    assert Path("out/zoo_mass.png").exists()


def test_error_about_runs_that_do_not_belong_together_names_one(capsys):
    for folder, layers in (("first", {"a": 0.5}), ("second", {"b": 0.5}), ("no start", {"a": 0.5})):
        write_projections(f"{folder}/1/lenet_0.json", 1, layers)
        if folder != "no start":
            write_projections(f"{folder}/1/lenet_init_0.json", 0, layers)
    sums = {"provenance": {"arguments": {"normalize": False}}}
    write_projections("sums/1/lenet_init_0.json", 0, {"a": 0.5}, **sums)
    write_projections("sums/1/lenet_0.json", 1, {"a": 0.5}, **sums)
    write_resets("other layers/1", [0.5], [0.5])
    write_resets("other layers/2", [0.5, 0.5], [0.5, 0.5])
    write_resets("nothing to lose/1", [0.5], [None])
    write_resets("other epoch/1", [0.5], [0.5], epoch="3")  # of lenet_2.tar
    for seed in (1, 2):
        write_resets(f"copied/{seed}", [0.5], [0.5], weights="01234567")
    bias, criticality = ("bias", "--epoch", 1), ("criticality", "--epoch", 2)
    for options, text in (
        ((*bias, "one", "first", "two", "second"), "different layers"),
        ((*bias, "one", "no start"), "no start/1"),
        ((*bias, "one", "sums"), "sums/1/lenet_0.json was measured without --normalize"),
        ((*criticality, "other layers"), "seed 1 and seed 2"),
        ((*criticality, "nothing to lose"), "seed 1"),
        ((*criticality, "other epoch"), "other epoch/1"),
        ((*criticality, "copied"), "seed 1 and seed 2 are results of the same weights"),
        (("networks", "other layers/1/reinit_lenet_2.json"), "other layers/1/reinit_lenet_2.json"),
    ):
        assert text in error(capsys, *options)


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        ("{", ""),
        ('{"arch": "lenet", "epoch": "0", "0": {"0": {"name": "a", "mass": 0.5, "mean": 0.0}}}', "zero_filters"),
    ],
)
def test_error_about_a_damaged_result_names_the_file(capsys, content, missing):
    file = Path("seeds/1/lenet_0.json")
    file.parent.mkdir(parents=True)
    file.write_text(content)
    for options in (("bias", "--epoch", 1, "runs", "seeds"), ("networks", file)):
        line = error(capsys, *options)
        assert str(file) in line
        assert missing in line
    resets = Path("resets/1/reinit_lenet_2.json")
    resets.parent.mkdir(parents=True)
    resets.write_text('{"arch": "lenet", "epoch": "2", "layers": []}')
    assert "corrected_drop" in error(capsys, "criticality", "--epoch", 2, "resets")


@pytest.mark.parametrize("folder", ["nowhere", "no seeds", "no results"])
def test_error_about_missing_results_names_the_folder(capsys, folder):
    Path("no seeds").mkdir()
    Path("no results/1").mkdir(parents=True)
    assert folder in error(capsys, "bias", "--epoch", 1, "true labels", folder)
