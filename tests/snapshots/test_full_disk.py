"""Full and read-only disks, folders that vanish or cannot be written into, and too little memory."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# The programs import these late, when a test has taken the permission away.
import matplotlib.figure  # noqa: F401
import pytest
import scipy.special  # noqa: F401
import torch
import torch._dynamo
from programs import REFERENCE, ROOT, command, files_below, run_main, snapshots_below

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

#: Everything the programs write: the program, its options, and the option that names the folder, or "log"
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
    """A small disk with room for a few snapshots."""
    disk = Path("disk").absolute()
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mounting, capture_output=True).returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path) -> None:
    with open(disk / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def placed(options, what: str, folder: Path) -> list:
    """Return the options with one of the folders that a program writes moved elsewhere."""
    if what == "log":
        Path("log").symlink_to(folder, target_is_directory=True)
        return list(options)
    return [*options, what, folder]


def failed(capsys, program, options, named, status: int = 1) -> str:
    """Check that a program fails in one line that names something, and leaves no half file. Returns its output."""
    capsys.readouterr()
    assert run_main(program, *options) == status
    output = capsys.readouterr()
    (line,) = [line for line in output.err.splitlines() if not line.startswith("warning: ")]
    assert line.startswith(f"{program.__name__}.py: {'error' if status == 2 else 'failed'}: {named}"), line
    check_what_is_left()
    return output.out


def refused_before_any_work(capsys, program, options, what: str, folder: str) -> None:
    """Check that a program names the option and the folder, and neither measures nor writes anything."""
    before = files_below(Path())
    named = f"{'--log' if what == 'log' else what}: files cannot be written into {folder}"
    assert failed(capsys, program, options, named, status=2) == ""
    assert files_below(Path()) == before


def check_what_is_left() -> None:
    """Check that every file is whole, and that there are no temporary files."""
    for name in files_below(Path()):
        path = Path(name)
        assert not path.name.startswith("."), name
        assert path.suffix not in (".pdf", ".png") or path.stat().st_size > 5000, name
        if path.suffix in (".pt", ".tar"):
            snapshots.load(path)
        if path.suffix == ".json":
            json.loads(path.read_text())


def under_way(monkeypatch, program, function: str, call: int, do) -> None:
    """Call `do` before the n-th call, counted from 1, of a function of a program."""
    original, calls = getattr(program, function), []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            do()
        return original(*args, **kwargs)

    monkeypatch.setattr(program, function, wrapped)


# ---- from the beginning ----


@each_folder
@pytest.mark.parametrize("obstacle", ["full disk", "read-only disk", "file in place of a folder"])
def test_folder_that_cannot_be_written_ends_a_program_in_one_line(
    obstacle, program, options, what, disk, capsys, count
):
    if obstacle == "full disk":
        fill(disk)
    elif obstacle == "read-only disk":
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    else:
        (disk / ("fashion_mnist_mini_2" if program is train else "fashion_mnist_mini")).write_text("")
    options = placed(options, what, disk)
    if obstacle == "full disk" and what == "log":  # the console has every line
        assert run_main(program, *options) == 0
        assert all(line.startswith("warning: ") for line in capsys.readouterr().err.splitlines())
        check_what_is_left()
    else:
        refused_before_any_work(capsys, program, options, what, "log" if what == "log" else str(disk))
    count("full or read-only disks survived")


@pytest.fixture
def forbidden(monkeypatch):
    """A folder that this process may not write into. Root may write anywhere, and becomes nobody for a while."""
    with tempfile.TemporaryDirectory() as place:  # everybody may enter it, unlike pytest's own folders
        monkeypatch.chdir(place)
        Path("forbidden").mkdir(mode=0o555)
        Path(place).chmod(0o777)
        user = os.geteuid()
        os.seteuid(NOBODY if user == 0 else user)
        try:
            if not os.access(ROOT / "train.py", os.R_OK, effective_ids=True):
                pytest.skip("another user may not read the programs")
            yield Path("forbidden")
        finally:
            os.seteuid(user)


@each_folder
def test_folder_without_permission_ends_a_program_in_one_line(program, options, what, forbidden, capsys, count):
    options = placed(options, what, forbidden)
    refused_before_any_work(capsys, program, options, what, "log" if what == "log" else "forbidden")
    count("full or read-only disks survived")


# ---- under way ----


@pytest.mark.parametrize("what", ["--models-path", "--tb-logdir"])
def test_run_that_a_full_disk_ended_can_be_continued(what, disk, monkeypatch, capsys, count):
    options = placed(TRAIN, what, disk)
    with monkeypatch.context() as patch:
        under_way(patch, train, "train_epoch", 3, lambda: fill(disk))
        told = failed(capsys, train, options, disk / FOLDER)
    assert re.findall(r"^epoch (\d)", told, re.M) == ["0", "1", "2"]
    folder = (disk if what == "--models-path" else Path("models")) / FOLDER
    snapshots = snapshots_below(folder)
    # The epoch is saved if its snapshot finds room. TensorBoard gets its curves when the run is continued.
    trained = {"lenet_2.tar"} if what == "--tb-logdir" else set()
    assert snapshots == {"lenet_init_0.pt", "lenet_0.tar", "lenet_1.tar"} | trained
    (disk / "filler").unlink()
    assert run_main(train, *options, "--resume-from", "latest") == 0
    output = capsys.readouterr().out
    assert re.findall(r"^epoch (\d) \(", output, re.M) == (["3"] if trained else ["2", "3"])
    assert ("epoch 2 was trained, and is measured now" in output) == bool(trained)
    count("full or read-only disks survived")


@pytest.mark.parametrize("what", ["--models-path", "--tb-logdir"])
def test_folder_that_vanishes_ends_training_in_one_line(what, monkeypatch, capsys, count):
    folder = Path("elsewhere")
    options = placed(TRAIN, what, folder)
    under_way(monkeypatch, train, "train_epoch", 3, lambda: shutil.rmtree(folder))
    told = failed(capsys, train, options, folder / FOLDER)
    assert re.findall(r"^epoch (\d)", told, re.M) == ["0", "1", "2"]
    assert not folder.exists()
    count("full or read-only disks survived")


@pytest.mark.parametrize("kind", ["full", "vanished"])
def test_log_that_cannot_be_written_does_not_end_training(kind, disk, monkeypatch, capsys, count):
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


def test_results_so_far_stay_when_the_disk_is_full(disk, monkeypatch, capsys, count):
    assert run_main(train, *TRAIN) == 0
    under_way(monkeypatch, compute_projections.projections, "measure", 4, lambda: fill(disk))
    options = (*LENET, "--subsample-classes", 2, "--seed", 1, "--load-from", Path("models") / FOLDER)
    options += ("--results", disk, "--plots", "plots")
    failed(capsys, compute_projections, options, disk / FOLDER / "lenet_2.json")
    assert files_below(disk / FOLDER) == {
        "lenet_init_0.json",
        "lenet_0.json",
        "lenet_1.json",
    }  # the table is made by the next command
    count("full or read-only disks survived")


@pytest.mark.parametrize("size", [100_000, pytest.param(900_000, marks=pytest.mark.long)])
def test_limit_on_file_sizes_ends_training_in_one_line_and_leaves_whole_snapshots(size):
    """The limit is reached within the initial weights, or within the training state."""
    limited = f"ulimit -f {size // 1024}; exec {' '.join(command('train.py', *TRAIN))}"
    finished = subprocess.run(
        ["bash", "-c", f"trap '' XFSZ; {limited}"], capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 1
    (line,) = finished.stderr.splitlines()
    assert re.match(r"train\.py: failed: models/fashion_mnist_mini_2/lenet/1/lenet_(init_0\.pt|0\.tar): ", line)
    for path in Path("models").rglob("*.*"):
        if path.suffix in (".pt", ".tar"):
            torch.load(path, weights_only=True)


# ---- too little memory ----

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
    options = ("--arch", "lenet", "--dataset", "mnist", "--data-path", ".", "--noise", "-1", "--seed", "1")
    limited = [sys.executable, "-c", LIMITED, str(120_000_000), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(limited, env=environment, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 1
    (line,) = finished.stderr.splitlines()
    assert "out of memory: the dataset does not fit" in line
    assert "--subsample-classes" in line


@pytest.mark.long
def test_batch_that_does_not_fit_in_memory_is_one_line():
    # 12 GB of address space hold PyTorch and the dataset, but not a batch of upscaled images.
    options = (*LENET, "--upscale", "--batch-size", 4000)
    limited = f"ulimit -v 12000000; exec {' '.join(command('train.py', *options))}"
    finished = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 1
    (line,) = finished.stderr.splitlines()
    assert "out of memory: " in line
    assert "--batch-size" in line


move = torch.Tensor.to


def out_of_gpu_memory(*args, **kwargs):
    if args and isinstance(args[0], torch.Tensor) and args[0].is_meta:  # a network without values
        return move(*args, **kwargs)
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it.")


DATASET, NETWORK, BATCH = (torch.Tensor, "to"), (torch.nn.Module, "to"), (MemoryLoader, "__iter__")


@pytest.mark.parametrize(
    ("program", "options", "place", "what", "advice"),
    [
        (train, TRAIN, DATASET, "the dataset", "--subsample-classes"),
        (train, TRAIN, NETWORK, "the network", "--cuda"),
        (train, TRAIN, BATCH, "", "--batch-size"),
        (reinit_layers, REINIT, DATASET, "the dataset", "--subsample-classes"),
        (reinit_layers, REINIT, NETWORK, "the network", "--cuda"),
        (reinit_layers, REINIT, BATCH, "a batch", "--batch-size"),
        (compute_projections, PROJECT, DATASET, "lenet_2.tar", "--cuda"),
    ],
)
def test_message_names_what_does_not_fit_in_gpu_memory_and_what_to_do(
    program, options, place, what, advice, monkeypatch, capsys
):
    """The GPU is simulated: data, weights and batches that are moved to it do not fit."""
    monkeypatch.setattr(*place, out_of_gpu_memory)
    assert run_main(program, *options) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert line.startswith(f"{program.__name__}.py: failed: out of GPU memory: ")
    assert what in line
    assert advice in line
