"""The networks of the papers: names, structure, initialization, segments and layers."""

import math

import pytest
import torch
import torchvision
from programs import REFERENCE
from torch import nn
from torch.nn import functional

import models
from models import narrow

#: 3x3 convolutions in each stage, by the depth of the VGG.
VGG = {"11": (1, 1, 2, 2, 2), "13": (2, 2, 2, 2, 2), "16": (2, 2, 3, 3, 3), "19": (2, 2, 4, 4, 4)}
#: Our name -> torchvision's.
TORCHVISION = {
    **{name: name for name in ("alexnet", "resnet18", "resnet34", "resnet50")},
    **{f"vgg{depth}{bn}": f"vgg{depth}{bn and '_bn'}" for depth in VGG for bn in ("", "bn")},
}
NARROW = ("vgg11_quarter", "vgg11_eighth")
ARCHITECTURES = ("lenet", "vgg19_orig", "mlp", "mlp_bn", "fcn3", *NARROW, *TORCHVISION)


def structure(arch, num_classes=10, in_channels=3, image_size=(224, 224)):
    return models.structure(arch, num_classes, in_channels, image_size)


def shapes(net):
    return {name: tuple(parameter.shape) for name, parameter in net.named_parameters()}


def randomize_batch_norm(net):
    """Set running statistics that change the output in evaluation mode."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return net


# Names


@pytest.mark.parametrize("arch", ["lenet", "vgg19_orig"])
def test_pretrained_is_an_error_for_networks_without_imagenet_weights(arch):
    with pytest.raises(models.ModelError, match=f"--pretrained.* {arch};"):
        models.build(arch, 1000, image_size=(224, 224), pretrained=True)


# Structure


@pytest.mark.parametrize(("arch", "torchvision_name"), [*TORCHVISION.items(), ("vgg19_orig", "vgg19")])
def test_large_networks_have_torchvisions_structure(arch, torchvision_name):
    net = structure(arch, 12)
    with torch.device("meta"):
        theirs = torchvision.models.get_model(torchvision_name, num_classes=12)
    assert type(net) is type(theirs)
    if arch.startswith("vgg"):
        net.avgpool = net.avgpool.pool
        assert str(net.classifier[0]) == f"LinearOfPooled{str(theirs.classifier[0]).removeprefix('Linear')}"
        net.classifier[0] = theirs.classifier[0]
    assert str(net) == str(theirs)
    assert shapes(net) == shapes(theirs)


def test_vgg_equals_that_of_torchvision():
    torch.manual_seed(5)
    ours = models.build("vgg11bn", 3).eval()
    torch.manual_seed(5)
    theirs = torchvision.models.vgg11_bn(num_classes=3).eval()
    for side in (32, 64):
        images = torch.randn(2, 3, side, side)
        with torch.inference_mode():
            torch.testing.assert_close(ours(images), theirs(images))


def test_narrow_vgg_would_be_torchvisions_vgg_with_all_channels(monkeypatch):
    monkeypatch.setitem(narrow.DIVISORS, "vgg11_quarter", 1)
    torch.manual_seed(5)
    ours = models.build("vgg11_quarter", 3)
    torch.manual_seed(5)
    theirs = torchvision.models.vgg11(num_classes=3)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize(("arch", "divisor"), [("vgg11_quarter", 4), ("vgg11_eighth", 8)])
def test_narrow_vgg_has_a_share_of_the_channels(arch, divisor):
    widths = [layer.module.weight.shape[0] for layer in models.layers(structure(arch), with_linear=True)]
    assert widths == [width // divisor for width in (64, 128, 256, 256, 512, 512, 512, 512, 4096, 4096)] + [10]


def test_fcn3_equals_a_forward_pass_by_hand():
    torch.manual_seed(0)
    net = models.build("fcn3", 10, 1, (28, 28))
    images = torch.randn(4, 1, 28, 28)
    weights = net.state_dict()
    found = images.flatten(1)
    for name in ("hidden1.0", "hidden2.0", "hidden3.0"):
        assert len(weights[f"{name}.weight"]) == 256
        assert weights[f"{name}.weight"].std().item() == pytest.approx(math.sqrt(2 / found.shape[1]), rel=0.02)
        found = functional.linear(found, weights[f"{name}.weight"], weights[f"{name}.bias"]).relu()
    found = functional.linear(found, weights["classifier.weight"], weights["classifier.bias"])
    torch.testing.assert_close(net(images).detach(), found)


def test_lenet_equals_a_forward_pass_by_hand():
    torch.manual_seed(0)
    net = models.build("lenet", 10, 3).eval()
    images = torch.randn(4, 3, 32, 32)
    weights = net.state_dict()
    x = images
    for first, second in ((0, 2), (5, 7), (10, 12)):
        for layer in (first, second):
            weight, bias = weights[f"features.{layer}.weight"], weights[f"features.{layer}.bias"]
            x = torch.conv2d(x, weight, bias, padding=1).clamp(min=0)
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
    # The adaptive pooling from 4x4 to 3x3 averages overlapping windows of two rows and two columns.
    x = x.unfold(2, 2, 1).unfold(3, 2, 1).mean((-1, -2)).reshape(4, -1)
    for layer in (0, 3, 6):
        x = x @ weights[f"classifier.{layer}.weight"].T + weights[f"classifier.{layer}.bias"]
        x = x.clamp(min=0) if layer < 6 else x
    torch.testing.assert_close(net(images), x)


@pytest.mark.parametrize("arch", ["mlp", "mlp_bn"])
def test_mlp_equals_a_forward_pass_by_hand(arch):
    """A bottleneck is two linear layers with nothing between them, batch norm, and ReLU."""
    torch.manual_seed(0)
    net = randomize_batch_norm(models.build(arch, 10, 1, (6, 5))).eval()
    weights = net.state_dict()
    images = torch.randn(3, 1, 6, 5)

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x = images.reshape(3, 30)
    for number in (1, 2, 3, 4):
        for layer in ("fc",) if number == 1 else ("fc1", "fc2"):
            x = linear(x, f"hidden{number}.{layer}")
        if arch == "mlp_bn":
            bn = {key: weights[f"hidden{number}.bn.{key}"] for key in ("running_mean", "running_var", "weight")}
            x = (x - bn["running_mean"]) / (bn["running_var"] + 1e-5).sqrt() * bn["weight"]
        x = x.clamp(min=0)
    torch.testing.assert_close(net(images), linear(x, "classifier"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ["mlp", "mlp_bn"])
def test_mlp_parameters_have_their_published_names_and_sizes(arch):
    expected = {"hidden1.fc": (4096, 3 * 8 * 9), "classifier": (10, 4096)}
    for number in (2, 3, 4):
        expected |= {f"hidden{number}.fc1": (1024, 4096), f"hidden{number}.fc2": (4096, 1024)}
    shapes_expected = {f"{name}.weight": size for name, size in expected.items()}
    shapes_expected |= {f"{name}.bias": size[:1] for name, size in expected.items()}
    if arch == "mlp_bn":
        shapes_expected |= {f"hidden{n}.bn.{kind}": (4096,) for n in range(1, 5) for kind in ("weight", "bias")}
    assert shapes(structure(arch, 10, 3, (8, 9))) == shapes_expected


# Image size


@pytest.mark.parametrize(
    ("arch", "too_small", "large_enough"),
    [
        ("lenet", (7, 8), (8, 8)),
        ("alexnet", (62, 63), (63, 63)),
        ("vgg19bn", (32, 31), (32, 32)),
        ("densenet121", (28, 28), (29, 29)),
        ("inception_v3", (74, 74), (75, 75)),
    ],
)
def test_images_too_small_for_the_architecture_are_an_error(arch, too_small, large_enough):
    structure(arch, image_size=large_enough)
    for size in (too_small, (1, 1)):  # PyTorch's errors differ
        with pytest.raises(models.ModelError, match=rf"{arch}.* {size[0]}x{size[1]} .*--upscale"):
            structure(arch, image_size=size)


@pytest.mark.parametrize("arch", ["lenet", "resnet18"])
def test_checking_the_image_size_draws_no_random_numbers(arch):
    states = []
    for image_size in ((9, 9), None):
        torch.manual_seed(3)
        models.build(arch, 10, 1, image_size)
        states.append(torch.get_rng_state())
    assert states[0].equal(states[1])


# Initialization


def test_lenet_with_seed_1_equals_the_reference_bit_for_bit():
    reference = torch.load(REFERENCE / "lenet_init_0.pt", weights_only=True)
    torch.manual_seed(1)
    ours = models.build("lenet", 10, 1, (28, 28)).state_dict()
    assert list(ours) == list(reference)
    for name, values in reference.items():
        assert ours[name].dtype == values.dtype
        assert ours[name].equal(values), name


@pytest.mark.parametrize("arch", ["mlp", "mlp_bn"])
def test_mlp_is_kaiming_normal_with_fan_out_and_zero_biases(arch):
    torch.manual_seed(7)
    net = models.build(arch, 10, 1, (8, 8))
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / layer.out_features), rel=0.02)
            assert layer.weight.abs().max() > 3 * layer.weight.std()  # not uniform
            assert not layer.bias.any()


def test_vgg19_orig_has_normal_weights_in_the_authors_order_of_draws_and_zero_biases():
    torch.manual_seed(7)
    net = models.build("vgg19_orig", 10, in_channels=1)
    ours = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    torch.manual_seed(7)
    theirs = torchvision.models.vgg19(num_classes=10)
    theirs.features[0] = nn.Conv2d(1, 64, 3, padding=1)
    layers = [module for module in theirs.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer, expected in zip(ours, layers, strict=True):
        assert layer.weight.equal(nn.init.normal_(expected.weight, std=0.01))
        assert not layer.bias.any()


@pytest.mark.parametrize("arch", ["alexnet", "resnet18"])
def test_first_convolution_for_grey_images_is_kaiming_normal_with_zero_bias(arch):
    torch.manual_seed(7)
    net = models.build(arch, 10, 1)
    first = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    fan_out = first.out_channels * math.prod(first.kernel_size)
    assert first.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
    assert first.weight.abs().max() > 2.5 * first.weight.std()
    assert first.bias is None or not first.bias.any()


# Segments


@pytest.mark.parametrize(
    ("arch", "in_channels", "side", "at_least"),
    [
        ("lenet", 1, 28, 24),
        ("mlp_bn", 1, 8, 6),
        ("alexnet", 3, 64, 22),
        ("vgg11bn", 3, 32, 38),
        ("resnet18", 3, 40, 15),
        ("resnet50", 3, 40, 23),
    ],
)
def test_segments_run_one_after_another_equal_the_network(arch, in_channels, side, at_least):
    torch.manual_seed(0)
    net = randomize_batch_norm(models.build(arch, 5, in_channels, (side, side))).eval()
    segments = models.segments(net)
    assert len(segments) >= at_least
    images = torch.randn(2, in_channels, side, side)
    with torch.no_grad():
        x = images.clone()
        for segment in segments:
            x = segment(x)
        assert x.equal(net(images))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_each_segment_holds_at_most_one_layer_or_one_block(arch):
    net = structure(arch, image_size=(64, 64))
    segments = models.segments(net)
    in_segments = [id(parameter) for segment in segments for parameter in segment.parameters()]
    assert sorted(in_segments) == sorted(id(parameter) for parameter in net.parameters())
    measured = {id(layer.module) for layer in models.layers(net, with_linear=True)}
    largest = max(sum(id(module) in measured for module in segment.modules()) for segment in segments)
    assert largest <= (2 if arch.startswith(("resnet", "mlp")) else 1)


# Layers


def layers_by_stage(arch, with_linear=False):
    """Return the names of the layers of each stage; their blocks must count from 0."""
    net = structure(arch, image_size=(64, 64))
    stages: dict[int, list[str]] = {}
    for layer in models.layers(net, with_linear):
        names = stages.setdefault(layer.stage, [])
        assert layer.block == len(names)
        assert layer.module is net.get_submodule(layer.name)
        names.append(layer.name)
    assert list(stages) == list(range(len(stages)))
    return list(stages.values())


def resnet(blocks, convolutions):
    names = [[f"{block}.{name}" for block in range(count) for name in convolutions] for count in blocks]
    return [["conv1"], *([f"layer{stage}.{name}" for name in names[stage - 1]] for stage in (1, 2, 3, 4))]


#: The convolutional layers of each stage, and the fully connected layers.
LAYERS = {
    "lenet": (
        [["features.0", "features.2"], ["features.5", "features.7"], ["features.10", "features.12"]],
        ["classifier.0", "classifier.3", "classifier.6"],
    ),
    "alexnet": (
        [["features.0"], ["features.3"], ["features.6", "features.8", "features.10"]],
        ["classifier.1", "classifier.4", "classifier.6"],
    ),
    "mlp": ([], ["hidden1.fc", *(f"hidden{n}.fc{k}" for n in (2, 3, 4) for k in (1, 2)), "classifier"]),
    "resnet18": (resnet((2, 2, 2, 2), ("conv1", "conv2")), ["fc"]),
    "resnet50": (resnet((3, 4, 6, 3), ("conv2",)), ["fc"]),  # without its 1x1 convolutions
}


@pytest.mark.parametrize("arch", LAYERS)
def test_layers_of_each_stage(arch):
    convolutional, linear = LAYERS[arch]
    assert layers_by_stage(arch) == convolutional
    assert layers_by_stage(arch, with_linear=True) == [*convolutional, linear]


@pytest.mark.parametrize("arch", [name for name in ARCHITECTURES if name.startswith("vgg")])
def test_vgg_stages_count_the_pools(arch):
    found = layers_by_stage(arch, with_linear=True)
    assert [len(names) for names in found] == [*VGG[arch[3:5]], 3]
    assert layers_by_stage(arch) == found[:-1]
