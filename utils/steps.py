"""A step of training: forward, backward, optimizer; as it is, compiled, on a GPU as one CUDA graph."""

import logging
import warnings
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from utils import distributed
from utils.logging import first_line
from utils.program import RunError


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


class Step:
    """A step of training, which changes the weights; nothing in it makes the host wait for the device.

    Args:
        forward: of the network; compiled or not.
        optimizer: of its parameters.
    """

    def __init__(self, forward: nn.Module, optimizer: torch.optim.Optimizer):
        self.forward, self.optimizer = forward, optimizer

    def __call__(self, images: Tensor, labels: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
        """Train on a batch, or on this rank's share of it, perhaps on no image.

        Args:
            images: (B, C, H, W).
            labels: (B,).
            batch_size: images of the batch on all ranks together.

        Returns:
            loss and number of correct images, of before the step, on the device. Take from them what you need
            before the next step: it may overwrite them.
        """
        self.optimizer.zero_grad()  # before the forward pass: the activations do not come on top of gradients
        # A share without images is computed as it is: PyTorch compiles no backward pass of it.
        forward = self.forward if len(images) else getattr(self.forward, "_orig_mod", self.forward)
        loss, correct = forward(images, labels)
        if distributed.WORLD_SIZE > 1:
            # Gradients become their mean over ranks: so weighted, that of the mean loss of the whole batch.
            loss = loss * (distributed.WORLD_SIZE / batch_size)
        loss.backward()
        self.optimizer.step()
        return loss.detach(), correct


class GraphedStep(Step):
    """A step on a GPU that is one CUDA graph: one launch, where a small network's hundreds are what it waits for.

    The first steps are done without: libraries choose their algorithms in them. The graph is of the size of batch
    that comes most; the last batch of an epoch, which is smaller, is computed without. A graph holds the learning
    rate; with another one it is made anew.
    """

    FIRST_STEPS = 3

    def __init__(self, forward: nn.Module, optimizer: torch.optim.Optimizer):
        super().__init__(forward, optimizer)
        self.stream = torch.cuda.Stream()
        self.steps_of_size: Counter[int] = Counter()
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: Tensor, labels: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
        self.steps_of_size[len(images)] += 1
        size = self.steps_of_size.most_common(1)[0][0] if self.graph is None else len(self.images)
        if len(images) != size or self.steps_of_size[size] <= self.FIRST_STEPS:
            # On the stream of the graph: the autograd engine holds on to the stream that it first saw.
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                result = super().__call__(images, labels, batch_size)
            torch.cuda.current_stream().wait_stream(self.stream)
            return result
        if self.graph is None or self.learning_rates != self._learning_rates():
            self._capture(images, labels, batch_size)
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.graph.replay()
        return self.result

    def _learning_rates(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def _capture(self, images: Tensor, labels: Tensor, batch_size: int) -> None:
        """Record a step, which does not compute it.

        Raises:
            RunError: it cannot be, of a network that has the host wait for a value.
        """
        self.graph = None  # its memory is free before the other one's is taken
        self.images, self.labels, self.learning_rates = images.clone(), labels.clone(), self._learning_rates()
        groups = [group for group in self.optimizer.param_groups if "capturable" in group]
        graph = torch.cuda.CUDAGraph()
        for group in groups:  # Adam asks for it, although its fused step is capturable anyway
            group["capturable"] = True
        try:
            # Other threads, which pin the memory of coming batches, do what they like meanwhile.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.result = super().__call__(self.images, self.labels, batch_size)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RunError(f"--compile: the training step cannot be a CUDA graph: {first_line(error)}") from error
        finally:
            for group in groups:
                group["capturable"] = False
        self.graph = graph


def make_step(net: nn.Module, optimizer: torch.optim.Optimizer, compiled: bool = False) -> Step:
    """The step that trains a network: of several ranks, one that averages the gradients; compiled where asked."""
    forward, device = Forward(net), next(net.parameters()).device
    if distributed.WORLD_SIZE > 1:
        with warnings.catch_warnings():
            # Deprecated since PyTorch 2.13, for an option that earlier versions do not have.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            forward.net = DistributedDataParallel(net, broadcast_buffers=False, gradient_as_bucket_view=True)
    if not compiled:
        return Step(forward, optimizer)
    as_graph = device.type == "cuda" and distributed.WORLD_SIZE == 1
    return (GraphedStep if as_graph else Step)(_compile(forward), optimizer)


def _compile(forward: Forward) -> nn.Module:
    """Compile the forward and backward pass. Dropout draws what it draws without."""
    import torch._inductor.config

    torch._inductor.config.fallback_random = True
    torch._inductor.config.deterministic = torch.are_deterministic_algorithms_enabled()  # no choice by timing
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses CUDA where there is none
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # whether to use them is --tf32's choice
    logging.getLogger("torch._dynamo.variables.ctx_manager").setLevel(logging.ERROR)  # of DDP's own profiling
    # Not dynamic: the last batch of an epoch, which is smaller, gets a graph of its own.
    return torch.compile(forward, dynamic=False)
