"""The device that a program computes on."""

import torch


class DeviceError(ValueError):
    """The device that was asked for is not there."""


def choose(cuda: bool) -> torch.device:
    """The GPU where asked for, else the CPU.

    Raises:
        DeviceError: there is no GPU that PyTorch can use.
    """
    if not cuda:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = "finds none" if torch.backends.cuda.is_built() else "was built without CUDA"
        raise DeviceError(f"--cuda: there is no GPU that PyTorch can use (PyTorch {torch.__version__} {built})")
    return torch.device("cuda")


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
