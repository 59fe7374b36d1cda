"""The datasets, by name, and batches of their images.

Every module of this package is imported here, and registers its datasets with `register`: to add a dataset, add
one file.
"""

import importlib
import pkgutil

from data.images import Images  # noqa: F401
from data.loading import Dataset, load  # noqa: F401
from data.registry import DataError, ImageError, info, names, register  # noqa: F401

for _module in pkgutil.iter_modules(__path__, prefix="data."):
    importlib.import_module(_module.name)
