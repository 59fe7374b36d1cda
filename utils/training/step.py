"""One training step, and one epoch of steps."""

import datetime
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from utils.process import distributed
from utils.process.logging import progress
from utils.training.compilation import GraphedStep, Result, Step, compile_forward
from utils.training.metrics import NotFiniteError


def make_step(net: nn.Module, optimizer: torch.optim.Optimizer, compiled: bool = False) -> Step:
    """Return a function that trains on one batch, or on this rank's share of it, which may be empty.

    It takes images (B, C, H, W), labels (B,) and the number of images of the batch on all ranks together. It
    returns the loss and the number of correct images, both before the step. With several processes, it averages
    the gradients over them. If `compiled`, the forward and backward pass are compiled, and on one GPU the whole
    step is a CUDA graph.
    """
    module, reduction = net, "mean"
    if distributed.WORLD_SIZE > 1:
        reduction = "sum"
        with warnings.catch_warnings():
            # Deprecated since PyTorch 2.13. Earlier versions do not have its replacement.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            module = DistributedDataParallel(net, broadcast_buffers=False, gradient_as_bucket_view=True)

    def forward(images: Tensor, labels: Tensor) -> Result:
        logits = module(images).float()  # bfloat16 with --amp
        loss = functional.cross_entropy(logits, labels, reduction=reduction)
        return loss, (logits.detach().argmax(1) == labels).sum()

    compute = compile_forward(forward) if compiled else forward

    def step(images: Tensor, labels: Tensor, batch_size: int) -> Result:
        optimizer.zero_grad()  # before the forward pass: saves the memory of the old gradients
        loss, correct = compute(images, labels)
        if distributed.WORLD_SIZE > 1:
            # DDP averages the gradients over the ranks. This makes that the gradient of the batch's mean loss.
            loss = loss * (distributed.WORLD_SIZE / batch_size)
        loss.backward()
        optimizer.step()
        return loss.detach(), correct

    on_one_gpu = next(net.parameters()).is_cuda and distributed.WORLD_SIZE == 1
    return GraphedStep(step, optimizer) if compiled and on_one_gpu else step


def train_epoch(step: Step, net: nn.Module, batches, epoch: int, epochs: int = 1) -> tuple[float, float]:
    """Train for one epoch. The host does not wait for the device in between, except for synchronized batch norm,
    and once a second for a progress bar.

    step: from `make_step`. net: it is set to training mode. batches: this rank's share of each batch; `batch_size`
    and `num_images` count the images of all ranks. epoch, from 0, and epochs are for the progress bar.

    Return the mean loss and the accuracy in percent during training: of each batch before its step, with dropout.
    Raise NotFiniteError if the loss of a batch is not finite.
    """
    net.train()
    device = next(net.parameters()).device
    losses = torch.zeros(len(batches), device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    sizes = [batches.batch_size] * (len(batches) - 1)
    sizes.append(batches.num_images - sum(sizes))
    seen = 0

    def numbers(count: int, seconds: float) -> str:
        left = datetime.timedelta(seconds=round(seconds * ((epochs - epoch) * len(batches) / count - 1)))
        return f"loss {losses[:count].mean():.4f}, accuracy {100 * correct / seen:.2f} %, run {left} left"

    bar = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"  # it fits in 80 columns
    for index, (images, labels) in enumerate(progress(batches, numbers, desc=f"epoch {epoch}", bar_format=bar)):
        losses[index], batch_correct = step(images, labels, sizes[index])
        correct += batch_correct
        seen += len(labels)

    losses = distributed.sum_(losses.double()).cpu() / distributed.WORLD_SIZE
    correct = distributed.sum_(correct)
    for buffer in net.buffers():  # each rank has running statistics of its own shares only
        if distributed.WORLD_SIZE > 1 and buffer.is_floating_point():
            buffer.copy_(distributed.sum_(buffer.double()) / distributed.WORLD_SIZE)
    not_finite = (~losses.isfinite()).nonzero()
    if len(not_finite):
        first = int(not_finite[0])
        where = f"in epoch {epoch}, batch {first} (both counted from 0)"
        raise NotFiniteError(f"the loss is {losses[first]} {where}: no snapshot is written; try a smaller --lr")
    total = losses @ torch.tensor(sizes, dtype=torch.float64)
    return total.item() / batches.num_images, 100 * correct.item() / batches.num_images
