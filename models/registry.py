"""What builders of architectures share: the registry of them by name, and how weights are initialized."""

from collections.abc import Callable

from torch import Tensor, nn

from core.errors import UsageError

Builder = Callable[..., nn.Module]
WEIGHTS_ALONE = "weights"  #: as --arch: measure files without a network

_builders: dict[str, Builder] = {}


class ModelError(UsageError):
    """An architecture that does not exist or cannot be built as asked."""


def register(*names: str) -> Callable[[Builder], Builder]:
    """Register a builder under one or more names, as a decorator.

    The builder is called as `builder(name, num_classes, in_channels, image_size)` and returns the network.
    image_size is (height, width) in pixels, or None.
    """

    def decorate(builder: Builder) -> Builder:
        _builders.update(dict.fromkeys(names, builder))
        return builder

    return decorate


def initialize(net: nn.Module, draw: Callable[..., Tensor], **options: float | str) -> nn.Module:
    """Draw the weights of all convolutions and linear layers, as draw(weight, **options), and set biases to 0."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            draw(module.weight, **options)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net
