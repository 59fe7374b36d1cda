"""Which images are asked for: a dataset, and how its images and labels are changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.registry import DataError, Normalization, Spec, info
from data.transforms import UPSCALED, UPSCALED_PADDED

PIXEL_SHUFFLE = -1  #: value of `noise` that shuffles pixels instead of corrupting labels


@dataclass(frozen=True)
class Images:
    """Which images are asked for."""

    dataset: str  #: one of `data.names()`
    root: str | Path  #: folder of the datasets
    subsample_classes: int = 0  #: number of classes to keep; 0: all of them
    class_sample_seed: int | None = None  #: seed for choosing the classes, in [0, 2^32); None: keep the first ones
    noise: float = 0.0  #: ratio of corrupted training labels, in [0, 1]; -1: shuffle the pixels of training images
    noise_seed: int | None = None  #: seed for the noise, in [0, 2^32); needed with noise
    augmentation: bool = False  #: random crops of training images, and horizontal flips of colour images
    upscale: bool = False  #: upscale images to 224x224 pixels
    upscale_padding: bool = False  #: upscale images to 112x112 pixels and zero-pad them to 224x224
    split: float = 0.0  #: share of the training images that become the validation set, in [0, 1)
    stratified: bool = False  #: split each class by the same share
    split_seed: int | None = None  #: seed for shuffling before the split, in [0, 2^32)
    shuffle: bool = False  #: shuffle before the split; without a split: use a new random order in each epoch
    unnormalize: bool = False  #: leave pixel values in [0, 1]
    mean: Sequence[float] | None = None  #: of pixel values in [0, 1], one per channel; None: that of the dataset
    std: Sequence[float] | None = None  #: likewise

    @property
    def spec(self) -> Spec:
        """The specification of the dataset."""
        return info(self.dataset)

    @property
    def num_classes(self) -> int:
        """Number of classes as far as it is known before reading: a folder of images may hold another number."""
        return self.subsample_classes or self.spec.num_classes

    @property
    def upscaled_side(self) -> int | None:
        """Side of the upscaled images in pixels, before they are padded; None: they are not upscaled."""
        return UPSCALED if self.upscale else UPSCALED_PADDED if self.upscale_padding else None

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels, as the network sees the images."""
        return self.spec.image_size if self.upscaled_side is None else (UPSCALED, UPSCALED)

    @property
    def random_order(self) -> bool:
        """Whether the training images come in a new random order in each epoch."""
        return self.shuffle or self.split > 0

    @property
    def normalization(self) -> Normalization | None:
        """Mean and standard deviation of each channel, as the network sees the images; None: do not normalize."""
        spec = self.spec
        if self.unnormalize:
            return None
        if self.mean is not None:
            return tuple(self.mean), tuple(self.std)
        upscaled = {UPSCALED: spec.normalization_upscaled, UPSCALED_PADDED: spec.normalization_padded}
        return upscaled.get(self.upscaled_side) or spec.normalization

    @property
    def protocol(self) -> int:
        """Version of these images: it grows when the same options and seeds give other images or labels.

        2: upscaled images have whole grey levels.
        """
        return 2 if self.upscaled_side is not None and self.spec.in_memory else 1

    def check(self) -> None:
        """Raise DataError if there is no such dataset, an option is out of range, or two contradict each other."""
        spec, n = self.spec, self.subsample_classes
        if spec.in_memory and n > spec.num_classes:  # a folder may have any number of classes
            raise DataError(f"--subsample-classes {n}: {spec.name} has {spec.num_classes} classes")
        if not (0 <= self.noise <= 1 or self.noise == PIXEL_SHUFFLE):
            raise DataError(f"--noise {self.noise:g}: must be a ratio in [0, 1], or -1 to shuffle pixels")
        if self.noise > 0 and n == 1:
            raise DataError(f"--noise {self.noise:g}: with a single class there is no wrong label")
        if self.upscale and self.upscale_padding:
            raise DataError("--upscale and --upscale-padding exclude each other: give one of them")
        counts = [len(values) for values in (self.mean, self.std) if values is not None]
        if counts and (self.unnormalize or counts != [spec.in_channels] * 2):
            each = f"{spec.in_channels} number{'s' if spec.in_channels > 1 else ''} each for {spec.name}"
            raise DataError(f"--mean, --std: give both together, {each}, without --unnormalize")
