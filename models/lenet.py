"""The nine-layer LeNet of the paper: six 3x3 convolutions in three stages, three fully connected layers."""

import math

from torch import Tensor, nn

from models.registry import register


class LeNet(nn.Module):
    """Images (B, in_channels, H, W), at least 8x8 pixels, to logits (B, num_classes).

    All weights are Xavier-uniform with the gain for ReLU (the square root of 2), all biases zero.
    """

    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        stages: list[nn.Module] = []
        for width in (6, 16, 64):
            for channels in (in_channels, width):
                stages += [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
            stages.append(nn.MaxPool2d(2))
            in_channels = width
        self.features = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(3)
        self.classifier = nn.Sequential(
            nn.Linear(64 * 3 * 3, 120),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(120, 84),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(84, num_classes),
        )
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight, gain=math.sqrt(2))
                nn.init.zeros_(module.bias)

    def segments(self) -> list[nn.Module]:
        return [*self.features, self.avgpool, nn.Flatten(), *self.classifier]

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


@register("lenet")
def lenet(name, num_classes, in_channels, image_size):
    return LeNet(num_classes, in_channels)
