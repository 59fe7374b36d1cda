"""ImageNet, or any folder of its layout: train/ and val/ with one subfolder of images a class."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.registry import DataError, FolderSource, Spec, register


def list_images(top: str, extensions: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """The images below a folder, by the folder that they are in, in no order; links are followed.

    Nothing is opened, and a file of its own is not even looked at: a listing of a million images is cheap. What it
    shows to be wrong is told now, and not after hours of training.

    Raises:
        DataError: an image is a link to nothing, a pipe or a device; or a link leads to a folder that is listed
            already, so that its images would count more than once.
        OSError: a folder cannot be read.
    """
    seen, waiting = set(), [top]
    while waiting:
        folder = waiting.pop()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            raise DataError(f"{folder} is a link to a folder of the same class: its images would count twice")
        seen.add((status.st_dev, status.st_ino))
        images = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting.append(entry.path)
                elif entry.name.lower().endswith(extensions):
                    if not entry.is_file():
                        is_link = "is a link to nothing" if entry.is_symlink() else "is not a file"
                        raise DataError(f"{entry.path} {is_link}")
                    images.append(entry.path)
        yield folder, images


def read_folder(folder: Path) -> tuple[FolderSource, list[str]]:
    """List the images of a folder with one subfolder a class; classes, folders and files in alphabetical order.

    Raises:
        DataError: there are no classes, or none of their images; or see `list_images`.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    files, labels = [], []
    try:
        class_names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        if not class_names:
            raise DataError(f"--data-path: {folder} is no folder of images by class: there are no folders in it")
        for label, name in enumerate(class_names):
            found = [
                file
                for _, images in sorted(list_images(str(folder / name), IMG_EXTENSIONS))
                for file in sorted(images)
            ]
            if not found:
                raise DataError(f"--data-path: {folder / name} holds no image ({', '.join(IMG_EXTENSIONS)})")
            files += found
            labels += [label] * len(found)
    except OSError as error:
        where = folder if error.filename is None else error.filename
        raise DataError(
            f"--data-path: {where} is no folder of images by class: {error.strerror or error}"
        ) from None
    return FolderSource(files, np.array(labels, dtype=np.int64)), class_names


def read(root: Path, train: bool):
    """Read train/ or val/."""
    return read_folder(root / ("train" if train else "val"))


register(
    Spec(
        "imagenet",
        num_classes=1000,
        in_channels=3,
        image_size=(224, 224),
        normalization=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        read=read,
        flip=True,
        in_memory=False,
    )
)
