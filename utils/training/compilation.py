"""Faster training steps: PyTorch's compiler and CUDA graphs."""

import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from core.errors import RunError
from core.text import first_line
from utils.process.devices import is_out_of_gpu_memory

Result = tuple[Tensor, Tensor]  #: loss and number of correct images, on the device
Step = Callable[[Tensor, Tensor, int], Result]  #: of images, labels and the size of the batch on all ranks


def compile_forward(forward: Callable[[Tensor, Tensor], Result]) -> Callable[[Tensor, Tensor], Result]:
    """Compile a forward pass and its backward pass. Dropout draws the same numbers as without compiling."""
    import torch._dynamo.config
    import torch._inductor.config

    # Do not split the network at DDP's gradient buckets: ResNet-18 failed on a GPU (see docs/speed.md).
    torch._dynamo.config.optimize_ddp = False
    torch._inductor.config.fallback_random = True
    # Otherwise the compiler chooses kernels by timing them.
    torch._inductor.config.deterministic = torch.are_deterministic_algorithms_enabled()
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # the user decides with --tf32
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that there is no CUDA
    logging.getLogger("torch._dynamo.variables.ctx_manager").setLevel(logging.ERROR)  # DDP's own profiling
    # Not dynamic: the smaller last batch of an epoch is compiled separately.
    compiled = torch.compile(forward, dynamic=False)

    def compute(images: Tensor, labels: Tensor) -> Result:
        # PyTorch cannot compile the backward pass of an empty share of a batch.
        return compiled(images, labels) if len(images) else forward(images, labels)

    return compute


class GraphedStep:
    """A training step as one CUDA graph: one launch, where a small network otherwise needs hundreds.

    The first steps run without the graph, because libraries choose their algorithms in them. The graph is for the
    size of the first batch; the smaller last batch of an epoch runs without it. The learning rate is part of the
    graph: when it changes, the step is captured again, and the host waits.
    """

    FIRST_STEPS = 3  #: full batches before the capture

    def __init__(self, step: Step, optimizer: torch.optim.Optimizer):
        self.step, self.optimizer = step, optimizer
        self.stream = torch.cuda.Stream()
        self.size: int | None = None  #: of the first batch
        self.full_batches = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: Tensor, labels: Tensor, batch_size: int) -> Result:
        """Take one step. The next step overwrites the tensors that are returned."""
        self.size = self.size or len(images)
        self.full_batches += len(images) == self.size
        if len(images) != self.size or self.full_batches <= self.FIRST_STEPS:
            return self._step_without_graph(images, labels, batch_size)
        if self.graph is None or self.captured_lr != self.optimizer.param_groups[0]["lr"]:
            self._capture(images, labels, batch_size)
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.graph.replay()
        return self.result

    def _step_without_graph(self, images: Tensor, labels: Tensor, batch_size: int) -> Result:
        # On the graph's stream, because autograd keeps using the stream of the first backward pass.
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = self.step(images, labels, batch_size)
        torch.cuda.current_stream().wait_stream(self.stream)
        if self.graph is not None:
            self.optimizer.zero_grad()  # the graph has its own gradients
        return result

    def _capture(self, images: Tensor, labels: Tensor, batch_size: int) -> None:
        """Capture the step without running it. Raise RunError if the network makes the host wait for a value."""
        # Free the memory of earlier steps before the graph allocates its own.
        self.graph = self.result = None
        self.optimizer.zero_grad()
        self.images, self.labels = images.clone(), labels.clone()
        (group,) = self.optimizer.param_groups
        self.captured_lr = group["lr"]
        graph = torch.cuda.CUDAGraph()
        if "capturable" in group:  # Adam insists on this flag, although its fused step can be captured without
            group["capturable"] = True
        try:
            # thread_local: other threads may pin the memory of the next batches meanwhile.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.result = self.step(self.images, self.labels, batch_size)
        except RuntimeError as error:
            # A failed step makes the end of the capture fail too: report the first error.
            while isinstance(error.__context__, RuntimeError):
                error = error.__context__
            if is_out_of_gpu_memory(error):
                raise error from None
            raise RunError(f"--compile: the training step cannot be a CUDA graph: {first_line(error)}") from None
        finally:
            if "capturable" in group:
                group["capturable"] = False
        self.graph = graph
