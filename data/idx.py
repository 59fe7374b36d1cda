"""MNIST and Fashion-MNIST, and a small part of the latter that is here: files in LeCun's IDX format."""

import gzip
import math
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torch

from data.download import download
from data.registry import ArraySource, DataError, Spec, register

IMAGE_SIZE, NUM_CLASSES = (28, 28), 10
DIGITS = tuple("0123456789")
CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
MINI = Path(__file__).parent / "fashion_mnist_mini"


def read_idx(path: Path) -> np.ndarray:
    """Read an array of bytes in IDX format, gzipped where the name ends in .gz.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions; each dimension as a
    big-endian 32-bit integer; the content in row-major order.

    Raises:
        DataError: the file cannot be read, is damaged, or holds something else.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is not a file")
    try:
        if path.suffix == ".gz":
            content = np.frombuffer(bytearray(gzip.decompress(path.read_bytes())), np.uint8)
        else:
            content = np.fromfile(path, np.uint8)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    head = bytes(content[: 4 + 4 * 255])
    if len(head) < 4 or head[:3] != b"\0\0\x08" or len(head) < 4 + 4 * head[3]:
        raise DataError(f"{path} is not an IDX file of bytes")
    shape = struct.unpack_from(f">{head[3]}I", head, 4)
    values = content[4 + 4 * len(shape) :]
    if values.size != math.prod(shape):
        raise DataError(f"{path} is damaged: {values.size} bytes for an array of shape {shape}")
    try:
        return values.reshape(shape)
    except ValueError as error:  # more dimensions than numpy has
        raise DataError(f"{path} is damaged: {error}") from None


def read_part(folder: Path, part: str, suffix: str = "") -> ArraySource:
    """Read the training images ("train") or the test images ("t10k") of a folder.

    Args:
        suffix: of the files: ".gz" for compressed ones.

    Raises:
        DataError: a file is missing, damaged, or not what was asked for.
    """
    images_file = folder / f"{part}-images-idx3-ubyte{suffix}"
    labels_file = folder / f"{part}-labels-idx1-ubyte{suffix}"
    images, labels = read_idx(images_file), read_idx(labels_file)
    if images.shape[1:] != IMAGE_SIZE or not len(images):
        raise DataError(f"{images_file} holds an array of shape {images.shape}, not images of 28x28 pixels")
    if labels.shape != images.shape[:1]:
        raise DataError(f"{labels_file} holds an array of shape {labels.shape} for {len(images)} images")
    if labels.max() >= NUM_CLASSES:
        raise DataError(f"{labels_file} holds the label {labels.max()}; there are {NUM_CLASSES} classes")
    return ArraySource(torch.from_numpy(images[:, None]), labels.astype(np.int64))


def read(root: Path, train: bool, folder: str, class_names: tuple[str, ...]):
    """Read a dataset from <root>/<folder>/raw, the layout of torchvision, which downloads it where it is not."""
    raw = root / folder / "raw"
    if not raw.exists():
        download(folder, root, folder)
    return read_part(raw, "train" if train else "t10k"), class_names


def read_mini(root: Path, train: bool):
    """Read the part of Fashion-MNIST that lies beside this file; the folder of the datasets does not matter."""
    return read_part(MINI, "train" if train else "t10k", ".gz"), CLOTHES


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
