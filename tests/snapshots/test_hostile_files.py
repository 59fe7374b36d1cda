"""Snapshots made to do harm run no code and fill no memory: they are refused in one line that names them."""

import functools
import io
import os
import pickle
import resource
import struct
import types
import warnings
import zipfile
from collections import Counter, OrderedDict, namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import REFERENCE, files_below, run_main, state_of_files, weights
from torch import nn

import compute_projections
import reinit_layers
import train
from utils import snapshots

LENET = ("--arch", "lenet", "--dataset", "fashion_mnist_mini")
INITIAL, STATE = REFERENCE / "lenet_init_0.pt", REFERENCE / "lenet_2.tar"
CANARY = Path("it_ran")
TOUCH = f"touch {CANARY}"
GIGABYTE = 2**30


class Calls:
    """An object that is pickled as a call of a function."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


class OwnDict(OrderedDict):
    pass


Pair = namedtuple("Pair", "a b")


def saved(content, new_format: bool = True) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of it is deprecated
        torch.save(content, file, _use_new_zipfile_serialization=new_format)
    return file.getvalue()


# ---- objects that run code, or that do not belong into a snapshot ----

OBJECTS = {
    "os.system": lambda: Calls(os.system, TOUCH),
    "eval": lambda: Calls(eval, f"open('{CANARY}', 'w')"),
    "touch": lambda: Calls(Path.touch, CANARY),
    "partial": lambda: functools.partial(os.system, TOUCH),
    "setstate": lambda: Calls(OwnDict, state={"__setstate__": TOUCH}),
    "torch.load": lambda: Calls(torch.load, "another.pt"),
    "numpy array": lambda: np.ones(3),
    "numpy scalar": lambda: np.float64(3),
    "module": lambda: nn.Linear(2, 2),
    "namedtuple": lambda: Pair(1, 2),
    "namespace": lambda: types.SimpleNamespace(a=1),
    "much memory": lambda: Calls(bytearray, 2 * GIGABYTE),
    "much memory in a tensor": lambda: Calls(torch.FloatTensor, GIGABYTE),
    "set": lambda: {1, 2},
    "bytes": lambda: b"bytes",
    "complex number": lambda: 1 + 2j,
    "path": lambda: Path("/etc/passwd"),
    "huge number": lambda: 10**600,
    "sparse": lambda: torch.eye(3).to_sparse(),
    "meta": lambda: torch.empty(2**40, device="meta"),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "nested tensor": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
}
HARMLESS = {"numpy array", "numpy scalar", "set", "bytes", "complex number", "path"}  #: beside the weights
SMALL = {"model_state_dict": {"features.0.weight": torch.ones(6, 1, 3, 3)}}  # the least that is a snapshot
NESTED = {
    "weight": lambda thing: {"model_state_dict": {"features.0.weight": thing}},
    "weights": lambda thing: {"model_state_dict": thing},
    "whole": lambda thing: thing,
    "config": lambda thing: {**SMALL, "config": {"seed": thing}},
    "optimizer": lambda thing: {**SMALL, "optimizer_state_dict": {"state": {0: {"momentum_buffer": thing}}}},
    "epoch": lambda thing: {**SMALL, "epoch": thing},
    "key": lambda thing: {**SMALL, thing: 1},
    "unknown": lambda thing: {**SMALL, "remark": [{"deep": (thing,)}]},
}

# ---- tensors that claim more than they have: offset, size, stride, of four numbers ----

TENSORS = {
    "offset beyond": (100, (2,), (1,)),
    "more numbers": (0, (5,), (1,)),
    "many numbers": (0, (2**40,), (1,)),
    "steps back": (3, (2,), (-1,)),
    "overlapping": (0, (2**30, 2**30), (0, 0)),
    "overflowing and empty": (0, (2**62, 2**62, 0), (0, 0, 0)),
    "huge numbers": (10**30, (10**30,), (10**30,)),
}


def tensor(offset, size, stride) -> Calls:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = torch.ones(4).storage()
    return Calls(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())


# ---- pickles written by hand ----


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


NAME = text("features.0.weight")
OUTSIDE = [text("storage"), b"ctorch\nFloatStorage\n", text("../../../etc/passwd"), text("cpu"), b"K\x04"]
PICKLES = {
    "GLOBAL": b"\x80\x02cos\nsystem\n" + text(TOUCH) + b"\x85R.",
    "INST": b"(S'" + TOUCH.encode() + b"'\nios\nsystem\n.",
    "STACK_GLOBAL": b"\x80\x04" + text("os") + text("system") + b"\x93" + text(TOUCH) + b"\x85R.",
    "EXT1": b"\x80\x02\x82\x01.",
    "BUILD of a dict": b"\x80\x02}" + text("a") + b"b.",
    "BUILD that covers items": b"\x80\x02ccollections\nOrderedDict\n)R}" + text("items") + b"K\x01sb.",
    "names with escapes": b"\x80\x02c\x1b[31mos\nsystem\x1b]0;title\x07\n)R.",
    "name of two lines": b"\x80\x02}" + text("features\n0\r.weight\x1b[2J") + b"K\x01s.",
    "persistent id of text": b"\x80\x02Pid\n.",
    "storage outside": b"\x80\x02(" + b"".join(OUTSIDE) + b"tQ.",
    "deep list": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "deep weights": b"\x80\x02}" + NAME + b"]" * 5_000 + b"a" * 4_999 + b"s.",
    "list in itself": b"\x80\x02]q\x00h\x00a.",
    "dict in itself": b"\x80\x02}q\x00" + NAME + b"h\x00s.",
    "endless text": b"\x80\x02X\xff\xff\xff\xff" + b"a" * 100,
    "no end": b"\x80\x02}",
    "high protocol": b"\x80\xffN.",
}


def zipped(records, compression=zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some names occur twice
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


# ---- archives that two readers would read differently ----


def overlapping() -> bytes:
    """An archive with a bias whose local header points to the content of another bias."""
    content = bytearray(INITIAL.read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        one, other = [record for record in archive.infolist() if record.file_size == 6 * 4]
    starts = [
        r.header_offset + 30 + sum(struct.unpack_from("<HH", content, r.header_offset + 26)) for r in (one, other)
    ]
    (extra,) = struct.unpack_from("<H", content, one.header_offset + 28)
    struct.pack_into("<H", content, one.header_offset + 28, extra + starts[1] - starts[0])
    return bytes(content)


@functools.cache
def archives() -> dict[str, bytes]:
    with zipfile.ZipFile(INITIAL) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    prefix = records[0][0].split("/")[0]
    pickled = f"{prefix}/data.pkl"
    hostile = PICKLES["GLOBAL"]
    return {
        "pickle twice": zipped([*records, (pickled, hostile)]),
        "hostile pickle first": zipped([(pickled, hostile), *records]),
        "pickle in capitals": zipped([*records, (f"{prefix}/DATA.PKL", hostile)]),
        "another root": zipped([*records, ("other/data.pkl", hostile)]),
        "compressed": zipped(records, zipfile.ZIP_DEFLATED),
        "bomb": zipped([("archive/data.pkl", bytes(2**28))], zipfile.ZIP_DEFLATED),
        "TorchScript": zipped(
            [*records, (f"{prefix}/constants.pkl", b"\x80\x02)."), (f"{prefix}/code/a.py", b"")]
        ),
        "no version": zipped([(n, c) for n, c in records if not n.endswith("/version")]),
        "no pickle": zipped([(n, c) for n, c in records if n != pickled]),
        "numbers twice": zipped([*records, (f"{prefix}/data/3", bytes(100))]),
        "overlapping": overlapping(),
        "no records": zipped([]),
    }


@functools.cache
def hostile_files() -> dict[str, bytes]:
    """Files that `snapshots.load` has to refuse, by what they are."""
    files = dict(archives())
    for name, make in OBJECTS.items():
        for place, nest in list(NESTED.items())[: 3 if name in HARMLESS else None]:
            for old in ("", ", old format"):
                try:
                    files[f"{name} as {place}{old}"] = saved(nest(make()), not old)
                except (TypeError, RuntimeError, AttributeError, NotImplementedError, pickle.PicklingError):
                    continue  # this cannot be written there
    for name, pickled in PICKLES.items():
        files[name], files[f"{name}, old format"] = in_zip(pickled), in_old_format(pickled)
    for name, claim in TENSORS.items():
        for old in ("", ", old format"):
            files[f"tensor: {name}{old}"] = saved({"features.0.weight": tensor(*claim)}, not old)
    return files


def peak() -> int:
    """The most memory that this process has used so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.filterwarnings("ignore")
def test_hostile_snapshots_are_refused(count, torture):
    files = hostile_files()
    before = peak()
    names = list(files) if torture else [*archives(), *list(files)[len(archives()) :: 5]]
    for name in names:
        Path("hostile.tar").write_bytes(files[name])
        for wanted in (None, lambda name: False):
            message = ""
            try:
                snapshots.load(Path("hostile.tar"), wanted)
            except snapshots.SnapshotError as error:
                message = str(error)
            except BaseException as error:
                raise AssertionError(name) from error
            assert not CANARY.exists(), name
            assert "hostile.tar" in message, name
            assert message.isprintable(), name
            assert len(message) < 500, name
    assert peak() - before < GIGABYTE
    count("hostile files refused", len(names))


def test_attributes_of_a_hostile_dict_are_ignored():
    """They would hide the methods of the dict, and what load_state_dict reads of it."""
    expected = weights(INITIAL)
    content = OrderedDict(expected)
    content.__dict__.update(values=1, keys=2, copy=3, _metadata={"": {"version": "x"}, "features": 3})
    torch.save(content, "lenet_init_0.pt")
    loaded = snapshots.load(Path("lenet_init_0.pt"))["model_state_dict"]
    assert loaded.keys() == expected.keys()
    assert all(loaded[name].equal(weight) for name, weight in expected.items())
    options = ("--subsample-classes", 10, "--evaluate", "--resume-from", "lenet_init_0.pt")
    assert run_main(train, *LENET, *options) == 0


# ---- by every option that the programs load from ----


def sample() -> dict[str, bytes]:
    names = ["os.system as weight", "os.system as weight, old format", "partial as config", "touch as key"]
    names += ["much memory as unknown", "deep list", "tensor: overlapping", "names with escapes", "bomb"]
    return {name: hostile_files()[name] for name in [*names, "hostile pickle first"]}


def commands(path: Path) -> dict[str, tuple]:
    """Command lines that read a snapshot, by the option that names it."""
    Path("inits.txt").write_text(f"{path}\n")
    return {
        "--resume-from": (train, *LENET, "--resume-from", path),
        "--resume-from to evaluate": (train, *LENET, "--resume-from", path, "--evaluate"),
        "--load-from": (compute_projections, *LENET, "--load-from", path),
        "--init-from": (compute_projections, *LENET, "--load-from", STATE, "--init-from", path),
        "reinit --load-from": (reinit_layers, *LENET, "--rand", "--load-from", path),
        "--inits-from": (reinit_layers, *LENET, "--load-from", STATE, "--inits-from", "inits.txt"),
        "--inits-from itself": (reinit_layers, *LENET, "--load-from", STATE, "--inits-from", path),
    }


def assert_one_line_names(path: Path, err: str) -> None:
    (line,) = err.splitlines()
    assert str(path) in line
    assert line.isprintable()


def test_hostile_snapshot_is_refused_by_every_program(capsys, count, torture):
    path = Path("hostile.tar")
    for number, (name, content) in enumerate(sample().items()):
        path.write_bytes(content)
        options = list(commands(path))
        for option in options if torture else [options[number % len(options)]]:
            before = state_of_files(Path())
            assert run_main(*commands(path)[option]) == 2, (name, option)
            assert_one_line_names(path, capsys.readouterr().err)
            assert state_of_files(Path()) | before == before, (name, option)
            assert not CANARY.exists()
            count("hostile files refused")


def test_hostile_snapshot_in_the_folder_of_a_run_is_skipped_or_refused(capsys, count, torture):
    """`latest` skips it; of several snapshots the others are measured."""
    options = (*LENET, "--subsample-classes", 2, "--seed", 1, "--epochs", 1, "--batch-size", 500)
    assert run_main(train, *options) == 0
    folder = Path("models/fashion_mnist_mini_2/lenet/1")
    for name, content in list(sample().items())[:: 1 if torture else 4]:
        (folder / "lenet_1.tar").write_bytes(content)
        capsys.readouterr()
        assert run_main(train, *options, "--resume-from", "latest", "--evaluate") == 0, name
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "no effect" not in line]
        assert line.startswith("warning: ")
        assert_one_line_names(folder / "lenet_1.tar", line)
        measured = (*LENET, "--subsample-classes", 2, "--load-from", folder)
        assert run_main(compute_projections, *measured) == 1, name
        assert_one_line_names(folder / "lenet_1.tar", capsys.readouterr().err)
        count("hostile files refused", 3)
    assert not CANARY.exists()


@pytest.mark.parametrize("name", ["os.system as weight", "os.system as weight, old format", "deep list", "bomb"])
def test_hostile_weights_of_the_model_zoo_are_refused(name, capsys, monkeypatch, count):
    monkeypatch.setenv("TORCH_HOME", "torch_home")
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    path = Path("torch_home/hub/checkpoints/resnet18-f37072fd.pth")
    path.parent.mkdir(parents=True)
    path.write_bytes(sample()[name])
    before, files = peak(), files_below(Path())
    options = ("--arch", "resnet18", "--dataset", "fashion_mnist_mini", "--pretrained")
    for command in ((compute_projections, *options), (train, *options, "--upscale")):
        assert run_main(*command) == 2
        assert_one_line_names(path, capsys.readouterr().err)
        count("hostile files refused")
    assert files_below(Path()) == files
    assert not CANARY.exists()
    assert peak() - before < GIGABYTE


# ---- values that no program writes ----


def laughs(levels: int = 20) -> list:
    """Lists of ten references to one another: 10^levels numbers in a few hundred bytes."""
    value = [1]
    for _ in range(levels):
        value = [value] * 10
    return value


VALUES = {
    "huge epoch": {"epoch": 10**30},
    "NaN": {"config": {"lr": float("nan")}},
    "infinite noise": {"config": {"noise": float("-inf")}},
    "huge seed": {"config": {"seed": 10**5000}},
    "laughs": {"config": {"seed": laughs(12)}},
    "more laughs": {"remark": laughs()},
    "tensor for a number": {"config": {"seed": torch.ones(3)}},
    "no images in a batch": {"config": {"batch_size": 0}},
    "tensor in the provenance": {"provenance": {"torch": torch.ones(3)}},
    "name that is a tensor": {"class_names": [torch.ones(3)]},
    "counted names": {"class_names": Counter("abc")},
    "name with escapes": {"class_names": ["\x1b[31mred\x07\n\r\u202e"] * 10},
    "architecture with escapes": {"config": {"arch": "lenet\x1b]0;title\x07\n2", "dataset": 1}},
    "text that cannot be encoded": {"config": {"arch": "lenet\udcff"}},
    "lr of text": {"optimizer_state_dict": {"state": {}, "param_groups": [{"lr": "x", "weight_decay": 0}]}},
    "number for a weight": {"model_state_dict": {"features.0.weight": 1.0}},
    "names that are numbers": {"model_state_dict": {0: torch.ones(3)}},
    "no weights": {"model_state_dict": {}},
    "escapes in a weight's name": {"model_state_dict": {"a\n\x1b[2Jb": torch.ones(3)}},
    "complex weights": {"model_state_dict": {"features.0.weight": torch.ones(6, 1, 3, 3) + 1j}},
    "NaN for a weight": {
        "model_state_dict": {**weights(INITIAL), "features.0.weight": torch.full((6, 1, 3, 3), np.nan)}
    },
}


@pytest.mark.parametrize("name", VALUES)
def test_values_that_no_program_writes_are_harmless_or_end_in_one_line(name, capsys, count, torture):
    path = Path("lenet_2.tar")
    path.write_bytes(saved({**torch.load(STATE, weights_only=True), **VALUES[name]}))
    refused, lines = 0, commands(path)
    for option in lines if torture else ["--resume-from to evaluate", "--load-from"]:
        before = state_of_files(Path())
        status = run_main(*lines[option])
        said = capsys.readouterr().err
        errors = [line for line in said.splitlines() if "warning" not in line]
        assert all(line.isprintable() for line in said.splitlines())
        assert len(errors) == bool(status), said
        if status != 0:
            refused += 1
            assert state_of_files(Path()) | before == before
            assert len(errors[0]) < 20_000
    count("hostile files refused", refused)


@pytest.mark.parametrize(
    "change",
    [
        lambda optimizer: optimizer["param_groups"][0].update(nesterov="yes"),
        lambda optimizer: optimizer["state"][0].update(momentum_buffer="x"),
        lambda optimizer: optimizer["param_groups"][0].update(params=["x"]),
    ],
    ids=["flag", "buffer", "parameters"],
)
def test_impossible_optimizer_state_is_refused_before_training(change, capsys, count):
    content = torch.load(STATE, weights_only=True)
    change(content["optimizer_state_dict"])
    torch.save(content, "lenet_2.tar")
    assert run_main(train, *LENET, "--epochs", 4, "--resume-from", "lenet_2.tar") == 2
    assert_one_line_names(Path("lenet_2.tar"), capsys.readouterr().err)
    count("hostile files refused")


# ---- lists of initializations ----


@pytest.mark.parametrize(
    "kind",
    ["binary", "folder", "itself", "long line", "device", "in it a pipe"],
)
def test_hostile_list_of_initializations_is_refused(kind, capsys, count):
    path = Path("list.txt")
    os.mkfifo("pipe")
    content = {
        "binary": bytes(range(256)),
        "itself": b"list.txt\n",
        "long line": b"x" * 10**7,
        "in it a pipe": b"pipe\n",
    }
    if kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(content[kind])
    options = (*LENET, "--load-from", STATE, "--inits-from", path)
    assert run_main(reinit_layers, *options) == 2
    said = capsys.readouterr().err
    assert_one_line_names(path, said)
    assert len(said) < 1000
    count("hostile files refused")
