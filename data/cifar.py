"""CIFAR-10 and CIFAR-100: the official binary version, or the one for Python, which torchvision downloads."""

import gzip
import hashlib
import io
import os
import pickle
import tarfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch

from core.text import first_line
from data.download import download
from data.registry import ArraySource, DataError, Spec, register

IMAGE_BYTES = 3 * 32 * 32
LARGEST_ARCHIVE_BYTES = 2**28  #: unpacked; the published ones have less than 2**27.5

CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
CIFAR100_CLASSES = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()
)


def contents(root: Path, folder: str, archive: str, names: Iterable[str]) -> dict[str, np.ndarray] | None:
    """Return the bytes of files in a folder, else in the archive that holds it; None if neither is there.

    Raises DataError if the archive is damaged, OSError if a file cannot be read.
    """
    if (root / folder).exists():
        return {str(root / folder / name): np.fromfile(root / folder / name, np.uint8) for name in names}
    path = root / archive
    if not path.exists():
        return None
    files = {}
    try:
        with gzip.open(path) as file:
            unpacked = io.BytesIO(file.read(LARGEST_ARCHIVE_BYTES))
        with tarfile.open(fileobj=unpacked, mode="r:") as tar:
            members = {os.path.normpath(member.name): member for member in tar if member.isreg()}
            for file in (f"{folder}/{name}" for name in names):
                if file not in members:
                    raise tarfile.TarError(f"there is no file {file} in it")
                content = tar.extractfile(members[file]).read(LARGEST_ARCHIVE_BYTES)
                files[f"{path}: {file}"] = np.frombuffer(content, np.uint8)
    except Exception as error:  # tarfile raises anything for a damaged file
        raise DataError(f"{path} cannot be read: {first_line(error)}") from None
    return files


def read_binary(files: Mapping[str, np.ndarray], label_bytes: int, num_classes: int) -> ArraySource:
    """Read files of the binary version: records of `label_bytes` labels and 3,072 pixels, channel by channel.

    The last label of a record is the class: CIFAR-100 has the superclass before it. All files hold the same number
    of records.

    Raises:
        DataError: a file is damaged.
    """
    record_bytes = label_bytes + IMAGE_BYTES
    images, labels = [], []
    for file, content in files.items():
        if not content.size or content.size % record_bytes:
            raise DataError(f"{file} is damaged: {content.size} bytes are not records of {record_bytes} bytes")
        records = content.reshape(-1, record_bytes)
        images.append(records[:, label_bytes:])
        labels.append(records[:, label_bytes - 1])
        if len(labels[-1]) != len(labels[0]):
            raise DataError(f"{file} is damaged: it holds {len(records)} images, others {len(labels[0])}")
        if labels[-1].max() >= num_classes:
            raise DataError(f"{file} is damaged: it holds a label above {num_classes - 1}")
    images = np.concatenate(images).reshape(-1, 3, 32, 32)
    return ArraySource(torch.from_numpy(images), np.concatenate(labels).astype(np.int64))


def read_pickled(files: Mapping[str, np.ndarray], checksums: Iterable[str]) -> ArraySource:
    """Read files of the version for Python. They are pickled: only what has the published checksum is read.

    Raises:
        DataError: a file is another one than was published.
    """
    images, labels = [], []
    for (file, content), checksum in zip(files.items(), checksums, strict=True):
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != checksum:
            raise DataError(f"{file} is damaged: its checksum is not that of the published file")
        rows = pickle.loads(content, encoding="latin1")
        images.append(rows["data"])
        labels += rows["labels" if "labels" in rows else "fine_labels"]
    images = np.concatenate(images).reshape(-1, 3, 32, 32)
    return ArraySource(torch.from_numpy(images), np.array(labels, dtype=np.int64))


def read(root: Path, train: bool, name: str, class_names: tuple[str, ...]):
    """Read CIFAR-10 or CIFAR-100 (torchvision's name: "CIFAR10", "CIFAR100"); download it if it is missing."""
    if name == "CIFAR10":
        folder, pickled, label_bytes = "cifar-10-batches-bin", "cifar-10-batches-py", 1
        names = [f"data_batch_{number}.bin" for number in range(1, 6)] if train else ["test_batch.bin"]
    else:
        folder, pickled, label_bytes = "cifar-100-binary", "cifar-100-python", 2
        names = ["train.bin"] if train else ["test.bin"]
    archives = [f"cifar-{len(class_names)}-{version}.tar.gz" for version in ("binary", "python")]
    files = contents(root, folder, archives[0], names)
    if files is not None:
        return read_binary(files, label_bytes, len(class_names)), class_names
    import torchvision.datasets

    published = getattr(torchvision.datasets, name)
    names, checksums = zip(*(published.train_list if train else published.test_list), strict=True)
    files = contents(root, pickled, archives[1], names)
    if files is None:
        download(name, root, pickled, f"put {' or '.join(archives)} into {root}")
        files = contents(root, pickled, archives[1], names)
    return read_pickled(files, checksums), class_names


colour_32x32 = partial(Spec, in_channels=3, image_size=(32, 32), flip=True)

register(
    colour_32x32(
        "cifar10",
        num_classes=10,
        normalization=((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        normalization_upscaled=((0.4914, 0.4822, 0.4465), (0.1953, 0.1925, 0.1942)),
        normalization_padded=((0.1229, 0.1206, 0.1117), (0.2367, 0.2323, 0.2190)),
        read=partial(read, name="CIFAR10", class_names=CIFAR10_CLASSES),
    )
)
register(
    colour_32x32(
        "cifar100",
        num_classes=100,
        normalization=((0.5071, 0.4865, 0.4409), (0.2009, 0.1984, 0.2023)),
        normalization_upscaled=((0.5071, 0.4865, 0.4409), (0.1942, 0.1918, 0.1958)),
        normalization_padded=((0.1268, 0.1217, 0.1103), (0.2435, 0.2343, 0.2177)),
        read=partial(read, name="CIFAR100", class_names=CIFAR100_CLASSES),
    )
)
