"""Files made to do harm: they run no code, fill no memory, and are refused in one line that names them."""

import copyreg
import functools
import importlib
import io
import os
import pickle
import resource
import struct
import subprocess
import time
import types
import warnings
import zipfile
import zlib
from collections import Counter, OrderedDict, namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import REFERENCE, files_below, run_main, shell, state_of_files
from torch import nn

import compute_projections
import data
import reinit_layers
import train
from utils import snapshots

LENET = ("--arch", "lenet", "--dataset", "fashion_mnist_mini")
CANARY = Path("it_ran")
TOUCH = f"touch {CANARY}"
GIGABYTE = 2**30


class Calls:
    """What is pickled as a call; like this class itself, nothing of the kind belongs into a snapshot."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


class OwnDict(OrderedDict):
    pass


Pair = namedtuple("Pair", "a b")


def weights() -> dict[str, torch.Tensor]:
    return torch.load(REFERENCE / "lenet_init_0.pt", weights_only=True)


def state() -> dict:
    return torch.load(REFERENCE / "lenet_2.tar", weights_only=True)


# ---- what would run code, or holds more than a snapshot ----

OBJECTS = {
    "os.system": lambda: Calls(os.system, TOUCH),
    "subprocess": lambda: Calls(subprocess.call, TOUCH.split()),
    "eval": lambda: Calls(eval, f"open('{CANARY}', 'w')"),
    "exec": lambda: Calls(exec, f"open('{CANARY}', 'w')"),
    "open": lambda: Calls(open, str(CANARY), "w"),
    "touch": lambda: Calls(Path.touch, CANARY),
    "import": lambda: Calls(importlib.import_module, "antigravity"),
    "getattr": lambda: Calls(getattr, Calls(importlib.import_module, "os"), "system"),
    "partial": lambda: functools.partial(os.system, TOUCH),
    "setstate": lambda: Calls(OwnDict, state={"__setstate__": TOUCH}),
    "reconstructor": lambda: Calls(copyreg._reconstructor, Calls, object, None),
    "extension": lambda: Calls(copyreg.add_extension, "os", "system", 1),
    "torch.load": lambda: Calls(torch.load, "another.pt"),
    "torch.hub": lambda: Calls(torch.hub.load, "owner/name", "model"),
    "torch.jit": lambda: Calls(torch.jit.load, "another.pt"),
    "legacy reader": lambda: Calls(torch.serialization._legacy_load, None, None, pickle),
    "numpy array": lambda: np.ones(3),
    "numpy scalar": lambda: np.float64(3),
    "numpy in a tensor": lambda: Calls(
        torch._utils._rebuild_device_tensor_from_numpy, np.ones(3), torch.float32, "cpu", False
    ),
    "a class": lambda: Calls,
    "a function": lambda: os.system,
    "a module": lambda: nn.Linear(2, 2),
    "namedtuple": lambda: Pair(1, 2),
    "namespace": lambda: types.SimpleNamespace(a=1),
    "dict of its own class": lambda: OwnDict(a=1),
    "much memory": lambda: Calls(bytearray, 2 * GIGABYTE),
    "much memory in a tensor": lambda: Calls(torch.FloatTensor, GIGABYTE),
    "set": lambda: {1, 2},
    "bytes": lambda: b"bytes",
    "complex number": lambda: 1 + 2j,
    "size": lambda: torch.Size([1, 2]),
    "type": lambda: torch.float32,
    "device": lambda: torch.device("cuda:7"),
    "path": lambda: Path("/etc/passwd"),
    "huge number": lambda: 10**600,
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed sparse": lambda: torch.eye(3).to_sparse_csr(),
    "meta": lambda: torch.empty(2**40, device="meta"),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "nested tensor": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
}


def small() -> dict:
    """The least that is a snapshot."""
    return {"model_state_dict": {"features.0.weight": torch.ones(6, 1, 3, 3)}}


NESTED = {
    "weight": lambda thing: {"features.0.weight": thing},
    "weight of a state": lambda thing: {"model_state_dict": {"features.0.weight": thing}},
    "weights": lambda thing: {"model_state_dict": thing},
    "whole": lambda thing: thing,
    "config": lambda thing: {**small(), "config": {"seed": thing}},
    "key of config": lambda thing: {**small(), "config": {thing: 1}},
    "optimizer": lambda thing: {**small(), "optimizer_state_dict": {"state": {0: {"momentum_buffer": thing}}}},
    "class names": lambda thing: {**small(), "class_names": [thing]},
    "epoch": lambda thing: {**small(), "epoch": thing},
    "key": lambda thing: {**small(), thing: 1},
    "unknown": lambda thing: {**small(), "remark": [{"deep": (thing,)}]},
}


def saved(content, new_format: bool = True) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is deprecated in PyTorch is no less hostile
        torch.save(content, file, _use_new_zipfile_serialization=new_format)
    return file.getvalue()


# ---- pickles written by hand ----


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


NAME = text("features.0.weight")
PICKLES = {
    "GLOBAL": b"\x80\x02cos\nsystem\n" + text(TOUCH) + b"\x85R.",
    "posix": b"\x80\x02cposix\nsystem\n" + text(TOUCH) + b"\x85R.",
    "INST": b"(S'" + TOUCH.encode() + b"'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\n" + text(TOUCH) + b"o.",
    "STACK_GLOBAL": b"\x80\x04" + text("os") + text("system") + b"\x93" + text(TOUCH) + b"\x85R.",
    "attribute of a module": b"\x80\x04" + text("torch") + text("os.system") + b"\x93" + text(TOUCH) + b"\x85R.",
    "NEWOBJ": b"\x80\x02csubprocess\nPopen\n" + text(TOUCH) + b"\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04csubprocess\nPopen\n" + text(TOUCH) + b"\x85}\x92.",
    "EXT1": b"\x80\x02\x82\x01.",
    "BUILD of a dict": b"\x80\x02}" + text("a") + b"b.",
    "BUILD that covers items": b"\x80\x02ccollections\nOrderedDict\n)R}" + text("items") + b"K\x01sb.",
    "names with escapes": b"\x80\x02c\x1b[31mos\nsystem\x1b]0;title\x07\n)R.",
    "name of two lines": b"\x80\x02}" + text("features\n0\r.weight\x1b[2J") + b"K\x01s.",
    "persistent id of a module": b"\x80\x02(" + text("module") + b"ctorch\nFloatStorage\n" + text("0") + b"tQ.",
    "persistent id of text": b"\x80\x02Pid\n.",
    "persistent number": b"\x80\x02K\x05Q.",
    "storage outside": b"\x80\x02("
    + b"".join([text("storage"), b"ctorch\nFloatStorage\n", text("../../../etc/passwd"), text("cpu"), b"K\x04"])
    + b"tQ.",
    "deep list": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "deep weights": b"\x80\x02}" + NAME + b"]" * 5_000 + b"a" * 4_999 + b"s.",
    "list in itself": b"\x80\x02]q\x00h\x00a.",
    "dict in itself": b"\x80\x02}q\x00" + NAME + b"h\x00s.",
    "10^20 numbers": b"\x80\x02}"
    + NAME
    + b"]q\x00K\x01a"
    + b"0](".replace(b"0", b"")
    + b"h\x00" * 10
    + b"e"
    + b"s.",
    "endless text": b"\x80\x02X\xff\xff\xff\xff" + b"a" * 100,
    "no end": b"\x80\x02}",
    "nothing": b"",
    "stack underflow": b"\x80\x02R.",
    "unknown opcode": b"\x80\x02\xff.",
    "high protocol": b"\x80\xffN.",
    "none": b"\x80\x02N.",
}


def laughs(levels: int = 20) -> list:
    """Lists of ten references to one another: 10^levels numbers in a few hundred bytes."""
    value = [1]
    for _ in range(levels):
        value = [value] * 10
    return value


def zipped(records, compression=zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that occur twice
        with zipfile.ZipFile(file, "w", compression) as archive:
            for name, content in records:
                archive.writestr(name, content)
    return file.getvalue()


def in_zip(pickled: bytes) -> bytes:
    return zipped([("archive/data.pkl", pickled), ("archive/byteorder", b"little"), ("archive/version", b"3\n")])


def in_old_format(pickled: bytes) -> bytes:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    before = (pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, system))
    return b"".join([*before, pickled, pickle.dumps([], 2)])


def records_of(content: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def overlapping() -> bytes:
    """An archive in which one record's bytes, by what is said before them, are those of another of its size."""
    content = bytearray((REFERENCE / "lenet_init_0.pt").read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        one, other = [record for record in archive.infolist() if record.file_size == 6 * 4]  # two biases
    starts = [
        r.header_offset + 30 + sum(struct.unpack_from("<HH", content, r.header_offset + 26)) for r in (one, other)
    ]
    (extra,) = struct.unpack_from("<H", content, one.header_offset + 28)
    struct.pack_into("<H", content, one.header_offset + 28, extra + starts[1] - starts[0])
    return bytes(content)


@functools.cache
def archives() -> dict[str, bytes]:
    """Archives that a careful reader and a careless one would read differently."""
    records = records_of((REFERENCE / "lenet_init_0.pt").read_bytes())
    prefix = records[0][0].split("/")[0]
    pickled = f"{prefix}/data.pkl"
    hostile = PICKLES["GLOBAL"]
    return {
        "pickle twice": zipped([*records, (pickled, hostile)]),
        "hostile pickle first": zipped([(pickled, hostile), *records]),
        "pickle in capitals": zipped([*records, (f"{prefix}/DATA.PKL", hostile)]),
        "another root": zipped([*records, ("other/data.pkl", hostile)]),
        "another root first": zipped([("other/data.pkl", hostile), *records]),
        "upwards": zipped([*records, ("../../it_ran", b"")]),
        "absolute": zipped([*records, ("/tmp/it_ran", b"")]),
        "compressed": zipped(records, zipfile.ZIP_DEFLATED),
        "bomb": zipped([("archive/data.pkl", bytes(2**28))], zipfile.ZIP_DEFLATED),
        "TorchScript": zipped(
            [*records, (f"{prefix}/constants.pkl", b"\x80\x02)."), (f"{prefix}/code/a.py", b"")]
        ),
        "huge version": zipped([(n, b"9" * 100 if n.endswith("/version") else c) for n, c in records]),
        "no version": zipped([(n, c) for n, c in records if not n.endswith("/version")]),
        "strange byte order": zipped([*records, (f"{prefix}/byteorder", b"middle")]),
        "no pickle": zipped([(n, c) for n, c in records if n != pickled]),
        "pickle alone": zipped([(n, c) for n, c in records if n == pickled]),
        "numbers missing": zipped([(n, c) for n, c in records if not n.endswith("/data/3")]),
        "numbers twice": zipped([*records, (f"{prefix}/data/3", bytes(100))]),
        "overlapping": overlapping(),
        "no records": zipped([]),
        "only folders": zipped([("archive/", b""), ("archive/data/", b"")]),
    }


# ---- tensors that claim more than they have ----


def tensor(offset, size, stride) -> Calls:
    storage = torch.ones(4).storage()
    return Calls(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())


TENSORS = {
    "offset beyond": (100, (2,), (1,)),
    "offset far beyond": (2**61, (2,), (1,)),
    "offset before": (-1, (2,), (1,)),
    "more numbers": (0, (5,), (1,)),
    "many numbers": (0, (2**40,), (1,)),
    "long steps": (0, (2, 2), (2**40, 1)),
    "steps back": (3, (2,), (-1,)),
    "negative size": (0, (-2,), (1,)),
    "overlapping": (0, (2**30, 2**30), (0, 0)),
    "overflowing": (0, (2**62, 2**62), (0, 0)),
    "overflowing and empty": (0, (2**62, 2**62, 0), (0, 0, 0)),
    "no whole numbers": (0, (2.5,), (1,)),
    "more sizes than steps": (0, (2, 2), (1,)),
    "huge numbers": (10**30, (10**30,), (10**30,)),
}


# ---- values that options and lines of text cannot be ----

VALUES = {
    "epoch of text": {"epoch": "two"},
    "huge epoch": {"epoch": 10**30},
    "epoch of NaN": {"epoch": float("nan")},
    "step of text": {"tensorboard_step": "x"},
    "config is a list": {"config": [1]},
    "NaN": {"config": {"lr": float("nan")}},
    "infinity": {"config": {"weight_decay": float("inf")}},
    "infinite noise": {"config": {"noise": float("-inf")}},
    "huge seed": {"config": {"seed": 10**5000}},
    "list for a number": {"config": {"lr": [0.1] * 1000}},
    "laughs": {"config": {"seed": laughs(12)}},
    "more laughs": {"remark": laughs()},
    "tensor for a number": {"config": {"seed": torch.ones(3)}},
    "no images in a batch": {"config": {"batch_size": 0}},
    "more noise than labels": {"config": {"noise": 7.0}},
    "no momentum": {"config": {"optimizer": "sgd", "momentum": None}},
    "list for words": {"config": {"started_from": ["x"]}},
    "no channels": {"config": {"in_channels": 0}},
    "number of text": {"config": {"num_classes": "10"}},
    "provenance of text": {"provenance": "mine"},
    "NaN in the provenance": {"provenance": {"arguments": {"lr": float("nan")}}},
    "tensor in the provenance": {"provenance": {"torch": torch.ones(3)}},
    "provenance of pairs": {"provenance": {(1, 2): 3}},
    "name that is a tensor": {"class_names": [torch.ones(3)]},
    "counted names": {"class_names": Counter("abc")},
    "name with escapes": {"class_names": ["\x1b[31mred\x07\n\r\u202e"] * 10},
    "architecture with escapes": {"config": {"arch": "lenet\x1b]0;title\x07\n2", "dataset": 1}},
    "text that is none": {"config": {"arch": "lenet\udcff"}},
    "lr of text": {"optimizer_state_dict": {"state": {}, "param_groups": [{"lr": "x", "weight_decay": 0}]}},
    "number for a weight": {"model_state_dict": {"features.0.weight": 1.0}},
    "names of numbers": {"model_state_dict": {0: torch.ones(3)}},
    "no weights": {"model_state_dict": {}},
    "escapes in a weight's name": {"model_state_dict": {"a\n\x1b[2Jb": torch.ones(3)}},
    "complex weights": {"model_state_dict": {"features.0.weight": torch.ones(6, 1, 3, 3) + 1j}},
    "weights of bits": {"model_state_dict": {"features.0.weight": torch.ones(6, 1, 3, 3) > 0}},
    "NaN for a weight": {"model_state_dict": {**weights(), "features.0.weight": torch.full((6, 1, 3, 3), np.nan)}},
    "infinite weight": {"model_state_dict": {**weights(), "features.2.weight": torch.full((6, 6, 3, 3), -np.inf)}},
}


@functools.cache
def hostile_files() -> dict[str, bytes]:
    """All of them that snapshots.load has to refuse, by what they are."""
    files = {}
    for name, make in OBJECTS.items():
        for place, nest in NESTED.items():
            for new_format in (True, False):
                # Not everything can be written there; what cannot be written is no danger.
                try:
                    files[f"{name} as {place}{'' if new_format else ', old format'}"] = saved(
                        nest(make()), new_format
                    )
                except (TypeError, RuntimeError, AttributeError, NotImplementedError, pickle.PicklingError):
                    continue
    for name, pickled in PICKLES.items():
        files[name], files[f"{name}, old format"] = in_zip(pickled), in_old_format(pickled)
    for name, claim in TENSORS.items():
        for new_format in (True, False):
            content = {"features.0.weight": tensor(*claim)}
            files[f"tensor: {name}{'' if new_format else ', old format'}"] = saved(content, new_format)
    return files


def peak() -> int:
    """The most memory that this process had so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_hostile_snapshots_are_refused(count, torture):
    files = hostile_files()
    assert len(files) > 500
    before = peak()
    chosen = list(files) if torture else list(files)[::6]
    for name in chosen:
        check_refused(name, files[name])
    assert peak() - before < GIGABYTE
    count("hostile files refused", len(chosen))


def check_refused(name: str, content: bytes) -> None:
    """Have `snapshots.load` read a file, with all weights and with none of them."""
    Path("hostile.tar").write_bytes(content)
    for wanted in (None, lambda name: False):
        accepted = False
        try:
            snapshots.load(Path("hostile.tar"), wanted)
            accepted = True
        except snapshots.SnapshotError as error:
            message = str(error)
        except BaseException as error:
            raise AssertionError(name) from error
        assert not CANARY.exists(), name
        assert not accepted, name
        assert "hostile.tar" in message, name
        assert message.isprintable(), name
        assert len(message) < 500, name


def test_archives_that_can_be_read_in_two_ways_are_refused(count):
    before = peak()
    for name, content in archives().items():
        check_refused(name, content)
    assert peak() - before < GIGABYTE
    count("hostile files refused", len(archives()))


def test_attributes_of_a_hostile_dict_are_left_behind():
    """They would stand before the methods of the dict, and before what load_state_dict reads of it."""
    content = OrderedDict(weights())
    content.__dict__.update(values=1, keys=2, copy=3, _metadata={"": {"version": "x"}, "features": 3})
    torch.save(content, "lenet_init_0.pt")
    loaded = snapshots.load(Path("lenet_init_0.pt"))["model_state_dict"]
    assert loaded.keys() == weights().keys()
    assert all(loaded[name].equal(weight) for name, weight in weights().items())
    assert (
        run_main(train, *LENET, "--subsample-classes", 10, "--evaluate", "--resume-from", "lenet_init_0.pt") == 0
    )


# ---- by every place that the programs load from ----

SAMPLE = ["os.system as weight", "os.system as weight, old format", "partial as config", "touch as key"]
SAMPLE += ["eval as optimizer", "much memory as unknown", "deep list", "tensor: overlapping", "names with escapes"]


def sample() -> dict[str, bytes]:
    files = {**hostile_files(), **archives()}
    return {name: files[name] for name in [*SAMPLE, "hostile pickle first", "pickle in capitals", "bomb"]}


def places(path: Path) -> dict[str, tuple]:
    """The command lines that read a snapshot, each from another place."""
    Path("inits.txt").write_text(f"{path}\n")
    good = REFERENCE / "lenet_2.tar"
    return {
        "--resume-from": (train, *LENET, "--resume-from", path),
        "--resume-from to evaluate": (train, *LENET, "--resume-from", path, "--evaluate"),
        "--load-from": (compute_projections, *LENET, "--load-from", path),
        "--load-from several": (compute_projections, *LENET, "--load-from", path, f"other_{path}"),
        "--init-from": (compute_projections, *LENET, "--load-from", good, "--init-from", path),
        "reinit --load-from": (reinit_layers, *LENET, "--rand", "--load-from", path),
        "--inits-from": (reinit_layers, *LENET, "--load-from", good, "--inits-from", "inits.txt"),
        "the list": (reinit_layers, *LENET, "--load-from", good, "--inits-from", path),
    }


def one_line_names(path: Path, err: str) -> None:
    (line,) = err.splitlines()
    assert str(path) in line
    assert line.isprintable()


def test_hostile_snapshot_is_refused_by_every_program(capsys, count, torture):
    path = Path("hostile.tar")
    for number, (name, content) in enumerate(sample().items()):
        for copy in (path, Path(f"other_{path}")):
            copy.write_bytes(content)
        commands = places(path)
        chosen = list(commands) if torture else list(commands)[number % 8 :: 8]
        for place in chosen:
            before = state_of_files(Path())
            status = run_main(*commands[place])
            said = capsys.readouterr()
            assert status == (1 if place == "--load-from several" else 2), (name, place, said)
            if place == "--load-from several":
                assert said.err.count(f"{path}") == 2
                assert len(said.err.splitlines()) == 1
            else:
                one_line_names(path, said.err)
            assert state_of_files(Path()) == before, (name, place)
            assert not CANARY.exists()
            count("hostile files refused")


def test_hostile_snapshot_in_the_folder_of_a_run(capsys, count, torture):
    """`latest` passes over it; a run that would overwrite it stops; one among several is named at the end."""
    options = (*LENET, "--subsample-classes", 2, "--seed", 1, "--epochs", 1, "--batch-size", 500)
    assert run_main(train, *options) == 0
    folder = Path("models/fashion_mnist_mini_2/lenet/1")
    for name, content in list(sample().items())[:: 1 if torture else 4]:
        (folder / "lenet_1.tar").write_bytes(content)
        capsys.readouterr()
        assert run_main(train, *options, "--resume-from", "latest", "--evaluate") == 0, name
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "no effect" not in line]
        assert line.startswith(f"warning: passed over: {folder / 'lenet_1.tar'}")
        assert line.isprintable()
        assert run_main(train, *options, "--epochs", 2) == 2
        one_line_names(folder / "lenet_1.tar", capsys.readouterr().err)
        found = (*LENET, "--subsample-classes", 2, "--load-from", folder)
        assert run_main(compute_projections, *found) == 1, name
        one_line_names(folder / "lenet_1.tar", capsys.readouterr().err)
        count("hostile files refused", 3)
    (folder / "lenet_1.tar").unlink()
    (folder / "lenet_0.tar").unlink()
    (folder / "lenet_1.pt").unlink()
    for name, content in list(sample().items())[:: 1 if torture else 4]:
        (folder / "lenet_init_0.pt").write_bytes(content)
        assert run_main(train, *options) == 2, name
        one_line_names(folder / "lenet_init_0.pt", capsys.readouterr().err)
        count("hostile files refused")
    assert not CANARY.exists()


@pytest.mark.parametrize(
    "name", ["os.system as weight", "os.system as weight, old format", "deep list", "bomb", "list"]
)
def test_hostile_weights_of_the_model_zoo_are_refused(name, capsys, monkeypatch, count):
    monkeypatch.setenv("TORCH_HOME", "torch_home")
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    path = Path("torch_home/hub/checkpoints/resnet18-f37072fd.pth")
    path.parent.mkdir(parents=True)
    path.write_bytes({**sample(), "list": saved([1])}[name])
    before, files = peak(), files_below(Path())
    for program in (compute_projections, train):
        options = ("--arch", "resnet18", "--dataset", "fashion_mnist_mini", "--upscale", "--pretrained")
        options = options if program is train else [word for word in options if word != "--upscale"]
        assert run_main(program, *options) == 2
        one_line_names(path, capsys.readouterr().err)
        count("hostile files refused")
    assert files_below(Path()) == files
    assert not CANARY.exists()
    assert peak() - before < GIGABYTE


@pytest.mark.parametrize("name", VALUES)
def test_values_that_no_program_wrote_end_in_one_line(name, capsys, count, torture):
    """Some of them, in what a program does not read, do no harm; then the numbers are those without them."""
    path = Path("lenet_2.tar")
    path.write_bytes(saved({**state(), **VALUES[name]}))
    refused, commands = 0, places(path)
    for place in commands if torture else ["--resume-from to evaluate", "--load-from"]:
        command = commands[place]
        before = state_of_files(Path())
        status = run_main(*command)
        said = capsys.readouterr()
        lines = [line for line in said.err.splitlines() if "warning" not in line]
        assert all(line.isprintable() for line in said.err.splitlines())
        if status != 0:
            refused += 1
            assert len(lines) == 1, said.err
            assert state_of_files(Path()) == before
            assert len(lines[0]) < 20_000
        else:
            assert not lines
    count("hostile files refused", refused)


STATES = {
    "a method of the schedule": lambda s: s["scheduler_state_dict"].update(step_size="x", get_lr=3),
    "a number of the schedule": lambda s: s["scheduler_state_dict"].update(last_epoch=float("nan")),
    "rates of the schedule": lambda s: s["scheduler_state_dict"].update(base_lrs=["x"]),
    "rate": lambda s: s["optimizer_state_dict"]["param_groups"][0].update(lr=[1]),
    "infinite rate": lambda s: s["optimizer_state_dict"]["param_groups"][0].update(lr=float("inf")),
    "flag": lambda s: s["optimizer_state_dict"]["param_groups"][0].update(nesterov="yes"),
    "buffer": lambda s: s["optimizer_state_dict"]["state"][0].update(momentum_buffer="x"),
    "parameters": lambda s: s["optimizer_state_dict"]["param_groups"][0].update(params=["x"]),
}


@pytest.mark.parametrize("name", STATES)
def test_state_of_an_optimizer_that_none_left_behind_is_refused_before_training(name, capsys, count):
    content = state()
    config = {"optimizer": "sgd", "lr": 0.02, "lr_step": 2, "lr_decay": 0.1, "weight_decay": 0.0, "momentum": 0.9}
    schedule = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.ones(1)], lr=0.02), 2, 0.1).state_dict()
    content |= {"config": config, "scheduler_state_dict": schedule}
    STATES[name](content)
    torch.save(content, "lenet_2.tar")
    assert run_main(train, *LENET, "--epochs", 4, "--resume-from", "lenet_2.tar") == 2
    one_line_names(Path("lenet_2.tar"), capsys.readouterr().err)
    count("hostile files refused")


# ---- lists of initializations ----


@pytest.mark.parametrize(
    "kind",
    ["binary", "folder", "itself", "long line", "long lines", "device", "pipe", "in it a pipe", "in it a device"],
)
def test_hostile_list_is_refused(kind, capsys, count):
    path = Path("list.txt")
    os.mkfifo("pipe")
    if kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.rename("pipe", path)
    else:
        content = {
            "binary": bytes(range(256)),
            "itself": b"list.txt\n",
            "long line": b"x" * 10_000_000,
            "long lines": (b"y" * 4000 + b"\n") * 1000,
            "in it a pipe": b"pipe\n",
            "in it a device": b"/dev/zero\n",
        }
        path.write_bytes(content[kind])
    options = (*LENET, "--load-from", REFERENCE / "lenet_2.tar", "--inits-from", path)
    assert run_main(reinit_layers, *options) == 2
    said = capsys.readouterr().err
    one_line_names(path, said)
    assert len(said) < 1000
    count("hostile files refused")


# ---- folders of images ----

IMAGENET = ("--arch", "resnet18", "--dataset", "imagenet", "--data-path", "images", "--workers", 0)


def picture(width: int = 60, height: int = 50, mode: str = "RGB") -> Image.Image:
    pixels = np.random.RandomState(0).randint(256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def images() -> Path:
    """A folder of the form of ImageNet, two images in each of two classes."""
    for part in ("train", "val"):
        for name in ("apple", "pear"):
            Path("images", part, name).mkdir(parents=True)
            for number in range(2):
                picture().save(f"images/{part}/{name}/{number}.png")
    return Path("images")


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """The beginning of an image of this size, and not more of it."""

    chunk = b"IHDR" + struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def listing(images: Path) -> dict[str, tuple]:
    """What the listing shows to be wrong: how it is made so, and what is named."""
    apple = images / "train" / "apple"

    def link(name: str, target) -> None:
        (apple / name).symlink_to(target)

    def empty(part: str) -> None:
        for file in (images / part / "apple").iterdir():
            file.unlink()

    return {
        "dangling link": (lambda: link("5.jpg", "nowhere.jpg"), "train/apple/5.jpg"),
        "link to itself": (lambda: link("5.jpg", "5.jpg"), "train/apple/5.jpg"),
        "link to a device": (lambda: link("5.jpg", "/dev/zero"), "train/apple/5.jpg"),
        "pipe": (lambda: os.mkfifo(apple / "5.jpg"), "train/apple/5.jpg"),
        "circle": (lambda: link("more", "."), "train/apple/more"),
        "wide circle": (lambda: link("more", "../../train"), "train/apple/more"),
        "folder twice": (lambda: [(apple / "a").mkdir(), link("b", "a")], "train/apple/"),
        "empty class": (lambda: empty("train"), "train/apple"),
        "empty class for testing": (lambda: empty("val"), "val/apple"),
        "hidden folder": (lambda: (images / "train" / ".cache").mkdir(), ".cache"),
        "class for training only": (lambda: (images / "val" / "apple").rename("elsewhere"), "apple"),
        "class for testing only": (lambda: (images / "train" / "pear").rename("elsewhere"), "pear"),
        "no classes": (lambda: (images / "train").rename("elsewhere") and (images / "train").mkdir(), "train"),
        "class that is a link to nothing": (lambda: (images / "val" / "pear").rename("x"), "pear"),
    }


@pytest.mark.parametrize("name", listing(Path()))
def test_what_a_listing_shows_to_be_wrong_is_told_before_a_run(name, images, capsys, count):
    make, named = listing(images)[name]
    make()
    assert run_main(train, *IMAGENET) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    count("hostile files refused")


def test_folder_that_cannot_be_read_is_told_and_not_left_out(images, monkeypatch, capsys):
    """Root may read everything: the refusal of the operating system is played."""
    real = os.scandir

    def scandir(path):
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    (images / "train" / "apple" / "more").mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    assert run_main(train, *IMAGENET) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "train/apple/more" in line
    assert "Permission denied" in line


BROKEN = {
    "no image.jpg": lambda: b"text",
    "empty.jpg": lambda: b"",
    "page.jpg": lambda: b"<!DOCTYPE html>",
    "pickle.png": lambda: pickle.dumps(Calls(os.system, TOUCH)),
    "script.jpg": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "cut.jpg": lambda: encoded(picture(), "JPEG")[:-300],
    "cut.webp": lambda: encoded(picture(), "WEBP")[:-300],
    "cut.tiff": lambda: encoded(picture(), "TIFF", compression="tiff_lzw")[:-300],
    "long.png": lambda: encoded(picture(50_000, 1), "PNG"),
    "narrow.png": lambda: encoded(picture(1, 50_000), "PNG"),
    "bomb.png": lambda: png_header(2**31 - 1, 2**31 - 1),
    "large.png": lambda: png_header(20_000, 20_000),
    "float.tiff": lambda: encoded(Image.fromarray(np.ones((40, 40), dtype=np.float32)), "TIFF"),
    "new\nline.jpg": lambda: b"text",
    "esc\x1b[2Jape.jpg": lambda: b"text",
    "bytes\udcff\udcfe.jpg": lambda: b"text",
    "._hidden.jpg": lambda: b"text",
}


@pytest.mark.parametrize("augmentation", [True, False])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_image_ends_a_run_in_one_line_that_names_it(name, augmentation, images, capsys, count):
    (images / "train" / "pear" / name).write_bytes(BROKEN[name]())
    before = peak()
    with pytest.raises(data.ImageError) as error:
        list(data.load("imagenet", images, 8, workers=0, augmentation=augmentation).train)
    assert name in str(error.value)
    assert peak() - before < GIGABYTE
    assert not CANARY.exists()
    count("hostile files refused")


def test_broken_image_ends_a_run_whose_workers_stay_for_the_next_epoch(images):
    Path(images, "train", "apple", "broken.jpg").write_bytes(b"text")
    began = time.monotonic()
    finished = shell("train.py", *IMAGENET, "--epochs", 2, "--batch-size", 2, "--shuffle", "--workers", 2)
    assert finished.returncode == 1
    (line,) = finished.stderr.splitlines()
    assert "train/apple/broken.jpg cannot be read" in line
    assert time.monotonic() - began < 120  # it waited for them for ever


def test_long_path_of_temporary_files_does_not_stop_the_workers(images, tmp_path):
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    options = (*IMAGENET, "--epochs", 1, "--batch-size", 8, "--shuffle", "--workers", 1)
    finished = shell("train.py", *options, env={**os.environ, "TMPDIR": str(folder)})
    assert (finished.returncode, finished.stderr) == (0, "")


def test_missing_shared_memory_is_told_by_the_worker(images, monkeypatch):
    def none_left(tensor):
        raise RuntimeError("unable to allocate shared memory: No space left on device")

    monkeypatch.setattr(torch.Tensor, "share_memory_", none_left)  # which the workers, forked, have too
    with pytest.raises(data.ImageError, match=r"1 MiB of shared memory for a batch cannot be had .*--workers 0"):
        list(data.load("imagenet", images, 8, workers=1, shuffle=True).train)


def test_name_that_is_no_text_is_told_by_the_program_with_escapes(images, count):
    """In a process of its own: its streams take text only."""
    Path(images, "train", "apple", "a\n\x1b[2J\udcff.jpg").write_bytes(b"text")
    finished = shell("train.py", *IMAGENET, "--epochs", 1, "--batch-size", 8, "--shuffle")
    assert finished.returncode == 1
    (line,) = finished.stderr.splitlines()
    assert "train/apple/a \\x1b[2J\\udcff.jpg cannot be read" in line
    count("hostile files refused")


def animated() -> bytes:
    return encoded(picture(mode="P"), "PNG", save_all=True, append_images=[picture(mode="P")])


UNUSUAL = {
    "cmyk.jpg": lambda: encoded(picture(mode="CMYK"), "JPEG"),
    "grey.jpg": lambda: encoded(picture(mode="L"), "JPEG"),
    "palette.png": lambda: encoded(picture(mode="P"), "PNG"),
    "palette with a clear colour.png": lambda: encoded(picture(mode="P"), "PNG", transparency=b"\0\1"),
    "bits.png": lambda: encoded(picture(mode="1"), "PNG"),
    "clear.png": lambda: encoded(picture(mode="RGBA"), "PNG"),
    "animated.png": animated,
    "animated.webp": lambda: encoded(picture(), "WEBP", save_all=True, append_images=[picture()]),
    "tiny.png": lambda: encoded(picture(1, 1), "PNG"),
    "long.jpg": lambda: encoded(picture(2000, 5), "JPEG"),
    ".hidden.png": lambda: encoded(picture(), "PNG"),
    "other kind inside.png": lambda: encoded(picture(), "GIF"),
}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_unusual_images_are_read(images):
    for name, make in UNUSUAL.items():
        (images / "train" / "pear" / name).write_bytes(make())
    (images / "train" / "pear" / "deep" / "er").mkdir(parents=True)
    (images / "train" / "pear" / "deep" / "er" / "1.png").write_bytes(encoded(picture(), "PNG"))
    loader = data.load("imagenet", images, 50, workers=0, unnormalize=True).train
    ((batch, labels),) = list(loader)
    assert labels.tolist() == [0] * 2 + [1] * (2 + len(UNUSUAL) + 1)
    assert batch.flatten(1).std(1).gt(0).sum() >= len(labels) - 1  # all but the one of a single pixel


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_images_of_16_bits_a_pixel_keep_their_brightness(kind, images):
    pixels = np.random.RandomState(1).randint(2**16, size=(224, 224)).astype(np.uint16)
    Image.fromarray(pixels).save(images / "train" / "apple" / f"0.{kind}")
    loader = data.load("imagenet", images, 50, workers=0, unnormalize=True).train
    number = [Path(file).suffix == f".{kind}" for file in loader.preparation.files].index(True)
    if kind == "png":  # the transform of an image of 224x224 pixels enlarges it: the mean stays
        number = 0
    (batch, _) = next(iter(loader))
    assert batch[number].mean().item() == pytest.approx(pixels.mean() / 2**16, abs=0.02)
