"""Look up architectures by name, build them, and check that they take the images."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from core.text import did_you_mean, first_line
from models import registry, zoo
from models.own import OwnNetwork, explain_own_error
from models.registry import ModelError
from models.zoo import other_names

#: What else may be an architecture, in words.
OTHERS = (f"torchvision's {', '.join(zoo.FAMILIES)}", "FILE.py:NAME (a class or function of your own)")


def names() -> list[str]:
    """Return the names of the architectures of the papers, and of those added to them, in alphabetical order."""
    return sorted(registry._builders)


def check(arch: str, pretrained: bool = False) -> None:
    """Raise ModelError if there is no such architecture, or no ImageNet weights for it."""
    if arch == registry.WEIGHTS_ALONE:
        raise ModelError(f"--arch {arch}: only compute_projections.py measures files without a network")
    if arch not in registry._builders:
        if arch not in other_names():
            near = did_you_mean(arch, [*names(), *other_names()])
            more = "without --arch they are listed; FILE.py:NAME is a network of your own"
            raise ModelError(f"--arch {arch}: no such architecture{near} ({more})")
    elif pretrained and arch not in zoo.TORCHVISION_NAMES:
        raise ModelError(f"--pretrained: there are no ImageNet weights for {arch}; use torchvision's networks")


def build(
    arch: str,
    num_classes: int,
    in_channels: int = 3,
    image_size: tuple[int, int] | None = None,
    pretrained: bool = False,
    must_fit: bool = True,
) -> nn.Module:
    """Build a network: images (B, in_channels, *image_size) to logits (B, num_classes).

    The initialization draws from torch's global generator: call `torch.manual_seed(seed)` before.

    Args:
        arch: one of `names()` or `other_names()`.
        in_channels: if the original network takes another number, its first convolution is replaced by one with
            Kaiming-normal weights (fan_out, ReLU).
        image_size: (height, width) in pixels. The multilayer perceptrons need it.
        pretrained: load torchvision's ImageNet weights, downloaded to TORCH_HOME if they are not there. If
            num_classes is not 1,000 the last layer is new.
        must_fit: check that images of image_size become logits.

    Raises ModelError for: no such architecture; images too small for it; an output that is not logits; ImageNet
    weights that do not exist, cannot be downloaded or are damaged.
    """
    check(arch, pretrained)
    if must_fit and image_size is not None:
        _try_an_image(arch, num_classes, in_channels, image_size)
    builder = registry._builders.get(arch, zoo.torchvision_net)
    options = {"pretrained": True} if pretrained else {}
    return builder(arch, num_classes, in_channels, image_size, **options)


def structure(arch: str, *arguments: Any, **options: Any) -> nn.Module:
    """Build a network, as `build` does, on the meta device: its weights have no values and take no memory.

    A network that needs values while it is built is on the CPU instead.
    """
    return _on_meta_device(lambda: build(arch, *arguments, **options))


def _try_an_image(arch: str, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> None:
    """Raise ModelError if an image is too small for a network, or does not become logits (1, num_classes)."""

    def run() -> Any:
        net = build(arch, num_classes, in_channels, image_size, must_fit=False).eval()
        with torch.no_grad():
            return net(torch.zeros(1, in_channels, *image_size))

    try:
        output = _on_meta_device(run)
    except Exception as error:
        if re.search(r"size is too small|greater than actual input size", str(error)):
            problem = f"images of {image_size[0]}x{image_size[1]} pixels are too small for it"
            advice = "--upscale or --upscale-padding makes them 224x224"
            raise ModelError(f"--arch {arch}: {problem}: {advice}") from None
        own = registry._builders.get(arch)
        if isinstance(own, OwnNetwork) and explain_own_error(error) is None:  # as in an nn.Sequential of layers
            shape = [1, in_channels, *image_size]
            raise ModelError(f"--arch {own.arch}: it does not take images {shape}: {first_line(error)}") from None
        raise
    if not isinstance(output, Tensor) or output.shape != (1, num_classes):
        found = f"of shape {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ModelError(f"--arch {arch}: its output is {found} for one image, not logits [1, {num_classes}]")


def has_batch_norm(arch: str) -> bool:
    """Return whether an architecture has batch norm layers."""
    net = structure(arch, 10, 3, (224, 224), must_fit=False)
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())


def _on_meta_device(function: Callable[[], Any]) -> Any:
    """Call a function on the meta device, or on the CPU if it needs values, and restore torch's generator."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return function()
        except (RuntimeError, TypeError) as error:
            if not re.search(r"\bmeta\b", str(error), re.IGNORECASE):
                raise
        return function()
