"""The projection statistic: how the filters of a layer lie to the identity line.

Each of a layer's N filters, flattened to w in R^D, is the normal of a hyperplane in the space of input patches.
Sharing it across an image makes the arrangement symmetric about the identity line, the direction 1 = (1, ..., 1);
the statistic is the projection <w, 1> of that direction on the normal. At a symmetric random initialization each
sign is a fair coin: the share of non-positive projections, the layer's *mass*, is near 1/2. Training drives many
layers far from it.

Source: Gamba, Carlsson, Azizpour, Björkman, "Hyperplane Arrangements of Trained ConvNets Are Biased",
arXiv 2003.07797.

Tensors in, numbers out: no files, no arguments.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

CONFIDENCE = 0.95  #: of the bands and intervals of what chance gives


def _chunk(device: torch.device) -> int:
    """How many weights to turn into float64 at a time, of whole filters.

    On the CPU few enough to stay in a core's cache (256 kB), and for PyTorch not to divide the work among threads
    (as it does from 2^15 numbers on): that gains little, and costs seconds where other programs use the cores.
    """
    return 2**15 - 1 if device.type == "cpu" else 2**24


@torch.no_grad()
def project(weight: Tensor, normalize: bool = False) -> Tensor:
    """Project the identity line on the normals of a layer's hyperplanes: the statistic of arXiv 2003.07797.

    Args:
        weight: (N, C, k, k) of a convolution (C counts the channels of one group), (N, D) of a fully connected
            layer, or any other shape whose first dimension counts the filters. Any floating-point type, on any
            device.
        normalize: divide by |w| sqrt(D), which makes it the cosine of the angle between the two, in [-1, 1].

    Returns:
        the projections, (N,) float64, on the device of the weights; accumulated in float64. A filter of zeros has
        projection 0.

    Raises:
        ValueError: weight has fewer than two dimensions, or is complex.
    """
    if weight.dim() < 2 or weight.is_complex():
        raise ValueError(f"not the weights of filters: {tuple(weight.shape)} {weight.dtype}")
    projections = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    if not weight.numel():
        return projections
    filters = weight.detach().flatten(1)
    step = max(1, _chunk(weight.device) // filters.shape[1])
    for part, out in zip(filters.split(step), projections.split(step), strict=True):
        part = part.to(torch.float64)
        if normalize:
            if weight.dtype == torch.float64:  # squares could leave its range; those of the smaller types cannot
                largest = part.abs().amax(1, keepdim=True)
                part = part / torch.where(largest > 0, largest, 1.0)
            cosine = part.sum(1) / (torch.linalg.vector_norm(part, dim=1) * math.sqrt(part.shape[1]))
            out.copy_(torch.where(part.any(1), cosine.clamp(-1, 1), 0.0))
        else:
            out.copy_(part.sum(1))
    return projections


@torch.no_grad()
def count_zero_filters(weight: Tensor) -> int:
    """The number of filters of which every weight is 0. weight: as for `project`."""
    return len(weight) - int(weight.detach().flatten(1).any(1).sum())


def layer_statistics(projections: Tensor, zero_filters: int | None = None) -> dict[str, Any]:
    """What is reported of a layer's projections.

    Args:
        projections: (N,), as `project` gives them.
        zero_filters: how many filters are all zero; None: not known.

    Returns:
        a dict of plain numbers and lists, ready for JSON, with

        - projections: the N projections
        - mass: the share of filters with projection <= 0 (zero filters are among them)
        - mean, std: of the projections; std is that of these N numbers (divided by N, not N - 1)
        - filters: N
        - zero_filters: as given
        - p_value: two-sided, of the exact binomial test that the signs are fair coins (mass 1/2)
        - p_value_without_zeros: the same with the all-zero filters left out, as dead filters look like bias

        None where a number is undefined: everything of no filters, and what needs zero_filters when it is None.

    Raises:
        ValueError: projections are not finite, not one-dimensional, or fewer of them are 0 than zero_filters.

    Example:
        >>> weight = torch.tensor([[1.0, 2.0], [-1.0, -3.0], [0.0, 0.0], [-2.0, 1.0]])
        >>> statistics = layer_statistics(project(weight), count_zero_filters(weight))
        >>> statistics["mass"], statistics["mean"], statistics["p_value"]
        (0.75, -0.5, 0.625)
    """
    if projections.dim() != 1:
        raise ValueError(f"projections have {projections.dim()} dimensions, not one")
    projections = projections.detach().to("cpu", torch.float64)
    if not projections.isfinite().all():
        raise ValueError("projections are not finite")
    filters = len(projections)
    if filters and not projections.std(correction=0).isfinite():
        raise ValueError("projections are too large for float64 to hold their squares")
    non_positive = int((projections <= 0).sum())
    statistics: dict[str, Any] = {
        "projections": projections.tolist(),
        "mass": non_positive / filters if filters else None,
        "mean": projections.mean().item() if filters else None,
        "std": projections.std(correction=0).item() if filters else None,
        "filters": filters,
        "zero_filters": zero_filters,
        "p_value": sign_test(non_positive, filters),
        "p_value_without_zeros": None,
    }
    if zero_filters is not None:
        if not 0 <= zero_filters <= int((projections == 0).sum()):
            raise ValueError(f"{zero_filters} filters cannot be all zero: their projections would be 0")
        statistics["p_value_without_zeros"] = sign_test(non_positive - zero_filters, filters - zero_filters)
    return statistics


def network_statistics(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """`layer_statistics` of all filters of a network, from those of its layers."""
    layers = list(layers)
    projections = [projection for layer in layers for projection in layer["projections"]]
    known = all(layer["zero_filters"] is not None for layer in layers)
    zero_filters = sum(layer["zero_filters"] for layer in layers) if known else None
    return layer_statistics(torch.tensor(projections, dtype=torch.float64), zero_filters)


def measure(
    weights: Mapping[str, Tensor], normalize: bool = False, initial: Mapping[str, Tensor] | None = None
) -> dict[str, dict[str, Any]]:
    """The statistics of several layers.

    Args:
        weights: name of a layer -> its weights, as for `project`.
        normalize: measure cosines.
        initial: name of a layer -> its weights at initialization, to measure distances from.

    Returns:
        name -> `layer_statistics`, joined by `distances` where `initial` is given.

    Raises:
        ValueError: weights of a layer are not finite, or not of the shape they had at initialization; the message
            names the layer.
    """
    measured = {}
    for name, weight in weights.items():
        try:
            projections = project(weight, normalize)
            # Filters of zeros are looked for only where the projection does not rule them out.
            zero_filters = count_zero_filters(weight[projections == 0])
            measured[name] = layer_statistics(projections, zero_filters)
            if initial is not None:
                measured[name].update(distances(weight, initial[name]))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return measured


@torch.no_grad()
def distances(weight: Tensor, initial: Tensor) -> dict[str, float | None]:
    """How far weights have moved, relative to where they started.

    Args:
        weight, initial: W and W0, of the same shape and on the same device; accumulated in float64.

    Returns:
        l2_dist, |W - W0|_F / |W0|_F, and l_inf_dist, max|W - W0| / max|W0|; None for both where W0 is all zero.

    Raises:
        ValueError: the shapes differ, or weights are not finite.
    """
    if weight.shape != initial.shape:
        raise ValueError(f"weights {tuple(weight.shape)} started as {tuple(initial.shape)}")
    moved = start = farthest = largest = torch.zeros((), dtype=torch.float64, device=weight.device)
    step = _chunk(weight.device)
    parts = zip(weight.detach().flatten().split(step), initial.detach().flatten().split(step), strict=True)
    for part, initial_part in parts:
        if not part.numel():
            break
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
    """The exact two-sided p-value of so many non-positive projections when every sign is a fair coin.

    The probability under Binomial(filters, 1/2) of a count at least as improbable; as that distribution is
    symmetric, twice the tail. None without filters; 0.0 where it is less than float64 can hold (of 1,075 or
    more filters of one sign).
    """
    # The distribution function itself: scipy.stats, whose binomtest gives the same, takes 0.5 s to import.
    from scipy.special import bdtr

    if not filters:
        return None
    return min(1.0, 2.0 * float(bdtr(min(non_positive, filters - non_positive), filters, 0.5)))


def chance_of_mass(filters: int) -> tuple[float, float]:
    """The least and the greatest mass of fair coins that no test at the level 1 - CONFIDENCE rejects.

    A mass lies between the two with that probability, or more: masses are multiples of 1/N.

    Args:
        filters: N, how many coins, one or more.
    """
    low = next(count for count in range(filters + 1) if sign_test(count, filters) > 1 - CONFIDENCE)
    return low / filters, 1 - low / filters


def chance_of_mean(mean: float, std: float, filters: int) -> float:
    """Within what distance of 0 the mean projection lies, with CONFIDENCE, if signs were fair coins.

    If projections keep their sizes, its variance is the sum of their squares over N^2; the quantile is the normal
    distribution's.

    Args:
        mean, std: of the projections, std over N filters rather than N - 1.
        filters: N, one or more.
    """
    from scipy.special import ndtri

    return float(ndtri((1 + CONFIDENCE) / 2)) * math.sqrt((mean**2 + std**2) / filters)
