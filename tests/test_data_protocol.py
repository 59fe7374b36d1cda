"""The data manipulations as pure functions of (data, seed): against reference values and other implementations."""

import gzip
import hashlib
import json
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import REFERENCE

from data import corruption, subsets

PROTOCOL = json.loads((REFERENCE / "data_protocol.json").read_text())
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def mnist_labels():
    """The 60,000 training labels; the IDX header has 8 bytes."""
    content = gzip.decompress((REFERENCE / "mnist_train_labels.gz").read_bytes())
    return np.frombuffer(content, dtype=np.uint8, offset=8).astype(np.int64)


def sha(values) -> str:
    return hashlib.sha256(np.asarray(values, dtype=np.int64).tobytes()).hexdigest()


# Label noise


def test_label_noise_on_mnist_is_the_reference(mnist_labels):
    noisy = corruption.corrupt_labels(mnist_labels, 10, 0.2, 7)
    assert noisy[:20].tolist() == PROTOCOL["mnist_noise_0.2_7"]["first"]
    assert noisy.dtype == np.int64
    assert sha(noisy) == PROTOCOL["mnist_noise_0.2_7"]["sha"]


def noisy_one_by_one(labels, num_classes, ratio, seed, indices=None):
    """The protocol in plain Python, sample by sample."""
    labels = [int(label) for label in labels]
    indices = list(range(len(labels)) if indices is None else indices)
    generator = np.random.RandomState(seed)
    corrupted = [index for index, draw in zip(indices, generator.rand(len(indices)), strict=True) if draw <= ratio]
    if corrupted:
        draws = generator.choice(range(1, num_classes), len(corrupted))
        for index, draw in zip(corrupted, draws, strict=True):
            labels[index] = (labels[index] + int(draw)) % num_classes
    return labels


@given(
    labels=st.lists(st.integers(0, 4), max_size=60),
    ratio=st.floats(0, 1),
    seed=SEEDS,
    keep=st.integers(1, 3),
)
def test_label_noise_follows_the_protocol(labels, ratio, seed, keep):
    labels = np.array(labels, dtype=np.int64)
    before = labels.copy()
    ours = corruption.corrupt_labels(labels, 5, ratio, seed)
    assert ours.tolist() == noisy_one_by_one(labels, 5, ratio, seed)
    some = list(range(0, len(labels), keep))
    partly = corruption.corrupt_labels(labels, 5, ratio, seed, indices=some)
    assert partly.tolist() == noisy_one_by_one(labels, 5, ratio, seed, some)
    assert corruption.corrupt_labels(labels, 5, ratio, seed, indices=some[::-1]).tolist() == partly.tolist()
    assert labels.tolist() == before.tolist()


@given(num_classes=st.integers(2, 12), seed=SEEDS, data=st.data())
def test_corrupted_label_is_never_the_true_one(num_classes, seed, data):
    labels = np.array(data.draw(st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=80)))
    noisy = corruption.corrupt_labels(labels, num_classes, 1.0, seed)
    assert (noisy != labels).all()
    assert (noisy >= 0).all()
    assert (noisy < num_classes).all()


@given(seed=SEEDS, indices=st.sets(st.integers(0, 49)))
def test_only_the_indices_given_are_corrupted(seed, indices):
    labels = np.arange(50) % 10
    for kind in (list, np.array, tuple):
        noisy = corruption.corrupt_labels(labels, 10, 1.0, seed, indices=kind(sorted(indices)))
        assert set(np.flatnonzero(noisy != labels)) == indices


def test_without_noise_labels_stay_and_nothing_changes_in_place():
    labels = np.arange(10)
    noisy = corruption.corrupt_labels(labels, 10, 0, 3)
    assert noisy.tolist() == list(range(10))
    noisy[:] = 0
    assert labels.tolist() == list(range(10))


def test_share_of_wrong_labels_is_the_ratio(mnist_labels):
    noisy = corruption.corrupt_labels(mnist_labels, 10, 0.3, 11)
    wrong = (noisy != mnist_labels).mean()
    assert wrong == pytest.approx(0.3, abs=5 * math.sqrt(0.3 * 0.7 / 60_000))
    shifts = Counter(((noisy - mnist_labels) % 10).tolist())
    assert all(shifts[shift] == pytest.approx(2000, abs=5 * math.sqrt(2000)) for shift in range(1, 10))


def test_label_noise_of_no_samples_is_no_labels():
    assert corruption.corrupt_labels(np.array([], dtype=np.int64), 10, 0.5, 3).tolist() == []
    labels = np.arange(4)
    assert corruption.corrupt_labels(labels, 10, 1.0, 3, indices=[]).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("ratio", [-0.1, 1.1, -1, math.nan, math.inf])
def test_a_ratio_out_of_range_is_an_error(ratio):
    with pytest.raises(ValueError, match="ratio"):
        corruption.corrupt_labels(np.arange(4), 10, ratio, 3)


def test_with_one_class_there_is_no_wrong_label():
    labels = np.zeros(4, dtype=np.int64)
    with pytest.raises(ValueError, match="single class"):
        corruption.corrupt_labels(labels, 1, 0.5, 3)
    assert corruption.corrupt_labels(labels, 1, 0, 3).tolist() == [0, 0, 0, 0]


# Pixel shuffle


def test_pixel_permutations_are_the_reference():
    permutations = corruption.pixel_permutations(3, 32 * 32, 5)
    assert permutations[:, :8].tolist() == PROTOCOL["pixel_shuffle_cifar_seed5_first"]


@pytest.mark.parametrize("num_pixels", [1, 784, 2**15 - 1, 2**15, 2**15 + 1, 224 * 224])
def test_pixel_permutations_of_any_size_are_drawn_one_after_another(num_pixels):
    permutations = corruption.pixel_permutations(2, num_pixels, 9)
    generator = np.random.RandomState(9)
    for row in permutations:
        assert row.tolist() == generator.permutation(num_pixels).tolist()
        assert sorted(row.tolist()) == list(range(num_pixels))


def test_first_permutations_do_not_depend_on_how_many_follow():
    few, many = corruption.pixel_permutations(2, 100, 1), corruption.pixel_permutations(5, 100, 1)
    assert few.tolist() == many[:2].tolist()
    assert corruption.pixel_permutations(0, 100, 1).shape == (0, 100)


def test_permutation_of_one_large_image_depends_on_seed_and_index_alone():
    expected = np.random.RandomState([4, 17]).permutation(50_176).tolist()
    assert corruption.pixel_permutation(17, 50_176, 4).tolist() == expected
    assert corruption.pixel_permutation(18, 50_176, 4).tolist() != expected
    assert corruption.pixel_permutation(17, 50_176, 5).tolist() != expected


# Class subsampling


def test_class_subsampling_is_the_reference():
    names = [f"n{number:03}" for number in range(10)]
    kept = subsets.sample_classes(names, 3, 42)
    assert kept == PROTOCOL["subsample_3_42"]["classes"]
    indices, labels = subsets.relabel(np.arange(50) % 10, names, kept)
    assert [f"s{index}" for index in indices] == PROTOCOL["subsample_3_42"]["files"]
    assert labels.tolist() == PROTOCOL["subsample_3_42"]["targets"]


@given(names=st.lists(st.text(max_size=3), min_size=1, max_size=12, unique=True), seed=SEEDS, data=st.data())
def test_class_subsampling_follows_the_protocol(names, seed, data):
    n = data.draw(st.integers(1, len(names)))
    labels = data.draw(st.lists(st.integers(0, len(names) - 1), max_size=40))
    before = list(names)
    shuffled = list(names)
    np.random.RandomState(seed).shuffle(shuffled)
    kept = subsets.sample_classes(names, n, seed)
    assert kept == shuffled[:n]
    assert names == before
    expected = [(i, kept.index(names[label])) for i, label in enumerate(labels) if names[label] in kept]
    indices, new_labels = subsets.relabel(np.array(labels, dtype=np.int64), names, kept)
    assert list(zip(indices.tolist(), new_labels.tolist(), strict=True)) == expected


def test_without_a_seed_the_first_classes_are_kept():
    assert subsets.sample_classes(("a", "b", "c"), 2, None) == ["a", "b"]


# Split


@pytest.mark.parametrize(("size", "seed", "shuffle"), [(0.1, 42, True), (0.25, 0, False)])
def test_split_of_60000_is_the_reference(size, seed, shuffle):
    expected = PROTOCOL[f"split_{size}_{seed}_{shuffle}"]
    train, val = subsets.split_indices(60_000, size, shuffle, seed)
    assert [len(train), len(val)] == expected["n"]
    assert train[:5].tolist() == expected["first"]
    assert train.dtype == val.dtype == np.int64
    assert sha(train) == expected["train"]
    assert sha(val) == expected["val"]


def split_by_lists(n, size, shuffle, seed, labels=None):
    """The protocol in plain Python."""
    order = list(range(n))
    if shuffle:
        np.random.RandomState(seed).shuffle(order)
    if labels is None:
        count = math.floor(n * size)
        return order[: n - count], order[n - count :]
    val = set()
    for label in set(labels):
        of_class = [index for index in order if labels[index] == label]
        count = math.floor(len(of_class) * size)
        val |= set(of_class[len(of_class) - count :])
    return [index for index in order if index not in val], [index for index in order if index in val]


SIZES = st.floats(0, 1, exclude_max=True)


@given(n=st.integers(0, 200), size=SIZES, shuffle=st.booleans(), seed=SEEDS)
def test_split_follows_the_protocol(n, size, shuffle, seed):
    train, val = subsets.split_indices(n, size, shuffle, seed)
    assert (train.tolist(), val.tolist()) == split_by_lists(n, size, shuffle, seed)


@given(labels=st.lists(st.integers(0, 6), max_size=120), size=SIZES, shuffle=st.booleans(), seed=SEEDS)
def test_stratified_split_follows_the_protocol(labels, size, shuffle, seed):
    """Classes are of uneven size here, and some are missing."""
    train, val = subsets.split_indices(len(labels), size, shuffle, seed, np.array(labels, dtype=np.int64))
    assert (train.tolist(), val.tolist()) == split_by_lists(len(labels), size, shuffle, seed, labels)
    assert train.dtype == val.dtype == np.int64


@given(
    labels=st.lists(st.integers(0, 3), max_size=80), size=SIZES, shuffle=st.booleans(), stratified=st.booleans()
)
def test_split_is_a_partition(labels, size, shuffle, stratified):
    labels = np.array(labels, dtype=np.int64)
    train, val = subsets.split_indices(len(labels), size, shuffle, 5, labels if stratified else None)
    assert sorted([*train, *val]) == list(range(len(labels)))


def test_stratified_split_takes_the_same_share_of_uneven_classes():
    labels = np.repeat([0, 1, 2], [100, 30, 7])
    random.Random(0).shuffle(labels)
    train, val = subsets.split_indices(137, 0.3, True, 1, labels)
    assert np.bincount(labels[val]).tolist() == [30, 9, 2]
    assert np.bincount(labels[train]).tolist() == [70, 21, 5]


def test_split_without_shuffling_takes_the_last_and_needs_no_seed():
    train, val = subsets.split_indices(7, 0.3, False, None)
    assert (train.tolist(), val.tolist()) == ([0, 1, 2, 3, 4], [5, 6])
    train, val = subsets.split_indices(4, 0, False, None)
    assert (train.tolist(), val.tolist()) == ([0, 1, 2, 3], [])


def test_manipulations_leave_numpys_global_generator_alone():
    np.random.seed(3)
    expected = np.random.RandomState(3).rand()
    corruption.corrupt_labels(np.arange(10), 10, 0.5, 1)
    corruption.pixel_permutations(2, 10, 1)
    corruption.pixel_permutation(2, 10, 1)
    subsets.split_indices(10, 0.5, True, 1)
    subsets.sample_classes("abc", 2, 1)
    assert np.random.rand() == expected
