"""torchvision's ConvNets, with torchvision's initialization and ImageNet weights.

AlexNet, VGG and ResNet are those of the papers. The others keep torchvision's names and have no auxiliary heads.

They take images normalized for ImageNet. GoogLeNet and Inception v3 were trained on pixel values in [-1, 1], and
convert images of three channels, as torchvision's pretrained ones do. This does not depend on --pretrained: a
snapshot of a fine-tuned network does not say whether it was given.
"""

import hashlib
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from core.text import first_line, say
from models.naming import places
from models.registry import ModelError, initialize, register

VGG = {f"vgg{depth}{bn}": f"vgg{depth}{bn and '_bn'}" for bn in ("", "bn") for depth in (11, 13, 16, 19)}
#: Our name of each of the papers' networks -> torchvision's.
TORCHVISION_NAMES = {"alexnet": "alexnet", **VGG, **{f"resnet{depth}": f"resnet{depth}" for depth in (18, 34, 50)}}
IMAGENET_CLASSES = 1000

#: torchvision's other families of ConvNets, including those it may add to them. Transformers are not supported.
FAMILIES = (
    *("convnext_*", "densenet*", "efficientnet_*", "googlenet", "inception_v3", "mnasnet*", "mobilenet_v*"),
    *("regnet_*", "resnet*", "resnext*", "shufflenet_v2_*", "squeezenet*", "wide_resnet*"),
)


def other_names() -> list[str]:
    """Return the names of torchvision's ConvNets that are not in the papers."""
    import torchvision

    found = torchvision.models.list_models(torchvision.models, include=FAMILIES)
    return [name for name in found if name not in TORCHVISION_NAMES]


@register(*TORCHVISION_NAMES)
def torchvision_net(name, num_classes, in_channels, image_size, pretrained=False):
    # Not imported above: torchvision takes as long to import as torch.
    from torchvision.models import get_model

    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # init_weights=True is the default, but torchvision warns if it is not given.
        options = {"aux_logits": False, "init_weights": True, "transform_input": in_channels == 3}
    options["num_classes"] = IMAGENET_CLASSES if pretrained else num_classes
    with _CountOnCPU():
        net = get_model(TORCHVISION_NAMES.get(name, name), **options)
    if pretrained:
        _load_imagenet_weights(net, name)
        if num_classes != IMAGENET_CLASSES:
            _replace_last_layer(net, num_classes)
    if in_channels != 3:
        first = _replace_first_convolution(net, in_channels)
        initialize(first, nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu")
    if name in VGG:
        net.avgpool = PoolUnlessOnePixel(net.avgpool)
        net.classifier[0].__class__ = LinearOfPooled
    return net


@register("vgg19_orig")
def vgg19_orig(name, num_classes, in_channels, image_size):
    """VGG-19 as first initialized: weights from N(0, 0.01^2), zero biases (Simonyan and Zisserman, ICLR 2015)."""
    net = torchvision_net("vgg19", num_classes, 3, image_size)
    if in_channels != 3:
        _replace_first_convolution(net, in_channels)
    return initialize(net, nn.init.normal_, std=0.01)


class PoolUnlessOnePixel(nn.Module):
    """The pooling of VGG, except that it does not repeat feature maps of one pixel."""

    def __init__(self, pool: nn.AdaptiveAvgPool2d):
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 7, 7), or (B, C, 1, 1) unchanged."""
        return x if x.shape[2:] == (1, 1) else self.pool(x)


class LinearOfPooled(nn.Linear):
    """VGG's linear layer after `PoolUnlessOnePixel`.

    For feature maps of one pixel, as of images of 32x32 pixels, it gives the output for 49 copies of that pixel by
    summing the 49 weights first. Without this VGG would spend most of its time here.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C * 49), or (B, C) for maps of one pixel -> (B, out_features)."""
        weight = self.weight
        if x.shape[1] < self.in_features:
            weight = weight.unflatten(1, (x.shape[1], -1)).sum(2)
        return functional.linear(x, weight, self.bias)


class _CountOnCPU(TorchFunctionMode):
    """Create tensors of numbers on the CPU: RegNet computes its widths with them, also on the meta device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.arange, torch.tensor):
            kwargs = {"device": "cpu", **(kwargs or {})}
        return function(*args, **(kwargs or {}))


def _load_imagenet_weights(net: nn.Module, name: str) -> None:
    """Load the first ImageNet weights that torchvision published (IMAGENET1K_V1; ResNet-50 has later ones)."""
    from torchvision.models import get_model_weights

    versions = get_model_weights(TORCHVISION_NAMES.get(name, name))
    published = getattr(versions, "IMAGENET1K_V1", versions.DEFAULT)
    file = Path(torch.hub.get_dir(), "checkpoints", published.url.rsplit("/", 1)[1])
    try:
        # Not get_state_dict: it unpacks any zip archive of an old kind.
        if not file.exists():
            say(f"downloading {published.url} to {file}", sys.stdout)
            file.parent.mkdir(parents=True, exist_ok=True)
            sha256 = re.search(r"-([0-9a-f]{8,})\.", file.name)[1]  # the first digits of the file's checksum
            torch.hub.download_url_to_file(published.url, str(file), sha256, progress=sys.stderr.isatty())
        weights = torch.load(file, map_location="cpu", weights_only=True)
        place = places(dict.fromkeys(weights, ""), net.state_dict())[""]
        for own, given in (place.names | place.unknown).items():  # without auxiliary heads
            weights[own] = weights.pop(given)
        for given in place.left_out:
            del weights[given]
        net.load_state_dict(weights)
    except Exception as error:  # of any type: from the network, the disk, the checksum or a damaged file
        reason = first_line(getattr(error, "reason", error))
        problem = f"cannot download {published.url} ({reason})"
        if file.exists():
            problem = f"{file} is damaged or not of {name}; delete it, and the weights are downloaded again"
        raise ModelError(f"--pretrained: {problem}") from None
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    is_published = f"-{found[:8]}" in file.name  # the name has the first digits of the checksum
    if not is_published and os.environ.get("LOCAL_RANK", "0") == "0":  # one process of each machine
        say(f"warning: {file} is not as torchvision published it: its SHA-256 is {found[:16]}...", sys.stderr)


def _replace_last_layer(net: nn.Module, num_classes: int) -> None:
    """Replace the last layer by one for another number of classes, with PyTorch's default initialization."""
    name, last = [(name, m) for name, m in net.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    is_linear = isinstance(last, nn.Linear)  # else SqueezeNet's convolution
    new = nn.Linear(last.in_features, num_classes) if is_linear else nn.Conv2d(last.in_channels, num_classes, 1)
    net.set_submodule(name, new)


def _replace_first_convolution(net: nn.Module, in_channels: int) -> nn.Conv2d:
    """Replace the first convolution by one of the same geometry and width, and return it."""
    name, first = next((name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d))
    copied = ("out_channels", "kernel_size", "stride", "padding", "dilation")
    options = {option: getattr(first, option) for option in copied}
    replacement = nn.Conv2d(in_channels, **options, bias=first.bias is not None)
    net.set_submodule(name, replacement)
    return replacement
