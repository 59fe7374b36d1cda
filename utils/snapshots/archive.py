"""Read files of weights without trusting them.

Nothing in a file is executed, and every tensor that is used is compared with its checksum.

`torch.save` writes a zip archive with a pickle, which `utils.snapshots.pickles` reads without running it, and a
record for each tensor, with a CRC-32. Old non-zip files and safetensors have no checksums. Files are mapped into
memory: only the tensors that are used are read from disk. What a file holds becomes plain: tensors, numbers,
texts, None, and dicts, lists and tuples of these.
"""

import contextlib
import hashlib
import io
import math
import mmap
import re
import struct
import textwrap
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
from utils.snapshots import pickles
from utils.snapshots.pickles import Call

ZIP_MAGIC = b"PK\x03\x04"
OLD_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of torch.save before PyTorch 1.6: a long integer in a pickle
is_tensor_record = re.compile(r"[^/]+/data/(\d+)").fullmatch
is_number = re.compile(r"[?biuf][1248]?").fullmatch  #: the type of a NumPy number

#: The types of the storages of tensors that `torch.save` names.
STORAGES = {
    **{"Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16},
    **{"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8},
    **{"Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128},
    "Untyped": torch.uint8,
}
#: Largest number of elements of a tensor that repeats fewer stored ones: it is small on disk and large in memory.
MAX_EXPANDED_NUMEL = 2**30
MAX_DEPTH, MAX_VALUES = 16, 200_000  #: nesting and number of values in a snapshot: far more than any has
MAX_HEADER = 2**25  #: bytes of a pickle, or of the header of a safetensors file
SAVE_WEIGHTS_ALONE = 'save the weights alone: torch.save(net.state_dict(), "weights.pt")'


class SnapshotError(UsageError):
    """A file is no snapshot, is damaged, or belongs to another network. The message, one line, names the file."""

    def __init__(self, message: str):
        super().__init__(printable(" ".join(message.splitlines())))  # names in a file may hold control characters


def read(path: Path) -> tuple[Any, Callable[[Tensor, str], None] | None]:
    """Read a file written by `torch.save`, zip archive or old non-zip file, or by safetensors, to the CPU.

    Its tensors are views of the file in memory, and only those that are used are read from disk.

    Returns:
        the content; and a function `check(tensor, name)` that compares a tensor of the content with its checksum
        and raises SnapshotError if they differ. None: the file has no checksums.

    Raises:
        SnapshotError: the file is missing, cannot be read, is damaged, or needs to run code.
    """
    with _open(path) as file:
        readers = {"zip": _read_archive, "old": _read_old, "safetensors": _read_safetensors}
        return readers[_format(path, file)](path, file)


def checksum(path: Path) -> str | None:
    """Return a checksum of the tensors in a zip archive by `torch.save`: 16 hexadecimal digits.

    It is computed from the CRC-32 and size of each tensor in the directory of the zip archive; no tensor is read.
    The same tensors, saved in the same order, have the same checksum. Old non-zip files and safetensors have none:
    None.

    Raises:
        SnapshotError: the file is missing, is no file of weights, or its directory is damaged.
    """
    with _open(path) as file:
        if _format(path, file) != "zip":
            return None
        tensors = {}
        with zipfile.ZipFile(file) as archive:
            for record in archive.infolist():
                if match := is_tensor_record(record.filename):
                    tensors[int(match[1])] = (record.CRC, record.file_size)
        return hashlib.sha256(repr(sorted(tensors.items())).encode()).hexdigest()[:16]


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in nested dicts, lists and tuples, each with the keys that lead to it: "a.b.0"."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors_in(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from tensors_in(item, f"{name}.{index}")


@contextlib.contextmanager
def _open(path: Path):
    """Open a file to read. Errors in the block become a SnapshotError that names the file."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe or a device might not end
            raise SnapshotError(f"{path} is not a file")
        with open(path, "rb") as file:
            yield file
    except (SnapshotError, MemoryError):
        raise
    except OSError as error:
        raise SnapshotError(f"{path}: {error.strerror or error}") from None
    except pickles.RefusedError as error:
        kind = textwrap.shorten(str(error), 100)
        raise SnapshotError(
            f"{path} is refused: to read its {kind} would run code; {SAVE_WEIGHTS_ALONE}"
        ) from None
    except Exception as error:  # garbage can make zipfile, pickletools, PyTorch and safetensors raise anything
        what = "is damaged" if isinstance(error, zipfile.BadZipFile) else "is no snapshot, or it is damaged"
        raise SnapshotError(f"{path} {what}: {first_line(error)[:200]}") from None


def _format(path: Path, file: BinaryIO) -> str:
    """Return the format of an open file: "zip" and "old" of `torch.save`, or "safetensors"."""
    first = file.read(32)
    file.seek(0)
    if first.startswith(b"\x80") and OLD_MAGIC in first:
        return "old"
    if first.startswith(ZIP_MAGIC):
        return "zip"
    if first[8:9] == b"{":
        return "safetensors"
    raise SnapshotError(
        f"{path} is no snapshot: neither torch.save nor safetensors wrote it, or its beginning is damaged"
    )


def _read_archive(path: Path, file: BinaryIO) -> tuple[Any, Callable[[Tensor, str], None]]:
    pickled, records = _check_records(path, file)
    memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    content, _ = pickles.read(io.BytesIO(pickled))
    read: dict[str, Tensor] = {}
    crcs: dict[int, int] = {}  # by the address of the tensor in memory

    def storage(key: str, size: int) -> Tensor:
        position, record = records[key]
        if record.file_size != size:
            raise SnapshotError(f"{path} is damaged: {record.filename} is not of the size of its tensor")
        if key not in read:
            read[key] = _bytes_of(memory, position, size)
            crcs[read[key].data_ptr()] = record.CRC
        return read[key]

    def check(tensor: Tensor, name: str) -> None:
        stored = tensor.untyped_storage()
        if stored.nbytes() and crcs[stored.data_ptr()] != zlib.crc32(
            torch.empty(0, dtype=torch.uint8).set_(stored).numpy()
        ):
            raise SnapshotError(f"{path} is damaged: {name} does not match its checksum")

    return _plain(path, content, storage), check


def _read_old(path: Path, file: BinaryIO) -> tuple[Any, None]:
    _, _, (system, _), (content, storages), (keys, _) = (pickles.read(file) for _ in range(5))
    if not dict(system.items).get("little_endian"):
        raise SnapshotError(f"{path} cannot be read: it was written by a big-endian machine")
    memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    found = {key: (size, dtype) for key, size, dtype in (_parse_storage(path, one) for one in storages)}
    read, position = {}, file.tell()
    for key in keys:  # before each storage stands its number of elements
        size, dtype = found[key]
        start, position = position + 8, position + 8 + size
        if memory[start - 8 : start] != struct.pack("<q", size // dtype.itemsize) or position > len(memory):
            raise SnapshotError(f"{path} is damaged: a tensor is not of the size that it should have")
        read[key] = _bytes_of(memory, start, size)
    return _plain(path, content, lambda key, size: read[key][:size]), None


def _read_safetensors(path: Path, file: BinaryIO) -> tuple[Any, None]:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > MAX_HEADER:
        raise SnapshotError(f"{path} is no snapshot: its header has {length:,} bytes")
    from safetensors import safe_open  # not above: most files need it not

    with safe_open(path, "pt") as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}, None  # noqa: SIM118


def _bytes_of(memory: mmap.mmap, position: int, size: int) -> Tensor:
    """Return bytes of a file that is mapped into memory, as a tensor; a copy if they are not aligned."""
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    found = torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=position)
    return found.clone() if position % 16 else found


def _check_records(path: Path, file: BinaryIO) -> tuple[bytes, dict[str, tuple[int, zipfile.ZipInfo]]]:
    """Check the structure of a zip archive, and the checksums of all records that are not tensors.

    Returns:
        the pickle; and of each tensor by its key the position of its first byte in the file, and its record.
    """
    tensors, others, positions = {}, {}, {}
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        names = {record.filename.lower() for record in records}
        if any(name.endswith("/constants.pkl") for name in names):
            raise SnapshotError(f"{path} is TorchScript, a program; {SAVE_WEIGHTS_ALONE}")
        if len({name.split("/")[0] for name in names}) != 1 or len(names) != len(records):
            raise SnapshotError(f"{path} is no snapshot: its records are not those of one torch.save")
        if min(record.header_offset for record in records):  # other programs would read other records
            raise SnapshotError(f"{path} is damaged: there is something before its first record")
        for record in records:
            if record.compress_type != zipfile.ZIP_STORED:
                raise SnapshotError(f"{path} is no snapshot: {record.filename} is compressed")
            archive.open(record).close()  # checks that the name beside the record is the one in the directory
            position = _find_content(file, record)
            if match := is_tensor_record(record.filename):
                tensors[match[1]] = (position, record)
                if record.file_size and positions.setdefault(position, record) is not record:
                    raise SnapshotError(f"{path} is damaged: {record.filename} lies within another record")
            elif record.file_size > MAX_HEADER:
                raise SnapshotError(f"{path} is no snapshot: {record.filename} has {record.file_size:,} bytes")
            else:
                others[record.filename.partition("/")[2]] = archive.read(record)  # checks its CRC-32
    if not {"data.pkl", "version"} <= others.keys():
        raise SnapshotError(f"{path} is no snapshot: its records are not those of one torch.save")
    if others.get("byteorder", b"little") != b"little":
        raise SnapshotError(f"{path} cannot be read: it was written by a big-endian machine")
    return others["data.pkl"], tensors


def _find_content(file: BinaryIO, record: zipfile.ZipInfo) -> int:
    """Return the position of a record's first byte in the file.

    Raises:
        BadZipFile: the checksum beside the record is not the one in the directory at the end of the file. The
            two are of different files, as after a copy that was interrupted.
    """
    file.seek(record.header_offset)
    crc, name_length, extra_length = struct.unpack("<14xI8xHH", file.read(30))
    position = record.header_offset + 30 + name_length + extra_length
    if record.flag_bits & 8:  # the checksum follows the content
        file.seek(position + record.compress_size)
        (crc,) = struct.unpack("<4xI", file.read(8))
    if crc != record.CRC:
        raise zipfile.BadZipFile(f"{record.filename} has two different checksums")
    return position


def _parse_storage(path: Path, storage: Call) -> tuple[str, int, torch.dtype]:
    """Return how a file names the storage of a tensor, its size in bytes, and the type of its numbers."""
    _, kind, key, _, numel, *view = storage.arguments
    dtype = STORAGES.get(kind.rpartition(".")[2].removesuffix("Storage"))
    if dtype is None or any(one is not None for one in view):
        raise SnapshotError(f"{path} is no snapshot: it holds a {kind} that is no whole storage of numbers")
    return key, numel * dtype.itemsize, dtype


def _plain(path: Path, content: Any, storage: Callable[[str, int], Tensor]) -> Any:
    """Make plain values of what `pickles.read` returns: dense tensors, numbers, texts, None, dicts, lists, tuples.

    Dates, paths and other harmless objects become their kind, a text. Attributes of objects, cycles, and values
    that unfold to more than a memory holds do not get past this.

    Args:
        storage: returns the bytes of a tensor, by the key and the size of its storage.

    Raises:
        SnapshotError: the content holds anything else.
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
        if isinstance(value, (pickles.Kind, bytes, bytearray)):
            return str(value) if isinstance(value, pickles.Kind) else "bytes"
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (list, tuple)):
            return type(value)(plain(item, depth + 1) for item in value)
        if value.kind in pickles.DICTS:
            earlier = value.arguments[-1:] if value.kind != "collections.defaultdict" else ()
            pairs = [pair for given in earlier for pair in (given.items if isinstance(given, Call) else given)]
            return {plain(key, MAX_DEPTH): plain(item, depth + 1) for key, item in (*pairs, *value.items)}
        if value.kind in pickles.LISTS:
            return plain(list(*value.arguments), depth)
        if value.kind in pickles.TENSORS:
            return tensor(value)
        if value.kind == pickles.NAMESPACE:
            return plain(value.state, depth + 1)
        if value.kind in ("builtins.bytearray", "builtins.bytes") and not all(map(is_text, value.arguments)):
            raise refuse(f"a {value.kind}{value.arguments}")  # of so many bytes, perhaps more than a memory holds
        return number(value) if value.kind == pickles.NUMBER else value.kind

    def is_text(value: Any) -> bool:
        return isinstance(value, (bytes, str, Call))

    def tensor(call: Any) -> Tensor:
        kind, arguments = call.kind, call.arguments
        if kind == pickles.FROM_TYPE:
            return tensor(Call(arguments[0], arguments[2]))
        if kind in pickles.PARAMETERS:
            return tensor(arguments[0])
        if kind not in pickles.TENSORS:
            raise refuse(f"a tensor made by {kind}")
        stored, offset, size, stride = arguments[:4]
        (key, size_in_file, dtype), metadata = _parse_storage(path, stored), arguments[6:]
        if kind.endswith("_v3"):
            dtype, metadata = pickles.DTYPES[arguments[6]], arguments[7:]
        if any(one is not None and one.items for one in metadata):
            raise refuse("a tensor that is not dense")
        elements = storage(key, size_in_file).view(dtype)
        if math.prod(max(1, length) for length in size) > max(MAX_EXPANDED_NUMEL, elements.numel()):
            raise refuse("a tensor of more numbers than there are in the file")
        return elements.as_strided(size, stride, offset)

    def number(call: Call) -> int | float | bool | str:
        dtype, content = call.arguments
        if isinstance(content, Call):  # Python 2 had no bytes: they are text that is to be encoded
            content = content.arguments[0][:16].encode("latin1")
        if not is_number(dtype.arguments[0]):
            return pickles.NUMBER
        order = ">" if dtype.state[1] == ">" else "<"
        return np.frombuffer(content, order + dtype.arguments[0])[0].item()

    return plain(content, 0)
