"""The datasets that can be trained on, by name.

    names()                          which datasets there are
    info(name)                       number of classes, channels and image size of one, without reading it
    check_options(name, ...)         raises DataError for what is wrong with options that `load` would be given
    load(name, root, batch_size)     its batches, with class subsampling, label noise, pixel shuffle, a validation
                                     split and augmentation where asked for
    load_test(name, root, batch_size) the test images alone

Every module of this package that is not a package itself is imported here, and registers what it offers
with `register`: a dataset is added by adding one file.
"""

import importlib
import pkgutil

from data.loading import Dataset, TestSet, check_options, load, load_test
from data.registry import DataError, ImageError, info, names, register

for _module in pkgutil.iter_modules(__path__, prefix="data."):
    if not _module.ispkg:
        importlib.import_module(_module.name)

#: Version of the data manipulations: raised when the same options and seeds begin to give other images or labels.
PROTOCOL = 1

__all__ = [
    "PROTOCOL",
    "DataError",
    "Dataset",
    "ImageError",
    "TestSet",
    "check_options",
    "info",
    "load",
    "load_test",
    "names",
    "register",
]
