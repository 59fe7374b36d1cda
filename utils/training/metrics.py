"""Loss and accuracy of a network on a dataset."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from core.errors import RunError
from utils.process import distributed
from utils.process.signals import check_signals


class NotFiniteError(RunError):
    """A loss or weights are NaN or infinite, so that accuracies mean nothing."""


class Evaluation(NamedTuple):
    """Loss and accuracies of a network on a dataset."""

    loss: float  #: mean cross-entropy in nats
    top1: float  #: accuracy in percent
    top5: float  #: top-5 accuracy in percent; with fewer than 5 classes: 100

    def named(self, pattern: str) -> dict[str, float]:
        """Return the numbers by name, such as `loss_test` for the pattern "{}_test"."""
        return {pattern.format(what): value for what, value in self._asdict().items()}

    def __str__(self) -> str:
        return f"loss {self.loss:.4f}, top-1 {self.top1:.2f} %, top-5 {self.top5:.2f} %"


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Count the images of a batch whose class has the largest logit, and is among the 5 largest.

    Of several equal largest logits, the first one is the predicted class. Shapes: (B, C) and (B,) -> (2,) int64.
    """
    # argmax, because topk may put any of several equal logits first.
    in_top1 = logits.argmax(1) == labels
    top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices
    in_top5 = in_top1 | (top5 == labels[:, None]).any(1)
    return torch.stack([in_top1.sum(), in_top5.sum()])


@torch.inference_mode()
def evaluate(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], what: str) -> Evaluation:
    """Evaluate a network in evaluation mode. Raise NotFiniteError if the loss is not finite.

    The network stays in that mode. batches: images (B, C, H, W) and labels (B,) on its device; of several
    processes each passes its share, and all get the result of all images. what: name of the dataset.
    """
    net.eval()
    device = next(net.parameters()).device  # sums stay there until the end
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros(2, dtype=torch.int64, device=device)
    count = 0
    for images, labels in batches:
        check_signals()
        logits = net(images).float()  # bfloat16 with --amp
        loss_sum += functional.cross_entropy(logits, labels, reduction="sum")
        correct += count_correct(logits, labels)
        count += len(labels)
    loss_sum, correct = distributed.sum_(loss_sum), distributed.sum_(correct)
    count = distributed.sum_(torch.tensor(count)).item()
    loss = (loss_sum / count).item()
    if not math.isfinite(loss):
        raise NotFiniteError(f"the loss on the {what} is {loss}: the network's weights or the images are broken")
    top1, top5 = (100 * hits / count for hits in correct.tolist())
    return Evaluation(loss, top1, top5)
