"""The parts of a network: segments that are run one after another, and the layers that are measured."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from models.registry import ModelError


class Function(nn.Module):
    """A function without parameters as a segment."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _mean(x: Tensor) -> Tensor:
    return x.mean([2, 3])


def _features(net: Any) -> list[nn.Module]:
    return [net.features, net.avgpool, nn.Flatten(), net.classifier]


def _resnet(net: Any) -> list[nn.Module]:
    stem = [net.conv1, net.bn1, net.relu, net.maxpool]
    return [*stem, net.layer1, net.layer2, net.layer3, net.layer4, net.avgpool, nn.Flatten(), net.fc]


def _densenet(net: Any) -> list[nn.Module]:
    return [net.features, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), net.classifier]


def _mobilenet_v2(net: Any) -> list[nn.Module]:
    return [net.features, nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), net.classifier]


def _regnet(net: Any) -> list[nn.Module]:
    return [net.stem, net.trunk_output, net.avgpool, nn.Flatten(), net.fc]


def _shufflenet(net: Any) -> list[nn.Module]:
    return [net.conv1, net.maxpool, net.stage2, net.stage3, net.stage4, net.conv5, Function(_mean), net.fc]


def _inception(net: Any) -> list[nn.Module]:
    """GoogLeNet and Inception v3 run what they are made of in the order that it is registered in."""
    if net.aux_logits:
        return [net]
    *trunk, avgpool, dropout, fc = net.children()
    return [Function(net._transform_input), *trunk, avgpool, nn.Flatten(), dropout, fc]


#: What the forward methods of torchvision's classes do, by the name of the class: torchvision need not be imported
#: to know one. A class that is derived from one of these may do something else, and is not among them.
_TORCHVISION: dict[str, Callable[[Any], list[nn.Module]]] = {
    "torchvision.models.alexnet.AlexNet": _features,
    "torchvision.models.convnext.ConvNeXt": lambda net: [net.features, net.avgpool, net.classifier],
    "torchvision.models.densenet.DenseNet": _densenet,
    "torchvision.models.efficientnet.EfficientNet": _features,
    "torchvision.models.googlenet.GoogLeNet": _inception,
    "torchvision.models.inception.Inception3": _inception,
    "torchvision.models.mnasnet.MNASNet": lambda net: [net.layers, Function(_mean), net.classifier],
    "torchvision.models.mobilenetv2.MobileNetV2": _mobilenet_v2,
    "torchvision.models.mobilenetv3.MobileNetV3": _features,
    "torchvision.models.regnet.RegNet": _regnet,
    "torchvision.models.resnet.ResNet": _resnet,
    "torchvision.models.shufflenetv2.ShuffleNetV2": _shufflenet,
    "torchvision.models.squeezenet.SqueezeNet": lambda net: [net.features, net.classifier, nn.Flatten()],
    "torchvision.models.vgg.VGG": _features,
}


def segments(net: nn.Module) -> list[nn.Module]:
    """The network cut into modules that, run one after another, are the network.

    A network of this package says by a method `segments` what they are; torchvision's are known here. Any other
    is one segment, and so is one that uses the same weights in several.

    Raises:
        ModelError: the method `segments` does not give modules.
    """
    own = getattr(net, "segments", None)
    if own is not None and not isinstance(own, nn.Module):  # which a part of the network may be called too
        given = own() if callable(own) else own
        parts = list(given) if isinstance(given, Iterable) else []
        if not parts or not all(isinstance(part, nn.Module) for part in parts):
            raise ModelError("the method `segments` of the network does not return a list of modules")
    else:
        chain = _TORCHVISION.get(f"{type(net).__module__}.{type(net).__qualname__}")
        parts = [net] if chain is None else list(_links(chain(net)))
    parameters = [id(parameter) for part in parts for parameter in part.parameters()]
    return parts if len(set(parameters)) == len(parameters) else [net]


def _links(chain: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The modules of a chain, with those that are chains themselves taken apart."""
    for module in chain:
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            yield from _links(module)
        else:
            yield module


class Layer(NamedTuple):
    """A layer whose filters are measured, and where it stands."""

    name: str  #: name of the module in the network, such as "features.0"
    module: nn.Module  #: nn.Conv2d or nn.Linear
    stage: int  #: how often the resolution was lowered before or within its segment, the first convolution aside
    block: int  #: position within the stage, from 0


def layers(net: nn.Module, with_linear: bool = False) -> list[Layer]:
    """The convolutional layers in network order, without 1x1 convolutions.

    A stage begins with each segment that lowers the resolution, except for the first convolution of the network.
    So the stage of a layer of LeNet, AlexNet or VGG is the number of max-pooling layers before it, and ResNet's
    stem is stage 0, its `layer1` to `layer4` are 1 to 4. The fully connected layers are in a stage of their own.
    In a block of branches the layers of one branch come after those of the other. Layers that share their weights
    are one, the first of them.

    Args:
        with_linear: also the fully connected layers. Linear layers in one block with a convolution (ConvNeXt) see
            each position of the image by itself: they are 1x1 convolutions in other words.
    """
    names = {id(module): name for name, module in net.named_modules()}
    parts = segments(net)
    if len(parts) == 1:  # nothing is known of what runs after what, but the order of registration
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
            weight = getattr(module, "weight", None)
            if weight is not None and any(weight is layer.module.weight for layer in found):
                continue
            if is_linear and found and isinstance(found[-1].module, nn.Conv2d) and found[-1].stage == stage:
                stage += 1
            block = sum(layer.stage == stage for layer in found)
            found.append(Layer(names[id(module)], module, stage, block))
    return found


def _lowers_resolution(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return max(module.stride) > 1 and module.kernel_size != (1, 1)
    if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
        return module.stride not in (1, (1, 1))
    return False


def check_own_weights(found: Iterable[Layer]) -> None:
    """Raise ModelError where the weights of a layer are computed from others, as by pruning or weight norm."""
    for layer in found:
        own = dict(layer.module.named_parameters(recurse=False))
        if "weight" not in own or (layer.module.bias is not None and "bias" not in own):
            raise ModelError(f"{layer.name} is parametrized: it has no weights of its own to measure")
