"""train.py run as a user runs it, on the dataset that is here."""

import contextlib
import io
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from programs import (
    REFERENCE,
    ROOT,
    command,
    files_below,
    refused,
    run_main,
    same,
    shell,
    snapshots_below,
    table,
    weights,
    write_datasets,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data
from torch import nn

import compute_projections
import data
import models
import train
from core.errors import RunError
from data.registry import ImageError
from utils import snapshots
from utils.process import logging
from utils.training import optimizers, recording

LENET = ("--arch", "lenet", "--dataset", "fashion_mnist_mini")
#: Two classes, so that an epoch takes a fraction of a second.
QUICK = (*LENET, "--subsample-classes", 2, "--lr", 0.02, "--seed", 1)
FINAL = ("loss_test", "top1_test", "top5_test")  #: columns of metrics.csv, on the test set
QUICK_FOLDER = Path("models/fashion_mnist_mini_2/lenet/1")


def run(*options) -> int:
    return train.main([str(option) for option in options])


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def hyperparameters(folder) -> dict:
    """Return what TensorBoard's HPARAMS tab shows of a run."""
    events = EventAccumulator(str(folder)).Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    return parse_session_start_info_plugin_data(content).hparams


# What a run leaves behind


def test_run_leaves_the_snapshots_asked_for(capsys):
    assert run(*QUICK, "--epochs", 6, "--snapshot-every", 3, "--snapshot-all-until", 2) == 0
    # Every epoch before epoch 2, then after every third epoch; the last one is after the sixth.
    assert snapshots_below(QUICK_FOLDER) == {
        "lenet_init_0.pt",
        *(f"lenet_{epoch}.tar" for epoch in (0, 1, 2, 5)),
        "lenet_6.pt",
    }
    assert same(weights(QUICK_FOLDER / "lenet_5.tar"), weights(QUICK_FOLDER / "lenet_6.pt"))
    output = capsys.readouterr().out
    for epoch in range(6):
        line = re.search(rf"^epoch {epoch} .*loss [\d.]+, accuracy [\d.]+ %.* s, [\d,]+ images/s$", output, re.M)
        assert line, output
    assert "there is no validation split: the test set is used to watch training" in output
    # Every epoch has a row; accuracy on the test set has been measured where a snapshot was due.
    rows = table(QUICK_FOLDER / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert [bool(row["top1_test"]) for row in rows] == [True, True, True, False, False, True]
    announced = re.search(
        r"disk space: 4 training states of ([\d.]+)MB, with the final weights ([\d.]+)MB", output
    )
    sizes = {path: (QUICK_FOLDER / path).stat().st_size / 1e6 for path in snapshots_below(QUICK_FOLDER)}
    assert float(announced[1]) == pytest.approx(sizes["lenet_5.tar"], rel=0.03)
    assert float(announced[2]) == pytest.approx(sum(sizes.values()) - sizes["lenet_init_0.pt"], rel=0.03)
    (log,) = Path("log/fashion_mnist_mini_2/lenet/1").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-\d{6}_train\.log", log.name)
    logged = log.read_text().splitlines()
    assert [re.sub(r"^\S+ \S+ INFO ", "", line) for line in logged] == output.splitlines()


def test_by_default_only_the_last_epoch_is_snapshotted():
    assert run(*QUICK, "--epochs", 2) == 0
    assert snapshots_below(QUICK_FOLDER) == {"lenet_init_0.pt", "lenet_1.tar", "lenet_2.pt"}


def test_training_state_has_the_legacy_keys_and_more():
    assert run(*QUICK, "--epochs", 1, "--lr-step", 1, "--lr-decay", 0.5) == 0
    ours = torch.load(QUICK_FOLDER / "lenet_0.tar", weights_only=True)
    legacy = torch.load(REFERENCE / "lenet_2.tar", weights_only=True)
    assert set(legacy) < set(ours)
    assert ours["epoch"] == 0
    assert 0 < ours["top1_acc"] <= 100 == ours["top5_acc"]
    # The authors' program continues it: the same optimizer, a schedule that is stepped once an epoch.
    net = models.build("lenet", 2, 1)
    net.load_state_dict(ours["model_state_dict"])
    optimizer = torch.optim.SGD(net.parameters(), lr=1, momentum=0.1)
    optimizer.load_state_dict(ours["optimizer_state_dict"])
    assert optimizer.param_groups[0]["fused"] is None  # which not every version of PyTorch has on every device
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 7)
    schedule.load_state_dict(ours["scheduler_state_dict"])
    assert optimizer.param_groups[0]["lr"] == 0.02 * 0.5
    assert (schedule.step_size, schedule.gamma, schedule.last_epoch) == (1, 0.5, 1)
    assert ours["format"] == snapshots.FORMAT
    assert ours["class_names"] == ["T-shirt/top", "Trouser"]
    assert ours["config"]["seed"] == 1
    assert ours["config"]["num_classes"] == 2


def test_zero_epochs_write_the_initialization_of_the_reference():
    # MNIST's images are not here, but its network is: one channel, ten classes.
    assert run(*LENET, "--seed", 1, "--epochs", 0) == 0
    assert snapshots_below(Path("models")) == {"fashion_mnist_mini/lenet/1/lenet_init_0.pt"}
    ours = weights("models/fashion_mnist_mini/lenet/1/lenet_init_0.pt")
    assert same(ours, weights(REFERENCE / "lenet_init_0.pt"))


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        (["--noise", 0.29, "--noise-seed", 1, "--seed", 3], "fashion_mnist_mini/noise_29/lenet/3"),
        (["--noise", 0.005, "--noise-seed", 1], "fashion_mnist_mini/noise_0.5/lenet"),
        (["--noise", -1, "--noise-seed", 1, "--subsample-classes", 3], "fashion_mnist_mini_3/pixel_shuffle/lenet"),
        (["--noise", 1, "--noise-seed", 1], "fashion_mnist_mini/noise_100/lenet"),
    ],
)
def test_folders_tell_dataset_classes_noise_architecture_and_seed(options, folder):
    assert run(*LENET, "--epochs", 0, *options) == 0
    assert snapshots_below(Path("models")) == {f"{folder}/lenet_init_0.pt"}
    assert len(list(Path("log", folder).iterdir())) == 1


@pytest.mark.parametrize(("split", "watched"), [((), "test"), (("--split", 0.1), "validation")])
def test_tensorboard_and_table_have_curves_configuration_and_hyperparameters(split, watched):
    training = ("--epochs", 2, "--snapshot-every", 1, "--train-acc", "--lr-step", 1, "--lr-decay", 0.1)
    assert run(*QUICK, *training, *split) == 0
    folder = "tensorboard/fashion_mnist_mini_2/lenet/1"
    curves = scalars(folder)
    on_watched = {f"{name}/{watched}" for name in ("loss", "top1", "top5")}
    for tag in {"loss/train", "top1/train", "lr", *on_watched}:
        assert [step for step, _ in curves[tag]] == [1, 2], tag
    assert {tag for tag in curves if tag.endswith(("/test", "/validation"))} == on_watched
    assert [value for _, value in curves["lr"]] == pytest.approx([0.02, 0.002])
    recorded = torch.load(QUICK_FOLDER / "lenet_1.tar", weights_only=True)
    assert curves[f"top1/{watched}"][-1][1] == pytest.approx(recorded["top1_acc"])
    # Accuracy and bias of the network come first. No curve has a single point.
    assert sorted(curves)[:3] == ["accuracy/top1", "bias/mass", "bias/mean"]
    assert curves["accuracy/top1"] == curves[f"top1/{watched}"]
    assert [tag for tag, points in curves.items() if len(points) == 1] == []
    events = EventAccumulator(folder).Reload()
    assert "configuration/text_summary" in events.Tags()["tensors"]
    metrics = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    for tag in ("accuracy/top1", "bias/mass"):
        assert tag.encode() in metrics
        assert tag in curves
    # The table has the same numbers, after as many epochs as TensorBoard's steps.
    names = {
        **{"loss_train_running": "loss/train", "top1_train_running": "top1/train_running", "lr": "lr"},
        **{"loss_train": "loss/train_evaluated", "top1_train": "top1/train"},
        **{"mass": "bias/mass", "mean": "bias/mean"},
        **{f"{name}_{watched}": f"{name}/{watched}" for name in ("loss", "top1", "top5")},
    }
    rows = table(QUICK_FOLDER / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert {name for row in rows for name, cell in row.items() if cell} == {"epoch", "seconds", *names, *FINAL}
    documented = (ROOT / "docs/files.md").read_text()
    assert [column for column in rows[0] if f"`{column}`" not in documented] == []
    for name, tag in names.items():
        points = [(int(row["epoch"]), pytest.approx(float(row[name]), rel=1e-6)) for row in rows if row[name]]
        assert [point for point in curves[tag] if point[0] > 0] == points, name
    assert all(0 < float(row["seconds"]) < 60 for row in rows)
    # The HPARAMS tab has the final values of the test set; a longer run replaces them.
    assert hyperparameters(folder)["weight_decay"].number_value == pytest.approx(1e-4)
    for more in ((), ("--epochs", 3, "--resume-from", "latest")):
        assert not more or run(*QUICK, *training, *split, *more) == 0
        last, shown = table(QUICK_FOLDER / "metrics.csv")[-1], hyperparameters(folder)
        assert [shown[name].number_value for name in FINAL] == pytest.approx([float(last[name]) for name in FINAL])


def test_tensorboard_shows_the_bias_emerge():
    assert run(*QUICK, "--epochs", 2, "--snapshot-every", 1) == 0
    folder = "tensorboard/fashion_mnist_mini_2/lenet/1"
    events = EventAccumulator(folder, size_guidance={"histograms": 0}).Reload()
    paths = [QUICK_FOLDER / name for name in ("lenet_init_0.pt", "lenet_0.tar", "lenet_1.tar")]
    for layer in ("features.0", "features.12"):
        cosines = []
        for path in paths:
            filters = weights(path)[f"{layer}.weight"].flatten(1).double()
            cosines.append(filters.sum(1) / filters.norm(dim=1) / filters.shape[1] ** 0.5)
        mass = [(event.step, event.value) for event in events.Scalars(f"mass/{layer}")]
        assert mass == [(step, pytest.approx((c <= 0).double().mean().item())) for step, c in enumerate(cosines)]
        mean = [(event.step, event.value) for event in events.Scalars(f"mean/{layer}")]
        assert mean == [(step, pytest.approx(c.mean().item())) for step, c in enumerate(cosines)]
        histograms = events.Histograms(f"projections/{layer}")
        assert [event.histogram_value.num for event in histograms] == [len(c) for c in cosines]
        assert histograms[-1].histogram_value.max == pytest.approx(cosines[-1].max().item())


# The science: what a step computes


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_epoch_equals_plain_pytorch_loop(kind):
    """One epoch in file order against a loop written down here, with the optimizer that is not fused."""
    images, labels = _fashion_images("train")
    options = ("--optimizer", kind, "--lr", 0.01 if kind == "sgd" else 0.001, "--weight-decay", 0.01)
    assert run(*LENET, "--seed", 1, "--epochs", 1, "--batch-size", 500, *options) == 0
    net = models.build("lenet", 10, 1)
    net.load_state_dict(weights(REFERENCE / "lenet_init_0.pt"))
    net.train()
    if kind == "sgd":
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
    else:
        optimizer = torch.optim.Adam(net.parameters(), lr=0.001, weight_decay=0.01)
    normalized = ((images.float() / 255) - 0.2860) / 0.3530
    from core.seeds import derive

    torch.manual_seed(derive(1, "dropout", 0))
    for start in range(0, 4000, 500):
        loss = nn.functional.cross_entropy(net(normalized[start : start + 500]), labels[start : start + 500])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ours = weights("models/fashion_mnist_mini/lenet/1/lenet_1.pt")
    initial = weights(REFERENCE / "lenet_init_0.pt")
    for name, expected in net.state_dict().items():
        # Convolutions round differently in another memory layout; the steps taken are larger by far. Adam scales
        # steps by the size of gradients: those that are mostly rounding come out in full size.
        rounding = {"sgd": 0.01, "adam": 0.03}[kind]
        assert (ours[name] - expected).norm() < rounding * (expected - initial[name]).norm(), name


def _fashion_images(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    import gzip

    import numpy as np

    import data

    folder = Path(data.__file__).parent / "fashion_mnist_mini"
    images = np.frombuffer(gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8)
    labels = np.frombuffer(gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())[8:], np.uint8)
    return torch.tensor(images.reshape(-1, 1, 28, 28)), torch.tensor(labels).long()


def test_adam_applies_weight_decay():
    assert run(*QUICK, "--epochs", 1, "--optimizer", "adam", "--lr", 0.001, "--weight-decay", 0) == 0
    without = weights(QUICK_FOLDER / "lenet_1.pt")
    options = ("--optimizer", "adam", "--lr", 0.001, "--weight-decay", 0.5)
    assert run(*QUICK, "--epochs", 1, *options, "--models-path", "decayed") == 0
    with_decay = weights("decayed/fashion_mnist_mini_2/lenet/1/lenet_1.pt")
    group = torch.load("decayed/fashion_mnist_mini_2/lenet/1/lenet_0.tar", weights_only=True)
    assert group["optimizer_state_dict"]["param_groups"][0]["weight_decay"] == 0.5
    for name, weight in with_decay.items():
        assert name.endswith("bias") or weight.norm() < without[name].norm(), name


def test_same_command_gives_same_weights_and_another_seed_others():
    options = ("--epochs", 1, "--shuffle", "--augmentation")
    assert run(*QUICK, *options, "--models-path", "first") == 0
    assert run(*QUICK, *options, "--models-path", "second", "--batch-size", 128) == 0
    assert run(*QUICK[:-1], 2, *options, "--models-path", "first") == 0
    folder = "fashion_mnist_mini_2/lenet"
    assert same(weights(f"first/{folder}/1/lenet_1.pt"), weights(f"second/{folder}/1/lenet_1.pt"))
    assert not same(weights(f"first/{folder}/1/lenet_1.pt"), weights(f"first/{folder}/2/lenet_1.pt"))


def test_evaluation_equals_counting_by_hand(capsys):
    snapshot = REFERENCE / "lenet_2.tar"
    assert run(*LENET, "--resume-from", snapshot, "--evaluate") == 0
    told = capsys.readouterr().out
    images, labels = _fashion_images("t10k")
    net = models.build("lenet", 10, 1).eval()
    net.load_state_dict(weights(snapshot))
    with torch.no_grad():
        logits = net(((images.float() / 255) - 0.2860) / 0.3530)
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)  # how many classes are likelier than the true one
    top1, top5 = ((ranks < k).double().mean().item() * 100 for k in (1, 5))
    loss = nn.functional.cross_entropy(logits, labels).item()
    assert f"test set: loss {loss:.4f}, top-1 {top1:.2f} %, top-5 {top5:.2f} %" in told


def test_evaluation_of_the_training_set_takes_it_as_it_was_trained_on(capsys):
    """With every label corrupted, a network that knows the true classes is always wrong."""
    assert run(*QUICK, "--epochs", 3) == 0
    capsys.readouterr()
    clean = ("--resume-from", QUICK_FOLDER / "lenet_3.pt", "--evaluate-train")
    assert run(*QUICK, *clean) == 0
    right = float(re.search(r"training set: .*top-1 ([\d.]+) %", capsys.readouterr().out)[1])
    assert run(*QUICK, *clean, "--noise", 1, "--noise-seed", 1) == 0
    wrong = float(re.search(r"training set: .*top-1 ([\d.]+) %", capsys.readouterr().out)[1])
    assert right > 80
    assert right + wrong == pytest.approx(100, abs=0.02)


def test_regularization_loss_is_weight_decay_times_norms_of_weights(capsys):
    snapshot = REFERENCE / "lenet_init_0.pt"
    options = ("--resume-from", snapshot, "--weight-decay", 0.01, "--eval-regularization-loss")
    assert run(*LENET, *options) == 0
    norms = [w.double().square().sum().sqrt().item() for name, w in weights(snapshot).items() if "weight" in name]
    told = float(re.search(r"regularization loss: (\S+)", capsys.readouterr().out)[1])
    assert told == pytest.approx(0.01 * sum(norms), rel=1e-6)
    # Of a training state, its own weight decay or the one that is given.
    trained = REFERENCE / "lenet_2.tar"
    norms = [w.double().square().sum().sqrt().item() for name, w in weights(trained).items() if "weight" in name]
    for option, weight_decay in (((), 1e-4), (("--weight-decay", 0.3), 0.3)):
        assert run(*LENET, "--resume-from", trained, "--eval-regularization-loss", *option) == 0
        told = float(re.search(r"regularization loss: (\S+)", capsys.readouterr().out)[1])
        assert told == pytest.approx(weight_decay * sum(norms), rel=1e-6)


def test_options_of_training_alone_have_no_bearing_on_an_evaluation(capsys):
    split = ("--split", 0.2, "--shuffle", "--split-seed", 1)
    assert run(*QUICK, "--epochs", 1, *split) == 0
    test_set = re.findall(r"^test set: .*$", capsys.readouterr().out, re.M)
    for name in ("lenet_0.tar", "lenet_1.pt"):
        of_training = ("--batch-size", 50, "--optimizer", "adam", "--augmentation")
        assert run(*LENET, "--resume-from", QUICK_FOLDER / name, "--evaluate", *of_training) == 0
        output = capsys.readouterr()
        assert re.findall(r"^test set: .*$", output.out, re.M) == test_set
        assert "batch_size 50," in output.out
        warned = re.findall(r"^warning: (\S+) has no effect", output.err, re.M)
        assert sorted(warned) == ["--augmentation", "--optimizer"]
        # Another split would have training images among those for validation.
        other_split = (*LENET, "--resume-from", QUICK_FOLDER / name, "--evaluate", "--split-seed", 3)
        assert "--split-seed 3" in refused(train, capsys, *other_split)


def test_evaluating_weights_that_say_nothing_of_their_images_is_warned_about(capsys):
    assert run(*LENET, "--resume-from", REFERENCE / "lenet_init_0.pt", "--evaluate") == 0
    assert "lenet_init_0.pt says nothing of its run" in capsys.readouterr().err
    assert run(*LENET, "--resume-from", REFERENCE / "lenet_init_0.pt", "--eval-regularization-loss") == 0
    assert "prepared" not in capsys.readouterr().err


def test_curves_that_tensorboard_no_longer_shows_are_warned_about(capsys):
    assert run(*QUICK, "--epochs", 1, "--models-path", "first") == 0
    time.sleep(1)  # TensorBoard reads the files of a folder in the order of the second that is in their names
    assert "warning" not in capsys.readouterr().err
    assert run(*QUICK, "--epochs", 1, "--lr", 0.01, "--models-path", "second", "--tb-logdir", "elsewhere") == 0
    assert "warning" not in capsys.readouterr().err
    assert run(*QUICK, "--epochs", 1, "--lr", 0.01, "--models-path", "second") == 0
    assert "tensorboard/fashion_mnist_mini_2/lenet/1: TensorBoard no longer shows" in (capsys.readouterr().err)
    assert [value for _, value in scalars("tensorboard/fashion_mnist_mini_2/lenet/1")["lr"]] == [
        pytest.approx(0.01)
    ]


@pytest.mark.long
def test_run_that_is_finished_ends_well_where_nobody_listens():
    options = (*QUICK, "--epochs", 1, "--resume-from", "latest")
    assert run(*options) == 0
    reader, writer = os.pipe()
    os.close(reader)
    for arguments in (options, ()):
        process = subprocess.run(
            command("train.py", *arguments), stdout=writer, stderr=subprocess.PIPE, timeout=120
        )
        assert (process.returncode, process.stderr) == (0, b"")
    os.close(writer)


def test_optimizer_state_takes_the_layout_of_the_network(tmp_path):
    """Fused steps on a GPU ask for it, and a network has another layout there than on the CPU."""
    assert run(*QUICK, "--epochs", 1) == 0
    path = QUICK_FOLDER / "lenet_0.tar"
    snapshot = snapshots.load(path)
    net = models.build("lenet", 2, 1)  # contiguous, as on a GPU
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    optimizers.restore(optimizer, path, snapshot, override=False)
    expected = snapshot["optimizer_state_dict"]["state"]
    strides_changed = 0
    for number, parameter in enumerate(net.parameters()):
        buffer, saved = optimizer.state[parameter]["momentum_buffer"], expected[number]["momentum_buffer"]
        assert torch.equal(buffer, saved)
        assert buffer.stride() == parameter.stride()
        strides_changed += buffer.stride() != saved.stride()
    assert strides_changed


def test_override_gives_momentum_to_a_run_that_had_none():
    assert run(*QUICK, "--epochs", 1, "--momentum", 0) == 0
    options = ("--epochs", 2, "--resume-from", QUICK_FOLDER / "lenet_0.tar", "--override", "--momentum", 0.9)
    assert run(*QUICK, *options) == 0
    state = torch.load(QUICK_FOLDER / "lenet_1.tar", weights_only=True)["optimizer_state_dict"]["state"]
    assert all(parameter["momentum_buffer"].any() for parameter in state.values())


def test_evaluation_reports_the_validation_split_too(capsys):
    assert run(*QUICK, "--split", 0.2, "--split-seed", 1, "--shuffle", "--evaluate") == 0
    output = capsys.readouterr()
    assert "validation split: loss" in output.out
    assert "test set: loss" in output.out
    assert "random initial weights" in output.err
    assert snapshots_below(Path("models")) == set()


def test_with_a_validation_split_it_watches_training_and_the_test_set_comes_last(capsys):
    assert run(*QUICK, "--split", 0.25, "--epochs", 1) == 0
    output = capsys.readouterr().out
    assert "validation split: loss" in output
    assert "the test set is used to watch training" not in output
    assert output.count("test set: loss") == 1


@pytest.mark.long
def test_every_kind_of_network_trains_on_images_that_are_large_enough():
    write_datasets(Path("images"), 40)
    options = ("--dataset", "mnist", "--data-path", "images", "--upscale-padding", "--batch-size", 32)
    assert run("--arch", "alexnet", *options, "--epochs", 1, "--seed", 1) == 0
    common = ("--dataset", "fashion_mnist_mini", "--subsample-classes", 2, "--split", 0.75, "--epochs", 1)
    assert run("--arch", "resnet18", *common, "--seed", 1) == 0
    assert run("--arch", "mlp_bn", *common, "--seed", 1) == 0


# Resuming


RESUMABLE = (
    *(*LENET, "--subsample-classes", 3, "--class-sample-seed", 5, "--seed", 1, "--noise", 0.2, "--noise-seed", 3),
    *("--split", 0.1, "--split-seed", 4, "--shuffle", "--augmentation", "--lr-step", 2, "--lr-decay", 0.3),
    *("--snapshot-every", 1),
)
RESUMABLE_FOLDER = "fashion_mnist_mini_3/noise_20/lenet/1"


@pytest.mark.parametrize(
    ("optimizer", "stopped_after"),
    [
        ("sgd", 1),
        ("adam", 3),
        *(pytest.param(*other, marks=pytest.mark.long) for other in (("sgd", 3), ("adam", 1))),
    ],
)
def test_resumed_run_equals_uninterrupted_run(optimizer, stopped_after):
    options = (*RESUMABLE, "--optimizer", optimizer, "--lr", 0.02 if optimizer == "sgd" else 0.001)
    assert run(*options, "--epochs", 4, "--models-path", "whole") == 0
    assert run(*options, "--epochs", stopped_after, "--models-path", "parts") == 0
    snapshot = f"parts/{RESUMABLE_FOLDER}/lenet_{stopped_after - 1}.tar"
    assert run(*options, "--epochs", 4, "--models-path", "parts", "--resume-from", snapshot) == 0
    whole = torch.load(f"whole/{RESUMABLE_FOLDER}/lenet_3.tar", weights_only=True)
    parts = torch.load(f"parts/{RESUMABLE_FOLDER}/lenet_3.tar", weights_only=True)
    assert same(whole["model_state_dict"], parts["model_state_dict"])
    assert whole["optimizer_state_dict"]["param_groups"] == parts["optimizer_state_dict"]["param_groups"]
    assert (whole["top1_acc"], whole["top5_acc"]) == (parts["top1_acc"], parts["top5_acc"])
    # It is not the same by standing still.
    assert not same(whole["model_state_dict"], weights(snapshot))


def test_what_is_not_said_when_resuming_is_taken_from_the_snapshot():
    assert run(*RESUMABLE, "--epochs", 2, "--lr", 0.02, "--batch-size", 64) == 0
    folder = Path("models", RESUMABLE_FOLDER)
    assert run(*RESUMABLE, "--epochs", 3, "--lr", 0.02, "--batch-size", 64, "--models-path", "whole") == 0
    options = ("--resume-from", folder / "lenet_1.tar", "--epochs", 3)
    assert run("--arch", "lenet", "--dataset", "fashion_mnist_mini", *options) == 0
    assert same(weights(folder / "lenet_3.pt"), weights(f"whole/{RESUMABLE_FOLDER}/lenet_3.pt"))


def test_one_command_again_and_again_goes_on_where_it_was(capsys):
    options = (*QUICK, "--snapshot-every", 1, "--resume-from", "latest")
    assert run(*options, "--epochs", 2) == 0  # from scratch: there is no snapshot yet
    initialization = (QUICK_FOLDER / "lenet_init_0.pt").stat().st_mtime_ns
    assert run(*options, "--epochs", 4) == 0
    assert (QUICK_FOLDER / "lenet_init_0.pt").stat().st_mtime_ns == initialization
    output = capsys.readouterr().out
    assert [int(epoch) for epoch in re.findall(r"^epoch (\d+)", output, re.M)] == [0, 1, 2, 3]
    assert run(*options, "--epochs", 4) == 0
    assert "training is finished" in capsys.readouterr().out
    curves = scalars("tensorboard/fashion_mnist_mini_2/lenet/1")
    assert [step for step, _ in curves["loss/train"]] == [1, 2, 3, 4]
    assert [row["epoch"] for row in table(QUICK_FOLDER / "metrics.csv")] == ["1", "2", "3", "4"]


@pytest.mark.long
def test_resumed_run_with_batch_norm_on_a_folder_of_images_equals_the_uninterrupted_one():
    """A residual network, augmented images decoded by two, no and one worker."""
    from PIL import Image

    random = torch.Generator().manual_seed(0)
    for part, count in (("train", 5), ("val", 1)):
        for name in ("apple", "pear"):
            Path(part, name).mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(256, (60, 70, 3), generator=random, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(f"{part}/{name}/{index}.png")
    options = ("--arch", "resnet18", "--dataset", "imagenet", "--data-path", ".", "--shuffle", "--augmentation")
    options += ("--seed", 1, "--batch-size", 4, "--snapshot-every", 1, "--lr", 0.01)
    assert run(*options, "--epochs", 2, "-j", 2, "--models-path", "whole") == 0
    assert run(*options, "--epochs", 1, "-j", 0, "--models-path", "parts") == 0
    assert run(*options, "--epochs", 2, "-j", 1, "--models-path", "parts", "--resume-from", "latest") == 0
    name = "imagenet/resnet18/1/resnet18_2.pt"
    assert same(weights(f"whole/{name}"), weights(f"parts/{name}"))


def test_latest_passes_over_a_damaged_snapshot(capsys):
    options = (*QUICK, "--snapshot-every", 1, "--resume-from", "latest", "--epochs", 3)
    assert run(*options) == 0
    expected = weights(QUICK_FOLDER / "lenet_3.pt")
    damaged = bytearray((QUICK_FOLDER / "lenet_2.tar").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (QUICK_FOLDER / "lenet_2.tar").write_bytes(damaged)
    (QUICK_FOLDER / "lenet_3.pt").unlink()
    capsys.readouterr()
    assert run(*options) == 0
    output = capsys.readouterr()
    assert "lenet_2.tar is damaged" in output.err
    assert "weights from models/fashion_mnist_mini_2/lenet/1/lenet_1.tar" in output.out
    assert same(weights(QUICK_FOLDER / "lenet_3.pt"), expected)


def test_snapshot_of_more_epochs_than_asked_for_is_finished_and_leaves_no_file(capsys):
    assert run(*QUICK, "--epochs", 2) == 0
    before = files_below(QUICK_FOLDER)
    assert run(*QUICK, "--epochs", 1, "--resume-from", QUICK_FOLDER / "lenet_1.tar") == 0
    assert "training is finished" in capsys.readouterr().out
    assert files_below(QUICK_FOLDER) == before


def test_override_replaces_hyperparameters_as_if_they_had_held_from_the_start():
    assert run(*QUICK, "--epochs", 2) == 0
    snapshot = QUICK_FOLDER / "lenet_1.tar"
    options = ("--lr", 0.1, "--lr-step", 2, "--lr-decay", 0.5, "--momentum", 0.5, "--weight-decay", 0)
    assert run(*QUICK, *options, "--epochs", 3, "--resume-from", snapshot, "--override") == 0
    group = torch.load(QUICK_FOLDER / "lenet_2.tar", weights_only=True)["optimizer_state_dict"]["param_groups"][0]
    # Epoch 2 is the first one with the learning rate halved; a schedule begun at the snapshot would not have.
    assert group["initial_lr"] == 0.1
    assert group["lr"] == 0.05
    assert (group["momentum"], group["weight_decay"]) == (0.5, 0)


def test_without_override_the_snapshots_hyperparameters_hold_and_the_user_is_told(capsys):
    assert run(*QUICK, "--epochs", 1) == 0
    assert (
        run(*QUICK[:-4], "--lr", 0.5, "--seed", 1, "--epochs", 2, "--resume-from", QUICK_FOLDER / "lenet_0.tar")
        == 0
    )
    assert "--lr 0.5 has no effect" in capsys.readouterr().err
    group = torch.load(QUICK_FOLDER / "lenet_1.tar", weights_only=True)["optimizer_state_dict"]["param_groups"][0]
    assert group["lr"] == 0.02


def test_legacy_training_state_continues_with_its_own_optimizer(capsys):
    snapshot = REFERENCE / "lenet_2.tar"
    assert run(*LENET, "--seed", 1, "--resume-from", snapshot, "--epochs", 4) == 0
    assert "epoch 3 (4/4)" in capsys.readouterr().out
    state = torch.load("models/fashion_mnist_mini/lenet/1/lenet_3.tar", weights_only=True)
    assert state["optimizer_state_dict"]["param_groups"][0]["lr"] == 0.05
    assert not Path("models/fashion_mnist_mini/lenet/1/lenet_init_0.pt").exists()


def test_counting_epochs_from_elsewhere_without_weights_is_warned_about(capsys):
    assert run(*QUICK, "--start-epoch", 1, "--epochs", 2) == 0
    assert "--start-epoch 1: the network is new" in capsys.readouterr().err


def test_bare_weights_start_at_start_epoch_with_a_new_optimizer(capsys):
    snapshot = REFERENCE / "lenet_init_0.pt"
    options = ("--resume-from", snapshot, "--start-epoch", 3, "--epochs", 4, "--lr", 0.01)
    assert run(*LENET, "--seed", 1, *options, "--lr-step", 1, "--lr-decay", 0.1) == 0
    output = capsys.readouterr().out
    assert re.findall(r"^epoch (\d+) .* lr (\S+),", output, re.M) == [("3", "1e-05")]


@contextlib.contextmanager
def failing_evaluation(monkeypatch, epoch: int, what: str | None = None):
    """In the block the evaluation after an epoch fails: on a set of images, or the first one."""
    train_epoch, evaluate, trained = train.train_epoch, recording.evaluate, []

    def count_epoch(step, net, batches, number, *more):
        trained.append(number)
        return train_epoch(step, net, batches, number, *more)

    def fail(net, batches, name):
        if trained[-1] == epoch and what in (None, name):
            raise ImageError("an image cannot be read")
        return evaluate(net, batches, name)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_epoch", count_epoch)
        patch.setattr(recording, "evaluate", fail)
        yield


@pytest.mark.parametrize("every", [pytest.param(0, marks=pytest.mark.long), 1])
@pytest.mark.parametrize(
    "what", ["validation split", pytest.param("training set", marks=pytest.mark.long), "test set"]
)
def test_failing_evaluation_loses_nothing_that_was_trained(what, every, monkeypatch, capsys):
    options = (*RESUMABLE, "--snapshot-every", every, "--train-acc", "--epochs", 3)
    assert run(*options, "--models-path", "whole", "--tb-logdir", "whole") == 0
    with failing_evaluation(monkeypatch, 2, what):
        assert run(*options, "--tb-logdir", "parts") == 1
    assert capsys.readouterr().err == "train.py: failed: an image cannot be read\n"
    folder = Path("models", RESUMABLE_FOLDER)
    assert snapshots.load(folder / "lenet_2.tar")["top1_acc"] is None
    assert run_main(compute_projections, *LENET, "--subsample-classes", 3, "--load-from", folder) == 0

    assert run(*options, "--tb-logdir", "parts", "--resume-from", "latest") == 0
    assert not re.search(r"^epoch \d \(", capsys.readouterr().out, re.M)
    whole = Path("whole", RESUMABLE_FOLDER)
    assert same(weights(folder / "lenet_3.pt"), weights(whole / "lenet_3.pt"))
    ours, theirs = (snapshots.load_record(path / "lenet_2.tar") for path in (folder, whole))
    assert ours.keys() == theirs.keys()
    for key in ("top1_acc", "top5_acc", "top1_acc_train_running", "tensorboard_step"):
        assert ours[key] == theirs[key]
    ours, theirs = (scalars(f"{board}/{RESUMABLE_FOLDER}") for board in ("parts", "whole"))
    del ours["images_per_second"], theirs["images_per_second"]
    assert ours == theirs
    ours, theirs = (table(path / "metrics.csv") for path in (folder, whole))
    assert [{**row, "seconds": ""} for row in ours] == [{**row, "seconds": ""} for row in theirs]


def test_epoch_that_is_measured_later_keeps_the_record_of_its_training(monkeypatch):
    options = (*QUICK, "--snapshot-every", 1)
    with failing_evaluation(monkeypatch, 0):
        assert run(*options, "--epochs", 1) == 1
    before = snapshots.load_record(QUICK_FOLDER / "lenet_0.tar")
    again = ("--resume-from", "latest", "--override", "--lr", 1e-4, "--batch-size", 64)
    assert run(*options, "--epochs", 2, *again) == 0
    after, following = (snapshots.load_record(QUICK_FOLDER / f"lenet_{epoch}.tar") for epoch in (0, 1))
    assert after["top1_acc"] > 0
    assert (after["config"], after["provenance"]) == (before["config"], before["provenance"])
    assert following["config"]["lr"] == 1e-4


def test_table_has_each_epoch_once_whatever_is_trained_or_measured_again(monkeypatch):
    options = (*QUICK, "--epochs", 3, "--snapshot-every", 1, "--resume-from", "latest")
    with_accuracies = recording.with_accuracies

    def fail(state, watched):  # the row of the epoch is written, and its accuracies are not in the snapshot
        if state["epoch"] == 1:
            raise RunError("the disk is gone")
        return with_accuracies(state, watched)

    with monkeypatch.context() as patch:
        patch.setattr(recording, "with_accuracies", fail)
        assert run(*options) == 1
    first = table(QUICK_FOLDER / "metrics.csv")
    assert run(*options) == 0
    second = table(QUICK_FOLDER / "metrics.csv")
    for name in ("lenet_1.tar", "lenet_2.tar", "lenet_3.pt"):
        (QUICK_FOLDER / name).unlink()
    assert run(*options) == 0
    third = table(QUICK_FOLDER / "metrics.csv")
    assert [row["epoch"] for row in third] == ["1", "2", "3"]
    assert first == second[:2]
    assert [{**row, "seconds": ""} for row in second] == [{**row, "seconds": ""} for row in third]


def test_run_is_not_finished_before_its_last_epoch_is_measured(monkeypatch, capsys):
    options = (*QUICK, "--epochs", 2, "--snapshot-every", 1)
    assert run(*options) == 0
    with failing_evaluation(monkeypatch, 1):
        assert run(*options) == 1
    assert run(*options, "--resume-from", "latest") == 0
    assert "epoch 1 was trained, and is measured now" in capsys.readouterr().out
    assert snapshots.load_record(QUICK_FOLDER / "lenet_1.tar")["top1_acc"] > 0


def test_weights_of_a_training_state_bring_nothing_else_of_its_run(monkeypatch, capsys):
    with failing_evaluation(monkeypatch, 1):
        assert run(*QUICK, "--name", "other", "--epochs", 2, "--snapshot-every", 1, "--models-path", "other") == 1
    (state,) = Path("other").rglob("lenet_1.tar")
    assert "unmeasured" in snapshots.load(state)
    assert run(*QUICK, "--epochs", 1, "--resume-from", state, "--weights-key", "model_state_dict") == 0
    assert "is measured now" not in capsys.readouterr().out
    assert [row["epoch"] for row in table(QUICK_FOLDER / "metrics.csv")] == ["1"]


# Stopping


def test_plateau_is_seen_after_an_evaluation_that_failed(monkeypatch, capsys):
    options = (*QUICK, "--lr", 1e-12, "--kill-plateaus", "--snapshot-every", 1, "--epochs", 5)
    with failing_evaluation(monkeypatch, 1):
        assert run(*options) == 1
    assert run(*options, "--resume-from", "latest") == 3
    assert "plateau: top-1" in capsys.readouterr().err
    assert snapshots_below(QUICK_FOLDER) == {"lenet_init_0.pt", "lenet_0.tar"}


def test_plateau_leaves_the_snapshots_that_were_there(capsys):
    options = (*QUICK, "--lr", 1e-12, "--snapshot-every", 1, "--epochs", 3)
    assert run(*options) == 0
    before = snapshots_below(QUICK_FOLDER)
    assert run(*options, "--kill-plateaus") == 3
    assert snapshots_below(QUICK_FOLDER) == before


def test_snapshot_whose_outputs_are_not_finite_goes_when_it_is_measured_at_last(monkeypatch, capsys):
    options = (*QUICK, "--epochs", 2, "--snapshot-every", 1, "--resume-from", "latest")
    with failing_evaluation(monkeypatch, 1):
        assert run(*options) == 1
    state = torch.load(QUICK_FOLDER / "lenet_1.tar", weights_only=True)
    state["model_state_dict"]["classifier.6.bias"][:] = 3e38  # finite, and not their sums
    state["model_state_dict"]["classifier.6.weight"][:] = 3e38
    torch.save(state, QUICK_FOLDER / "lenet_1.tar")
    assert run(*options) == 1
    assert "the last batch of epoch 1 broke the weights" in capsys.readouterr().err
    assert not (QUICK_FOLDER / "lenet_1.tar").exists()


def test_plateau_stops_the_run_with_no_further_snapshot(capsys):
    # A learning rate too small to change a single prediction.
    options = ("--lr", 1e-12, "--kill-plateaus", "--snapshot-every", 1, "--epochs", 5)
    assert run(*QUICK, *options) == 3
    assert snapshots_below(QUICK_FOLDER) == {"lenet_init_0.pt", "lenet_0.tar"}
    assert "plateau" in capsys.readouterr().err


def test_plateau_is_seen_across_an_interruption(capsys):
    options = ("--lr", 1e-12, "--kill-plateaus", "--snapshot-every", 1)
    assert run(*QUICK, *options, "--epochs", 1) == 0
    assert run(*QUICK, *options, "--epochs", 5, "--resume-from", "latest") == 3
    assert "plateau: top-1" in capsys.readouterr().err
    assert not (QUICK_FOLDER / "lenet_1.tar").exists()


def test_loss_that_is_not_finite_stops_the_run_before_a_snapshot(capsys):
    assert run(*QUICK, "--lr", 1e20, "--snapshot-every", 1, "--train-acc") == 1
    assert snapshots_below(QUICK_FOLDER) == {"lenet_init_0.pt"}
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"the loss is (nan|inf) in epoch 0, batch \d+", line)


def test_weights_that_break_in_the_last_step_of_an_epoch_are_named(capsys):
    # One batch is the whole epoch: its loss is finite, the weights after it are not.
    assert run(*QUICK, "--batch-size", 10000, "--lr", 1e30, "--snapshot-every", 1) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "the last batch of epoch 0 broke the weights" in line
    assert snapshots_below(QUICK_FOLDER) == {"lenet_init_0.pt"}


@pytest.mark.long
def test_run_goes_on_when_the_reader_of_its_output_goes_away():
    options = " ".join(command("train.py", *QUICK, "--epochs", 2))
    finished = subprocess.run(f"{options} | head -n 1", shell=True, capture_output=True, text=True, timeout=120)
    assert len(finished.stdout.splitlines()) == 1
    assert finished.stderr == ""
    assert (QUICK_FOLDER / "lenet_2.pt").exists()
    (log,) = Path("log/fashion_mnist_mini_2/lenet/1").iterdir()
    assert "final weights" in log.read_text()


@pytest.mark.long
def test_console_that_has_no_letter_of_a_path_has_every_line_all_the_same():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    finished = shell("train.py", *QUICK, "--epochs", 1, "--models-path", "modèles", env=environment)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1].startswith("final weights: mod\\xe8les/")


def test_batch_of_the_first_broken_loss_is_named(monkeypatch, capsys):
    """Weights that are sound until the fourth batch, which has an infinite image."""
    original = data.load

    def load_with_infinite_image(*args, **kwargs):
        dataset = original(*args, **kwargs)
        finish = dataset.train.finish
        made = []

        def spoil(images):
            made.append(1)
            return finish(images) * (float("inf") if len(made) == 4 else 1)

        dataset.train.finish = spoil
        dataset.train.batches_at_once = 1
        return dataset

    monkeypatch.setattr(data, "load", load_with_infinite_image)
    assert run(*QUICK, "--epochs", 1) == 1
    assert "in epoch 0, batch 3 (both counted from 0)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        pytest.param(signal.SIGTERM, 143, "terminated", marks=pytest.mark.long),
    ],
)
def test_signal_ends_the_run_with_one_line_and_complete_snapshots(number, status, word):
    options = (*QUICK, "--epochs", 100, "--snapshot-every", 1)
    process = subprocess.Popen(
        command("train.py", *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.time() + 60
    while not (QUICK_FOLDER / "lenet_1.tar").exists() and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    again = shlex.join([*command("train.py", *options), "--resume-from", "latest"])
    assert errors == f"train.py: {word}; go on with {again}\n"
    assert files_below(QUICK_FOLDER) - snapshots_below(QUICK_FOLDER) <= {"run.json", ".lock", "metrics.csv"}
    assert len(snapshots_below(QUICK_FOLDER)) >= 3
    for name in snapshots_below(QUICK_FOLDER):
        snapshots.load(QUICK_FOLDER / name)


def test_sigusr1_ends_a_run_after_the_epoch_and_loses_nothing(monkeypatch, capsys):
    options = (*QUICK, "--shuffle", "--augmentation", "--epochs", 3, "--snapshot-every", 2)
    assert run(*options, "--models-path", "whole") == 0
    options = (*options, "--models-path", "parts", "--resume-from", "latest")
    original = train.train_epoch

    def warned_in(epochs):
        def train_epoch(step, net, batches, epoch, *more):
            if epoch in epochs:
                os.kill(os.getpid(), signal.SIGUSR1)
            return original(step, net, batches, epoch, *more)

        monkeypatch.setattr(train, "train_epoch", train_epoch)

    whole, folder = Path("whole", *QUICK_FOLDER.parts[1:]), Path("parts", *QUICK_FOLDER.parts[1:])
    for epoch in (0, 1):  # the second one has a snapshot anyway
        warned_in([epoch])
        assert run(*options) == 143
        said = f"stopped by SIGUSR1 after epoch {epoch}; go on with python train.py "
        assert capsys.readouterr().err.splitlines()[-1].startswith(said)
        assert snapshots.load(folder / f"lenet_{epoch}.tar")["top1_acc"] is not None
    warned_in([2])  # a run that is at its end does not stop
    assert run(*options) == 0
    assert files_below(folder) == files_below(whole) | {"lenet_0.tar"}
    for name in ("lenet_2.tar", "lenet_3.pt"):
        assert same(weights(folder / name), weights(whole / name))


def test_sigusr1_while_an_epoch_is_evaluated_ends_the_run_at_once(monkeypatch):
    original = recording.evaluate

    def evaluate(*arguments):
        os.kill(os.getpid(), signal.SIGUSR1)
        return original(*arguments)

    monkeypatch.setattr(recording, "evaluate", evaluate)
    assert run(*QUICK, "--epochs", 3, "--snapshot-every", 1) == 143
    assert snapshots_below(QUICK_FOLDER) == {"lenet_init_0.pt", "lenet_0.tar"}


@pytest.mark.parametrize("begins", ["latest", "from its own snapshot", "without a snapshot"])
def test_interrupted_run_goes_on_with_the_command_that_it_says(begins, monkeypatch, capsys):
    folder = "two words" / QUICK_FOLDER.relative_to("models")
    every = 0 if begins == "without a snapshot" else 1
    options = (*QUICK, "--epochs", 3, "--models-path", "two words", "--snapshot-every", every)
    if begins == "latest":
        options += ("--resume-from", "latest")
    if begins == "from its own snapshot":  # learning rate and seed, which are not given, are taken from there
        assert run(*options, "--epochs", 1) == 0
        options = (*LENET, *options[len(QUICK) :], "--resume-from", folder / "lenet_0.tar")
    train_epoch = train.train_epoch

    def interrupt(step, net, batches, epoch, *more):
        if epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return train_epoch(step, net, batches, epoch, *more)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_epoch", interrupt)
        assert run(*options) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    if begins == "without a snapshot":
        assert line.endswith("no snapshot has been kept (--snapshot-every): give the same command again")
        return
    said = shlex.split(line.removeprefix("train.py: interrupted; go on with "))
    assert said[:2] == ["python", "train.py"]
    assert said[-1] == ("latest" if begins == "latest" else str(folder / "lenet_1.tar"))
    assert run(*said[2:]) == 0
    assert re.findall(r"^epoch (\d)", capsys.readouterr().out, re.M) == ["2"]
    assert [row["epoch"] for row in table(folder / "metrics.csv")] == ["1", "2", "3"]


def test_too_little_disk_space_is_warned_about_before_training(monkeypatch, capsys):
    usage = shutil.disk_usage(".")._replace(free=2_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    adam = ("--optimizer", "adam", "--lr", 0.001, "--epochs", 1)
    for options, size in ((adam, 1_550_000), (("--momentum", 0, "--epochs", 4, "--snapshot-every", 1), 517_000)):
        assert run(*QUICK, *options, "--models-path", size) == 0
        output = capsys.readouterr()
        said = re.search(r"training states? of ([\d.]+)([kM])B, ", output.out)
        assert float(said[1]) * {"k": 1e3, "M": 1e6}[said[2]] == pytest.approx(size, rel=0.01)
        state = Path(str(size), QUICK_FOLDER.relative_to("models"), "lenet_0.tar")
        assert state.stat().st_size == pytest.approx(size, rel=0.05)
        assert f"warning: --models-path {size}: 2.00MB are free, and snapshots will take 2." in output.err
    assert run(*QUICK, *adam[:-2], "--epochs", 0, "--models-path", "nothing to train") == 0
    assert "disk space" not in capsys.readouterr().out


@pytest.mark.parametrize("becomes", [None, RuntimeError("while a class was made")])
def test_signal_whose_exception_gets_lost_ends_the_run_all_the_same(becomes, monkeypatch, capsys):
    original = optimizers.make_optimizer

    def lose_it(*args):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except BaseException as error:
            if becomes is not None:
                raise becomes from error
        return original(*args)

    monkeypatch.setattr(optimizers, "make_optimizer", lose_it)
    assert run(*QUICK, "--epochs", 100) == 143
    output = capsys.readouterr()
    assert re.fullmatch(r"train\.py: terminated; no snapshot has been kept .*\n", output.err)
    assert "epoch 0" not in output.out


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_bar_has_loss_accuracy_and_the_time_that_the_run_has_left(monkeypatch):
    """Three epochs of four batches, each of a second and a half."""
    clock = itertools.count(0, 1.5)
    monkeypatch.setattr(logging, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert run(*QUICK, "--epochs", 3, "--batch-size", 256) == 0
    bar = r"epoch (\d)[^\r]*, loss (\S+), accuracy (\S+) %, run 0:00:(\d\d) left"
    shown = re.findall(bar, sys.stderr.getvalue())
    assert {epoch for epoch, *_ in shown} == {"0", "1", "2"}
    assert all(0 < float(loss) < 3 and 0 <= float(accuracy) <= 100 for _, loss, accuracy, _ in shown)
    left = [int(seconds) for *_, seconds in shown]
    assert left == sorted(left, reverse=True)
    assert left[0] == 11 * 1.5 // 1
    assert left[-1] == 0


@pytest.mark.long
def test_without_a_terminal_there_is_no_progress_bar():
    finished = shell("train.py", *QUICK, "--epochs", 1)
    assert (finished.returncode, finished.stderr) == (0, "")


@pytest.mark.cuda
def test_on_a_gpu_the_initialization_is_that_of_the_cpu():
    assert run(*QUICK, "--epochs", 1, "--models-path", "cpu") == 0
    assert run(*QUICK, "--epochs", 1, "--models-path", "gpu", "--cuda") == 0
    folder = "fashion_mnist_mini_2/lenet/1"
    assert same(weights(f"cpu/{folder}/lenet_init_0.pt"), weights(f"gpu/{folder}/lenet_init_0.pt"))
    assert weights(f"gpu/{folder}/lenet_0.tar")["features.0.weight"].device.type == "cpu"
