"""The names that a network's weights have in files, and those that they have in the network."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import NamedTuple

#: What DataParallel, torch.compile, FSDP and activation checkpointing call the module that they wrap.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
MAX_PARTS, MAX_PLACES = 20, 20  #: of a name, and in a file: one made to do harm must not take for ever


class Place(NamedTuple):
    """Where the weights of a network may be in a file."""

    names: dict[str, str]  #: in the network -> in the file
    missing: list[str]  #: of the network's names, those that are not in the file
    unknown: dict[str, str]  #: without the prefix -> in the file, of weights that only a larger network has
    left_out: list[str]  #: in the file: what stands beside the network, such as counters and auxiliary heads


def places(names: Mapping[str, str], own: Collection[str]) -> dict[str, Place]:
    """Find the weights of a network under any prefix that they share.

    Names of wrappers are left out wherever they are (`features.module.0.weight`). DenseNet's names of an old
    version are translated (`denselayer1.norm.1` is `denselayer1.norm1` now).

    names: of the weights in the file -> what they are stored in there; own: the names of the network's weights.
    Returns prefix -> place, for the prefixes below which there are most of the network's names.
    """
    own = set(own)
    wrappers = WRAPPERS - {part for name in own for part in name.split(".")}
    kinds = {"weight", "bias", *(name.rpartition(".")[2] for name in own)}
    stems = {_stem(name) for name in own}

    def translate(parts: list[str]) -> str:
        name = ".".join(part for part in parts if part not in wrappers)
        return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d\.)", r"\1\2", name)

    found: dict[str, dict[str, str]] = defaultdict(dict)
    for given in names:
        parts = given.split(".", MAX_PARTS)
        for start, part in enumerate(parts):
            if part not in wrappers and (name := translate(parts[start:])) in own:
                found["".join(f"{part}." for part in parts[:start])].setdefault(name, given)
    made = {}
    for prefix, translated in sorted(found.items(), key=lambda one: -len(one[1]))[:MAX_PLACES]:
        used, stores = set(translated.values()), {names[given] for given in translated.values()}
        others = [given for given in names if names[given] in stores and given not in used]
        unknown, left_out = {}, []
        for given in others:
            name = translate(given.removeprefix(prefix).split("."))
            # Counters in the network's modules, and modules of other names, such as auxiliary heads, are left out.
            if given.startswith(prefix) and name.rpartition(".")[2] in kinds and _stem(name) in stems:
                unknown[name] = given
            else:
                left_out.append(given)
        # PyTorch before 0.4.1 had no num_batches_tracked, and networks do without it.
        missing = [name for name in own - translated.keys() if not name.endswith("num_batches_tracked")]
        made[prefix] = Place(translated, missing, unknown, left_out)
    return made


def _stem(name: str) -> str:
    """Return what the names of similar modules have in common: "layer" of `layer1.2.conv1.weight`."""
    return re.match(r"\D*", name.split(".")[0])[0]
