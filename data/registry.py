"""The registry behind `data`: what is known of each dataset before it is read."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from core.errors import RunError, UsageError


class DataError(UsageError):
    """A dataset that is not there, is damaged, or cannot be had as asked; the message is one line."""


class ImageError(RunError):
    """An image of a folder that could not be read when its turn came; the message is one line."""


Constants = tuple[tuple[float, ...], tuple[float, ...]]  #: (mean, standard deviation) of each channel, in [0, 1]


@dataclass(frozen=True)
class ArraySource:
    """Images that fit in memory."""

    images: Tensor  #: (n, C, H, W) uint8
    labels: np.ndarray  #: (n,) int64


@dataclass(frozen=True)
class FolderSource:
    """Images in files, decoded when they are needed."""

    files: Sequence[str]
    labels: np.ndarray  #: (n,) int64


Source = ArraySource | FolderSource


@dataclass(frozen=True)
class Spec:
    """A dataset: what the networks need to know of it, and how to read it."""

    name: str
    num_classes: int
    in_channels: int
    image_size: tuple[int, int]  #: (height, width) in pixels
    normalization: Constants
    read: Callable[[Path, bool], tuple[Source, Sequence[str]]]
    #: (folder of the datasets, whether the training images or the test images) -> (images, class names of the
    #: labels). Raises DataError.
    normalization_upscaled: Constants | None = None  #: for images upscaled to 224x224; None: as they are
    normalization_padded: Constants | None = None  #: upscaled to 112x112 and zero-padded to 224x224
    flip: bool = False  #: whether augmentation mirrors images
    in_memory: bool = True  #: False: a folder of images, decoded when they are needed
    in_repository: bool = False  #: whether the images are here, not in the folder of the datasets

    def check(self) -> None:
        """Raise DataError where a size or a constant cannot be one."""
        height, width = self.image_size
        if min(self.num_classes, self.in_channels, height, width) < 1:
            raise DataError(f"--dataset {self.name}: classes, channels and pixels are at least 1")
        for constants in (self.normalization, self.normalization_upscaled, self.normalization_padded):
            if constants is None:
                continue
            mean, std = constants
            if len(mean) != self.in_channels or len(std) != self.in_channels:
                raise DataError(f"--dataset {self.name}: normalization needs a value for each channel")
            if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
                raise DataError(f"--dataset {self.name}: means are finite, standard deviations more than 0")


_specs: dict[str, Spec] = {}


def register(spec: Spec) -> None:
    """Make a dataset known under its name."""
    if spec.name in _specs:
        raise ValueError(f"dataset {spec.name} is registered twice")
    _specs[spec.name] = spec


def names() -> list[str]:
    """The names of the datasets."""
    return list(_specs)


def info(name: str) -> Spec:
    """The number of classes, channels and the image size of a dataset.

    An image folder may hold another number of classes than its specification says: `load` counts them.

    Raises:
        DataError: no such dataset, or a specification that cannot be.
    """
    if name not in _specs:
        raise DataError(f"--dataset {name}: no such dataset; there are {', '.join(names())}")
    _specs[name].check()
    return _specs[name]
