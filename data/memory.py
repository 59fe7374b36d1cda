"""Batches of a dataset in memory: one uint8 tensor on the compute device."""

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


@dataclass(kw_only=True)
class MemoryLoader(Epochs):
    """Batches made on the device that holds the images.

    The order and the augmentation of epoch e are derived from (seed, e), on the CPU and for the whole epoch at
    once: they do not depend on the device, the batch size or the number of ranks that share each batch.
    """

    images: Tensor  #: (n, C, H, W) uint8
    finish: Callable[[Tensor], Tensor]  #: uint8 images (B, C, H, W) -> normalized images
    side: int | None = None  #: upscale to side x side pixels and zero-pad to 224x224; None: keep the size
    flip: bool = False  #: whether augmentation flips images horizontally
    permutations: Tensor | None = None  #: pixel shuffle: (n, H * W) on the device
    permutation_seed: int | None = None  #: pixel shuffle of upscaled images: permutations are made for each batch
    batches_at_once: int = 1  #: number of batches that are made together and then handed out one by one

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, C, H, W) float32 and labels (B,) int64 of each batch of an epoch."""
        n, device = self.num_images, self.images.device
        epoch, order = self._next_epoch()
        # From here on everything is in the order of the epoch.
        order_on_device = order.to(device, non_blocking=True)
        labels = self.labels[order_on_device]
        corners = flipped = None
        if self.augmentation:
            random = torch.Generator().manual_seed(derive(self.seed, "augmentation", epoch))
            corners = torch.randint(2 * transforms.CROP_PADDING + 1, (n, 2), generator=random)
            corners = corners.to(device, non_blocking=True)[order_on_device]
            if self.flip:
                flipped = torch.rand(n, generator=random).to(device, non_blocking=True)[order_on_device] < 0.5
        batches = batch_slices(n, self.batch_size, self.share)
        for first in range(0, len(batches), self.batches_at_once):
            parts = batches[first : first + self.batches_at_once]
            chosen = _take(order_on_device, parts)
            images = self.images.index_select(0, chosen)  # copies whole images; indexing with [] copies each pixel
            if self.side is not None:
                images = transforms.upscale(images, self.side)
            if corners is not None:
                images = transforms.crop(images, _take(corners, parts))
            if flipped is not None:
                images = transforms.flip(images, _take(flipped, parts))
            if self.permutations is not None:
                images = transforms.permute_pixels(images, self.permutations[chosen])
            elif self.permutation_seed is not None:
                images = transforms.permute_pixels(images, self._make_permutations(_take(order, parts)))
            # The same name, so that the unnormalized images are freed before the network runs.
            images = self.finish(images)
            sizes = [part.stop - part.start for part in parts]
            yield from zip(images.split(sizes), _take(labels, parts).split(sizes), strict=True)

    def _make_permutations(self, numbers: Tensor) -> Tensor:
        """Return the pixel permutations of the upscaled images with these numbers, (B, H * W)."""
        permutations = torch.empty(len(numbers), transforms.UPSCALED**2, dtype=torch.int64)
        for row, number in zip(permutations, numbers.tolist(), strict=True):
            row[:] = torch.from_numpy(pixel_permutation(number, len(row), self.permutation_seed))
        if self.images.device.type == "cuda":  # the host does not wait for copies from pinned memory
            permutations = permutations.pin_memory()
        return permutations.to(self.images.device, non_blocking=True)


def _take(tensor: Tensor, parts: Sequence[slice]) -> Tensor:
    """Return the rows of a few slices in ascending order: a view where the slices are adjacent."""
    if all(one.stop == following.start for one, following in pairwise(parts)):
        return tensor[parts[0].start : parts[-1].stop]
    return torch.cat([tensor[part] for part in parts])
