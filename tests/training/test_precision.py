"""bfloat16, TF32 and deterministic algorithms."""

import json
import re
from pathlib import Path

import pytest
import torch
from programs import REFERENCE, run_main, same, shell, weights
from torch import nn

import models
import reinit_layers
import train
from utils.training import precision

LENET = ("--arch", "lenet", "--dataset", "fashion_mnist_mini", "--seed", 1)
QUICK = (*LENET, "--subsample-classes", 2, "--lr", 0.02, "--epochs", 1)
FOLDER = Path("fashion_mnist_mini_2/lenet/1")


def test_network_is_moved_in_the_layout_of_its_images_and_stays_the_same():
    normed = nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 4, 3))
    net = nn.Sequential(nn.Conv2d(4, 8, 3), normed, nn.Conv3d(1, 1, 3))
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    precision.move(net, torch.device("cpu"), amp=False, tf32=False)
    assert same(dict(net.state_dict()), before)
    for weight in (net[0].weight, normed.parametrizations.weight.original):
        assert weight.is_contiguous(memory_format=torch.channels_last)


# bfloat16


def test_network_trained_in_bfloat16_is_close_and_has_float32_weights(capsys):
    assert run_main(train, *QUICK, "--models-path", "full") == 0
    assert run_main(train, *QUICK, "--models-path", "half", "--amp") == 0
    losses = re.findall(r"^epoch 0 .*: loss ([\d.]+)", capsys.readouterr().out, re.M)
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=0.05)
    full, half = (weights(Path(folder, FOLDER, "lenet_1.pt")) for folder in ("full", "half"))
    for name, weight in half.items():
        assert weight.dtype == torch.float32
        assert not torch.equal(weight, full[name])
        assert torch.allclose(weight, full[name], atol=0.02)


@pytest.mark.long
def test_layers_are_reset_in_bfloat16():
    results = {}
    for amp in (False, True):
        options = ("--load-from", REFERENCE / "lenet_2.tar", "--rand", *(["--amp"] if amp else []))
        assert run_main(reinit_layers, *LENET, *options) == 0
        results[amp] = json.loads(Path("results/fashion_mnist_mini/lenet/1/reinit_lenet_2.json").read_text())
        assert results[amp]["provenance"]["arguments"]["amp"] is amp
    assert results[True]["init_from_epoch"] != results[False]["init_from_epoch"]
    assert results[True]["top1_test"] == pytest.approx(results[False]["top1_test"], abs=1.5)


# Deterministic pooling


@pytest.mark.parametrize(("size", "output"), [((1, 1), 7), ((9, 9), (1, 2)), ((28, 20), (3, 7)), ((5, 3), (3, 2))])
def test_deterministic_pooling_equals_adaptive_average_pooling(size, output):
    net = nn.Sequential(nn.AdaptiveAvgPool2d(output))
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    expected = net(x)
    direction = torch.randn_like(expected)
    (expected_gradient,) = torch.autograd.grad((expected * direction).sum(), x)
    precision.make_deterministic(net)
    assert isinstance(net[0], precision.SlicedAveragePool2d)
    torch.testing.assert_close(net(x), expected)
    (gradient,) = torch.autograd.grad((net(x) * direction).sum(), x)
    torch.testing.assert_close(gradient, expected_gradient)


def test_pooling_to_one_value_is_not_replaced_but_that_of_vgg_is():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((1, 1)))
    precision.make_deterministic(net)
    assert all(isinstance(module, nn.AdaptiveAvgPool2d) for module in net)
    with torch.device("meta"):
        vgg = models.build("vgg11", 10, 3, (64, 64))
        precision.make_deterministic(vgg)
        assert isinstance(vgg.avgpool.pool, precision.SlicedAveragePool2d)
        assert vgg(torch.empty(2, 3, 64, 64)).shape == (2, 10)


def test_deterministic_pooling_in_bfloat16_is_not_biased():
    x = (torch.rand(64, 32, 7, 7) + 1).bfloat16()
    exact = nn.functional.adaptive_avg_pool2d(x.double(), (3, 3))
    pooled = precision.SlicedAveragePool2d((3, 3))(x)
    assert pooled.dtype == torch.bfloat16
    assert abs((pooled.double() / exact - 1).mean()) < 2e-4  # factors of 1/3 in bfloat16 would give 3e-3


# Settings


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_set_for_products_and_convolutions(tf32, restore_precision):
    precision.set_precision(torch.device("cuda"), tf32=not tf32)
    precision.set_precision(torch.device("cuda"), tf32=tf32)
    assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == tf32
    assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")  # the compiler reads this
    assert torch.backends.cudnn.benchmark


# On a GPU


@pytest.mark.cuda
@pytest.mark.parametrize(
    "options", [(), ("--amp",), ("--compile",), ("--compile", "--tf32"), ("--compile", "--amp")], ids=str
)
def test_deterministic_run_on_a_gpu_is_repeatable_and_resumed_equals_uninterrupted(options):
    options = (*LENET, "--cuda", "--deterministic", "--shuffle", "--snapshot-every", 1, *options)
    options = (*options, "--batch-size", 100)  # no smaller last batch, which would be compiled too
    for folder, parts in (("whole", [2]), ("parts", [1, 2])):
        for epochs in parts:  # as processes, because settings last as long as the process
            resume = ("--resume-from", "latest", "--epochs", epochs, "--models-path", folder)
            finished = shell("train.py", *options, *resume)
            assert finished.returncode == 0, finished.stderr
    whole, parts = (weights(f"{folder}/fashion_mnist_mini/lenet/1/lenet_2.pt") for folder in ("whole", "parts"))
    for name, weight in whole.items():
        assert torch.equal(weight, parts[name]), name


@pytest.mark.cuda
def test_float32_on_a_gpu_is_rounded_to_tf32_only_if_asked_for(restore_precision):
    # A product, because cuDNN may choose float32 for a convolution.
    a, b = torch.randn(2, 1024, 1024, device="cuda")
    errors = {}
    for tf32 in (False, True):
        precision.set_precision(torch.device("cuda"), tf32=tf32)
        errors[tf32] = ((a @ b).double() - a.double() @ b.double()).abs().max().item()
    assert errors[False] < 2e-3 < 1e-2 < errors[True]
