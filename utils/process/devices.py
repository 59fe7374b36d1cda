"""The device that a program computes on."""

import contextlib
import functools
import os
import platform
import re

import torch

from core.errors import UsageError
from core.text import first_line
from utils.process import distributed


class DeviceError(UsageError):
    """The device that was asked for is not there."""


def choose(cuda: bool) -> torch.device:
    """The GPU where asked for, else the CPU; each of several processes on a machine has a GPU of its own.

    Raises:
        DeviceError: there is no GPU that PyTorch can use, or there are not enough.
    """
    if not cuda:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = "finds none" if torch.backends.cuda.is_built() else "was built without CUDA"
        raise DeviceError(f"--cuda: there is no GPU that PyTorch can use (PyTorch {torch.__version__} {built})")
    if distributed.WORLD_SIZE == 1:
        return torch.device("cuda")
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if processes > gpus:
        raise DeviceError(f"--cuda: torchrun started {processes} processes where there are {gpus} GPUs")
    return torch.device("cuda", distributed.LOCAL_RANK)


def take(device: torch.device) -> None:
    """Make a GPU that was chosen the one that this process computes on; of no effect on the CPU.

    Raises:
        DeviceError: it cannot be used: another process has it to itself, say, or PyTorch is not built for it.
    """
    if device.type != "cuda":
        return
    try:
        if device.index is not None:
            torch.cuda.set_device(device)
        torch.zeros(1, device=device)
    except RuntimeError as error:
        reason = "it has no memory left" if is_out_of_gpu_memory(error) else first_line(error)
        raise DeviceError(f"--cuda: the GPU cannot be used: {reason}") from None


def is_out_of_gpu_memory(error: Exception) -> bool:
    """Whether an error says that a GPU has no memory left."""
    # A GPU with no room for as much as CUDA itself, or its libraries, raises one of the others.
    others = (
        "CUDA error: out of memory|Cuda failure.*out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED"
        "|unable to find an engine to execute this computation"  # cuDNN, with no room for any
    )
    return isinstance(error, torch.OutOfMemoryError) or re.search(others, str(error)) is not None


def describe(device: torch.device) -> str:
    """The device in words: the GPU's name, or the number of CPU threads and the processor's name."""
    if device.type == "cuda":
        return f"GPU {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads != 1 else ''} ({processor()})"


@functools.cache
def processor() -> str:
    """The name of the processor, as far as the operating system tells it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
