"""Multilayer perceptrons with bottlenecks: networks without any weight sharing, for comparison."""

import math

from torch import Tensor, nn

from models.registry import ModelError, register


class Hidden(nn.Module):
    """Fully connected layers one after another, then dropout, batch norm where asked, and ReLU."""

    def __init__(self, fully_connected: dict[str, nn.Linear], width: int, batch_norm: bool):
        super().__init__()
        for name, layer in fully_connected.items():
            self.add_module(name, layer)
        self.dropout = nn.Dropout(0.2)
        if batch_norm:
            self.bn = nn.BatchNorm1d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.children():
            x = module(x)
        return x


class MLP(nn.Module):
    """Images (B, C, H, W) with C*H*W = num_pixels to logits (B, num_classes).

    A layer of 4,096 units, three bottlenecks 4096-1024-4096, and the prediction head. All weights are
    Kaiming-normal (fan_out, ReLU), all biases zero.
    """

    def __init__(self, num_classes: int, num_pixels: int, batch_norm: bool):
        super().__init__()
        width, bottleneck = 4096, 1024
        self.hidden1 = Hidden({"fc": nn.Linear(num_pixels, width)}, width, batch_norm)
        for name in ("hidden2", "hidden3", "hidden4"):
            pair = {"fc1": nn.Linear(width, bottleneck), "fc2": nn.Linear(bottleneck, width)}
            self.add_module(name, Hidden(pair, width, batch_norm))
        self.classifier = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def segments(self) -> list[nn.Module]:
        return [nn.Flatten(), self.hidden1, self.hidden2, self.hidden3, self.hidden4, self.classifier]

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for segment in self.segments():
            x = segment(x)
        return x


@register("mlp", "mlp_bn")
def mlp(name, num_classes, in_channels, image_size):
    if image_size is None:
        raise ModelError(f"{name} needs the size of the images")
    return MLP(num_classes, in_channels * math.prod(image_size), batch_norm=name == "mlp_bn")
