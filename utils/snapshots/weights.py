"""Compare the weights of networks and of snapshots, and copy them into a network."""

import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.snapshots.archive import SnapshotError

MAX_DIFFERENCES = 4  #: how many differences between weights a message lists


def bare_weights(net: nn.Module) -> dict[str, Tensor]:
    """Return the state_dict of a network on the CPU, contiguous whatever memory format the network uses.

    Weights that are on the CPU and contiguous are not copied: they change with the network.
    """
    return {
        name: weight.detach().to("cpu", memory_format=torch.contiguous_format)
        for name, weight in net.state_dict().items()
    }


def fingerprint(weights: dict[str, Tensor]) -> str:
    """Return a checksum of names and weights, the latter as float32: 8 hexadecimal digits.

    The order of the weights makes no difference, nor does `num_batches_tracked`, which some files lack.
    """
    crc = 0
    for name in sorted(weights):
        if name.endswith("num_batches_tracked"):
            continue
        weight = weights[name].float() if weights[name].is_floating_point() else weights[name]
        content = weight.contiguous().view(-1).view(torch.uint8).numpy()
        crc = zlib.crc32(content, zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"


def load_weights(net: nn.Module, weights: dict[str, Tensor], path: Path, arch: str) -> None:
    """Copy the weights of a snapshot into a network.

    Raise SnapshotError if they are of another network, with the layers that differ, or are not finite.
    """
    expected = net.state_dict()
    differing = describe_difference(expected, weights)
    if differing:
        raise SnapshotError(f"{path} is no snapshot of this {arch}: {differing}")
    check_finite(path, weights)
    versioned = OrderedDict(weights)
    versioned._metadata = {"": expected._metadata[""]}  # MNASNet needs the version of its weights
    net.load_state_dict(versioned)


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the weights that are not finite as float32, the type that networks compute with."""
    floating = {name: weight for name, weight in weights.items() if weight.numel() and weight.is_floating_point()}
    # Not `isfinite` of a whole tensor, which needs its memory once more. PyTorch has no aminmax of float8.
    ends = {name: (one.float() if one.itemsize == 1 else one).aminmax() for name, one in floating.items()}
    return [name for name, one in ends.items() if not torch.stack(one).float().isfinite().all()]


def check_finite(path: Path, weights: dict[str, Tensor]) -> None:
    """Raise SnapshotError if weights are not finite."""
    if names := not_finite(weights):
        raise SnapshotError(f"{path} cannot be used: {names[0]} holds NaN, or values that are not finite")


def describe_difference(expected: dict[str, Tensor], weights: dict[str, Tensor]) -> str:
    """Describe in a few words how weights differ from the expected ones in names, shapes and types; "" if equal.

    All floating-point types are the same here. Integers, which some buffers hold, must keep their type.
    Example: "conv1.weight is 6x1x3x3, not 6x3x3x3, fc.bias is missing".
    """
    parts = []
    for name in dict.fromkeys([*expected, *weights]):
        ours, theirs = expected.get(name), weights.get(name)
        if theirs is None:
            # PyTorch before 0.4.1 had no num_batches_tracked, and networks do without it.
            if not name.endswith("num_batches_tracked"):
                parts.append(f"{name} is missing")
        elif ours is None:
            parts.append(f"{name} is unknown")
        elif theirs.shape != ours.shape:
            shapes = ("x".join(map(str, one.shape)) or "a single number" for one in (theirs, ours))
            parts.append(f"{name} is {', not '.join(shapes)}")
        elif theirs.dtype != ours.dtype and not (theirs.is_floating_point() and ours.is_floating_point()):
            parts.append(f"{name} is of type {theirs.dtype}, not {ours.dtype}")
    more = [f"and {len(parts) - MAX_DIFFERENCES} more"] if len(parts) > MAX_DIFFERENCES else []
    return ", ".join(parts[:MAX_DIFFERENCES] + more)
