"""Networks small enough to train many of on a CPU: VGG-11 with fewer channels, and a fully connected network."""

import math
from collections import OrderedDict

from torch import nn

from models.registry import initialize, register
from models.zoo import LinearOfPooled, PoolUnlessOnePixel

DIVISORS = {"vgg11_quarter": 4, "vgg11_eighth": 8}  #: of all numbers of channels and hidden units of VGG-11
POOL = 0
VGG11 = (64, POOL, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL)
HIDDEN = 256


@register(*DIVISORS)
def narrow_vgg11(name, num_classes, in_channels, image_size):
    """Build VGG-11 in torchvision's layout and with its initialization, with a share of the channels.

    Images (B, in_channels, H, W), at least 32x32 pixels, become logits (B, num_classes).
    """
    divisor, features = DIVISORS[name], []
    for width in VGG11:
        if width == POOL:
            features.append(nn.MaxPool2d(2))
        else:
            convolution = nn.Conv2d(in_channels, width // divisor, kernel_size=3, padding=1)
            features += [convolution, nn.ReLU(inplace=True)]
            in_channels = convolution.out_channels
    hidden = 4096 // divisor
    classifier = nn.Sequential(
        *(LinearOfPooled(in_channels * 49, hidden), nn.ReLU(inplace=True), nn.Dropout()),
        *(nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout()),
        nn.Linear(hidden, num_classes),
    )
    pool = PoolUnlessOnePixel(nn.AdaptiveAvgPool2d(7))
    parts = {"features": nn.Sequential(*features), "avgpool": pool, "flatten": nn.Flatten()}
    net = nn.Sequential(OrderedDict(**parts, classifier=classifier))
    initialize(net.features, nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu")
    initialize(net.classifier, nn.init.normal_, std=0.01)
    return net


@register("fcn3")
def fcn3(name, num_classes, in_channels, image_size):
    """Build the fully connected network of "Are All Layers Created Equal?": three hidden layers of 256 units.

    Images (B, in_channels, *image_size) become logits (B, num_classes). All weights are Kaiming-normal (fan_in,
    ReLU). All biases are zero.
    """
    net, units = nn.Sequential(OrderedDict(flatten=nn.Flatten())), in_channels * math.prod(image_size)
    for number in (1, 2, 3):
        net.add_module(f"hidden{number}", nn.Sequential(nn.Linear(units, HIDDEN), nn.ReLU(inplace=True)))
        units = HIDDEN
    net.add_module("classifier", nn.Linear(units, num_classes))
    return initialize(net, nn.init.kaiming_normal_, nonlinearity="relu")
