"""AlexNet, VGG and ResNet: torchvision's, with torchvision's initialization and ImageNet weights."""

import sys
import zipfile
from pathlib import Path

import torch
from torch import nn

from models.registry import ModelError, register

VGG = {f"vgg{depth}{bn}": f"vgg{depth}{bn and '_bn'}" for bn in ("", "bn") for depth in (11, 13, 16, 19)}
TORCHVISION_NAMES = {"alexnet": "alexnet", **VGG, **{f"resnet{depth}": f"resnet{depth}" for depth in (18, 34, 50)}}
IMAGENET_CLASSES = 1000


@register(*TORCHVISION_NAMES, pretrained=True)
def torchvision_net(name, num_classes, in_channels, image_size, pretrained=False):
    # torchvision takes as long to import as torch: the other architectures do without.
    from torchvision.models import get_model

    if pretrained:
        net = get_model(TORCHVISION_NAMES[name], num_classes=IMAGENET_CLASSES)
        _load_imagenet_weights(net, name)
        if num_classes != IMAGENET_CLASSES:
            _replace_last_layer(net, num_classes)
    else:
        net = get_model(TORCHVISION_NAMES[name], num_classes=num_classes)
    if in_channels != 3:
        _replace_first_convolution(net, in_channels)
    return net


@register("vgg19_orig")
def vgg19_orig(name, num_classes, in_channels, image_size):
    """VGG-19 as first initialized: weights from N(0, 0.01^2), zero biases (Simonyan and Zisserman, ICLR 2015)."""
    net = torchvision_net("vgg19", num_classes, in_channels, image_size)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
    return net


def _load_imagenet_weights(net: nn.Module, name: str) -> None:
    """Load the original ImageNet weights of torchvision (IMAGENET1K_V1; for ResNet-50 there are later ones)."""
    from torchvision.models import get_model_weights

    weights = get_model_weights(TORCHVISION_NAMES[name]).IMAGENET1K_V1
    file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rsplit("/", 1)[1])
    if file.exists() and not file.is_file():  # a pipe or a device might be read for ever
        raise ModelError(f"--pretrained: {file} is not a file")
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if len(archive.namelist()) == 1:  # torch.hub would unpack it beside, whatever its size and name
                raise ModelError(f"--pretrained: {file} is no file of weights; without it they are downloaded")
    try:
        state_dict = weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True)
    except Exception as error:  # of a damaged file torch.load raises whatever its content leads it to
        reason = (str(getattr(error, "reason", error)).splitlines() or [type(error).__name__])[0]
        if not file.exists():
            raise ModelError(f"--pretrained: cannot download {weights.url} ({reason})") from None
        if isinstance(error, OSError):
            raise ModelError(f"--pretrained: {file} cannot be read ({error.strerror or reason})") from None
        raise ModelError(
            f"--pretrained: {file} is damaged or holds more than weights; without it they are downloaded again"
        ) from None
    try:
        net.load_state_dict(state_dict)
    except (RuntimeError, TypeError, AttributeError):  # the latter two: it holds no dictionary of names
        raise ModelError(f"--pretrained: {file} does not hold the weights of {name}") from None


def _replace_last_layer(net: nn.Module, num_classes: int) -> None:
    name, last = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.Linear)][-1]
    net.set_submodule(name, nn.Linear(last.in_features, num_classes))


def _replace_first_convolution(net: nn.Module, in_channels: int) -> None:
    """Same geometry and width; Kaiming-normal weights (fan_out, ReLU) and a zero bias where there is one."""
    name, first = next((name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d))
    replacement = nn.Conv2d(
        in_channels,
        first.out_channels,
        first.kernel_size,
        stride=first.stride,
        padding=first.padding,
        dilation=first.dilation,
        bias=first.bias is not None,
    )
    nn.init.kaiming_normal_(replacement.weight, mode="fan_out", nonlinearity="relu")
    if replacement.bias is not None:
        nn.init.zeros_(replacement.bias)
    net.set_submodule(name, replacement)
