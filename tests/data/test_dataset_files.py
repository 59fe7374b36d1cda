"""Files of MNIST, Fashion-MNIST and CIFAR: they are read exactly, and damaged or missing files are refused."""

import gzip
import hashlib
import io
import pickle
import random
import shutil
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torchvision
from damage import mutate
from sample_datasets import load, load_mini, mini_arrays, pixels, whole, write_cifar, write_idx, write_mnist

import data
from data import cifar, idx


def holds(dataset, parts):
    """Check that a dataset loaded with `unnormalize` holds the arrays (images, labels) of both parts."""
    for loader, (images, labels) in zip((dataset.train, dataset.test), parts, strict=True):
        found, found_labels = pixels(loader)
        assert found.shape == images.shape
        assert (found == images).all()
        assert (found_labels == labels).all()


def test_dataset_in_the_repository_is_read_exactly():
    dataset = load_mini(unnormalize=True)
    assert (dataset.num_classes, dataset.in_channels, dataset.image_size) == (10, 1, (28, 28))
    assert dataset.class_names[0] == "T-shirt/top"
    assert dataset.val is None
    assert dataset.notes == []
    parts = [mini_arrays(part) for part in ("train", "t10k")]
    holds(dataset, [(images[:, None], labels) for images, labels in parts])
    assert [len(labels) for _, labels in parts] == [dataset.train.num_images, 1000]


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
@pytest.mark.parametrize("gzipped", ["", "*", "*labels*"])
def test_idx_files_are_read_exactly(tmp_path, name, folder, gzipped):
    parts = write_mnist(tmp_path, folder)
    for path in list((tmp_path / folder / "raw").glob(gzipped)) if gzipped else []:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    dataset = load(name, tmp_path, 16, unnormalize=True)
    holds(dataset, parts)
    assert (dataset.class_names == load_mini().class_names) == (name == "fashion_mnist")


def pack(root: Path, folder: str, archive: str) -> None:
    """Replace a folder by the archive that holds it."""
    with tarfile.open(root / archive, "w:gz") as tar:
        tar.add(root / folder, folder)
    shutil.rmtree(root / folder)


@pytest.mark.parametrize("packed", [False, True])
def test_binary_files_of_cifar_are_read_exactly(tmp_path, packed):
    parts = write_cifar(tmp_path), write_cifar(tmp_path, classes=100, n=20)
    if packed:
        pack(tmp_path, "cifar-10-batches-bin", "cifar-10-binary.tar.gz")
        pack(tmp_path, "cifar-100-binary", "cifar-100-binary.tar.gz")
    cifar10, cifar100 = (load(f"cifar{classes}", tmp_path, 16, unnormalize=True) for classes in (10, 100))
    holds(cifar10, parts[0])
    holds(cifar100, parts[1])
    assert cifar10.class_names == "airplane automobile bird cat deer dog frog horse ship truck".split()
    assert cifar100.num_classes == 100
    assert cifar100.class_names[::33] == ["apple", "forest", "raccoon", "worm"]
    assert cifar100.class_names == sorted(set(cifar100.class_names))


def with_first_label_10(content, position):
    return content[:position] + b"\x0a" + content[position + 1 :]


DAMAGES = {
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "truncated": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "gzipped": gzip.compress,
    "no images": lambda content: b"\0\0\x08\x03" + struct.pack(">3I", 0, 28, 28),
    "label 10": lambda content: with_first_label_10(content, 8 if len(content) < 3073 else 0),
}


@pytest.mark.parametrize(
    ("name", "damage", "file"),
    [
        *(("mnist", damage, "t10k-labels-idx1-ubyte") for damage in DAMAGES),
        *(("cifar10", damage, "data_batch_3.bin") for damage in DAMAGES),
        *(("mnist", damage, "train-images-idx3-ubyte") for damage in ("missing", "truncated", "no images")),
    ],
)
def test_damaged_or_missing_file_is_an_error_that_names_it(tmp_path, name, damage, file):
    write = {"mnist": write_mnist, "cifar10": write_cifar}[name]
    write(tmp_path)
    (path,) = tmp_path.rglob(file)
    content = DAMAGES[damage](path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(data.DataError) as error:
        load(name, tmp_path, 10)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("classes", "packed"), [(10, False), (10, True), (100, True)])
def test_pickled_files_of_cifar_hold_the_same_as_the_binary_ones(tmp_path, monkeypatch, classes, packed):
    """The published checksums are made to fit."""
    parts = write_cifar(tmp_path / "binary", classes)
    published = getattr(torchvision.datasets, f"CIFAR{classes}")
    folder = tmp_path / "pickled" / published.base_folder
    folder.mkdir(parents=True)
    key = "labels" if classes == 10 else "fine_labels"
    for kind, (images, labels) in zip(("train_list", "test_list"), parts, strict=True):
        files = [name for name, _ in getattr(published, kind)]
        shares = np.split(images, len(files)), np.split(labels, len(files))
        for file, image, label in zip(files, *shares, strict=True):
            rows = {"data": image.reshape(len(image), -1), key: label.tolist()}
            (folder / file).write_bytes(pickle.dumps(rows, protocol=2))
        sums = [[file, hashlib.md5((folder / file).read_bytes()).hexdigest()] for file in files]
        monkeypatch.setattr(published, kind, sums)
    meta = pickle.dumps({published.meta["key"]: ["a"] * classes})
    (folder / published.meta["filename"]).write_bytes(meta)
    monkeypatch.setitem(published.meta, "md5", hashlib.md5(meta).hexdigest())
    if packed:
        pack(tmp_path / "pickled", folder.name, published.filename)
        archived = (tmp_path / "pickled" / published.filename).read_bytes()
        monkeypatch.setattr(published, "tgz_md5", hashlib.md5(archived).hexdigest())
    binary, pickled = (load(f"cifar{classes}", tmp_path / version, 16) for version in ("binary", "pickled"))
    assert pickled.class_names == binary.class_names
    for part in ("train", "test"):
        for ours, theirs in zip(whole(getattr(pickled, part)), whole(getattr(binary, part)), strict=True):
            assert ours.equal(theirs)
    *intact, (last, _) = published.train_list
    monkeypatch.setattr(published, "train_list", [*intact, [last, "0" * 32]])
    with pytest.raises(data.DataError, match=f"{folder} is damaged"):
        load(f"cifar{classes}", tmp_path / "pickled", 16)


def archive(*members: tuple[str, dict, bytes]) -> bytes:
    """Return an archive of members: name, what its header says differently, content."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, header, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in header.items():
                setattr(info, key, value)
            file.write(info.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % 512))
            tar.offset = file.tell()
    return gzip.compress(file.getvalue(), 1)


BATCH = "cifar-10-batches-bin/data_batch_1.bin"
WRONG_ARCHIVES = {
    "empty": b"",
    "no archive": b"<html>Not Found</html>",
    "gzipped text": gzip.compress(b"no archive, but text" * 100),
    "without the folder": archive(("data_batch_1.bin", {}, bytes(3073))),
    "folder in place of a file": archive((BATCH, {"type": tarfile.DIRTYPE}, b"")),
    "link to itself": archive((BATCH, {"type": tarfile.SYMTYPE, "linkname": "data_batch_1.bin"}, b"")),
    "link to another file": archive((BATCH, {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, b"")),
    "size beyond the end": archive((BATCH, {"size": 2**40}, bytes(3073))),
    "half of a record": archive(*((f"{BATCH[:-5]}{number}.bin", {}, bytes(1000)) for number in range(1, 6))),
    "bomb": archive(("large", {"size": 2**24}, bytes(2**24)), (BATCH, {}, bytes(3073))),
}


@pytest.mark.parametrize("wrong", [*WRONG_ARCHIVES, "truncated"])
def test_wrong_archive_is_refused_in_one_line_that_names_it(tmp_path, wrong, monkeypatch):
    monkeypatch.setattr(cifar, "LARGEST_ARCHIVE_BYTES", 2**20)
    path = tmp_path / "cifar-10-binary.tar.gz"
    if wrong == "truncated":
        write_cifar(tmp_path)
        pack(tmp_path, "cifar-10-batches-bin", path.name)
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        path.write_bytes(WRONG_ARCHIVES[wrong])
    with pytest.raises(data.DataError) as error:
        load("cifar10", tmp_path, 16)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert [file.name for file in tmp_path.rglob("*")] == [path.name]


def test_missing_dataset_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "MNIST", lambda root, download: write_mnist(Path(root)))
    root = tmp_path / "new" / "datasets"
    assert load("mnist", root, 10).train.num_images == 40
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert [path.name for path in root.iterdir()] == ["MNIST"]


@pytest.mark.parametrize(
    "error", [RuntimeError("Error downloading\nmore"), OSError(28, "No space left on device")]
)
def test_failed_download_leaves_nothing_and_is_an_error_that_names_the_folder(tmp_path, monkeypatch, error):
    def download(root, download):
        write_idx(Path(root) / "MNIST" / "raw" / "train-images-idx3-ubyte", np.zeros((3, 28, 28)))
        raise error

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    with pytest.raises(data.DataError) as raised:
        load("mnist", tmp_path / "datasets", 10)
    assert str(tmp_path / "datasets") in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_damaged_file_of_the_bundled_dataset_is_refused_or_read_exactly(monkeypatch, torture, count):
    """Its files are gzipped and have a checksum, so that damage to pixels is noticed too."""
    original = [idx.read_mini(Path(), train)[0] for train in (True, False)]
    shutil.copytree(idx.MINI, "mini")
    monkeypatch.setattr(idx, "MINI", Path("mini"))
    files = sorted(Path("mini").glob("*.gz"))
    refused = 0
    for seed in range(300 if torture else 20):
        chance = random.Random(f"mini {seed}")
        file, other = chance.sample(files, 2)
        content = file.read_bytes()
        file.write_bytes(mutate(chance, content, other.read_bytes()))
        where, message = f"{file.name}, seed {seed}", None
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
