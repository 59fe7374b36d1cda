"""Loss and accuracy of a network on a dataset."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from core.errors import RunError
from utils.process import distributed
from utils.process.signals import check_signals


class NotFiniteError(RunError):
    """A loss that is NaN or infinite: no accuracy can be told from such outputs; the message is one line."""


class Evaluation(NamedTuple):
    """What a network achieves on a dataset."""

    loss: float  #: mean cross-entropy in nats
    top1: float  #: accuracy in percent
    top5: float  #: share of images whose class is among the 5 likeliest (or all, if there are fewer), in percent

    def __str__(self) -> str:
        return f"loss {self.loss:.4f}, top-1 {self.top1:.2f} %, top-5 {self.top5:.2f} %"


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of a batch are in the top 1, where of equal logits the first counts, and in the top 5.

    Args:
        logits: (B, C).
        labels: (B,).

    Returns:
        (2,) int64 on the device of the logits.
    """
    # Not the first of the top 5, which of equal logits may be any.
    first = logits.argmax(1) == labels
    likeliest = logits.topk(min(5, logits.shape[1]), dim=1).indices
    among_five = (likeliest == labels[:, None]).any(1)
    return torch.stack([first.sum(), (first | among_five).sum()])


@torch.inference_mode()
def evaluate(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], what: str) -> Evaluation:
    """Evaluate a network in evaluation mode; sums stay on the device until the end.

    Args:
        batches: of images (B, C, H, W) and labels (B,), on the device of the network; of several ranks each has
            its share of them, and all get the result.
        what: the name of the dataset, for the error message.

    Raises:
        NotFiniteError: the loss is not finite.
    """
    net.eval()
    loss_sum = correct = None
    count = 0
    for images, labels in batches:
        check_signals()
        logits = net(images).float()  # of a network in bfloat16
        batch_loss = functional.cross_entropy(logits, labels, reduction="sum").double()
        batch_correct = count_correct(logits, labels)
        loss_sum = batch_loss if loss_sum is None else loss_sum + batch_loss
        correct = batch_correct if correct is None else correct + batch_correct
        count += len(labels)
    loss_sum, correct = distributed.sum_(loss_sum), distributed.sum_(correct)
    count = distributed.sum_(torch.tensor(count)).item()
    loss = (loss_sum / count).item()
    if not abs(loss) < float("inf"):
        raise NotFiniteError(f"the loss on the {what} is {loss}: the network's weights or the images are broken")
    top1, top5 = (100 * hits / count for hits in correct.tolist())
    return Evaluation(loss, top1, top5)
