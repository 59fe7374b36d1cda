"""ImageNet, or any folder in its layout: train/ and val/, each with one subfolder of images per class."""

import os
from collections import Counter
from pathlib import Path

import numpy as np

from data.registry import Source, Spec, register

SUFFIXES = set(".jpg .jpeg .jpe .jfif .png .bmp .webp .tif .tiff .ppm .pgm .gif .avif".split())
#: What systems leave in folders, besides names that begin with a dot. Never a class or an image.
LEFT_BEHIND = {
    *("@eadir", "@recycle", "#recycle", "#snapshot", "__macosx", "$recycle.bin", "system volume information"),
    *("lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
}


def read(root: Path, train: bool):
    """List the images in train/ or val/; classes, folders and files are in alphabetical order.

    No image is opened, so listing a million of them is fast. Symbolic links are followed. Raises OSError if a
    folder is missing or cannot be read, it has no folders, or a class has no images.
    """
    from PIL import Image
    from torchvision.datasets.folder import find_classes, make_dataset

    folder = root / ("train" if train else "val")
    suffixes = SUFFIXES & Image.registered_extensions().keys()  # an old Pillow cannot read .avif
    left_out: Counter[str] = Counter()

    def is_image(path: str) -> bool:
        suffix = os.path.splitext(path)[1].lower()
        kind = next(filter(None, map(left_behind, path.removeprefix(f"{folder}/").split("/"))), "")
        if not kind and suffix in suffixes:
            return True
        left_out[kind or f"*{suffix or ' without suffix'}"] += 1
        return False

    found = find_classes(folder)[0]
    class_names = [name for name in found if not left_behind(name)]
    left_out.update(set(found) - set(class_names))
    label_of = {name: label for label, name in enumerate(class_names)}
    if not class_names:
        raise FileNotFoundError(2, "there is no folder of a class", str(folder))
    files, labels = zip(*make_dataset(folder, label_of, is_valid_file=is_image), strict=True)
    return Source(files, np.array(labels, dtype=np.int64), left_out), class_names


def left_behind(name: str) -> str:
    """Return how a name is counted that systems leave in folders, and people do not give; "" for all others."""
    if name.startswith("._"):
        return "._*"
    return name if name.startswith(".") or name.lower() in LEFT_BEHIND else ""


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
