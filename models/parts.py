"""The parts of a network: segments that run one after another, and the layers that are measured."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn


class Function(nn.Module):
    """A function without parameters, as a segment."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


#: What the forward methods of torchvision's classes run, in order: submodules, or functions in capitals (below).
_TORCHVISION = {
    **dict.fromkeys(("AlexNet", "EfficientNet", "MobileNetV3", "VGG"), "features avgpool FLATTEN classifier"),
    "ConvNeXt": "features avgpool classifier",
    "DenseNet": "features RELU POOL FLATTEN classifier",
    "MNASNet": "layers MEAN classifier",
    "MobileNetV2": "features POOL FLATTEN classifier",
    "RegNet": "stem trunk_output avgpool FLATTEN fc",
    "ResNet": "conv1 bn1 relu maxpool layer1 layer2 layer3 layer4 avgpool FLATTEN fc",
    "ShuffleNetV2": "conv1 maxpool stage2 stage3 stage4 conv5 MEAN fc",
    "SqueezeNet": "features classifier FLATTEN",
}
_FUNCTIONS: dict[str, Callable[[], nn.Module]] = {
    "FLATTEN": nn.Flatten,
    "MEAN": lambda: Function(lambda x: x.mean([2, 3])),
    "POOL": lambda: nn.AdaptiveAvgPool2d((1, 1)),
    "RELU": nn.ReLU,
}


def segments(net: nn.Module) -> list[nn.Module]:
    """Cut a network into modules that, run one after another, compute the same as the network.

    An nn.Sequential is cut into its modules, torchvision's networks as listed above. A network may have a method
    `segments` that returns them. Any other network is one segment, and so is one that uses the same weights in
    several segments.
    """
    parts = net.segments() if hasattr(net, "segments") else list(_flatten(_torchvision_chain(net)))
    parameters = [id(parameter) for part in parts for parameter in part.parameters()]
    return parts if len(set(parameters)) == len(parameters) else [net]


def _torchvision_chain(net: Any) -> list[nn.Module]:
    """Return the modules that one of torchvision's networks runs; [net] for any other network."""
    kind = type(net).__name__
    if not type(net).__module__.startswith("torchvision.models."):  # classes derived from torchvision's are others
        return [net]
    if kind in ("GoogLeNet", "Inception3") and not net.aux_logits:  # they run their modules in order
        *trunk, avgpool, dropout, fc = net.children()
        return [Function(net._transform_input), *trunk, avgpool, nn.Flatten(), dropout, fc]
    names = _TORCHVISION.get(kind, "").split()
    return [_FUNCTIONS[name]() if name in _FUNCTIONS else net.get_submodule(name) for name in names] or [net]


def _flatten(chain: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Yield the modules of a chain. Those inside an nn.Sequential are yielded one by one."""
    for module in chain:
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            yield from _flatten(module)
        else:
            yield module


class Layer(NamedTuple):
    """A layer whose filters are measured, and its place in the network."""

    name: str  #: name of the module in the network, such as "features.0"
    module: nn.Module | None  #: nn.Conv2d or nn.Linear; None: only the weights are known
    stage: int  #: number of segments so far that lower the resolution, not counting the first convolution
    block: int  #: position within the stage, from 0
    weight: str  #: name of its weights in a state_dict
    depthwise: bool = False  #: whether each filter has one channel of its own; told of weights alone


def layers(net: nn.Module, with_linear: bool = False) -> list[Layer]:
    """Return the convolutional layers in network order, without 1x1 convolutions.

    Each segment that lowers the resolution starts a new stage, except the first convolution of the network. So the
    stage of a layer of LeNet, AlexNet or VGG is the number of max-pooling layers before it. In a ResNet the stem
    is stage 0, and `layer1` to `layer4` are stages 1 to 4. In a block with branches, all layers of one branch come
    before those of the next. Layers that share their weights are listed once, as the first of them.

    with_linear: include the fully connected layers, in a stage of their own. Linear layers in a block with a
    convolution (ConvNeXt) are not included: they are applied to each pixel, as 1x1 convolutions.
    """
    names = {id(module): name for name, module in net.named_modules()}
    parts = segments(net)
    if len(parts) == 1:  # the order of execution is unknown: take that of registration
        kinds = (nn.Conv2d, nn.Linear)
        parts = [one for one in net.modules() if isinstance(one, kinds) or next(one.children(), None) is None]
    found: list[Layer] = []
    stage = 0
    for part in parts:
        modules = list(part.modules())
        convolutional = any(isinstance(module, nn.Conv2d) for module in modules)
        if found and any(map(_lowers_resolution, modules)):
            stage += 1
        for module in modules:
            is_linear = with_linear and not convolutional and isinstance(module, nn.Linear)
            if not is_linear and not (isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)):
                continue
            if any(module.weight is layer.module.weight for layer in found):
                continue
            if is_linear and found and isinstance(found[-1].module, nn.Conv2d) and found[-1].stage == stage:
                stage += 1
            block = sum(layer.stage == stage for layer in found)
            name = names[id(module)]
            found.append(Layer(name, module, stage, block, f"{name}.weight"))
    return found


def layers_of_weights(weights: Mapping[str, Tensor], with_linear: bool = False) -> list[Layer]:
    """Return the layers that weights without a network belong to, in the order of the weights, in one stage.

    They are all weights of four dimensions that are not of 1x1 convolutions; with_linear: also those of two. A
    layer is called depthwise if its filters, more than one, have one channel each.
    """
    found: list[Layer] = []
    for name, weight in weights.items():
        is_kernel = weight.numel() > 0 and weight.dim() == 4 and weight.shape[2:] != (1, 1)
        if weight.is_floating_point() and (is_kernel or (with_linear and weight.numel() and weight.dim() == 2)):
            depthwise = is_kernel and weight.shape[1] == 1 < weight.shape[0]
            found.append(Layer(name.removesuffix(".weight"), None, 0, len(found), name, depthwise))
    return found


def _lowers_resolution(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return max(module.stride) > 1 and module.kernel_size != (1, 1)
    if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
        return module.stride not in (1, (1, 1))
    return False
