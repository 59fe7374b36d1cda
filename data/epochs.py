"""The base class of loaders: it counts epochs and derives the order of each epoch from the seed."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.seeds import derive


@dataclass(kw_only=True)
class Epochs:
    """Each iteration is an epoch. Set `epoch` to continue with another one."""

    labels: Tensor  #: (n,) int64
    batch_size: int
    seed: int = 0  #: seed for the order and the augmentation
    random_order: bool = False
    augmentation: bool = False
    share: tuple[int, int] = (0, 1)  #: (rank, number of ranks) that share each batch
    epoch: int = 0

    def __len__(self) -> int:
        """Return the number of batches; the last one may be smaller."""
        return -(-self.num_images // self.batch_size)

    @property
    def num_images(self) -> int:
        return len(self.labels)

    def as_is(self) -> "Epochs":
        """Return a loader of the same images in file order and without augmentation."""
        return replace(self, random_order=False, augmentation=False, epoch=0)

    def _next_epoch(self) -> tuple[int, Tensor]:
        """Return the number of the epoch that begins, and its order of the images: (n,) int64, on the CPU."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        if not self.random_order:
            return epoch, torch.arange(self.num_images)
        generator = torch.Generator().manual_seed(derive(self.seed, "order", epoch))
        return epoch, torch.randperm(self.num_images, generator=generator)
