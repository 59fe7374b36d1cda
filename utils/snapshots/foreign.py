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

    Of a file of this program that is all that it holds, else what is used of it; and `translated`, in words, if
    something was. Arguments and errors are those of `utils.snapshots.load`.
    """
    is_own = is_training_state(path, content)
    is_used_whole = is_own or (network is None and "model_state_dict" in content)
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
    if is_used_whole and key is None:
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
    network = network or {}
    prefix, place = _choose(path, tensors, asked, network, is_own)
    store = stores[next(iter(place.names.values()))]
    names = place.names | place.unknown
    in_order = [name for name in dict.fromkeys([*network, *names]) if name in names]  # safetensors sorts them
    result = {"model_state_dict": {name: tensors[names[name]] for name in in_order}}
    if translated := _in_words(prefix, place, store, is_own):
        result["translated"] = translated
    if is_used_whole:
        return content | result
    told = [epoch for outer, epoch in epochs.items() if not outer or f"{store}.".startswith(f"{outer}.")]
    used = (*ACCURACIES, *STATES) if store == "model_state_dict" else ACCURACIES
    result |= {name: content[name] for name in used if name in content}
    return result | ({"epoch": told[-1]} if told else {})


def _choose(
    path: Path, tensors: dict[str, Tensor], stores: dict[str, str], network: Mapping[str, Tensor], is_own: bool
) -> tuple[str, Place]:
    """Return the prefix below which the weights of the network are in the file, and which they are there."""
    found = places(stores, network)
    differing = {}
    for prefix, place in found.items():
        weights = {name: tensors[given] for name, given in (place.names | place.unknown).items()}
        differing[prefix] = describe_difference(network, weights)
    fitting = [prefix for prefix in found if not differing[prefix]]
    fitting = fitting or [prefix for prefix, place in found.items() if not place.unknown and not place.missing]
    different = {tuple(tensors[given].data_ptr() for given in found[one].names.values()): one for one in fitting}
    if len(different) == 1:
        return fitting[0], found[fitting[0]]
    if fitting:
        keys = _listed([prefix.rstrip(".") for prefix in fitting])
        raise UsageError(f"{path} holds several state_dicts of this network: --weights-key one of {keys}")
    groups: dict[str, list[str]] = {}
    for name, store in stores.items():
        groups.setdefault(store, []).append(name)
    if not network:  # an optimizer's state, and vectors alone, are no weights
        is_matrix = {store: any(tensors[name].dim() > 1 for name in names) for store, names in groups.items()}
        weights = {one: groups[one] for one in groups if is_matrix[one] and not one.startswith("optim")}
        groups = weights or groups
    if is_own or (not network and len(groups) == 1):  # the options may say what network it is
        store, names = next(iter(groups.items()))
        prefix = f"{store}." if store else ""
        return prefix, Place({name.removeprefix(prefix): name for name in names}, [], {}, [])
    listed = []
    for store, names in sorted(groups.items(), key=lambda one: -len(one[1]))[:MAX_LISTED]:
        best = next((one for one, place in found.items() if not set(names).isdisjoint(place.names.values())), None)
        what = "no name of this network" if best is None else differing[best]
        count = f"{len(names)} tensor{'s' if len(names) > 1 else ''}"
        listed.append(f"{_listed([store])} ({count}{f': {what}' if network else ''})")
    more = f", and {len(groups) - MAX_LISTED} more" if len(groups) > MAX_LISTED else ""
    groups_and_key = f"at {'; '.join(listed)}{more}; --weights-key KEY chooses"
    if not network:
        raise SnapshotError(f"{path}: several groups of weights; {groups_and_key}")
    advice = "is --arch right? compute_projections.py --arch weights measures any file"
    raise UsageError(f"{path}: no weights of this network ({advice}); {groups_and_key}")


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
