"""The checksum of a snapshot's tensors, by which a record of the run lists its files."""

import time
import zipfile
from pathlib import Path

import pytest
import torch
from programs import REFERENCE, files_below, weights

from utils import snapshots

INITIAL = REFERENCE / "lenet_init_0.pt"


def test_same_weights_saved_again_have_the_same_checksum():
    one, other = Path("one.pt"), Path("other.pt")
    snapshots.save(weights(INITIAL), one)
    snapshots.save({name: weight.clone() for name, weight in weights(INITIAL).items()}, other)
    assert snapshots.checksum(one) == snapshots.checksum(other)
    assert len(snapshots.checksum(one)) == 16


@pytest.mark.parametrize("change", ["one bit", "one number more", "two tensors swapped", "one tensor less"])
def test_other_weights_have_another_checksum(change):
    changed = {name: weight.clone() for name, weight in weights(INITIAL).items()}
    if change == "one bit":
        changed["features.2.weight"].view(torch.int32).view(-1)[7] ^= 1
    elif change == "one number more":
        changed["features.0.bias"] = torch.zeros(len(changed["features.0.bias"]) + 1)
    elif change == "two tensors swapped":
        names = list(changed)
        changed = dict(zip(names, [changed[name] for name in (names[1], names[0], *names[2:])], strict=True))
    else:
        changed.popitem()
    snapshots.save(weights(INITIAL), Path("one.pt"))
    snapshots.save(changed, Path("other.pt"))
    assert snapshots.checksum(Path("one.pt")) != snapshots.checksum(Path("other.pt"))


def test_checksum_reads_no_tensor():
    with open("large.pt", "wb") as file:
        torch.save({"weight": torch.zeros(2**28, dtype=torch.uint8)}, file)
    began = time.process_time()
    checksum = snapshots.checksum(Path("large.pt"))
    assert time.process_time() - began < 0.05
    with open("large.pt", "r+b") as file:  # damage to a number does not change it: `load` reports that
        file.seek(2**27)
        file.write(b"damage")
    assert snapshots.checksum(Path("large.pt")) == checksum


def test_old_file_has_no_checksum():
    torch.save(weights(INITIAL), "old.pt", _use_new_zipfile_serialization=False)
    assert snapshots.checksum(Path("old.pt")) is None


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "empty", "truncated"])
def test_checksum_of_a_file_without_a_directory_is_an_error(kind):
    path = Path("lenet_3.pt")
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        content = INITIAL.read_bytes()
        path.write_bytes({"text": b"all is well", "empty": b"", "truncated": content[: len(content) // 2]}[kind])
    with pytest.raises(snapshots.SnapshotError, match="lenet_3"):
        snapshots.checksum(path)


def test_save_tells_the_checksum_before_the_file_appears():
    path, told = Path("lenet_3.pt"), []

    def before(checksum):
        assert not path.exists()
        told.append(checksum)

    snapshots.save(weights(INITIAL), path, before)
    assert told == [snapshots.checksum(path)]
    with zipfile.ZipFile(path) as archive:  # the file is whole: all its checksums are right
        assert archive.testzip() is None


def test_file_does_not_appear_if_its_checksum_cannot_be_recorded():
    def before(checksum):
        raise OSError(28, "No space left on device", "run.json")

    with pytest.raises(OSError, match="run"):
        snapshots.save(weights(INITIAL), Path("lenet_3.pt"), before)
    assert files_below(Path()) == set()
