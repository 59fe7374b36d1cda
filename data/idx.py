"""MNIST, Fashion-MNIST and fashion_mnist_mini, the part of Fashion-MNIST in this repository: IDX files."""

import gzip
import math
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torch

from data.download import download
from data.registry import DataError, Source, Spec, register

IMAGE_SIZE, NUM_CLASSES = (28, 28), 10
DIGITS = tuple("0123456789")
CLOTHES = tuple("T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(","))
MINI = Path(__file__).parent / "fashion_mnist_mini"
FILES = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


def read_idx(path: Path, *size: int) -> np.ndarray:
    """Read an array (n, *size) of bytes in LeCun's IDX format: the file `path`, else the gzipped one `path`.gz.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions; each dimension as a
    big-endian 32-bit integer; the values in row-major order. Raises DataError if the file is damaged or holds
    another array, OSError if it is missing or cannot be read.
    """
    if not path.exists():
        path = path.with_name(f"{path.name}.gz")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}") from None
    content = np.frombuffer(bytearray(content), np.uint8)  # bytearray: writable
    dimensions = 1 + len(size)
    start = 4 + 4 * dimensions
    n, rest = divmod(content.size - start, math.prod(size))
    if n < 1 or rest or bytes(content[:start]) != struct.pack(f">{1 + dimensions}I", 0x800 + dimensions, n, *size):
        wanted = " x ".join(map(str, ("n", *size)))
        raise DataError(f"{path} is damaged: it is not an IDX file with {wanted} bytes")
    return content[start:].reshape(n, *size)


def read_part(folder: Path, part: str) -> Source:
    """Read the training images ("train") or the test images ("t10k") in a folder."""
    images = read_idx(folder / f"{part}-images-idx3-ubyte", *IMAGE_SIZE)
    labels_file = folder / f"{part}-labels-idx1-ubyte"
    labels = read_idx(labels_file)
    if len(labels) != len(images) or labels.max() >= NUM_CLASSES:
        raise DataError(f"{labels_file} is damaged: it does not hold {len(images)} labels below {NUM_CLASSES}")
    return Source(torch.from_numpy(images[:, None]), labels.astype(np.int64))


def read(root: Path, train: bool, folder: str, class_names: tuple[str, ...]):
    """Read a dataset in torchvision's layout, <root>/<folder>/raw; download it if it is missing."""
    raw = root / folder / "raw"
    if not raw.exists():
        download(folder, root, folder, f"put {', '.join(FILES)} into {raw}")
    return read_part(raw, "train" if train else "t10k"), class_names


def read_mini(root: Path, train: bool):
    """Read the part of Fashion-MNIST in this repository; the folder of the datasets is not used."""
    return read_part(MINI, "train" if train else "t10k"), CLOTHES


grey_28x28 = partial(Spec, num_classes=NUM_CLASSES, in_channels=1, image_size=IMAGE_SIZE)
fashion_mnist = partial(
    grey_28x28,
    normalization=((0.2860,), (0.3530,)),
    normalization_upscaled=((0.2860,), (0.3392,)),
    normalization_padded=((0.0711,), (0.2095,)),
)

register(
    grey_28x28(
        "mnist",
        normalization=((0.1307,), (0.3015,)),
        normalization_upscaled=((0.1307,), (0.2895,)),
        normalization_padded=((0.0327,), (0.1553,)),
        read=partial(read, folder="MNIST", class_names=DIGITS),
    )
)
register(fashion_mnist("fashion_mnist", read=partial(read, folder="FashionMNIST", class_names=CLOTHES)))
register(fashion_mnist("fashion_mnist_mini", read=read_mini, in_repository=True))
