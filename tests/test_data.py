"""Datasets and their batches, against independent implementations in NumPy, PIL and torchvision."""

import gzip
import hashlib
import io
import os
import pickle
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2

import data
from data import transforms
from data.idx import read_idx

MINI = Path(data.__file__).parent / "fashion_mnist_mini"
FORMATS = (torch.contiguous_format, torch.channels_last)


def mini_arrays(part="train"):
    """The shipped images and labels, read without the code under test."""
    images = gzip.decompress((MINI / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((MINI / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    images = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    return images, np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)


def load_mini(batch_size=500, **options):
    return data.load("fashion_mnist_mini", "no such folder", batch_size, **options)


def whole(loader):
    """An epoch: all images and labels, one after another."""
    batches = list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def pixels(loader):
    """An epoch of images with `unnormalize`, as integers 0 to 255 (n, C, H, W), and labels."""
    images, labels = whole(loader)
    values = images.double().numpy() * 255
    rounded = np.rint(values)
    assert np.abs(values - rounded).max() < 1e-3
    return rounded.astype(np.uint8), labels.numpy()


def one_line(error) -> str:
    message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


def write_idx(file, array):
    array = np.asarray(array, dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(
        b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    )


def write_mnist(root, folder="MNIST", n=40, seed=0, labels=None):
    """Files of the layout that torchvision leaves; returns what is in them by part."""
    random, content = np.random.default_rng(seed), {}
    for part, count in (("train", n), ("t10k", 10)):
        images = random.integers(256, size=(count, 28, 28), dtype=np.uint8)
        own = np.arange(count) * 7 % 10 if labels is None or part == "t10k" else np.asarray(labels)
        write_idx(root / folder / "raw" / f"{part}-images-idx3-ubyte", images)
        write_idx(root / folder / "raw" / f"{part}-labels-idx1-ubyte", own)
        content[part] = images, own
    return content


def write_cifar10(root, n=8, seed=0):
    """The official binary version in small: n images a file; returns (images, labels) of both parts."""
    random, folder = np.random.default_rng(seed), root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    parts = []
    for files in ([f"data_batch_{number}.bin" for number in range(1, 6)], ["test_batch.bin"]):
        images = random.integers(256, size=(len(files) * n, 3, 32, 32), dtype=np.uint8)
        labels = random.integers(10, size=len(files) * n)
        for number, file in enumerate(files):
            here = range(number * n, number * n + n)
            (folder / file).write_bytes(b"".join(bytes([labels[i]]) + images[i].tobytes() for i in here))
        parts.append((images, labels))
    return parts


def write_cifar100(root, n=20, seed=0):
    random, folder = np.random.default_rng(seed), root / "cifar-100-binary"
    folder.mkdir(parents=True)
    parts = []
    for file in ("train.bin", "test.bin"):
        images = random.integers(256, size=(n, 3, 32, 32), dtype=np.uint8)
        labels = random.integers(100, size=n)
        content = b"".join(
            bytes([label % 20, label]) + image.tobytes() for image, label in zip(images, labels, strict=True)
        )
        (folder / file).write_bytes(content)
        parts.append((images, labels))
    return parts


def write_images(root, counts=(4, 3, 5), size=(40, 36), suffix=".png", seed=0):
    """A folder of images, one subfolder a class; returns the paths of the training images in order."""
    random, paths = np.random.default_rng(seed), []
    for part in ("train", "val"):
        for label, count in enumerate(counts):
            folder = root / part / f"n{label:03}"
            folder.mkdir(parents=True)
            for number in range(count):
                colours = random.integers(256, size=(5, 6, 3), dtype=np.uint8)
                path = folder / f"{number:03}{suffix}"
                Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(path)
                if part == "train":
                    paths.append(path)
    return paths


# What there is


def test_the_six_datasets_are_there():
    names = {"mnist", "fashion_mnist", "cifar10", "cifar100", "imagenet", "fashion_mnist_mini"}
    assert set(data.names()) >= names  # and what users have added


def test_what_is_known_of_a_dataset_before_it_is_read():
    expected = {
        "mnist": (10, 1, (28, 28)),
        "fashion_mnist": (10, 1, (28, 28)),
        "fashion_mnist_mini": (10, 1, (28, 28)),
        "cifar10": (10, 3, (32, 32)),
        "cifar100": (100, 3, (32, 32)),
        "imagenet": (1000, 3, (224, 224)),
    }
    for name, known in expected.items():
        spec = data.info(name)
        assert (spec.num_classes, spec.in_channels, spec.image_size) == known


def test_unknown_dataset_is_an_error_that_names_it_and_what_there_is():
    with pytest.raises(data.DataError) as error:
        data.load("mnits", ".", 10)
    message = one_line(error)
    assert "mnits" in message
    assert all(name in message for name in data.names())


def test_shipped_dataset_is_what_its_files_hold():
    dataset = load_mini(unnormalize=True)
    assert (dataset.num_classes, dataset.in_channels, dataset.image_size) == (10, 1, (28, 28))
    assert dataset.class_names[0] == "T-shirt/top"
    assert dataset.val is None
    for loader, part in ((dataset.train, "train"), (dataset.test, "t10k")):
        images, labels = mini_arrays(part)
        found, found_labels = pixels(loader)
        assert found.shape == (len(images), 1, 28, 28)
        assert (found[:, 0] == images).all()
        assert (found_labels == labels).all()
    assert len(mini_arrays()[0]) >= 2000
    assert len(mini_arrays("t10k")[0]) == 1000


def test_batches_have_a_length_and_the_last_one_holds_the_rest():
    loader = load_mini(batch_size=300).test
    sizes = [len(images) for images, _ in loader]
    assert sizes == [300, 300, 300, 100]
    assert len(loader) == 4
    assert loader.num_images == 1000
    assert load_mini(batch_size=500).test.__len__() == 2


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("options", [{}, {"augmentation": True}, {"noise": -1, "noise_seed": 1}])
def test_batches_have_the_layout_and_types_asked_for(memory_format, options):
    images, labels = next(iter(load_mini(memory_format=memory_format, **options).train))
    assert images.is_contiguous(memory_format=memory_format)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64


# Normalization

CONSTANTS = {
    ("mnist", None): ((0.1307,), (0.3015,)),
    ("mnist", "upscale"): ((0.1307,), (0.2895,)),
    ("mnist", "upscale_padding"): ((0.0327,), (0.1553,)),
    ("fashion_mnist", None): ((0.2860,), (0.3530,)),
    ("fashion_mnist", "upscale"): ((0.2860,), (0.3392,)),
    ("fashion_mnist", "upscale_padding"): ((0.0711,), (0.2095,)),
    ("cifar10", None): ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ("cifar10", "upscale"): ((0.4914, 0.4822, 0.4465), (0.1953, 0.1925, 0.1942)),
    ("cifar10", "upscale_padding"): ((0.1229, 0.1206, 0.1117), (0.2367, 0.2323, 0.2190)),
    ("cifar100", None): ((0.5071, 0.4865, 0.4409), (0.2009, 0.1984, 0.2023)),
    ("cifar100", "upscale"): ((0.5071, 0.4865, 0.4409), (0.1942, 0.1918, 0.1958)),
    ("cifar100", "upscale_padding"): ((0.1268, 0.1217, 0.1103), (0.2435, 0.2343, 0.2177)),
}
WRITERS = {
    "mnist": write_mnist,
    "fashion_mnist": lambda root: write_mnist(root, "FashionMNIST"),
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
}


@pytest.mark.parametrize(("name", "upscaling"), CONSTANTS)
def test_normalization_uses_the_constants_of_the_design(tmp_path, name, upscaling):
    WRITERS[name](tmp_path)
    options = {} if upscaling is None else {upscaling: True}
    raw, _ = next(iter(data.load(name, tmp_path, 3, unnormalize=True, **options).train))
    ours, _ = next(iter(data.load(name, tmp_path, 3, **options).train))
    assert 0 <= raw.min() < 0.1
    assert 0.9 < raw.max() <= 1
    mean, std = (torch.tensor(values)[:, None, None] for values in CONSTANTS[name, upscaling])
    torch.testing.assert_close(ours, (raw - mean) / std)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
def test_normalization_is_torchvisions_bit_for_bit(tmp_path, name, memory_format):
    written = WRITERS[name](tmp_path)
    grey = name == "fashion_mnist"
    arrays = written["train"][0][:, :, :, None] if grey else written[0][0].transpose(0, 2, 3, 1)
    theirs = torchvision.transforms.Compose(
        [torchvision.transforms.ToTensor(), torchvision.transforms.Normalize(*CONSTANTS[name, None])]
    )
    expected = torch.stack([theirs(np.ascontiguousarray(image)) for image in arrays])
    ours, _ = whole(data.load(name, tmp_path, 7, memory_format=memory_format).train)
    assert ours.equal(expected)


@pytest.mark.parametrize("options", [{}, {"upscale": True}, {"upscale_padding": True}])
def test_normalized_training_images_are_about_standard(options):
    count, total, squares = 0, 0.0, 0.0
    for images, _ in list(load_mini(batch_size=100, shuffle=True, seed=1, **options).train)[:10]:
        images = images.double()
        count, total, squares = count + images.numel(), total + images.sum(), squares + images.square().sum()
    mean = total / count
    assert abs(mean) < 0.03
    assert (squares / count - mean**2).sqrt().item() == pytest.approx(1, abs=0.03)


# Upscaling


def test_upscaling_is_bilinear_as_pil_does_it():
    images, _ = mini_arrays()
    for side, padding, option in ((224, 0, "upscale"), (112, 56, "upscale_padding")):
        dataset = load_mini(batch_size=20, unnormalize=True, **{option: True})
        assert dataset.image_size == (224, 224)
        ours = next(iter(dataset.train))[0].numpy()[:, 0] * 255
        assert ours.shape == (20, 224, 224)
        for image, found in zip(images[:20], ours, strict=True):
            expected = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
            # PIL rounds to whole grey values, after the rows and after the columns.
            difference = np.pad(np.asarray(expected, float), padding) - found
            assert np.abs(difference).max() <= 1.01
            assert np.abs(difference).mean() < 0.3


def test_upscaling_is_torchvisions_on_floats(tmp_path):
    parts = write_cifar10(tmp_path)
    expected = v2.functional.resize(torch.tensor(parts[0][0][:8]).float() / 255, [224, 224], antialias=False)
    ours, _ = next(iter(data.load("cifar10", tmp_path, 8, unnormalize=True, upscale=True).train))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_both_upscalings_exclude_each_other():
    with pytest.raises(data.DataError, match=r"--upscale .*--upscale-padding"):
        load_mini(upscale=True, upscale_padding=True)


# Augmentation


def crops_of(image, flip):
    """All results that augmentation can have for one image (C, H, W), by crop corner and mirroring."""
    height, width = image.shape[1:]
    padded = np.zeros((len(image), height + 8, width + 8), dtype=image.dtype)
    padded[:, 4 : 4 + height, 4 : 4 + width] = image
    for row in range(9):
        for column in range(9):
            cut = padded[:, row : row + height, column : column + width]
            for mirrored in (False, True) if flip else (False,):
                yield (row, column, mirrored), cut[:, :, ::-1] if mirrored else cut


def found_crop(image, augmented, flip):
    return next(key for key, candidate in crops_of(image, flip) if (candidate == augmented).all())


@pytest.mark.parametrize("mirror", [transforms.mirror, transforms.mirror_by_choice, transforms.mirror_by_index])
def test_crop_and_mirror_are_what_numpy_says(mirror):
    random = np.random.default_rng(0)
    images = random.integers(256, size=(90, 3, 9, 7), dtype=np.uint8)
    corners = np.array([(row, column) for row in range(9) for column in range(9)] + [(0, 8)] * 9)
    mirrored = random.random(90) < 0.5
    for source in (torch.tensor(images), torch.tensor(images).float()):
        ours = mirror(transforms.crop(source, torch.tensor(corners)), torch.tensor(mirrored))
        assert ours.dtype == source.dtype
        for i in range(90):
            expected = dict(crops_of(images[i], True))[(*corners[i], mirrored[i])]
            assert (ours[i].numpy() == expected).all()


def test_augmented_training_images_are_crops_at_all_offsets_and_grey_ones_are_never_mirrored():
    images, labels = mini_arrays()
    found, found_labels = pixels(load_mini(unnormalize=True, augmentation=True, seed=3).train)
    assert (found_labels == labels).all()
    offsets = [found_crop(images[i : i + 1], found[i], flip=False)[:2] for i in range(400)]
    for axis in (0, 1):
        counts = np.bincount([offset[axis] for offset in offsets], minlength=9)
        assert counts.min() > 400 / 9 / 2
    assert np.abs(np.corrcoef(np.array(offsets).T)[0, 1]) < 0.25


def test_augmented_colour_images_are_crops_and_half_are_mirrored(tmp_path):
    parts = write_cifar10(tmp_path, n=40)
    loader = data.load("cifar10", tmp_path, 64, unnormalize=True, augmentation=True, seed=3).train
    found, labels = pixels(loader)
    assert (labels == parts[0][1]).all()
    keys = [found_crop(image, augmented, flip=True) for image, augmented in zip(parts[0][0], found, strict=True)]
    assert 70 < sum(mirrored for _, _, mirrored in keys) < 130  # of 200; five standard deviations
    assert {row for row, _, _ in keys} == {column for _, column, _ in keys} == set(range(9))


def test_only_training_images_are_augmented():
    options = {"unnormalize": True, "split": 0.1}
    augmented, plain = load_mini(augmentation=True, **options), load_mini(**options)
    assert not whole(augmented.train)[0].equal(whole(plain.train)[0])
    for part in ("val", "test"):
        assert whole(getattr(augmented, part))[0].equal(whole(getattr(plain, part))[0])
    assert (pixels(augmented.train.as_is())[0] == pixels(plain.train.as_is())[0]).all()


def test_upscaled_images_are_augmented_after_upscaling():
    plain = next(iter(load_mini(batch_size=6, upscale=True, unnormalize=True).train))[0].numpy()
    augmented = next(iter(load_mini(batch_size=6, upscale=True, unnormalize=True, augmentation=True).train))[0]
    for image, found in zip(plain, augmented.numpy(), strict=True):
        found_crop(image, found, flip=False)


# Order


def test_without_shuffle_and_split_training_is_in_file_order():
    _, labels = mini_arrays()
    loader = load_mini(seed=4).train
    for _ in range(2):
        assert (whole(loader)[1].numpy() == labels).all()


@pytest.mark.parametrize("options", [{"shuffle": True}, {"split": 0.1}, {"split": 0.1, "shuffle": True}])
def test_with_shuffle_or_split_each_epoch_has_a_new_order(options):
    """The same images with their labels in each of them."""
    loader = load_mini(unnormalize=True, split_seed=1, **options).train
    images, labels = mini_arrays()
    true_label = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    epochs = [[image.tobytes() for image in pixels(loader)[0]] for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    found, found_labels = pixels(loader)
    assert all(true_label[image.tobytes()] == label for image, label in zip(found, found_labels, strict=True))
    inner = [list(true_label).index(image) for image in epochs[0][:50]]
    assert inner != sorted(inner)


@pytest.mark.parametrize("options", [{"shuffle": True}, {"shuffle": True, "augmentation": True}])
def test_an_epoch_follows_from_seed_and_epoch_alone(options):
    first, again, other = (load_mini(seed=seed, **options).train for seed in (7, 7, 8))
    epochs = [whole(first) for _ in range(3)]
    again.epoch = 2
    for ours, theirs in zip(whole(again), epochs[2], strict=True):
        assert ours.equal(theirs)
    assert again.epoch == first.epoch == 3
    assert not whole(other)[0].equal(epochs[0][0])
    assert not epochs[0][0].equal(epochs[1][0])
    larger_batches = load_mini(batch_size=900, seed=7, **options).train
    assert whole(larger_batches)[0].equal(epochs[0][0])


def test_augmentation_differs_between_epochs_and_images():
    loader = load_mini(unnormalize=True, augmentation=True).train
    (first, _), (second, _) = pixels(loader), pixels(loader)
    images, _ = mini_arrays()
    keys = [[found_crop(images[i : i + 1], epoch[i], False) for i in range(30)] for epoch in (first, second)]
    assert keys[0] != keys[1]
    assert len(set(keys[0])) > 10


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": True, "augmentation": True},
        {"noise": -1, "noise_seed": 1},
        {"noise": -1, "noise_seed": 1, "upscale_padding": True, "subsample_classes": 1, "split": 0.95},
    ],
    ids=str,
)
def test_batches_made_several_at_once_are_those_made_one_by_one(options):
    batch_size = 3 if "split" in options else 300
    together = load_mini(batch_size=batch_size, **options).train
    assert together.batches_at_once > 1
    one_by_one = replace(together, batches_at_once=1)
    for _ in range(2):  # epochs
        for (images, labels), (expected_images, expected_labels) in zip(together, one_by_one, strict=True):
            assert torch.equal(images, expected_images)
            assert torch.equal(labels, expected_labels)


@pytest.mark.cuda
@pytest.mark.parametrize(
    "options",
    [{"augmentation": True}, {"noise": -1, "noise_seed": 1}, {"upscale": True, "augmentation": True}],
    ids=str,
)
def test_batches_made_on_a_gpu_are_those_made_on_a_cpu(options, tmp_path):
    write_cifar10(tmp_path, n=40)
    on_cpu, on_gpu = (
        data.load("cifar10", tmp_path, 16, device=device, shuffle=True, seed=3, **options).train
        for device in ("cpu", "cuda")
    )
    assert on_cpu.batches_at_once < on_gpu.batches_at_once or "upscale" in options
    for (images, labels), (expected_images, expected_labels) in zip(on_gpu, on_cpu, strict=True):
        torch.testing.assert_close(images.cpu(), expected_images, rtol=1e-4, atol=1e-4)
        assert torch.equal(labels.cpu(), expected_labels)


def test_making_batches_leaves_the_global_generator_alone():
    dataset = load_mini(shuffle=True, augmentation=True, noise=-1, noise_seed=1)
    torch.manual_seed(0)
    whole(dataset.train)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert after.equal(torch.rand(1))


# Label noise, classes, split


def test_labels_are_corrupted_in_index_order_in_the_training_part_only():
    images, labels = mini_arrays()
    dataset = load_mini(unnormalize=True, noise=0.4, noise_seed=5, split=0.2, split_seed=9, shuffle=True)
    order = list(range(len(labels)))
    np.random.RandomState(9).shuffle(order)
    train, val = sorted(order[: len(order) - len(order) // 5]), order[len(order) - len(order) // 5 :]
    generator = np.random.RandomState(5)
    hit = [index for index, draw in zip(train, generator.rand(len(train)), strict=True) if draw <= 0.4]
    noisy = labels.copy()
    noisy[hit] = (labels[hit] + generator.choice(range(1, 10), len(hit))) % 10
    found, found_labels = pixels(dataset.train.as_is())
    assert (found[:, 0] == images[train]).all()
    assert (found_labels == noisy[train]).all()
    assert 0.35 < (noisy[train] != labels[train]).mean() < 0.45
    found, found_labels = pixels(dataset.val)
    assert (found[:, 0] == images[val]).all()
    assert (found_labels == labels[val]).all()
    assert (whole(dataset.test)[1].numpy() == mini_arrays("t10k")[1]).all()


@pytest.mark.parametrize("seed", [None, 42])
def test_classes_are_relabelled_alike_in_training_validation_and_test(seed):
    dataset = load_mini(unnormalize=True, subsample_classes=4, class_sample_seed=seed, split=0.25)
    names = list(load_mini().class_names)
    shuffled = list(names)
    if seed is not None:
        np.random.RandomState(seed).shuffle(shuffled)
    assert dataset.class_names == shuffled[:4]
    assert dataset.num_classes == 4
    seen = 0
    for loader, part in ((dataset.train, "train"), (dataset.val, "train"), (dataset.test, "t10k")):
        images, labels = mini_arrays(part)
        true_name = {image.tobytes(): names[label] for image, label in zip(images, labels, strict=True)}
        found, found_labels = pixels(loader)
        assert all(
            shuffled[label] == true_name[image.tobytes()] for image, label in zip(found, found_labels, strict=True)
        )
        assert set(found_labels) == {0, 1, 2, 3}
        seen += len(found)
    kept = [names.index(name) for name in shuffled[:4]]
    assert seen == sum(np.isin(mini_arrays(part)[1], kept).sum() for part in ("train", "t10k"))


def test_stratified_split_takes_the_same_share_of_each_class():
    _, labels = mini_arrays()
    dataset = load_mini(split=0.3, stratified=True, shuffle=True, split_seed=2)
    counts = np.bincount(labels)
    assert np.bincount(whole(dataset.val)[1]).tolist() == np.floor(counts * 0.3).astype(int).tolist()
    assert len(set(counts)) > 1  # of classes that are not all of one size
    assert dataset.train.num_images + dataset.val.num_images == len(labels)


@pytest.mark.parametrize("noise", [0.3, -1])
@pytest.mark.parametrize("stratified", [False, True])
def test_several_options_at_once_equal_a_pipeline_written_out(tmp_path, noise, stratified):
    """Class subsampling, then split, then noise; crop, then pixel shuffle, then normalization."""
    (images, labels), (test_images, test_labels) = write_cifar10(tmp_path, n=40)
    options = {"subsample_classes": 5, "class_sample_seed": 3, "split": 0.2, "split_seed": 8, "shuffle": True}
    options |= {"stratified": stratified, "noise": noise, "noise_seed": 6, "augmentation": True, "seed": 2}
    dataset = data.load("cifar10", tmp_path, 32, **options)

    kept = list(range(10))
    np.random.RandomState(3).shuffle(kept)
    kept = kept[:5]

    def subsample(images, labels):
        chosen = [i for i in range(len(labels)) if labels[i] in kept]
        return images[chosen], np.array([kept.index(labels[i]) for i in chosen])

    images, labels = subsample(images, labels)
    order = list(range(len(labels)))
    np.random.RandomState(8).shuffle(order)
    val = order[len(order) - int(len(order) * 0.2) :]
    if stratified:
        by_class = [[i for i in order if labels[i] == label] for label in range(5)]
        val = {i for members in by_class for i in members[len(members) - int(len(members) * 0.2) :]}
        val = [i for i in order if i in val]
    train = sorted(set(order) - set(val))
    permutations = np.tile(np.arange(1024), (len(train), 1))
    noisy = labels[train]
    generator = np.random.RandomState(6)
    if noise == -1:
        permutations = [generator.permutation(1024) for _ in train]
    else:
        hit = np.flatnonzero(generator.rand(len(train)) <= noise)
        noisy[hit] = (noisy[hit] + generator.choice(range(1, 5), len(hit))) % 5

    constants = [np.array(values, np.float32)[:, None, None] for values in CONSTANTS["cifar10", None]]

    def normalize(image):
        return (image.astype(np.float32) / np.float32(255) - constants[0]) / constants[1]

    # Training: each image of the epoch is a crop of the image at its place, pixels shuffled, normalized.
    possible = {}
    for position, index in enumerate(train):
        for _, cut in crops_of(images[index], flip=True):
            shuffled = cut.reshape(3, -1)[:, permutations[position]].reshape(3, 32, 32)
            possible[np.ascontiguousarray(shuffled).tobytes()] = position
    epochs = []
    for _ in range(2):
        found, found_labels = whole(dataset.train)
        raw = found.numpy() * constants[1] + constants[0]
        positions = [possible[np.rint(image * 255).astype(np.uint8).tobytes()] for image in raw]
        assert sorted(positions) == list(range(len(train)))
        assert (found_labels.numpy() == noisy[positions]).all()
        epochs.append(positions)
    assert epochs[0] != epochs[1]

    expected_images, expected_labels = images[val], labels[val]
    for loader in (dataset.val, dataset.test):
        found, found_labels = whole(loader)
        np.testing.assert_array_equal(found.numpy(), np.stack([normalize(image) for image in expected_images]))
        assert (found_labels.numpy() == expected_labels).all()
        expected_images, expected_labels = subsample(test_images, test_labels)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"subsample_classes": 11}, "--subsample-classes 11"),
        ({"subsample_classes": 1, "noise": 0.5, "noise_seed": 1}, "--noise 0.5"),
        ({"split": 0.0001}, "--split 0.0001"),
    ],
)
def test_what_cannot_be_had_is_an_error_that_names_the_option(options, named):
    with pytest.raises(data.DataError) as error:
        load_mini(**options)
    assert named in one_line(error)


def test_one_class_can_be_kept():
    dataset = load_mini(subsample_classes=1, class_sample_seed=1)
    assert set(whole(dataset.train)[1].tolist()) == {0}
    assert dataset.num_classes == 1
    assert dataset.notes == []


# Pixel shuffle


def test_each_training_image_has_its_own_fixed_permutation():
    images, labels = mini_arrays()
    dataset = load_mini(unnormalize=True, noise=-1, noise_seed=12)
    generator = np.random.RandomState(12)
    expected = [image.reshape(-1)[generator.permutation(784)].reshape(28, 28) for image in images]
    for loader in (dataset.train, dataset.train, dataset.train.as_is()):
        found, found_labels = pixels(loader)
        assert (found[:, 0] == np.stack(expected)).all()
        assert (found_labels == labels).all()


def test_validation_and_test_pixels_stay_in_place():
    shuffled = load_mini(noise=-1, noise_seed=12, split=0.1)
    plain = load_mini(split=0.1)
    for part in ("val", "test"):
        assert whole(getattr(shuffled, part))[0].equal(whole(getattr(plain, part))[0])
    assert not whole(shuffled.train)[0].equal(whole(plain.train)[0])


def test_all_channels_are_permuted_alike_and_after_augmentation(tmp_path):
    parts = write_cifar10(tmp_path)
    options = {"unnormalize": True, "augmentation": True, "seed": 5}
    augmented, _ = pixels(data.load("cifar10", tmp_path, 16, **options).train)
    found, _ = pixels(data.load("cifar10", tmp_path, 16, noise=-1, noise_seed=2, **options).train)
    generator = np.random.RandomState(2)
    assert len(found) == len(parts[0][0])
    for image, shuffled in zip(augmented, found, strict=True):
        assert (shuffled.reshape(3, -1) == image.reshape(3, -1)[:, generator.permutation(1024)]).all()


@pytest.mark.parametrize("option", ["upscale", "upscale_padding"])
def test_upscaled_images_have_permutations_by_index(option):
    options = {"batch_size": 8, "unnormalize": True, "split": 0.998, "stratified": False, option: True}
    plain = load_mini(**options).train
    shuffled = load_mini(noise=-1, noise_seed=3, **options).train
    assert plain.num_images == 8
    for epoch in range(2):
        plain.epoch = shuffled.epoch = epoch
        (images, labels), (found, found_labels) = whole(plain), whole(shuffled)
        assert labels.equal(found_labels)
        ordered = whole(plain.as_is())[0]
        for image, permuted in zip(images, found, strict=True):
            number = next(i for i in range(8) if ordered[i].equal(image))
            permutation = np.random.RandomState([3, number]).permutation(224 * 224)
            assert permuted.flatten().equal(image.flatten()[torch.from_numpy(permutation)])


# IDX files


def test_mnist_and_fashion_mnist_are_read_from_idx_files(tmp_path):
    for name, folder in (("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")):
        content = write_mnist(tmp_path, folder, seed=len(name))
        dataset = data.load(name, tmp_path, 16, unnormalize=True)
        for loader, part in ((dataset.train, "train"), (dataset.test, "t10k")):
            found, labels = pixels(loader)
            assert (found[:, 0] == content[part][0]).all()
            assert (labels == content[part][1]).all()
    assert load_mini().class_names == dataset.class_names


def damaged_idx(content):
    """Ways in which a file can be broken, by name."""
    header = 4 + 4 * content[3]
    return {
        "empty": b"",
        "cut_in_its_header": content[:6],
        "header_only": content[:header],
        "truncated": content[:-1],
        "longer": content + b"\0",
        "wrong_magic": b"\0\0\x0d" + content[3:],
        "other_file": b"<!DOCTYPE html><html></html>",
        "gzipped": gzip.compress(content),
        "other_dimensions": content[:4] + struct.pack(">I", 3) + content[8:],
        "no_dimensions": b"\0\0\x08\0" + b"\0",
        "size_overflow": b"\0\0\x08\x03" + struct.pack(">3I", 2**31, 2**31, 4),
        "no_images": b"\0\0\x08\x03" + struct.pack(">3I", 0, 28, 28),
    }


@pytest.mark.parametrize("kind", ["images-idx3", "labels-idx1"])
@pytest.mark.parametrize("damage", damaged_idx(bytes(4)))
def test_damaged_idx_file_is_an_error_that_names_it(tmp_path, kind, damage):
    write_mnist(tmp_path)
    file = tmp_path / "MNIST" / "raw" / f"train-{kind}-ubyte"
    file.write_bytes(damaged_idx(file.read_bytes())[damage])
    with pytest.raises(data.DataError) as error:
        data.load("mnist", tmp_path, 10)
    assert str(file) in one_line(error)


@pytest.mark.parametrize(
    "file", [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
)
def test_missing_idx_file_is_an_error_that_names_it(tmp_path, file):
    write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / file).unlink()
    with pytest.raises(data.DataError) as error:
        data.load("mnist", tmp_path, 10)
    assert file in one_line(error)


def test_label_out_of_range_in_an_idx_file_is_an_error(tmp_path):
    write_mnist(tmp_path, n=5, labels=[0, 1, 10, 2, 3])
    with pytest.raises(data.DataError) as error:
        data.load("mnist", tmp_path, 10)
    assert "train-labels-idx1-ubyte" in one_line(error)
    assert "10" in one_line(error)


@pytest.mark.parametrize("keep", [0, 5, 12, -9, -1])
def test_truncated_gzipped_file_is_an_error_that_names_it(tmp_path, keep):
    content = (MINI / "t10k-labels-idx1-ubyte.gz").read_bytes()
    file = tmp_path / "labels.gz"
    file.write_bytes(content)
    assert read_idx(file).shape == (1000,)
    file.write_bytes(content[:keep])
    with pytest.raises(data.DataError) as error:
        read_idx(file)
    assert str(file) in one_line(error)


def test_bit_flips_in_a_gzipped_file_are_noticed(tmp_path):
    content = (MINI / "t10k-labels-idx1-ubyte.gz").read_bytes()
    file = tmp_path / "labels.gz"
    for position in range(20, len(content), 25):
        damaged = bytearray(content)
        damaged[position] ^= 16
        file.write_bytes(damaged)
        with pytest.raises(data.DataError) as error:
            read_idx(file)
        assert str(file) in one_line(error)


# CIFAR


def test_cifar10_is_read_from_its_binary_files(tmp_path):
    parts = write_cifar10(tmp_path)
    dataset = data.load("cifar10", tmp_path, 16, unnormalize=True)
    assert dataset.class_names == "airplane automobile bird cat deer dog frog horse ship truck".split()
    for loader, (images, labels) in zip((dataset.train, dataset.test), parts, strict=True):
        found, found_labels = pixels(loader)
        assert (found == images).all()
        assert (found_labels == labels).all()


def test_cifar100_is_read_from_its_binary_files_with_the_fine_labels(tmp_path):
    parts = write_cifar100(tmp_path)
    dataset = data.load("cifar100", tmp_path, 16, unnormalize=True)
    assert dataset.num_classes == 100
    assert dataset.class_names[::33] == ["apple", "forest", "raccoon", "worm"]
    assert dataset.class_names == sorted(set(dataset.class_names))
    for loader, (images, labels) in zip((dataset.train, dataset.test), parts, strict=True):
        found, found_labels = pixels(loader)
        assert (found == images).all()
        assert (found_labels == labels).all()


def cifar_damages(content):
    return {
        "empty": b"",
        "truncated": content[:-1],
        "shorter_than_the_others": content[:-3073],
        "longer": content + b"\0",
        "label_out_of_range": content[:3073] + bytes([10]) + content[3074:],
        "other_file": b"<!DOCTYPE html><html></html>",
    }


@pytest.mark.parametrize("damage", cifar_damages(b""))
@pytest.mark.parametrize("number", [1, 3, 5])
def test_damaged_cifar_file_is_an_error_that_names_it(tmp_path, damage, number):
    write_cifar10(tmp_path)
    file = tmp_path / "cifar-10-batches-bin" / f"data_batch_{number}.bin"
    file.write_bytes(cifar_damages(file.read_bytes())[damage])
    with pytest.raises(data.DataError) as error:
        data.load("cifar10", tmp_path, 10)
    assert file.name in one_line(error)


@pytest.mark.parametrize("name", ["data_batch_2.bin", "test_batch.bin"])
def test_missing_cifar_file_is_an_error_that_names_it(tmp_path, name):
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-bin" / name).unlink()
    with pytest.raises(data.DataError) as error:
        data.load("cifar10", tmp_path, 10)
    assert name in one_line(error)


def test_cifar100_label_out_of_range_is_an_error(tmp_path):
    write_cifar100(tmp_path)
    file = tmp_path / "cifar-100-binary" / "test.bin"
    content = bytearray(file.read_bytes())
    content[1] = 100
    file.write_bytes(content)
    with pytest.raises(data.DataError) as error:
        data.load("cifar100", tmp_path, 10)
    assert str(file) in one_line(error)


def test_cifar_that_torchvision_downloaded_holds_the_same(tmp_path, monkeypatch):
    """The pickled version, with its checksums made to fit."""
    parts = write_cifar10(tmp_path / "binary")
    folder = tmp_path / "pickled" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    sums = {}
    names = [f"data_batch_{number}" for number in range(1, 6)], ["test_batch"]
    for files, (images, labels) in zip(names, parts, strict=True):
        for number, file in enumerate(files):
            here = slice(number * 8, number * 8 + 8)
            rows = {"data": images[here].reshape(8, -1), "labels": labels[here].tolist()}
            (folder / file).write_bytes(pickle.dumps(rows, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}, protocol=2))
    for file in folder.iterdir():
        sums[file.name] = hashlib.md5(file.read_bytes()).hexdigest()
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [[file, sums[file]] for file in names[0]])
    monkeypatch.setattr(cifar, "test_list", [[file, sums[file]] for file in names[1]])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": sums["batches.meta"]})
    binary = data.load("cifar10", tmp_path / "binary", 16)
    pickled = data.load("cifar10", tmp_path / "pickled", 16)
    assert pickled.class_names == binary.class_names
    for part in ("train", "test"):
        for ours, theirs in zip(whole(getattr(pickled, part)), whole(getattr(binary, part)), strict=True):
            assert ours.equal(theirs)
    (folder / "data_batch_4").write_bytes(b"damaged")
    with pytest.raises(data.DataError) as error:
        data.load("cifar10", tmp_path / "pickled", 16)
    assert "--data-path" in one_line(error)


# Downloads


def test_a_download_puts_the_whole_dataset_into_its_place(tmp_path, monkeypatch):
    def download(root, download):
        assert download
        write_mnist(Path(root))

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    root = tmp_path / "new" / "datasets"
    assert data.load("mnist", root, 10).train.num_images == 40
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert [path.name for path in root.iterdir()] == ["MNIST"]


@pytest.mark.parametrize(
    "error", [RuntimeError("Error downloading\nmore"), OSError(28, "No space left on device")]
)
def test_a_failed_download_leaves_nothing_and_is_a_one_line_error(tmp_path, monkeypatch, error):
    def download(root, download):
        write_idx(Path(root) / "MNIST" / "raw" / "train-images-idx3-ubyte", np.zeros((3, 28, 28)))
        raise error

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    with pytest.raises(data.DataError) as raised:
        data.load("mnist", tmp_path / "datasets", 10)
    assert str(tmp_path / "datasets") in one_line(raised)
    assert list(tmp_path.iterdir()) == []


# Folders of images


def load_folder(root, batch_size=5, workers=0, **options):
    return data.load("imagenet", root, batch_size, workers=workers, **options)


def test_folder_classes_are_counted_and_images_decoded_as_torchvision_does(tmp_path):
    paths = write_images(tmp_path, size=(300, 260))
    dataset = load_folder(tmp_path)
    assert dataset.num_classes == 3
    assert dataset.class_names == ["n000", "n001", "n002"]
    assert dataset.image_size == (224, 224)
    images, labels = whole(dataset.train)
    assert labels.tolist() == [0] * 4 + [1] * 3 + [2] * 5
    protocol = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(256),
            torchvision.transforms.CenterCrop(224),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    for path, image in zip(paths, images, strict=True):
        assert image.equal(protocol(Image.open(path)))


def test_padded_folder_images_are_half_as_large_with_zeros_around(tmp_path):
    write_images(tmp_path, counts=(2, 2), size=(250, 250))
    (images, _), (plain, _) = (
        whole(load_folder(tmp_path, unnormalize=True, upscale_padding=padding).test) for padding in (True, False)
    )
    assert images.shape == (4, 3, 224, 224)
    inner = images[:, :, 56:168, 56:168]
    assert images.count_nonzero() == inner.count_nonzero()
    half = v2.functional.resize(plain, [112, 112], antialias=True)
    assert (inner - half).abs().mean() < 0.01


def test_folder_notes_say_what_has_no_effect_and_that_files_are_sorted(tmp_path):
    write_images(tmp_path)
    notes = load_folder(tmp_path, upscale=True).notes
    assert any("--upscale" in note for note in notes)
    assert any("sorted by class" in note and "--shuffle" in note for note in notes)
    assert load_folder(tmp_path, shuffle=True).notes == []
    assert load_folder(tmp_path, split=0.3).notes == []
    assert load_mini().notes == []


@pytest.mark.parametrize(
    "options",
    [
        {"noise": 0.5, "noise_seed": 1},
        {"subsample_classes": 3, "class_sample_seed": 1},
        {"noise": -1, "noise_seed": 1},
    ],
)
def test_files_are_called_sorted_by_class_whatever_happens_to_labels(tmp_path, options):
    write_images(tmp_path)
    assert any("sorted by class" in note for note in load_folder(tmp_path, **options).notes)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_folder_batches_do_not_depend_on_the_number_of_workers(tmp_path, workers):
    write_images(tmp_path)
    options = {"shuffle": True, "augmentation": True, "seed": 3, "noise": -1, "noise_seed": 1, "split": 0.25}
    here = load_folder(tmp_path, **options, split_seed=0)
    other = load_folder(tmp_path, workers=workers, batch_size=2, **options, split_seed=0)
    first = whole(here.train)
    for ours, theirs in zip(first, whole(other.train), strict=True):
        assert ours.equal(theirs)
    second = whole(here.train)
    assert not first[0].equal(second[0])
    resumed = load_folder(tmp_path, workers=workers, **options, split_seed=0).train
    resumed.epoch = 1
    for ours, theirs, later in zip(second, whole(other.train), whole(resumed), strict=True):
        assert ours.equal(theirs)
        assert ours.equal(later)


def test_augmentation_of_a_folder_image_differs_between_epochs(tmp_path):
    write_images(tmp_path)
    loader = load_folder(tmp_path, augmentation=True).train
    for first, second in zip(whole(loader)[0], whole(loader)[0], strict=True):
        assert not first.equal(second)


@pytest.mark.parametrize("workers", [0, 1])
def test_folder_batches_leave_the_global_generator_alone(tmp_path, workers):
    """Otherwise dropout would depend on how many epochs this process has trained."""
    write_images(tmp_path)
    loader = load_folder(tmp_path, workers=workers, shuffle=True, augmentation=True).train
    torch.manual_seed(0)
    expected = torch.rand(1)
    for _ in range(2):
        torch.manual_seed(0)
        whole(loader)
        assert torch.rand(1).equal(expected)


def test_the_network_computes_on_all_threads_between_batches_of_a_folder(tmp_path, monkeypatch):
    write_images(tmp_path)
    threads, while_finishing = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        train = load_folder(tmp_path, workers=1).train
        finish = train.finish
        monkeypatch.setattr(
            train, "finish", lambda images: while_finishing.append(torch.get_num_threads()) or finish(images)
        )
        between = [torch.get_num_threads() for _ in train]
    finally:
        torch.set_num_threads(threads)
    assert set(between) == {3}
    assert set(while_finishing) == {1}  # the workers have the other cores


def test_more_workers_than_cores_are_told_in_one_line(tmp_path, monkeypatch, recwarn):
    write_images(tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    assert load_folder(tmp_path, workers=2, shuffle=True).notes == []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    dataset = load_folder(tmp_path, workers=2, shuffle=True)
    assert dataset.notes == ["--workers 2: more than there are cores (1), which may slow it down"]
    whole(dataset.test)
    assert not [warning for warning in recwarn.list if "worker" in str(warning.message)]


def test_augmented_folder_images_are_resized_crops_and_flips(tmp_path):
    """Of an image that grows brighter to the right and greener to the bottom, the corners tell the crop."""
    ramp = np.linspace(0, 255, 300)
    picture = np.zeros((300, 300, 3), dtype=np.uint8)
    picture[:, :, 0], picture[:, :, 1] = ramp[None], ramp[:, None]
    for part in ("train", "val"):
        (tmp_path / part / "only").mkdir(parents=True)
    for number in range(60):
        Image.fromarray(picture).save(tmp_path / "train" / "only" / f"{number:02}.png")
    Image.fromarray(picture).save(tmp_path / "val" / "only" / "0.png")
    images, _ = whole(load_folder(tmp_path, unnormalize=True, augmentation=True).train)
    across = images[:, 0, 112, -1] - images[:, 0, 112, 0]
    down = images[:, 1, -1, 112] - images[:, 1, 0, 112]
    assert 12 < (across < 0).sum() < 48
    assert (down > 0).all()
    area = (across * down).abs()
    assert 0.05 < area.min() < 0.3  # RandomResizedCrop: 8 to 100 % of the area
    assert 0.7 < area.max() < 1.05
    ratio = (across / down).abs()
    assert 0.7 < ratio.min() < 0.9  # and of aspect ratios from 3/4 to 4/3
    assert 1.1 < ratio.max() < 1.4
    still, _ = whole(load_folder(tmp_path, unnormalize=True, augmentation=True).test)
    assert (still[0, 0, 112, -1] - still[0, 0, 112, 0]).item() == pytest.approx(224 / 256, abs=0.02)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1", "LA"])
def test_images_of_any_mode_decode_to_rgb(tmp_path, mode):
    colours = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    original = Image.fromarray(colours).resize((256, 256), Image.Resampling.NEAREST)
    suffix = ".tif" if mode == "CMYK" else ".png"
    for part in ("train", "val"):
        (tmp_path / part / "only").mkdir(parents=True)
        original.convert(mode).save(tmp_path / part / "only" / f"0{suffix}")
    images, _ = next(iter(load_folder(tmp_path, unnormalize=True).test))
    assert images.shape == (1, 3, 224, 224)
    reread = np.asarray(Image.open(tmp_path / "val" / "only" / f"0{suffix}").convert("RGB"))[16:240, 16:240]
    assert (np.rint(images[0].numpy() * 255).transpose(1, 2, 0) == reread).all()
    if mode in ("RGBA", "CMYK"):  # which hold all of the colours
        assert np.abs(reread.astype(int) - np.asarray(original)[16:240, 16:240]).max() <= 2


def test_images_of_32_bits_a_pixel_have_no_known_range(tmp_path):
    for part in ("train", "val"):
        (tmp_path / part / "only").mkdir(parents=True)
        Image.fromarray(np.arange(64, dtype=np.int32).reshape(8, 8)).save(tmp_path / part / "only" / "0.tif")
    with pytest.raises(data.ImageError, match=r"0\.tif cannot be read: its pixels are .* of no known range"):
        next(iter(load_folder(tmp_path).test))


def test_pixel_shuffle_of_folder_images_has_permutations_by_index(tmp_path):
    write_images(tmp_path)
    plain, labels = whole(load_folder(tmp_path, unnormalize=True).train)
    dataset = load_folder(tmp_path, unnormalize=True, noise=-1, noise_seed=4)
    shuffled, shuffled_labels = whole(dataset.train)
    assert labels.equal(shuffled_labels)
    for number, (image, found) in enumerate(zip(plain, shuffled, strict=True)):
        permutation = torch.from_numpy(np.random.RandomState([4, number]).permutation(224 * 224))
        assert found.flatten(1).equal(image.flatten(1)[:, permutation])
    assert whole(dataset.test)[0].equal(whole(load_folder(tmp_path, unnormalize=True).test)[0])


def test_folder_of_a_hundred_images_with_every_manipulation(tmp_path):
    write_images(tmp_path, counts=(10,) * 10, size=(30, 30), suffix=".jpg")
    options = {"subsample_classes": 6, "class_sample_seed": 2, "split": 0.2, "stratified": True, "shuffle": True}
    dataset = load_folder(tmp_path, 16, split_seed=3, noise=0.5, noise_seed=4, augmentation=True, **options)
    names = [f"n{number:03}" for number in range(10)]
    np.random.RandomState(2).shuffle(names)
    assert dataset.class_names == names[:6]
    # the files of the classes kept stay in their order
    labels = np.array([names.index(f"n{number:03}") for number in range(10) for _ in range(10)])
    labels = labels[labels < 6]
    order = list(range(60))
    np.random.RandomState(3).shuffle(order)
    val = {index for label in range(6) for index in [i for i in order if labels[i] == label][-2:]}
    train = [index for index in range(60) if index not in val]
    generator = np.random.RandomState(4)
    hit = np.flatnonzero(generator.rand(48) <= 0.5)
    noisy = labels[train]
    noisy[hit] = (noisy[hit] + generator.choice(range(1, 6), len(hit))) % 6
    assert whole(dataset.train.as_is())[1].tolist() == noisy.tolist()
    assert whole(dataset.val)[1].tolist() == [labels[index] for index in order if index in val]
    assert sorted(whole(dataset.train)[1].tolist()) == sorted(noisy.tolist())
    assert np.bincount(whole(dataset.test)[1]).tolist() == [10] * 6


def test_train_and_val_of_different_classes_are_an_error_that_names_one(tmp_path):
    write_images(tmp_path)
    (tmp_path / "val" / "n001").rename(tmp_path / "val" / "n009")
    with pytest.raises(data.DataError) as error:
        load_folder(tmp_path)
    message = one_line(error)
    assert str(tmp_path) in message
    assert "n001" in message or "n009" in message


@pytest.mark.parametrize("missing", ["", "train", "val", "all_classes", "all_images"])
def test_missing_folders_are_an_error_that_names_them(tmp_path, missing):
    write_images(tmp_path)
    if missing == "all_images":
        for file in (tmp_path / "train" / "n001").iterdir():
            file.unlink()
        named = tmp_path / "train"
    elif missing == "all_classes":
        (tmp_path / "train").rename(tmp_path / "old")
        (tmp_path / "train").mkdir()
        named = tmp_path / "train"
    else:
        named = tmp_path / "train" if not missing else tmp_path / missing
        (tmp_path / (missing or "train")).rename(tmp_path / "old")
    with pytest.raises(data.DataError) as error:
        load_folder(tmp_path if missing else tmp_path / "no such folder")
    assert (named.name if missing else "no such folder") in one_line(error)


def image_bytes(kind):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(256, size=(60, 60, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


BROKEN = {
    "empty.jpg": b"",
    "text.jpg": b"this is no image\n",
    "truncated.jpg": image_bytes("JPEG")[:-500],
    "truncated.png": image_bytes("PNG")[:-500],
    "header.png": image_bytes("PNG")[:20],
    "crc.png": image_bytes("PNG")[:40] + b"\xff\xff" + image_bytes("PNG")[42:],
    "truncated.webp": image_bytes("WEBP")[:-500],
    "truncated.tif": image_bytes("TIFF")[:-500],
    "truncated.bmp": image_bytes("BMP")[:-500],
    "truncated.ppm": image_bytes("PPM")[:-500],
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_image_is_an_error_that_names_it(tmp_path, name):
    write_images(tmp_path)
    (tmp_path / "train" / "n001" / name).write_bytes(BROKEN[name])
    with pytest.raises(data.ImageError) as error:
        whole(load_folder(tmp_path, augmentation=True).train)
    assert str(tmp_path / "train" / "n001" / name) in one_line(error)


@pytest.mark.parametrize("workers", [1, 2])
def test_broken_image_stops_worker_processes_with_the_same_error(tmp_path, workers):
    write_images(tmp_path)
    (tmp_path / "val" / "n001" / "000.png").write_bytes(b"no image")
    with pytest.raises(data.ImageError) as error:
        whole(load_folder(tmp_path, workers=workers).test)
    assert str(tmp_path / "val" / "n001" / "000.png") in one_line(error)


def test_an_image_that_vanished_is_an_error_that_names_it(tmp_path):
    write_images(tmp_path)
    loader = load_folder(tmp_path).train
    (tmp_path / "train" / "n002" / "001.png").unlink()
    with pytest.raises(data.ImageError) as error:
        whole(loader)
    assert str(tmp_path / "train" / "n002" / "001.png") in one_line(error)
