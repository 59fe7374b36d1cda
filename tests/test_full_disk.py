"""Disks that are full or read-only, folders that vanish or may not be written into, and too little memory."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# What the programs import on their way, while there is still permission to.
import matplotlib.figure  # noqa: F401
import pytest
import scipy.special  # noqa: F401
import torch
import torch._dynamo
from programs import REFERENCE, ROOT, command, files_below, run_main

import compute_projections
import reinit_layers
import train
from data.memory import MemoryLoader
from utils import snapshots

LENET = ("--arch", "lenet", "--dataset", "fashion_mnist_mini")
TRAIN = (*LENET, "--subsample-classes", 2, "--seed", 1, "--epochs", 4, "--snapshot-every", 1)
PROJECT = (*LENET, "--load-from", REFERENCE / "lenet_2.tar", "--plots", "plots")
REINIT = (*LENET, "--load-from", REFERENCE / "lenet_2.tar", "--rand", "--batch-size", 1000)
FOLDER = Path("fashion_mnist_mini_2/lenet/1")
NOBODY = 65534

#: What every program writes: itself, its options, and the option of a folder, or ./log
WRITTEN = [
    (train, TRAIN, "--models-path"),
    (train, TRAIN, "--tb-logdir"),
    (train, TRAIN, "log"),
    (compute_projections, PROJECT, "--results"),
    (compute_projections, PROJECT, "--plots"),
    (compute_projections, PROJECT, "log"),
    (reinit_layers, REINIT, "--results"),
    (reinit_layers, REINIT, "--plots"),
    (reinit_layers, REINIT, "log"),
]
each_folder = pytest.mark.parametrize(
    ("program", "options", "what"), WRITTEN, ids=[f"{program.__name__} {what}" for program, _, what in WRITTEN]
)


@pytest.fixture
def disk():
    """A disk of its own at `disk/`, with room for a few snapshots."""
    disk = Path("disk").absolute()
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mounting, capture_output=True).returncode != 0:
        pytest.skip("no file system may be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path) -> None:
    with open(disk / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def placed(options, what: str, folder: Path) -> list:
    """The options with one of the folders that are written elsewhere."""
    if what == "log":
        Path("log").symlink_to(folder, target_is_directory=True)
        return list(options)
    return [*options, what, folder]


def failed(capsys, program, options, path) -> str:
    """Check that a program fails in one line that names a path, leaving no half file; returns its output."""
    capsys.readouterr()
    status = run_main(program, *options)
    output = capsys.readouterr()
    assert status == 1, output
    (line,) = [line for line in output.err.splitlines() if not line.startswith("warning: ")]
    assert line.startswith(f"{program.__name__}.py: failed: {path}"), line
    check_what_is_left()
    return output.out


def check_what_is_left() -> None:
    """Every file is whole, and there is none that was on its way."""
    for name in files_below(Path()):
        path = Path(name)
        assert not path.name.startswith("."), name
        assert path.suffix not in (".pdf", ".png") or path.stat().st_size > 5000, name
        if path.suffix in (".pt", ".tar"):
            snapshots.load(path)
        if path.suffix == ".json":
            json.loads(path.read_text())


def under_way(monkeypatch, program, function: str, call: int, do) -> None:
    """Let something happen in a call of a function of a program, counted from 1."""
    original, calls = getattr(program, function), []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            do()
        return original(*args, **kwargs)

    monkeypatch.setattr(program, function, wrapped)


# From the beginning


@each_folder
def test_disk_that_is_full_is_one_line(program, options, what, disk, capsys, count):
    fill(disk)
    options = placed(options, what, disk)
    if what == "log":  # the console has every line
        assert run_main(program, *options) == 0
        assert all(line.startswith("warning: ") for line in capsys.readouterr().err.splitlines())
        check_what_is_left()
    else:
        told = failed(capsys, program, options, disk)
        assert "epoch 0" not in told
    count("full or read-only disks survived")


@each_folder
def test_disk_that_is_read_only_is_one_line(program, options, what, disk, capsys, count):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    told = failed(capsys, program, placed(options, what, disk), "log" if what == "log" else disk)
    assert "epoch 0" not in told
    if program is reinit_layers:  # nothing is measured first that would be lost
        assert told == ""
    count("full or read-only disks survived")


@pytest.fixture
def forbidden(monkeypatch):
    """A folder that this process may not write into: as root, which always may, it is nobody for a while."""
    with tempfile.TemporaryDirectory() as place:  # where everybody may go, unlike pytest's own folders
        monkeypatch.chdir(place)
        Path("forbidden").mkdir(mode=0o555)
        if os.geteuid() != 0:
            yield Path("forbidden")
            return
        Path(place).chmod(0o777)
        os.seteuid(NOBODY)
        try:
            if not os.access(ROOT / "train.py", os.R_OK, effective_ids=True):
                pytest.skip("another user may not even read the programs")
            yield Path("forbidden")
        finally:
            os.seteuid(0)


@each_folder
def test_folder_without_permission_is_one_line(program, options, what, forbidden, capsys, count):
    told = failed(capsys, program, placed(options, what, forbidden), "log" if what == "log" else forbidden)
    assert "epoch 0" not in told
    count("full or read-only disks survived")


@each_folder
def test_file_in_place_of_a_folder_is_one_line(program, options, what, capsys, count):
    folder = Path("folder")
    folder.mkdir()
    (folder / ("fashion_mnist_mini_2" if program is train else "fashion_mnist_mini")).write_text("")
    failed(capsys, program, placed(options, what, folder), "log" if what == "log" else folder)
    count("full or read-only disks survived")


# Under way


@pytest.mark.parametrize("what", ["--models-path", "--tb-logdir"])
def test_disk_that_fills_up_ends_training_which_then_goes_on(what, disk, monkeypatch, capsys, count):
    options = placed(TRAIN, what, disk)
    with monkeypatch.context() as patch:
        under_way(patch, train, "train_epoch", 3, lambda: fill(disk))
        told = failed(capsys, train, options, disk / FOLDER)
    assert re.findall(r"^epoch (\d)", told, re.M) == ["0", "1", "2"]
    folder = (disk if what == "--models-path" else Path("models")) / FOLDER
    snapshots = {path.name for path in folder.iterdir()}
    # What was trained is saved where there is room; what TensorBoard has not got of it comes later.
    trained = {"lenet_2.tar"} if what == "--tb-logdir" else set()
    assert snapshots == {"lenet_init_0.pt", "lenet_0.tar", "lenet_1.tar"} | trained
    (disk / "filler").unlink()
    assert run_main(train, *options, "--resume-from", "latest") == 0
    output = capsys.readouterr().out
    assert re.findall(r"^epoch (\d) \(", output, re.M) == (["3"] if trained else ["2", "3"])
    assert ("epoch 2 was trained, and is measured now" in output) == bool(trained)
    count("full or read-only disks survived")


@pytest.mark.parametrize("what", ["--models-path", "--tb-logdir"])
def test_folder_that_vanishes_ends_training(what, monkeypatch, capsys, count):
    folder = Path("elsewhere")
    options = placed(TRAIN, what, folder)
    under_way(monkeypatch, train, "train_epoch", 3, lambda: shutil.rmtree(folder))
    told = failed(capsys, train, options, folder / FOLDER)
    assert re.findall(r"^epoch (\d)", told, re.M) == ["0", "1", "2"]
    assert not folder.exists()
    count("full or read-only disks survived")


@pytest.mark.parametrize("kind", ["full", "vanished"])
def test_log_that_cannot_go_on_does_not_stop_training(kind, disk, monkeypatch, capsys, count):
    folder = disk if kind == "full" else Path("logs")
    folder.mkdir(exist_ok=True)
    lose = {"full": lambda: fill(disk), "vanished": lambda: shutil.rmtree(folder)}[kind]
    under_way(monkeypatch, train, "train_epoch", 3, lose)
    assert run_main(train, *placed(TRAIN, "log", folder)) == 0
    output = capsys.readouterr()
    assert re.findall(r"^epoch (\d)", output.out, re.M) == ["0", "1", "2", "3"]
    assert output.err == ""
    check_what_is_left()
    count("full or read-only disks survived")


def test_disk_that_fills_up_leaves_the_results_so_far(disk, monkeypatch, capsys, count):
    assert run_main(train, *TRAIN) == 0
    under_way(monkeypatch, compute_projections, "measure", 4, lambda: fill(disk))
    options = (*LENET, "--subsample-classes", 2, "--seed", 1, "--load-from", Path("models") / FOLDER)
    options += ("--results", disk, "--plots", "plots")
    failed(capsys, compute_projections, options, disk / FOLDER / "lenet_2.json")
    assert {path.name for path in (disk / FOLDER).iterdir()} == {
        "lenet_init_0.json",
        "lenet_0.json",
        "lenet_1.json",
    }
    count("full or read-only disks survived")


@pytest.mark.parametrize("size", [100_000, 900_000])
def test_file_that_may_not_grow_is_one_line_and_leaves_complete_snapshots(size):
    """The limit on the size of a file stands for the end of the disk, within the weights or between files."""
    Path("models").mkdir()
    limited = f"ulimit -f {size // 1024}; exec {' '.join(command('train.py', *LENET, '--epochs', 1, '--seed', 1))}"
    finished = subprocess.run(
        ["bash", "-c", f"trap '' XFSZ; {limited}"], capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 1
    (line,) = finished.stderr.splitlines()
    assert re.match(r"train\.py: failed: models/fashion_mnist_mini/lenet/1/lenet_(init_0\.pt|0\.tar): ", line)
    for path in Path("models").rglob("*.*"):
        assert path.suffix in (".pt", ".tar")
        torch.load(path, weights_only=True)


# Memory

LIMITED = """
import re, resource, sys
import train
used = int(re.search(r"VmSize:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]),) * 2)
sys.exit(train.main(sys.argv[2:]))
"""


def test_dataset_that_does_not_fit_in_memory_is_one_line():
    raw = Path("MNIST/raw")
    raw.mkdir(parents=True)
    for part, images in (("train", 100_000), ("t10k", 10)):
        header = b"".join(number.to_bytes(4, "big") for number in (0x803, images, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + bytes(images * 784))
        header = b"".join(number.to_bytes(4, "big") for number in (0x801, images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + bytes(range(10)) * (images // 10))
    options = ("--arch", "lenet", "--dataset", "mnist", "--data-path", ".", "--noise", -1, "--seed", 1)
    finished = subprocess.run(
        [sys.executable, "-c", LIMITED, str(120_000_000), *map(str, options)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (finished.returncode, finished.stderr) == (
        1,
        "train.py: failed: out of memory: the dataset does not fit: keep fewer classes with --subsample-classes\n",
    )


def test_batch_that_does_not_fit_in_memory_is_one_line():
    # 12 GB of address space hold PyTorch and the dataset, but not a batch of upscaled images.
    limited = (
        f"ulimit -v 12000000; exec {' '.join(command('train.py', *LENET, '--upscale', '--batch-size', 4000))}"
    )
    finished = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 1
    assert finished.stderr == "train.py: failed: out of memory: give a smaller --batch-size\n"


move = torch.Tensor.to


def out_of_gpu_memory(*args, **kwargs):
    if args and isinstance(args[0], torch.Tensor) and args[0].is_meta:  # of a structure without weights
        return move(*args, **kwargs)
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it.")


@pytest.mark.parametrize(
    ("program", "options", "place", "advice"),
    [
        (
            train,
            TRAIN,
            "dataset",
            "the dataset does not fit: run without --cuda, or keep fewer classes with --sub",
        ),
        (train, TRAIN, "network", "the network does not fit: run without --cuda"),
        (train, TRAIN, "batch", "give a smaller --batch-size"),
        (reinit_layers, REINIT, "dataset", "the dataset does not fit: run without --cuda, or keep fewer classes"),
        (reinit_layers, REINIT, "network", "the network does not fit: run without --cuda"),
        (
            reinit_layers,
            REINIT,
            "batch",
            "a batch does not fit: run without --cuda, or give a smaller --batch-size",
        ),
        (compute_projections, PROJECT, "dataset", f"{REFERENCE}/lenet_2.tar does not fit: run without --cuda"),
    ],
    ids=lambda value: getattr(value, "__name__", value if isinstance(value, str) else ""),
)
def test_what_does_not_fit_on_the_gpu_is_named_with_what_to_do(
    program, options, place, advice, monkeypatch, capsys
):
    """The GPU's memory is simulated, where data, weights and batches go to it."""
    owner, name = {
        "dataset": (torch.Tensor, "to"),
        "network": (torch.nn.Module, "to"),
        "batch": (MemoryLoader, "__iter__"),
    }[place]
    monkeypatch.setattr(owner, name, out_of_gpu_memory)
    assert run_main(program, *options) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert line.startswith(f"{program.__name__}.py: failed: out of GPU memory: {advice}")
