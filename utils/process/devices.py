"""The device that a program computes on."""

import contextlib
import functools
import os
import platform
import re
import warnings

import torch

from core.errors import UsageError
from core.text import first_line
from utils.process import distributed
from utils.process.logging import warn_first_and_last

#: Freed blocks of memory up to this size are reused: the most that glibc allows, with room for its bookkeeping.
REUSED_BLOCK_BYTES = 32 * 2**20 - 2**16


def choose(cuda: bool) -> torch.device:
    """Return the GPU of this process, or the CPU: without `cuda`, and with a warning where there is no GPU.

    Raise UsageError if there are fewer GPUs than processes.
    """
    if not cuda:
        return torch.device("cpu")
    with warnings.catch_warnings(record=True) as caught:  # PyTorch warns about a driver that it cannot use
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        reason = "finds none" if torch.backends.cuda.is_built() else "was built without CUDA"
        reason = first_line(str(caught[-1].message)) if caught else f"PyTorch {torch.__version__} {reason}"
        if "CUDA_VISIBLE_DEVICES" in os.environ:
            reason += f"; CUDA_VISIBLE_DEVICES is {os.environ['CUDA_VISIBLE_DEVICES']!r}"
        warn_first_and_last(f"--cuda: there is no GPU, the CPU computes instead ({reason})")
        return torch.device("cpu")
    if distributed.WORLD_SIZE == 1:
        return torch.device("cuda")
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if processes > gpus:
        raise UsageError(f"--cuda: torchrun started {processes} processes, but there are only {gpus} GPUs")
    return torch.device("cuda", distributed.LOCAL_RANK)


def take(device: torch.device) -> None:
    """Prepare this process for computing: make a GPU its current device, or reuse freed memory on the CPU.

    Raise UsageError if the GPU cannot be used.
    """
    if device.type != "cuda":
        # glibc returns freed memory to the system until a larger block has been freed once (mallopt(3),
        # M_MMAP_THRESHOLD): each training step of LeNet would take 3,000 page faults (docs/speed.md).
        torch.empty(REUSED_BLOCK_BYTES, dtype=torch.uint8)
        return
    try:
        if device.index is not None:
            torch.cuda.set_device(device)
        torch.zeros(1, device=device)
    except RuntimeError as error:
        reason = "it has no memory left" if is_out_of_gpu_memory(error) else first_line(error)
        raise UsageError(f"--cuda: the GPU cannot be used: {reason}") from None


def is_out_of_gpu_memory(error: Exception) -> bool:
    """Return whether an error means that a GPU has no memory left."""
    # If there is no room for CUDA itself or for one of its libraries, PyTorch raises other errors.
    others = (
        "CUDA error: out of memory|Cuda failure.*out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED"
        "|unable to find an engine to execute this computation"  # cuDNN without room for any engine
    )
    return isinstance(error, torch.OutOfMemoryError) or re.search(others, str(error)) is not None


def describe(device: torch.device) -> str:
    """Return the GPU's name, or the number of CPU threads and the processor's name."""
    if device.type == "cuda":
        return f"GPU {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads != 1 else ''} ({processor()})"


@functools.cache
def processor() -> str:
    """Return the processor's name, as far as the operating system knows it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
