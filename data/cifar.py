"""CIFAR-10 and CIFAR-100: the official binary version, or the one for Python, which torchvision downloads."""

import gzip
import io
import tarfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from core.text import first_line
from data.download import download
from data.registry import DataError, Source, Spec, register

IMAGE_BYTES = 3 * 32 * 32
LARGEST_ARCHIVE_BYTES = 2**28  #: unpacked; the published ones have less than 2**27.5

CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
CIFAR100_CLASSES = tuple(Path(__file__).with_name("cifar100_classes.txt").read_text().split())


def contents(root: Path, folder: str, archive: str, names: Sequence[str]) -> dict[str, bytes] | None:
    """Return the contents of files in a folder, else in the archive that holds it; None if neither is there.

    Raises DataError if the archive is damaged, OSError if a file cannot be read.
    """
    path = root / archive
    if (root / folder).exists():
        return {str(root / folder / name): (root / folder / name).read_bytes() for name in names}
    if not path.exists():
        return None
    try:
        with gzip.open(path) as file, tarfile.open(fileobj=io.BytesIO(file.read(LARGEST_ARCHIVE_BYTES))) as tar:
            return {f"{path}: {name}": tar.extractfile(f"{folder}/{name}").read() for name in names}
    except Exception as error:  # tarfile raises anything for a damaged file
        raise DataError(f"{path} cannot be read: {first_line(error)}") from None


def read_binary(files: Mapping[str, bytes], label_bytes: int, num_classes: int) -> Source:
    """Read files of the binary version: records of `label_bytes` labels and 3,072 pixels, channel by channel.

    The last label of a record is the class: CIFAR-100 has the superclass before it. Raises DataError if a file is
    damaged.
    """
    record_bytes = label_bytes + IMAGE_BYTES
    parts = []
    for file, content in files.items():
        if not content or len(content) % record_bytes:
            raise DataError(f"{file} is damaged: {len(content)} bytes are not records of {record_bytes} bytes")
        parts.append(np.frombuffer(content, np.uint8).reshape(-1, record_bytes))
        if parts[-1][:, label_bytes - 1].max() >= num_classes:
            raise DataError(f"{file} is damaged: it holds a label above {num_classes - 1}")
    records = np.concatenate(parts)
    images = records[:, label_bytes:].reshape(-1, 3, 32, 32)
    return Source(torch.from_numpy(images), records[:, label_bytes - 1].astype(np.int64))


def read(root: Path, train: bool, class_names: Sequence[str]):
    """Read CIFAR-10 or CIFAR-100; download the version for Python if neither version is there.

    torchvision checks that the files for Python are as they were published before it unpickles them.
    """
    if class_names is CIFAR10_CLASSES:
        name, folder, label_bytes = "CIFAR10", "cifar-10-batches-bin", 1
        names = [f"data_batch_{number}.bin" for number in range(1, 6)] if train else ["test_batch.bin"]
    else:
        name, folder, label_bytes = "CIFAR100", "cifar-100-binary", 2
        names = ["train.bin"] if train else ["test.bin"]
    archive = f"cifar-{len(class_names)}-binary.tar.gz"
    files = contents(root, folder, archive, names)
    if files is not None:
        return read_binary(files, label_bytes, len(class_names)), class_names
    import torchvision.datasets

    published = getattr(torchvision.datasets, name)
    pickled = published.base_folder
    if not (root / pickled).exists():
        download(name, root, pickled, f"put {archive} or {published.filename} into {root}", published.filename)
    try:
        dataset = published(root, train)
    except RuntimeError:
        raise DataError(f"{root / pickled} is damaged: its files are not those that were published") from None
    images = torch.from_numpy(dataset.data.transpose(0, 3, 1, 2))
    return Source(images, np.array(dataset.targets, dtype=np.int64)), class_names


colour_32x32 = partial(Spec, in_channels=3, image_size=(32, 32), flip=True)

register(
    colour_32x32(
        "cifar10",
        num_classes=10,
        normalization=((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        normalization_upscaled=((0.4914, 0.4822, 0.4465), (0.1953, 0.1925, 0.1942)),
        normalization_padded=((0.1229, 0.1206, 0.1117), (0.2367, 0.2323, 0.2190)),
        read=partial(read, class_names=CIFAR10_CLASSES),
    )
)
register(
    colour_32x32(
        "cifar100",
        num_classes=100,
        normalization=((0.5071, 0.4865, 0.4409), (0.2009, 0.1984, 0.2023)),
        normalization_upscaled=((0.5071, 0.4865, 0.4409), (0.1942, 0.1918, 0.1958)),
        normalization_padded=((0.1268, 0.1217, 0.1103), (0.2435, 0.2343, 0.2177)),
        read=partial(read, class_names=CIFAR100_CLASSES),
    )
)
