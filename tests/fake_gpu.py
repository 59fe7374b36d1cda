"""What is computed on a GPU has all its tensors there, and never asks for a value before the end.

This needs no GPU: the fake tensors of PyTorch have a shape, a type and a device, and no values. An operation on
tensors of two devices fails as on a GPU; one that needs a value, for which the host would have to wait, fails too.
"""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import data
import models
from data.loading import _Loaders
from data.registry import ArraySource
from train import Forward
from utils import reinit
from utils.training import metrics, precision

GPU = torch.device("cuda", 0)
NETWORKS = [("lenet", 1), ("vgg11", 3), ("resnet18", 3), ("mlp_bn", 1), ("densenet121", 3)]


@pytest.fixture
def fake():
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def network(arch: str, channels: int):
    with GPU:
        return models.build(arch, 10, channels, (32, 32))


def batch(channels: int):
    return torch.empty(16, channels, 32, 32, device=GPU), torch.empty(16, dtype=torch.int64, device=GPU)


@pytest.mark.parametrize("augmentation", [False, True])
@pytest.mark.parametrize(
    ("options", "shuffle_seed"),
    [({}, None), ({"upscale": True}, None), ({"upscale_padding": True}, None), ({"unnormalize": True}, 1)],
    ids=str,
)
def test_batches_of_a_dataset_in_memory(fake, augmentation, options, shuffle_seed):
    loaders = _Loaders(data.info("cifar10"), 32, device=GPU, memory_format=torch.channels_last, **options)
    source = ArraySource(torch.empty(100, 3, 32, 32, dtype=torch.uint8), np.zeros(100, dtype=np.int64))
    loader = loaders.make(source, 1, random_order=True, augmentation=augmentation, shuffle_seed=shuffle_seed)
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
def test_training_step(fake, arch, channels, deterministic):
    net = network(arch, channels)
    if deterministic:
        precision.make_deterministic(net)
    loss, correct = Forward(net).train()(*batch(channels))
    assert loss.device == correct.device == GPU
    assert (loss.shape, correct.shape) == ((), ())


def values_are_asked_for_after_the_last(measure, channels: int) -> bool:
    """Whether `measure`, of an iterable of batches, needs no value before all batches are done."""
    done = []

    def batches():
        for _ in range(3):
            yield batch(channels)
            done.append(True)

    with pytest.raises(DataDependentOutputException):
        measure(batches())
    return len(done) == 3


@pytest.mark.parametrize(("arch", "channels"), NETWORKS)
def test_evaluation(fake, arch, channels):
    net = network(arch, channels)
    assert values_are_asked_for_after_the_last(
        lambda batches: metrics.evaluate(net, batches, "test set"), channels
    )


@pytest.mark.parametrize(("arch", "channels"), NETWORKS)
def test_resetting_layers(fake, arch, channels, monkeypatch):
    monkeypatch.setattr(reinit._Branch, "is_trained", lambda branch: False)  # which compares values, once
    monkeypatch.setattr(reinit, "_fit_in_memory", lambda replacements, device: True)  # which asks a GPU
    net = network(arch, channels).eval()
    layers = models.layers(net, with_linear=True)
    replacements = [
        reinit.Replacement(layer.name, {name: torch.empty(p.shape) for name, p in layer.module.named_parameters()})
        for layer in (layers if len(layers) < 25 else (layers[0], layers[len(layers) // 2], layers[-1]))
    ]
    assert values_are_asked_for_after_the_last(
        lambda batches: reinit.accuracies(net, replacements, batches), channels
    )
