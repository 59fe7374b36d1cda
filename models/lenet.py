"""The nine-layer LeNet of the paper: six 3x3 convolutions in three stages, and three fully connected layers."""

import math
from collections import OrderedDict

from torch import nn

from models.registry import initialize, register


@register("lenet")
def lenet(name, num_classes, in_channels, image_size):
    """Build a LeNet: images (B, in_channels, H, W), at least 8x8 pixels, to logits (B, num_classes).

    All weights are Xavier-uniform with the gain for ReLU (the square root of 2). All biases are zero.
    """
    stages: list[nn.Module] = []
    for width in (6, 16, 64):
        for channels in (in_channels, width):
            stages += [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
        stages.append(nn.MaxPool2d(2))
        in_channels = width
    classifier = nn.Sequential(
        *(nn.Linear(64 * 3 * 3, 120), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        *(nn.Linear(120, 84), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        nn.Linear(84, num_classes),
    )
    parts = {"features": nn.Sequential(*stages), "avgpool": nn.AdaptiveAvgPool2d(3), "flatten": nn.Flatten()}
    net = nn.Sequential(OrderedDict(**parts, classifier=classifier))
    return initialize(net, nn.init.xavier_uniform_, gain=math.sqrt(2))
