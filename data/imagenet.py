"""ImageNet, or any folder in its layout: train/ and val/, each with one subfolder of images per class."""

from pathlib import Path

import numpy as np

from data.registry import FolderSource, Spec, register


def read(root: Path, train: bool):
    """List the images in train/ or val/; classes, folders and files are in alphabetical order.

    No image is opened, so listing a million of them is fast. Symbolic links are followed.

    Raises:
        OSError: a folder is missing or cannot be read, there are no classes, or a class has no images.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

    folder = root / ("train" if train else "val")
    class_names, label_of = find_classes(folder)
    files, labels = zip(*make_dataset(folder, label_of, IMG_EXTENSIONS), strict=True)
    return FolderSource(files, np.array(labels, dtype=np.int64)), class_names


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
