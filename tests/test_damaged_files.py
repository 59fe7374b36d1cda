"""Damaged files are refused by name or read exactly: not one changes a number and none ends in a traceback.

The damage is random, from a seed; both are in the message of a test that fails. Left out of it are files with no
checksum, where damage to a value cannot be told from another value: PyTorch's old non-zip format (which still must
not crash), the pixels and valid labels of uncompressed IDX and CIFAR files.
"""

import gzip
import io
import json
import os
import pickle
import random
import shutil
import struct
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import REFERENCE, files_below, run_main, same
from torch import nn

import compute_projections
import data
import reinit_layers
import train
from data import idx
from utils import snapshots

LENET = ("--arch", "lenet", "--dataset", "fashion_mnist_mini")
RUN = Path("models/fashion_mnist_mini_2/lenet/1")
PAGE = 4096


# ---- damage ----


def others() -> dict[str, bytes]:
    """Files of other programs."""

    def written(write: Callable) -> bytes:
        file = io.BytesIO()
        write(file)
        return file.getvalue()

    def zip_of(name: str, content: bytes) -> Callable:
        def write(file):
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr(name, content)

        return write

    header = json.dumps({"conv1.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return {
        "empty": b"",
        "one byte": b"P",
        "zeros": bytes(10_000),
        "text": b"epoch 1: all is well\n" * 100,
        "error page": b"<!DOCTYPE html><html><title>404 Not Found</title></html>",
        "jpeg": written(lambda file: Image.new("RGB", (30, 30), "red").save(file, "JPEG")),
        "pickle": pickle.dumps({"model_state_dict": {"features.0.weight": [1.0, 2.0]}}),
        "npz": written(lambda file: np.savez(file, weight=np.ones((6, 1, 3, 3)))),
        "npy": written(lambda file: np.save(file, np.ones((6, 1, 3, 3)))),
        "gzip": gzip.compress(b"weights"),
        "zip": written(zip_of("readme.txt", b"text")),
        "zip with a pickle": written(zip_of("archive/data.pkl", pickle.dumps({"a": 1}, protocol=2))),
        "safetensors": struct.pack("<Q", len(header)) + header + bytes(8),
        "list": written(lambda file: torch.save([torch.ones(3)], file)),
        "tensor": written(lambda file: torch.save(torch.ones(3), file)),
        "empty dict": written(lambda file: torch.save({}, file)),
    }


def flips(chance: random.Random, content: bytes, count: int, places: list[range]) -> tuple[str, bytes]:
    damaged, bits = bytearray(content), []
    for _ in range(count):
        place, bit = chance.choice(chance.choice(places)), chance.randrange(8)
        damaged[place] ^= 1 << bit
        bits.append(f"{place}:{bit}")
    return "flipped bits " + " ".join(bits), bytes(damaged)


def mutate(chance: random.Random, content: bytes, other: bytes) -> tuple[str, bytes]:
    """Damage a file; `other` is one of the same kind. Returns what was done, and the damaged content."""
    size = len(content)
    anywhere = range(size)
    # Few bytes of a large file are the names, sizes and checksums of its parts: a share of the flips goes there.
    structure = [anywhere, range(min(3000, size)), range(max(0, size - 6000), size)]
    at, length = chance.choice(anywhere), chance.choice([1, 2, 7, 64, 512, PAGE, 3 * PAGE])
    page = at // PAGE * PAGE
    kind = chance.choice(
        ["flip"] * 6
        + ["flips"] * 3
        + ["truncated", "cut at a page", "swapped", "zeroed", "inserted", "deleted", "repeated", "noise"]
        + ["of another", "appended", "prepended", "doubled"]
    )
    if kind == "flip":
        return flips(chance, content, 1, structure)
    if kind == "flips":
        return flips(chance, content, chance.randrange(2, 40), structure)
    if kind == "truncated":
        at = chance.choice([at, chance.choice(structure[2])])
        return f"truncated to {at}", content[:at]
    if kind == "cut at a page":
        return f"truncated to {page}", content[:page]
    if kind == "swapped":
        a, b = sorted((page, chance.choice(anywhere) // PAGE * PAGE))
        first, second = content[a : a + PAGE], content[b : b + PAGE]
        rest = content[a + PAGE : b]
        swapped = content if a == b else content[:a] + second + rest + first + content[b + PAGE :]
        return f"pages {a} and {b} swapped", swapped
    if kind == "zeroed":
        pages = chance.choice([1, 1, 2, 16])
        zeroed = content[:page] + bytes(len(content[page : page + pages * PAGE])) + content[page + pages * PAGE :]
        return f"{pages} pages zeroed from {page}", zeroed
    if kind == "inserted":
        return f"{length} bytes inserted at {at}", content[:at] + chance.randbytes(length) + content[at:]
    if kind == "deleted":
        return f"{length} bytes deleted at {at}", content[:at] + content[at + length :]
    if kind == "repeated":
        return f"{length} bytes repeated at {at}", content[: at + length] + content[at:]
    if kind == "noise":
        noise = content[:at] + chance.randbytes(len(content[at : at + length])) + content[at + length :]
        return f"noise for {length} bytes at {at}", noise
    if kind == "of another":
        page = max(page, 512)
        return f"from {page} on of another", content[:page] + other[page:]
    if kind == "appended":
        return "another appended", content + chance.choice([other, b"\n", bytes(PAGE)])
    if kind == "prepended":
        return "another before it", chance.choice([other, b"\n", bytes(PAGE)]) + content
    return "twice", content + content


# ---- snapshots ----


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with short runs: by SGD, by Adam, and snapshots of a small network with batch norm."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("trained")
    os.chdir(folder)
    try:
        options = (*LENET, "--subsample-classes", 2, "--seed", 1, "--epochs", 2, "--snapshot-every", 1)
        assert run_main(train, *options, "--batch-size", 500, "--lr", 0.02) == 0
        assert run_main(train, *options, "--epochs", 1, "--optimizer", "adam", "--models-path", "adam") == 0
    finally:
        os.chdir(before)
    for epoch in (0, 1):
        net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)
        net(torch.randn(4, 1, 8, 8)).sum().backward()
        optimizer.step()
        schedule.step()
        state = {
            "epoch": epoch,
            "top1_acc": 61.25 + epoch,
            "model_state_dict": snapshots.bare_weights(net),
            "optimizer_state_dict": optimizer.state_dict(),
            "scheduler_state_dict": schedule.state_dict(),
            "config": {"arch": "small", "seed": 1, "lr": 0.1, "noise": 0.0, "shuffle": True, "lr_step": None},
            "class_names": ["Trouser", "Ankle boot"],
        }
        snapshots.save(state, folder / f"small_{epoch}.tar")
    return folder


SOURCES = {  # a snapshot, and another one of the same kind
    "sgd": (RUN / "lenet_1.tar", RUN / "lenet_0.tar"),
    "adam": (Path("adam", *RUN.parts[1:], "lenet_0.tar"), RUN / "lenet_0.tar"),
    "final weights": (RUN / "lenet_2.pt", RUN / "lenet_init_0.pt"),
    "batch norm": (Path("small_1.tar"), Path("small_0.tar")),
    "of the authors": (REFERENCE / "lenet_2.tar", REFERENCE / "lenet_0.tar"),
    "initialization of the authors": (REFERENCE / "lenet_init_0.pt", RUN / "lenet_init_0.pt"),
}


def load_or_message(path: Path, wanted=None):
    """What `snapshots.load` gives, or the one line that it refuses the file with, which names it."""
    try:
        return snapshots.load(path, wanted)
    except snapshots.SnapshotError as error:
        message = str(error)
        assert path.name in message
        assert len(message.splitlines()) == 1
        assert len(message) < 1000
        return message


@pytest.mark.parametrize("source", SOURCES)
def test_damaged_snapshot_is_refused_or_read_exactly(source, trained, torture, count):
    path, other = (trained / path for path in SOURCES[source])
    content, other = path.read_bytes(), other.read_bytes()
    original = torch.load(path, weights_only=True)
    if "model_state_dict" not in original:
        original = {"model_state_dict": original}
    weights = original["model_state_dict"]
    damaged = Path(f"damaged{path.suffix}")
    refused = exact = 0
    for seed in range(700 if torture else 25):
        chance = random.Random(f"{source} {seed}")
        what, mutant = mutate(chance, content, other)
        where = f"{source}, seed {seed}: {what}"
        damaged.write_bytes(mutant)
        names = set(chance.sample(list(weights), chance.choice([0, 1, 3])))
        try:
            whole, part = load_or_message(damaged), load_or_message(damaged, names.__contains__)
        except Exception as error:
            raise AssertionError(where) from error
        if isinstance(whole, str):
            refused += 1
        else:
            exact += 1
            assert whole.pop("checksums"), where
            whole.pop("structure")
            assert same(whole, {**whole, **original}), where
            assert whole.keys() == original.keys(), where
        if not isinstance(part, str):
            structure = {name: (weight.shape, weight.dtype) for name, weight in part.pop("structure").items()}
            assert structure == {name: (weight.shape, weight.dtype) for name, weight in weights.items()}, where
            assert part.pop("checksums"), where
            assert same(
                part.pop("model_state_dict"), {name: weights[name] for name in weights if name in names}
            ), where
            assert all(same(value, original[key]) for key, value in part.items()), where
            assert {"epoch", "config", "class_names"} & original.keys() <= part.keys(), where
        else:
            assert isinstance(whole, str), where
        whole = part = None  # they keep the file mapped
    assert refused > 5 * exact
    count("snapshots damaged: refused", refused)
    count("snapshots damaged: read exactly", exact)
    count("silent changes", 0)


def test_snapshot_whose_every_bit_of_structure_is_flipped(trained, torture, count):
    """All bytes of a small file that are no numbers: names, sizes, checksums, the pickle, the padding."""
    content = (trained / "small_1.tar").read_bytes()
    original = torch.load(trained / "small_1.tar", weights_only=True)
    damaged, refused, exact = Path("small_1.tar"), 0, 0
    for place in range(0 if torture else 5, len(content), 1 if torture else 301):
        mutant = bytearray(content)
        mutant[place] ^= 1 << place % 8
        damaged.write_bytes(mutant)
        try:
            found = load_or_message(damaged)
        except Exception as error:
            raise AssertionError(f"byte {place}") from error
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


@pytest.mark.parametrize("name", others())
def test_file_of_another_program_is_refused(name, count):
    Path("lenet_1.tar").write_bytes(others()[name])
    assert isinstance(load_or_message(Path("lenet_1.tar")), str)
    count("snapshots damaged: refused")


def test_snapshot_that_is_replaced_while_it_is_read_is_no_damage(count):
    """As by a run that goes on, which writes each snapshot again with its accuracies: not of the same size."""
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
        for _ in range(200):
            weight = snapshots.load("lenet_0.tar")["model_state_dict"]["w"]
            assert same(weight, states[int(weight[0])]["model_state_dict"]["w"])
    finally:
        stop.set()
        writer.join()
    assert len(replaced) > 20
    count("snapshots read while they were replaced", 200)


def test_damaged_old_format_does_not_crash(torture, count):
    file = io.BytesIO()
    torch.save(
        torch.load(REFERENCE / "lenet_2.tar", weights_only=True), file, _use_new_zipfile_serialization=False
    )
    other = (REFERENCE / "lenet_0.tar").read_bytes()
    refused = 0
    for seed in range(400 if torture else 20):
        what, mutant = mutate(random.Random(f"old {seed}"), file.getvalue(), other)
        Path("old.tar").write_bytes(mutant)
        try:
            refused += isinstance(load_or_message(Path("old.tar")), str)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {what}") from error
    count("snapshots damaged: refused", refused)


# ---- the programs ----


def by_train(path: Path) -> tuple:
    return train, (*LENET, "--subsample-classes", 2, "--seed", 1, "--evaluate", "--resume-from", path)


def by_train_latest(path: Path) -> tuple:
    options = (*LENET, "--subsample-classes", 2, "--seed", 1, "--batch-size", 500, "--lr", 0.02)
    return train, (*options, "--evaluate", "--resume-from", "latest")


def by_load_from(path: Path) -> tuple:
    return compute_projections, (*LENET, "--subsample-classes", 2, "--load-from", path)


def by_load_from_folder(path: Path) -> tuple:
    return compute_projections, (*LENET, "--subsample-classes", 2, "--load-from", path.parent)


def by_init_from(path: Path) -> tuple:
    return compute_projections, (
        *LENET,
        "--subsample-classes",
        2,
        "--load-from",
        RUN / "lenet_0.tar",
        "--init-from",
        path,
    )


def by_reinit(path: Path) -> tuple:
    return reinit_layers, (*LENET, "--subsample-classes", 2, "--load-from", path, "--rand", "--seed", 1)


def by_inits_from(path: Path) -> tuple:
    Path("inits.txt").write_text(f"{path}\n")
    return reinit_layers, (
        *LENET,
        "--subsample-classes",
        2,
        "--load-from",
        RUN / "lenet_0.tar",
        "--inits-from",
        "inits.txt",
    )


PLACES = [by_train, by_train_latest, by_load_from, by_load_from_folder, by_init_from, by_reinit, by_inits_from]


def outcome(program, options, capsys) -> tuple[int, object, list[str]]:
    """The exit status of a program, the numbers that it told, and its lines on standard error."""
    for folder in ("results", "plots", "log"):
        shutil.rmtree(folder, ignore_errors=True)
    status = run_main(program, *options)
    said = capsys.readouterr()
    numbers = [line for line in said.out.splitlines() if line.startswith("test set: ")]
    if Path("results").exists():
        numbers = {name: json.loads((Path("results") / name).read_text()) for name in files_below(Path("results"))}
    return status, numbers, [line for line in said.err.splitlines() if "no effect" not in line]


@pytest.mark.parametrize("place", PLACES)
def test_damaged_snapshot_changes_no_result_of_a_program(place, trained, capsys, torture, count):
    shutil.copytree(trained / "models", "models")
    path = RUN / "lenet_1.tar"
    content, other = path.read_bytes(), (RUN / "lenet_0.tar").read_bytes()
    program, options = place(path)
    right = outcome(program, options, capsys)
    assert right[0] == 0
    assert right[1]
    path.unlink()
    without = outcome(program, options, capsys)  # what is left where a damaged snapshot is passed over
    tested = 0
    for seed in range(12 if torture else 2):
        what, mutant = mutate(random.Random(f"{place.__name__} {seed}"), content, other)
        path.write_bytes(mutant)
        status, numbers, errors = outcome(program, options, capsys)
        where = f"{place.__name__}, seed {seed}: {what}: {errors}"
        if status == 0 and numbers == right[1]:
            continue
        tested += 1
        named = [line for line in errors if path.name in line]
        assert len(named) == 1, where
        if place is by_train_latest:
            assert (status, numbers) == (0, without[1]), where
        elif place is by_load_from_folder:
            assert (status, numbers) == (1, without[1]), where
        else:
            assert status == 2, where
            assert not numbers, where
            assert errors == named, where
    count("snapshots damaged: refused", tested)


def test_damaged_list_of_initializations_is_refused_or_read_exactly(trained, capsys, torture, count):
    shutil.copytree(trained / "models", "models")
    text = f"{RUN / 'lenet_init_0.pt'}\n{RUN / 'lenet_1.tar'}\n".encode()
    options = (*LENET, "--load-from", RUN / "lenet_0.tar", "--inits-from", "inits.txt")
    Path("inits.txt").write_bytes(text)
    right = outcome(reinit_layers, options, capsys)
    tested = 0
    for seed in range(40 if torture else 6):
        what, mutant = mutate(random.Random(f"list {seed}"), text, b"nowhere.tar\n")
        Path("inits.txt").write_bytes(mutant)
        status, numbers, errors = outcome(reinit_layers, options, capsys)
        where = f"seed {seed}: {what}: {errors}"
        if status == 0:  # a list that lost a line is a list
            rows = right[1]["fashion_mnist_mini_2/lenet/reinit_lenet_0.json"]["init_from_epoch"].items()
            (found,) = numbers.values()
            assert found["init_from_epoch"].items() <= rows, where
        else:
            tested += 1
            assert status == 2, where
            assert len(errors) == 1, where
            assert "inits.txt" in errors[0] or "lenet" in errors[0], where
            assert not numbers, where
    count("snapshots damaged: refused", tested)


# ---- datasets ----


def test_damaged_file_of_the_dataset_that_is_here_is_refused_or_read_exactly(monkeypatch, torture, count):
    """They are gzipped, and carry a checksum: damage to pixels is noticed too."""
    original = [idx.read_mini(Path(), train)[0] for train in (True, False)]
    shutil.copytree(idx.MINI, "mini")
    monkeypatch.setattr(idx, "MINI", Path("mini"))
    files = sorted(Path("mini").glob("*.gz"))
    refused = 0
    for seed in range(300 if torture else 20):
        chance = random.Random(f"mini {seed}")
        file, other = chance.sample(files, 2)
        content = file.read_bytes()
        what, mutant = mutate(chance, content, other.read_bytes())
        file.write_bytes(mutant)
        where, message = f"{file.name}, seed {seed}: {what}", None
        try:
            found, _ = idx.read_mini(Path(), file.name.startswith("train"))
        except data.DataError as error:
            message = str(error)
        except Exception as error:
            raise AssertionError(where) from error
        if message is None:
            right = original[file.name.startswith("t10k")]
            assert found.images.equal(right.images), where
            assert (found.labels == right.labels).all(), where
        else:
            refused += 1
            assert str(file) in message, where
            assert len(message.splitlines()) == 1, where
        file.write_bytes(content)
    assert refused
    count("dataset files damaged", refused)


def write_mnist(root: Path) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, number in (("train", 40), ("t10k", 20)):
        images = struct.pack(">4I", 0x803, number, 28, 28) + np.random.bytes(number * 784)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(images)
        labels = struct.pack(">2I", 0x801, number) + bytes(i % 10 for i in range(number))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)


def write_cifar(root: Path) -> None:
    for folder, files, label_bytes in (
        ("cifar-10-batches-bin", [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"], 1),
        ("cifar-100-binary", ["train.bin", "test.bin"], 2),
    ):
        (root / folder).mkdir(parents=True)
        for file in files:
            records = (bytes([i] * label_bytes) + np.random.bytes(3072) for i in range(10))
            (root / folder / file).write_bytes(b"".join(records))


def idx_damage(chance: random.Random, content: bytes) -> tuple[str, bytes]:
    """What can be noticed without a checksum: in the header, in the size, in a label."""
    header = 4 + 4 * content[3]
    kinds = [flips(chance, content, 1, [range(header)])]
    dimensions = chance.choice([0, 1, 2, 65, 255])
    kinds.append(
        (f"{dimensions} dimensions", b"\0\0\x08" + bytes([dimensions]) + b"\0\0\0\1" * dimensions + b"\1")
    )
    if header == 8:
        at = chance.randrange(header, len(content))
        kinds.append((f"label at {at}", content[:at] + bytes([chance.randrange(10, 256)]) + content[at + 1 :]))
    return chance.choice(kinds)


def cifar_damage(chance: random.Random, content: bytes) -> tuple[str, bytes]:
    record = 3074 if len(content) % 3074 == 0 else 3073
    most = 100 if record == 3074 else 10
    at = chance.randrange(len(content) // record) * record + record - 3073
    return f"label at {at}", content[:at] + bytes([chance.randrange(most, 256)]) + content[at + 1 :]


def size_damage(chance: random.Random, content: bytes) -> tuple[str, bytes]:
    at = chance.randrange(len(content))
    return chance.choice(
        [
            (f"truncated to {at}", content[:at] if at % 3073 and at % 3074 else content[:-1]),
            ("one byte more", content + b"\0"),
            ("one byte less", content[1:]),
            ("gzipped", gzip.compress(content)),
            chance.choice([item for item in others().items() if len(item[1]) % 3073 or not item[1]]),
        ]
    )


@pytest.mark.parametrize("dataset", ["mnist", "cifar10", "cifar100"])
def test_damaged_file_of_a_dataset_is_refused(dataset, torture, capsys, count):
    write_mnist(Path("datasets"))
    write_cifar(Path("datasets"))
    folder = {"mnist": "MNIST/raw", "cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}[dataset]
    files = sorted(Path("datasets", folder).iterdir())
    for seed in range(100 if torture else 15):
        chance = random.Random(f"{dataset} {seed}")
        file = chance.choice(files)
        content = file.read_bytes()
        damage = chance.choice([size_damage, idx_damage if dataset == "mnist" else cifar_damage])
        what, mutant = damage(chance, content)
        file.write_bytes(mutant)
        try:
            with pytest.raises(data.DataError) as error:
                data.load(dataset, "datasets", 10)
        except BaseException as other:
            raise AssertionError(f"{file.name}, seed {seed}: {what}") from other
        assert file.name in str(error.value), f"{file.name}, seed {seed}: {what}: {error.value}"
        assert len(str(error.value).splitlines()) == 1
        file.write_bytes(content)
    count("dataset files damaged", seed + 1)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device", "link to nothing", "unreadable"])
@pytest.mark.parametrize("name", ["MNIST/raw/t10k-labels-idx1-ubyte", "cifar-10-batches-bin/test_batch.bin"])
def test_what_is_no_file_of_a_dataset_is_refused_by_a_program(kind, name, capsys, count):
    write_mnist(Path("datasets"))
    write_cifar(Path("datasets"))
    file = Path("datasets", name)
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "link to nothing":
        file.symlink_to("nowhere")
    elif kind == "unreadable":
        file.write_bytes(b"")
        file.chmod(0)
        if os.access(file, os.R_OK):
            pytest.skip("the tests run as a user who may read everything")
    dataset = "mnist" if "MNIST" in name else "cifar10"
    assert run_main(train, "--arch", "mlp", "--dataset", dataset, "--data-path", "datasets") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert file.name in line
    count("dataset files damaged")


@pytest.mark.parametrize("kind", ["pipe", "device", "file"])
@pytest.mark.parametrize("dataset", ["mnist", "cifar10", "imagenet"])
def test_data_path_that_is_no_folder_is_refused(kind, dataset, capsys, monkeypatch, count):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    path = Path("datasets")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        path.write_text("")
    assert run_main(train, "--arch", "resnet18", "--dataset", dataset, "--data-path", path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line
    count("dataset files damaged")
