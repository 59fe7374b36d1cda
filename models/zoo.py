"""torchvision's ConvNets, with torchvision's initialization and ImageNet weights.

AlexNet, VGG and ResNet are those of the papers. The others go by torchvision's names, and have no auxiliary heads.

Most expect images as they are normalized for ImageNet. GoogLeNet and Inception v3 were trained on pixel values in
[-1, 1], and so get them: images of three channels are taken as normalized for ImageNet and converted inside the
network, as torchvision does it for the pretrained ones. Here it is done whether or not ImageNet weights are
loaded, because the snapshots of a fine-tuned network do not tell.
"""

import hashlib
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from core.text import first_line, say
from models.registry import ModelError, register, register_others
from utils.process import distributed

VGG = {f"vgg{depth}{bn}": f"vgg{depth}{bn and '_bn'}" for bn in ("", "bn") for depth in (11, 13, 16, 19)}
TORCHVISION_NAMES = {"alexnet": "alexnet", **VGG, **{f"resnet{depth}": f"resnet{depth}" for depth in (18, 34, 50)}}
IMAGENET_CLASSES = 1000

#: torchvision's other families of ConvNets: what it may add to them is there too, transformers are not.
FAMILIES = (
    *("convnext_*", "densenet*", "efficientnet_*", "googlenet", "inception_v3", "mnasnet*", "mobilenet_v*"),
    *("regnet_*", "resnet*", "resnext*", "shufflenet_v2_*", "squeezenet*", "wide_resnet*"),
)
AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")


@register(*TORCHVISION_NAMES, pretrained=True)
def torchvision_net(name, num_classes, in_channels, image_size, pretrained=False):
    # torchvision takes as long to import as torch: the other architectures do without.
    from torchvision.models import get_model

    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # init_weights: their own initialization, which torchvision announces to replace where it is not asked for.
        options = {"aux_logits": False, "init_weights": True, "transform_input": in_channels == 3}
    options["num_classes"] = IMAGENET_CLASSES if pretrained else num_classes
    with _CountOnTheCPU():
        net = get_model(TORCHVISION_NAMES.get(name, name), **options)
    if pretrained:
        _load_imagenet_weights(net, name)
        if num_classes != IMAGENET_CLASSES:
            _replace_last_layer(net, num_classes)
    if in_channels != 3:
        _replace_first_convolution(net, in_channels)
    if name in VGG:
        net.avgpool = PoolUnlessOnePixel(net.avgpool)
        net.classifier[0] = LinearOfPooled.like(net.classifier[0])
    return net


class PoolUnlessOnePixel(nn.Module):
    """The pooling of VGG, but feature maps of one pixel, which it would repeat, stay as they are."""

    def __init__(self, pool: nn.AdaptiveAvgPool2d):
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 7, 7), or (B, C, 1, 1) as it is."""
        return x if x.shape[2:] == (1, 1) else self.pool(x)


class LinearOfPooled(nn.Linear):
    """The layer behind that pooling; to feature maps of one pixel it does what it does to 49 copies of them.

    A pixel meets the sum of the weights of its copies: one product instead of 49. Images of 32x32 pixels become
    such maps, and VGG would spend more time on this layer than on any other.
    """

    @classmethod
    def like(cls, layer: nn.Linear) -> "LinearOfPooled":
        """With the parameters of a layer."""
        with torch.device("meta"):
            made = cls(layer.in_features, layer.out_features)
        made.weight, made.bias = layer.weight, layer.bias
        return made

    def forward(self, x: Tensor) -> Tensor:
        """(B, C * 49), or (B, C) of maps of one pixel -> (B, out_features)."""
        weight = self.weight
        if x.shape[1] < self.in_features:
            weight = weight.unflatten(1, (x.shape[1], -1)).sum(2)
        return functional.linear(x, weight, self.bias)


class _CountOnTheCPU(TorchFunctionMode):
    """RegNet computes its widths with tensors: they must have values where the network is built without any."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.arange, torch.tensor):
            kwargs = {"device": "cpu", **(kwargs or {})}
        return function(*args, **(kwargs or {}))


def other_networks() -> list[str]:
    """The names of torchvision's ConvNets that are not among the papers'."""
    import torchvision

    found = torchvision.models.list_models(torchvision.models, include=FAMILIES)
    return [name for name in found if name not in TORCHVISION_NAMES]


register_others(
    torchvision_net,
    other_networks,
    called_here={theirs: ours for ours, theirs in TORCHVISION_NAMES.items() if theirs != ours},
)


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

    versions = get_model_weights(TORCHVISION_NAMES.get(name, name))
    weights = getattr(versions, "IMAGENET1K_V1", None) or versions.DEFAULT
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
        reason = first_line(getattr(error, "reason", error))
        if not file.exists():
            raise ModelError(f"--pretrained: cannot download {weights.url} ({reason})") from None
        if isinstance(error, OSError):
            raise ModelError(f"--pretrained: {file} cannot be read ({error.strerror or reason})") from None
        raise ModelError(
            f"--pretrained: {file} is damaged or holds more than weights; without it they are downloaded again"
        ) from None
    try:
        for key in list(state_dict):
            if key.startswith(AUXILIARY_HEADS):
                del state_dict[key]
            else:  # DenseNet's weights have the names of an old version: denselayer1.norm.1 is denselayer1.norm1
                renamed = re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d\.)", r"\1\2", key)
                state_dict[renamed] = state_dict.pop(key)
        net.load_state_dict(state_dict)
    except (RuntimeError, TypeError, AttributeError, ValueError):  # all but the first: no weights with their names
        raise ModelError(f"--pretrained: {file} does not hold the weights of {name}") from None
    published, found = re.search(r"-([0-9a-f]{8,})\.", file.name), _sha256(file)
    if published and not found.startswith(published[1]) and distributed.LOCAL_RANK == 0:
        # torchvision compares it only when it downloads the file.
        say(f"warning: {file} is not as torchvision published it: its SHA-256 is {found[:16]}...", sys.stderr)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _replace_last_layer(net: nn.Module, num_classes: int) -> None:
    """Initialized as torch does by default."""
    name, last = [(name, m) for name, m in net.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    if isinstance(last, nn.Linear):
        net.set_submodule(name, nn.Linear(last.in_features, num_classes))
    else:  # SqueezeNet's
        net.set_submodule(name, nn.Conv2d(last.in_channels, num_classes, kernel_size=1))


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
