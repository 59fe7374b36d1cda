"""bfloat16, TF32, deterministic algorithms and compiled training steps."""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from programs import ROOT, run_main, shell
from torch import nn

import data
import models
import reinit_layers
import train
from core.errors import RunError
from utils import snapshots
from utils.process import devices
from utils.training import optimizers, precision
from utils.training.compilation import GraphedStep

MINI = ("--arch", "lenet", "--dataset", "fashion_mnist_mini", "--seed", 1)
QUICK = (*MINI, "--subsample-classes", 2, "--lr", 0.02, "--epochs", 1)
FOLDER = Path("fashion_mnist_mini_2/lenet/1")


def load(path) -> dict:
    return torch.load(path, weights_only=True)


def test_bfloat16_changes_the_numbers_a_little_and_is_recorded(capsys):
    assert run_main(train, *QUICK, "--models-path", "full") == 0
    assert run_main(train, *QUICK, "--models-path", "half", "--amp") == 0
    full, half = (load(Path(folder, FOLDER, "lenet_0.tar")) for folder in ("full", "half"))
    assert (full["config"]["amp"], half["config"]["amp"]) == (False, True)
    first, second = (
        float(loss) for loss in re.findall(r"^epoch 0 .*: loss ([\d.]+)", capsys.readouterr().out, re.M)
    )
    assert first == pytest.approx(second, rel=0.05)
    for name, weight in half["model_state_dict"].items():
        assert weight.dtype == torch.float32
        assert not torch.equal(weight, full["model_state_dict"][name])
        assert torch.allclose(weight, full["model_state_dict"][name], atol=0.02)


def test_run_in_bfloat16_is_another_run_and_goes_on_as_such(capsys):
    assert run_main(train, *QUICK, "--models-path", ".", "--amp") == 0
    assert run_main(train, *QUICK, "--models-path", ".") == 2
    assert "lenet_0.tar is of another run (--amp True, not False)" in capsys.readouterr().err
    assert run_main(train, *MINI, "--resume-from", FOLDER / "lenet_0.tar", "--epochs", 2) == 0
    assert load(Path("models", FOLDER, "lenet_1.tar"))["config"]["amp"] is True


def test_layers_are_reset_in_bfloat16_where_asked_for():
    assert run_main(train, *MINI, "--shuffle", "--lr", 0.03, "--epochs", 3) == 0
    final = "models/fashion_mnist_mini/lenet/1/lenet_3.pt"
    results = {}
    for amp in (False, True):
        assert run_main(reinit_layers, *MINI, "--load-from", final, "--rand", *(["--amp"] if amp else [])) == 0
        results[amp] = json.loads(Path("results/fashion_mnist_mini/lenet/1/reinit_lenet_3.json").read_text())
        assert results[amp]["provenance"]["arguments"]["amp"] is amp
    assert results[True]["init_from_epoch"] != results[False]["init_from_epoch"]
    assert results[True]["top1_test"] == pytest.approx(results[False]["top1_test"], abs=1.5)


@pytest.mark.parametrize(
    ("size", "output"), [((1, 1), 7), ((7, 7), (7, 7)), ((9, 9), (1, 2)), ((28, 20), (3, 7)), ((5, 3), (3, 2))]
)
def test_pooling_with_a_deterministic_gradient_is_adaptive_average_pooling(size, output):
    net = nn.Sequential(nn.AdaptiveAvgPool2d(output))
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(net(x))
    (expected_gradient,) = torch.autograd.grad((net(x) * weights).sum(), x)
    expected = net(x)
    precision.make_deterministic(net)
    assert isinstance(net[0], precision.MatrixAveragePool2d)
    torch.testing.assert_close(net(x), expected)
    (gradient,) = torch.autograd.grad((net(x) * weights).sum(), x)
    torch.testing.assert_close(gradient, expected_gradient)


def test_pooling_of_vgg_is_made_deterministic():
    with torch.device("meta"):
        net = models.build("vgg11", 10, 3, (64, 64))
        precision.make_deterministic(net)
        assert isinstance(net.avgpool.pool, precision.MatrixAveragePool2d)
        assert net(torch.empty(2, 3, 64, 64)).shape == (2, 10)


def test_on_the_cpu_images_and_convolutions_are_in_channels_last(monkeypatch):
    train_epoch, seen = train.train_epoch, []

    def look(step, net, batches, epoch):
        (images, _) = next(iter(batches))
        weights = [module.weight for module in net.modules() if isinstance(module, nn.Conv2d)]
        seen.extend(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in (images, *weights))
        batches.epoch = epoch
        return train_epoch(step, net, batches, epoch)

    monkeypatch.setattr(train, "train_epoch", look)
    options = ("--arch", "resnet18", "--dataset", "fashion_mnist_mini", "--subsample-classes", 1, "--split", 0.75)
    assert run_main(train, *options, "--epochs", 1) == 0
    assert len(seen) == 21  # a batch, 20 convolutions
    assert all(seen)


def test_deterministic_pooling_is_not_biased_by_bfloat16():
    pool = precision.MatrixAveragePool2d((3, 3))
    x = torch.rand(64, 32, 7, 7) + 1
    exact = nn.functional.adaptive_avg_pool2d(x.double(), (3, 3))
    with torch.autocast("cpu", torch.bfloat16):
        found = pool(x)
    assert found.dtype == torch.bfloat16
    assert abs((found.double() / exact - 1).mean()) < 2e-4  # with factors 1/3 of bfloat16 it would be 3e-3


def test_pooling_to_one_value_is_left_as_it_is():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((1, 1)))
    precision.make_deterministic(net)
    assert not any(isinstance(module, precision.MatrixAveragePool2d) for module in net)


@pytest.fixture
def settings():
    """How products and convolutions on a GPU round their factors; put back afterwards."""
    both = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [one.allow_tf32 for one in both], torch.backends.cudnn.benchmark
    yield both
    torch.use_deterministic_algorithms(False)
    for one, allowed in zip(both, before[0], strict=True):
        one.allow_tf32 = allowed
    torch.backends.cudnn.benchmark = before[1]


@pytest.mark.parametrize("tf32", [False, True])
def test_rounding_of_factors_is_decided_for_products_and_convolutions(tf32, settings):
    for one in settings:
        one.allow_tf32 = not tf32
    precision.set_precision(torch.device("cuda"), tf32)
    assert [one.allow_tf32 for one in settings] == [tf32, tf32]
    assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")  # which the compiler asks for
    assert torch.backends.cudnn.benchmark


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler")
def test_compiled_step_computes_the_same_with_the_same_dropout():
    for folder, options in (("plain", ()), ("compiled", ("--compile", "--tb-logdir", "board"))):
        finished = shell("train.py", *QUICK, "--batch-size", 900, "--models-path", folder, *options)
        assert (finished.returncode, finished.stderr) == (0, "")
    plain, compiled = (snapshots.load(Path(folder, FOLDER, "lenet_0.tar")) for folder in ("plain", "compiled"))
    plain, compiled = plain["model_state_dict"], compiled["model_state_dict"]
    for name, weight in compiled.items():
        torch.testing.assert_close(weight, plain[name], atol=1e-6, rtol=1e-4)
    # That it has not simply run the uncompiled step shows in the last bits.
    assert any(not torch.equal(weight, plain[name]) for name, weight in compiled.items())


def test_compiler_that_does_not_work_is_one_line():
    environment = {**os.environ, "CXX": "/nowhere/compiler", "TORCHINDUCTOR_CACHE_DIR": "cache"}
    finished = shell("train.py", *QUICK, "--compile", env=environment)
    assert finished.returncode == 1
    (line,) = finished.stderr.splitlines()
    assert line.startswith("train.py: failed: --compile: ")
    assert "/nowhere/compiler" in line


def test_network_that_is_compiled_wrongly_is_one_line(monkeypatch, capsys):
    def compiled_wrongly(*arguments):  # as the code that PyTorch writes checks it
        check = torch._C._dynamo.guards.assert_size_stride
        check(torch.ones(2, 3), (2, 3), (1, 2), "torch.ops.aten.convolution_backward.default")

    monkeypatch.setattr(train, "train_epoch", compiled_wrongly)
    assert run_main(train, *QUICK, "--compile") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: failed: --compile: compiled wrongly by PyTorch (expected size 2==2, stride ")


@pytest.mark.cuda
@pytest.mark.parametrize(
    "options", [(), ("--amp",), ("--compile",), ("--compile", "--tf32"), ("--compile", "--amp")], ids=str
)
def test_deterministic_run_on_a_gpu_is_repeatable_and_resumed_equals_uninterrupted(options):
    options = (*MINI, "--cuda", "--deterministic", "--shuffle", "--snapshot-every", 1, *options)
    options = (*options, "--batch-size", 100)  # which leaves no smaller batch, that would be compiled too
    for folder, parts in (("once", [2]), ("parts", [1, 2])):
        for epochs in parts:  # as processes: what is set in one stays set
            resume = ("--resume-from", "latest", "--epochs", epochs, "--models-path", folder)
            finished = shell("train.py", *options, *resume)
            assert finished.returncode == 0, finished.stderr
    once, parts = (
        snapshots.load(Path(folder, "fashion_mnist_mini/lenet/1/lenet_2.pt"))["model_state_dict"]
        for folder in ("once", "parts")
    )
    for name, weight in once.items():
        assert torch.equal(weight, parts[name]), name


@pytest.mark.cuda
def test_float32_on_a_gpu_is_not_rounded_unless_asked_for(settings):
    x = torch.randn(64, 64, 8, 8, device="cuda")
    convolution = nn.Conv2d(64, 64, 3, padding=1).cuda()
    exact = nn.functional.conv2d(x.double(), convolution.weight.double(), convolution.bias.double(), padding=1)
    precision.set_precision(torch.device("cuda"))
    # The largest of 262,144 sums of 576 products; in float32, perhaps by Winograd's algorithm.
    assert (convolution(x).double() - exact).abs().max() < 5e-5
    # Where TF32 is allowed cuDNN may still choose float32 for a convolution; cuBLAS does not for a product.
    a, b = torch.randn(2, 1024, 1024, device="cuda")
    errors = {}
    for tf32 in (False, True):
        precision.set_precision(torch.device("cuda"), tf32)
        errors[tf32] = ((a @ b).double() - a.double() @ b.double()).abs().max().item()
    assert errors[False] < 2e-3 < 1e-2 < errors[True]


@pytest.mark.cuda
@pytest.mark.parametrize("arch", ["lenet", "resnet18"])
def test_nothing_in_an_epoch_waits_for_the_gpu(arch, monkeypatch):
    device = torch.device("cuda")
    dataset = data.load("fashion_mnist_mini", "", 128, device=device, shuffle=True, augmentation=True)
    net = models.build(arch, 10, 1, (28, 28)).to(device)
    hyperparameters = argparse.Namespace(optimizer="sgd", lr=1e-3, momentum=0.9, weight_decay=1e-4)
    step = train.make_step(net, optimizers.make_optimizer(net, hyperparameters))
    train.train_epoch(step, net, dataset.train, 0)  # libraries wait when they are first used

    def epoch_is_over(tensor):
        torch.cuda.set_sync_debug_mode("default")
        return tensor

    monkeypatch.setattr(train.distributed, "sum_", epoch_is_over)
    try:
        torch.cuda.set_sync_debug_mode("error")
        train.train_epoch(step, net, dataset.train, 1)
        assert torch.cuda.get_sync_debug_mode() == 0
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
def test_network_that_waits_for_a_value_cannot_be_a_cuda_graph():
    code = """
import torch
import train
from utils.training import compilation
from utils.process import ending as program

class Waiting(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1)) * (1 if x.sum().item() > 0 else 2)

net = Waiting(4, 2).cuda()
optimizer = torch.optim.SGD(net.parameters())
step = compilation.GraphedStep(train.make_step(net, optimizer), optimizer)
batch = torch.ones(3, 1, 2, 2, device="cuda"), torch.zeros(3, dtype=torch.long, device="cuda"), 3
for _ in range(step.FIRST_STEPS):
    step(*batch)
try:
    step(*batch)
except program.RunError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # a process, because a failed capture leaves traces
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert found.stdout.startswith("--compile: the training step cannot be a CUDA graph: "), found.stderr


@pytest.mark.cuda
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("arch", ["lenet", "resnet18"])
def test_step_as_a_cuda_graph_computes_what_the_step_does(arch, optimizer, settings, monkeypatch):
    """Of a network that is not compiled: dropout, batch norm, another learning rate, a smaller last batch."""
    device = torch.device("cuda")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    precision.set_precision(device, deterministic=True)
    hyperparameters = argparse.Namespace(optimizer=optimizer, lr=1e-3, momentum=0.9, weight_decay=1e-4)
    trained = []
    for graphed in (False, True):
        dataset = data.load("fashion_mnist_mini", "", 100, device=device, shuffle=True, subsample_classes=3)
        assert dataset.train.num_images % 100  # a smaller batch at the end
        torch.manual_seed(0)
        net = models.build(arch, 3, 1, (28, 28)).to(device)
        precision.make_deterministic(net)
        optimizer = optimizers.make_optimizer(net, hyperparameters)
        step = train.make_step(net, optimizer)
        if graphed:
            step = GraphedStep(step, optimizer)
        results = []
        for epoch in range(3):
            torch.manual_seed(epoch)
            results.append(train.train_epoch(step, net, dataset.train, epoch))
            optimizer.param_groups[0]["lr"] /= 2
        assert not optimizer.param_groups[0].get("capturable", False)
        trained.append((net.state_dict(), results))
    assert step.graph is not None
    assert step.learning_rates == [2.5e-4]
    (weights, results), (graphed_weights, graphed_results) = trained
    assert graphed_results == results
    for name, weight in graphed_weights.items():
        assert torch.equal(weight, weights[name]), name


@pytest.mark.cuda
@pytest.mark.parametrize("amp", [False, True])
def test_compiled_step_as_a_cuda_graph_trains_as_the_plain_one(amp):
    """Up to rounding: with dropout, another learning rate, a smaller last batch."""
    device = torch.device("cuda")
    hyperparameters = argparse.Namespace(optimizer="sgd", lr=2e-3, momentum=0.9, weight_decay=1e-4)
    losses = []
    for compiled in (False, True):
        dataset = data.load("fashion_mnist_mini", "", 100, device=device, shuffle=True, subsample_classes=3)
        torch.manual_seed(0)
        net = models.build("lenet", 3, 1, (28, 28)).to(device)
        if amp:
            precision.use_bfloat16(net, device)
        optimizer = optimizers.make_optimizer(net, hyperparameters)
        step = train.make_step(net, optimizer, compiled)
        losses.append([])
        for epoch in range(3):
            torch.manual_seed(epoch)
            losses[-1].append(train.train_epoch(step, net, dataset.train, epoch)[0])
            optimizer.param_groups[0]["lr"] *= 0.8
    assert step.graph is not None
    plain, graphed = losses
    assert plain[-1] < 0.99 * plain[0]
    assert graphed == pytest.approx(plain, rel=0.04 if amp else 5e-3)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", [None, "amp", "tf32"])
def test_compiled_resnet18_trains_as_the_plain_one(precision, settings):
    """Its last maps have one pixel, whose strides may mean two layouts at once."""
    device, amp, tf32 = torch.device("cuda"), precision == "amp", precision == "tf32"
    precision.set_precision(device, tf32)
    layout = precision.memory_format(device, amp, tf32)
    options = {"device": device, "shuffle": True, "subsample_classes": 3, "memory_format": layout}
    batches = list(data.load("fashion_mnist_mini", "", 128, **options).train)[:6]  # small differences grow fast
    hyperparameters = argparse.Namespace(optimizer="sgd", lr=1e-3, momentum=0.9, weight_decay=1e-4)
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        net = models.build("resnet18", 3, 1, (28, 28)).to(device, memory_format=layout).train()
        if amp:
            precision.use_bfloat16(net, device)
        step = train.make_step(net, optimizers.make_optimizer(net, hyperparameters), compiled)
        losses.append([step(*batch, 128)[0].item() for batch in batches])
    plain, graphed = losses
    assert graphed == pytest.approx(plain, rel=0.06)


class FakeGraphs:
    """What GraphedStep uses of torch.cuda, on a machine without a GPU: a record of what it is asked for."""

    def __init__(self):
        self.events, self.streams = [], []
        self.at = self.Stream("usual")

    def step(self, images, labels, batch_size):
        self.events.append(f"step {len(images)}" if not self.recording else f"record {len(images)}")
        self.streams.append(self.at.name)
        return torch.tensor(float(len(self.events))), torch.tensor(0)

    recording = False

    @contextlib.contextmanager
    def graph(self, graph, stream, capture_error_mode):
        self.recording = True
        yield
        self.recording = False

    def CUDAGraph(self):
        return argparse.Namespace(replay=lambda: self.events.append("replay"))

    def Stream(self, name="own"):
        return argparse.Namespace(
            name=name, wait_stream=lambda other: self.streams.append(f"{name} waits for {other.name}")
        )

    def current_stream(self):
        return self.at

    @contextlib.contextmanager
    def stream(self, stream):
        self.at = stream
        yield
        self.at = self.Stream("usual")


@pytest.fixture
def graphs(monkeypatch):
    graphs = FakeGraphs()
    for name in ("graph", "CUDAGraph", "Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(graphs, name))
    return graphs


def batch(size: int):
    return torch.zeros(size, 1, 2, 2), torch.zeros(size, dtype=torch.long), size


def adam() -> torch.optim.Adam:
    return torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.1)


def test_steps_without_a_graph_wait_for_their_batch_and_are_waited_for(graphs):
    GraphedStep(graphs.step, adam())(*batch(8))
    assert graphs.streams == ["own waits for usual", "own", "usual waits for own"]


def test_graph_is_of_the_size_of_the_first_batch_and_of_one_learning_rate(graphs):
    optimizer = adam()
    step = GraphedStep(graphs.step, optimizer)
    for size in 3 * (8, 8, 5):
        step(*batch(size))
    first, second, third = "step 8, step 8, step 5", "step 8, record 8, replay, step 5", "replay, replay, step 5"
    assert ", ".join(graphs.events) == f"{first}, {second}, {third}"
    graphs.events.clear()
    optimizer.param_groups[0]["lr"] = 0.01
    step(*batch(8))
    step(*batch(8))
    assert graphs.events == ["record 8", "replay", "replay"]


def test_gradients_of_steps_without_the_graph_are_not_kept(graphs):
    optimizer = adam()
    (weight,) = optimizer.param_groups[0]["params"]
    step = GraphedStep(graphs.step, optimizer)
    for _ in range(3):
        step(*batch(8))
        weight.grad = torch.ones(1)
    step(*batch(8))
    assert weight.grad is None  # before recording
    weight.grad = torch.ones(1)
    step(*batch(5))
    assert weight.grad is None


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (RuntimeError("not permitted\nmore"), RunError, "^--compile: .* cannot be a CUDA graph: not permitted$"),
        (torch.OutOfMemoryError("no room"), torch.OutOfMemoryError, "no room"),
        (RuntimeError("CUDA error: out of memory"), RuntimeError, "^CUDA error: out of memory"),
    ],
)
@pytest.mark.parametrize("ending_fails", [False, True])
def test_step_that_cannot_be_recorded_says_why(error, expected, message, ending_fails, graphs, monkeypatch):
    @contextlib.contextmanager
    def graph(graph, stream, capture_error_mode):
        try:
            yield
        finally:
            if ending_fails:
                raise RuntimeError("the recording was broken")

    def fail(*_):
        assert optimizer.param_groups[0]["capturable"]
        raise error

    monkeypatch.setattr(torch.cuda, "graph", graph)
    optimizer = adam()
    step = GraphedStep(graphs.step, optimizer)
    for _ in range(3):
        step(*batch(8))
    step.step = fail
    with pytest.raises(expected, match=message):
        step(*batch(8))
    assert not optimizer.param_groups[0]["capturable"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore"),
            "no kernel image is",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "it has no memory left"),
    ],
)
def test_gpu_that_cannot_be_used_is_said_in_a_line(error, told, monkeypatch):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(torch, "zeros", fail)
    with pytest.raises(devices.DeviceError, match=f"--cuda: the GPU cannot be used: .*{told}"):
        devices.take(torch.device("cuda"))
    devices.take(torch.device("cpu"))
