"""Files by `torch.save`, read without trusting them: nothing in them is executed, and checksums are compared.

Such a file is a zip archive with a CRC-32 of every record, which `torch.load` does not check. Here each tensor
that is used is checked. Files are loaded with `weights_only=True`, and what they hold is plain: tensors, numbers,
strings, None, and dicts, lists and tuples of them. A file that needs more is refused.
"""

import io
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from core.errors import UsageError
from core.text import first_line, printable

ZIP_MAGIC = b"PK\x03\x04"
OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of torch.save before PyTorch 1.6: a pickled long integer

#: What the pickle of a snapshot may name. PyTorch allows more: functions that run no code of the file's, but with
#: which it can fill the memory (bytearray) or hide what the tensors are.
is_allowed = re.compile(
    r"collections (OrderedDict|Counter)|torch \w+Storage|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
).fullmatch
OLD_PICKLES = 5  #: in an old non-zip file: magic number, protocol, kind of machine, content, names of the storages
#: Numbers in a tensor that repeats fewer ones: those take no room in a file, and much in memory.
LARGEST_REPEATED = 2**30
DEEPEST, MOST = 16, 200_000  #: levels and values in a snapshot: far more than in any that was trained


class SnapshotError(UsageError):
    """A file that is no snapshot, is damaged, or belongs to another network; the message names it in one line."""

    def __init__(self, message: str):
        super().__init__(printable(" ".join(message.splitlines())))  # whatever names there are in the file


def read(path: Path) -> tuple[Any, Callable[[Tensor, str], None] | None]:
    """What a file by `torch.save` holds, zip archive or old non-zip file, on the CPU.

    A zip archive is memory-mapped: tensors are views of it, of which only what is used is read from the disk.

    Returns:
        the content, and a function of one of its tensors and the tensor's name that compares it with the checksum
        in the file, and raises SnapshotError where they differ; None for an old file, which has no checksums.

    Raises:
        SnapshotError: the file does not exist, cannot be read, is damaged, or would have to run code.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # a pipe or a device might be read for ever
            raise SnapshotError(f"{path} is not a file")
        with open(path, "rb") as file:
            return _read(path, file)
    except OSError as error:
        raise SnapshotError(f"{path}: {error.strerror or error}") from None


def _read(path: Path, file: BinaryIO) -> tuple[Any, Callable[[Tensor, str], None] | None]:
    first_bytes = file.read(len(OLD_MAGIC))
    file.seek(0)
    if first_bytes.startswith(ZIP_MAGIC):
        archive = _Archive(path, file)
        return _plain(path, archive.content), archive.check
    if first_bytes != OLD_MAGIC:
        raise SnapshotError(f"{path} is no snapshot: torch.save did not write it, or its beginning is damaged")
    for _ in range(OLD_PICKLES):
        _check_pickle(path, file)
    return _plain(path, _torch_load(path, file, map_location="cpu")), None


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested dicts, lists and tuples, each with the keys that lead to it."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors_in(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from tensors_in(item, f"{name}.{index}")


def _plain(path: Path, content: Any) -> Any:
    """What a pickle gave, built anew of dicts, lists, tuples, dense tensors, numbers, strings and None alone.

    What it made of them besides (attributes, cycles, values that unfold to more than a memory holds) does not get
    past this.

    Raises:
        SnapshotError: it holds something else.
    """
    values = 0

    def no_snapshot(what: str) -> SnapshotError:
        return SnapshotError(f"{path} is no snapshot: it holds {what}")

    def plain(value: Any, depth: int) -> Any:
        nonlocal values
        values += 1
        if depth > DEEPEST or values > MOST:
            raise no_snapshot("more in one another than a snapshot does")
        if value is None or isinstance(value, (bool, float, str)):
            return value
        if isinstance(value, int):
            if value.bit_length() > 64:
                raise no_snapshot("a number of more than 64 bits")
            return value
        if isinstance(value, dict):  # its own methods: those of an OrderedDict can be covered by attributes
            return {plain(key, DEEPEST): plain(item, depth + 1) for key, item in dict.items(value)}
        if isinstance(value, (list, tuple)):
            return type(value)(plain(item, depth + 1) for item in value)
        if not isinstance(value, Tensor):
            raise no_snapshot(f"a {type(value).__name__}")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise no_snapshot("a tensor that is not dense")
        if value.numel() > max(LARGEST_REPEATED, value.untyped_storage().nbytes()):
            raise no_snapshot("a tensor of more numbers than there are in the file")
        return value.detach()

    return plain(content, 0)


def _check_pickle(path: Path, file: BinaryIO) -> None:
    """Read a pickle, without doing what it says, and raise SnapshotError where it names what no snapshot needs."""
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "GLOBAL" and not is_allowed(argument):
                name = argument.replace(" ", ".")
                raise SnapshotError(
                    f"{path} is refused: loading it would run code that no snapshot needs ({name})"
                )
    except SnapshotError:
        raise
    except Exception as error:  # garbage can make it raise anything
        raise SnapshotError(f"{path} is no snapshot, or it is damaged: {error}") from None


def _torch_load(path: Path, file: BinaryIO, **options) -> Any:
    """torch.load without code execution; whatever a broken file makes it raise becomes a SnapshotError.

    PyTorch opens a file by its name, and more than once. By that of the descriptor it is this one each time, even
    where a run that goes on puts another one in its place.
    """
    name = f"/proc/self/fd/{file.fileno()}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what PyTorch thinks of the file: what matters is said here
            return torch.load(name, weights_only=True, **options)
    except pickle.UnpicklingError as error:
        # torch's message is several paragraphs of advice, with the name of what it would not call in between.
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if forbidden:
            raise SnapshotError(f"{path} is refused: loading it would run code ({forbidden[1]})") from None
        raise SnapshotError(
            f"{path} is no snapshot, or it is damaged: it holds more than tensors and numbers"
        ) from None
    except (OSError, MemoryError):
        raise
    except Exception as error:  # garbage can make the unpickler raise anything
        reason = first_line(error).replace(name, str(path))[:200]
        raise SnapshotError(f"{path} is no snapshot, or it is damaged: {reason}") from None


class _Archive:
    """A zip archive by torch.save, memory-mapped: its content, and the checksum of each tensor's record."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path = path
        try:
            with zipfile.ZipFile(file) as archive:
                records = archive.infolist()
                names = [record.filename.lower() for record in records]  # PyTorch finds them in either case
                if len({name.split("/")[0] for name in names}) != 1 or len(set(names)) != len(names):
                    raise SnapshotError(f"{path} is no snapshot: its records are not those of one torch.save")
                # PyTorch and zipfile would read different records.
                if min(record.header_offset for record in records):
                    raise SnapshotError(f"{path} is damaged: there is something before its first record")
                is_tensor = re.compile(r"[^/]+/data/\d+").fullmatch
                self.records, end = {}, 0
                for record in sorted(records, key=lambda record: record.header_offset):
                    offset = self._offset(archive, record)
                    if record.header_offset < end:  # bytes of one would pass for another's
                        raise SnapshotError(f"{path} is damaged: {record.filename} begins within another record")
                    end = offset + record.compress_size
                    if is_tensor(record.filename) and record.file_size:
                        self.records[offset] = record
                for record in records:
                    if record.compress_type != zipfile.ZIP_STORED:
                        raise SnapshotError(f"{path} is no snapshot: {record.filename} is compressed")
                    if not is_tensor(record.filename):
                        content = archive.read(record)  # checks its CRC-32: the pickle, byte order, format numbers
                        if record.filename.lower().endswith("/data.pkl"):
                            _check_pickle(path, io.BytesIO(content))
        except SnapshotError:
            raise
        except (zipfile.BadZipFile, struct.error, EOFError, ValueError, RuntimeError) as error:
            raise SnapshotError(f"{path} is damaged or truncated: {error}") from None

        # torch.load hands every tensor's memory to map_location, and keeps it where it is.
        storages = []

        def note_storage(storage, location):
            storages.append(storage)
            return storage

        self.content = _torch_load(path, file, map_location=note_storage, mmap=True)
        starts = [storage.data_ptr() for storage in storages if storage.nbytes()]
        # Where the file begins in memory: its first tensor's record is the first that was mapped.
        self.start = min(starts) - min(self.records) if starts and self.records else 0

    @staticmethod
    def _offset(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> int:
        """Where in the file a record's bytes begin; checks that what is said of it there is in order."""
        archive.open(record).close()
        archive.fp.seek(record.header_offset)
        crc, *name_and_extra = struct.unpack("<14xI8xHH", archive.fp.read(30))
        offset = record.header_offset + 30 + sum(name_and_extra)
        if record.flag_bits & 8:  # the checksum follows the bytes
            archive.fp.seek(offset + record.compress_size)
            mark, crc = struct.unpack("<4sI", archive.fp.read(8))
            if mark != b"PK\x07\x08":
                raise zipfile.BadZipFile(f"no checksum follows {record.filename}")
        if crc != record.CRC:  # the end of the file, where all checksums are listed, is of another file
            raise zipfile.BadZipFile(f"{record.filename} has two different checksums")
        return offset

    def check(self, tensor: Tensor, name: str) -> None:
        """Compare the memory behind a tensor with the checksum of its record."""
        storage = tensor.untyped_storage()
        if not storage.nbytes():
            return
        record = self.records.get(storage.data_ptr() - self.start)
        if record is None or record.file_size != storage.nbytes():
            raise SnapshotError(f"{self.path} is damaged: {name} lies outside of its record")
        content = torch.empty(0, dtype=torch.uint8).set_(storage)
        if zlib.crc32(content.numpy()) != record.CRC:
            raise SnapshotError(f"{self.path} is damaged: {name} does not match its checksum")
