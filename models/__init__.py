"""The networks that can be trained and measured, by name.

Every module in this folder is imported here and registers its architectures with the decorator `register`. To add
an architecture, add a file.
"""

import importlib
import pkgutil

from models.building import OTHERS, build, check, has_batch_norm, names, structure  # noqa: F401
from models.own import explain_own_error, load_own  # noqa: F401
from models.parts import Layer, layers, layers_of_weights, segments  # noqa: F401
from models.registry import WEIGHTS_ALONE, ModelError, register  # noqa: F401
from models.zoo import other_names  # noqa: F401

for _module in pkgutil.iter_modules(__path__, prefix="models."):
    importlib.import_module(_module.name)
