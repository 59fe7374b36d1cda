"""Label noise and pixel shuffle, pure functions of (data, seed).

They draw from NumPy's legacy generator (`RandomState`) in a fixed order, as the authors' code does: the seeds of
the published runs give the same data here.
"""

from collections.abc import Iterable

import numpy as np

from data.registry import DataError


def corrupt_labels(
    labels: np.ndarray, num_classes: int, ratio: float, seed: int, indices: Iterable[int] | None = None
) -> np.ndarray:
    """Give a random share of the samples a wrong label.

    Each sample is corrupted with probability `ratio`. Its new label is uniform over the other classes, so it is
    never the true one: a ratio r gives a share r of wrong labels. `labels` is not changed.

    labels: (n,) integers in [0, num_classes); ratio: in [0, 1]; seed: in [0, 2^32); indices: the samples that may
    be corrupted, in any order; default: all. Raises DataError if there is no other class.
    """
    labels = np.array(labels)
    if num_classes < 2:
        raise DataError(f"--noise {ratio:g}: with a single class there is no wrong label")
    indices = np.arange(len(labels)) if indices is None else np.sort(np.asarray(indices, dtype=np.int64))
    random = np.random.RandomState(seed)
    corrupted = indices[random.rand(len(indices)) <= ratio]
    shifts = random.choice(np.arange(1, num_classes), len(corrupted))
    labels[corrupted] = (labels[corrupted] + shifts) % num_classes
    return labels


def pixel_permutations(count: int, num_pixels: int, seed: int) -> np.ndarray:
    """Return a fixed permutation of the pixels for each of `count` images, in index order.

    Pixel j of a shuffled image is pixel `permutation[j]` of the original, in all channels. The result is
    (count, num_pixels) int16, or int32 for large images.
    """
    random = np.random.RandomState(seed)
    permutations = np.empty((count, num_pixels), dtype=np.int16 if num_pixels <= 2**15 else np.int32)
    for row in permutations:
        row[:] = random.permutation(num_pixels)
    return permutations


def pixel_permutation(index: int, num_pixels: int, seed: int) -> np.ndarray:
    """Return the permutation of one image, for datasets whose permutations do not fit in memory.

    It depends on (seed, index) alone and differs from the one in `pixel_permutations`.
    """
    return np.random.RandomState([seed, index]).permutation(num_pixels)
