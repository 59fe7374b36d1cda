"""Names of snapshots."""

import re
from pathlib import Path
from typing import NamedTuple


class SnapshotName(NamedTuple):
    """What the name of a snapshot says: `<arch>_init_0.pt`, `<arch>_3.tar`."""

    arch: str  #: "" where it names none
    kind: str  #: "init", "pretrained" or ""
    number: int  #: of a `.tar` the 0-based epoch, else the epochs trained
    suffix: str


def parse_snapshot_name(path: Path, arch: str | None = None) -> SnapshotName | None:
    """The parts of a snapshot's name; None where it is named otherwise, or after another architecture than `arch`.

    Without `arch`, `a_init_3.tar` is taken as an initialization of `a`, not as a state of a network `a_init`.
    """
    named = r"(?:(.*?)_)??" if arch is None else f"({re.escape(arch)})_"
    match = re.fullmatch(named + r"(?:(init|pretrained)_)?(\d{1,9})", path.stem, re.DOTALL)
    return match and SnapshotName(match[1] or "", match[2] or "", int(match[3]), path.suffix)


def training_states(folder: Path, arch: str) -> dict[int, Path]:
    """The training states of an architecture in a folder: 0-based epoch -> path, in order."""
    found = {}
    for path in folder.glob("*.tar"):
        name = parse_snapshot_name(path, arch)
        if name is not None and path.name == f"{arch}_{name.number}.tar":
            found[name.number] = path
    return dict(sorted(found.items()))
