"""Names of snapshots, and what tells for how many epochs they were trained."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import models

SUFFIXES = (".pt", ".tar", ".pth", ".ckpt", ".safetensors", ".bin")  #: of files with weights
#: Entries of a training state of the authors' program, in a `.tar`.
LEGACY = {"epoch", "model_state_dict", "scheduler_state_dict", "top1_acc", "top5_acc"}
#: A date, and perhaps a time after it.
_DATE = re.compile(
    r"(?<!\d)(?:\d{8}|(?:19|20)\d\d([-_.])\d\d?\1\d\d?|\d\d?([-_.])\d\d?\2(?:19|20)\d\d|\d\d([-_.])\d\d\3\d\d)"
    r"(?:[-_T]\d\d[-_:]?\d\d(?:[-_:]?\d\d)?)?(?!\d)"
)
_EPOCH = re.compile(r"(?<![a-z])epoch[=_-](\d{1,5})(?!\d)", re.IGNORECASE)
#: A last number. One of more than five digits is taken for a date or a hash.
_NUMBER = re.compile(r"(?<!steps)(?<!step)(?<!iter)(?<!seed)(?<!fold)(?<!run)(?<!acc)(?:^|[_-])(\d{1,5})$")


def number_in_name(path: Path, arch: str) -> int | None:
    """Return the number in the name of a snapshot: `<arch>_3.tar`, `<arch>_init_0.pt`.

    It is the 0-based epoch of a `.tar`, else the number of epochs trained. None: it has another kind of name.
    """
    match = re.fullmatch(rf"{re.escape(arch)}_(?:init_|pretrained_)?(\d{{1,9}})", path.stem)
    return match and int(match[1])


def training_states(folder: Path, arch: str) -> dict[int, Path]:
    """Return the training states of an architecture in a folder: 0-based epoch -> path, in order of the epochs."""
    numbered = re.compile(rf"{re.escape(arch)}_(0|[1-9]\d{{0,8}})\.tar").fullmatch
    found = {int(match[1]): path for path in folder.glob("*.tar") if (match := numbered(path.name))}
    return dict(sorted(found.items()))


def is_training_state(path: Path, content: Mapping[str, Any]) -> bool:
    """Return whether a file is a training state of this program, or of the authors' program (without `format`)."""
    return isinstance(content.get("format"), int) or (path.suffix == ".tar" and content.keys() >= LEGACY)


def epochs_trained(path: Path, content: Mapping[str, Any], arch: str) -> int | None:
    """Return for how many epochs the weights of a snapshot were trained.

    It follows from the epoch that the file records: of a training state of this program the 0-based epoch, of any
    other file the number as it stands. Else it follows from the name: 0 for an initialization, -1 for weights from
    the model zoo (`<arch>_pretrained_0.pt`), the number after `epoch` (`epoch=3-step=96`), or a last number after
    `_` or `-` that is not one of `arch` (not with --arch weights). Dates do not count. None: nothing says it.
    """
    if isinstance(content.get("epoch"), int):
        return content["epoch"] + is_training_state(path, content)
    if re.fullmatch(r"(.*_)?init_\d{1,9}", path.stem, re.DOTALL):
        return 0
    if re.fullmatch(r"(.*_)?pretrained_0", path.stem, re.DOTALL):
        return -1
    number = number_in_name(path, arch)
    if path.suffix == ".tar" and number is not None:
        return number + 1
    stem = path.name
    while Path(stem).suffix in SUFFIXES:
        stem = Path(stem).stem
    of_arch = "[-_.]?".join(map(re.escape, re.sub(r"[\W_]", "", arch)))  # resnet50 is also called resnet_50
    stem = re.sub(of_arch, "", _DATE.sub("", stem), count=1, flags=re.IGNORECASE)
    found = _EPOCH.search(stem) or (_NUMBER.search(stem) if arch != models.WEIGHTS_ALONE else None)
    return int(found[1]) if found else None
