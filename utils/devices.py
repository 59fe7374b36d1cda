"""The device that a program computes on."""

import os

import torch

from utils import distributed


class DeviceError(ValueError):
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
    torch.cuda.set_device(distributed.LOCAL_RANK)
    return torch.device("cuda", distributed.LOCAL_RANK)


def describe(device: torch.device) -> str:
    """The device in words: the GPU's name, or the number of CPU threads."""
    if device.type == "cuda":
        return f"GPU {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads != 1 else ''}"


def memory_format(device: torch.device) -> torch.memory_format:
    """The layout of images and convolutions that is faster on the device.

    channels_last on the CPU, where a training step of LeNet takes 0.6 times as long as with contiguous images
    (`python benchmarks/training.py`). Float32 convolutions on a GPU stay contiguous.
    """
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format
