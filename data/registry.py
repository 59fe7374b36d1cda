"""The registry of datasets: what is known about each of them before it is read."""

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from core.errors import RunError, UsageError
from core.text import did_you_mean


class DataError(UsageError):
    """A dataset is missing or damaged, or cannot provide what is asked for."""


class ImageError(RunError):
    """An image in a folder could not be read during a run."""


Normalization = tuple[tuple[float, ...], tuple[float, ...]]  #: (mean, std) of each channel, for values in [0, 1]


@dataclass(frozen=True)
class Source:
    """The training or test images of a dataset, and their labels."""

    images: Tensor | Sequence[str]  #: (n, C, H, W) uint8; or n files, decoded when they are needed
    labels: np.ndarray  #: (n,) int64
    left_out: Counter[str] = field(default_factory=Counter)  #: how many files and folders, by name or suffix

    @property
    def in_memory(self) -> bool:
        return isinstance(self.images, Tensor)

    def select(self, indices: np.ndarray) -> "Source":
        """Return the images and labels at some indices."""
        chosen = self.images[indices] if self.in_memory else [self.images[index] for index in indices]
        return replace(self, images=chosen, labels=self.labels[indices])


def fingerprint(source: Source, protocol: int) -> str:
    """Return the number of images, a checksum of labels and images (or files' names), and a protocol above 1."""
    if source.in_memory:
        content = source.images.contiguous().numpy()
    else:
        names = ["/".join(file.rsplit("/", 2)[-2:]) for file in source.images]
        content = "\n".join(names).encode(errors="surrogateescape")
    version = f" {protocol}" if protocol > 1 else ""
    return f"{len(source.labels)} {zlib.crc32(source.labels, zlib.crc32(content)):08x}{version}"


@dataclass(frozen=True)
class Spec:
    """A dataset: what networks need to know about it, and how to read it."""

    name: str
    num_classes: int
    in_channels: int
    image_size: tuple[int, int]  #: (height, width) in pixels
    normalization: Normalization
    #: (folder of the datasets, True for training images or False for test images) -> (images and labels, class
    #: names in the order of the labels). Raises DataError.
    read: Callable[[Path, bool], tuple[Source, Sequence[str]]]
    normalization_upscaled: Normalization | None = None  #: for --upscale; None: `normalization`
    normalization_padded: Normalization | None = None  #: for --upscale-padding; None: `normalization`
    flip: bool = False  #: whether augmentation flips images horizontally
    in_memory: bool = True  #: False: a folder of images, decoded when they are needed
    in_repository: bool = False  #: whether the images come with the repository


_specs: dict[str, Spec] = {}


def register(spec: Spec) -> None:
    """Register a dataset under its name."""
    _specs[spec.name] = spec


def names() -> list[str]:
    """Return the names of all datasets."""
    return list(_specs)


def info(name: str) -> Spec:
    """Return the specification of a dataset. Raises DataError if there is no such dataset.

    A folder of images may hold another number of classes than its specification says; `load` counts them.
    """
    if name not in _specs:
        near = did_you_mean(name, names())
        raise DataError(f"--dataset {name}: no such dataset{near} (they are listed without --dataset)")
    return _specs[name]
