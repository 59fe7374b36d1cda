"""Batches of a folder of images: worker processes decode and crop them, the device normalizes them."""

import contextlib
import functools
import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from core.seeds import derive
from core.text import LOGGER, first_line
from data.corruption import pixel_permutation
from data.epochs import Epochs
from data.registry import ImageError
from data.subsets import batch_slices
from data.transforms import UPSCALED, UPSCALED_PADDED, permute_pixels, zero_pad


@dataclass(frozen=True)
class Preparation:
    """The dataset of the DataLoader: decodes and crops the images in a list of files."""

    files: Sequence[str]
    padded: bool  #: crop to 112x112 pixels, and zero-pad to 224x224; else crop to 224x224
    flip: bool  #: whether augmentation flips images horizontally
    shuffle_seed: int | None  #: seed of the pixel shuffle; None: no pixel shuffle

    def __getitem__(self, key: tuple[int, int | None]) -> Tensor:
        """Prepare image number key[0]: (3, 224, 224) uint8. key[1] is the seed of its augmentation; None: none.

        Raises ImageError if it cannot be read.
        """
        from torchvision.transforms.v2.functional import pil_to_tensor

        number, seed = key
        try:
            image = read_rgb(self.files[number])
        except Exception as error:  # PIL raises anything for a damaged file
            raise ImageError(f"{self.files[number]} cannot be read: {first_line(error)}") from None
        with torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.default_generator.manual_seed(seed)  # torch.manual_seed is slower: it seeds GPUs too
            pixels = pil_to_tensor(self._transforms[seed is not None](image))
        pixels = zero_pad(pixels, (UPSCALED - pixels.shape[-1]) // 2)
        if self.shuffle_seed is not None:
            permutation = pixel_permutation(number, UPSCALED * UPSCALED, self.shuffle_seed)
            pixels = permute_pixels(pixels[None], torch.from_numpy(permutation)[None])[0]
        return pixels

    def __getitems__(self, keys: Sequence[tuple[int, int | None]]) -> tuple[Tensor | ImageError, list[str]]:
        """Prepare a batch of images: (B, 3, 224, 224) uint8, and the warnings that Pillow gave about them.

        Instead of the images there may be an error for the main process to raise: one that is raised in a worker
        process arrives as a long traceback.
        """
        # In channels_last, as in PIL images: they are copied without being reordered.
        batch = torch.empty(len(keys), UPSCALED, UPSCALED, 3, dtype=torch.uint8)
        problems: list[str] = []
        if torch.utils.data.get_worker_info() is not None:
            try:
                batch.share_memory_()  # a failure after this function would leave the main process waiting
            except (OSError, RuntimeError) as error:
                needed = f"{batch.nbytes / 2**20:.0f} MiB of shared memory for a batch cannot be had"
                advice = "give a smaller --batch-size, or --workers 0"
                return ImageError(f"{needed} ({first_line(error)}): {advice}"), problems
        try:
            for row, key in zip(batch, keys, strict=True):
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    warnings.simplefilter("ignore", DeprecationWarning)
                    row.copy_(self[key].movedim(0, 2))
                problems += [f"{self.files[key[0]]}: {first_line(str(one.message))}" for one in caught]
        except ImageError as error:
            return error, problems
        return batch.movedim(3, 1), problems

    @functools.cached_property
    def _transforms(self) -> tuple[Callable, Callable]:
        """The usual transforms without augmentation (resize to 256 for a crop of 224), and with it."""
        from torchvision.transforms import v2

        side = UPSCALED_PADDED if self.padded else UPSCALED
        return (
            v2.Compose([v2.Resize(side * 8 // 7), v2.CenterCrop(side)]),
            v2.Compose([v2.RandomResizedCrop(side), v2.RandomHorizontalFlip(0.5 if self.flip else 0)]),
        )


def read_rgb(file: str):
    """Read an image of any mode as a PIL image in RGB; any exception means that it cannot be read."""
    from PIL import Image

    with Image.open(file) as image:
        if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):  # of 32 bits, or with a sign
            raise ValueError("its pixels are numbers of no known range")
        if image.mode.startswith("I"):  # 16 bits: `convert` would turn all values above 255 into white
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image.convert("RGB")


@dataclass(kw_only=True)
class FolderLoader(Epochs):
    """Batches of images in files.

    The order of epoch e and the augmentation of each image are derived from (seed, e, image number): they do not
    depend on the number of workers, or of ranks that share each batch.
    """

    preparation: Preparation
    finish: Callable[[Tensor], Tensor]  #: uint8 images (B, C, H, W) on the device -> normalized images
    device: torch.device
    workers: int = 1
    warned: set[str] = field(default_factory=set, repr=False)  #: warnings about images that were logged already
    #: The batch sampler: for each batch of the epoch the keys of its images, as `Preparation` takes them.
    _batches: list[list[tuple[int, int | None]]] = field(default_factory=list, init=False, repr=False)
    _loader: DataLoader | None = field(default=None, init=False, repr=False)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, C, H, W) float32 and labels (B,) int64. Raise ImageError if one cannot be read."""
        epoch, order = self._next_epoch()
        seeds: list[int | None] = [None] * len(order)
        if self.augmentation:
            random = np.random.Generator(np.random.PCG64(derive(self.seed, "augmentation", epoch)))
            seeds = random.integers(2**63, size=len(order)).tolist()
        keys = [(number, seeds[number]) for number in order.tolist()]
        self._batches[:] = [keys[part] for part in batch_slices(len(keys), self.batch_size, self.share)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # `load` warns of too many workers
            if self._loader is None:
                self._loader = DataLoader(
                    self.preparation,
                    batch_sampler=self._batches,
                    collate_fn=tuple,  # the batches are made already
                    num_workers=self.workers,
                    persistent_workers=self.workers > 0 and self.random_order,
                    pin_memory=self.device.type == "cuda",
                    worker_init_fn=_init_worker,
                    # By default it draws from the global generator, and dropout would depend on the workers.
                    generator=torch.Generator(),
                )
            prepared = iter(self._loader)
        for batch, (images, problems) in zip(self._batches, prepared, strict=True):
            for problem in sorted({*problems} - self.warned):
                logging.getLogger(LOGGER).warning(problem)
            self.warned.update(problems)
            if isinstance(images, ImageError):
                raise images
            labels = self.labels[[number for number, _ in batch]]
            with _one_thread() if self.device.type == "cpu" else contextlib.nullcontext():
                images = self.finish(images.to(self.device, non_blocking=True))
            yield images, labels.to(self.device, non_blocking=True)


@contextlib.contextmanager
def _one_thread():
    """Compute on one thread: further threads would wait actively, on cores that the workers need."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _init_worker(worker: int) -> None:
    """Leave signals to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
