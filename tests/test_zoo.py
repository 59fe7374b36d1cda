"""torchvision's other ConvNets: names, structure, segments, layers, ImageNet weights, and the programs on them.

One of every family; with --torture, every single one.
"""

import functools
import itertools
import json
import math
import re
import warnings

import pytest
import torch
import torchvision.transforms.v2
from programs import refused, run_main
from torch import nn
from torchvision.models import get_model, get_model_weights

import compute_projections
import models
import reinit_layers
import train

#: One of every family -> how many of its layers are in each stage, according to its paper; and whether a fully
#: connected stage follows (SqueezeNet ends in a 1x1 convolution).
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
SIBLINGS = {"efficientnet_v2_s", "regnet_y_400mf", "resnext50_32x4d"}  #: of the class of another
OWN = "lenet mlp mlp_bn vgg19_orig alexnet resnet18 resnet34 resnet50".split()
OWN += [f"vgg{depth}{bn}" for depth in (11, 13, 16, 19) for bn in ("", "bn")]


@pytest.fixture
def networks(torture, count):
    """Names: one of every family, or all with --torture."""
    names = models.other_names() if torture else [arch for arch in FAMILIES if arch not in SIBLINGS]
    count("architectures of torchvision", len(names))
    return names


@functools.cache
def structure(arch, num_classes=10, in_channels=3, image_size=None):
    with torch.device("meta"):
        return models.build(arch, num_classes, in_channels, image_size)


def trained(net):
    """Weights and statistics unlike those of an initialization, with which outputs depend on the image."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return net.eval()


def convolutions(net):
    return [module for module in net.modules() if isinstance(module, nn.Conv2d)]


# Names


def test_every_convnet_of_torchvision_has_one_name():
    theirs = set(torchvision.models.list_models(torchvision.models))
    transformers = {name for name in theirs if name.startswith(("vit_", "swin_", "maxvit"))}
    under_their_names = theirs & set(OWN)
    under_our_names = {name for name in theirs if re.fullmatch(r"vgg\d+_bn", name)}
    assert set(models.other_names()) == theirs - transformers - under_their_names - under_our_names
    assert len(models.other_names()) == len(set(models.other_names())) >= 56
    assert set(models.names()) >= set(OWN)  # and what users have added


@pytest.mark.parametrize(
    "arch", ["vit_b_16", "swin_t", "maxvit_t", "quantized_resnet50", "DenseNet121", "densenet"]
)
def test_other_names_are_refused_with_those_there_are(arch, capsys):
    line = refused(compute_projections, capsys, "--arch", arch, "--dataset", "mnist")
    assert f"--arch {arch}" in line
    assert {*models.names(), *models.other_names()} < set(re.findall(r"\w+", line))


@pytest.mark.parametrize("program", [train, compute_projections, reinit_layers])
def test_a_network_has_one_name_only(program, capsys):
    line = refused(program, capsys, "--arch", "vgg11_bn", "--dataset", "mnist")
    assert line.endswith("--arch vgg11_bn: it is called vgg11bn here")


def test_list_shows_the_papers_networks_and_how_to_name_the_others(capsys):
    assert run_main(train, "--dataset", "mnist") == 0
    output = capsys.readouterr().out
    shown = output[: output.index("and torchvision's other ConvNets")].splitlines()
    assert [line.strip() for line in shown[1:] if line.strip()] == models.names()
    assert "densenet121" in output
    assert len(output.splitlines()) <= len(models.names()) + 3


# Structure


def test_networks_are_those_of_torchvision(networks):
    for arch in networks:
        net = structure(arch, 1000)
        expected = get_model_weights(arch).DEFAULT.meta["num_params"]
        if arch == "inception_v3":
            expected -= (
                3_326_696  # of its auxiliary head: 768*128 + 128*768*25 + 768*1000 + 1000 weights, batch norm
            )
        assert sum(parameter.numel() for parameter in net.parameters()) == expected, arch
        assert type(net).__module__.startswith("torchvision.models.")


def test_they_take_grey_and_colour_images_and_any_number_of_classes(networks):
    for arch in networks:
        colour, grey = structure(arch, 7), structure(arch, 7, 1)
        # In training: auxiliary heads would give more than logits.
        assert colour.train()(torch.empty(2, 3, 96, 96, device="meta")).shape == (2, 7), arch
        assert grey.eval()(torch.empty(2, 1, 96, 96, device="meta")).shape == (2, 7), arch
        # Only the first convolution differs.
        shapes = [{name: weight.shape for name, weight in net.named_parameters()} for net in (colour, grey)]
        assert [name for name in shapes[0] if shapes[0][name] != shapes[1][name]] == [
            next(name for name, module in colour.named_modules() if isinstance(module, nn.Conv2d)) + ".weight"
        ]
        first, other = convolutions(grey)[0], convolutions(colour)[0]
        for attribute in (
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        ):
            assert getattr(first, attribute) == getattr(other, attribute)


@pytest.mark.parametrize("arch", ["mobilenet_v3_small", "regnet_x_400mf", "squeezenet1_0", "googlenet"])
def test_they_are_initialized_as_torchvision_does(arch):
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
def test_inception_networks_take_images_as_normalized_for_imagenet(arch):
    """What their ImageNet weights were trained on are pixel values in [-1, 1]."""
    side = 80
    torch.manual_seed(0)
    pixels = torch.rand(1, 3, side, side)
    normalized = torchvision.transforms.v2.functional.normalize(
        pixels, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]
    )
    ours = trained(models.build(arch, 5))
    theirs = get_model(arch, num_classes=5, aux_logits=False, init_weights=False).eval()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(normalized), theirs(2 * pixels - 1), rtol=1e-3, atol=1e-4)
        assert not torch.allclose(ours(normalized), theirs(normalized), rtol=1e-2)


@pytest.mark.parametrize(
    ("arch", "too_small"),
    [("convnext_tiny", 31), ("densenet121", 28), ("googlenet", 14), ("inception_v3", 74), ("squeezenet1_1", 16)],
)
def test_too_small_images_are_an_error(arch, too_small):
    for side in (1, too_small // 5, too_small):  # where they vanish differs, and so does what torch says of it
        with pytest.raises(models.ModelError, match=rf"^images of {side}x{side} pixels are too small for {arch}"):
            structure(arch, image_size=(side, side))
    structure(arch, image_size=(too_small + 1, too_small + 1))


# Segments


def test_segments_run_one_after_another_are_the_network(networks):
    for arch in networks:
        torch.manual_seed(0)
        net = trained(models.build(arch, 5, 3))
        segments = models.segments(net)
        assert len(segments) >= 18, arch
        assert sorted(id(parameter) for segment in segments for parameter in segment.parameters()) == sorted(
            map(id, net.parameters())
        )
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


def test_a_network_that_only_looks_like_one_of_them_is_not_cut():
    class Twice(torchvision.models.SqueezeNet):
        def forward(self, images):
            return 2 * super().forward(images)

    for net in (Twice(), get_model("googlenet", num_classes=5, init_weights=False, aux_logits=True)):
        assert models.segments(net) == [net]

    class Block(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    net = models.build("squeezenet1_1", 5)
    net.features.add_module("more", Block(nn.Conv2d(512, 512, 3, padding=1)))
    images = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        expected = net.eval()(images)
        for segment in models.segments(net):
            images = segment(images)
    assert images.equal(expected)


# Layers


@pytest.mark.parametrize("arch", FAMILIES)
def test_layers_by_stage(arch):
    layers = models.layers(structure(arch))
    stages = range(len(FAMILIES[arch]))
    assert tuple(sum(layer.stage == stage for layer in layers) for stage in stages) == FAMILIES[arch]
    assert len(layers) == sum(FAMILIES[arch])
    for stage in stages:
        blocks = [layer.block for layer in layers if layer.stage == stage]
        assert blocks == list(range(len(blocks)))


def test_layers_come_in_the_order_they_run_in_and_stages_are_resolutions(networks):
    for arch in networks:
        net = structure(arch).eval()
        layers = models.layers(net)
        sides: dict[str, int] = {}  # of what the convolutions give, in the order they run in
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
        assert all(layer.module is net.get_submodule(layer.name) for layer in layers)
        by_stage: dict[int, list[int]] = {}
        for layer in layers:
            by_stage.setdefault(layer.stage, []).append(sides[layer.name])
        stages = list(by_stage)
        assert stages == sorted(stages)
        for before, after in itertools.pairwise(stages):
            assert min(by_stage[before]) >= max(by_stage[after]) >= min(by_stage[after]), arch
            assert min(by_stage[before]) > min(by_stage[after]), arch
        if arch != "inception_v3":  # which has convolutions without padding, and before those with strides
            assert all(len(set(found)) == 1 for found in by_stage.values()), arch


@pytest.mark.parametrize("arch", FAMILIES)
def test_fully_connected_layers_are_in_a_stage_of_their_own(arch):
    net = structure(arch)
    last = len(FAMILIES[arch])
    linear = models.layers(net, with_linear=True)[sum(FAMILIES[arch]) :]
    assert models.layers(net, with_linear=True)[: sum(FAMILIES[arch])] == models.layers(net)
    names = {"mobilenet_v3_small": ["classifier.0", "classifier.3"], "squeezenet1_0": []}
    assert [(layer.stage, layer.block) for layer in linear] == [
        (last, block) for block in range(len(names.get(arch, [None])))
    ]
    if arch in names:
        assert [layer.name for layer in linear] == names[arch]


def test_convolutions_of_one_row_or_one_column_are_measured():
    kernels = {layer.module.kernel_size for layer in models.layers(structure("inception_v3"))}
    assert {(1, 7), (7, 1), (1, 3), (3, 1), (3, 3), (5, 5)} == kernels


# ImageNet weights


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """The folder that torchvision keeps its weights in, empty; downloads are noted and fail."""
    asked = []

    def no_download(url, *args, **kwargs):
        asked.append(url)
        raise OSError("no download in a test")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_download)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    folder_and_asked = (folder, asked)
    return folder_and_asked


#: The file of its weights; the last layer.
WEIGHTS = {
    "densenet121": ("densenet121-a639ec97.pth", "classifier"),
    "googlenet": ("googlenet-1378be20.pth", "fc"),
    "mnasnet0_5": ("mnasnet0.5_top1_67.823-3ffadce67e.pth", "classifier.1"),
    "mobilenet_v3_small": ("mobilenet_v3_small-047dcff4.pth", "classifier.3"),
    "squeezenet1_0": ("squeezenet1_0-b66bff10.pth", "classifier.1"),
}


def zoo_file(arch, folder):
    """Weights as torchvision's file has them; returns what of them the network without auxiliary heads has."""
    torch.manual_seed(99)
    options = {"aux_logits": True, "init_weights": False} if arch == "googlenet" else {}
    weights = trained(get_model(arch, **options)).state_dict()
    in_file = weights
    if arch == "densenet121":  # its file is older than the rule that names of modules have no dots
        in_file = {re.sub(r"(denselayer\d+\.)(norm|conv)([12])", r"\1\2.\3", key): w for key, w in weights.items()}
        assert "features.denseblock1.denselayer1.norm.1.weight" in in_file
    torch.save(in_file, folder / WEIGHTS[arch][0])
    return {key: weight for key, weight in weights.items() if not key.startswith("aux")}


@pytest.mark.parametrize("arch", WEIGHTS)
def test_pretrained_weights_are_loaded_and_only_the_last_layer_is_new_for_other_classes(checkpoints, arch):
    weights = zoo_file(arch, checkpoints[0])
    loaded = models.build(arch, 1000, pretrained=True).state_dict()
    assert loaded.keys() == weights.keys()
    assert all(loaded[name].equal(weights[name]) for name in weights)
    torch.manual_seed(0)
    net = models.build(arch, 10, 3, (64, 64), pretrained=True)
    fine_tuned = net.state_dict()
    last = WEIGHTS[arch][1]
    assert {name for name in weights if not fine_tuned[name].equal(weights[name])} == {
        f"{last}.weight",
        f"{last}.bias",
    }
    assert fine_tuned[f"{last}.weight"].shape == (10, *weights[f"{last}.weight"].shape[1:])
    bound = 1 / math.sqrt(weights[f"{last}.weight"][0].numel())
    assert 0.5 * bound < fine_tuned[f"{last}.weight"].abs().max() <= bound
    assert net.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 10)


def test_the_original_weights_are_taken_where_there_are_several(checkpoints):
    with pytest.raises(models.ModelError, match="cannot download"):
        models.build("efficientnet_b1", 1000, pretrained=True)
    assert checkpoints[1] == ["https://download.pytorch.org/models/efficientnet_b1_rwightman-bac287d4.pth"]


def test_every_one_has_imagenet_weights():
    for arch in models.other_names():
        models.check(arch, pretrained=True)
        versions = get_model_weights(arch)
        assert hasattr(versions, "IMAGENET1K_V1") == (arch != "regnet_y_128gf")
        assert len(versions.DEFAULT.meta["categories"]) == 1000


@pytest.mark.parametrize("content", [{1: torch.zeros(3)}, {"features.0.weight": torch.zeros(3)}, [torch.zeros(3)]])
def test_a_file_with_other_weights_is_named(checkpoints, content):
    torch.save(content, checkpoints[0] / WEIGHTS["mnasnet0_5"][0])
    with pytest.raises(models.ModelError, match=r"3ffadce67e\.pth does not hold the weights of mnasnet0_5$"):
        models.build("mnasnet0_5", 1000, pretrained=True)


# The programs


def test_training_measuring_and_resetting(capsys):
    """MNASNet takes no weights whose version is not told, and snapshots do not tell it."""
    arch = "mnasnet0_5"
    options = ("--arch", arch, "--dataset", "fashion_mnist_mini", "--subsample-classes", 2, "--seed", 1)
    run_options = (*options, "--shuffle", "--snapshot-every", 1, "--resume-from", "latest", "--batch-size", 200)
    assert run_main(train, *run_options, "--epochs", 1) == 0
    assert run_main(train, *run_options, "--epochs", 2) == 0
    assert "epoch 1 (2/2)" in capsys.readouterr().out
    folder = f"models/fashion_mnist_mini_2/{arch}/1"
    final = f"{folder}/{arch}_2.pt"
    assert run_main(compute_projections, *options, "--load-from", final, "--normalize") == 0
    with open(f"results/fashion_mnist_mini_2/{arch}/1/{arch}_2.json") as file:
        measured = json.load(file)
    assert measured["0"]["1"]["name"] == "layers.3"
    depthwise = torch.load(final)["layers.3.weight"].double()  # 16 filters that see a channel each
    assert depthwise.shape == (16, 1, 3, 3)
    w = depthwise.reshape(16, 9)
    assert measured["0"]["1"]["projections"] == pytest.approx((w.sum(1) / w.norm(dim=1) / 3).tolist(), abs=1e-9)
    with open("inits.txt", "w") as file:
        file.write(f"{folder}/{arch}_init_0.pt\n")
    assert (
        run_main(reinit_layers, *options, "--load-from", final, "--inits-from", "inits.txt", "--with-linear") == 0
    )
    with open(f"results/fashion_mnist_mini_2/{arch}/1/reinit_{arch}_2.json") as file:
        assert json.load(file)["layers"][-1] == "classifier.1"


def test_a_single_image_for_batch_norm_is_refused(capsys):
    options = ("--dataset", "fashion_mnist_mini", "--batch-size", 3999)
    assert "--batch-size 3999" in refused(train, capsys, "--arch", "mobilenet_v2", *options)
    assert run_main(train, "--arch", "squeezenet1_1", *options, "--epochs", 0) == 0  # which has no batch norm
