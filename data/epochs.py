"""What the loaders have in common: epochs that are counted, each in an order that is derived from the seed."""

from dataclasses import replace

import torch
from torch import Tensor

from core.seeds import derive


class Epochs:
    """The base of loaders, dataclasses with these fields. Iterating counts epochs; set `epoch` for another one."""

    labels: Tensor  #: (n,) int64
    batch_size: int
    seed: int
    random_order: bool
    augmentation: bool
    epoch: int

    def __len__(self) -> int:
        """How many batches there are, the last of which may be smaller."""
        return -(-self.num_images // self.batch_size)

    @property
    def num_images(self) -> int:
        return len(self.labels)

    def as_is(self) -> "Epochs":
        """The same images in file order and without augmentation."""
        return replace(self, random_order=False, augmentation=False, epoch=0)

    def _next_epoch(self) -> tuple[int, Tensor]:
        """The number of the epoch that begins, and its order of the images: (n,) int64, on the CPU."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        if not self.random_order:
            return epoch, torch.arange(self.num_images)
        generator = torch.Generator().manual_seed(derive(self.seed, "order", epoch))
        return epoch, torch.randperm(self.num_images, generator=generator)
