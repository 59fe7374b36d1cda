"""The registry behind `models`: builders by name."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from core.errors import UsageError

Builder = Callable[..., nn.Module]

_builders: dict[str, Builder] = {}
_with_weights: set[str] = set()
_others: list[tuple[Callable[[], list[str]], Builder]] = []
_called_here: dict[str, str] = {}


class ModelError(UsageError):
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


def register_others(builder: Builder, find_names: Callable[[], list[str]], called_here: Mapping[str, str]) -> None:
    """Register a builder of further architectures with ImageNet weights, which `names()` does not list.

    Args:
        find_names: their names; asked only for a name that nothing is registered under, so it may take its time.
        called_here: other names of registered architectures -> their names here. A network has one name, so that
            its snapshots and results are in one place: under the other it is refused.
    """
    _others.append((find_names, builder))
    _called_here.update(called_here)


def names() -> list[str]:
    """The names of the architectures of the papers, and of those added to them."""
    return list(_builders)


def other_names() -> list[str]:
    """The names of further architectures that can be built: torchvision's, which is imported to tell them."""
    return [name for find_names, _ in _others for name in find_names()]


def build(
    arch: str,
    num_classes: int,
    in_channels: int = 3,
    image_size: tuple[int, int] | None = None,
    pretrained: bool = False,
    must_fit: bool = True,
) -> nn.Module:
    """Build a network.

    The initialization draws from torch's global generator: `torch.manual_seed(seed)` before it gives the
    seed's initial weights.

    Args:
        arch: one of `names()` or `other_names()`.
        num_classes: size of the prediction head.
        in_channels: channels of the images. Where the network was made for another number, its first
            convolution is replaced by one with Kaiming-normal weights (fan_out, ReLU).
        image_size: (height, width) of the images in pixels. The multilayer perceptrons need it.
        pretrained: load torchvision's ImageNet weights (downloaded to TORCH_HOME where they are not there
            yet). With other than 1,000 classes the last layer is new.
        must_fit: check that an image of this size does not vanish in the pooling layers, and becomes `num_classes`
            logits.

    Raises:
        ModelError: no such architecture, images too small for it, an output that is not logits, weights that do
            not exist or cannot be had, or what a builder of one's own gives cannot be trained and kept.
    """
    check(arch, pretrained)
    if must_fit:
        _check_with_an_image(arch, num_classes, in_channels, image_size)
    if pretrained:
        return _network(arch, num_classes, in_channels, image_size, pretrained=True)
    return _network(arch, num_classes, in_channels, image_size)


def check(arch: str, pretrained: bool = False) -> None:
    """Raise ModelError where `build` would for the name alone: no such architecture, or none with weights."""
    if "/" in arch:
        raise ModelError(f"--arch {arch}: files are named by it, so it has no /")
    if arch in _called_here:
        raise ModelError(f"--arch {arch}: it is called {_called_here[arch]} here")
    if _builder(arch) is None:
        raise ModelError(
            f"--arch {arch}: no such architecture; there are {', '.join(names())}; "
            f"and of torchvision {', '.join(other_names())}"
        )
    if pretrained and arch in _builders and arch not in _with_weights:
        having = ", ".join(name for name in names() if name in _with_weights)
        raise ModelError(
            f"--pretrained: there are no ImageNet weights for {arch}; there are for {having} "
            "and torchvision's others"
        )


def _builder(arch: str) -> Builder | None:
    if arch in _builders:
        return _builders[arch]
    return next((builder for find_names, builder in _others if arch in find_names()), None)


def structure(
    arch: str,
    num_classes: int,
    in_channels: int = 3,
    image_size: tuple[int, int] | None = None,
    must_fit: bool = True,
) -> nn.Module:
    """The network that `build` builds, but its weights have no values, so that it costs neither time nor memory.

    It is on the meta device; one that cannot be built there, as it looks at values, is on the CPU, initialized.

    Raises:
        ModelError: as `build`.
    """
    check(arch)
    if must_fit:
        _check_with_an_image(arch, num_classes, in_channels, image_size)
    return _without_values(lambda: _network(arch, num_classes, in_channels, image_size))


def try_an_image(
    arch: str, num_classes: int, in_channels: int, image_size: tuple[int, int], training: bool = False
) -> Tensor:
    """Run a network on a batch of one image, on the meta device where it does without values.

    Returns:
        its output, of which only the shape means something.
    """

    def run() -> Tensor:
        net = _network(arch, num_classes, in_channels, image_size).train(training)
        with torch.no_grad():
            return net(torch.zeros(1, in_channels, *image_size))

    return _without_values(run)


def _network(arch: str, *arguments: Any, **options: Any) -> nn.Module:
    """What the builder of an architecture gives; ModelError if the programs can do nothing with it."""
    net = _builder(arch)(arch, *arguments, **options)
    obstacle = _obstacle(net)
    if obstacle is not None:
        raise ModelError(f"--arch {arch}: {obstacle}")
    return net


def _obstacle(net: Any) -> str | None:
    """What keeps a network from being trained or written to a snapshot, in words."""
    if not isinstance(net, nn.Module):
        return f"what its builder returns is no torch.nn.Module, but a {type(net).__name__}"
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if is_lazy(tensor):
            return f"{name} has no shape yet: layers must be built with all of their sizes"
        if tensor.dim() == 5:
            return f"{name} has five dimensions, which is not supported"
    for name, parameter in net.named_parameters():
        if not parameter.is_floating_point():
            return f"{name} is of type {parameter.dtype}: parameters must be floating-point numbers"
    for name, short in own_names(net.state_dict()).items():
        if name != short:
            return f"{name} would be taken for the {short} of a network in DataParallel: call no part `module`"
    for name, value in net.state_dict().items():
        if not isinstance(value, Tensor):
            return f"{name} is no tensor, and snapshots hold nothing else of a network"
        if value.is_complex():
            return f"{name} is of type {value.dtype}, of which snapshots hold none"
    return None


def own_names(names: Iterable[str]) -> dict[str, str]:
    """The names of a network's weights, and what they are without the prefixes that DataParallel put before them.

    It was around the whole network (`module.fc.weight`) or, of AlexNet and VGG, around the convolutional part
    (`features.module.0.weight`).
    """
    own = {name: name for name in names}
    for outer in ("", "features."):
        inside = [name for name, short in own.items() if short.startswith(outer)]
        if all(own[name].startswith(f"{outer}module.") for name in inside):
            own |= {name: outer + own[name].removeprefix(f"{outer}module.") for name in inside}
    return own


def _without_values(function: Callable[[], Any]) -> Any:
    """What a function gives on the meta device, where only shapes are computed; on the CPU if it needs values.

    torch's global generator stays as it is.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return function()
        except (RuntimeError, TypeError) as error:
            if not re.search(r"\bmeta\b", str(error), re.IGNORECASE):
                raise
        return function()


def has_batch_norm(arch: str) -> bool:
    """Whether an architecture has batch norm layers."""
    net = structure(arch, 10, 3, (224, 224), must_fit=False)
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())


def _check_with_an_image(
    arch: str, num_classes: int, in_channels: int, image_size: tuple[int, int] | None
) -> None:
    """Raise ModelError where an image, of a size that is known, does not become logits."""
    if image_size is None:
        return
    height, width = image_size
    try:
        output = try_an_image(arch, num_classes, in_channels, image_size)
    except RuntimeError as error:
        if re.search(r"size is too small|greater than actual input size", str(error)):
            raise ModelError(
                f"images of {height}x{width} pixels are too small for {arch}: "
                "--upscale or --upscale-padding makes them 224x224"
            ) from None
        raise
    if not isinstance(output, Tensor) or output.shape != (1, num_classes):
        given = list(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ModelError(f"--arch {arch}: of an image it makes {given}, not logits of shape [1, {num_classes}]")
