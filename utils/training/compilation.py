"""What makes a step of training faster than it is written: the compiler, and CUDA graphs."""

import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from core.errors import RunError
from core.text import first_line
from utils.process.devices import is_out_of_gpu_memory

Result = tuple[Tensor, Tensor]  #: loss, and number of correct images, on the device
Step = Callable[[Tensor, Tensor, int], Result]  #: takes images, labels and the size of the batch on all ranks


def compile_forward(forward: nn.Module) -> Callable[[Tensor, Tensor], Result]:
    """Compile a forward pass, and the backward pass with it. Dropout draws what it draws without."""
    import torch._dynamo.config
    import torch._inductor.config

    # Under torchrun Dynamo would divide the network by DDP's buckets of gradients, which then travel while others
    # are computed. So divided ResNet-18 failed on a GPU (see benchmarks/NOTES.md).
    torch._dynamo.config.optimize_ddp = False
    torch._inductor.config.fallback_random = True
    torch._inductor.config.deterministic = torch.are_deterministic_algorithms_enabled()  # no choice by timing
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses CUDA where there is none
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # whether to use them is --tf32's choice
    logging.getLogger("torch._dynamo.variables.ctx_manager").setLevel(logging.ERROR)  # of DDP's own profiling
    # Not dynamic: the last batch of an epoch, which is smaller, is compiled by itself.
    compiled = torch.compile(forward, dynamic=False)

    def compute(images: Tensor, labels: Tensor) -> Result:
        # PyTorch compiles no backward pass of a share without images.
        return compiled(images, labels) if len(images) else forward(images, labels)

    return compute


class GraphedStep:
    """A step of training on a GPU that is one CUDA graph: one launch, where small networks wait for hundreds.

    The first steps are taken without: libraries choose their algorithms in them. The graph is of the size of the
    first batch; the last one of an epoch, which is smaller, is computed without. The learning rate is part of a
    graph: with another one it is made anew, for which the host waits.

    Args:
        step: what is recorded.
        optimizer: the one that takes it.
    """

    FIRST_STEPS = 3

    def __init__(self, step: Step, optimizer: torch.optim.Optimizer):
        self.step, self.optimizer = step, optimizer
        self.stream = torch.cuda.Stream()
        self.size: int | None = None
        self.steps_of_size = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: Tensor, labels: Tensor, batch_size: int) -> Result:
        """Take a step; the next one overwrites what is returned."""
        if self.size is None:
            self.size = len(images)
        self.steps_of_size += len(images) == self.size
        if len(images) != self.size or self.steps_of_size <= self.FIRST_STEPS:
            return self._step_without(images, labels, batch_size)
        if self.graph is None or self.learning_rates != self._learning_rates():
            self._capture(images, labels, batch_size)
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.graph.replay()
        return self.result

    def _learning_rates(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def _step_without(self, images: Tensor, labels: Tensor, batch_size: int) -> Result:
        # On the stream of the graph: the autograd engine holds on to the stream that it first saw.
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = self.step(images, labels, batch_size)
        torch.cuda.current_stream().wait_stream(self.stream)
        if self.graph is not None:
            self.optimizer.zero_grad()  # the graph has gradients of its own
        return result

    def _capture(self, images: Tensor, labels: Tensor, batch_size: int) -> None:
        """Record a step, which does not compute it.

        Raises:
            RunError: it cannot be recorded, as where the network has the host wait for a value.
        """
        # What the other graph and the first steps have left is freed before this graph takes its memory.
        self.graph = self.result = None
        self.optimizer.zero_grad()
        self.images, self.labels, self.learning_rates = images.clone(), labels.clone(), self._learning_rates()
        groups = [group for group in self.optimizer.param_groups if "capturable" in group]
        graph = torch.cuda.CUDAGraph()
        for group in groups:  # Adam asks for it, although its fused step is capturable anyway
            group["capturable"] = True
        try:
            # Other threads, which pin the memory of coming batches, do what they like meanwhile.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.result = self.step(self.images, self.labels, batch_size)
        except RuntimeError as error:
            reason = error  # the first one: with it the end of the recording fails too
            while isinstance(reason.__context__, RuntimeError):
                reason = reason.__context__
            if is_out_of_gpu_memory(reason):
                raise reason from None
            raise RunError(f"--compile: the training step cannot be a CUDA graph: {first_line(reason)}") from None
        finally:
            for group in groups:
                group["capturable"] = False
        self.graph = graph
