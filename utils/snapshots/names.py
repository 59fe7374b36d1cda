"""Names of snapshots."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class SnapshotName(NamedTuple):
    """The parts of a snapshot's name, such as `<arch>_init_0.pt` and `<arch>_3.tar`."""

    arch: str  #: "" if the name has none
    kind: str  #: "init", "pretrained" or ""
    number: int  #: the 0-based epoch of a `.tar`, else the number of epochs trained
    suffix: str


def parse_snapshot_name(path: Path, arch: str | None = None) -> SnapshotName | None:
    """Split the name of a snapshot into its parts.

    Args:
        path: the file.
        arch: the only architecture that the name may have. Without it, `a_init_3.tar` is an initialization of `a`,
            not a state of a network `a_init`.

    Returns:
        None if the file has another kind of name, or that of another architecture.
    """
    named = r"(?:(.*?)_)??" if arch is None else f"({re.escape(arch)})_"
    match = re.fullmatch(named + r"(?:(init|pretrained)_)?(\d{1,9})", path.stem, re.DOTALL)
    return match and SnapshotName(match[1] or "", match[2] or "", int(match[3]), path.suffix)


def training_states(folder: Path, arch: str) -> dict[int, Path]:
    """Return the training states of an architecture in a folder: 0-based epoch -> path, in order of the epochs."""
    found = {}
    for path in folder.glob("*.tar"):
        name = parse_snapshot_name(path, arch)
        if name is not None and path.name == f"{arch}_{name.number}.tar":
            found[name.number] = path
    return dict(sorted(found.items()))


def epochs_trained(path: Path, content: Mapping[str, Any]) -> int | None:
    """Return for how many epochs the weights of a snapshot were trained.

    It follows from the file's own 0-based epoch, else from its name: 0 for an initialization, -1 for weights from
    the model zoo (`<arch>_pretrained_0.pt`). None if the name does not say.

    Args:
        content: the snapshot, as `utils.snapshots.load` returns it.
    """
    if isinstance(content.get("epoch"), int):
        return content["epoch"] + 1
    name = parse_snapshot_name(path)
    if name is None:
        return None
    if name.kind == "init":
        return 0
    if name.kind == "pretrained" and name.number == 0:
        return -1
    return name.number + 1 if name.suffix == ".tar" else name.number
