"""Read a pickle without running anything in it.

A pickle is a program for a stack machine, and its instructions may call any function of Python. This machine calls
nothing. Where a pickle names a class or function and would call it, the machine notes the name and the arguments
(`Call`). Names that no snapshot needs end the reading. What the notes stand for is up to the reader of the file.
"""

import pickletools
from typing import Any, BinaryIO

import torch

MAX_INSTRUCTIONS = 4_000_000  #: of a pickle; a tensor takes about 40
DICTS = {f"collections.{name}" for name in ("OrderedDict", "defaultdict", "Counter")} | {"dict", "builtins.dict"}
LISTS = {"builtins.set", "builtins.frozenset", "torch.Size", "builtins.list", "builtins.tuple"}
FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
PARAMETERS = {f"torch._utils._rebuild_parameter{suffix}" for suffix in ("", "_with_state")}
TENSORS = {f"torch._utils._rebuild_tensor{suffix}" for suffix in ("", "_v2", "_v3")} | PARAMETERS | {FROM_TYPE}
DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
NUMBER, NAMESPACE, STORAGE = "numpy._core.multiarray.scalar", "argparse.Namespace", "storage"

#: Classes and functions that a file may name, because their values are found beside weights: settings, versions,
#: dates, paths. Their names are all that is read of them.
HARMLESS = set(
    "argparse.Namespace builtins.bool builtins.bytearray builtins.bytes builtins.complex builtins.float "
    "builtins.int builtins.long builtins.str builtins.unicode _codecs.encode datetime.date datetime.datetime "
    "datetime.time datetime.timedelta datetime.timezone pathlib.Path pathlib.PosixPath pathlib.WindowsPath "
    "pathlib.PurePath pathlib.PurePosixPath pathlib.PureWindowsPath numpy.dtype numpy.ndarray "
    "numpy._core.multiarray.scalar numpy._core.multiarray._reconstruct numpy._core.numeric._frombuffer "
    "torch.device torch.Tensor torch.nn.parameter.Parameter torch.torch_version.TorchVersion".split()
)
#: Modules that have other names in other versions of Python and NumPy.
OTHER_MODULES = {
    "__builtin__": "builtins",
    "pathlib._local": "pathlib",
    **{f"numpy.core.{name}": f"numpy._core.{name}" for name in ("multiarray", "numeric")},
}

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE8", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


class RefusedError(Exception):
    """A pickle names a class or function that no snapshot needs; the message is the name."""


class Kind(str):
    """The name of a class or function."""

    __slots__ = ()


class Call:
    """What a pickle says of an object: class, arguments, items and state. Nothing is made of them."""

    __slots__ = ("arguments", "items", "kind", "state")

    def __init__(self, kind: str, arguments: tuple):
        self.kind, self.arguments = kind, arguments
        self.items: list[tuple[Any, Any]] = []  #: of a dict
        self.state: Any = None


def read(file: BinaryIO) -> tuple[Any, list[Call]]:
    """Read a pickle, at which the file is positioned; afterwards it is positioned right behind it.

    Returns:
        numbers, texts, lists, tuples, `Kind` and `Call`, nested; a dict is a `Call` with items. And the tensor
        storages that are named in it.

    Raises:
        RefusedError: it names what no snapshot needs.
        Exception: of many types; it is damaged, or no pickle.
    """
    stack: list[Any] = []
    marks: list[list[Any]] = []
    memo: dict[int, Any] = {}
    storages: list[Call] = []

    def pop_items() -> list[Any]:
        nonlocal stack
        items, stack = stack, marks.pop()
        return items

    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if count > MAX_INSTRUCTIONS:
            raise ValueError("it has more instructions than a snapshot does")
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif name == "MARK":
            marks.append(stack)
            stack = []
        elif name in ("TUPLE", "FROZENSET"):
            items = pop_items()
            stack.append(tuple(items))
        elif name == "EMPTY_DICT":
            stack.append(Call("dict", ()))
        elif name in ("EMPTY_LIST", "EMPTY_SET"):
            stack.append([])
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if name == "APPEND" else pop_items()
            list.extend(stack[-1], items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else pop_items()
            stack[-1].items.extend(zip(items[::2], items[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(_kind(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute = stack.pop()
            stack.append(_kind(stack.pop(), attribute))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, kind = stack.pop(), stack.pop()
            if not isinstance(kind, Kind) or not isinstance(arguments, tuple):
                raise ValueError("it calls what is no class")
            stack.append(Call(kind, arguments))
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].state = state
        elif name == "BINPERSID":
            storages.append(Call(STORAGE, stack.pop()))
            stack.append(storages[-1])
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"its pickle has an instruction {name}")
    (value,) = stack
    return value, storages


def _kind(module: str, name: str) -> Kind:
    """Return the name of a class or function, if a snapshot may name it."""
    kind = f"{OTHER_MODULES.get(module, module)}.{name}"
    is_storage = module in ("torch", "torch.storage") and name.endswith("Storage")
    if is_storage or kind in DTYPES or kind in DICTS | LISTS | TENSORS | HARMLESS:
        return Kind(kind)
    raise RefusedError(kind)
