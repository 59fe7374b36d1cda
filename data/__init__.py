"""The datasets, by name.

    names()                     which datasets there are
    info(name)                  number of classes and channels, and image size of a dataset, without reading it
    Images(dataset, root, ...)  which images are asked for: classes, label noise, split, augmentation, ...
    load(images, batch_size)    their batches for training, validation and testing

Every module of this package is imported here, and registers its datasets with `register`: to add a dataset, add
one file.
"""

import importlib
import pkgutil

from data.images import Images
from data.loading import Dataset, load
from data.registry import DataError, ImageError, info, names, register

for _module in pkgutil.iter_modules(__path__, prefix="data."):
    importlib.import_module(_module.name)

__all__ = ["DataError", "Dataset", "ImageError", "Images", "info", "load", "names", "register"]
