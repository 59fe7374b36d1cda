"""Wrong use: one line on standard error that names the option or the file, exit status 2, and no file written."""

from functools import partial
from pathlib import Path

import programs
import pytest
import torch
from programs import REFERENCE, files_below, run_main

import train

LENET = ("--arch", "lenet", "--dataset", "fashion_mnist_mini")


run = partial(run_main, train)
refused = partial(programs.refused, train)


@pytest.mark.parametrize(
    ("dataset", "by_hand"),
    [
        ("mnist", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", "nowhere/MNIST/raw"]),
        ("cifar10", ["cifar-10-binary.tar.gz", "cifar-10-python.tar.gz", "nowhere"]),
    ],
)
def test_dataset_that_cannot_be_downloaded_is_named_with_the_files_to_put_there(
    dataset, by_hand, capsys, monkeypatch
):
    # A download that is refused at once, as on a machine without a network.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert run("--arch", "lenet", "--dataset", dataset, "--data-path", "nowhere") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--data-path nowhere" in line
    assert [name for name in by_hand if name not in line.partition("put ")[2]] == []
    assert files_below(Path()) == set()


def test_what_exists_is_listed_where_an_architecture_or_a_dataset_is_missing(capsys):
    assert run() == 0
    output = capsys.readouterr().out
    for name in ("lenet", "vgg19_orig", "vgg16bn", "mlp_bn", "resnet50", "cifar100", "imagenet"):
        assert f"  {name}\n" in output
    assert run("--arch", "lenet") == 0
    output = capsys.readouterr().out
    assert "  mnist\n" in output
    assert "  lenet\n" not in output
    assert files_below(Path()) == set()


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        (("--epochs", 3), "--arch, --dataset"),
        (("--arch", "lenet", "--resume-from", "latest"), "--dataset"),
        (("--dataset", "mnist", "--cuda"), "--arch"),
        (("--arch", "lenet"), None),
    ],
)
def test_what_is_missing_beside_other_options_is_said(options, missing, capsys):
    assert run(*options) == 0
    output = capsys.readouterr()
    assert "datasets (--dataset):" in output.out or "architectures (--arch):" in output.out
    assert output.err == (f"train.py: missing: {missing}; nothing was done\n" if missing else "")


def test_misspelled_dataset_is_refused_with_the_nearest_names(capsys):
    line = refused(capsys, "--arch", "lenet", "--dataset", "CIFAR")
    assert "did you mean cifar10 or cifar100?" in line
    assert "imagenet" not in line


@pytest.mark.parametrize("damage", ["missing", "empty", "another shape", "of another network"])
def test_optimizer_state_that_cannot_be_continued_is_refused(damage, capsys):
    snapshot = torch.load(REFERENCE / "lenet_2.tar", weights_only=True)
    state = snapshot["optimizer_state_dict"]["state"]
    if damage == "missing":
        del snapshot["optimizer_state_dict"]
    elif damage == "empty":
        state.clear()
    elif damage == "of another network":
        snapshot["optimizer_state_dict"]["param_groups"][0]["params"].pop()
    else:
        state[3]["momentum_buffer"] = torch.zeros(3)
    torch.save(snapshot, "snapshot.tar")
    assert "snapshot.tar holds no state" in refused(capsys, *LENET, "--resume-from", "snapshot.tar", "--epochs", 9)


@pytest.mark.parametrize(
    "content",
    [
        {"optimizer_state_dict": {"state": {}, "param_groups": []}},
        {"config": {"shuffle": "no"}},
        {"config": {"batch_size": 10**30}},
        {"model_state_dict": {"features.0.weight": torch.ones(6, 1, 3, 3, dtype=torch.int64)}},
        {"model_state_dict": {"features.0.weight": torch.ones(6, 1, 3, 3, dtype=torch.complex64)}},
        {"class_names": 3},
        {"config": {"lr": "fast"}},
    ],
    ids=str,
)
def test_training_state_with_nonsense_in_it_is_refused(content, capsys):
    snapshot = torch.load(REFERENCE / "lenet_2.tar", weights_only=True)
    torch.save({**snapshot, **content}, "snapshot.tar")
    assert "snapshot.tar is no snapshot" in refused(capsys, *LENET, "--resume-from", "snapshot.tar")


def test_broken_image_of_a_folder_is_named(capsys):
    from PIL import Image

    for part in ("train", "val"):
        for name in ("apple", "pear"):
            Path(part, name).mkdir(parents=True)
            Image.new("RGB", (300, 260), (name == "apple" and "red") or "green").save(f"{part}/{name}/1.png")
    Path("train/pear/2.jpg").write_bytes(b"no picture")
    options = ("--arch", "resnet18", "--dataset", "imagenet", "--data-path", ".", "--epochs", 1, "--shuffle")
    assert run(*options) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
    assert "train/pear/2.jpg cannot be read" in line
