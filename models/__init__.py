"""The networks that can be trained and measured, by name.

    names()                          which architectures there are: those of the papers
    other_names()                    which further ones can be built: torchvision's ConvNets
    check(arch, pretrained)          raises ModelError where there is no such architecture
    build(arch, num_classes, ...)    one of them, freshly initialized or with ImageNet weights
    structure(arch, num_classes, ...) one without values: the names and shapes of its weights
    try_an_image(arch, ...)          what one makes of an image: the shape
    has_batch_norm(arch)             whether it has batch norm layers
    own_names(names)                 the names of weights, without what DataParallel put before them
    segments(net)                    the network as modules that are run one after another
    layers(net, with_linear)         the layers whose filters are measured, with their place in the network
    check_own_weights(layers)        raises ModelError where the weights of one are computed from others

Every module of this package that is not a package itself is imported here, and registers what it offers
with the decorator `register`: an architecture is added by adding one file.
"""

import importlib
import pkgutil

from models.parts import Layer, check_own_weights, layers, segments
from models.registry import (
    ModelError,
    build,
    check,
    has_batch_norm,
    names,
    other_names,
    own_names,
    register,
    structure,
    try_an_image,
)

for _module in pkgutil.iter_modules(__path__, prefix="models."):
    if not _module.ispkg:
        importlib.import_module(_module.name)

__all__ = [
    "Layer",
    "ModelError",
    "build",
    "check",
    "check_own_weights",
    "has_batch_norm",
    "layers",
    "names",
    "other_names",
    "own_names",
    "register",
    "segments",
    "structure",
    "try_an_image",
]
