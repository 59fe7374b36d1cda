"""Batches of a folder of images, decoded and cropped by worker processes and normalized on the device."""

import contextlib
import functools
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from core.seeds import derive
from core.text import first_line
from data.corruption import pixel_permutation
from data.epochs import Epochs
from data.memory import PreparedBatch
from data.registry import ImageError
from data.subsets import batch_slices
from data.transforms import UPSCALED, UPSCALED_PADDED, permute_pixels, zero_pad

LONGEST_TEMPDIR = 70  #: characters; the socket's own name has up to 35


@dataclass(frozen=True)
class Preparation:
    """What a worker does to an image, and the images it can do it to. Seeds are given with each image."""

    files: Sequence[str]
    padded: bool  #: to half the size, with zeros around it
    flip: bool
    shuffle_seed: int | None  #: of the pixel shuffle

    def __getitem__(self, key: tuple[int, int | None]) -> Tensor | ImageError:
        """Decode image number key[0]; key[1] is the seed of its augmentation, None: without.

        Returns:
            (3, 224, 224) uint8. An image that cannot be read is returned as the error to raise: raised here
            it would reach the main process as a page of traceback.
        """
        from PIL import Image
        from torchvision.transforms.v2.functional import pil_to_tensor

        number, seed = key
        if not os.path.isfile(self.files[number]):
            return ImageError(f"{self.files[number]} cannot be read: it is not a file")
        try:
            with Image.open(self.files[number]) as image:
                shorter, longer = sorted(image.size)
                # Else resizing its shorter side would fill the memory, as a decompression bomb does.
                if longer / shorter * (UPSCALED * 8 // 7) ** 2 > 2 * Image.MAX_IMAGE_PIXELS:
                    raise ValueError(f"{image.width}x{image.height} pixels are too long and narrow")
                # The "I" of PNG and PPM are 16 bits.
                if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
                    raise ValueError("its pixels are floating-point or 32-bit numbers, of no known range")
                if image.mode.startswith("I"):  # 16 bits a pixel: `convert` would make all above 255 white
                    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
                image = image.convert("RGB")
        except Exception as error:  # a broken file can make PIL raise anything
            return ImageError(f"{self.files[number]} cannot be read: {first_line(error)}")
        with torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds GPUs too, and takes its time
            pixels = pil_to_tensor(self._as_is(image) if seed is None else self._augmented(image))
        if self.padded:
            pixels = zero_pad(pixels, (UPSCALED - UPSCALED_PADDED) // 2)
        if self.shuffle_seed is not None:
            permutation = pixel_permutation(number, UPSCALED * UPSCALED, self.shuffle_seed)
            pixels = permute_pixels(pixels[None], torch.from_numpy(permutation)[None])[0]
        return pixels

    @functools.cached_property
    def _as_is(self) -> Callable:
        """The usual evaluation protocol: the smaller side to 8/7 of the crop, 256 for 224, then the centre."""
        from torchvision.transforms import v2

        side = UPSCALED_PADDED if self.padded else UPSCALED
        return v2.Compose([v2.Resize(side * 8 // 7), v2.CenterCrop(side)])

    @functools.cached_property
    def _augmented(self) -> Callable:
        from torchvision.transforms import v2

        side = UPSCALED_PADDED if self.padded else UPSCALED
        return v2.Compose([v2.RandomResizedCrop(side), v2.RandomHorizontalFlip(0.5 if self.flip else 0)])


@dataclass
class FolderLoader(Epochs):
    """Batches of images in files, an epoch at each iteration.

    What is random in epoch e, the order and the augmentation of each image, is derived from (seed, e, image
    number): it does not depend on the number of workers, or of ranks that share each batch.
    """

    preparation: Preparation
    labels: Tensor  #: (n,) int64, on the CPU
    batch_size: int
    finish: Callable[[Tensor], Tensor]  #: uint8 images (B, C, H, W) on the device -> normalized ones
    device: torch.device
    workers: int = 1
    seed: int = 0
    random_order: bool = False
    augmentation: bool = False
    share: tuple[int, int] = (0, 1)  #: (rank, number of ranks) that each batch is shared among
    epoch: int = 0
    #: The batch sampler: of each batch of the epoch the image numbers, each with the seed of its augmentation.
    _batches: list[list[tuple[int, int | None]]] = field(default_factory=list, init=False, repr=False)
    _loader: DataLoader | None = field(default=None, init=False, repr=False)

    def __iter__(self) -> Iterator[PreparedBatch]:
        n = self.num_images
        epoch, order = self._next_epoch()
        seeds: list[int | None] = [None] * n
        if self.augmentation:
            random = np.random.Generator(np.random.PCG64(derive(self.seed, "augmentation", epoch)))
            seeds = random.integers(2**63, size=n).tolist()
        keys = [(number, seeds[number]) for number in order.tolist()]
        self._batches[:] = [keys[part] for part in batch_slices(n, self.batch_size, self.share)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # too many workers, `load` says
            if self._loader is None:
                self._loader = DataLoader(
                    self.preparation,
                    batch_sampler=self._batches,
                    collate_fn=_stack,
                    num_workers=self.workers,
                    persistent_workers=self.workers > 0 and self.random_order,
                    pin_memory=self.device.type == "cuda",
                    worker_init_fn=_begin_work,
                    # Else it draws from the global one, at times that depend on the workers: dropout would too.
                    generator=torch.Generator(),
                )
            prepared = iter(self._loader)
        for batch, images in zip(self._batches, prepared, strict=True):
            if isinstance(images, ImageError):
                raise images
            labels = self.labels[[number for number, _ in batch]]
            with _one_thread() if self.device.type == "cpu" else contextlib.nullcontext():
                images = self.finish(images.to(self.device, non_blocking=True))
            yield images, labels.to(self.device, non_blocking=True)


def _stack(images: list[Tensor | ImageError]) -> Tensor | ImageError:
    if not images:  # of a batch with fewer images than there are ranks
        return torch.empty(0, 3, UPSCALED, UPSCALED, dtype=torch.uint8)
    broken = next((image for image in images if isinstance(image, ImageError)), None)
    if broken is not None:
        return broken
    # Pixel by pixel, as PIL has them: copied as they lie, not channel by channel.
    batch = torch.empty(len(images), UPSCALED, UPSCALED, 3, dtype=torch.uint8)
    if torch.utils.data.get_worker_info() is not None:
        try:
            batch.share_memory_()  # here: after this function a failure would leave the main process waiting
        except (OSError, RuntimeError) as error:
            needed = f"{batch.nbytes / 2**20:.0f} MiB of shared memory for a batch cannot be had"
            return ImageError(
                f"{needed} ({str(error).splitlines()[0]}): give a smaller --batch-size, or --workers 0"
            )
    torch.stack([image.movedim(0, 2) for image in images], out=batch)
    return batch.movedim(3, 1)


@contextlib.contextmanager
def _one_thread():
    """Compute on one thread: others would wait for each operation by counting, on cores that the workers need."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _begin_work(worker: int) -> None:
    """What a worker does first: signals are for the main process, which stops it by SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # Batches go to the main process through a socket in a temporary folder, whose path may have 107 characters.
    if len(tempfile.gettempdir()) > LONGEST_TEMPDIR:
        tempfile.tempdir = "/tmp"
