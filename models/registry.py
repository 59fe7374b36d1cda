"""The registry behind `models`: builders by name, and the questions asked of every network."""

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

_builders: dict[str, Callable[..., nn.Module]] = {}
_with_weights: set[str] = set()


class ModelError(ValueError):
    """An architecture that does not exist, or cannot be built as asked; the message is one line."""


def register(*names: str, pretrained: bool = False):
    """Register a builder under one or several names.

    The builder is called as `builder(name, num_classes, in_channels, image_size)` and returns the network;
    image_size is (height, width) or None. One that is registered with `pretrained` has ImageNet weights: it is
    called with another argument, `pretrained`, that says whether to load them.
    """

    def decorate(builder):
        for name in names:
            if name in _builders:
                raise ValueError(f"architecture {name} is registered twice")
            _builders[name] = builder
            if pretrained:
                _with_weights.add(name)
        return builder

    return decorate


def names() -> list[str]:
    """The names of the architectures."""
    return list(_builders)


def build(
    arch: str,
    num_classes: int,
    in_channels: int = 3,
    image_size: tuple[int, int] | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """Build a network, on the device that is torch's default (`with torch.device("meta")`: its structure only).

    The initialization draws from torch's global generator: `torch.manual_seed(seed)` before it gives the
    seed's initial weights.

    Args:
        arch: one of `names()`.
        num_classes: size of the prediction head.
        in_channels: channels of the images. Where the network was made for another number, its first
            convolution is replaced by one with Kaiming-normal weights (fan_out, ReLU).
        image_size: (height, width) of the images in pixels. The multilayer perceptrons need it; for the others
            it is checked that images of this size do not vanish on their way through the pooling layers.
        pretrained: load torchvision's ImageNet weights (downloaded to TORCH_HOME where they are not there
            yet). With other than 1,000 classes the last layer is new.

    Raises:
        ModelError: no such architecture, images too small for it, or weights that do not exist or cannot
            be had.
    """
    check(arch, pretrained)
    builder = _builders[arch]
    if image_size is not None:
        with torch.device("meta"):
            structure = builder(arch, num_classes, in_channels, image_size)
        _check_image_size(arch, structure, in_channels, image_size)
    if pretrained:
        return builder(arch, num_classes, in_channels, image_size, pretrained=True)
    return builder(arch, num_classes, in_channels, image_size)


def check(arch: str, pretrained: bool = False) -> None:
    """Raise ModelError where `build` would for the name alone: no such architecture, or none with weights."""
    if arch not in _builders:
        raise ModelError(f"--arch {arch}: no such architecture; there are {', '.join(names())}")
    if pretrained and arch not in _with_weights:
        having = ", ".join(name for name in names() if name in _with_weights)
        raise ModelError(f"--pretrained: there are no ImageNet weights for {arch}; there are for {having}")


def _check_image_size(arch: str, structure: nn.Module, in_channels: int, image_size: tuple[int, int]) -> None:
    """Send an image without content through the network on the meta device, where only shapes are computed."""
    height, width = image_size
    try:
        structure.eval()(torch.empty(1, in_channels, height, width, device="meta"))
    except RuntimeError as error:
        if not re.search(r"size is too small|greater than actual input size", str(error)):
            raise
        raise ModelError(
            f"images of {height}x{width} pixels are too small for {arch}: "
            "--upscale or --upscale-padding makes them 224x224"
        ) from None


def segments(net: nn.Module) -> list[nn.Module]:
    """The network cut into modules of its own that, run one after another, are the network.

    A network that says nothing about its parts (by a method `segments`) is one segment.
    """
    if hasattr(net, "segments"):
        return net.segments()
    # torchvision's classes, told by their parts: this must not import torchvision for the other networks.
    if all(hasattr(net, part) for part in ("features", "avgpool", "classifier")):  # AlexNet, VGG
        return [*net.features, net.avgpool, nn.Flatten(), *net.classifier]
    if all(hasattr(net, part) for part in ("conv1", "bn1", "relu", "maxpool", "layer4", "fc")):  # ResNet
        stem = [net.conv1, net.bn1, net.relu, net.maxpool]
        blocks = [*net.layer1, *net.layer2, *net.layer3, *net.layer4]
        return [*stem, *blocks, net.avgpool, nn.Flatten(), net.fc]
    return [net]


class Layer(NamedTuple):
    """A layer whose filters are measured, and where it stands."""

    name: str  #: name of the module in the network, such as "features.0"
    module: nn.Module  #: nn.Conv2d or nn.Linear
    stage: int  #: max-pooling layers passed on the way to it; for residual networks the resolution stage
    block: int  #: position within the stage, from 0


def layers(net: nn.Module, with_linear: bool = False) -> list[Layer]:
    """The convolutional layers in network order, without 1x1 convolutions.

    A final pool opens a stage of its own for the fully connected layers. Residual networks have their
    resolution stages: the stem is stage 0, `layer1` to `layer4` are 1 to 4, the fully connected layer is in 5.

    Args:
        with_linear: also the fully connected layers.
    """
    found: list[Layer] = []
    stage = 0
    for name, module in net.named_modules():
        if isinstance(module, nn.MaxPool2d):
            stage += 1
        residual_stage = re.match(r"layer(\d+)\.", name)
        if residual_stage:
            stage = int(residual_stage[1])
        elif name == "fc":
            stage += 1
        is_filter_bank = isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)
        if is_filter_bank or (with_linear and isinstance(module, nn.Linear)):
            block = sum(layer.stage == stage for layer in found)
            found.append(Layer(name, module, stage, block))
    return found
