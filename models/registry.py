"""The builders of all architectures, by name."""

from collections.abc import Callable

from torch import nn

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
