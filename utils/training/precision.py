"""How precisely a device computes: TF32, bfloat16, and the same bits each time."""

import os

import torch
from torch import Tensor, nn

from utils.process.devices import DeviceError, describe


class MatrixAveragePool2d(nn.Module):
    """nn.AdaptiveAvgPool2d as two matrix products, whose gradient on a GPU is the same each time."""

    def __init__(self, output_size: tuple[int, int]):
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, *output_size)."""
        rows, columns = (
            self._windows(size, count, x) for size, count in zip(x.shape[2:], self.output_size, strict=True)
        )
        # Sums first: bfloat16 and TF32 have 0 and 1, but not 1/n.
        sums = rows @ x @ columns.T
        counts = rows.sum(1)[:, None] * columns.sum(1)
        return (sums / counts.to(torch.promote_types(sums.dtype, torch.float32))).to(sums.dtype)

    @staticmethod
    def _windows(size: int, count: int, like: Tensor) -> Tensor:
        """(count, size): row i is 1 from floor(i size / count) to ceil((i + 1) size / count), else 0."""
        windows = torch.arange(count, device=like.device)[:, None]
        start, stop = windows * size // count, ((windows + 1) * size + count - 1) // count
        places = torch.arange(size, device=like.device)
        return ((places >= start) & (places < stop)).to(like)


def make_deterministic(net: nn.Module) -> None:
    """Replace the layers whose gradient PyTorch does not compute deterministically on a GPU by equal ones."""
    for name, module in list(net.named_modules()):
        # One value a channel is a mean, whose gradient is the same each time anyway.
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size not in (1, (1, 1)):
            size = module.output_size
            net.set_submodule(name, MatrixAveragePool2d(size if isinstance(size, tuple) else (size, size)))


def memory_format(device: torch.device, amp: bool = False, tf32: bool = False) -> torch.memory_format:
    """The layout of images and convolutions (see benchmarks/NOTES.md).

    channels_last on the CPU, and on a GPU in bfloat16 or TF32, for whose tensor cores it is made. Float32
    convolutions on a GPU stay contiguous: channels_last is a little slower there.
    """
    return torch.channels_last if device.type == "cpu" or amp or tf32 else torch.contiguous_format


def set_precision(device: torch.device, tf32: bool = False, deterministic: bool = False) -> None:
    """Decide how a GPU computes in float32, before anything is computed; of no effect on the CPU.

    Args:
        device: that is computed on.
        tf32: whether convolutions and matrix products may round their factors to TF32, with 10 bits of mantissa.
            PyTorch lets cuDNN do so by default; here it does not.
        deterministic: take only algorithms that give the same bits each time; where there is none PyTorch raises
            a RuntimeError. Else cuDNN tries several for each shape and takes the fastest.
    """
    if device.type != "cuda":
        return
    # Not by the newer fp32_precision: the compiler still reads these, and PyTorch forbids to mix the two.
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
        torch.utils.deterministic.fill_uninitialized_memory = False
        torch.use_deterministic_algorithms(True)


def check_bfloat16(device: torch.device) -> None:
    """Raise DeviceError where the device does not compute in bfloat16."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise DeviceError(f"--amp: {describe(device)} does not compute in bfloat16")


def use_bfloat16(net: nn.Module, device: torch.device) -> None:
    """Let a network compute in bfloat16 where PyTorch's autocast takes that to be safe; weights stay float32."""
    net.forward = torch.autocast(device.type, torch.bfloat16)(net.forward)
