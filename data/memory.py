"""Batches of a dataset that lies in memory, as one uint8 tensor on the compute device."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from core.seeds import derive
from data import transforms
from data.corruption import pixel_permutation
from data.epochs import Epochs
from data.subsets import batch_slices

PreparedBatch = tuple[Tensor, Tensor]  #: images (B, C, H, W) float32, labels (B,) int64


@dataclass
class MemoryLoader(Epochs):
    """Batches made on the device where the images lie, an epoch at each iteration.

    What is random in epoch e, the order and the augmentation, is derived from (seed, e) on the CPU, once for the
    whole epoch: it does not depend on the device, the batch size or the number of ranks that share each batch.
    """

    images: Tensor  #: (n, C, H, W) uint8
    labels: Tensor  #: (n,) int64
    batch_size: int
    finish: Callable[[Tensor], Tensor]  #: uint8 or float images (B, C, H, W) in 0 to 255 -> normalized ones
    seed: int = 0
    random_order: bool = False
    upscaled_side: int | None = None
    padding: int = 0  #: zeros around upscaled images
    augmentation: bool = False
    flip: bool = False  #: whether augmentation mirrors images
    permutations: Tensor | None = None  #: (n, H * W) of the pixels, on the device
    permutation_seed: int | None = None  #: of permutations that would need gigabytes, made when needed instead
    share: tuple[int, int] = (0, 1)  #: (rank, number of ranks) that each batch is shared among
    batches_at_once: int = 1  #: that are made together and handed out one by one
    epoch: int = 0

    def __iter__(self) -> Iterator[PreparedBatch]:
        n, device = self.num_images, self.images.device
        epoch, order = self._next_epoch()
        # All in the order of the epoch from here on.
        order_on_device = order.to(device, non_blocking=True)
        labels = self.labels[order_on_device]
        corners = mirrored = None
        if self.augmentation:
            random = torch.Generator().manual_seed(derive(self.seed, "augmentation", epoch))
            corners = torch.randint(2 * transforms.CROP_PADDING + 1, (n, 2), generator=random)
            corners = corners.to(device, non_blocking=True)[order_on_device]
            if self.flip:
                mirrored = torch.rand(n, generator=random).to(device, non_blocking=True)[order_on_device] < 0.5
        batches = batch_slices(n, self.batch_size, self.share)
        for first in range(0, len(batches), self.batches_at_once):
            parts = batches[first : first + self.batches_at_once]
            chosen = _take(order_on_device, parts)
            images = self.images.index_select(0, chosen)  # which copies whole images, indexing with [] each pixel
            if self.upscaled_side is not None:
                images = transforms.zero_pad(transforms.upscale(images, self.upscaled_side), self.padding)
            if corners is not None:
                images = transforms.crop(images, _take(corners, parts))
            if mirrored is not None:
                images = transforms.mirror(images, _take(mirrored, parts))
            if self.permutations is not None:
                images = transforms.permute_pixels(images, self.permutations[chosen])
            elif self.permutation_seed is not None:
                permutations = self._make_permutations(_take(order, parts))
                images = transforms.permute_pixels(images, permutations)
            sizes = [part.stop - part.start for part in parts]
            # Under the same name: what they are made of is not kept while the network runs on them.
            images = self.finish(images)
            yield from zip(images.split(sizes), _take(labels, parts).split(sizes), strict=True)

    def _make_permutations(self, numbers: Tensor) -> Tensor:
        """The pixel permutations of a few images, (B, H * W)."""
        num_pixels = (self.upscaled_side + 2 * self.padding) ** 2
        permutations = torch.empty(len(numbers), num_pixels, dtype=torch.int64)
        for row, number in zip(permutations, numbers.tolist(), strict=True):
            row[:] = torch.from_numpy(pixel_permutation(number, num_pixels, self.permutation_seed))
        if self.images.device.type == "cuda":  # from pinned memory the host need not wait for the copy
            permutations = permutations.pin_memory()
        return permutations.to(self.images.device, non_blocking=True)


def _take(tensor: Tensor, parts: Sequence[slice]) -> Tensor:
    """The rows of a few slices that stand one behind the other; a view where nothing is between them."""
    if all(one.stop == following.start for one, following in pairwise(parts)):
        return tensor[parts[0].start : parts[-1].stop]
    return torch.cat([tensor[part] for part in parts])
