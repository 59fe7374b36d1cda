"""Snapshots of a network on disk: written whole or not at all, and checked when they are read.

docs/files.md lists the files and the entries of a training state. Nothing in a file is executed when it
is read, and everything that is used is compared with its checksum: see `utils.snapshots.archive`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.errors import UsageError
from utils.snapshots import archive, foreign
from utils.snapshots.archive import SnapshotError as SnapshotError
from utils.snapshots.archive import checksum as checksum
from utils.snapshots.files import atomic_write

FORMAT = 6  #: of the training states that this program writes


def save(content: dict[str, Any], path: Path, before: Callable[[str], None] | None = None) -> None:
    """Write a training state or a bare state_dict, with all tensors on the CPU, into a folder that exists.

    A reader sees the old file or the new one. `before` is called with the `checksum` of the new file before it
    appears at `path`, so that a record can list the file first. Raise OSError, and leave no new file, if the disk,
    the folder or the permissions do not allow it.
    """
    with atomic_write(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # PyTorch notices that bytes are missing, and hides why: the disk is full
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        if before is not None:
            file.flush()
            before(checksum(Path(file.name)))


def load(
    path: Path,
    wanted: Callable[[str], bool] | None = None,
    network: Mapping[str, Tensor] | None = None,
    key: str | None = None,
) -> dict[str, Any]:
    """Read a snapshot: by `torch.save`, zip archive or old non-zip file, or by safetensors; of any program.

    The file is memory-mapped: tensors are views of it, and only those that are used are read from disk.

    Args:
        path: the file.
        wanted: says for the name of a weight whether it is needed. The other weights and the optimizer's state are
            left out and not read. Default: everything is read.
        network: the weights of the network in question, for their names and shapes, to which those of the file are
            translated (see `utils.snapshots.foreign`); empty: of any network. Default: as this program wrote it.
        key: of the weights in the file, those of nested dicts joined by dots. Default: found by the names.

    Returns:
        the content of the file, of which every tensor has been compared with its checksum. In any case it has
        `model_state_dict` (name of the weight -> CPU tensor), `structure` (the same for all weights, also those
        left out, on the meta device) and `checksums` (whether the file has some: old non-zip files and safetensors
        have none); and `translated`, in words, if something was.

    Raises:
        SnapshotError: the file is missing, cannot be read, is damaged, needs to run code, or is no snapshot.
        UsageError: it holds no weights of the network, or several; or a later version of this program wrote it.
    """
    path = Path(path)
    content, check = archive.read(path)
    if not isinstance(content, dict):
        raise SnapshotError(f"{path} is no snapshot: it holds a {type(content).__name__}, not a dict")
    content = foreign.translate(path, content, network, key)
    weights = content["model_state_dict"]
    check_types(path, content)
    structure = {name: torch.empty_like(weight, device="meta") for name, weight in weights.items()}
    if wanted is not None:
        weights = {name: weight for name, weight in weights.items() if wanted(name)}
        content = {key: v for key, v in content.items() if not any(t.dim() for _, t in archive.tensors_in(v))}
    content = {**content, "model_state_dict": weights, "checksums": check is not None}
    if check is not None:
        for name, tensor in archive.tensors_in(content):
            check(tensor, name.removeprefix("model_state_dict."))
    return {**content, "structure": structure}


def load_record(path: Path) -> dict[str, Any]:
    """Read a snapshot without its weights and optimizer state: `load`, but it reads no tensor."""
    return load(path, wanted=lambda name: False)


#: The types of the entries of a training state, of those that are there.
_TYPES: dict[str, type] = {
    **dict.fromkeys(("format", "epoch", "tensorboard_step"), int),
    **dict.fromkeys(("config", "provenance", "unmeasured", "weights"), dict),
    **dict.fromkeys(("class_names", "overrides"), list),
    **dict.fromkeys(("id", "train_fingerprint"), str),
}


def check_types(path: Path, content: dict[str, Any]) -> None:
    """Raise SnapshotError if an entry beside the weights is not of the type that a training state has.

    Raise UsageError if a later version of this program wrote the file: it is not damaged, and must not be skipped.
    """
    version = content.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise UsageError(f"{path} is of format {version}; this program reads formats up to {FORMAT}")
    for key, kind in _TYPES.items():
        if not isinstance(content.get(key, kind()), kind) or (key == "epoch" and content.get(key, 0) < 0):
            raise SnapshotError(f"{path} is no snapshot: its entry {key} is not what a training state has there")
