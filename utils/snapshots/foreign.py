"""Find the weights of a network in a file of any program, and give them the network's own names.

They may be at any key of nested dicts, with any prefix, and beside other entries (see `models.naming`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from core.errors import UsageError
from models.naming import Place, places
from utils.snapshots.archive import SnapshotError
from utils.snapshots.names import is_training_state
from utils.snapshots.weights import describe_difference

ROOT = "."  #: --weights-key for weights that are not inside another dict
MAX_LISTED = 4  #: how many keys, or entries that are left out, a message lists
#: What is used of a file of another program beside its weights; its other entries may mean anything. The states
#: are used where the weights are at `model_state_dict`.
ACCURACIES, STATES = ("top1_acc", "top5_acc"), ("optimizer_state_dict", "scheduler_state_dict")


def translate(
    path: Path, content: dict[str, Any], network: Mapping[str, Tensor] | None, key: str | None
) -> dict[str, Any]:
    """Return the content of a file with the weights of a network at `model_state_dict`, under its own names.

    Args:
        network: its weights, for names and shapes. Empty: any network; the names stay as they are. None: the same,
            for a file of this program.
        key: of the weights in the file, those of nested dicts joined by dots. Default: found by the names.

    Returns:
        of a file of this program all that it holds, else what is used of it; and `translated`, in words, if
        something was.

    Raises:
        SnapshotError: there are no weights.
        UsageError: none are of this network, or several are.
    """
    is_own = is_training_state(path, content)
    tensors: dict[str, Tensor] = {}
    stores: dict[str, str] = {}  # the dict that holds each of them
    epochs: dict[str, int] = {}  # that dicts tell

    def walk(value: Any, store: str) -> None:
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            full = f"{store}.{name}" if store else str(name)
            if isinstance(item, Tensor):
                tensors[full], stores[full] = item, store
            elif isinstance(item, (dict, list, tuple)):
                walk(item, full)
            elif name == "epoch" and isinstance(item, (int, float)) and item >= 0 and item == item // 1:
                epochs[store] = int(item)

    walk(content, "")
    inside = key if any(stores.values()) else None  # of bare weights there is nothing to choose
    if key is None and (is_own or (network is None and "model_state_dict" in content)):
        inside = "model_state_dict"
    asked = {
        name: store
        for name, store in stores.items()
        if inside is None or (not store if inside == ROOT else f"{name}.".startswith(f"{inside}."))
    }
    if not asked:
        found = _listed(list(dict.fromkeys(stores.values())))
        what = f"--weights-key {key}: {path} has no weights there" if key else f"{path} is no snapshot: no weights"
        raise SnapshotError(f"{what}; it holds tensors at {found}" if found else f"{what} by name")
    prefix, place = _choose(path, tensors, asked, network, is_own)
    names = place.names | place.unknown
    weights = {name: tensors[names[name]] for name in dict.fromkeys([*(network or ()), *names]) if name in names}
    store = stores[next(iter(place.names.values()))]
    translated = _in_words(prefix, place, store, is_own)
    said = {"model_state_dict": weights, **({"translated": translated} if translated else {})}
    if is_own or (network is None and "model_state_dict" in content):
        return content | said
    around = [epochs[outer] for outer in epochs if not outer or f"{store}.".startswith(f"{outer}.")]
    said |= {"epoch": around[-1]} if around else {}
    used = (*ACCURACIES, *STATES) if store == "model_state_dict" else ACCURACIES
    return {name: content[name] for name in used if name in content} | said


def _choose(
    path: Path,
    tensors: dict[str, Tensor],
    stores: dict[str, str],
    network: Mapping[str, Tensor] | None,
    is_own: bool,
) -> tuple[str, Place]:
    """Return the prefix below which the weights of the network are in the file, and which they are there."""
    found = places(stores, network) if network else {}
    differing = {
        prefix: describe_difference(
            network, {name: tensors[given] for name, given in (place.names | place.unknown).items()}
        )
        for prefix, place in found.items()
    }
    fitting = [prefix for prefix, place in found.items() if not place.unknown and not place.missing]
    fitting = [prefix for prefix in fitting if not differing[prefix]] or fitting
    different = {tuple(tensors[given].data_ptr() for given in found[one].names.values()): one for one in fitting}
    if len(different) == 1:
        return fitting[0], found[fitting[0]]
    if fitting:
        keys = [stores[next(iter(found[prefix].names.values()))] for prefix in fitting]
        keys = keys if len(set(keys)) == len(keys) else [prefix.rstrip(".") for prefix in fitting]
        raise UsageError(f"{path} holds several state_dicts of this network: --weights-key one of {_listed(keys)}")
    kept: dict[str, list[str]] = {}
    for name, store in stores.items():
        kept.setdefault(store, []).append(name)
    if not network:
        kept = {
            store: names
            for store, names in kept.items()
            if not store.startswith("optim") and any(tensors[name].dim() > 1 for name in names)
        } or kept
    if is_own or (not network and len(kept) == 1):  # the options may say what network it is
        prefix, names = next((f"{store}." if store else "", names) for store, names in kept.items())
        return prefix, Place({name.removeprefix(prefix): name for name in names}, [], {}, [])
    listed = []
    for store, names in sorted(kept.items(), key=lambda one: -len(one[1]))[:MAX_LISTED]:
        within = [prefix for prefix, place in found.items() if not set(names).isdisjoint(place.names.values())]
        best = max(within, key=lambda prefix: len(found[prefix].names), default=None)
        what = "no name of this network" if best is None else differing[best]
        count = f"{len(names)} tensor{'s' if len(names) > 1 else ''}"
        listed.append(f"{_listed([store])} ({count}{f': {what}' if network else ''})")
    more = f", and {len(kept) - MAX_LISTED} more" if len(kept) > MAX_LISTED else ""
    what, kind = "several groups of weights", SnapshotError
    if network:
        advice = "is --arch right? compute_projections.py --arch weights measures any file"
        what, kind = f"no weights of this network ({advice})", UsageError
    raise kind(f"{path}: {what}; at {'; '.join(listed)}{more}; --weights-key KEY chooses")


def _in_words(prefix: str, place: Place, store: str, is_own: bool) -> str:
    """Say what was translated; "" if nothing was."""
    if store and not prefix.startswith(f"{store}."):  # they are in several dicts
        store = prefix.rstrip(".")
    inner = prefix.removeprefix(f"{store}.") if store else prefix
    others = [given.removeprefix(f"{store}.") for given in place.left_out]
    renamed = sum(given != prefix + name for name, given in place.names.items())
    said = {
        f"weights at {_listed([store])}": store and not is_own,
        f"prefix {_listed([inner])} removed": inner,
        f"{renamed} names translated": renamed,
        f"{len(others)} {'entry' if len(others) == 1 else 'entries'} left out: {_listed(others)}": others,
    }
    return ", ".join(text for text, holds in said.items() if holds)


def _listed(names: list[str]) -> str:
    """List keys or names of a file in a message: the first of them, without control characters."""
    shown = [(name if name.isprintable() else repr(name))[:100] or ROOT for name in names[:MAX_LISTED]]
    return ", ".join(shown) + (f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else "")
