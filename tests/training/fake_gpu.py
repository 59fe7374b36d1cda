"""All tensors of a computation on a GPU are there, and nothing asks for a value before the end.

This needs no GPU: PyTorch's fake tensors have a shape, a type and a device, but no values. An operation on tensors
of two devices fails as on a GPU. An operation that needs a value, for which the host would wait, fails too.
"""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import data
import models
from data.loading import make_loader
from data.registry import Source
from utils import reinit
from utils.training import precision
from utils.training.metrics import evaluate
from utils.training.step import make_step

GPU = torch.device("cuda", 0)
NETWORKS = [("lenet", 1), ("vgg11", 3), ("resnet18", 3), ("mlp_bn", 1)]


@pytest.fixture(autouse=True)
def fake():
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def build(arch: str, channels: int):
    with GPU:
        return models.build(arch, 10, channels, (32, 32))


def batch(channels: int):
    return torch.empty(16, channels, 32, 32, device=GPU), torch.empty(16, dtype=torch.int64, device=GPU)


def check_values_are_needed_only_at_the_end(measure, channels: int) -> None:
    done = []

    def batches():
        for number in range(3):
            yield batch(channels)
            done.append(number)

    with pytest.raises(DataDependentOutputException):
        measure(batches())
    assert done == [0, 1, 2]


@pytest.mark.parametrize("augmentation", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"upscale": True}, {"upscale_padding": True}, {"unnormalize": True, "noise": -1, "noise_seed": 1}],
    ids=str,
)
def test_batches_of_a_dataset_in_memory(augmentation, options):
    images = data.Images("cifar10", "", shuffle=True, augmentation=augmentation, **options)
    source = Source(torch.empty(100, 3, 32, 32, dtype=torch.uint8), np.zeros(100, dtype=np.int64))
    loader = make_loader(images, source, 32, GPU, training=True, memory_format=torch.channels_last)
    side = 224 if options.keys() & {"upscale", "upscale_padding"} else 32
    sizes = []
    for images, labels in loader:
        assert images.device == labels.device == GPU
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert images.shape[1:] == (3, side, side)
        assert images.is_contiguous(memory_format=torch.channels_last)
        sizes.append((len(images), len(labels)))
    assert sizes == [(32, 32)] * 3 + [(4, 4)]


@pytest.mark.parametrize(("arch", "channels"), NETWORKS)
@pytest.mark.parametrize("deterministic", [False, True])
def test_forward_pass_and_loss_of_a_training_step(arch, channels, deterministic, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)  # it needs a real GPU
    net = build(arch, channels)
    if deterministic:
        precision.make_deterministic(net)
    images, labels = batch(channels)
    step = make_step(net.train(), torch.optim.SGD(net.parameters(), lr=0.1))
    loss, correct = step(images, labels, len(labels))
    assert loss.device == correct.device == GPU
    assert (loss.shape, correct.shape) == ((), ())


@pytest.mark.parametrize(("arch", "channels"), NETWORKS)
def test_evaluation(arch, channels):
    net = build(arch, channels)
    check_values_are_needed_only_at_the_end(lambda batches: evaluate(net, batches, "test"), channels)


@pytest.mark.parametrize(("arch", "channels"), [*NETWORKS, ("densenet121", 3)])
def test_resetting_layers(arch, channels, monkeypatch):
    monkeypatch.setattr(torch, "equal", lambda *weights: False)  # it asks for values, once a replacement
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**40, 2**40))
    net = build(arch, channels).eval()
    layers = models.layers(net, with_linear=True)
    replacements = [
        reinit.Replacement(layer.name, {name: torch.empty(p.shape) for name, p in layer.module.named_parameters()})
        for layer in (layers[0], layers[len(layers) // 2], layers[-1])
    ]
    check_values_are_needed_only_at_the_end(
        lambda batches: reinit.accuracies(net, replacements, batches), channels
    )
