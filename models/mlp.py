"""Multilayer perceptrons with bottlenecks: networks without weight sharing, for comparison."""

import math
from collections import OrderedDict

from torch import nn

from models.registry import initialize, register

WIDTH, BOTTLENECK = 4096, 1024


@register("mlp", "mlp_bn")
def mlp(name, num_classes, in_channels, image_size):
    """Build a perceptron: images (B, in_channels, *image_size) to logits (B, num_classes).

    A layer of 4,096 units, three bottlenecks 4096-1024-4096, and a linear classifier. Each of the first four is
    followed by dropout, batch norm (mlp_bn only) and ReLU. All weights are Kaiming-normal (fan_out, ReLU). All
    biases are zero.
    """
    net = nn.Sequential(OrderedDict(flatten=nn.Flatten()))
    for number in (1, 2, 3, 4):
        if number == 1:
            hidden = {"fc": nn.Linear(in_channels * math.prod(image_size), WIDTH)}
        else:
            hidden = {"fc1": nn.Linear(WIDTH, BOTTLENECK), "fc2": nn.Linear(BOTTLENECK, WIDTH)}
        hidden["dropout"] = nn.Dropout(0.2)
        if name == "mlp_bn":
            hidden["bn"] = nn.BatchNorm1d(WIDTH)
        hidden["relu"] = nn.ReLU(inplace=True)
        net.add_module(f"hidden{number}", nn.Sequential(OrderedDict(hidden)))
    net.add_module("classifier", nn.Linear(WIDTH, num_classes))
    return initialize(net, nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu")
