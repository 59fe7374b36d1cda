"""What the benchmarks share: a header that says where the numbers come from, and medians with their spread."""

import os
import platform
import statistics
from collections.abc import Sequence

import torch
import torchvision

from utils import devices


def header(device: torch.device) -> str:
    """The machine and the versions, in one line."""
    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            processor = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return (
        f"{processor}, {os.cpu_count()} cores; {devices.describe(device)}; Python {platform.python_version()}, "
        f"PyTorch {torch.__version__}, torchvision {torchvision.__version__}"
    )


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """The median, and the smallest and the largest value in brackets."""
    return f"{statistics.median(values):{form}} [{min(values):{form}} to {max(values):{form}}]"
