"""torchvision's ConvNets: names, structure, segments, layers, and the programs on them.

The tests take one network of every family; with --torture, every network.
"""

import functools
import itertools
import re
import warnings

import pytest
import torch
import torchvision.transforms.v2
from programs import refused, results, run_main
from torch import nn
from torchvision.models import get_model, get_model_weights

import compute_projections
import models
import train

#: One network of every family -> number of its layers in each stage, according to its paper.
FAMILIES = {
    "convnext_tiny": (4, 4, 10, 4),  # 3, 3, 9, 3 blocks; the stem and the convolutions between the stages
    "densenet121": (1, 6, 12, 24, 16),
    "efficientnet_b0": (2, 2, 2, 6, 5),
    "efficientnet_v2_s": (3, 4, 4, 15, 15),
    "googlenet": (1, 1, 4, 10, 4),  # two layers in an inception block: its 5x5 convolutions are 3x3 in torchvision
    "inception_v3": (3, 1, 9, 27, 14),
    "mnasnet0_5": (2, 3, 3, 5, 5),
    "mobilenet_v2": (2, 2, 3, 7, 4),
    "mobilenet_v3_small": (1, 1, 2, 5, 3),
    "regnet_x_400mf": (1, 1, 2, 7, 12),
    "regnet_y_400mf": (1, 1, 3, 6, 6),
    "resnext50_32x4d": (1, 3, 4, 6, 3),
    "shufflenet_v2_x0_5": (1, 0, 5, 9, 5),  # 4, 8, 4 blocks, two layers in the first of each
    "squeezenet1_0": (1, 3, 4, 1),
}
SIBLINGS = {"efficientnet_v2_s", "regnet_y_400mf", "resnext50_32x4d"}  #: share the class of another one
#: The fully connected layers. SqueezeNet ends in a 1x1 convolution.
LINEAR = {"mobilenet_v3_small": ["classifier.0", "classifier.3"], "squeezenet1_0": []}
OURS = "lenet fcn3 vgg11_quarter vgg11_eighth mlp mlp_bn vgg19_orig alexnet resnet18 resnet34 resnet50".split()
OURS += [f"vgg{depth}{bn}" for depth in (11, 13, 16, 19) for bn in ("", "bn")]


@pytest.fixture
def networks(torture, count):
    names = models.other_names() if torture else [arch for arch in FAMILIES if arch not in SIBLINGS]
    count("architectures of torchvision", len(names))
    return names


@functools.cache
def structure(arch, num_classes=10, in_channels=3):
    return models.structure(arch, num_classes, in_channels)


def randomize(net):
    """Set weights and running statistics with which outputs depend on the image."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return net.eval()


# Names


def test_every_convnet_of_torchvision_has_one_name():
    theirs = set(torchvision.models.list_models(torchvision.models))
    transformers = {name for name in theirs if name.startswith(("vit_", "swin_", "maxvit"))}
    renamed = {name for name in theirs if re.fullmatch(r"vgg\d+_bn", name)}
    assert set(models.other_names()) == theirs - transformers - set(OURS) - renamed
    assert len(models.other_names()) == len(set(models.other_names())) >= 56
    assert set(models.names()) >= set(OURS)


@pytest.mark.parametrize(
    ("arch", "near"),
    [("lenett", "lenet"), ("DenseNet121", "densenet121"), ("resnet 18", "resnet18"), ("vit", None)],
)
def test_unsupported_names_are_refused_with_the_nearest_names(arch, near, capsys):
    line = refused(compute_projections, capsys, "--arch", arch, "--dataset", "mnist")
    assert f"--arch {arch}: no such architecture" in line
    assert (f"did you mean {near}" in line) if near else ("did you mean" not in line)
    assert len(line) < 250


def test_torchvisions_names_of_our_networks_are_refused_with_ours(capsys):
    assert "vgg11bn " in refused(compute_projections, capsys, "--arch", "vgg11_bn", "--dataset", "mnist")


# Structure


def test_networks_have_as_many_parameters_as_torchvisions(networks):
    for arch in networks:
        net = structure(arch, 1000)
        expected = get_model_weights(arch).DEFAULT.meta["num_params"]
        if arch == "inception_v3":  # without its auxiliary head
            expected -= 3_326_696  # 768*128 + 128*768*25 + 768*1000 + 1000 weights, and batch norm
        assert sum(parameter.numel() for parameter in net.parameters()) == expected, arch
        assert type(net).__module__.startswith("torchvision.models.")


def test_networks_take_grey_and_colour_images_and_any_number_of_classes(networks):
    kept = ("out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    for arch in (*networks, "alexnet", "resnet18", "vgg11bn"):
        colour, grey = structure(arch, 7), structure(arch, 7, 1)
        # In training mode, auxiliary heads would give more than logits.
        assert colour.train()(torch.empty(2, 3, 96, 96, device="meta")).shape == (2, 7), arch
        assert grey.eval()(torch.empty(2, 1, 96, 96, device="meta")).shape == (2, 7), arch
        convolutions = [name for name, module in colour.named_modules() if isinstance(module, nn.Conv2d)]
        shapes = [{name: weight.shape for name, weight in net.named_parameters()} for net in (colour, grey)]
        differing = [name for name in shapes[0] if shapes[0][name] != shapes[1][name]]
        assert differing == [f"{convolutions[0]}.weight"], arch
        first, other = (net.get_submodule(convolutions[0]) for net in (grey, colour))
        assert all(getattr(first, option) == getattr(other, option) for option in kept)


@pytest.mark.parametrize("arch", ["alexnet", "resnet18", "mobilenet_v3_small", "regnet_x_400mf", "googlenet"])
def test_networks_have_torchvisions_initialization(arch):
    options = {"aux_logits": False, "init_weights": True} if arch == "googlenet" else {}
    torch.manual_seed(5)
    theirs = get_model(arch, num_classes=7, **options).state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.manual_seed(5)
        ours = models.build(arch, 7, image_size=(64, 64)).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.parametrize("arch", ["googlenet", "inception_v3"])
def test_inception_networks_take_images_normalized_for_imagenet(arch):
    """torchvision's ImageNet weights for them were trained on pixel values in [-1, 1]."""
    side = 80
    torch.manual_seed(0)
    pixels = torch.rand(1, 3, side, side)
    normalized = torchvision.transforms.v2.functional.normalize(
        pixels, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]
    )
    ours = randomize(models.build(arch, 5))
    theirs = get_model(arch, num_classes=5, aux_logits=False, init_weights=False).eval()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(normalized), theirs(2 * pixels - 1), rtol=1e-3, atol=1e-4)
        assert not torch.allclose(ours(normalized), theirs(normalized), rtol=1e-2)


# Segments


def test_segments_run_one_after_another_equal_the_network(networks):
    for arch in networks:
        torch.manual_seed(0)
        net = randomize(models.build(arch, 5, 3))
        segments = models.segments(net)
        assert len(segments) >= 18, arch
        parameters = [id(parameter) for segment in segments for parameter in segment.parameters()]
        assert sorted(parameters) == sorted(map(id, net.parameters()))
        for layout in (torch.contiguous_format, torch.channels_last):
            images = torch.randn(2, 3, 99, 99).to(memory_format=layout)
            with torch.inference_mode():
                x = images.clone()
                for segment in segments:
                    x = segment(x)
                expected = net(images)
            assert expected.isfinite().all(), arch
            assert not torch.allclose(expected[0], expected[1], rtol=1e-3), arch
            assert x.equal(expected), arch


class Twice(torchvision.models.SqueezeNet):
    def forward(self, images):
        return 2 * super().forward(images)


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def test_classes_with_another_forward_method_are_not_cut():
    for net in (Twice(), get_model("googlenet", num_classes=5, init_weights=False, aux_logits=True)):
        assert models.segments(net) == [net]
    net = models.build("squeezenet1_1", 5).eval()
    block = Residual(nn.Conv2d(512, 512, 3, padding=1))
    net.features.add_module("more", block)
    assert block in models.segments(net)


# Layers


@pytest.mark.parametrize("arch", FAMILIES)
def test_number_of_layers_in_each_stage(arch):
    """The fully connected layers are in a stage of their own."""
    found = models.layers(structure(arch))
    expected = [(stage, block) for stage, blocks in enumerate(FAMILIES[arch]) for block in range(blocks)]
    assert [(layer.stage, layer.block) for layer in found] == expected
    with_linear = models.layers(structure(arch), with_linear=True)
    linear = with_linear[len(found) :]
    assert with_linear[: len(found)] == found
    names = LINEAR.get(arch)
    assert [(layer.stage, layer.block) for layer in linear] == [
        (len(FAMILIES[arch]), block) for block in range(1 if names is None else len(names))
    ]
    assert names is None or [layer.name for layer in linear] == names


def test_layers_are_in_the_order_of_execution_and_stages_are_resolutions(networks):
    for arch in networks:
        net = structure(arch).eval()
        layers = models.layers(net)
        sides: dict[str, int] = {}  # of the output of each convolution, in the order of execution
        hooks = [
            module.register_forward_hook(
                lambda _, images, output, name=name, sides=sides: sides.update({name: output.shape[-1]})
            )
            for name, module in net.named_modules()
            if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)
        ]
        net(torch.empty(1, 3, 224, 224, device="meta"))
        for hook in hooks:
            hook.remove()
        assert [layer.name for layer in layers] == list(sides), arch
        if arch == "inception_v3":  # it also loses resolution by convolutions without padding
            continue
        for before, after in itertools.pairwise(layers):
            side_before, side_after = sides[before.name], sides[after.name]
            assert (side_before > side_after) == (before.stage < after.stage), arch


# The programs


def test_mnasnet_is_trained_continued_and_measured(capsys):
    """MNASNet is the difficult case: it refuses weights without a version, and snapshots have none."""
    options = ("--arch", "mnasnet0_5", "--dataset", "fashion_mnist_mini", "--subsample-classes", 2, "--seed", 1)
    run_options = (*options, "--shuffle", "--snapshot-every", 1, "--resume-from", "latest", "--batch-size", 200)
    assert run_main(train, *run_options, "--epochs", 1) == 0
    assert run_main(train, *run_options, "--epochs", 2) == 0
    assert "epoch 1 (2/2)" in capsys.readouterr().out
    final = "models/fashion_mnist_mini_2/mnasnet0_5/1/mnasnet0_5_2.pt"
    assert run_main(compute_projections, *options, "--load-from", final, "--normalize") == 0
    measured = results("results/fashion_mnist_mini_2/mnasnet0_5/1/mnasnet0_5_2.json")["0"]["1"]
    assert measured["name"] == "layers.3"
    w = torch.load(final)["layers.3.weight"].double().reshape(16, 9)  # each of the 16 filters sees one channel
    assert measured["projections"] == pytest.approx((w.sum(1) / w.norm(dim=1) / 3).tolist(), abs=1e-9)
