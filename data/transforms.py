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
    # functional.interpolate, which calls this, takes a slower way on a GPU with --deterministic, for the sake of a
    # gradient that nobody needs here, and gives slightly other values.
    return torch.ops.aten.upsample_bilinear2d.vec(images.float(), (side, side), False, None)


def zero_pad(images: Tensor, padding: int) -> Tensor:
    """Zeros on each side."""
    return functional.pad(images, (padding,) * 4) if padding else images


def crop(images: Tensor, corners: Tensor) -> Tensor:
    """Zero-pad by CROP_PADDING pixels and cut the original size out again.

    Args:
        corners: (B, 2) row and column of each image's upper left corner, in [0, 2 * CROP_PADDING].
    """
    count, channels, height, width = images.shape
    if not count:  # a rank's share of a batch with fewer images than there are ranks
        return images
    padded = zero_pad(images, CROP_PADDING).contiguous()
    of_image, _, of_row, _ = padded.stride()
    # Where each row of each crop begins among all pixels: whole rows are copied many times faster than pixels.
    starts = torch.arange(0, padded.numel(), of_image, device=images.device)
    starts = starts.add(corners[:, 0], alpha=of_row).add_(corners[:, 1])
    rows = torch.arange(0, of_image, of_row, device=images.device).view(channels, -1)[:, :height]
    starts = starts[:, None, None] + rows
    return padded.view(-1).unfold(0, width, 1).index_select(0, starts.view(-1)).view_as(images)


def mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror left and right the images for which `mirrored`, (B,) bool, is true."""
    # Fewer launches for a GPU; on a CPU the one takes two to four times as long as the other.
    return mirror_by_choice(images, mirrored) if images.is_cuda else mirror_by_index(images, mirrored)


def mirror_by_choice(images: Tensor, mirrored: Tensor) -> Tensor:
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def mirror_by_index(images: Tensor, mirrored: Tensor) -> Tensor:
    count = len(images)
    both = torch.cat([images, images.flip(3)])
    return both.index_select(0, torch.arange(count, device=images.device) + count * mirrored)


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
    if images.is_floating_point():
        images = images.div(255).contiguous(memory_format=memory_format)
    else:
        images = images.float().contiguous(memory_format=memory_format).div_(255)
    return images if mean is None else images.sub_(mean).div_(std)
