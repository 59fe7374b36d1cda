"""The datasets, by name, and batches of their images.

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
