"""The projection statistic: how the filters of a layer are oriented towards the identity line.

A layer has N filters. Each of them, flattened to w in R^D, is the normal of a hyperplane in the space of input
patches. Weight sharing makes the arrangement of these hyperplanes symmetric about the identity line, the direction
1 = (1, ..., 1). The statistic is the projection of this direction on the normal, <w, 1>. At a symmetric random
initialization its sign is a fair coin: the *mass* of a layer, the share of filters with projection <= 0, is close
to 1/2. Training drives the mass of many layers far from 1/2.

Source: Gamba, Carlsson, Azizpour, Björkman, "Hyperplane Arrangements of Trained ConvNets Are Biased",
arXiv 2003.07797.

This module is pure: tensors in, numbers out.
"""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

CONFIDENCE = 0.95  #: of all intervals and bands of chance


def _chunk_size(device: torch.device) -> int:
    """Return how many weights to convert to float64 at a time.

    On the CPU a chunk fits in a core's cache (256 kB) and is too small for PyTorch to split among threads (it does
    from 2^15 numbers on). Threads gain little here, and cost seconds if other programs use the cores.
    """
    return 2**15 - 1 if device.type == "cpu" else 2**24


@torch.no_grad()
def project(weight: Tensor, normalize: bool = False) -> Tensor:
    """Project the identity line on the normals of a layer's hyperplanes (arXiv 2003.07797).

    Args:
        weight: (N, C, k, k) of a convolution (C: channels of one group), (N, D) of a fully connected layer, or any
            other shape whose first dimension counts the filters. Any floating-point type, on any device.
        normalize: divide by |w| sqrt(D), which gives the cosine of the angle between w and 1, in [-1, 1].

    Returns:
        the projections, (N,) float64, on the device of the weights; sums and norms are accumulated in float64. The
        projection of a filter of zeros is 0.

    Raises:
        ValueError: weight has fewer than two dimensions, or is complex.
    """
    if weight.dim() < 2 or weight.is_complex():
        raise ValueError(f"weights must be real and have two or more dimensions: {weight.dtype} {[*weight.shape]}")
    projections = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    filters = weight.detach().flatten(1)
    step = max(1, _chunk_size(weight.device) // filters.shape[1])
    for part, out in zip(filters.split(step), projections.split(step), strict=True):
        part = part.to(torch.float64)
        if normalize:
            cosine = part.sum(1) / (torch.linalg.vector_norm(part, dim=1) * math.sqrt(part.shape[1]))
            out.copy_(torch.where(part.any(1), cosine.clamp(-1, 1), 0.0))
        else:
            out.copy_(part.sum(1))
    return projections


@torch.no_grad()
def count_zero_filters(weight: Tensor) -> int:
    """Return the number of filters whose weights are all 0. weight: as for `project`."""
    return len(weight) - int(weight.detach().flatten(1).any(1).sum())


def layer_statistics(projections: Tensor, zero_filters: int | None = None) -> dict[str, Any]:
    """Summarize the projections of a layer.

    Args:
        projections: (N,), as `project` returns them.
        zero_filters: number of filters whose weights are all 0; None: unknown.

    Returns:
        a dict of plain numbers and lists, ready for JSON:

        - projections: the N projections
        - mass: share of filters with projection <= 0, which includes filters of zeros
        - mean, std: of the projections; std divides by N, not N - 1
        - filters: N
        - zero_filters: as given
        - p_value: two-sided, of the exact binomial test that the signs are fair coins (mass 1/2)
        - p_value_without_zeros: the same without the filters of zeros, because dead filters look like bias

        An undefined number is None: all of them for N = 0; p_value_without_zeros if zero_filters is None or N.

    Raises:
        ValueError: projections are not finite, or too large for float64 to hold their squares.

    Example:
        >>> weight = torch.tensor([[1.0, 2.0], [-1.0, -3.0], [0.0, 0.0], [-2.0, 1.0]])
        >>> statistics = layer_statistics(project(weight), count_zero_filters(weight))
        >>> statistics["mass"], statistics["mean"], statistics["p_value"]
        (0.75, -0.5, 0.625)
    """
    projections = projections.detach().to("cpu", torch.float64)
    filters, non_positive = len(projections), int((projections <= 0).sum())
    mean, std = (projections.mean().item(), projections.std(correction=0).item()) if filters else (None, None)
    if filters and not math.isfinite(std):
        raise ValueError("projections are not finite, or too large for float64")
    without_zeros = None
    if zero_filters is not None:
        without_zeros = sign_test(non_positive - zero_filters, filters - zero_filters)
    return {
        "projections": projections.tolist(),
        "mass": non_positive / filters if filters else None,
        "mean": mean,
        "std": std,
        "filters": filters,
        "zero_filters": zero_filters,
        "p_value": sign_test(non_positive, filters),
        "p_value_without_zeros": without_zeros,
    }


def network_statistics(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the `layer_statistics` of all filters of a network, computed from those of its layers."""
    layers = list(layers)
    projections = [projection for layer in layers for projection in layer["projections"]]
    known = all(layer["zero_filters"] is not None for layer in layers)
    zero_filters = sum(layer["zero_filters"] for layer in layers) if known else None
    return layer_statistics(torch.tensor(projections, dtype=torch.float64), zero_filters)


def measure(
    weights: Mapping[str, Tensor], normalize: bool = False, initial: Mapping[str, Tensor] | None = None
) -> dict[str, dict[str, Any]]:
    """Compute the statistics of several layers: name -> `layer_statistics`, and `distances` from `initial`.

    weights, initial: name of a layer -> its weights, as for `project`, and those at initialization. normalize:
    measure cosines. Raise ValueError, which names the layer, where weights are not finite or had another shape.
    """
    measured = {}
    for name, weight in weights.items():
        try:
            projections = project(weight, normalize)
            # Only a filter with projection 0 can be all zero.
            zero_filters = count_zero_filters(weight[projections == 0])
            measured[name] = layer_statistics(projections, zero_filters)
            if initial is not None:
                measured[name].update(distances(weight, initial[name]))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return measured


@torch.no_grad()
def distances(weight: Tensor, initial: Tensor) -> dict[str, float | None]:
    """Compute how far weights are from their initialization, relative to its size, with sums in float64.

    weight, initial: W and W0, of the same shape and on the same device. Return l2_dist, |W - W0|_F / |W0|_F, and
    l_inf_dist, max|W - W0| / max|W0|; both None if W0 is all zero. Raise ValueError: the shapes differ, or weights
    are not finite.
    """
    if weight.shape != initial.shape:
        raise ValueError(f"weights {tuple(weight.shape)} had shape {tuple(initial.shape)} at initialization")
    moved = start = farthest = largest = torch.zeros((), dtype=torch.float64, device=weight.device)
    step = _chunk_size(weight.device)
    parts = zip(weight.detach().flatten().split(step), initial.detach().flatten().split(step), strict=True)
    for part, initial_part in parts:
        initial_part = initial_part.to(torch.float64)
        difference = part.to(torch.float64) - initial_part
        moved = moved + difference.square().sum()
        start = start + initial_part.square().sum()
        farthest = torch.maximum(farthest, difference.abs().amax())
        largest = torch.maximum(largest, initial_part.abs().amax())
    moved, start, farthest, largest = torch.stack([moved, start, farthest, largest]).tolist()
    if not (math.isfinite(moved) and math.isfinite(start)):
        raise ValueError(f"weights {'are' if math.isfinite(start) else 'were at initialization'} not finite")
    if start == 0:
        return {"l2_dist": None, "l_inf_dist": None}
    return {"l2_dist": math.sqrt(moved / start), "l_inf_dist": farthest / largest}


def sign_test(non_positive: int, filters: int) -> float | None:
    """Return the exact two-sided p-value of a number of non-positive projections if signs are fair coins.

    It is the probability under Binomial(filters, 1/2) of a count that is at most as probable as this one: twice
    the tail, as that distribution is symmetric. None for 0 filters.
    """
    # scipy.stats.binomtest gives the same, but scipy.stats takes 0.5 s to import.
    from scipy.special import bdtr

    if not filters:
        return None
    return min(1.0, 2.0 * float(bdtr(min(non_positive, filters - non_positive), filters, 0.5)))


@functools.cache
def chance_of_mass(filters: int) -> tuple[float, float]:
    """Return the least and the greatest mass that `sign_test` does not reject at the level 1 - CONFIDENCE.

    The mass of N = `filters` fair coins is in this range with probability CONFIDENCE or more.
    """
    low = next(count for count in range(filters + 1) if sign_test(count, filters) > 1 - CONFIDENCE)
    return low / filters, 1 - low / filters


def chance_of_mean(mean: float, std: float, filters: int) -> float:
    """Return the distance from 0 that the mean projection stays within, with CONFIDENCE, if signs are fair coins.

    With random signs and fixed sizes, the variance of the mean is the sum of the squared projections divided by
    N^2. The quantile is that of the normal distribution. mean, std: of the projections; std divides by N.
    """
    from scipy.special import ndtri

    return float(ndtri((1 + CONFIDENCE) / 2)) * math.sqrt((mean**2 + std**2) / filters)
