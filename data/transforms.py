"""What happens to a batch of images on the compute device: upscaling, augmentation, pixel shuffle, normalization.

All functions take images (B, C, H, W) and return new ones; nothing here makes the host wait for the device.
"""

import torch
from torch import Tensor
from torch.nn import functional

UPSCALED = 224  #: side of upscaled images in pixels
UPSCALED_PADDED = 112  #: side of images that are then zero-padded to UPSCALED
CROP_PADDING = 4  #: zeros around an image before a random crop, in pixels on each side


def upscale(images: Tensor, side: int) -> Tensor:
    """Bilinear interpolation to side x side pixels; values keep their range, as float32."""
    return functional.interpolate(images.float(), size=(side, side), mode="bilinear", align_corners=False)


def zero_pad(images: Tensor, padding: int) -> Tensor:
    """Zeros on each side."""
    return functional.pad(images, (padding,) * 4)


def crop(images: Tensor, corners: Tensor) -> Tensor:
    """Zero-pad by CROP_PADDING pixels and cut the original size out again.

    Args:
        corners: (B, 2) row and column of each image's upper left corner, in [0, 2 * CROP_PADDING].
    """
    height, width = images.shape[2:]
    windows = zero_pad(images, CROP_PADDING).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, corners[:, 0], corners[:, 1]]


def mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror left and right the images for which `mirrored`, (B,) bool, is true."""
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def permute_pixels(images: Tensor, permutations: Tensor) -> Tensor:
    """Pixel j of image i becomes its pixel permutations[i, j], in all channels; permutations: (B, H * W)."""
    pixels = images.flatten(2)
    return pixels.gather(2, permutations.long()[:, None].expand_as(pixels)).view_as(images)


def normalize(
    images: Tensor, mean: Tensor | None, std: Tensor | None, memory_format: torch.memory_format
) -> Tensor:
    """Values 0 to 255 to float32 in [0, 1], less the mean, by the standard deviation; None: stay in [0, 1].

    The same operations in the same order as torchvision's ToTensor and Normalize, so the same bits.

    Args:
        mean, std: what broadcasts to (B, C, H, W). In channels_last on the CPU, (1, C, H, W) in that format takes
            a quarter of the time of (C, 1, 1), of which no more than the values of one pixel are taken at once.
    """
    images = images.to(torch.float32, memory_format=memory_format, copy=True).div_(255)
    return images if mean is None else images.sub_(mean).div_(std)
