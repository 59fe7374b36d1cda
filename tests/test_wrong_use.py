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


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--arch", "lenett"], "--arch lenett"),
        (["--dataset", "nmist"], "--dataset nmist"),
        (["--subsample-classes", 11], "--subsample-classes 11"),
        (["--subsample-classes", -1], "--subsample-classes"),
        (["--class-sample-seed", -1], "--class-sample-seed"),
        (["--class-sample-seed", 2**32], "--class-sample-seed"),
        (["--noise", 1.1], "--noise 1.1"),
        (["--noise", -0.5], "--noise -0.5"),
        (["--noise", "nan"], "--noise"),
        (["--noise", "some"], "--noise"),
        (["--noise", 0.2, "--noise-seed", -1], "--noise-seed"),
        (["--noise", 0.2, "--subsample-classes", 1], "--noise 0.2"),
        (["--upscale", "--upscale-padding"], "--upscale"),
        (["--pretrained"], "--pretrained"),
        (["--arch", "vgg19_orig", "--pretrained"], "--pretrained"),
        (["--split", 1], "--split 1"),
        (["--split", -0.1], "--split"),
        (["--split", "inf"], "--split"),
        (["--split", 0.0001], "--split 0.0001"),
        (["--stratified"], "--stratified"),
        (["--split", 0.1, "--shuffle", "--split-seed", 1.5], "--split-seed"),
        (["--evaluate", "--evaluate-train"], "--evaluate"),
        (["--evaluate", "--eval-regularization-loss"], "--evaluate"),
        (["--workers", -1], "--workers"),
        (["-j", "many"], "-j"),
        (["--epochs", -1], "--epochs"),
        (["--epochs", 1.5], "--epochs"),
        (["--start-epoch", -1], "--start-epoch"),
        (["--start-epoch", 21], "--start-epoch 21"),
        (["--batch-size", 0], "--batch-size"),
        (["--optimizer", "adamw"], "--optimizer"),
        (["--lr", 0], "--lr"),
        (["--lr", "nan"], "--lr"),
        (["--lr", -0.1], "--lr"),
        (["--lr", 1e39], "--lr"),
        (["--weight-decay", 1e39], "--weight-decay"),
        (["--batch-size", 10**40], "--batch-size"),
        (["--noise", 1e-300], "--noise"),
        (["--models-path", ""], "--models-path"),
        (["--lr-step", 3], "--lr-step"),
        (["--lr-step", 0, "--lr-decay", 0.1], "--lr-step"),
        (["--lr-decay", 0.1], "--lr-decay"),
        (["--weight-decay", -1], "--weight-decay"),
        (["--momentum", -1], "--momentum"),
        (["--momentum", "inf"], "--momentum"),
        (["--seed", -1], "--seed"),
        (["--seed", "one"], "--seed"),
        (["--snapshot-every", -1], "--snapshot-every"),
        (["--snapshot-all-until", -1], "--snapshot-all-until"),
        (["--log", "a/b"], "--log"),
        (["--log", ""], "--log"),
        (["--resume-from", "nowhere.tar"], "nowhere.tar"),
        (["--resume-from", "."], "."),
        (["--learning-rate", 1], "--learning-rate"),
        (["--epoch", 1], "--epoch"),  # options are not abbreviated
        (["--arch", "vgg11"], "--upscale"),  # 28x28 pixels vanish in it
        (["--arch", "alexnet"], "--upscale"),
        (["--dataset", "mnist", "--data-path", "nowhere"], "--data-path nowhere"),
        (["--dataset", "imagenet", "--data-path", "nowhere"], "--data-path"),
        (["--arch", "mlp_bn", "--batch-size", 3999], "--batch-size 3999"),  # a last batch of one image
        (["--arch", "mlp_bn", "--batch-size", 1], "--batch-size 1"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_wrong_option_is_named(options, named, capsys, monkeypatch):
    # A download that is refused at once, as on a machine without a network.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    if "mnist" in options:
        assert run(*LENET, *options) == 2
        output = capsys.readouterr()
        assert named in output.err
        assert len(output.err.splitlines()) == 1
        assert files_below(Path()) == set()
    else:
        assert named in refused(capsys, *LENET, *options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there_is_no_reason_to_use_the_cpu(capsys):
    assert "--cuda" in refused(capsys, *LENET, "--cuda")


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


@pytest.mark.parametrize(
    ("option", "also"),
    [
        ("--class-sample-seed 1", ""),
        ("--noise-seed 1", ""),
        ("--split-seed 1", "--shuffle"),
        ("--split-seed 1", "--split 0.1"),
        ("--momentum 0.5", "--optimizer adam"),
        ("--workers 2", ""),
        ("--override", ""),
    ],
)
def test_option_without_effect_is_warned_about(option, also, capsys):
    assert run(*LENET, "--epochs", 0, *option.split(), *also.split()) == 0
    assert f"warning: {option.split()[0]} has no effect" in capsys.readouterr().err


# Snapshots that do not fit


def test_snapshot_of_another_architecture_is_refused_with_the_layers_that_differ(capsys):
    line = refused(capsys, "--arch", "resnet18", *LENET[2:], "--resume-from", REFERENCE / "lenet_2.tar")
    assert "lenet_2.tar" in line
    assert "resnet18" in line
    assert "conv1.weight is missing" in line


def test_snapshot_of_another_number_of_classes_is_refused(capsys):
    line = refused(capsys, *LENET, "--subsample-classes", 3, "--resume-from", REFERENCE / "lenet_2.tar")
    assert "classifier.6.weight is 10x84, not 3x84" in line


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--arch", "mlp"], "--arch"),
        (["--subsample-classes", 3], "--subsample-classes"),
        (["--class-sample-seed", 2], "--class-sample-seed"),
        (["--noise", 0.3], "--noise"),
        (["--noise-seed", 2], "--noise-seed"),
        (["--split", 0.2], "--split"),
        (["--split-seed", 2], "--split-seed"),
        (["--seed", 2], "--seed"),
        (["--optimizer", "adam"], "--optimizer"),
        (["--batch-size", 64], "--batch-size"),
        (["--upscale"], "--upscale"),
        (["--start-epoch", 5], "--start-epoch"),
    ],
    ids=str,
)
def test_resuming_as_another_run_names_both_values(options, named, capsys):
    configuration = ("--subsample-classes", 2, "--class-sample-seed", 1, "--noise", 0.2, "--noise-seed", 1)
    configuration += ("--split", 0.1, "--split-seed", 1, "--shuffle", "--seed", 1)
    assert run(*LENET, *configuration, "--epochs", 1, "--models-path", "models") == 0
    snapshot = "models/fashion_mnist_mini_2/noise_20/lenet/1/lenet_0.tar"
    capsys.readouterr()
    line = refused(capsys, *LENET, *configuration, "--epochs", 2, "--resume-from", snapshot, *options)
    assert f"{named} {options[1] if len(options) > 1 else True}: {snapshot}" in line


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


@pytest.mark.parametrize("damage", ["missing", "empty", "one is missing", "another shape"])
def test_optimizer_state_that_cannot_be_continued_is_refused(damage, capsys):
    snapshot = torch.load(REFERENCE / "lenet_2.tar", weights_only=True)
    state = snapshot["optimizer_state_dict"]["state"]
    if damage == "missing":
        del snapshot["optimizer_state_dict"]
    elif damage == "empty":
        state.clear()
    elif damage == "one is missing":
        del state[3]
    else:
        state[3]["momentum_buffer"] = torch.zeros(3)
    torch.save(snapshot, "snapshot.tar")
    assert "snapshot.tar holds no state" in refused(capsys, *LENET, "--resume-from", "snapshot.tar", "--epochs", 9)


def test_pipe_is_not_waited_for(capsys):
    os.mkfifo("pipe.tar")
    assert "pipe.tar is not a file" in refused(capsys, *LENET, "--resume-from", "pipe.tar")


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


@pytest.mark.parametrize("option", ["--models-path", "--tb-logdir"])
def test_output_folder_that_is_a_file_is_named(option, capsys):
    Path("taken").write_text("")
    assert option in refused(capsys, *LENET, "--epochs", 0, option, "taken")


def test_weights_of_elsewhere_do_not_overwrite_the_run_they_came_from(capsys):
    options = (*LENET, "--subsample-classes", 2, "--seed", 1, "--epochs", 2, "--snapshot-every", 1)
    assert run(*options) == 0
    capsys.readouterr()
    folder = Path("models/fashion_mnist_mini_2/lenet/1")
    line = refused(capsys, *options, "--resume-from", folder / "lenet_2.pt")
    assert "lenet_0.tar is of another run (started from None, not weights" in line
    assert "lenet_1.tar is of another run" in refused(capsys, *options, "--start-epoch", 1)
    # In a folder of its own it may be trained on, stopped and continued.
    elsewhere = (*options, "--models-path", "elsewhere")
    assert run(*elsewhere, "--resume-from", folder / "lenet_2.pt") == 0
    state = "elsewhere/fashion_mnist_mini_2/lenet/1/lenet_1.tar"
    assert run(*elsewhere, "--epochs", 3, "--resume-from", state) == 0
    assert "epoch 2 (3/3)" in capsys.readouterr().out


def test_evaluating_the_latest_snapshot_needs_one(capsys):
    assert "--resume-from latest" in refused(capsys, *LENET, "--evaluate", "--resume-from", "latest")


def test_start_epoch_beyond_the_last_is_refused_with_bare_weights_too(capsys):
    options = ("--resume-from", REFERENCE / "lenet_init_0.pt", "--start-epoch", 25)
    assert "--start-epoch 25" in refused(capsys, *LENET, *options)


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
