"""Label noise and shuffled pixels, pure functions of (data, seed).

The generator is numpy's legacy one (`RandomState`), drawn from in a fixed order: the published runs were made so,
and their seeds give the same data here.
"""

from collections.abc import Iterable

import numpy as np


def corrupt_labels(
    labels: np.ndarray, num_classes: int, ratio: float, seed: int, indices: Iterable[int] | None = None
) -> np.ndarray:
    """Give a random share of the samples a wrong label.

    Each sample is corrupted with probability `ratio`; its new label is uniform over the other classes, so it is
    never the true one. (Where corrupted labels are drawn from all classes, a ratio r means r * (1 - 1/C) wrong
    labels; here it means r.)

    Args:
        labels: (n,) integers in [0, num_classes).
        num_classes: number of classes, at least 2 where the ratio is not 0.
        ratio: in [0, 1].
        seed: in [0, 2^32).
        indices: the samples that may be corrupted, in any order: random numbers are drawn for them by their index.
            Default: all.

    Returns:
        (n,) the new labels; the argument is left as it is.

    Raises:
        ValueError: a ratio outside [0, 1], or no other class to corrupt a label to.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"the ratio of corrupted labels is {ratio}, not in [0, 1]")
    if ratio > 0 and num_classes < 2:
        raise ValueError("with a single class there is no wrong label")
    labels = np.array(labels)
    indices = np.arange(len(labels)) if indices is None else np.sort(indices)
    random = np.random.RandomState(seed)
    corrupted = indices[random.rand(len(indices)) <= ratio] if ratio > 0 else indices[:0]
    if len(corrupted):
        shifts = random.choice(np.arange(1, num_classes), len(corrupted))
        labels[corrupted] = (labels[corrupted] + shifts) % num_classes
    return labels


def pixel_permutations(count: int, num_pixels: int, seed: int) -> np.ndarray:
    """A fixed permutation of the pixels for each of `count` images, in index order.

    Pixel j of the shuffled image is pixel `permutation[j]` of the original, in all channels.

    Returns:
        (count, num_pixels) array of the smallest integers that hold them.
    """
    random = np.random.RandomState(seed)
    permutations = np.empty((count, num_pixels), dtype=np.int16 if num_pixels <= 2**15 else np.int32)
    for row in permutations:
        row[:] = random.permutation(num_pixels)
    return permutations


def pixel_permutation(index: int, num_pixels: int, seed: int) -> np.ndarray:
    """The permutation of one image, for images so large or so many that they are not all kept in memory.

    It depends on (seed, index) alone and differs from the ones of `pixel_permutations`.
    """
    return np.random.RandomState([seed, index]).permutation(num_pixels)
