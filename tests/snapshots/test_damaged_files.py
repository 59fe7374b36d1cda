"""Damaged snapshots are refused by name or read exactly: damage never changes a number, and there is no traceback.

The damage is random, from a seed that the message of a failing test names. PyTorch's old non-zip files have no
checksums: damage to their values cannot be noticed, but it must not crash a program either.
"""

import io
import json
import os
import pickle
import random
import shutil
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import mutate
from programs import REFERENCE, files_below, run_main, same
from torch import nn

import compute_projections
import reinit_layers
import train
from utils import snapshots
from utils.snapshots.weights import bare_weights

LENET = ("--arch", "lenet", "--dataset", "fashion_mnist_mini", "--subsample-classes", 2)
RUN = Path("models/fashion_mnist_mini_2/lenet/1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a short run, and with training states of a small network with batch norm."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("trained")
    os.chdir(folder)
    try:
        options = (*LENET, "--seed", 1, "--epochs", 2, "--snapshot-every", 1, "--batch-size", 500, "--lr", 0.02)
        assert run_main(train, *options) == 0
    finally:
        os.chdir(before)
    for epoch in (0, 1):
        net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3))
        optimizer = torch.optim.Adam(net.parameters())
        net(torch.randn(4, 1, 8, 8)).sum().backward()
        optimizer.step()
        state = {
            "format": snapshots.FORMAT,
            "epoch": epoch,
            "top1_acc": 61.25 + epoch,
            "model_state_dict": bare_weights(net),
            "optimizer_state_dict": optimizer.state_dict(),
            "config": {"arch": "small", "seed": 1, "lr": 0.1, "noise": 0.0, "shuffle": True, "lr_step": None},
            "class_names": ["Trouser", "Ankle boot"],
        }
        snapshots.save(state, folder / f"small_{epoch}.tar")
    return folder


SOURCES = {  # a snapshot, and another one of the same kind
    "training state": (RUN / "lenet_1.tar", RUN / "lenet_0.tar"),
    "final weights": (RUN / "lenet_2.pt", RUN / "lenet_init_0.pt"),
    "batch norm and Adam": (Path("small_1.tar"), Path("small_0.tar")),
    "of the authors": (REFERENCE / "lenet_2.tar", REFERENCE / "lenet_0.tar"),
}


def load(path: Path, where: str, wanted=None):
    """Return what `snapshots.load` returns, or its error message: one line that names the file."""
    try:
        return snapshots.load(path, wanted)
    except snapshots.SnapshotError as error:
        message = str(error)
        assert path.name in message, where
        assert len(message.splitlines()) == 1, where
        assert len(message) < 1000, where
        return message
    except Exception as error:
        raise AssertionError(where) from error


def test_file_of_two_halves_is_refused_whichever_of_its_weights_are_read(trained):
    path, other = (trained / path for path in SOURCES["final weights"])
    content, other = path.read_bytes(), other.read_bytes()
    torn = content[: len(content) // 2] + other[len(content) // 2 :]
    assert len(content) == len(other)
    Path("torn.pt").write_bytes(torn)
    for name in torch.load(path, weights_only=True):
        with pytest.raises(snapshots.SnapshotError, match=r"^torn\.pt is damaged: its two checksums .* differ$"):
            snapshots.load(Path("torn.pt"), {name}.__contains__)


@pytest.mark.parametrize("source", SOURCES)
def test_damaged_snapshot_is_refused_or_read_exactly(source, trained, torture, count):
    path, other = (trained / path for path in SOURCES[source])
    content, other = path.read_bytes(), other.read_bytes()
    original = torch.load(path, weights_only=True)
    if "model_state_dict" not in original:
        original = {"model_state_dict": original}
    weights = original["model_state_dict"]
    shapes = {name: (weight.shape, weight.dtype) for name, weight in weights.items()}
    damaged = Path(f"damaged{path.suffix}")
    refused = exact = 0
    for seed in range(1050 if torture else 30):
        chance = random.Random(f"{source} {seed}")
        where = f"{source}, seed {seed}"
        damaged.write_bytes(mutate(chance, content, other))
        names = set(chance.sample(list(weights), chance.choice([0, 1, 3])))
        whole, part = load(damaged, where), load(damaged, where, names.__contains__)
        if isinstance(whole, str):
            refused += 1
        else:
            exact += 1
            assert whole.pop("checksums"), where
            del whole["structure"]
            assert whole.keys() == original.keys(), where
            assert same({key: whole[key] for key in original}, original), where
        if isinstance(part, str):
            assert isinstance(whole, str), where
        else:
            structure = part.pop("structure")
            assert {name: (weight.shape, weight.dtype) for name, weight in structure.items()} == shapes, where
            assert part.pop("checksums"), where
            wanted = {name: weight for name, weight in weights.items() if name in names}
            assert same(part.pop("model_state_dict"), wanted), where
            assert all(same(value, original[key]) for key, value in part.items()), where
            assert {"epoch", "config", "class_names"} & original.keys() <= part.keys(), where
        whole = part = None  # they keep the file mapped
    assert refused > exact
    count("snapshots damaged: refused", refused)
    count("snapshots damaged: read exactly", exact)
    count("silent changes", 0)


def test_flipped_bit_in_any_byte_of_a_snapshot_is_refused_or_harmless(trained, torture, count):
    """A small file, most of which is names, sizes, checksums, the pickle and padding."""
    content = (trained / "small_1.tar").read_bytes()
    original = torch.load(trained / "small_1.tar", weights_only=True)
    damaged, refused, exact = Path("small_1.tar"), 0, 0
    for place in range(0 if torture else 5, len(content), 1 if torture else 301):
        mutant = bytearray(content)
        mutant[place] ^= 1 << place % 8
        damaged.write_bytes(mutant)
        found = load(damaged, f"byte {place}")
        if isinstance(found, str):
            refused += 1
        else:
            exact += 1
            del found["checksums"], found["structure"]
            assert same(original, found), f"byte {place}"
        found = None
    assert refused
    count("snapshots damaged: refused", refused)
    count("snapshots damaged: read exactly", exact)


def written(write) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def zipped(file) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "text")


OTHERS = {
    "empty": b"",
    "zeros": bytes(10_000),
    "error page": b"<!DOCTYPE html><html><title>404 Not Found</title></html>",
    "pickle": pickle.dumps({"model_state_dict": {"features.0.weight": [1.0, 2.0]}}),
    "npz": written(lambda file: np.savez(file, weight=np.ones((6, 1, 3, 3)))),
    "zip": written(zipped),
    "list": written(lambda file: torch.save([torch.ones(3)], file)),
    "tensor": written(lambda file: torch.save(torch.ones(3), file)),
    "empty dict": written(lambda file: torch.save({}, file)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_file_of_another_program_is_refused(name, count):
    Path("lenet_1.tar").write_bytes(OTHERS[name])
    assert isinstance(load(Path("lenet_1.tar"), name), str)
    count("snapshots damaged: refused")


def test_snapshot_that_is_replaced_while_it_is_read_is_one_or_the_other(count):
    """A run writes each training state twice, the second time with the accuracies and of another size."""
    states = [{"epoch": 0, "model_state_dict": {"w": torch.full((5000 + 40 * i,), float(i))}} for i in range(2)]
    stop, replaced = threading.Event(), []

    def replace():
        while not stop.is_set():
            snapshots.save(states[len(replaced) % 2], Path("lenet_0.tar"))
            replaced.append(True)

    snapshots.save(states[0], Path("lenet_0.tar"))
    writer = threading.Thread(target=replace)
    writer.start()
    try:
        read = 0
        while read < 200 or len(replaced) < 20:  # a slow disk replaces few files in the time of many reads
            read += 1
            weight = snapshots.load("lenet_0.tar")["model_state_dict"]["w"]
            assert same(weight, states[int(weight[0])]["model_state_dict"]["w"])
    finally:
        stop.set()
        writer.join()
    count("snapshots read while they were replaced", read)


def test_damaged_old_file_does_not_crash(torture, count):
    state = torch.load(REFERENCE / "lenet_2.tar", weights_only=True)
    content = written(lambda file: torch.save(state, file, _use_new_zipfile_serialization=False))
    other = (REFERENCE / "lenet_0.tar").read_bytes()
    refused = 0
    for seed in range(400 if torture else 20):
        Path("old.tar").write_bytes(mutate(random.Random(f"old {seed}"), content, other))
        refused += isinstance(load(Path("old.tar"), f"seed {seed}"), str)
    count("snapshots damaged: refused", refused)


# ---- the programs ----

SNAPSHOT = RUN / "lenet_1.tar"
GOOD = RUN / "lenet_0.tar"
EVALUATE = (train, *LENET, "--seed", 1, "--evaluate", "--resume-from")
PLACES = {  # command lines that read the snapshot
    "--resume-from": (*EVALUATE, SNAPSHOT),
    "--resume-from latest": (*EVALUATE, "latest", "--batch-size", 500, "--lr", 0.02),
    "--load-from": (compute_projections, *LENET, "--load-from", SNAPSHOT),
    "--load-from a folder": (compute_projections, *LENET, "--load-from", RUN),
    "--init-from": (compute_projections, *LENET, "--load-from", GOOD, "--init-from", SNAPSHOT),
    "reinit --load-from": (reinit_layers, *LENET, "--load-from", SNAPSHOT, "--rand", "--seed", 1),
    "--inits-from": (reinit_layers, *LENET, "--load-from", GOOD, "--inits-from", "inits.txt"),
}


def outcome(command, capsys) -> tuple[int, object, list[str]]:
    """Run a program. Returns its exit status, the numbers it reports, and its lines on standard error."""
    for folder in ("results", "plots", "log"):
        shutil.rmtree(folder, ignore_errors=True)
    status = run_main(*command)
    said = capsys.readouterr()
    numbers = [line for line in said.out.splitlines() if line.startswith("test set: ")]
    if Path("results").exists():
        found = [name for name in files_below("results") if name.endswith(".json")]
        numbers = {name: json.loads((Path("results") / name).read_text()) for name in found}
    return status, numbers, [line for line in said.err.splitlines() if "no effect" not in line]


@pytest.mark.parametrize("place", PLACES)
def test_damaged_snapshot_changes_no_result_of_a_program(place, trained, capsys, torture, count):
    shutil.copytree(trained / "models", "models")
    Path("inits.txt").write_text(f"{SNAPSHOT}\n")
    content, other = SNAPSHOT.read_bytes(), GOOD.read_bytes()
    right = outcome(PLACES[place], capsys)
    assert right[0] == 0
    assert right[1]
    SNAPSHOT.unlink()
    without = outcome(PLACES[place], capsys)  # where several snapshots are read, a damaged one is skipped
    tested = 0
    for seed in range(12 if torture else 2):
        SNAPSHOT.write_bytes(mutate(random.Random(f"{place} {seed}"), content, other))
        status, numbers, errors = outcome(PLACES[place], capsys)
        where = f"{place}, seed {seed}: {errors}"
        if status == 0 and numbers == right[1]:
            continue
        tested += 1
        named = [line for line in errors if SNAPSHOT.name in line]
        assert len(named) == 1, where
        if place == "--resume-from latest":
            assert (status, numbers) == (0, without[1]), where
        elif place == "--load-from a folder":
            assert (status, numbers) == (1, without[1]), where
        else:
            assert (status, not numbers, errors) == (2, True, named), where
    count("snapshots damaged: refused", tested)
