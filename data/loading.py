"""From the images asked for to their batches: read, keep some classes, split, corrupt labels, make loaders."""

import functools
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from data import subsets, transforms
from data.corruption import corrupt_labels, pixel_permutations
from data.folder import FolderLoader, Preparation
from data.images import PIXEL_SHUFFLE, Images
from data.memory import MemoryLoader
from data.registry import DataError, Source, fingerprint

Loader = MemoryLoader | FolderLoader

#: Bytes of images that are made together, by type of device. On a GPU, launching the operations for a small batch
#: takes longer than they do; on a CPU, each training step evicts what makes batches from the caches.
BYTES_AT_ONCE = {"cuda": 16 * 2**20, "cpu": 2 * 2**20}


@dataclass(kw_only=True)
class Dataset:
    """The images of a dataset. Each loader yields (images, labels) on the device and has a length."""

    train: Loader | None = None  #: None: only the test set was asked for
    val: Loader | None = None  #: None: no validation split, or only the test set was asked for
    test: Loader
    num_classes: int
    in_channels: int
    image_size: tuple[int, int]  #: (height, width) in pixels, as the network sees the images
    class_names: list[str]  #: in the order of the labels
    train_fingerprint: str | None  #: number and checksum of the training images and labels
    test_fingerprint: str  #: number and checksum of the test images and labels
    notes: list[str]  #: warnings for the user


def load(
    images: Images,
    batch_size: int,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    workers: int = 1,
    memory_format: torch.memory_format = torch.contiguous_format,
    share: tuple[int, int] = (0, 1),
    test_only: bool = False,
) -> Dataset:
    """Read a dataset, or only its test set, and make its batches on the device. The last one may be smaller.

    Args:
        seed: of the order and the augmentation of the training images.
        workers: number of processes that decode a folder of images; no effect on datasets in memory.
        share: (rank, number of ranks); each batch holds the share of this rank, which may be empty.

    Raises DataError if the dataset is missing or damaged, or cannot provide what is asked for.
    """
    images.check()
    parts = ("test",) if test_only else ("train", "test")
    sources: dict[str, Source] = {}
    names: dict[str, list[str]] = {}  # of the classes
    for part in parts:
        try:
            sources[part], found = images.spec.read(Path(images.root), part == "train")
        except OSError as error:
            where = error.filename or f"{'training' if part == 'train' else part} images"
            raise DataError(f"--data-path {images.root}: {where}: {error.strerror or error}") from None
        names[part] = list(found)
    class_names = names["test"]
    if names[parts[0]] != class_names:
        differing = sorted({*names["train"]} ^ {*class_names}) or ["their order"]
        raise DataError(f"--data-path {images.root}: classes of training and test images differ in {differing[0]}")
    if images.subsample_classes:
        n = images.subsample_classes
        if n > len(class_names):
            raise DataError(f"--subsample-classes {n}: {images.dataset} has {len(class_names)} classes")
        class_names = subsets.sample_classes(class_names, n, images.class_sample_seed)
        for part in parts:
            indices, labels = subsets.relabel(sources[part].labels, names[part], class_names)
            sources[part] = replace(sources[part].select(indices), labels=labels)
    notes = _notes(images, workers, sources)
    if "train" in sources:
        sources |= _split_and_corrupt(images, sources["train"], len(class_names))

    how = {"seed": seed, "workers": workers, "memory_format": memory_format, "share": share}
    loaders = {
        part: make_loader(images, source, batch_size, torch.device(device), training=part == "train", **how)
        for part, source in sources.items()
    }
    fingerprints = {part: fingerprint(sources[part], images.protocol) for part in parts}
    return Dataset(
        **loaders,
        num_classes=len(class_names),
        in_channels=images.spec.in_channels,
        image_size=images.image_size,
        class_names=class_names,
        train_fingerprint=fingerprints.get("train"),
        test_fingerprint=fingerprints["test"],
        notes=notes,
    )


def _notes(images: Images, workers: int, sources: Mapping[str, Source]) -> list[str]:
    name, notes = images.dataset, []
    if not images.spec.in_memory:
        if images.upscale:
            notes.append(f"--upscale has no effect on {name}: its images have 224x224 pixels already")
        cores = os.cpu_count()
        if workers > cores:
            notes.append(f"--workers {workers}: more than there are cores ({cores}), which may slow it down")
    if "train" in sources and not images.random_order:
        labels = sources["train"].labels
        changes = np.count_nonzero(np.diff(labels))  # of the class from one file to the next
        if 0 < changes == len(np.unique(labels)) - 1:
            order = "sorted by class and training takes them in that order"
            notes.append(f"the files of {name} are {order}: use --shuffle")
    left_out = sum((one.left_out for one in sources.values()), Counter())
    if left_out:
        named = ", ".join(f"{count} {name}" for name, count in left_out.most_common(10))
        more = ", ..." if len(left_out) > 10 else ""
        what = f"{left_out.total()} files or folders are left out, as no classes or images"
        notes.append(f"--data-path {images.root}: {what}: {named}{more}")
    return notes


def _split_and_corrupt(images: Images, train: Source, num_classes: int) -> dict[str, Source]:
    """Split off the validation images, and corrupt labels of the others, which stay in file order."""
    parts = {"train": train}
    if images.split:
        n, labels = len(train.labels), train.labels if images.stratified else None
        kept, split_off = subsets.split_indices(n, images.split, images.shuffle, images.split_seed, labels)
        if not len(split_off):
            raise DataError(f"--split {images.split:g}: leaves none of {n} images in the validation set")
        parts = {"train": train.select(np.sort(kept)), "val": train.select(split_off)}
    if images.noise > 0:
        labels = corrupt_labels(parts["train"].labels, num_classes, images.noise, images.noise_seed)
        parts["train"] = replace(parts["train"], labels=labels)
    return parts


def make_loader(
    images: Images,
    source: Source,
    batch_size: int,
    device: torch.device,
    *,
    training: bool = False,
    seed: int = 0,
    workers: int = 1,
    memory_format: torch.memory_format = torch.contiguous_format,
    share: tuple[int, int] = (0, 1),
) -> Loader:
    """Make the loader of some images; with `training`: in random order, augmented and shuffled as asked for."""
    spec = images.spec
    mean = std = None
    if images.normalization is not None:
        # Images (1, C, H, W) in the layout of the batches; see `transforms.normalize`.
        channels = torch.tensor(images.normalization, device=device)[:, None, :, None, None]
        channels = channels.expand(2, 1, -1, *images.image_size)
        mean, std = (values.contiguous(memory_format=memory_format) for values in channels)
    shuffle_seed = images.noise_seed if training and images.noise == PIXEL_SHUFFLE else None
    labels = torch.from_numpy(source.labels)
    common = {
        "batch_size": batch_size,
        "finish": functools.partial(transforms.normalize, mean=mean, std=std, memory_format=memory_format),
        "seed": seed,
        "random_order": training and images.random_order,
        "augmentation": training and images.augmentation,
        "share": share,
    }
    if not source.in_memory:
        preparation = Preparation(source.images, images.upscale_padding, spec.flip, shuffle_seed)
        return FolderLoader(preparation=preparation, labels=labels, device=device, workers=workers, **common)
    permutations = None
    if shuffle_seed is not None and images.upscaled_side is None:
        permutations = pixel_permutations(len(labels), math.prod(spec.image_size), shuffle_seed)
        permutations = torch.from_numpy(permutations).to(device)
    batch_bytes = 4 * -(-batch_size // share[1]) * spec.in_channels * math.prod(images.image_size)
    return MemoryLoader(
        images=source.images.to(device),
        labels=labels.to(device),
        side=images.upscaled_side,
        flip=spec.flip,
        permutations=permutations,
        permutation_seed=shuffle_seed if permutations is None else None,
        batches_at_once=max(1, BYTES_AT_ONCE[device.type] // batch_bytes),
        **common,
    )
