"""Read files of weights, by `torch.save` or safetensors, without trusting them.

Nothing in a file is executed, and every tensor that is used is compared with its checksum.

`torch.save` writes a zip archive with a CRC-32 for each record, which `torch.load` does not check. Files are
loaded with `weights_only=True`. Their content becomes plain: tensors, numbers, strings, None, and dicts, lists and
tuples of these. Harmless objects that other programs save beside weights become text; a file that needs more is
refused. Old non-zip files and safetensors have no checksums.
"""

import contextlib
import hashlib
import io
import pickle
import pickletools
import re
import struct
import textwrap
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from core.errors import UsageError
from core.text import first_line, printable

ZIP_MAGIC = b"PK\x03\x04"
ZIP_DESCRIPTOR = b"PK\x07\x08"  #: follows a record, and repeats its checksum
OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of torch.save before PyTorch 1.6: a pickled long integer
PICKLE_PROTOCOL = 2  #: of torch.save; weights_only knows no later one
OLD_PICKLES = 5  #: in an old non-zip file: magic number, protocol, byte order, content, names of the storages

#: The functions and classes of PyTorch that a pickle may name. `weights_only` allows more: they run no code of the
#: file, but some can fill the memory (bytearray, torch.Tensor) or hide what the tensors are.
is_allowed = re.compile(
    r"collections\.(OrderedDict|Counter)|torch\.(\w+Storage|storage\.(Typed|Untyped)Storage)|builtins\.(set|complex)"
    r"|torch\._utils\._rebuild_(tensor|tensor_v[23]|parameter|parameter_with_state)|_codecs\.encode"
    r"|torch\.(Size|device|bool|(b?float|u?int|complex)(8|16|32|64|128)(_\w+)?)"
).fullmatch
is_tensor_record = re.compile(r"[^/]+/data/(\d+)").fullmatch

#: Largest number of elements of a tensor that repeats fewer stored ones: it is small on disk and large in memory.
MAX_EXPANDED_NUMEL = 2**30
MAX_DEPTH, MAX_VALUES = 16, 200_000  #: nesting and number of values in a snapshot: far more than any has
SAVE_WEIGHTS_ALONE = 'save the weights alone: torch.save(net.state_dict(), "weights.pt")'


class SnapshotError(UsageError):
    """A file is no snapshot, is damaged, or belongs to another network. The message, one line, names the file."""

    def __init__(self, message: str):
        super().__init__(printable(" ".join(message.splitlines())))  # names in a file may hold control characters


class _StandIn:
    """An object of a harmless class, in place of it: it holds what the file says of it, and does nothing."""

    def __new__(cls, *arguments):
        made = object.__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _number(dtype: _StandIn, content: bytes) -> int | float | bool | str:
    """Return a number of NumPy as one of Python; a text for anything else."""
    (name, *_), (_, order, *_) = dtype.arguments, dtype.state
    is_number = re.fullmatch(r"[?biuf][1248]?", name)
    return np.frombuffer(content, (">" if order == ">" else "<") + name)[0].item() if is_number else "numpy.scalar"


PATHS = "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath"
#: Harmless classes and functions that a pickle may name, by module. Versions of NumPy and Python rename modules.
HARMLESS = {
    "argparse": "Namespace",
    "builtins": "bool bytes dict float int list long str tuple unicode",
    "datetime": "date datetime time timedelta timezone",
    "numpy": "dtype ndarray",
    **dict.fromkeys(("numpy._core.multiarray", "numpy.core.multiarray"), "_reconstruct"),
    **dict.fromkeys(("pathlib", "pathlib._local"), PATHS),
    "torch.torch_version": "TorchVersion",
}
#: What takes their place.
STAND_INS: dict[str, Callable] = {
    **{f"{at}.{name}": type(name, (_StandIn,), {}) for at, names in HARMLESS.items() for name in names.split()},
    "builtins.frozenset": lambda items=(): list(items) if isinstance(items, (list, tuple)) else [],
    "collections.defaultdict": lambda *factory: {},
    **dict.fromkeys(("numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar"), _number),
}


def read(path: Path) -> tuple[Any, Callable[[Tensor, str], None] | None]:
    """Read a file by `torch.save` or safetensors, to the CPU; memory-mapped unless it is an old non-zip file.

    Return the content; and a function `check(tensor, name)` that raises SnapshotError if a tensor of the content
    does not match its checksum. None: the file has no checksums.
    """
    with _open(path) as (file, kind):
        if kind == "zip":
            return _read_archive(path, file)
        if kind == "safetensors":
            from safetensors import torch as safetensors

            return safetensors.load_file(path), None
        for _ in range(OLD_PICKLES):
            _check_pickle(path, file)
        file.seek(0)
        return _load(path, file), None


def checksum(path: Path) -> str | None:
    """Return a checksum of the tensors in a zip archive by `torch.save`: 16 hexadecimal digits.

    It is computed from the CRC-32 and size of each tensor in the directory of the zip archive; no tensor is read.
    The same tensors, saved in the same order, have the same checksum. Other files have none: None.
    Raise SnapshotError if the file is missing, is no file of weights, or its directory is damaged.
    """
    with _open(path) as (file, kind):
        if kind != "zip":
            return None
        with zipfile.ZipFile(file) as archive:
            matches = [(is_tensor_record(record.filename), record) for record in archive.infolist()]
        tensors = sorted((int(match[1]), (record.CRC, record.file_size)) for match, record in matches if match)
        return hashlib.sha256(repr(tensors).encode()).hexdigest()[:16]


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in nested dicts, lists and tuples, each with the keys that lead to it: "a.b.0"."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors_in(item, f"{name}.{key}" if name else str(key))


@contextlib.contextmanager
def _open(path: Path):
    """Open a file to read, and tell its format: "zip" or "old", by `torch.save`, or "safetensors".

    Errors in the block become a SnapshotError that names the file.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe or a device might not end
            raise SnapshotError(f"{path} is not a file")
        with open(path, "rb") as file:
            first_bytes = file.read(len(OLD_MAGIC))
            file.seek(0)
            if first_bytes.startswith(ZIP_MAGIC):
                yield file, "zip"
            elif first_bytes == OLD_MAGIC:
                yield file, "old"
            elif first_bytes[8:9] == b"{":
                yield file, "safetensors"
            else:
                wrong = "neither torch.save nor safetensors wrote it, or its beginning is damaged"
                raise SnapshotError(f"{path} is no snapshot: {wrong}")
    except (SnapshotError, MemoryError):
        raise
    except OSError as error:
        raise SnapshotError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # garbage can make zipfile, pickletools and PyTorch raise anything
        reason = first_line(error)[:200]
        if isinstance(error, pickle.UnpicklingError):  # PyTorch's message is several paragraphs of advice
            reason = "it holds more than tensors and numbers"
        what = "is damaged" if isinstance(error, zipfile.BadZipFile) else "is no snapshot, or it is damaged"
        raise SnapshotError(f"{path} {what}: {reason}") from None


def _read_archive(path: Path, file: BinaryIO) -> tuple[Any, Callable[[Tensor, str], None]]:
    records = _check_records(path, file)
    # PyTorch opens a file by its name, and more than once: a run that goes on may have replaced the one at `path`.
    content = _load(path, f"/dev/fd/{file.fileno()}", mmap=True)
    # The memory address of the file's beginning: the first tensor in memory is the first in the file.
    storages = [tensor.untyped_storage() for _, tensor in tensors_in(content)]
    start = min((one.data_ptr() for one in storages if one.nbytes()), default=0) - min(records, default=0)

    def check(tensor: Tensor, name: str) -> None:
        storage = tensor.untyped_storage()
        if not storage.nbytes():
            return
        record = records.get(storage.data_ptr() - start)
        if record is None or record.file_size != storage.nbytes():
            raise SnapshotError(f"{path} is damaged: {name} lies outside of its record")
        if zlib.crc32(torch.empty(0, dtype=torch.uint8).set_(storage).numpy()) != record.CRC:
            raise SnapshotError(f"{path} is damaged: {name} does not match its checksum")

    return content, check


def _check_records(path: Path, file: BinaryIO) -> dict[int, zipfile.ZipInfo]:
    """Check the structure of a zip archive, and the checksums of all records that are not tensors.

    Return the records of the tensors that are not empty, each by the position of its first byte in the file.
    """
    tensors = {}
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        names = {record.filename.lower() for record in records}  # PyTorch ignores the case
        if any(name.endswith("/constants.pkl") for name in names):
            raise SnapshotError(f"{path} is TorchScript, a program; {SAVE_WEIGHTS_ALONE}")
        if len({name.split("/")[0] for name in names}) != 1 or len(names) != len(records):
            raise SnapshotError(f"{path} is no snapshot: its records are not those of one torch.save")
        if min(record.header_offset for record in records):  # PyTorch and zipfile would read different records
            raise SnapshotError(f"{path} is damaged: there is something before its first record")
        for record in records:
            if record.compress_type != zipfile.ZIP_STORED:
                raise SnapshotError(f"{path} is no snapshot: {record.filename} is compressed")
            archive.open(record).close()  # checks that the name beside the record is the one in the directory
            file.seek(record.header_offset)
            name_length, extra_length = struct.unpack("<26xHH", file.read(30))
            position = record.header_offset + 30 + name_length + extra_length
            file.seek(position + record.file_size)
            if file.read(4) == ZIP_DESCRIPTOR and file.read(4) != struct.pack("<I", record.CRC):
                raise SnapshotError(f"{path} is damaged: its two checksums of {record.filename} differ")
            if not is_tensor_record(record.filename):
                content = archive.read(record)  # checks its CRC-32
                if record.filename.lower().endswith("/data.pkl"):
                    _check_pickle(path, io.BytesIO(content))
            elif record.file_size and tensors.setdefault(position, record) is not record:
                raise SnapshotError(f"{path} is damaged: {record.filename} lies within another record")
    return tensors


def _check_pickle(path: Path, file: BinaryIO) -> None:
    """Raise SnapshotError if a pickle names a function or class that no snapshot needs. Nothing is executed."""
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "PROTO" and argument > PICKLE_PROTOCOL:
            raise SnapshotError(f"{path} cannot be read: its pickle has protocol {argument}; {SAVE_WEIGHTS_ALONE}")
        if opcode.name == "GLOBAL":
            name = argument.replace(" ", ".").replace("__builtin__.", "builtins.")
            if name not in STAND_INS and not is_allowed(name):
                name = textwrap.shorten(name, 100)
                if re.match(r"torch\.(q|bits|(float|u?int)[1-7]|_utils\._rebuild)", name):
                    raise SnapshotError(f"{path} cannot be read: its tensors are quantized or not dense ({name})")
                raise SnapshotError(f"{path} is refused: to read its {name} would run code; {SAVE_WEIGHTS_ALONE}")


def _load(path: Path, file: str | BinaryIO, **options) -> Any:
    stand_ins = [(stand_in, name) for name, stand_in in STAND_INS.items()]
    with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
        warnings.simplefilter("ignore")  # PyTorch's doubts about the file: our errors say what matters
        return _plain(path, torch.load(file, map_location="cpu", weights_only=True, **options))


def _plain(path: Path, content: Any) -> Any:
    """Copy dicts, lists and tuples of dense tensors, numbers, strings and None. Harmless objects become text.

    Attributes of objects, cycles, and values that unfold to more than a memory holds do not get past this.
    Raise SnapshotError if the content holds anything else.
    """
    count = 0

    def refuse(what: str) -> SnapshotError:
        return SnapshotError(f"{path} is no snapshot: it holds {what}")

    def plain(value: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if depth > MAX_DEPTH or count > MAX_VALUES:
            raise refuse("more nested or more numerous values than a snapshot does")
        if isinstance(value, int) and value.bit_length() > 64:
            raise refuse("a number of more than 64 bits")
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, dict):  # dict.items: attributes of an OrderedDict can hide its own
            return {plain(key, MAX_DEPTH): plain(item, depth + 1) for key, item in dict.items(value)}
        if isinstance(value, (list, tuple, set)):  # a tuple may be a torch.Size
            kind = tuple if isinstance(value, tuple) else list
            return kind(plain(item, depth + 1) for item in value)
        if isinstance(value, STAND_INS["argparse.Namespace"]):
            return plain(value.state, depth + 1)
        kind = value if isinstance(value, type) else type(value)
        if issubclass(kind, _StandIn):
            return kind.__name__
        if isinstance(value, (bytes, complex, torch.device, torch.dtype)):
            return textwrap.shorten(str(value), 100)
        if not isinstance(value, Tensor):
            raise refuse(f"a {type(value).__name__}")
        value = Tensor.detach(value)  # attributes that the file gives a parameter may hide its methods
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.device.type != "cpu":
            raise refuse("a tensor that is complex or not dense")
        if value.numel() > max(MAX_EXPANDED_NUMEL, value.untyped_storage().nbytes()):
            raise refuse("a tensor of more numbers than there are in the file")
        return value

    return plain(content, 0)
