"""Precision of the computation: TF32, bfloat16, and deterministic algorithms."""

import os

import torch
from torch import Tensor, nn

from core.errors import UsageError
from utils.process.devices import describe


class SlicedAveragePool2d(nn.AdaptiveAvgPool2d):
    """nn.AdaptiveAvgPool2d as means of slices, whose gradient is deterministic on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, *output_size)."""
        sizes = self.output_size if isinstance(self.output_size, tuple) else (self.output_size,) * 2
        for dim, count in zip((2, 3), sizes, strict=True):
            lines, size = x.unbind(dim), x.shape[dim]
            windows = [lines[i * size // count : -(-(i + 1) * size // count)] for i in range(count)]
            x = torch.stack([sum(window) / len(window) for window in windows], dim)
        return x


def make_deterministic(net: nn.Module) -> None:
    """Replace adaptive average pooling, whose gradient on a GPU is not deterministic in PyTorch."""
    for module in net.modules():
        # Pooling to one value per channel is a mean: its gradient is deterministic.
        if type(module) is nn.AdaptiveAvgPool2d and module.output_size not in (1, (1, 1)):
            module.__class__ = SlicedAveragePool2d


def memory_format(device: torch.device, amp: bool = False, tf32: bool = False) -> torch.memory_format:
    """Return the fastest memory layout of images and convolutions (see docs/speed.md)."""
    return torch.channels_last if device.type == "cpu" or amp or tf32 else torch.contiguous_format


def move(net: nn.Module, device: torch.device, amp: bool, tf32: bool) -> None:
    """Move a network to the device, its weights of four dimensions in the `memory_format` of images there."""
    for weight in net.to(device).parameters():
        if weight.dim() == 4:
            weight.data = weight.data.to(memory_format=memory_format(device, amp, tf32))


def set_precision(
    device: torch.device, amp: bool = False, tf32: bool = False, deterministic: bool = False
) -> None:
    """Set how a GPU computes. Call it before any computation. On the CPU it does nothing.

    Args:
        amp: check that the GPU computes in bfloat16; else raise UsageError.
        tf32: let convolutions and matrix products round their factors to TF32 (10 bits of mantissa). By default,
            PyTorch lets convolutions do so.
        deterministic: use only deterministic algorithms; PyTorch raises a RuntimeError where there is none.
            Otherwise cuDNN times several algorithms for each shape and uses the fastest.
    """
    if device.type != "cuda":
        return
    if amp and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UsageError(f"--amp: {describe(device)} does not compute in bfloat16")
    # Not the newer fp32_precision: the compiler still reads these flags, and PyTorch forbids using both.
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
        torch.utils.deterministic.fill_uninitialized_memory = False
        torch.use_deterministic_algorithms(True)


def use_bfloat16(net: nn.Module, device: torch.device) -> None:
    """Run a network's forward pass under autocast to bfloat16. Its weights stay float32."""
    net.forward = torch.autocast(device.type, torch.bfloat16)(net.forward)
