"""Small datasets in the formats of the real ones, and how the tests load them."""

import gzip
import struct
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import data

MINI = Path(data.__file__).parent / "fashion_mnist_mini"


def load(dataset, root, batch_size, **options):
    """Call `data.load` with the options of `data.Images` and its own ones together."""
    names = {field.name for field in fields(data.Images)} & options.keys()
    images = data.Images(dataset, root, **{name: options.pop(name) for name in names})
    return data.load(images, batch_size, **options)


def load_mini(batch_size=500, **options):
    return load("fashion_mnist_mini", "no such folder", batch_size, **options)


def load_folder(root, batch_size=5, workers=0, **options):
    return load("imagenet", root, batch_size, workers=workers, **options)


def mini_arrays(part="train"):
    """Read the images and labels in the repository without the code under test."""
    images = gzip.decompress((MINI / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((MINI / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    images = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    return images, np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)


def whole(loader):
    """Return all images and all labels of an epoch."""
    batches = list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def pixels(loader):
    """Return an epoch loaded with `unnormalize`: images as integers 0 to 255 (n, C, H, W), and labels."""
    images, labels = whole(loader)
    values = images.double().numpy() * 255
    rounded = np.rint(values)
    assert np.abs(values - rounded).max() < 1e-3
    return rounded.astype(np.uint8), labels.numpy()


def write_idx(file, array):
    array = np.asarray(array, dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    file.write_bytes(header + array.tobytes())


def write_mnist(root, folder="MNIST", n=40, seed=0):
    """Write files in torchvision's layout; return the training and the test arrays (images, labels)."""
    random, parts = np.random.default_rng(seed), []
    for part, count in (("train", n), ("t10k", 10)):
        images = random.integers(256, size=(count, 28, 28), dtype=np.uint8)
        labels = np.arange(count) * 7 % 10
        write_idx(root / folder / "raw" / f"{part}-images-idx3-ubyte", images)
        write_idx(root / folder / "raw" / f"{part}-labels-idx1-ubyte", labels)
        parts.append((images[:, None], labels))
    return parts


def write_cifar(root, classes=10, n=8, seed=0):
    """Write the binary version with n images per file; return the training and the test arrays."""
    random, parts = np.random.default_rng(seed), []
    if classes == 10:
        folder = root / "cifar-10-batches-bin"
        names = [f"data_batch_{number}.bin" for number in range(1, 6)], ["test_batch.bin"]
    else:
        folder, names = root / "cifar-100-binary", (["train.bin"], ["test.bin"])
    folder.mkdir(parents=True)
    for files in names:
        images = random.integers(256, size=(len(files) * n, 3, 32, 32), dtype=np.uint8)
        labels = random.integers(classes, size=len(files) * n)
        for number, file in enumerate(files):
            here = range(number * n, number * n + n)
            superclass = b"" if classes == 10 else b"\7"
            (folder / file).write_bytes(
                b"".join(superclass + bytes([labels[i]]) + images[i].tobytes() for i in here)
            )
        parts.append((images, labels))
    return parts


def write_images(root, counts=(4, 3, 5), size=(40, 36), suffix=".png", seed=0):
    """Write a folder of images with one subfolder per class; return the paths of the training images in order."""
    random, paths = np.random.default_rng(seed), []
    for part in ("train", "val"):
        for label, count in enumerate(counts):
            folder = root / part / f"n{label:03}"
            folder.mkdir(parents=True)
            for number in range(count):
                colours = random.integers(256, size=(5, 6, 3), dtype=np.uint8)
                path = folder / f"{number:03}{suffix}"
                Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(path)
                if part == "train":
                    paths.append(path)
    return paths
