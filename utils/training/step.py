"""One step of training, and one epoch of them."""

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from utils.process import distributed
from utils.process.logging import progress
from utils.training.compilation import GraphedStep, Result, Step, compile_forward
from utils.training.metrics import NotFiniteError


class Forward(nn.Module):
    """What a step computes of a batch before it goes backward; with its backward pass it is what is compiled."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of a batch, its mean (of a share of a batch: its sum), and how many images are correct."""
        logits = self.net(images).float()  # they are bfloat16 with --amp
        reduction = "mean" if distributed.WORLD_SIZE == 1 else "sum"
        loss = functional.cross_entropy(logits, labels, reduction=reduction)
        return loss, (logits.detach().argmax(1) == labels).sum()


def train_batch(
    forward: Callable[[Tensor, Tensor], Result],
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
) -> Result:
    """One step of training, on a batch or on this rank's share of it, perhaps on no image.

    Args:
        forward: what a Forward does, compiled or not.
        images: (B, C, H, W).
        labels: (B,).
        batch_size: images of the batch on all ranks together.

    Returns:
        the loss and how many images were correct, as they were before the weights changed, on the device.
    """
    optimizer.zero_grad()  # before the forward pass: the activations do not come on top of gradients
    loss, correct = forward(images, labels)
    if distributed.WORLD_SIZE > 1:
        # Gradients become their mean over ranks: so weighted, that of the mean loss of the whole batch.
        loss = loss * (distributed.WORLD_SIZE / batch_size)
    loss.backward()
    optimizer.step()
    return loss.detach(), correct


def make_step(net: nn.Module, optimizer: torch.optim.Optimizer, compiled: bool = False) -> Step:
    """`train_batch` of a network: of several ranks, one that averages the gradients; compiled where asked."""
    forward: nn.Module = Forward(net)
    if distributed.WORLD_SIZE > 1:
        with warnings.catch_warnings():
            # Deprecated since PyTorch 2.13, for an option that earlier versions do not have.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            forward.net = DistributedDataParallel(net, broadcast_buffers=False, gradient_as_bucket_view=True)
    if not compiled:
        return functools.partial(train_batch, forward, optimizer)
    step = functools.partial(train_batch, compile_forward(forward), optimizer)
    on_one_gpu = next(net.parameters()).is_cuda and distributed.WORLD_SIZE == 1
    return GraphedStep(step, optimizer) if on_one_gpu else step


def train_epoch(step: Step, net: nn.Module, batches, epoch: int) -> tuple[float, float]:
    """One pass over the training data; nothing in it makes the host wait for the device before the end.

    Each of several ranks computes on its share of every batch, perhaps on no image of the last one. (Synchronized
    batch norm makes the host wait in every layer, and a CUDA graph while it is made.)

    Args:
        step: of the network, as `make_step` gives it.

    Returns:
        mean loss, and accuracy in percent, as they were while the weights changed and with dropout.

    Raises:
        NotFiniteError: the loss of a batch was not finite.
    """
    net.train()
    device = next(net.parameters()).device
    losses = torch.zeros(len(batches), device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    sizes = [batches.batch_size] * (len(batches) - 1)
    sizes.append(batches.num_images - sum(sizes))
    for index, (images, labels) in enumerate(progress(batches, desc=f"epoch {epoch}", unit="batch")):
        losses[index], correct_here = step(images, labels, sizes[index])
        correct += correct_here

    losses = distributed.sum_(losses.double()).cpu() / distributed.WORLD_SIZE
    correct = distributed.sum_(correct)
    # Batch norm's running statistics, which each rank has of its shares.
    distributed.average_(buffer for buffer in net.buffers() if buffer.is_floating_point())
    broken = (~losses.isfinite()).nonzero()
    if len(broken):
        first = int(broken[0])
        raise NotFiniteError(
            f"the loss is {losses[first].item()} in epoch {epoch}, batch {first} (both counted from 0): "
            "no snapshot is written; try a smaller --lr"
        )
    total = losses @ torch.tensor(sizes, dtype=torch.float64)
    return total.item() / batches.num_images, 100 * correct.item() / batches.num_images
