"""Label noise, pixel shuffle, class subsampling and split, against reference values and plain Python."""

import gzip
import hashlib
import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import REFERENCE

from data import Images, corruption, subsets

PROTOCOL = json.loads((REFERENCE / "data_protocol.json").read_text())
SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.floats(0, 1, exclude_max=True)


@pytest.fixture(scope="module")
def mnist_labels():
    """Read the 60,000 training labels; the header of the IDX file has 8 bytes."""
    content = gzip.decompress((REFERENCE / "mnist_train_labels.gz").read_bytes())
    return np.frombuffer(content, dtype=np.uint8, offset=8).astype(np.int64)


def sha(values) -> str:
    return hashlib.sha256(np.asarray(values, dtype=np.int64).tobytes()).hexdigest()


def test_label_noise_on_mnist_equals_the_reference(mnist_labels):
    noisy = corruption.corrupt_labels(mnist_labels, 10, 0.2, 7)
    assert noisy[:20].tolist() == PROTOCOL["mnist_noise_0.2_7"]["first"]
    assert noisy.dtype == np.int64
    assert sha(noisy) == PROTOCOL["mnist_noise_0.2_7"]["sha"]


def corrupt_one_by_one(labels, num_classes, ratio, seed, indices):
    """Corrupt labels as the protocol says, in plain Python."""
    labels = [int(label) for label in labels]
    generator = np.random.RandomState(seed)
    corrupted = [index for index, draw in zip(indices, generator.rand(len(indices)), strict=True) if draw <= ratio]
    if corrupted and ratio:
        draws = generator.choice(range(1, num_classes), len(corrupted))
        for index, draw in zip(corrupted, draws, strict=True):
            labels[index] = (labels[index] + int(draw)) % num_classes
    return labels


@given(labels=st.lists(st.integers(0, 4), max_size=60), ratio=st.floats(0, 1), seed=SEEDS, step=st.integers(1, 3))
def test_label_noise_follows_the_protocol(labels, ratio, seed, step):
    labels = np.array(labels, dtype=np.int64)
    before = labels.tolist()
    every, some = list(range(len(labels))), list(range(0, len(labels), step))
    ours = corruption.corrupt_labels(labels, 5, ratio, seed)
    assert ours.tolist() == corrupt_one_by_one(labels, 5, ratio, seed, every)
    for indices in (some, some[::-1], np.array(some, dtype=np.int64)):
        ours = corruption.corrupt_labels(labels, 5, ratio, seed, indices=indices)
        assert ours.tolist() == corrupt_one_by_one(labels, 5, ratio, seed, some)
    ours[:] = 0
    assert labels.tolist() == before


@given(num_classes=st.integers(2, 12), seed=SEEDS, data=st.data())
def test_corrupted_label_is_never_the_true_one(num_classes, seed, data):
    labels = np.array(data.draw(st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=80)))
    noisy = corruption.corrupt_labels(labels, num_classes, 1.0, seed)
    assert (noisy != labels).all()
    assert set(noisy) <= set(range(num_classes))


def test_share_of_wrong_labels_is_the_ratio(mnist_labels):
    noisy = corruption.corrupt_labels(mnist_labels, 10, 0.3, 11)
    wrong = (noisy != mnist_labels).mean()
    assert wrong == pytest.approx(0.3, abs=5 * math.sqrt(0.3 * 0.7 / 60_000))
    shifts = Counter(((noisy - mnist_labels) % 10).tolist())
    assert all(shifts[shift] == pytest.approx(2000, abs=5 * math.sqrt(2000)) for shift in range(1, 10))


def test_impossible_label_noise_is_an_error():
    for ratio in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="ratio"):
            Images("mnist", "", noise=ratio).check()
    with pytest.raises(ValueError, match="single class"):
        corruption.corrupt_labels(np.zeros(4, dtype=np.int64), 1, 0.5, 3)


def test_pixel_permutations_equal_the_reference():
    permutations = corruption.pixel_permutations(3, 32 * 32, 5)
    assert permutations[:, :8].tolist() == PROTOCOL["pixel_shuffle_cifar_seed5_first"]


@pytest.mark.parametrize("num_pixels", [1, 784, 2**15 - 1, 2**15, 2**15 + 1, 224 * 224])
def test_pixel_permutations_are_drawn_one_after_another(num_pixels):
    permutations = corruption.pixel_permutations(2, num_pixels, 9)
    generator = np.random.RandomState(9)
    for row in permutations:
        assert row.tolist() == generator.permutation(num_pixels).tolist()
        assert sorted(row.tolist()) == list(range(num_pixels))


def test_permutation_of_one_image_depends_on_seed_and_index_alone():
    for index, seed in ((17, 4), (18, 4), (17, 5)):
        expected = np.random.RandomState([seed, index]).permutation(50_176)
        assert (corruption.pixel_permutation(index, 50_176, seed) == expected).all()


def test_class_subsampling_equals_the_reference():
    names = [f"n{number:03}" for number in range(10)]
    kept = subsets.sample_classes(names, 3, 42)
    assert kept == PROTOCOL["subsample_3_42"]["classes"]
    indices, labels = subsets.relabel(np.arange(50) % 10, names, kept)
    assert [f"s{index}" for index in indices] == PROTOCOL["subsample_3_42"]["files"]
    assert labels.tolist() == PROTOCOL["subsample_3_42"]["targets"]
    assert subsets.sample_classes(names, 3, None) == names[:3]


@given(names=st.lists(st.text(max_size=3), min_size=1, max_size=12, unique=True), seed=SEEDS, data=st.data())
def test_class_subsampling_follows_the_protocol(names, seed, data):
    n = data.draw(st.integers(1, len(names)))
    labels = data.draw(st.lists(st.integers(0, len(names) - 1), max_size=40))
    shuffled = list(names)
    np.random.RandomState(seed).shuffle(shuffled)
    kept = subsets.sample_classes(tuple(names), n, seed)
    assert kept == shuffled[:n]
    expected = [(i, kept.index(names[label])) for i, label in enumerate(labels) if names[label] in kept]
    indices, new_labels = subsets.relabel(np.array(labels, dtype=np.int64), names, kept)
    assert list(zip(indices.tolist(), new_labels.tolist(), strict=True)) == expected


@pytest.mark.parametrize(("size", "seed", "shuffle"), [(0.1, 42, True), (0.25, 0, False)])
def test_split_of_60000_images_equals_the_reference(size, seed, shuffle):
    expected = PROTOCOL[f"split_{size}_{seed}_{shuffle}"]
    train, val = subsets.split_indices(60_000, size, shuffle, seed)
    assert [len(train), len(val)] == expected["n"]
    assert train[:5].tolist() == expected["first"]
    assert train.dtype == val.dtype == np.int64
    assert sha(train) == expected["train"]
    assert sha(val) == expected["val"]


def split_lists(n, size, shuffle, seed, labels):
    """Split as the protocol says, in plain Python; labels given: stratified."""
    order = list(range(n))
    if shuffle:
        np.random.RandomState(seed).shuffle(order)
    val = set()
    for label in set(labels or [0]):
        members = [index for index in order if labels is None or labels[index] == label]
        val |= set(members[len(members) - math.floor(len(members) * size) :])
    return [index for index in order if index not in val], [index for index in order if index in val]


@given(
    labels=st.lists(st.integers(0, 6), max_size=120),
    size=SIZES,
    shuffle=st.booleans(),
    seed=SEEDS,
    stratified=st.booleans(),
)
def test_split_follows_the_protocol(labels, size, shuffle, seed, stratified):
    """The classes have different sizes, and some are missing."""
    n, array = len(labels), np.array(labels, dtype=np.int64)
    train, val = subsets.split_indices(n, size, shuffle, seed, array if stratified else None)
    assert (train.tolist(), val.tolist()) == split_lists(n, size, shuffle, seed, labels if stratified else None)
    assert sorted([*train, *val]) == list(range(n))
    assert train.dtype == val.dtype == np.int64


def test_split_and_noise_leave_the_global_generator_of_numpy_alone():
    np.random.seed(3)
    expected = np.random.RandomState(3).rand()
    corruption.corrupt_labels(np.arange(10), 10, 0.5, 1)
    corruption.pixel_permutations(2, 10, 1)
    subsets.split_indices(10, 0.5, True, 1)
    subsets.sample_classes("abc", 2, 1)
    assert np.random.rand() == expected
