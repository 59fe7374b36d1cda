"""The networks: structure, initialization, ImageNet weights, and the questions asked of every network."""

import hashlib
import math
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from programs import REFERENCE
from torch import nn

import models
from models import zoo

VGG = {
    "11": "64 M 128 M 256 256 M 512 512 M 512 512 M",
    "13": "64 64 M 128 128 M 256 256 M 512 512 M 512 512 M",
    "16": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",
    "19": "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512 M",
}
ARCHITECTURES = (
    *("lenet", "alexnet", "vgg19_orig", "mlp", "mlp_bn", "resnet18", "resnet34", "resnet50"),
    *(f"vgg{depth}{bn}" for depth in VGG for bn in ("", "bn")),
)
TORCHVISION = {
    "alexnet": "alexnet",
    **{f"vgg{depth}": f"vgg{depth}" for depth in VGG},
    **{f"vgg{depth}bn": f"vgg{depth}_bn" for depth in VGG},
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
}
#: What torchvision's documentation says of its networks for 1,000 classes.
PARAMETERS = {
    "alexnet": 61_100_840,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11bn": 132_868_840,
    "vgg13bn": 133_053_736,
    "vgg16bn": 138_365_992,
    "vgg19bn": 143_678_248,
    "vgg19_orig": 143_667_240,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
}


def structure(arch, num_classes=10, in_channels=3, image_size=(224, 224)):
    with torch.device("meta"):
        return models.build(arch, num_classes, in_channels, image_size)


def kinds(sequence):
    return [type(module).__name__ for module in sequence]


def shapes(net):
    return {name: tuple(parameter.shape) for name, parameter in net.named_parameters()}


def one_line(error) -> str:
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert "\x1b" not in message
    return message


def randomize_batch_norm(net):
    """Running statistics unlike those of a fresh network, so that evaluation mode does not do nothing."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return net


# Names


def test_the_sixteen_architectures_are_there():
    assert set(ARCHITECTURES) <= set(models.names())  # beside those that a user has added
    assert len(set(ARCHITECTURES)) == 16


def test_unknown_architecture_is_an_error_that_names_it_and_what_there_is():
    with pytest.raises(models.ModelError) as error:
        models.build("lenett", 10)
    message = one_line(error)
    assert "lenett" in message
    assert all(name in message for name in ARCHITECTURES)


@pytest.mark.parametrize("arch", ["lenet", "mlp", "mlp_bn", "vgg19_orig"])
def test_networks_without_imagenet_weights_say_so(arch):
    with pytest.raises(models.ModelError) as error:
        models.build(arch, 1000, image_size=(224, 224), pretrained=True)
    message = one_line(error)
    assert "--pretrained" in message
    assert arch in message


def test_an_architecture_cannot_be_registered_twice():
    with pytest.raises(ValueError, match="lenet"):
        models.register("lenet")(lambda *args: None)


# Structure


@pytest.mark.parametrize("arch", PARAMETERS)
def test_networks_have_as_many_parameters_as_published(arch):
    assert sum(parameter.numel() for parameter in structure(arch, 1000).parameters()) == PARAMETERS[arch]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_network_takes_grey_and_colour_images_and_any_number_of_classes(arch):
    for in_channels, num_classes in ((1, 10), (3, 7)):
        net = structure(arch, num_classes, in_channels, (64, 64))
        with torch.device("meta"):
            assert net(torch.empty(2, in_channels, 64, 64)).shape == (2, num_classes)


@pytest.mark.parametrize("arch", TORCHVISION)
def test_the_large_networks_are_those_of_torchvision(arch):
    net = structure(arch, 12)
    with torch.device("meta"):
        theirs = torchvision.models.get_model(TORCHVISION[arch], num_classes=12)
    assert type(net) is type(theirs)
    if arch.startswith("vgg"):  # which leave out copies of pixels
        net.avgpool = net.avgpool.pool
        assert str(net.classifier[0]) == f"LinearOfPooled{str(theirs.classifier[0]).removeprefix('Linear')}"
        net.classifier[0] = theirs.classifier[0]
    assert str(net) == str(theirs)
    assert shapes(net) == shapes(theirs)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (2, 3), (7, 7), (9, 8)])
def test_linear_layer_of_pooled_maps_is_pooling_and_the_layer(size):
    pool, linear = nn.AdaptiveAvgPool2d((7, 7)), nn.Linear(3 * 49, 4).double()
    theirs = nn.Sequential(pool, nn.Flatten(), linear)
    ours = nn.Sequential(zoo.PoolUnlessOnePixel(pool), nn.Flatten(), zoo.LinearOfPooled.like(linear))
    x = torch.randn(5, 3, *size, dtype=torch.float64, requires_grad=True)
    values, gradients = [], []
    for net in (theirs, ours):
        values.append(net(x))
        gradients.append(torch.autograd.grad(values[-1].square().sum(), [x, linear.weight, linear.bias]))
    torch.testing.assert_close(values[1], values[0])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("side", [32, 64])
def test_vgg_computes_what_that_of_torchvision_does(side):
    torch.manual_seed(5)
    ours = models.build("vgg11bn", 3, image_size=(side, side)).eval()
    torch.manual_seed(5)
    theirs = torchvision.models.vgg11_bn(num_classes=3).eval()
    images = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize("arch", ["resnet18", "alexnet", "vgg11"])
def test_the_large_networks_are_initialized_as_torchvision_does(arch):
    torch.manual_seed(5)
    ours = models.build(arch, 3, image_size=(224, 224)).state_dict()
    torch.manual_seed(5)
    theirs = torchvision.models.get_model(arch, num_classes=3).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.parametrize("arch", [name for name in TORCHVISION if name.startswith("vgg")] + ["vgg19_orig"])
def test_vgg_has_the_widths_of_its_paper(arch):
    features = structure(arch).features
    measured = [module for module in features if isinstance(module, nn.Conv2d | nn.MaxPool2d)]
    widths = ["M" if isinstance(module, nn.MaxPool2d) else str(module.out_channels) for module in measured]
    assert " ".join(widths) == VGG[arch[3:5]]
    assert any(isinstance(module, nn.BatchNorm2d) for module in features) == arch.endswith("bn")


def test_lenet_is_the_nine_layer_variant():
    net = structure("lenet", 10, 1, (28, 28))
    convolutions = [module for module in net.features if isinstance(module, nn.Conv2d)]
    assert kinds(net.features) == (["Conv2d", "ReLU"] * 2 + ["MaxPool2d"]) * 3
    assert [module.out_channels for module in convolutions] == [6, 6, 16, 16, 64, 64]
    assert all(module.kernel_size == (3, 3) and module.padding == (1, 1) for module in convolutions)
    assert all(module.kernel_size == 2 for module in net.features if isinstance(module, nn.MaxPool2d))
    assert net.avgpool.output_size in (3, (3, 3))
    assert kinds(net.classifier) == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert [module.p for module in net.classifier if isinstance(module, nn.Dropout)] == [0.5, 0.5]
    sizes = [(m.in_features, m.out_features) for m in net.classifier if isinstance(m, nn.Linear)]
    assert sizes == [(576, 120), (120, 84), (84, 10)]


def test_lenet_computes_what_its_layers_say():
    """Against a forward pass written out by hand."""
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
    # 4x4 to 3x3: windows of two rows and columns, overlapping.
    x = x.unfold(2, 2, 1).unfold(3, 2, 1).mean((-1, -2)).reshape(4, -1)
    for layer in (0, 3, 6):
        x = x @ weights[f"classifier.{layer}.weight"].T + weights[f"classifier.{layer}.bias"]
        x = x.clamp(min=0) if layer < 6 else x
    torch.testing.assert_close(net(images), x)


@pytest.mark.parametrize("arch", ["mlp", "mlp_bn"])
def test_mlp_parameters_have_the_names_and_sizes_of_the_design(arch):
    expected = {"hidden1.fc": (4096, 3 * 8 * 9), "classifier": (10, 4096)}
    for number in (2, 3, 4):
        expected |= {f"hidden{number}.fc1": (1024, 4096), f"hidden{number}.fc2": (4096, 1024)}
    shapes_expected = {f"{name}.weight": size for name, size in expected.items()}
    shapes_expected |= {f"{name}.bias": size[:1] for name, size in expected.items()}
    if arch == "mlp_bn":
        shapes_expected |= {f"hidden{n}.bn.{kind}": (4096,) for n in range(1, 5) for kind in ("weight", "bias")}
    assert shapes(structure(arch, 10, 3, (8, 9))) == shapes_expected


@pytest.mark.parametrize("arch", ["mlp", "mlp_bn"])
def test_mlp_computes_what_its_layers_say(arch):
    """Two linear layers of a bottleneck with nothing between them; batch norm, then ReLU."""
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


def test_mlp_drops_a_fifth_of_the_units_and_only_in_training():
    net = structure("mlp_bn", 10, 1, (6, 5))
    dropouts = [module for module in net.modules() if isinstance(module, nn.Dropout)]
    assert [module.p for module in dropouts] == [0.2] * 4
    for number in (1, 2):
        hidden = [kind for kind in kinds(net.get_submodule(f"hidden{number}").children()) if kind != "Linear"]
        assert hidden == ["Dropout", "BatchNorm1d", "ReLU"]


@pytest.mark.parametrize("arch", ["mlp", "mlp_bn"])
def test_mlp_without_an_image_size_is_an_error(arch):
    with pytest.raises(models.ModelError) as error:
        models.build(arch, 10)
    assert arch in one_line(error)


@pytest.mark.parametrize(
    ("arch", "too_small", "large_enough"),
    [
        ("lenet", (7, 8), (8, 8)),
        ("alexnet", (62, 63), (63, 63)),
        ("vgg11", (28, 28), (32, 32)),
        ("vgg19bn", (32, 31), (32, 32)),
    ],
)
def test_too_small_images_are_an_error_that_says_what_makes_them_large_enough(arch, too_small, large_enough):
    structure(arch, image_size=large_enough)
    with pytest.raises(models.ModelError) as error:
        structure(arch, image_size=too_small)
    message = one_line(error)
    assert f"{too_small[0]}x{too_small[1]}" in message
    assert arch in message
    assert "--upscale" in message


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "mlp"])
def test_residual_networks_and_mlps_take_small_images(arch):
    with torch.device("meta"):
        assert structure(arch, 10, 1, (28, 28)).eval()(torch.empty(1, 1, 28, 28)).shape == (1, 10)


# Initialization


def test_lenet_with_seed_1_is_the_reference_bit_for_bit():
    reference = torch.load(REFERENCE / "lenet_init_0.pt", weights_only=True)
    torch.manual_seed(1)
    ours = models.build("lenet", 10, 1, (28, 28)).state_dict()
    assert list(ours) == list(reference)
    for name, values in reference.items():
        assert ours[name].dtype == values.dtype
        assert ours[name].equal(values), name


@pytest.mark.parametrize("arch", ["lenet", "resnet18"])
def test_checking_the_image_size_draws_no_random_numbers(arch):
    draws = []
    for image_size in ((9, 9), None):
        torch.manual_seed(3)
        net = models.build(arch, 10, 1, image_size)
        draws.append((torch.rand(1).item(), next(net.parameters()).flatten()[0].item()))
    torch.manual_seed(3)
    assert draws[0] == draws[1]
    assert draws[0][0] != torch.rand(1).item()


def test_lenet_is_xavier_uniform_with_the_gain_of_relu():
    torch.manual_seed(7)
    net = models.build("lenet", 10, 3)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in, fan_out = layer.weight[0].numel(), layer.weight[:, 0].numel()
            bound = math.sqrt(2) * math.sqrt(6 / (fan_in + fan_out))
            largest = layer.weight.abs().max().item()
            assert 0.95 * bound < largest <= bound * (1 + 1e-6)
            assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
            assert not layer.bias.any()


@pytest.mark.parametrize("arch", ["mlp", "mlp_bn"])
def test_mlp_is_kaiming_normal_over_the_fan_out(arch):
    torch.manual_seed(7)
    net = models.build(arch, 10, 1, (8, 8))
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / layer.out_features), rel=0.02)
            assert layer.weight.abs().max() > 3 * layer.weight.std()  # normal, not uniform
            assert not layer.bias.any()


def test_vgg19_orig_has_weights_of_standard_deviation_a_hundredth_and_zero_biases():
    torch.manual_seed(7)
    net = models.build("vgg19_orig", 10, 1, (32, 32))
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == 19
    for layer in layers:
        n = layer.weight.numel()
        weight = layer.weight.flatten()[:1_000_000]
        assert weight.std().item() == pytest.approx(0.01, rel=5 / math.sqrt(2 * min(n, 1_000_000)))
        assert abs(weight.mean().item()) < 5 * 0.01 / math.sqrt(min(n, 1_000_000))
        assert not layer.bias.any()


@pytest.mark.parametrize("arch", ["alexnet", "resnet18", "resnet50", "vgg11", "vgg11bn"])
def test_first_convolution_for_grey_images_keeps_geometry_and_width(arch):
    def first(net):
        return next(module for module in net.modules() if isinstance(module, nn.Conv2d))

    grey, colour = first(structure(arch, 10, 1)), first(structure(arch, 10, 3))
    assert grey.in_channels == 1
    for attribute in ("out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"):
        assert getattr(grey, attribute) == getattr(colour, attribute)
    assert (grey.bias is None) == (colour.bias is None)
    grey_shapes, colour_shapes = shapes(structure(arch, 10, 1)), shapes(structure(arch, 10, 3))
    assert sum(grey_shapes[name] != colour_shapes[name] for name in colour_shapes) == 1


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
    ("arch", "in_channels", "side", "least"),
    [
        ("lenet", 1, 28, 24),
        ("mlp_bn", 1, 8, 6),
        ("alexnet", 3, 64, 22),
        ("vgg11bn", 3, 32, 38),
        ("resnet18", 3, 40, 15),
        ("resnet50", 3, 40, 23),
    ],
)
def test_segments_run_one_after_another_are_the_network(arch, in_channels, side, least):
    torch.manual_seed(0)
    net = randomize_batch_norm(models.build(arch, 5, in_channels, (side, side))).eval()
    segments = models.segments(net)
    assert len(segments) >= least
    images = torch.randn(2, in_channels, side, side)
    with torch.no_grad():
        x = images.clone()
        for segment in segments:
            x = segment(x)
        assert x.equal(net(images))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_parameter_is_in_one_segment(arch):
    net = structure(arch, image_size=(64, 64))
    in_segments = [id(parameter) for segment in models.segments(net) for parameter in segment.parameters()]
    assert sorted(in_segments) == sorted(id(parameter) for parameter in net.parameters())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_segments_hold_one_layer_each_or_one_block(arch):
    """What is measured can be told apart by segment: at most a residual block or a bottleneck in one."""
    net = structure(arch, image_size=(64, 64))
    most = max(
        sum(
            isinstance(m, nn.Conv2d | nn.Linear) and getattr(m, "kernel_size", 0) != (1, 1)
            for m in segment.modules()
        )
        for segment in models.segments(net)
    )
    assert most <= (1 if not arch.startswith(("resnet", "mlp")) else 2)


def test_a_network_that_does_not_tell_its_parts_is_one_segment():
    net = nn.Linear(3, 2)
    assert models.segments(net) == [net]


# Layers


def places(arch, with_linear=False):
    layers = models.layers(structure(arch, image_size=(64, 64)), with_linear)
    return [(layer.name, layer.stage, layer.block) for layer in layers]


def test_lenet_layers_and_their_places():
    convolutions = [
        *(("features.0", 0, 0), ("features.2", 0, 1), ("features.5", 1, 0), ("features.7", 1, 1)),
        *(("features.10", 2, 0), ("features.12", 2, 1)),
    ]
    assert places("lenet") == convolutions
    linear = [("classifier.0", 3, 0), ("classifier.3", 3, 1), ("classifier.6", 3, 2)]
    assert places("lenet", with_linear=True) == convolutions + linear


def test_alexnet_layers_and_their_places():
    assert places("alexnet", with_linear=True) == [
        *(("features.0", 0, 0), ("features.3", 1, 0), ("features.6", 2, 0), ("features.8", 2, 1)),
        *(("features.10", 2, 2), ("classifier.1", 3, 0), ("classifier.4", 3, 1), ("classifier.6", 3, 2)),
    ]


@pytest.mark.parametrize("arch", [f"vgg{depth}{bn}" for depth in VGG for bn in ("", "bn")] + ["vgg19_orig"])
def test_vgg_stages_count_the_pools_and_blocks_restart(arch):
    stages = VGG[arch[3:5]].split("M")
    expected = [(stage, block) for stage, widths in enumerate(stages) for block in range(len(widths.split()))]
    assert [place[1:] for place in places(arch)] == expected
    assert [place[1:] for place in places(arch, with_linear=True)] == [*expected, (5, 0), (5, 1), (5, 2)]


@pytest.mark.parametrize(("arch", "blocks"), [("resnet18", (2, 2, 2, 2)), ("resnet34", (3, 4, 6, 3))])
def test_residual_networks_have_their_resolution_stages(arch, blocks):
    expected = [("conv1", 0, 0)]
    for stage, count in enumerate(blocks, start=1):
        names = [f"layer{stage}.{block}.conv{number}" for block in range(count) for number in (1, 2)]
        expected += [(name, stage, block) for block, name in enumerate(names)]
    assert places(arch) == expected
    assert places(arch, with_linear=True) == [*expected, ("fc", 5, 0)]


def test_one_by_one_convolutions_are_left_out():
    expected = [("conv1", 0, 0)]
    for stage, count in enumerate((3, 4, 6, 3), start=1):
        expected += [(f"layer{stage}.{block}.conv2", stage, block) for block in range(count)]
    assert places("resnet50") == expected


@pytest.mark.parametrize("arch", ["mlp", "mlp_bn"])
def test_mlp_has_no_layers_but_linear_ones(arch):
    assert places(arch) == []
    names = ["hidden1.fc", *(f"hidden{n}.fc{k}" for n in (2, 3, 4) for k in (1, 2)), "classifier"]
    assert places(arch, with_linear=True) == [(name, 0, block) for block, name in enumerate(names)]


@pytest.mark.parametrize("arch", ["lenet", "resnet18", "mlp_bn"])
def test_layers_are_the_modules_of_their_names(arch):
    net = structure(arch, image_size=(64, 64))
    for layer in models.layers(net, with_linear=True):
        assert layer.module is net.get_submodule(layer.name)


# ImageNet weights

FILE_NAMES = {"resnet18": "resnet18-f37072fd.pth", "alexnet": "alexnet-owt-7be5be79.pth"}


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """The folder that torchvision keeps its weights in, empty; a download ends the test."""

    def no_download(url, *args, **kwargs):
        pytest.fail(f"tried to download {url}")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_download)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def trained_weights(arch, **kwargs):
    """Weights that no initialization gives, as torchvision names them."""
    torch.manual_seed(99)
    net = randomize_batch_norm(torchvision.models.get_model(TORCHVISION[arch], **kwargs))
    for parameter in net.parameters():
        parameter.data.add_(1)
    return net.state_dict()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old_format"])
def test_pretrained_weights_are_all_loaded(checkpoints, zipped):
    weights = trained_weights("resnet18")
    torch.save(weights, checkpoints / FILE_NAMES["resnet18"], _use_new_zipfile_serialization=zipped)
    loaded = models.build("resnet18", 1000, image_size=(224, 224), pretrained=True).state_dict()
    assert loaded.keys() == weights.keys()
    assert all(loaded[name].equal(weights[name]) for name in weights)


@pytest.mark.parametrize("found", ["f37072fd0c752f52", "f37072fe0c752f52"])
def test_weights_that_are_not_as_published_are_warned_about(found, checkpoints, monkeypatch, capsys):
    file = checkpoints / FILE_NAMES["resnet18"]
    torch.save(trained_weights("resnet18"), file)
    content = hashlib.sha256(file.read_bytes()).hexdigest()
    assert zoo._sha256(file) == content
    monkeypatch.setattr(zoo, "_sha256", lambda file: found)
    models.build("resnet18", 1000, pretrained=True)
    expected = f"warning: {file} is not as torchvision published it: its SHA-256 is {found}...\n"
    assert capsys.readouterr().err == ("" if found.startswith("f37072fd") else expected)


@pytest.mark.parametrize(("arch", "last"), [("resnet18", "fc"), ("alexnet", "classifier.6")])
def test_for_another_number_of_classes_only_the_last_layer_is_new(checkpoints, arch, last):
    weights = trained_weights(arch)
    torch.save(weights, checkpoints / FILE_NAMES[arch])
    torch.manual_seed(0)
    loaded = models.build(arch, 10, pretrained=True).state_dict()
    assert loaded.keys() == weights.keys()
    assert {name for name in weights if not loaded[name].equal(weights[name])} == {
        f"{last}.weight",
        f"{last}.bias",
    }
    assert loaded[f"{last}.weight"].shape == (10, weights[f"{last}.weight"].shape[1])
    bound = 1 / math.sqrt(loaded[f"{last}.weight"].shape[1])
    assert loaded[f"{last}.weight"].abs().max() <= bound  # torch's default initialization, not ours plus one


def test_for_grey_images_only_the_first_convolution_is_new(checkpoints):
    weights = trained_weights("resnet18")
    torch.save(weights, checkpoints / FILE_NAMES["resnet18"])
    loaded = models.build("resnet18", 1000, in_channels=1, pretrained=True).state_dict()
    assert {name for name in weights if not loaded[name].equal(weights[name])} == {"conv1.weight"}
    assert loaded["conv1.weight"].shape == (64, 1, 7, 7)


def test_resnet50_has_the_original_imagenet_weights(checkpoints, monkeypatch):
    """Those the paper could use, not the later ones of a better recipe."""
    asked = []

    def note(url, file, *args, **kwargs):
        asked.append((url, Path(file).name))
        raise OSError("stop here")

    monkeypatch.setattr(torch.hub, "download_url_to_file", note)
    with pytest.raises((OSError, models.ModelError)):
        models.build("resnet50", 1000, pretrained=True)
    assert asked == [("https://download.pytorch.org/models/resnet50-0676ba61.pth", "resnet50-0676ba61.pth")]


class Code:
    """Unpickled, it runs a function."""

    ran = False

    def __reduce__(self):
        return (setattr, (Code, "ran", True))


def zip_of(content):
    return lambda file: torch.save(content, file)


def old_format_of(content):
    return lambda file: torch.save(content, file, _use_new_zipfile_serialization=False)


def truncated(save, keep):
    def write(file):
        save(file)
        content = file.read_bytes()
        file.write_bytes(content[: keep if keep >= 0 else len(content) + keep])

    return write


def bytes_of(content):
    return lambda file: file.write_bytes(content)


SMALL = {"conv1.weight": torch.zeros(64, 3, 7, 7)}
DAMAGED = {
    "empty": bytes_of(b""),
    "zip_without_its_end": truncated(zip_of(SMALL), -30),
    "zip_half": truncated(zip_of(SMALL), 5000),
    "zip_one_byte": truncated(zip_of(SMALL), 1),
    "old_format_without_its_end": truncated(old_format_of(SMALL), -1),
    "old_format_30_bytes": truncated(old_format_of(SMALL), 30),
    "old_format_one_byte": truncated(old_format_of(SMALL), 1),
    "web_page": bytes_of(b"<!DOCTYPE html>\n<html>no such file</html>\n"),
    "text": bytes_of(b"hello world\n" * 20),
    "not_utf8": bytes_of(b"\x80\x02X\x02\x00\x00\x00\xff\xfe."),
    "zip_with_code": zip_of({"conv1.weight": Code()}),
    "old_format_with_code": old_format_of({"conv1.weight": Code()}),
    "bare_pickle_with_code": bytes_of(pickle.dumps(Code(), protocol=2)),
    "a_list": zip_of([torch.zeros(3)]),
    "a_tensor": zip_of(torch.zeros(3)),
    "none": zip_of(None),
    "numbers_for_names": zip_of({1: torch.zeros(3)}),
    "numbers_for_weights": zip_of({"conv1.weight": 1.0}),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_weights_are_an_error_that_names_the_file(checkpoints, damage):
    file = checkpoints / FILE_NAMES["resnet18"]
    DAMAGED[damage](file)
    with pytest.raises(models.ModelError) as error:
        models.build("resnet18", 1000, pretrained=True)
    message = one_line(error)
    assert "--pretrained" in message
    assert file.name in message
    assert not Code.ran


@pytest.mark.parametrize(("other", "num_classes"), [("resnet18", 7), ("resnet34", 1000)])
def test_weights_of_another_network_are_an_error_that_names_the_file(checkpoints, other, num_classes):
    weights = torchvision.models.get_model(other, num_classes=num_classes).state_dict()
    torch.save(weights, checkpoints / FILE_NAMES["resnet18"])
    with pytest.raises(models.ModelError) as error:
        models.build("resnet18", 1000, pretrained=True)
    message = one_line(error)
    assert FILE_NAMES["resnet18"] in message
    assert "resnet18" in message.replace(FILE_NAMES["resnet18"], "")


@pytest.mark.parametrize("failure", ["no_network", "not_found", "times_out", "breaks_off", "wrong_hash"])
def test_a_failed_download_is_an_error_that_names_the_address(checkpoints, monkeypatch, failure):
    import http.client
    import urllib.error

    failures = {
        "no_network": urllib.error.URLError(OSError(-2, "Name or service not known")),
        "not_found": urllib.error.HTTPError("https://example.org", 404, "Not Found", None, None),
        "times_out": TimeoutError("The read operation timed out"),
        "breaks_off": http.client.IncompleteRead(b"", 1000),
        "wrong_hash": RuntimeError('invalid hash value (expected "f37072fd", got "00000000")'),
    }

    def fail(*args, **kwargs):
        raise failures[failure]

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(models.ModelError) as error:
        models.build("resnet18", 1000, pretrained=True)
    message = one_line(error)
    assert "--pretrained" in message
    assert FILE_NAMES["resnet18"] in message
