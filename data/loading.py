"""From a dataset's name to its batches: classes, split, noise, in this order, then the loaders."""

import functools
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data import subsets, transforms
from data.corruption import corrupt_labels, pixel_permutations
from data.folder import FolderLoader, Preparation
from data.memory import MemoryLoader
from data.registry import ArraySource, DataError, FolderSource, Source, Spec, info

Loader = MemoryLoader | FolderLoader

#: Of images that are made at once, by type of device. What a GPU computes of a small batch is over before the next
#: launch; a CPU has forgotten, from one batch to the next, how batches are made.
BYTES_AT_ONCE = {"cuda": 16 * 2**20, "cpu": 2 * 2**20}
PIXEL_SHUFFLE = -1  #: the value of `noise` that stands for shuffled pixels


@dataclass(kw_only=True)
class TestSet:
    """The test images of a dataset."""

    __test__ = False  # it is no test, whatever pytest takes its name for

    test: Loader
    num_classes: int
    in_channels: int
    image_size: tuple[int, int]  #: (height, width) in pixels, as the network sees them
    class_names: list[str]
    test_fingerprint: str  #: of the test images and labels, by which they are told from others
    notes: list[str]  #: what the user should be warned about


@dataclass(kw_only=True)
class Dataset(TestSet):
    """All images of a dataset; each loader yields (images, labels) on the device and has a length."""

    train: Loader
    val: Loader | None  #: None without a validation split
    train_fingerprint: str  #: of the training images and labels, by which they are told from others


def load(
    name: str,
    root: str | Path,
    batch_size: int,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    subsample_classes: int = 0,
    class_sample_seed: int | None = None,
    noise: float = 0,
    noise_seed: int | None = None,
    augmentation: bool = False,
    upscale: bool = False,
    upscale_padding: bool = False,
    split: float = 0,
    stratified: bool = False,
    split_seed: int | None = None,
    shuffle: bool = False,
    unnormalize: bool = False,
    workers: int = 1,
    memory_format: torch.memory_format = torch.contiguous_format,
    share: tuple[int, int] = (0, 1),
) -> Dataset:
    """Read a dataset and make its batches.

    Args:
        name: one of `names()`.
        root: the folder of the datasets.
        batch_size: images in a batch; the last one of an epoch may hold fewer.
        device: where the batches are made.
        seed: for the order and the augmentation of the training images.
        subsample_classes: how many classes to use; 0: all.
        class_sample_seed: for choosing them, in [0, 2^32); None: the first ones.
        noise: ratio of corrupted labels among the training images, in [0, 1]; -1: shuffle their pixels instead.
        noise_seed: for either, in [0, 2^32); needed with them.
        augmentation: random crops, and horizontal flips of colour images.
        upscale: images of 224x224 pixels.
        upscale_padding: images of 112x112 pixels, zero-padded to 224x224.
        split: share of the training images that become the validation set, in [0, 1).
        stratified: of each class the same share.
        split_seed: for shuffling before the split, in [0, 2^32); needed with split and shuffle.
        shuffle: shuffle before the split; without a split, a new random order in each epoch.
        unnormalize: pixel values in [0, 1].
        workers: processes that decode the images of a folder; of no effect on datasets in memory.
        memory_format: layout of the batches.
        share: (rank, number of ranks); each batch holds the share of this rank, perhaps no image at all.

    Raises:
        DataError: the dataset is not there or damaged, or cannot be had as asked.
    """
    spec, root = info(name), Path(root)
    check_options(
        name,
        subsample_classes=subsample_classes,
        noise=noise,
        upscale=upscale,
        upscale_padding=upscale_padding,
    )
    if noise and noise_seed is None:
        raise DataError(f"--noise {noise:g} needs a seed: --noise-seed")
    if split and shuffle and split_seed is None:
        raise DataError(f"--split {split:g} with --shuffle needs a seed: --split-seed")
    loaders = _Loaders(
        spec,
        batch_size,
        device=device,
        upscale=upscale,
        upscale_padding=upscale_padding,
        unnormalize=unnormalize,
        workers=workers,
        memory_format=memory_format,
        share=share,
    )
    train, class_names = _read(spec, root, True)
    test, test_class_names = _read(spec, root, False)
    differing = sorted(set(class_names) ^ set(test_class_names))
    if differing:
        raise DataError(
            f"--data-path {root}: training and test images are of different classes, among them {differing[0]}"
        )
    if class_names != test_class_names:
        raise DataError(f"--dataset {name}: the classes of training and test images are not in the same order")
    if subsample_classes:
        kept = choose_classes(name, class_names, subsample_classes, class_sample_seed)
        train, test = (_keep_classes(source, class_names, kept) for source in (train, test))
        class_names = kept

    all_labels = train.labels
    train_indices, val_indices = subsets.split_indices(
        len(all_labels), split, shuffle and split > 0, split_seed, all_labels if stratified else None
    )
    if split and (len(val_indices) == 0 or len(train_indices) == 0):
        part = "validation" if len(val_indices) == 0 else "training"
        raise DataError(f"--split {split:g}: of {len(all_labels)} images that leaves none in the {part} set")
    train_indices = np.sort(train_indices)

    if noise > 0:
        if len(class_names) < 2:
            raise DataError(f"--noise {noise:g}: with a single class there is no wrong label")
        corrupted = corrupt_labels(all_labels, len(class_names), noise, noise_seed, train_indices)
        train = replace(train, labels=corrupted)
    val = _keep(train, val_indices) if split else None
    train = _keep(train, train_indices) if split else train

    notes = loaders.notes()
    random_order = shuffle or split > 0
    # The files of a class follow one another, whatever new labels classes or images were given.
    by_class = np.count_nonzero(np.diff(all_labels)) == len(np.unique(all_labels)) - 1
    if not random_order and len(class_names) > 1 and by_class:
        notes.append(
            f"the files of {name} are sorted by class and training takes them in that order: use --shuffle"
        )
    return Dataset(
        train=loaders.make(
            train,
            seed=seed,
            random_order=random_order,
            augmentation=augmentation,
            shuffle_seed=noise_seed if noise == PIXEL_SHUFFLE else None,
        ),
        val=None if val is None else loaders.make(val),
        train_fingerprint=_fingerprint(train),
        test_fingerprint=_fingerprint(test),
        test=loaders.make(test),
        num_classes=len(class_names),
        in_channels=spec.in_channels,
        image_size=loaders.image_size,
        class_names=list(class_names),
        notes=notes,
    )


def check_options(
    name: str,
    *,
    subsample_classes: int = 0,
    noise: float = 0.0,
    upscale: bool = False,
    upscale_padding: bool = False,
) -> None:
    """Raise DataError for what is wrong with the options of `load`, as far as that is known without reading."""
    spec = info(name)
    if spec.in_memory and subsample_classes > spec.num_classes:  # a folder may hold any number of classes
        raise DataError(f"--subsample-classes {subsample_classes}: {name} has {spec.num_classes} classes")
    if not (0 <= noise <= 1 or noise == PIXEL_SHUFFLE):
        raise DataError(f"--noise {noise:g}: a ratio in [0, 1], or -1 to shuffle pixels")
    if noise > 0 and subsample_classes == 1:
        raise DataError(f"--noise {noise:g}: with a single class there is no wrong label")
    if upscale and upscale_padding:
        raise DataError("--upscale and --upscale-padding exclude each other")


def load_test(
    name: str,
    root: str | Path,
    batch_size: int,
    *,
    device: torch.device | str = "cpu",
    subsample_classes: int = 0,
    class_sample_seed: int | None = None,
    upscale: bool = False,
    upscale_padding: bool = False,
    unnormalize: bool = False,
    workers: int = 1,
    memory_format: torch.memory_format = torch.contiguous_format,
    share: tuple[int, int] = (0, 1),
) -> TestSet:
    """The test images alone, as `load` gives them; the training images are not read.

    Args: as for `load`.

    Raises:
        DataError: the dataset is not there or damaged, or cannot be had as asked.
    """
    spec = info(name)
    check_options(name, subsample_classes=subsample_classes, upscale=upscale, upscale_padding=upscale_padding)
    loaders = _Loaders(
        spec,
        batch_size,
        device=device,
        upscale=upscale,
        upscale_padding=upscale_padding,
        unnormalize=unnormalize,
        workers=workers,
        memory_format=memory_format,
        share=share,
    )
    test, class_names = _read(spec, Path(root), False)
    if subsample_classes:
        kept = choose_classes(name, class_names, subsample_classes, class_sample_seed)
        test, class_names = _keep_classes(test, class_names, kept), kept
    return TestSet(
        test=loaders.make(test),
        num_classes=len(class_names),
        in_channels=spec.in_channels,
        image_size=loaders.image_size,
        class_names=list(class_names),
        test_fingerprint=_fingerprint(test),
        notes=loaders.notes(),
    )


def _read(spec: Spec, root: Path, train: bool) -> tuple[Source, Sequence[str]]:
    """`spec.read`, with a DataError too where a folder cannot be entered, or it does not give what it should."""
    try:
        source, class_names = spec.read(root, train)
    except OSError as error:
        raise DataError(f"--data-path {root}: {error.filename or spec.name}: {error.strerror or error}") from None
    class_names = [str(name) for name in class_names]
    labels = source.labels
    wrong = None
    if len(set(class_names)) < len(class_names):
        wrong = "two classes have the same name"
    elif spec.in_memory and len(class_names) != spec.num_classes:
        wrong = f"there are {len(class_names)} classes, not {spec.num_classes}"
    elif not isinstance(labels, np.ndarray) or labels.dtype != np.int64 or labels.ndim != 1:
        wrong = "labels are no array (n,) of int64"
    elif not len(labels):
        wrong = "there are no images"
    elif labels.min() < 0 or labels.max() >= len(class_names):
        wrong = f"labels are not in 0 to {len(class_names) - 1}"
    elif isinstance(source, ArraySource):
        shape = (len(labels), spec.in_channels, *spec.image_size)
        images = source.images
        if not isinstance(images, Tensor) or images.dtype != torch.uint8 or tuple(images.shape) != shape:
            wrong = f"images are no uint8 tensor {shape}"
    if wrong:
        raise DataError(f"--dataset {spec.name}: of the {'training' if train else 'test'} images, {wrong}")
    return source, class_names


def choose_classes(name: str, class_names: Sequence[str], n: int, seed: int | None) -> list[str]:
    """`subsets.sample_classes`, of no more classes than there are."""
    if n > len(class_names):
        raise DataError(f"--subsample-classes {n}: {name} has {len(class_names)} classes")
    return subsets.sample_classes(class_names, n, seed)


def _fingerprint(source: Source) -> str:
    """Number and checksum of images and labels; of images in files, of the names of files and their folders."""
    if isinstance(source, ArraySource):
        crc = zlib.crc32(source.images.contiguous().numpy())
    else:
        names = ("/".join(file.rsplit("/", 2)[-2:]) for file in source.files)
        crc = zlib.crc32("\n".join(names).encode(errors="surrogateescape"))
    return f"{len(source.labels)} {zlib.crc32(source.labels, crc):08x}"


def _keep(source: Source, indices: np.ndarray) -> Source:
    labels = source.labels[indices]
    if isinstance(source, ArraySource):
        return ArraySource(source.images[torch.from_numpy(indices)], labels)
    return FolderSource([source.files[index] for index in indices], labels)


def _keep_classes(source: Source, class_names, kept) -> Source:
    indices, new_labels = subsets.relabel(source.labels, class_names, kept)
    if not len(indices):
        raise DataError(
            f"--subsample-classes {len(kept)}: there are no images of {', '.join(kept)} in one of the sets"
        )
    return replace(_keep(source, indices), labels=new_labels)


def normalization(spec: Spec, upscale: bool, padded: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel for the images as the network sees them."""
    if upscale and spec.normalization_upscaled is not None:
        return spec.normalization_upscaled
    if padded and spec.normalization_padded is not None:
        return spec.normalization_padded
    return spec.normalization


@dataclass
class _Loaders:
    """Makes the loaders of a dataset, which have all of this in common."""

    spec: Spec
    batch_size: int
    _: KW_ONLY
    device: torch.device | str = "cpu"
    upscale: bool = False
    upscale_padding: bool = False
    unnormalize: bool = False
    workers: int = 1
    memory_format: torch.memory_format = torch.contiguous_format
    share: tuple[int, int] = (0, 1)

    def __post_init__(self):
        self.device = torch.device(self.device)

    @property
    def image_size(self) -> tuple[int, int]:
        return (transforms.UPSCALED,) * 2 if self.upscale or self.upscale_padding else self.spec.image_size

    def notes(self) -> list[str]:
        found, cores = [], len(os.sched_getaffinity(0))
        if self.upscale and not self.spec.in_memory:
            found.append(f"--upscale has no effect on {self.spec.name}: its images have 224x224 pixels already")
        if self.workers > cores and not self.spec.in_memory:
            found.append(f"--workers {self.workers}: more than there are cores ({cores}), which may slow it down")
        return found

    def finish(self):
        """The last step of every batch: normalization, on the device."""
        mean = std = None
        if not self.unnormalize:
            constants = normalization(self.spec, self.upscale, self.upscale_padding)
            mean, std = (self._image_of(values) for values in constants)
        return functools.partial(transforms.normalize, mean=mean, std=std, memory_format=self.memory_format)

    def _image_of(self, values: Sequence[float]) -> Tensor:
        """(1, C, H, W): an image in the layout of the batches, with one value a channel."""
        channels = torch.tensor(values, device=self.device)[:, None, None]
        return channels.expand(1, -1, *self.image_size).contiguous(memory_format=self.memory_format)

    def make(
        self,
        source: Source,
        seed: int = 0,
        random_order: bool = False,
        augmentation: bool = False,
        shuffle_seed: int | None = None,
    ) -> Loader:
        """The batches of some images. shuffle_seed: of the pixels; None: they stay in place."""
        common = {"seed": seed, "random_order": random_order, "augmentation": augmentation, "share": self.share}
        labels = torch.from_numpy(source.labels)
        if isinstance(source, FolderSource):
            preparation = Preparation(source.files, self.upscale_padding, self.spec.flip, shuffle_seed)
            return FolderLoader(
                preparation, labels, self.batch_size, self.finish(), self.device, self.workers, **common
            )
        side, padding = None, 0
        if self.upscale:
            side = transforms.UPSCALED
        elif self.upscale_padding:
            side, padding = transforms.UPSCALED_PADDED, (transforms.UPSCALED - transforms.UPSCALED_PADDED) // 2
        permutations = None
        if shuffle_seed is not None and side is None:
            height, width = self.spec.image_size
            permutations = torch.from_numpy(pixel_permutations(len(labels), height * width, shuffle_seed))
            permutations = permutations.to(self.device)
        share = -(-self.batch_size // self.share[1])
        batch_bytes = 4 * share * self.spec.in_channels * math.prod(self.image_size)
        return MemoryLoader(
            source.images.to(self.device),
            labels.to(self.device),
            self.batch_size,
            self.finish(),
            upscaled_side=side,
            padding=padding,
            flip=self.spec.flip,
            permutations=permutations,
            permutation_seed=shuffle_seed if permutations is None else None,
            batches_at_once=max(1, BYTES_AT_ONCE[self.device.type] // batch_bytes),
            **common,
        )
