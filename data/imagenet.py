"""ImageNet, or any folder of its layout: train/ and val/ with one subfolder of images a class."""

from pathlib import Path

import numpy as np

from data.registry import DataError, FolderSource, Spec, register


def read_folder(folder: Path) -> tuple[FolderSource, list[str]]:
    """List the images of a folder with one subfolder a class; classes and files in alphabetical order."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

    try:
        class_names, class_to_label = find_classes(folder)
        samples = make_dataset(folder, class_to_label, extensions=IMG_EXTENSIONS)
    except OSError as error:
        reason = str(error.strerror or error).splitlines()[0]
        raise DataError(f"--data-path: {folder} is no folder of images by class: {reason}") from None
    labels = np.array([label for _, label in samples], dtype=np.int64)
    return FolderSource([file for file, _ in samples], labels), class_names


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
