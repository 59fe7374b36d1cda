"""Precision of the computation: TF32, bfloat16, and deterministic algorithms."""

import os

import torch
from torch import Tensor, nn
from torch.nn import functional

from core.errors import UsageError
from utils.process.devices import describe


class MatrixAveragePool2d(nn.Module):
    """nn.AdaptiveAvgPool2d as two matrix products, whose gradient is deterministic on a GPU."""

    def __init__(self, output_size: tuple[int, int]):
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, *output_size)."""
        sizes = zip(x.shape[2:], self.output_size, strict=True)
        rows, columns = (self._windows(size, count, x) for size, count in sizes)
        # Sum, then divide: bfloat16 and TF32 represent 0 and 1 exactly, but not 1/n.
        sums = rows @ x @ columns.T
        counts = rows.sum(1)[:, None] * columns.sum(1)
        return (sums / counts.to(torch.promote_types(sums.dtype, torch.float32))).to(sums.dtype)

    @staticmethod
    def _windows(size: int, count: int, like: Tensor) -> Tensor:
        """Return (count, size): row i is 1 in the i-th pooling window, else 0."""
        identity = torch.eye(size, dtype=like.dtype, device=like.device)
        return (functional.adaptive_avg_pool1d(identity[None], count)[0].T > 0).to(like)


def make_deterministic(net: nn.Module) -> None:
    """Replace adaptive average pooling, whose gradient on a GPU is not deterministic in PyTorch."""
    for name, module in list(net.named_modules()):
        # Pooling to one value per channel is a mean: its gradient is deterministic.
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size not in (1, (1, 1)):
            size = module.output_size
            net.set_submodule(name, MatrixAveragePool2d(size if isinstance(size, tuple) else (size, size)))


def memory_format(device: torch.device, amp: bool = False, tf32: bool = False) -> torch.memory_format:
    """Return the fastest memory layout of images and convolutions (see docs/speed.md)."""
    return torch.channels_last if device.type == "cpu" or amp or tf32 else torch.contiguous_format


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
