"""Class subsampling, the validation split and batches, as indices: pure functions of (data, seed)."""

from collections.abc import Sequence

import numpy as np


def sample_classes(class_names: Sequence[str], n: int, seed: int | None) -> list[str]:
    """Return the names of n classes in the order of their new labels; without a seed, the first n."""
    kept = list(class_names)
    if seed is not None:
        np.random.RandomState(seed).shuffle(kept)
    return kept[:n]


def relabel(labels: np.ndarray, class_names: Sequence[str], kept: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the samples of some classes, ascending, and their new labels; both int64.

    labels: (n,) indices into `class_names`; kept: the names of these classes in the order of their new labels.
    """
    new_label = np.full(len(class_names), -1, dtype=np.int64)
    new_label[[list(class_names).index(name) for name in kept]] = np.arange(len(kept))
    new_labels = new_label[labels]
    indices = np.flatnonzero(new_labels >= 0)
    return indices, new_labels[indices]


def batch_slices(n: int, batch_size: int, share: tuple[int, int] = (0, 1)) -> list[slice]:
    """Return the positions of each batch of `batch_size` images in the order of an epoch.

    share: (rank, number of ranks). The slices are the part of this rank. The parts of two ranks differ by at most
    one image; a part is empty if the batch holds fewer images than there are ranks.
    """
    rank, ranks = share
    slices = []
    for start in range(0, n, batch_size):
        size = min(batch_size, n - start)
        slices.append(slice(start + size * rank // ranks, start + size * (rank + 1) // ranks))
    return slices


def split_indices(
    n: int, size: float, shuffle: bool, seed: int | None, labels: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Split n samples into a training and a validation part.

    The samples are in index order, or shuffled by `RandomState(seed)`. The last `floor(n * size)` samples are the
    validation part, for a size in [0, 1); with labels (n,), the last `floor(n_c * size)` samples of each class.
    Both parts keep the order. The result is (training, validation) indices, int64.
    """
    order = list(range(n))
    if shuffle:
        np.random.RandomState(seed).shuffle(order)
    order = np.array(order, dtype=np.int64)
    in_validation = np.zeros(n, dtype=bool)  # by position in the order
    groups = [np.arange(n)] if labels is None else [np.flatnonzero(labels[order] == c) for c in np.unique(labels)]
    for positions in groups:
        in_validation[positions[len(positions) - int(np.floor(len(positions) * size)) :]] = True
    return order[~in_validation], order[in_validation]
