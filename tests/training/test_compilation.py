"""Compiled training steps and CUDA graphs."""

import os
import shutil
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from programs import run_main, shell, weights

import data
import models
import train
from core.errors import RunError
from utils.training import precision
from utils.training import step as training_step
from utils.training.compilation import GraphedStep
from utils.training.optimizers import make_optimizer
from utils.training.step import make_step, train_epoch

LENET = ("--arch", "lenet", "--dataset", "fashion_mnist_mini", "--seed", 1)
QUICK = (*LENET, "--subsample-classes", 2, "--epochs", 1)
GPU = torch.device("cuda")


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler")
def test_compiled_step_computes_the_same_with_the_same_dropout():
    for folder, options in (("plain", ()), ("compiled", ("--compile", "--tb-logdir", "board"))):
        options = (*QUICK, "--lr", 0.02, "--batch-size", 900, "--models-path", folder, *options)
        finished = shell("train.py", *options)
        assert (finished.returncode, finished.stderr) == (0, "")
    plain, compiled = (
        weights(f"{folder}/fashion_mnist_mini_2/lenet/1/lenet_1.pt") for folder in ("plain", "compiled")
    )
    for name, weight in compiled.items():
        torch.testing.assert_close(weight, plain[name], atol=1e-6, rtol=1e-4)
    # The last bits differ: the step was really compiled.
    assert any(not torch.equal(weight, plain[name]) for name, weight in compiled.items())


@pytest.mark.long
def test_compiler_that_does_not_work_is_one_line():
    environment = {**os.environ, "CXX": "/nowhere/compiler", "TORCHINDUCTOR_CACHE_DIR": "cache"}
    finished = shell("train.py", *QUICK, "--compile", env=environment)
    assert finished.returncode == 1
    (line,) = finished.stderr.splitlines()
    assert line.startswith("train.py: failed: --compile: ")
    assert "/nowhere/compiler" in line


def test_wrongly_compiled_network_is_one_line(monkeypatch, capsys):
    def check_strides(*arguments):  # as the code that PyTorch generates does
        check = torch._C._dynamo.guards.assert_size_stride
        check(torch.ones(2, 3), (2, 3), (1, 2), "torch.ops.aten.convolution_backward.default")

    monkeypatch.setattr(train, "train_epoch", check_strides)
    assert run_main(train, *QUICK, "--compile") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: failed: --compile: ")


# On a GPU


def options(optimizer: str = "sgd", lr: float = 1e-3) -> SimpleNamespace:
    return SimpleNamespace(optimizer=optimizer, lr=lr, momentum=0.9, weight_decay=1e-4)


def load_batches(batch_size: int, **options):
    return data.load(data.Images("fashion_mnist_mini", "", shuffle=True), batch_size, device=GPU, **options).train


def train_three_epochs(step, net, optimizer, decay: float) -> list[tuple[float, float]]:
    """Train with a new learning rate in each epoch and a smaller last batch. Return losses and accuracies."""
    batches = load_batches(100, subsample_classes=3)
    assert batches.num_images % 100
    results = []
    for epoch in range(3):
        torch.manual_seed(epoch)
        results.append(train_epoch(step, net, batches, epoch))
        optimizer.param_groups[0]["lr"] *= decay
    return results


@pytest.mark.cuda
@pytest.mark.parametrize("arch", ["lenet", "resnet18"])
def test_epoch_does_not_wait_for_the_gpu(arch, monkeypatch):
    batches = load_batches(128, augmentation=True)
    net = models.build(arch, 10, 1, (28, 28)).cuda()
    step = make_step(net, make_optimizer(net, options()))
    train_epoch(step, net, batches, 0)  # libraries wait at their first use

    def end_of_loop(tensor):
        torch.cuda.set_sync_debug_mode("default")
        return tensor

    monkeypatch.setattr(training_step.distributed, "sum_", end_of_loop)
    try:
        torch.cuda.set_sync_debug_mode("error")
        train_epoch(step, net, batches, 1)
        assert torch.cuda.get_sync_debug_mode() == 0
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("arch", ["lenet", "resnet18"])
def test_step_as_a_cuda_graph_computes_the_same_bits(arch, kind, restore_precision, monkeypatch):
    """The network is not compiled. It has dropout or batch norm."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    precision.set_precision(GPU, deterministic=True)
    trained = []
    for graphed in (False, True):
        torch.manual_seed(0)
        net = models.build(arch, 3, 1, (28, 28)).cuda()
        precision.make_deterministic(net)
        optimizer = make_optimizer(net, options(kind))
        step = make_step(net, optimizer)
        if graphed:
            step = GraphedStep(step, optimizer)
        trained.append((train_three_epochs(step, net, optimizer, decay=0.5), net.state_dict()))
        assert not optimizer.param_groups[0].get("capturable", False)
    assert step.graph is not None
    assert step.captured_lr == 2.5e-4
    (results, weights), (graphed_results, graphed_weights) = trained
    assert graphed_results == results
    for name, weight in graphed_weights.items():
        assert torch.equal(weight, weights[name]), name


@pytest.mark.cuda
@pytest.mark.parametrize("amp", [False, True])
def test_compiled_step_as_a_cuda_graph_trains_like_the_plain_step(amp):
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        net = models.build("lenet", 3, 1, (28, 28)).cuda()
        if amp:
            precision.use_bfloat16(net, GPU)
        optimizer = make_optimizer(net, options(lr=2e-3))
        step = make_step(net, optimizer, compiled)
        losses.append([loss for loss, _ in train_three_epochs(step, net, optimizer, decay=0.8)])
    assert step.graph is not None
    plain, graphed = losses
    assert plain[-1] < 0.99 * plain[0]
    assert graphed == pytest.approx(plain, rel=0.04 if amp else 5e-3)


# GraphedStep without a GPU


@pytest.fixture
def cuda(monkeypatch):
    """A mock of what GraphedStep uses of torch.cuda, and of a step."""
    cuda = MagicMock()
    cuda.step.return_value = torch.tensor(1.0), torch.tensor(0)
    for name in ("graph", "CUDAGraph", "Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    return cuda


@pytest.fixture
def optimizer():
    return torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.1)


def batch(size: int):
    return torch.zeros(size, 1, 2, 2), torch.zeros(size, dtype=torch.long), size


def test_graph_has_the_size_of_the_first_batch_and_one_learning_rate(cuda, optimizer):
    (weight,) = optimizer.param_groups[0]["params"]
    step = GraphedStep(cuda.step, optimizer)

    def events(size: int, lr: float) -> list[str]:
        cuda.reset_mock()
        optimizer.param_groups[0]["lr"] = lr
        weight.grad = torch.ones(1)
        step(*batch(size))
        short = {"graph().__enter__": "capture", "step": "step", "CUDAGraph().replay": "replay"}
        return [short[name] for name, _, _ in cuda.mock_calls if name in short]

    for size in (8, 8, 5, 8):
        assert events(size, lr=0.1) == ["step"]
    assert events(8, lr=0.1) == ["capture", "step", "replay"]
    assert weight.grad is None  # removed before the capture
    assert events(5, lr=0.1) == ["step"]
    assert weight.grad is None  # removed after a step without the graph
    assert events(8, lr=0.1) == ["replay"]
    assert events(8, lr=0.01) == ["capture", "step", "replay"]
    assert events(8, lr=0.01) == ["replay"]


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (RuntimeError("not permitted\nmore"), RunError, "^--compile: .*: not permitted$"),
        (RuntimeError("CUDA error: out of memory"), RuntimeError, "^CUDA error: out of memory"),
    ],
)
def test_failed_capture_raises_the_first_error(error, expected, message, cuda, optimizer):
    step = GraphedStep(cuda.step, optimizer)
    for _ in range(step.FIRST_STEPS):
        step(*batch(8))

    def fail(*_):
        assert optimizer.param_groups[0]["capturable"]
        raise error

    cuda.step.side_effect = fail
    cuda.graph.return_value.__exit__.side_effect = RuntimeError("the end of the capture fails too")
    with pytest.raises(expected, match=message):
        step(*batch(8))
    assert not optimizer.param_groups[0]["capturable"]
