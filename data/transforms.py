"""Transforms of whole batches on the compute device: upscaling, augmentation, pixel shuffle, normalization.

Every function takes images (B, C, H, W) and returns new ones. None of them makes the host wait for the device.
"""

import torch
from torch import Tensor
from torch.nn import functional

UPSCALED = 224  #: side of upscaled images in pixels
UPSCALED_PADDED = 112  #: side of upscaled images that are then zero-padded to UPSCALED
PIL_PRECISION = 2**22  #: PIL's weights are multiples of 1 / PIL_PRECISION
CROP_PADDING = 4  #: zeros on each side of an image before a random crop, in pixels


def upscale(images: Tensor, side: int) -> Tensor:
    """Resize uint8 images to side x side pixels, with PIL's bilinear values, and zero-pad to UPSCALED x UPSCALED.

    PIL interpolates along the rows, then along the columns, with weights of a fixed precision, and rounds to whole
    grey levels each time. In float64 all of this is exact, on every device.
    """
    for _ in range(2):
        weights = _resize_weights(images.shape[3], side, images.device)
        images = (images.double() @ weights.T).add_(0.5).to(torch.uint8).mT
    return zero_pad(images, (UPSCALED - side) // 2)


def _resize_weights(size: int, side: int, device: torch.device) -> Tensor:
    """Return PIL's bilinear weights of `size` pixels in each of `side` pixels: (side, size) float64."""
    scale = size / side
    centers = scale * (torch.arange(side, device=device, dtype=torch.float64)[:, None] + 0.5)
    distances = (torch.arange(size, device=device) + 0.5 - centers).abs() / max(scale, 1)
    weights = (1 - distances).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True) * PIL_PRECISION).round() / PIL_PRECISION


def zero_pad(images: Tensor, padding: int) -> Tensor:
    """Add `padding` pixels of zeros on each side."""
    return functional.pad(images, (padding,) * 4) if padding else images


def crop(images: Tensor, corners: Tensor) -> Tensor:
    """Zero-pad by CROP_PADDING pixels and crop to the original size.

    corners: (B, 2) row and column of the upper left corner of each crop, in [0, 2 * CROP_PADDING].
    """
    count, channels, height, width = images.shape
    if not count:  # the share of a rank may be empty
        return images
    padded = zero_pad(images, CROP_PADDING).contiguous()
    image_stride, _, row_stride, _ = padded.stride()
    # Where each row of each crop starts among all pixels: copying rows is many times faster than copying pixels.
    starts = torch.arange(0, padded.numel(), image_stride, device=images.device)
    starts = starts.add(corners[:, 0], alpha=row_stride).add_(corners[:, 1])
    rows = torch.arange(0, image_stride, row_stride, device=images.device).view(channels, -1)[:, :height]
    starts = starts[:, None, None] + rows
    return padded.view(-1).unfold(0, width, 1).index_select(0, starts.view(-1)).view_as(images)


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Flip horizontally the images for which `flipped`, (B,) bool, is true."""
    if images.is_cuda:  # this way has fewer launches, but takes two to four times as long on a CPU
        return torch.where(flipped[:, None, None, None], images.flip(3), images)
    both = torch.cat([images, images.flip(3)])
    return both.index_select(0, torch.arange(len(images), device=images.device) + len(images) * flipped)


def permute_pixels(images: Tensor, permutations: Tensor) -> Tensor:
    """Replace pixel j of image i by its pixel permutations[i, j], in all channels; permutations: (B, H * W)."""
    pixels = images.flatten(2)
    return pixels.gather(2, permutations.long()[:, None].expand_as(pixels)).view_as(images)


def normalize(
    images: Tensor, mean: Tensor | None, std: Tensor | None, memory_format: torch.memory_format
) -> Tensor:
    """Scale values 0 to 255 to float32 in [0, 1], then subtract the mean and divide by the standard deviation.

    The operations and their order are those of torchvision's ToTensor and Normalize, as are the resulting bits.

    mean, std: broadcastable to (B, C, H, W); None: leave the values in [0, 1]. For channels_last on a CPU, a whole
    image (1, C, H, W) in this format takes a quarter of the time of (C, 1, 1).
    """
    images = images.float().contiguous(memory_format=memory_format).div_(255)
    return images if mean is None else images.sub_(mean).div_(std)
