"""Runs side by side: statistics over seeds against numpy and scipy, tables and figures from files of results."""

import contextlib
import io
import itertools
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from programs import ROOT, run_main, shell
from scipy.stats import binom

from experiments import compare
from experiments.over_seeds import bootstrap_interval, expected_bias, mean_interval, with_spread
from experiments.reading import ResultError, read, read_run
from experiments.tables import made_by
from utils import correlation
from utils.results import layers_of


def layer(name: str, mass: float, filters: int = 8, p_value: float = 0.5) -> dict:
    return {
        "name": name,
        "mass": mass,
        "mean": 0.25 - mass / 2,
        "filters": filters,
        "zero_filters": 0,
        "p_value": None if p_value is None else 1 - p_value,  # with zeros, which decide nothing
        "p_value_without_zeros": p_value,
    }


def write_projections(folder: Path, stem: str, epoch: int, masses: dict[str, float], **more) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    blocks = {
        str(i): layer(name, mass, p_value=0.01 if mass > 0.8 else 0.5)
        for i, (name, mass) in enumerate(masses.items())
    }
    (folder / f"{stem}.json").write_text(json.dumps({"0": blocks, "arch": "lenet", "epoch": str(epoch), **more}))


def write_reinit(folder: Path, masses: list[float], drops: list[float], spearman: float | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"layer{index}" for index in range(len(masses))]
    content = {
        "init_from_epoch": {"0": [90 * (1 - (drop or 0)) for drop in drops]},
        "relative_drop": {"0": drops},
        "layers": names,
        "arch": "lenet",
        "epoch": "2",
        "top1_test": 90.0,
        "projections": {name: layer(name, mass) for name, mass in zip(names, masses, strict=True)},
        "correlation": {"spearman": spearman, "p_value": None if spearman is None else 0.25},
    }
    (folder / "reinit_lenet_2.json").write_text(json.dumps(content))


class Finished(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def compared(*options) -> Finished:
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        status = run_main(compare, *options)
    return Finished(status, stdout.getvalue(), stderr.getvalue())


def row(table: str, name: str) -> list[str]:
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
    half = (
        3.1824463 * np.std(values, ddof=1) / 2
    )  # the 97.5 % quantile of t with 3 degrees of freedom, from a table
    assert mean_interval(values) == pytest.approx((np.mean(values) - half, np.mean(values) + half))
    assert mean_interval([0.5]) is None
    assert mean_interval([0.5, 0.5]) == (0.5, 0.5)


def test_bootstrap_interval_is_that_of_all_resamples():
    values = [0.1, 0.9, 0.4, -0.3]
    means = np.sort([np.mean(chosen) for chosen in itertools.product(values, repeat=len(values))])
    expected = np.quantile(means, [0.025, 0.975])
    assert bootstrap_interval(values) == pytest.approx(expected, abs=0.026)  # means are multiples of 0.025
    assert bootstrap_interval([0.5]) is None


def test_spread_is_told_of_several_values_only():
    assert with_spread([0.1, 0.3], ".2f") == "0.20 ± 0.14"
    assert with_spread([0.1], ".2f") == "0.10"
    assert with_spread([-0.3, 0.1], ".0f") == "0 ± 0"


def test_results_that_lack_something_are_named():
    folder = Path("seeds/1")
    write_projections(folder, "lenet_init_0", 0, {"a": 0.5})
    content = json.loads((folder / "lenet_init_0.json").read_text())
    options = ("--title", "LeNet", "--output", "out/a")
    for changes, told in (
        ({"epoch": "x"}, "is no result of compute_projections.py"),
        (
            {"0": {"0": {"name": "a", "mass": 0.5, "mean": 0.0}}},
            "does not tell filters, p_value_without_zeros, zero_filters",
        ),
    ):
        (folder / "lenet_init_0.json").write_text(json.dumps({**content, **changes}))
        for finished in (
            compared("bias", *options, "--epoch", 1, "runs", "seeds"),
            compared("networks", *options, folder / "lenet_init_0.json"),
        ):
            assert finished.returncode == 2
            (line,) = finished.stderr.splitlines()
            assert line.startswith(f"compare.py: error: {folder}/lenet_init_0.json {told}")


def test_run_is_read_up_to_an_epoch_with_its_accuracy():
    folder = Path("results/1")
    write_projections(folder, "lenet_init_0", 0, {"a": 0.5})
    write_projections(folder, "lenet_0", 1, {"a": 0.75}, top1_acc=70.0)
    write_projections(folder, "lenet_1", 2, {"a": 1.0}, top1_acc=80.0, top1_acc_train_running=85.0)
    write_projections(folder, "lenet_2.pt", 2, {"a": 1.0})  # the final weights, which know no accuracy
    write_projections(folder, "lenet_2", 3, {"a": 0.0}, top1_acc=90.0)
    write_reinit(folder, [0.5], [0.1], None)
    run = read_run(folder, 2)
    assert {epoch: layers["a"]["mass"] for epoch, layers in run.epochs.items()} == {0: 0.5, 1: 0.75, 2: 1.0}
    assert (run.accuracy, run.accuracy_trained_on) == (80.0, 85.0)
    with pytest.raises(ResultError, match="results/1 has no results of 4 epochs"):
        read_run(folder, 4)


def test_results_of_format_2_are_read():
    content = read(ROOT / "tests/reference/format2/lenet_0.json")
    assert list(layers_of(content))[:2] == ["features.0", "features.2"]
    assert read(ROOT / "tests/reference/format2/reinit_lenet_1.json")["layers"][0] == "features.0"
    assert "not recorded" in made_by([content])


def test_bias_is_compared_over_seeds_and_groups():
    masses = {"true": {1: (0.75, 1.0), 2: (0.875, 0.5)}, "noise": {1: (0.5, 0.5), 2: (0.5, 0.625)}}
    for group, seeds in masses.items():
        for seed, (first, second) in seeds.items():
            folder = Path(group, str(seed))
            write_projections(folder, "lenet_init_0", 0, {"a": 0.5, "b": 0.375})
            trained_by = {
                "device": "a device",
                "python": "3.1",
                "torch": "2.0",
                "torchvision": "1.0",
                "commit": "abc",
            }
            more = {"top1_acc": 80.0 + seed, "trained_by": {**trained_by, "torch": f"2.{seed}"}}
            write_projections(folder, "lenet_0", 1, {"a": first, "b": second}, **more)
            write_projections(folder, "lenet_1", 2, {"a": second, "b": second}, **more)
    options = ("--title", "LeNet", "--epoch", 1, "--output", "out/bias")
    finished = compared("bias", *options, "--note", "Half of it.", "true labels", "true", "corrupted", "noise")
    assert (finished.returncode, finished.stderr) == (0, "")
    table = Path("out/bias.md").read_text()
    assert "\n\nHalf of it.\n\n| layer |" in table
    assert (
        "\n\nTrained: a device, Python 3.1, PyTorch 2.1 / 2.2, torchvision 1.0, commit abc\n\nMeasured on "
        in table
    )
    # mass: mean and standard deviation of 0.75 and 0.875; one of the two has a p-value of 0.01
    assert row(table, "a") == ["a", "8", "0.14", "0.81 ± 0.09, -0.156, 1/2", "0.50 ± 0.00, +0.000, 0/2"]
    assert row(table, "b")[3] == "0.75 ± 0.35, -0.125, 1/2"
    bias = [(abs(0.75 - 0.5) + abs(1 - 0.5)) / 2, (abs(0.875 - 0.5) + abs(0.5 - 0.5)) / 2]
    assert (
        row(table, "**mean bias** /mass - 1/2/ after 1 epoch")[3]
        == f"{np.mean(bias):.3f} ± {np.std(bias, ddof=1):.3f}"
    )
    # Of the noise: 0 and 0.0625; each less that of the same seed with true labels.
    less = np.array([0, 0.0625]) - bias
    half = 12.7062 * less.std(ddof=1) / 2**0.5  # of t with 1 degree of freedom, which is Cauchy's distribution
    p = 1 - 2 / math.pi * math.atan(abs(less.mean()) / (less.std(ddof=1) / 2**0.5))
    assert row(table, "less that of true labels, seed by seed (95 % interval)")[3:] == [
        "",
        f"{less.mean():+.3f} ({less.mean() - half:+.3f} to {less.mean() + half:+.3f}), p = {p:.2g}, lower in 2/2",
    ]
    assert (
        row(table, "**accuracy (%)** on the test set, or the validation split where there is one")[3]
        == f"81.50 ± {math.sqrt(0.5):.2f}"
    )
    after_one = row(table, "**mean bias** /mass - 1/2/ after 1 epoch")[3]
    compared("bias", "--title", "LeNet", "--epoch", 2, "--output", "out/bias", "true labels", "true")
    later = Path("out/bias.md").read_text()
    assert row(later, "**mean bias** /mass - 1/2/ after 1 epoch")[3] == after_one
    assert row(later, "**mean bias** /mass - 1/2/ after 2 epochs")[3] != after_one
    for seed in (1, 2):
        Path(f"true/{seed}/lenet_0.json").unlink()
    without = compared("bias", "--title", "L", "--epoch", 2, "--output", "out/bias", "t", "true", "n", "noise")
    assert without.returncode == 0, without.stderr
    assert "after 1 epoch |" not in Path("out/bias.md").read_text()
    assert {path.name for path in Path("out").iterdir()} == {
        *("bias.md", "bias_mass.png", "bias_mass.pdf", "bias_mean.png", "bias_mean.pdf")
    }


def test_criticality_is_compared_over_seeds():
    write_reinit(Path("runs/1"), [1.0, 0.75, 0.5], [0.9, 0.5, 0.1], 1.0)
    write_reinit(Path("runs/2"), [0.5, 0.75, 0.5], [0.7, 0.1, 0.0], None)
    write_reinit(Path("runs/10"), [0.5, 0.75, 1.0], [0.2, 0.3, 0.3], 0.5)
    finished = compared("criticality", "--title", "LeNet", "--epoch", 2, "--output", "out/c", "runs")
    assert (finished.returncode, finished.stderr) == (0, "")
    table = Path("out/c.md").read_text()
    assert row(table, "layer0") == ["layer0", "0.67 ± 0.29", "0/3", "60 ± 36", "2/3"]
    assert row(table, "layer1")[-1] == "0/3"  # half of the accuracy is not more than half
    assert row(table, "seed 1") == ["seed 1", "90.00", "+1.00", "0.25", "layer0"]
    assert row(table, "seed 2")[2] == "not defined"
    assert row(table, "**mean**")[2] == "**+0.75**, 95 % interval -1.00 to +1.00, by bootstrap +0.50 to +1.00"
    drawn = [
        correlation.fair_coins([8, 8, 8], drops, seed) for drops, seed in (([0.9, 0.5, 0.1], 0), ([2, 3, 3], 2))
    ]
    means = np.mean(drawn, 0)[~np.isnan(drawn).any(0)]
    assert row(table, "of fair coins")[2] == "{:+.2f}, 95 % of draws {:+.2f} to {:+.2f}".format(
        means.mean(), *np.quantile(means, [0.025, 0.975])
    )
    assert "\n\nOf the 0 biased layers of all runs 0 are critical, of the 9 others 2.\n\n" in table
    assert table.index("seed 2") < table.index("seed 10")


def test_results_are_of_the_epoch_that_they_say_not_of_their_name():
    write_reinit(Path("runs/1"), [1.0, 0.75, 0.5], [0.9, 0.5, 0.1], 1.0)
    path = Path("runs/1/reinit_lenet_2.json")  # of lenet_2.tar, after three epochs
    path.write_text(path.read_text().replace('"epoch": "2"', '"epoch": "3"'))
    finished = compared("criticality", "--title", "LeNet", "--epoch", 2, "--output", "out/c", "runs")
    assert finished.returncode == 2
    assert "no results of resetting layers after 2 epochs" in finished.stderr


def test_networks_are_compared():
    for name, p_values in (("one", (0.01, 0.2, None)), ("two", (0.001, 0.001, 0.001))):
        blocks = {str(i): {**layer(f"l{i}", 0.75, p_value=p), "zero_filters": i} for i, p in enumerate(p_values)}
        net = {"filters": 24, "zero_filters": 1, "mass": 0.625}
        Path(f"{name}.json").write_text(json.dumps({"0": blocks, "net": net, "arch": name, "epoch": "-1"}))
    command = ("experiments/compare.py", "networks", "--title", "Zoo", "--output", "out/zoo")
    assert shell(*command, "three.json").returncode == 2
    finished = shell(*command, "one.json", "two.json")
    assert (finished.returncode, finished.stderr) == (0, "")
    table = Path("out/zoo.md").read_text()
    # The second layer has 5 of its 7 live filters on one side, the third 4 of 6.
    bias, chance = (0.25 + 5 / 7 - 0.5 + 4 / 6 - 0.5) / 3, (0.13671875 + 0.15625 + 0.15625) / 3
    assert row(table, "one") == ["one", "3", "24", "1", "1 (33 %)", f"{bias:.3f}", f"{chance:.3f}", "0.625"]
    assert row(table, "two")[4] == "3 (100 %)"
    assert Path("out/zoo_mass.png").exists()


def test_results_that_do_not_belong_together_are_refused(capsys):
    for folder, masses in (("first", {"a": 0.5}), ("second", {"b": 0.5}), ("no start", {"a": 0.5})):
        write_projections(Path(folder, "1"), "lenet_0", 1, masses)
        if folder != "no start":
            write_projections(Path(folder, "1"), "lenet_init_0", 0, masses)
    write_reinit(Path("other layers/1"), [0.5], [0.5], None)
    write_reinit(Path("other layers/2"), [0.5, 0.5], [0.5, 0.5], None)
    write_reinit(Path("nothing to lose/1"), [0.5], [None], None)
    made = {"provenance": {"arguments": {"normalize": False}}}
    for stem, epoch in (("lenet_init_0", 0), ("lenet_0", 1)):
        write_projections(Path("sums/1"), stem, epoch, {"a": 0.5}, **made)
    write_reinit(Path("old/1"), [0.5], [0.5], None)
    path = Path("old/1/reinit_lenet_2.json")
    path.write_text(path.read_text().replace('"correlation"', '"other"'))
    title = ("--title", "LeNet", "--output", "out/bias")
    for options, told in (
        (("bias", *title, "--epoch", 1, "one", "first", "two", "second"), "the runs are of different layers"),
        (("bias", *title, "--epoch", 1, "one", "no start"), "no start/1 has no results of the initialization"),
        (("criticality", *title, "--epoch", 2, "other layers"), "seed 1 and seed 2 have other layers"),
        (("criticality", *title, "--epoch", 2, "nothing to lose"), "seed 1: the accuracy lost is not defined"),
        (("networks", *title, "other layers/1/reinit_lenet_2.json"), "is no result of compute_projections.py"),
        (
            ("bias", *title, "--epoch", 1, "one", "sums"),
            "sums/1 has results that were measured without --normalize",
        ),
        (("criticality", *title, "--epoch", 2, "old"), "seed 1: the results do not tell correlation"),
    ):
        assert compare.main([str(option) for option in options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line
    assert not Path("out").exists()


@pytest.mark.parametrize("wrong", ["nowhere", "no seeds", "no results", "not JSON"])
def test_results_that_are_not_there_are_named(wrong):
    folder = Path(wrong)
    if wrong != "nowhere":
        folder.mkdir()
    if wrong in ("no results", "not JSON"):
        (folder / "1").mkdir()
    if wrong == "not JSON":
        (folder / "1/lenet_0.json").write_text("{")
    finished = compared("bias", "--title", "LeNet", "--epoch", 1, "--output", "out/bias", "true labels", wrong)
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert line.startswith(f"compare.py: error: {wrong}")
    assert not Path("out").exists()
