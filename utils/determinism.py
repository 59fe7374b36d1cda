"""Layers that compute on a GPU what others do, but with the same bits each time."""

import torch
from torch import Tensor, nn


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
