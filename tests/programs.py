"""How the tests run the programs, from the shell or by their main function, and read what they leave behind."""

import csv
import json
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from data.idx import read_mini

ROOT = Path(__file__).parent.parent
REFERENCE = Path(__file__).parent / "reference"  #: values measured with the authors' code


def command(program: str, *options: object) -> list[str]:
    """The command line of a program."""
    return [sys.executable, str(ROOT / program), *map(str, options)]


def shell(program: str, *options: object, **kwargs) -> subprocess.CompletedProcess:
    """Run a program as a process of its own."""
    return subprocess.run(command(program, *options), capture_output=True, text=True, timeout=300, **kwargs)


def files_below(folder: Path) -> set[str]:
    """The paths of all files below a folder, relative to it."""
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def snapshots_below(folder: Path) -> set[str]:
    """The paths of all snapshots below a folder, relative to it."""
    return {path for path in files_below(folder) if path.endswith((".pt", ".tar"))}


def state_of_files(folder: Path) -> dict[str, tuple[int, ...]]:
    """What tells a file that was written, replaced or touched from one that was not, by path."""
    stats = {name: (Path(folder) / name).stat() for name in files_below(folder)}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def run_main(program: ModuleType, *options: object) -> int:
    """Run a program in this process; returns its exit status."""
    try:
        return program.main([str(option) for option in options])
    except SystemExit as exit:
        return exit.code


def refused(program: ModuleType, capsys, *options: object) -> str:
    """Check that a program refuses its options in one line, status 2, and writes nothing; returns the line."""
    before = state_of_files(Path())
    status = run_main(program, *options)
    output = capsys.readouterr()
    assert status == 2, output
    assert output.out == ""
    assert state_of_files(Path()) == before
    (line,) = output.err.splitlines()
    assert line.startswith(f"{program.__name__}.py: error: ")
    return line


def write_datasets(folder: Path, images: int = 300) -> None:
    """The first images that ship with the repository, as MNIST and as Fashion-MNIST; as CIFAR-10, made-up ones.

    The brightness of a made-up image says its class, so that networks soon learn it.
    """
    for dataset in ("MNIST", "FashionMNIST"):
        raw = folder / dataset / "raw"
        raw.mkdir(parents=True)
        for part in ("train", "t10k"):
            source, _ = read_mini(ROOT, part == "train")
            arrays = {"images-idx3-ubyte": source.images.squeeze(1).numpy(), "labels-idx1-ubyte": source.labels}
            for kind, array in arrays.items():
                values = array[:images].astype(np.uint8)
                head = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
                (raw / f"{part}-{kind}").write_bytes(head + values.tobytes())
    batches = folder / "cifar-10-batches-bin"
    batches.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        records = random.integers(25, size=(max(40, images // 15), 3073), dtype=np.uint8)
        records[:, 0] %= 10
        records[:, 1:] += 25 * records[:, :1]
        (batches / name).write_bytes(records.tobytes())


def weights(path) -> dict[str, torch.Tensor]:
    """The weights in a snapshot, read by PyTorch alone."""
    content = torch.load(path, weights_only=True)
    return content.get("model_state_dict", content)


def same(one, other) -> bool:
    """Whether two values are the same: tensors bit by bit, everything else in kind and value."""
    if isinstance(one, torch.Tensor):
        return (
            isinstance(other, torch.Tensor)
            and (one.dtype, one.shape) == (other.dtype, other.shape)
            and one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()
        )
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and repr(one) == repr(other)


def table(path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def results(path) -> dict:
    """Results as strict JSON: NaN and infinities, which Python would read, are no numbers."""
    return json.loads(Path(path).read_text(), parse_constant=lambda name: pytest.fail(f"{name} in {path}"))
