"""Folders of images with broken, huge and strange files: one line names the file, and unusual images are read."""

import io
import os
import pickle
import re
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import run_main, shell
from sample_datasets import load_folder, write_images

import data
import train

IMAGENET = ("--arch", "resnet18", "--dataset", "imagenet", "--data-path", "images")
IMAGES = Path("images")
FIRST = IMAGES / "train/n000"


@pytest.fixture(autouse=True)
def images():
    """A folder like that of ImageNet, with two images in each of two classes."""
    write_images(IMAGES, counts=(2, 2))


def encoded(kind: str, size: tuple[int, int] = (60, 50), mode: str = "RGB", **options) -> bytes:
    pixels = np.random.RandomState(0).randint(256, size=(*size[::-1], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def remove_images(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


FOLDERS = {  # what is wrong with the folder, and what the message names
    "empty class": (lambda: remove_images(FIRST), "training images: .*n000"),
    "empty class for testing": (lambda: remove_images(IMAGES / "val/n000"), "test images: .*n000"),
    "class for testing only": (lambda: FIRST.rename("elsewhere"), "n000"),
    "no classes": (lambda: (IMAGES / "train").rename("elsewhere"), "images/train"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_wrong_folder_of_images_is_refused_before_a_run(name, capsys, count):
    change, named = FOLDERS[name]
    change()
    assert run_main(train, *IMAGENET, "--workers", 0) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(named, line)
    count("hostile files refused")


class Hostile:
    def __reduce__(self):
        return os.system, ("touch it_ran",)


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG of this size, without its pixels."""
    chunk = b"IHDR" + struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


BROKEN = {
    "pickle.png": pickle.dumps(Hostile()),
    "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "bomb.png": png_header(2**31 - 1, 2**31 - 1),
    "large.png": png_header(20_000, 20_000),
    "float.tiff": encoded("TIFF", mode="F"),
    "int.tiff": encoded("TIFF", mode="I"),
    "truncated.jpg": encoded("JPEG")[:-500],
    "truncated.png": encoded("PNG")[:-500],
    "truncated.tif": encoded("TIFF")[:-500],
    "crc.png": encoded("PNG")[:40] + b"\xff\xff" + encoded("PNG")[42:],
    "new\nline.jpg": b"text",
    "bytes\udcff\udcfe.jpg": b"text",
    "empty.jpg": b"",
    "vanished.png": None,
}


@pytest.mark.parametrize(
    ("name", "workers", "augmentation"),
    [*((name, 0, False) for name in BROKEN), ("bomb.png", 0, True), ("truncated.jpg", 2, True)],
)
def test_broken_image_is_an_error_in_one_line_that_names_it(name, workers, augmentation, count):
    path = FIRST / name
    path.write_bytes(BROKEN[name] or b"")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loader = load_folder(IMAGES, augmentation=augmentation, workers=workers).train
    if BROKEN[name] is None:
        path.unlink()
    with pytest.raises(data.ImageError) as error:
        list(loader)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value).replace(name, "")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # a gigabyte
    assert not Path("it_ran").exists()
    count("hostile files refused")


@pytest.mark.long
def test_broken_image_ends_a_run_with_persistent_workers(count):
    """The workers wait for the next epoch."""
    (FIRST / "a\n\x1b[2J\udcff.jpg").write_bytes(b"text")
    options = ("--epochs", 2, "--batch-size", 2, "--shuffle", "--workers", 2)
    finished = shell("train.py", *IMAGENET, *options)
    assert finished.returncode == 1
    (line,) = finished.stderr.splitlines()
    assert "train/n000/a \\x1b[2J\\udcff.jpg" in line
    count("hostile files refused")


def test_missing_shared_memory_is_an_error_that_names_the_option(monkeypatch):
    def none_left(tensor):
        raise RuntimeError("unable to allocate shared memory: No space left on device")

    monkeypatch.setattr(torch.Tensor, "share_memory_", none_left)  # the workers, which are forked, have it too
    with pytest.raises(data.ImageError, match="--workers 0"):
        list(load_folder(IMAGES, workers=1, shuffle=True).train)


UNUSUAL = {
    "palette with transparency.png": encoded("PNG", mode="P", transparency=b"\0\1"),
    "animated.webp": encoded("WEBP", save_all=True, append_images=[Image.new("RGB", (60, 50))]),
    "tiny.png": encoded("PNG", (1, 1)),
    "long.jpg": encoded("JPEG", (2000, 5)),
    "deep/er/1.png": encoded("PNG"),
    "link/1.png": encoded("PNG"),
}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_unusual_images_are_read():
    (FIRST / "link").symlink_to(Path("elsewhere").absolute())
    for folder in ("elsewhere", FIRST / "deep/er"):
        Path(folder).mkdir(parents=True)
    for name, content in UNUSUAL.items():
        (FIRST / name).write_bytes(content)
    ((batch, labels),) = load_folder(IMAGES, 50, unnormalize=True).train
    assert labels.tolist() == [0] * (2 + len(UNUSUAL)) + [1] * 2
    assert batch.flatten(1).std(1).gt(0).sum() >= len(labels) - 1  # all but the one of a single pixel


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_images_of_16_bits_a_pixel_keep_their_brightness(kind):
    pixels = np.random.RandomState(1).randint(2**15, size=(224, 224)).astype(np.uint16)
    Image.fromarray(pixels).save(FIRST / f"16.{kind}")
    images, _ = next(iter(load_folder(IMAGES, unnormalize=True).train))
    assert images[2].mean().item() == pytest.approx(pixels.mean() / 2**16, abs=0.02)
