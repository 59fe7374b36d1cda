"""Weights in files of other programs: found, translated to the names of the network, and read exactly."""

import argparse
import collections
import datetime
import json
import pathlib
import re
import struct
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import REFERENCE, refused, results, run_main, same, weights, write_datasets
from torch import nn
from torchvision.models import get_model

import compute_projections
import models
import reinit_layers
import train
from utils import snapshots
from utils.snapshots.names import epochs_trained
from utils.snapshots.weights import check_finite

LENET = ("--arch", "lenet", "--dataset", "fashion_mnist_mini")
TRAINED = weights(REFERENCE / "lenet_2.tar")
OTHER = weights(REFERENCE / "lenet_0.tar")
NETWORK = models.structure("lenet", 10, 1).state_dict()
STATE = torch.load(REFERENCE / "lenet_2.tar", weights_only=True)


def prefixed(prefix: str, content: dict = TRAINED) -> dict:
    return {prefix + name: weight for name, weight in content.items()}


def saved(content, name: str = "file.pth", **options) -> Path:
    torch.save(content, name, **options)
    return Path(name)


def write_safetensors(content: dict, path: str = "file.safetensors", **changes) -> Path:
    """Write the format by hand: a JSON header with its length before it, and the numbers."""
    types = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
    types[torch.float8_e5m2] = "F8_E5M2"
    header, data = {}, b""
    for name, weight in content.items():
        values = weight.contiguous().view(torch.uint8).numpy().tobytes()
        place = {"dtype": types[weight.dtype], "shape": list(weight.shape)}
        header[name] = {**place, "data_offsets": [len(data), len(data) + len(values)]} | changes
        data += values
    text = json.dumps(header).encode()
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)
    return Path(path)


def load(path: Path, **options) -> dict:
    """Read a file for LeNet, and check that these are the weights of the reference."""
    content = snapshots.load(path, network=NETWORK, **options)
    assert same(dict(content["model_state_dict"]), dict(TRAINED))
    return content


# ---- containers and prefixes ----

CONTAINERS = {
    "ImageNet example": (
        {"state_dict": prefixed("module."), "epoch": 3},
        "weights at state_dict, prefix module. removed",
    ),
    "Lightning": (
        {"state_dict": prefixed("model.") | {"loss.weight": torch.ones(2)}, "epoch": 3, "loops": {"a": [1]}},
        "weights at state_dict, prefix model. removed, 1 entry left out: loss.weight",
    ),
    "nested": ({"a": {"b.c": {"net": TRAINED}}, "epoch": 3}, "weights at a.b.c.net"),
    "compiled, stacked": (prefixed("_orig_mod.module."), "prefix _orig_mod.module. removed"),
    "backbone": (prefixed("backbone.encoder."), "prefix backbone.encoder. removed"),
    "averaged": (
        {"n_averaged": torch.tensor(9), **prefixed("module.")},
        "prefix module. removed, 1 entry left out: n_averaged",
    ),
    "part wrapped": (
        {re.sub(r"^features\.", "features.module.", name): weight for name, weight in TRAINED.items()},
        "12 names translated",
    ),
    "part compiled": (
        {re.sub(r"^(classifier\.\d)", r"\1._orig_mod", name): weight for name, weight in TRAINED.items()},
        "6 names translated",
    ),
    "parts apart": (
        {
            part: {name.removeprefix(part + "."): w for name, w in TRAINED.items() if name.startswith(part)}
            for part in ("features", "classifier")
        },
        "",
    ),
    "counters of a profiler": (
        {**TRAINED, "features.0.total_ops": torch.ones(1)},
        "1 entry left out: features.0.total_ops",
    ),
    "with an optimizer": (
        {"net": TRAINED, "optimizer": STATE["optimizer_state_dict"], "args": argparse.Namespace(lr=1)},
        "weights at net",
    ),
    "twice the same": ({"model": TRAINED, "state_dict": TRAINED}, "weights at model"),
    "of another shape beside": (
        {"teacher": {**TRAINED, "classifier.6.bias": torch.ones(3)}, "net": TRAINED},
        "weights at net",
    ),
    "bare": (TRAINED, ""),
    "training state": (STATE, ""),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_weights_are_found_and_what_was_translated_is_said(name):
    content, said = CONTAINERS[name]
    path = saved(content, "file.tar" if name == "training state" else "file.pth")
    found = load(path)
    assert found.get("translated", "") == said
    assert found.get("epoch") == content.get("epoch")
    part = snapshots.load(path, "features.0.weight".__eq__, NETWORK)
    assert same(part["model_state_dict"], {"features.0.weight": TRAINED["features.0.weight"]})
    assert part["structure"].keys() == TRAINED.keys()


def test_networks_with_a_module_of_the_name_of_a_wrapper_keep_it():
    net = nn.Sequential(collections.OrderedDict(module=nn.Linear(2, 2), other=nn.Linear(2, 2)))
    for prefix in ("", "module."):
        path = saved({prefix + name: weight for name, weight in net.state_dict().items()})
        found = snapshots.load(path, network=net.state_dict())["model_state_dict"]
        assert same(found, dict(net.state_dict()))


AMBIGUOUS = {
    "two keys": ({"model": TRAINED, "model_ema": OTHER}, "model"),
    "one averaged": (
        {"state_dict": prefixed("module."), "ema_state_dict": prefixed("module.", OTHER)},
        "state_dict.module",
    ),
    "two prefixes": ({"state_dict": prefixed("student.") | prefixed("teacher.", OTHER)}, "state_dict.student"),
    "bare and inside": ({**TRAINED, "ema": OTHER}, "."),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_key_decides_where_several_weights_fit(name):
    content, key = AMBIGUOUS[name]
    path = saved(content)
    with pytest.raises(
        snapshots.UsageError, match=rf"^{path} holds several .*--weights-key one of .*{re.escape(key)}(,|$)"
    ):
        load(path)
    load(path, key=key)


@pytest.mark.parametrize("key", ["model_em", "epoch", "model.features.0.weight.x"])
def test_key_that_is_not_there_is_refused_with_those_that_are(key):
    with pytest.raises(
        snapshots.SnapshotError, match=rf"^--weights-key {key}: .*it holds tensors at model, model_ema$"
    ):
        load(saved({"model": TRAINED, "model_ema": OTHER, "epoch": 3}), key=key)


def test_another_network_is_told_from_another_container():
    small = {name: w for name, w in TRAINED.items() if not name.startswith("classifier.6")}
    content = {"net": small, "head": {"weight": torch.ones(3)}}
    with pytest.raises(snapshots.UsageError) as error:
        load(saved(content))
    (line,) = str(error.value).splitlines()
    assert "net (16 tensors: classifier.6.weight is missing, classifier.6.bias is missing)" in line
    assert "head (1 tensor: no name of this network)" in line


def test_weights_of_a_deeper_network_are_not_those_of_a_part_of_it():
    """All names of ResNet-18 are in ResNet-34, with the same shapes."""
    with torch.device("meta"):
        network, deeper = (get_model(name).state_dict() for name in ("resnet18", "resnet34"))
    path = saved({name: torch.zeros((), dtype=w.dtype).expand(w.shape) for name, w in deeper.items()})
    with pytest.raises(snapshots.UsageError, match=r"layer1.2.conv1.weight is unknown"):
        snapshots.load(path, lambda name: False, network)


@pytest.mark.parametrize("arch", ["googlenet", "inception_v3", "densenet121"])
def test_files_of_the_model_zoo(arch):
    with torch.device("meta"):
        options = {} if arch == "densenet121" else {"aux_logits": True, "init_weights": False}
        theirs = get_model(arch, **options).state_dict()
    network = models.structure(arch, 1000).state_dict()
    content = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d\.)", r"\1.\2", name): w for name, w in theirs.items()}
    path = saved({name: torch.zeros((), dtype=w.dtype).expand(w.shape) for name, w in content.items()})
    found = snapshots.load(path, lambda name: False, network)
    assert {name: w.shape for name, w in found["structure"].items()} == {n: w.shape for n, w in network.items()}
    assert ("entries left out" in found["translated"]) == (arch != "densenet121")
    assert ("names translated" in found["translated"]) == (arch == "densenet121")


def test_tensor_without_numbers_may_be_the_first_one():
    path = saved({"queue": torch.zeros(0), "state_dict": TRAINED})
    assert same(snapshots.load(path, network=NETWORK)["model_state_dict"], TRAINED)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("save", [saved, write_safetensors])
def test_other_types_of_numbers(dtype, save):
    content = {name: weight.to(dtype) for name, weight in TRAINED.items()}
    found = snapshots.load(save(content), network=NETWORK)["model_state_dict"]
    check_finite(Path("file"), found)
    for name, weight in content.items():
        assert found[name].dtype == dtype
        assert found[name].float().equal(weight.float())
    found["features.0.weight"][0] = torch.nan
    with pytest.raises(snapshots.SnapshotError, match=r"^file cannot be used: features\.0\.weight holds NaN"):
        check_finite(Path("file"), found)


# ---- formats ----


@pytest.mark.parametrize("old", [False, True])
def test_values_beside_the_weights_are_read_and_numbers_are_plain(old):
    values = {
        **{"float": np.float64(65.1), "half": np.float16(0.5), "int": np.int64(-3), "bool": np.bool_(True)},
        **{
            "array": np.ones((3, 4)),
            "empty": b"",
            "bytes": b"a",
            "size": torch.Size([3]),
        },
        **{
            "version": torch.__version__,
            "namespace": argparse.Namespace(lr=1, path=pathlib.Path("a")),
            "set": {1},
        },
        **{
            "frozen": frozenset({1}),
            "counter": collections.Counter("aab"),
            "device": torch.device("cpu"),
            "complex": 1j,
        },
        **{
            "default": collections.defaultdict(int, a=[1]),
            "dtype": torch.float32,
            "random": np.random.get_state(),
        },
        **{"now": datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc), "day": datetime.date(2026, 1, 1)},
        "time": datetime.timedelta(1),
    }
    content = {"model_state_dict": TRAINED, "top1_acc": np.float32(0.5), "epoch": np.int64(3), "extra": values}
    path = saved(content, _use_new_zipfile_serialization=not old)
    found = load(path)
    assert (found["epoch"], found["top1_acc"], found["checksums"]) == (3, 0.5, not old)
    assert {type(found["epoch"]), type(found["top1_acc"])} == {int, float}
    extra = snapshots.load(path)["extra"]
    assert [extra[name] for name in ("float", "half", "int", "bool")] == [65.1, 0.5, -3, True]
    assert extra["namespace"]["lr"] == 1
    assert extra["default"] == {"a": [1]}
    assert extra["counter"] == {"a": 2, "b": 1}


@pytest.mark.parametrize("value", [nn.Linear(2, 2), print, pytest.approx(3)])
def test_other_kinds_are_refused_by_name_with_the_way_out(value, capsys):
    path = saved({"model_state_dict": TRAINED, "extra": value})
    line = refused(compute_projections, capsys, *LENET, "--load-from", path)
    assert re.search(r"file\.pth is refused.*(Linear|print|Approx).*torch\.save\(net\.state_dict\(\), ", line)


def test_pickle_that_weights_only_cannot_read_is_refused_with_the_way_out():
    with pytest.raises(snapshots.SnapshotError, match=r"protocol 4; .*torch\.save\(net\.state_dict\(\), "):
        load(saved(TRAINED, pickle_protocol=4))


def test_parameters_are_weights_whatever_their_attributes():
    content = {name: nn.Parameter(weight.clone()) for name, weight in TRAINED.items()}
    content["features.0.weight"].detach = "attribute"
    load(saved(content))


def test_safetensors_hold_the_same_numbers(capsys):
    assert not load(write_safetensors(prefixed("net.")))["checksums"]
    measured = {}
    for path in (write_safetensors(TRAINED), saved(TRAINED, "file.pt")):
        assert run_main(compute_projections, *LENET, "--load-from", path) == 0
        assert ("no checksums" in capsys.readouterr().err) == (path.suffix != ".pt")
        measured[path.suffix] = results("results/fashion_mnist_mini/lenet/file.json")
        del measured[path.suffix]["provenance"]
    assert measured[".pt"] == measured[".safetensors"]


ONE = {"features.0.weight": TRAINED["features.0.weight"]}
HEADERS = {
    "truncated": lambda: write_safetensors(TRAINED).read_bytes()[:-1],
    "within the header": lambda: write_safetensors(TRAINED).read_bytes()[:100],
    "more behind": lambda: write_safetensors(TRAINED).read_bytes() + b"x",
    "offsets outside": lambda: write_safetensors(ONE, data_offsets=[0, 2**40]).read_bytes(),
    "offsets reversed": lambda: write_safetensors(ONE, data_offsets=[216, 0]).read_bytes(),
    "overlapping": lambda: write_safetensors(
        {**ONE, "b": ONE["features.0.weight"]}, data_offsets=[0, 216]
    ).read_bytes(),
    "another size": lambda: write_safetensors(ONE, shape=[6, 1, 3, 4]).read_bytes(),
    "huge sizes": lambda: write_safetensors(ONE, shape=[2**62, 2**62, 4]).read_bytes(),
    "negative size": lambda: write_safetensors(ONE, shape=[-6, 1, 3, 3]).read_bytes(),
    "unknown type": lambda: write_safetensors(ONE, dtype="X8").read_bytes(),
    "huge header": lambda: struct.pack("<Q", 2**62) + b"{}",
    "header as long as it may be": lambda: struct.pack("<Q", 100_000_000) + b"{" * 2**20,
    "deep JSON": lambda: struct.pack("<Q", 2**20) + b'{"a":' * (2**20 // 5) + b" ",
    "no JSON": lambda: struct.pack("<Q", 10) + b"{" + bytes(9),
    "list": lambda: struct.pack("<Q", 4) + b'{"a"',
    "nothing in it": lambda: struct.pack("<Q", 2) + b"{}",
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_safetensors_are_refused(name, count):
    Path("hostile.safetensors").write_bytes(HEADERS[name]())
    with pytest.raises(snapshots.SnapshotError, match=r"^hostile\.safetensors ") as error:
        load(Path("hostile.safetensors"))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500
    count("hostile files refused")


# ---- epochs ----

NAMES = {
    **{
        "model_3.pth": 3,
        "model-3.ckpt": 3,
        "epoch=3-step=96.ckpt": 3,
        "net_epoch_12.bin": 12,
        "epoch-7.safetensors": 7,
    },
    **{
        "checkpoint_3.pth.tar": 3,
        "20240131_lenet_3.pt": 3,
        "lenet_2024-01-31_3.pt": 3,
        "12.pt": 12,
        "lenet_3.pt": 3,
    },
    **{"lenet_init_0.pt": 0, "lenet_pretrained_0.pt": -1, "lenet_3.tar": 4},
    **dict.fromkeys(("lenet_20240131.pt", "model-2024-01-31.pth", "31.01.2024.pt", "lenet_20240131_153000.pt")),
    **dict.fromkeys(
        ("model_2024-01-31_15-30-00.pt", "vgg13-19584684.pth", "model_step_96.pth", "best.pt", "LeNet.pt")
    ),
    **dict.fromkeys(
        ("model_ep3_it0.pth", "model_acc_65.1.pth", "model_acc_93.pth", "resnet18.pth", "resnet18-f37072fd.pth")
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_epoch_of_a_name(name):
    assert epochs_trained(Path(name), {}, "lenet") == NAMES[name]
    assert epochs_trained(Path(name), {"epoch": 5}, "lenet") == 5


@pytest.mark.parametrize(
    ("name", "arch"),
    [("vgg_16.pth", "vgg16"), ("wide_resnet50_2.pth", "wide_resnet50_2"), ("cifar10_resnet_50.pth", "resnet50")],
)
def test_number_of_a_network_is_no_epoch(name, arch):
    assert epochs_trained(Path(name), {}, arch) is None
    assert epochs_trained(Path(name), {}, "weights") is None
    assert epochs_trained(Path(name).with_stem(f"{arch}_3"), {}, arch) == 3


# ---- the programs ----

compute = partial(run_main, compute_projections)


def test_snapshots_of_other_programs_are_measured_in_the_order_given(capsys):
    Path("runs").mkdir()
    for name in ("ep10", "ep9", "last"):
        saved({"model": TRAINED, "model_ema": OTHER}, f"runs/{name}.ckpt")
    options = (*LENET, "--weights-key", "model", "--load-from")
    assert compute(*options, "runs/last.ckpt", "runs/ep10.ckpt") == 0
    assert "runs/ep10.ckpt, the last of 2 snapshots" in capsys.readouterr().out
    assert compute(*options, "runs") == 0
    said = capsys.readouterr()
    assert "runs/last.ckpt, the last of 3 snapshots" in said.out
    (line,) = said.err.splitlines()
    assert "ep9.ckpt says nothing of its run: " in line
    assert line.endswith("weights at model (and 2 more like this)")
    content = results("results/fashion_mnist_mini/lenet/ep9.json")
    assert content["epoch"] is None
    w = TRAINED["features.0.weight"].double().numpy().reshape(6, -1)
    assert content["0"]["0"]["projections"] == pytest.approx(w.sum(1).tolist())


def test_epoch_is_said_by_an_option_for_one_snapshot(capsys):
    options = (*LENET, "--load-from", saved(TRAINED, "a.pth"))
    assert compute(*options, "--epoch", 7) == 0
    assert results("results/fashion_mnist_mini/lenet/a.json")["epoch"] == "7"
    assert compute(*options, "--epoch", 8) == 0
    capsys.readouterr()
    assert "--epoch 7" in refused(compute_projections, capsys, *options, saved(OTHER, "b.pth"), "--epoch", 7)
    assert "--epoch 7" in refused(compute_projections, capsys, *LENET, "--epoch", 7)


def test_other_weights_of_the_same_name_are_warned_about_and_the_same_are_not(capsys):
    for folder, content, warned in (("a", TRAINED, False), ("b", {"net": TRAINED}, False), ("c", OTHER, True)):
        Path(folder).mkdir()
        path = saved(content, f"{folder}/checkpoint.pth")
        assert compute(*LENET, "--load-from", path) == 0
        assert ("held results that differ in weights, and are replaced" in capsys.readouterr().err) == warned
    line = refused(compute_projections, capsys, *LENET, "--load-from", "a/checkpoint.pth", "c/checkpoint.pth")
    assert "a/checkpoint.pth and c/checkpoint.pth would both write" in line


@pytest.fixture
def few_images():
    write_datasets(Path("data"), images=64)


MNIST = ("--arch", "lenet", "--dataset", "mnist", "--data-path", "data")


def test_layers_are_reset_to_weights_of_other_programs(few_images, capsys):
    trained = saved({"state_dict": prefixed("module."), "epoch": 7}, "trained.pth")
    init = saved({"net": OTHER}, "init.pth")
    options = (*MNIST, "--load-from", trained, "--inits-from", "list.txt")
    Path("list.txt").write_text(f"{init}\n")
    assert f"write the number after it, as in {init} 3" in refused(reinit_layers, capsys, *options)
    Path("list.txt").write_text(f"{init} 0\n{trained}\n")
    assert "after 7 epochs" in refused(reinit_layers, capsys, *options, "--epoch", 8)
    assert run_main(reinit_layers, *options) == 0
    content = results("results/mnist/lenet/reinit_trained.json")
    assert content["epoch"] == "7"
    assert list(content["init_from_epoch"]) == ["0", "7"]
    assert content["init_from_epoch"]["7"] == [content["top1_test"]] * 6
    assert "weights at net" in capsys.readouterr().err


def foreign_state(optimizer, schedule=None, steps: int = 1) -> Path:
    net = models.build("lenet", 10, 1)
    optimizer = optimizer(net.parameters())
    net(torch.randn(8, 1, 28, 28)).sum().backward()
    optimizer.step()
    content = {"model_state_dict": TRAINED, "epoch": 1, "loss": 1.0}
    if schedule is not None:
        schedule = schedule(optimizer)
        for _ in range(steps):
            schedule.step()
        content["scheduler_state_dict"] = schedule.state_dict()
    return saved({**content, "optimizer_state_dict": optimizer.state_dict()}, "state.pt")


TRAIN = (*MNIST, "--seed", 5, "--epochs", 2)


@pytest.mark.parametrize(
    ("optimizer", "named"),
    [
        (torch.optim.AdamW, "AdamW"),
        (torch.optim.NAdam, "that train.py does not have"),
        (partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True), "that train.py does not have"),
    ],
)
def test_state_of_another_optimizer_is_refused_with_the_way_out(optimizer, named, few_images, capsys):
    path = foreign_state(optimizer)
    assert run_main(train, *TRAIN, "--resume-from", path, "--evaluate") == 0
    assert "test set: " in capsys.readouterr().out
    line = refused(train, capsys, *TRAIN, "--resume-from", path)
    assert named in line
    (way,) = re.findall(r"--weights-key \w+", line)
    assert run_main(train, *TRAIN, "--resume-from", path, *way.split(), "--start-epoch", 1) == 0
    said = capsys.readouterr()
    assert "epoch 1 (2/2)" in said.out
    assert "epoch 0" not in said.out
    assert "weights at model_state_dict" in said.err


SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_state_of_another_program_goes_on_with_the_epoch_and_learning_rate_that_it_records(few_images, capsys):
    path = foreign_state(SGD, partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.1))
    assert run_main(train, *TRAIN, "--resume-from", path, "--weight-decay", 0) == 0
    assert re.search(r"^epoch 1 \(2/2\): .* lr 0\.001, ", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        (partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=10), 1),
        (partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[1], gamma=0.1), 1),
        (partial(torch.optim.lr_scheduler.StepLR, step_size=100, gamma=0.1), 250),  # every batch
    ],
)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_schedule_that_train_does_not_have_is_refused_with_the_way_out(schedule, steps, few_images, capsys):
    line = refused(train, capsys, *TRAIN, "--resume-from", foreign_state(SGD, schedule, steps))
    assert "state.pt" in line
    assert "--weights-key model_state_dict" in line
