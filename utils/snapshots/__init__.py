"""Snapshots of a network on disk: written whole or not at all, and checked when they are read.

    <arch>_init_0.pt        the initial weights, a bare state_dict (`<arch>_pretrained_0.pt`: from the model zoo)
    <arch>_<epoch>.tar      the state of training after the 0-based epoch: a dict with `epoch`, `top1_acc`,
                            `top5_acc`, `model_state_dict`, `optimizer_state_dict`, `scheduler_state_dict`, as the
                            authors' program writes it, and since format 2 also `format`, `config` (the arguments
                            that determine the weights), `class_names` and `tensorboard_step`, since format 3
                            `top1_acc_train_running` and `provenance` (program, arguments, versions, device), since
                            format 5 `initial_fingerprint` (a checksum of the initialization; None: not known)
                            and `train_fingerprint` (number and checksum of the training images and labels);
                            format 4 was never published. Until the evaluation after the epoch is done accuracies
                            are None, and `unmeasured` holds the curves of the epoch
    <arch>_<epochs>.pt      the final weights, a bare state_dict

Nothing in a file is executed when it is read, and whatever is used of it is compared with its checksums: see
`utils.snapshots.archive`.
"""

import errno
import json
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import models
from core.errors import UsageError
from utils.snapshots import archive
from utils.snapshots.archive import SnapshotError
from utils.snapshots.files import atomic_write
from utils.snapshots.names import parse_snapshot_name, training_states

FORMAT = 5  #: of the .tar files; the authors' files, which carry no number, are format 1
MOST_TOLD = 4  #: differences of weights that a message names


class NewerFormatError(UsageError):
    """A training state of a later version of this program. It is not damaged, and must not be passed over."""


def save(content: dict[str, Any], path: Path) -> None:
    """Write a training state or a bare state_dict; a reader sees the old file or the new one. The folder is there.

    Tensors are written from the CPU, so that a machine without a GPU reads them.

    Raises:
        OSError: the disk, the folder or the permissions do not allow it; there is no new file then.
    """
    with atomic_write(path) as file:
        try:
            torch.save(_on_cpu(content), file)
        except RuntimeError as error:
            # torch notices that bytes are missing, and hides why: the disk is full.
            cause = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            raise cause or OSError(errno.EIO, str(error).splitlines()[0], str(path)) from None


def load(path: Path, wanted: Callable[[str], bool] | None = None) -> dict[str, Any]:
    """Read a snapshot of any format: `.tar` or `.pt`, ours or the authors', zip archive or old non-zip file.

    The file is memory-mapped: tensors are views of it, of which only what is used is read from the disk.

    Args:
        path: the file.
        wanted: which weights are needed, by parameter name. The others, and the optimizer's state, are left
            out and never read. Default: everything.

    Returns:
        what the file holds, with at least `model_state_dict`: parameter name -> CPU tensor, without the prefixes
        `module.` that DataParallel put before the names. Every tensor in it has been checked against the
        checksum in the file; `checksums` says whether there were any (old non-zip files carry none). `structure`
        has all parameters by name, those left out as well, as tensors on the meta device: shapes and types only.

    Raises:
        SnapshotError: the file does not exist, cannot be read, is damaged, would have to run code, or is no
            snapshot.
        NewerFormatError: it is of a later version of this program.
    """
    path = Path(path)
    content, check = archive.read(path)
    if not isinstance(content, dict):
        raise SnapshotError(f"{path} is no snapshot: it holds a {type(content).__name__}, not a dict")
    if "model_state_dict" not in content:
        content = {"model_state_dict": content}
    weights = content["model_state_dict"]
    is_state_dict = isinstance(weights, dict) and all(
        isinstance(name, str) and isinstance(weight, Tensor) for name, weight in weights.items()
    )
    if not is_state_dict or not weights:
        raise SnapshotError(f"{path} is no snapshot: it holds no weights by name")
    for name, weight in weights.items():
        if weight.is_complex():
            raise SnapshotError(f"{path} is no snapshot: {name} is of type {weight.dtype}")
    _check_kinds(path, content)
    weights = {name: weights[given] for given, name in models.own_names(weights).items()}
    structure = {
        name: torch.empty(weight.shape, dtype=weight.dtype, device="meta") for name, weight in weights.items()
    }
    if wanted is not None:
        weights = {name: weight for name, weight in weights.items() if wanted(name)}
        content = {key: value for key, value in content.items() if not any(archive.tensors_in(value))}
    content = {**content, "model_state_dict": weights, "checksums": check is not None}
    if check is not None:
        for name, tensor in archive.tensors_in(content):
            check(tensor, name)
    content["structure"] = structure
    return content


def load_record(path: Path) -> dict[str, Any]:
    """What a training state says beside weights and the optimizer's state: as `load`, but it reads neither."""
    return load(path, wanted=lambda name: False)


def without_checksums(path: Path, content: dict[str, Any]) -> list[str]:
    """What to warn about a snapshot, as `load` gives it, in which damage goes unnoticed."""
    if content["checksums"]:
        return []
    return [f"{path} is in PyTorch's old format, which has no checksums: damage would go unnoticed"]


def bare_weights(net: nn.Module) -> dict[str, Tensor]:
    """The network's state_dict on the CPU, in the contiguous layout whatever the network computes in.

    What is so already is not copied: it goes on changing with the network.
    """
    return {
        name: weight.detach().to("cpu", memory_format=torch.contiguous_format)
        for name, weight in net.state_dict().items()
    }


def fingerprint(weights: dict[str, Tensor]) -> str:
    """A checksum of weights, as float32 numbers, by which they are told from others."""
    crc = 0
    for name in sorted(weights):
        if name.endswith("num_batches_tracked"):  # which some files lack
            continue
        weight = weights[name].float() if weights[name].is_floating_point() else weights[name]
        content = weight.contiguous().view(-1).view(torch.uint8).numpy()
        crc = zlib.crc32(content, zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"


def initial_fingerprint(path: Path, content: dict[str, Any]) -> str | None:
    """Of bare weights their fingerprint, for which all are read; of a training state that of its run's beginning.

    Args:
        path: of the snapshot.
        content: of it, as `load` gives it, with whatever weights.

    Returns:
        None where a training state records none.

    Raises:
        SnapshotError: it is damaged.
    """
    if "epoch" in content:
        return content.get("initial_fingerprint")
    return fingerprint(load(path)["model_state_dict"])


def was_trained_from_another(initial: str | None, state: dict[str, Any]) -> bool:
    """Whether a training state records another initialization; False where either is not known.

    Args:
        initial: a fingerprint, as `initial_fingerprint` gives it.
        state: as `load` gives it.
    """
    return None not in (initial, state.get("initial_fingerprint")) and initial != state["initial_fingerprint"]


def check_class_names(path: Path, content: dict[str, Any], class_names: list[str]) -> None:
    """Raise SnapshotError where a snapshot records other classes, which its weights need not show."""
    recorded = content.get("class_names", class_names)
    if recorded != class_names:
        raise SnapshotError(f"{path} was trained on the classes {_shorten(recorded)}, not {_shorten(class_names)}")


def describe_other_images(state: dict[str, Any], fingerprint: str) -> str:
    """What a training state was trained on, in a few words, where that is not what the fingerprint is of."""
    recorded = state.get("train_fingerprint", fingerprint)
    if recorded == fingerprint:
        return ""
    (theirs, *_), (ours, *_) = recorded.split(), fingerprint.split()
    return f"{theirs} training images, not {ours}" if theirs != ours else "other images or labels"


def _shorten(names: list[str]) -> str:
    return f"{', '.join(names[:3])}, ... ({len(names)})" if len(names) > 3 else ", ".join(names)


def beside(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """What is recorded of bare weights by the training state that they were saved beside.

    `<arch>_<n>.pt`, the final weights, are those of `<arch>_<n - 1>.tar`. Where that is there and holds the same
    weights, its configuration and class names are what a bare state_dict cannot say of itself.

    Args:
        path: of the bare weights.
        content: of it, as `load` gives it.

    Returns:
        the training state as `load` gives it, without weights, and its `path`; nothing where there is none.

    Raises:
        NewerFormatError: it is of a later version of this program.
    """
    state, same = _compare_with_state_beside(path, content)
    return state if same else {}


def unlike_state_beside(path: Path, content: dict[str, Any]) -> list[str]:
    """What to warn about final weights that are not those of the training state beside them.

    They are of another run then, whatever was recorded of this one. Arguments and errors are those of `beside`.
    """
    state, same = _compare_with_state_beside(path, content)
    return [f"{path} holds other weights than {state['path']}, after as many epochs"] if state and not same else []


def _compare_with_state_beside(path: Path, content: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The training state that by their names belongs to bare weights, and whether it holds the same ones."""
    name = parse_snapshot_name(path)
    if "config" in content or name is None or not name.arch or name.suffix != ".pt":
        return {}, False
    state_path = path.with_name(f"{name.arch}_{name.number - 1}.tar")
    if name.kind and not state_path.exists():  # a network may be called so
        state_path = path.with_name(f"{name.arch}_{name.kind}_{name.number - 1}.tar")
    try:
        state = load(state_path, content["model_state_dict"].__contains__)
    except SnapshotError:  # it is not there, or of no use
        return {}, False
    theirs, ours = state.pop("model_state_dict"), content["model_state_dict"]
    same = theirs.keys() == ours.keys() and all(torch.equal(weight, ours[name]) for name, weight in theirs.items())
    return {**state, "path": state_path}, same


def run_in(folder: Path, arch: str) -> dict[str, Any]:
    """What is recorded of the run whose snapshots are in a folder: by its last training state that is intact.

    Returns:
        as `load_record` gives it, and its `path`; nothing where no training state records a configuration.
    """
    for path in reversed(training_states(folder, arch).values()):
        try:
            record = load_record(path)
        except SnapshotError:
            continue
        if record.get("config"):
            return {**record, "path": path}
    return {}


def run_of_bare_weights(path: Path, content: dict[str, Any], arch: str) -> dict[str, Any]:
    """What is recorded of the run that bare weights are from, by the training states beside them.

    The one of the same weights, as `beside` gives it; where that is gone or damaged, the run that the others in
    the folder are of, if its networks have the same structure.

    Args:
        path: of the bare weights.
        content: of it, as `load` gives it.
        arch: that the snapshots are named after.

    Returns:
        as `beside`; `guessed` is there where it is not by the same weights.
    """
    state = beside(path, content)
    name = parse_snapshot_name(path, arch)
    if state or name is None or "epoch" in content:
        return state
    try:
        load_record(path.with_name(f"{arch}_{name.number - 1}.tar"))
        return {}  # it is intact, and of other weights
    except SnapshotError:
        run = run_in(path.parent, arch)
    if not run or describe_difference(run["structure"], content["structure"]):
        return {}
    return {key: run[key] for key in ("config", "class_names", "path") if key in run} | {"guessed": True}


def result_stem(path: Path, tar_stems: Collection[str] = ()) -> str:
    """The name of a snapshot's results: its own without the suffix, unless a `.tar` and a `.pt` share that.

    `<arch>_3.tar` is after four epochs and `<arch>_3.pt` after three: the latter's results are `<arch>_3.pt`.

    Args:
        tar_stems: of the `.tar`s that it is measured together with, in whatever folder.
    """
    beside_tar = path.suffix == ".pt" and (path.stem in tar_stems or path.with_suffix(".tar").exists())
    return path.name if beside_tar else path.stem


def epochs_trained(path: Path, content: dict[str, Any]) -> int | None:
    """For how many epochs the weights of a snapshot, as `load` gives it, have been trained.

    From the file's own 0-based epoch, else from its name: 0 for an initialization, -1 for weights from the model
    zoo (`<arch>_pretrained_0.pt`); None where the name does not say.
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


def load_weights(net: nn.Module, weights: dict[str, Tensor], path: Path, arch: str) -> None:
    """Copy a snapshot's weights into a network.

    Raises:
        SnapshotError: they are those of another network; the message names the layers that differ.
    """
    expected = net.state_dict()
    differing = describe_difference(expected, weights)
    if differing:
        raise SnapshotError(f"{path} is no snapshot of this {arch}: {differing}")
    check_finite(path, weights)
    versioned = OrderedDict(weights)
    versioned._metadata = {"": expected._metadata[""]}  # MNASNet takes no weights that do not tell its version
    net.load_state_dict(versioned)


def extremes(tensors: Iterable[Tensor]) -> Tensor:
    """The least and the greatest number in each of several tensors, none of them empty, as float32; NaN prevails.

    All are finite if these are: `isfinite` by itself needs the memory of the tensor once more.
    """
    return torch.stack([extreme.float() for tensor in tensors for extreme in tensor.aminmax()])


def check_finite(path: Path, weights: dict[str, Tensor]) -> None:
    """Raise SnapshotError where weights, as the float32 numbers that networks compute with, are not all finite."""
    for name, weight in weights.items():
        if weight.numel() and not extremes([weight]).isfinite().all():
            raise SnapshotError(f"{path} cannot be used: {name} holds NaN, or values that are not finite")


def describe_difference(expected: dict[str, Tensor], weights: dict[str, Tensor]) -> str:
    """Where weights differ from the expected ones in name, shape or kind, in a few words; "" where they do not.

    Numbers may be floating-point ones of any size; whole numbers, which some buffers are, must stay such.
    """
    parts = []
    for name in [*expected, *(name for name in weights if name not in expected)]:
        if name not in weights:
            # PyTorch before 0.4.1 had no num_batches_tracked; networks do without it.
            if not name.endswith("num_batches_tracked"):
                parts.append(f"{name} is missing")
        elif name not in expected:
            parts.append(f"{name} is unknown")
        elif weights[name].shape != expected[name].shape:
            parts.append(f"{name} is {_shape(weights[name])}, not {_shape(expected[name])}")
        elif _kind(weights[name]) != _kind(expected[name]):
            parts.append(f"{name} is of type {weights[name].dtype}, not {expected[name].dtype}")
    more = [f"and {len(parts) - MOST_TOLD} more"] if len(parts) > MOST_TOLD else []
    return ", ".join(parts[:MOST_TOLD] + more)


def _on_cpu(value: Any) -> Any:
    """Nested dicts, lists and tuples with every tensor on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return type(value)((key, _on_cpu(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(_on_cpu(item) for item in value)
    return value


def _check_kinds(path: Path, content: dict[str, Any]) -> None:
    """Raise SnapshotError where what is beside the weights is not of the kind that it is in a training state."""
    version = content.get("format", 1)
    if isinstance(version, int) and version > FORMAT:
        raise NewerFormatError(
            f"{path} is of format {version}, which this program, of format {FORMAT}, cannot read"
        )
    sound = {
        "format": isinstance(version, int),
        "epoch": isinstance(content.get("epoch", 0), int) and content.get("epoch", 0) >= 0,
        "config": isinstance(content.get("config", {}), dict),
        "class_names": _is_list_of(str, content.get("class_names", [])),
        "tensorboard_step": isinstance(content.get("tensorboard_step", 0), int),
        "provenance": _is_json_object(content.get("provenance", {})),
        "unmeasured": _are_curves(content.get("unmeasured", {"top1/train_running": 0.0})),
        "train_fingerprint": _is_text(content.get("train_fingerprint", "0")),
        "initial_fingerprint": content.get("initial_fingerprint") is None
        or _is_text(content["initial_fingerprint"]),
    }
    for key, is_sound in sound.items():
        if not is_sound:
            raise SnapshotError(f"{path} is no snapshot: {key} is not what it is in one")


def _is_json_object(value: Any) -> bool:
    """Whether results can record it."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return isinstance(value, dict)


def _are_curves(value: Any) -> bool:
    return isinstance(value, dict) and "top1/train_running" in value and all(map(_is_point, value.items()))


def _is_point(item: tuple) -> bool:
    tag, value = item
    return isinstance(tag, str) and isinstance(value, (int, float))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _kind(tensor: Tensor) -> torch.dtype | str:
    """Its type, of which those of floating-point numbers are one."""
    return "floating point" if tensor.is_floating_point() else tensor.dtype


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"
