"""Wrong use: one line on standard error that names the option or the file, exit status 2, and no file written."""

import os
import shutil
import struct
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


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_dataset_that_is_not_there_and_cannot_be_downloaded_is_named(dataset, capsys, monkeypatch):
    # A download that is refused at once, as on a machine without a network.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert run("--arch", "lenet", "--dataset", dataset, "--data-path", "nowhere") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--data-path nowhere" in line
    assert files_below(Path()) == set()


def test_what_exists_is_listed_where_an_architecture_or_a_dataset_is_missing(capsys):
    assert run() == 0
    output = capsys.readouterr().out
    for name in (
        "lenet",
        "vgg19_orig",
        "vgg16bn",
        "mlp_bn",
        "resnet50",
        "cifar100",
        "imagenet",
        "fashion_mnist_mini",
    ):
        assert f"  {name}\n" in output
    assert run("--arch", "lenet") == 0
    output = capsys.readouterr().out
    assert "  mnist\n" in output
    assert "  lenet\n" not in output
    assert files_below(Path()) == set()


# Snapshots that do not fit


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "flipped bit", "other archive"])
def test_damaged_snapshot_is_refused_by_name(damage, capsys):
    content = (REFERENCE / "lenet_2.tar").read_bytes()
    flipped = bytearray(content)
    flipped[600_000] ^= 8
    broken = {
        "truncated": content[:700_000],
        "empty": b"",
        "text": b"epoch 1: all is well\n" * 100,
        "flipped bit": bytes(flipped),
        "other archive": None,
    }[damage]
    if broken is None:
        Path("folder").mkdir()
        Path("folder/file").write_text("text")
        shutil.make_archive("snapshot", "zip", "folder")
        os.rename("snapshot.zip", "snapshot.tar")
    else:
        Path("snapshot.tar").write_bytes(broken)
    assert "snapshot.tar" in refused(capsys, *LENET, "--resume-from", "snapshot.tar")


class _Hostile:
    def __reduce__(self):
        return os.system, ("touch it_ran",)


@pytest.mark.parametrize("new_format", [True, False])
def test_snapshot_that_would_run_code_is_refused_and_does_not(new_format, capsys):
    torch.save(
        {"model_state_dict": {"features.0.weight": _Hostile()}},
        "hostile.tar",
        _use_new_zipfile_serialization=new_format,
    )
    line = refused(capsys, *LENET, "--resume-from", "hostile.tar")
    assert "hostile.tar is refused: loading it would run code" in line
    assert not Path("it_ran").exists()


def test_optimizer_state_of_another_network_is_refused(capsys):
    snapshot = torch.load(REFERENCE / "lenet_2.tar", weights_only=True)
    snapshot["optimizer_state_dict"]["param_groups"][0]["params"].pop()
    torch.save(snapshot, "snapshot.tar")
    line = refused(capsys, *LENET, "--resume-from", "snapshot.tar")
    assert "snapshot.tar holds no state of this optimizer" in line


@pytest.mark.parametrize("damage", ["missing", "empty", "another shape"])
def test_optimizer_state_that_cannot_be_continued_is_refused(damage, capsys):
    snapshot = torch.load(REFERENCE / "lenet_2.tar", weights_only=True)
    state = snapshot["optimizer_state_dict"]["state"]
    if damage == "missing":
        del snapshot["optimizer_state_dict"]
    elif damage == "empty":
        state.clear()
    else:
        state[3]["momentum_buffer"] = torch.zeros(3)
    torch.save(snapshot, "snapshot.tar")
    assert "snapshot.tar holds no state" in refused(capsys, *LENET, "--resume-from", "snapshot.tar", "--epochs", 9)


def test_class_without_images_is_refused(capsys):
    raw = Path("datasets/MNIST/raw")
    raw.mkdir(parents=True)
    for part, label in (("train", 0), ("t10k", 1)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 5, 28, 28) + bytes(5 * 784))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 5) + bytes([label] * 5))
    options = ("--arch", "lenet", "--dataset", "mnist", "--data-path", "datasets", "--subsample-classes", 1)
    assert "--subsample-classes 1" in refused(capsys, *options)


@pytest.mark.parametrize("content", [{"epoch": "two"}, {"epoch": -1}, {"config": [1]}], ids=str)
def test_snapshot_with_nonsense_in_it_is_refused(content, capsys):
    snapshot = torch.load(REFERENCE / "lenet_2.tar", weights_only=True)
    torch.save({**snapshot, **content}, "snapshot.tar")
    assert "snapshot.tar is no snapshot" in refused(capsys, *LENET, "--resume-from", "snapshot.tar")


# Snapshots of other runs


def test_new_run_does_not_overwrite_the_snapshots_of_another(capsys):
    options = (*LENET, "--subsample-classes", 2, "--seed", 1, "--epochs", 1)
    assert run(*options) == 0
    capsys.readouterr()
    line = refused(capsys, *options, "--lr", 0.5)
    assert "lenet_0.tar is of another run (--lr 0.001, not 0.5)" in line
    assert run(*options) == 0  # the very same run may be done again


def test_run_without_a_seed_does_not_overwrite_another_one(capsys):
    assert run(*LENET, "--epochs", 0) == 0
    capsys.readouterr()
    assert "lenet_init_0.pt holds other initial weights" in refused(capsys, *LENET, "--epochs", 0)


def test_run_does_not_overwrite_snapshots_that_record_no_configuration(capsys):
    folder = Path("models/fashion_mnist_mini/lenet/1")
    folder.mkdir(parents=True)
    shutil.copy(REFERENCE / "lenet_2.tar", folder)
    assert "recorded no configuration" in refused(capsys, *LENET, "--seed", 1)


def test_resumed_run_does_not_overwrite_what_the_original_went_on_to(capsys):
    options = (*LENET, "--subsample-classes", 2, "--seed", 1, "--epochs", 2, "--snapshot-every", 1)
    assert run(*options) == 0
    capsys.readouterr()
    snapshot = "models/fashion_mnist_mini_2/lenet/1/lenet_0.tar"
    line = refused(capsys, *options, "--resume-from", snapshot, "--override", "--lr", 0.1)
    assert "lenet_1.tar is of another run" in line


def test_run_that_goes_on_elsewhere_is_not_mixed_with_another_one_there(capsys):
    options = (*LENET, "--subsample-classes", 2, "--seed", 1, "--epochs", 1)
    folder = Path("fashion_mnist_mini_2/lenet/1")
    assert run(*options, "--models-path", "one", "--lr", 0.02) == 0
    assert run(*options, "--models-path", "other", "--lr", 0.001) == 0
    capsys.readouterr()
    goes_on = ("--models-path", "other", "--resume-from", "one" / folder / "lenet_0.tar")
    line = refused(capsys, *options, *goes_on, "--epochs", 2)
    assert "lenet_0.tar is of another run (--lr 0.001, not 0.02), and would be mixed" in line
    assert "lenet_1.pt holds other weights than one/" in refused(capsys, *options, *goes_on)
    # Where the snapshots there are its own it goes on, with other hyperparameters too where that is asked for.
    shutil.copytree("one", "copy")
    goes_on = ("--models-path", "copy", "--resume-from", "one" / folder / "lenet_0.tar")
    assert run(*options, *goes_on, "--epochs", 2, "--lr", 0.001, "--override") == 0
    state = torch.load("copy" / folder / "lenet_1.tar", weights_only=True)
    assert state["config"]["lr"] == 0.001


def test_snapshots_of_earlier_epochs_are_not_mixed_with_a_new_network_or_other_images(capsys):
    options = (*LENET, "--subsample-classes", 2, "--seed", 1)
    assert run(*options, "--epochs", 2) == 0
    capsys.readouterr()
    further = (*options, "--epochs", 3, "--start-epoch", 2)
    line = refused(capsys, *further)
    assert "lenet_1.tar is of another run (started from None, not its own initialization at epoch 2)" in line
    final = ("--resume-from", "models/fashion_mnist_mini_2/lenet/1/lenet_2.pt")
    assert "lenet_1.tar is of another run (--shuffle False, not True)" in refused(
        capsys, *further, *final, "--shuffle"
    )
    assert run(*further, *final, "--lr", 0.002) == 0  # it goes on where those are


def test_replaced_hyperparameters_do_not_overwrite_final_weights_of_the_old_ones(capsys):
    options = (*LENET, "--subsample-classes", 2, "--seed", 1, "--epochs", 4, "--snapshot-every", 2)
    folder = Path("models/fashion_mnist_mini_2/lenet/1")
    assert run(*options) == 0
    (folder / "lenet_3.tar").unlink()
    capsys.readouterr()
    line = refused(capsys, *options, "--resume-from", "latest", "--override", "--lr", 0.1)
    assert f"{folder}/lenet_4.pt is there with no training state to tell its run by" in line


def test_weights_of_elsewhere_do_not_overwrite_the_run_they_came_from(capsys):
    options = (*LENET, "--subsample-classes", 2, "--seed", 1, "--epochs", 2, "--snapshot-every", 1)
    assert run(*options) == 0
    capsys.readouterr()
    folder = Path("models/fashion_mnist_mini_2/lenet/1")
    line = refused(capsys, *options, "--resume-from", folder / "lenet_2.pt")
    assert "lenet_1.tar is of another run (started from None, not weights" in line
    assert "lenet_1.tar is of another run" in refused(capsys, *options, "--start-epoch", 1)
    # In a folder of its own it may be trained on, stopped and continued.
    elsewhere = (*options, "--models-path", "elsewhere")
    assert run(*elsewhere, "--resume-from", folder / "lenet_2.pt") == 0
    state = "elsewhere/fashion_mnist_mini_2/lenet/1/lenet_1.tar"
    assert run(*elsewhere, "--epochs", 3, "--resume-from", state) == 0
    assert "epoch 2 (3/3)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [
        {"optimizer_state_dict": {"foo": 1}},
        {"optimizer_state_dict": {"state": {}, "param_groups": []}},
        {"config": {"shuffle": "no"}},
        {"config": {"class_sample_seed": -1}},
        {"config": {"batch_size": 10**30}},
        {"model_state_dict": {"features.0.weight": torch.ones(6, 1, 3, 3, dtype=torch.int64)}},
        {"model_state_dict": {"features.0.weight": torch.ones(6, 1, 3, 3, dtype=torch.complex64)}},
        {"scheduler_state_dict": [1]},
        {"class_names": 3},
        {"config": {"batch_size": None}},
        {"config": {"lr": "fast"}},
        {"config": {"noise": [1]}},
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
