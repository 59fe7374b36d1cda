"""Batches of datasets in memory, against independent implementations in NumPy, PIL and torchvision."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sample_datasets import load, load_mini, mini_arrays, pixels, whole, write_cifar, write_mnist

import data
from data import transforms

FORMATS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("mnist", (10, 1, (28, 28))),
        ("fashion_mnist", (10, 1, (28, 28))),
        ("fashion_mnist_mini", (10, 1, (28, 28))),
        ("cifar10", (10, 3, (32, 32))),
        ("cifar100", (100, 3, (32, 32))),
        ("imagenet", (1000, 3, (224, 224))),
    ],
)
def test_classes_channels_and_image_size_are_known_before_reading(name, known):
    spec, images = data.info(name), data.Images(name, ".", subsample_classes=3, upscale_padding=True)
    assert (spec.num_classes, spec.in_channels, spec.image_size) == known
    assert (images.num_classes, images.image_size) == (3, (224, 224))


def test_unknown_dataset_is_an_error_that_names_it_and_the_nearest_one():
    with pytest.raises(data.DataError) as error:
        load("mnits", ".", 10)
    assert "mnits: no such dataset: did you mean mnist" in str(error.value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"subsample_classes": 11}, "--subsample-classes 11"),
        ({"noise": 1.5, "noise_seed": 1}, "--noise 1.5"),
        ({"subsample_classes": 1, "noise": 0.5, "noise_seed": 1}, "--noise 0.5"),
        ({"split": 0.0001}, "--split 0.0001"),
        ({"upscale": True, "upscale_padding": True}, "--upscale-padding"),
    ],
)
def test_impossible_option_is_an_error_that_names_it(options, named):
    with pytest.raises(data.DataError) as error:
        load_mini(**options)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_last_batch_holds_the_rest():
    loader = load_mini(batch_size=300).test
    assert [len(images) for images, _ in loader] == [300, 300, 300, 100]
    assert len(loader) == 4
    assert loader.num_images == 1000


def test_test_set_is_the_same_without_the_training_set():
    options = {"subsample_classes": 3, "class_sample_seed": 1, "upscale_padding": True}
    alone, dataset = (load_mini(test_only=test_only, **options) for test_only in (True, False))
    assert (alone.train, alone.val, alone.train_fingerprint) == (None, None, None)
    assert whole(alone.test)[0].equal(whole(dataset.test)[0])
    for name in ("num_classes", "in_channels", "image_size", "class_names", "test_fingerprint", "notes"):
        assert getattr(alone, name) == getattr(dataset, name)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("options", [{}, {"augmentation": True}, {"noise": -1, "noise_seed": 1}])
def test_batches_have_the_layout_asked_for(memory_format, options):
    images, labels = next(iter(load_mini(memory_format=memory_format, **options).train))
    assert images.is_contiguous(memory_format=memory_format)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)


# Normalization and upscaling

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
    "cifar10": write_cifar,
    "cifar100": lambda root: write_cifar(root, classes=100),
}


@pytest.mark.parametrize(("name", "upscaling"), CONSTANTS)
def test_normalization_uses_the_published_constants(tmp_path, name, upscaling):
    WRITERS[name](tmp_path)
    options = {} if upscaling is None else {upscaling: True}
    raw, _ = next(iter(load(name, tmp_path, 3, unnormalize=True, **options).train))
    ours, _ = next(iter(load(name, tmp_path, 3, **options).train))
    assert 0 <= raw.min() < 0.1
    assert 0.9 < raw.max() <= 1
    mean, std = (torch.tensor(values)[:, None, None] for values in CONSTANTS[name, upscaling])
    torch.testing.assert_close(ours, (raw - mean) / std)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
def test_normalization_equals_torchvisions_bit_for_bit(tmp_path, name, memory_format):
    (images, _), _ = WRITERS[name](tmp_path)
    theirs = torchvision.transforms.Compose(
        [torchvision.transforms.ToTensor(), torchvision.transforms.Normalize(*CONSTANTS[name, None])]
    )
    expected = torch.stack([theirs(np.ascontiguousarray(image.transpose(1, 2, 0))) for image in images])
    ours, _ = whole(load(name, tmp_path, 7, memory_format=memory_format).train)
    assert ours.equal(expected)


@pytest.mark.parametrize(("option", "side"), [("upscale", 224), ("upscale_padding", 112)])
@pytest.mark.parametrize("dataset", ["fashion_mnist_mini", "cifar10"])
def test_upscaled_pixels_are_those_of_pil(dataset, option, side, tmp_path):
    images = mini_arrays("t10k")[0][:20] if dataset != "cifar10" else write_cifar(tmp_path)[1][0]
    loaded = load(dataset, tmp_path, 20, unnormalize=True, test_only=True, **{option: True})
    assert loaded.image_size == (224, 224)
    found, _ = pixels([next(iter(loaded.test))])
    theirs = torchvision.transforms.Compose(
        [torchvision.transforms.Resize((side, side)), torchvision.transforms.Pad((224 - side) // 2)]
    )
    for image, upscaled in zip(images, found[: len(images)], strict=True):
        expected = np.asarray(theirs(Image.fromarray(image if image.ndim == 2 else image.transpose(1, 2, 0))))
        assert (upscaled.transpose(1, 2, 0).squeeze() == expected).all()


@pytest.mark.parametrize("size", [(225, 300), (300, 250)])
def test_larger_images_are_shrunk_as_in_pil(size):
    """To one grey level: newer versions of PIL begin with the columns of tall images."""
    images = np.random.default_rng(0).integers(256, size=(2, 3, *size), dtype=np.uint8)
    for image, ours in zip(images, transforms.upscale(torch.tensor(images), 224), strict=True):
        theirs = Image.fromarray(image.transpose(1, 2, 0)).resize((224, 224), Image.Resampling.BILINEAR)
        assert np.abs(ours.numpy().transpose(1, 2, 0) - np.asarray(theirs, int)).max() <= 1


# Augmentation


def crops_of(image, flip):
    """Yield all results that augmentation can have for an image (C, H, W), with row, column and flip of each."""
    height, width = image.shape[1:]
    padded = np.pad(image, ((0, 0), (4, 4), (4, 4)))
    for row in range(9):
        for column in range(9):
            cut = padded[:, row : row + height, column : column + width]
            for flipped in (False, True) if flip else (False,):
                yield (row, column, flipped), cut[:, :, ::-1] if flipped else cut


def found_crop(image, augmented, flip):
    return next(key for key, candidate in crops_of(image, flip) if (candidate == augmented).all())


def test_crop_and_flip_equal_those_of_numpy():
    random = np.random.default_rng(0)
    images = random.integers(256, size=(90, 3, 9, 7), dtype=np.uint8)
    corners = np.array([(row, column) for row in range(9) for column in range(9)] + [(0, 8)] * 9)
    flipped = random.random(90) < 0.5
    for source in (torch.tensor(images), torch.tensor(images).float()):
        ours = transforms.flip(transforms.crop(source, torch.tensor(corners)), torch.tensor(flipped))
        assert ours.dtype == source.dtype
        for i in range(90):
            expected = dict(crops_of(images[i], True))[(*corners[i], flipped[i])]
            assert (ours[i].numpy() == expected).all()


def test_grey_images_are_cropped_at_all_offsets_and_never_flipped():
    images, labels = mini_arrays()
    loader = load_mini(unnormalize=True, augmentation=True, seed=3).train
    found, found_labels = pixels(loader)
    assert (found_labels == labels).all()
    offsets = [found_crop(images[i : i + 1], found[i], flip=False)[:2] for i in range(400)]
    for axis in (0, 1):
        counts = np.bincount([offset[axis] for offset in offsets], minlength=9)
        assert counts.min() > 400 / 9 / 2
    assert np.abs(np.corrcoef(np.array(offsets).T)[0, 1]) < 0.25
    second, _ = pixels(loader)
    assert offsets[:30] != [found_crop(images[i : i + 1], second[i], flip=False)[:2] for i in range(30)]


def test_colour_images_are_cropped_and_half_of_them_flipped(tmp_path):
    (images, labels), _ = write_cifar(tmp_path, n=40)
    loader = load("cifar10", tmp_path, 64, unnormalize=True, augmentation=True, seed=3).train
    found, found_labels = pixels(loader)
    assert (found_labels == labels).all()
    keys = [found_crop(image, augmented, flip=True) for image, augmented in zip(images, found, strict=True)]
    assert 70 < sum(flipped for _, _, flipped in keys) < 130  # of 200; five standard deviations
    assert {row for row, _, _ in keys} == {column for _, column, _ in keys} == set(range(9))


@pytest.mark.parametrize("change", [{"augmentation": True}, {"noise": -1, "noise_seed": 1}])
def test_only_training_images_are_augmented_and_shuffled(change):
    changed, plain = load_mini(split=0.1, **change), load_mini(split=0.1)
    assert not whole(changed.train)[0].equal(whole(plain.train)[0])
    for part in ("val", "test"):
        assert whole(getattr(changed, part))[0].equal(whole(getattr(plain, part))[0])
    assert whole(changed.train.as_is())[0].equal(whole(plain.train.as_is())[0]) == ("augmentation" in change)


def test_upscaled_images_are_augmented_after_upscaling():
    options = {"batch_size": 6, "upscale": True, "unnormalize": True}
    plain, augmented = (
        next(iter(load_mini(augmentation=augmentation, **options).train))[0].numpy()
        for augmentation in (False, True)
    )
    for image, found in zip(plain, augmented, strict=True):
        found_crop(image, found, flip=False)


# Order


def test_training_is_in_file_order_without_shuffle_and_split():
    _, labels = mini_arrays()
    loader = load_mini(seed=4).train
    for _ in range(2):
        assert (whole(loader)[1].numpy() == labels).all()


@pytest.mark.parametrize("options", [{"shuffle": True}, {"split": 0.1}, {"split": 0.1, "shuffle": True}])
def test_each_epoch_has_a_new_order_with_shuffle_or_split(options):
    loader = load_mini(unnormalize=True, split_seed=1, **options).train
    true_label = {image.tobytes(): label for image, label in zip(*mini_arrays(), strict=True)}
    epochs = []
    for _ in range(3):
        images, labels = pixels(loader)
        epochs.append([image.tobytes() for image in images])
        assert [true_label[image] for image in epochs[-1]] == labels.tolist()
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])


@pytest.mark.parametrize("options", [{"shuffle": True}, {"shuffle": True, "augmentation": True}])
def test_epoch_depends_on_seed_and_epoch_alone(options):
    first, again, other = (load_mini(seed=seed, **options).train for seed in (7, 7, 8))
    epochs = [whole(first) for _ in range(3)]
    again.epoch = 2
    for ours, theirs in zip(whole(again), epochs[2], strict=True):
        assert ours.equal(theirs)
    assert again.epoch == first.epoch == 3
    assert not whole(other)[0].equal(epochs[0][0])
    assert not epochs[0][0].equal(epochs[1][0])
    assert whole(load_mini(batch_size=900, seed=7, **options).train)[0].equal(epochs[0][0])


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": True, "augmentation": True},
        {"noise": -1, "noise_seed": 1},
        {"noise": -1, "noise_seed": 1, "upscale_padding": True, "subsample_classes": 1, "split": 0.95},
    ],
    ids=str,
)
def test_batches_made_together_equal_batches_made_one_by_one(options):
    together = load_mini(batch_size=3 if "split" in options else 300, **options).train
    assert together.batches_at_once > 1
    one_by_one = replace(together, batches_at_once=1)
    for _ in range(2):  # epochs
        for ours, theirs in zip(together, one_by_one, strict=True):
            assert ours[0].equal(theirs[0])
            assert ours[1].equal(theirs[1])


@pytest.mark.cuda
@pytest.mark.parametrize(
    "options",
    [{"augmentation": True}, {"noise": -1, "noise_seed": 1}, {"upscale": True, "augmentation": True}],
    ids=str,
)
def test_batches_on_a_gpu_equal_batches_on_a_cpu(options, tmp_path):
    write_cifar(tmp_path, n=40)
    on_cpu, on_gpu = (
        load("cifar10", tmp_path, 16, device=device, shuffle=True, seed=3, **options).train
        for device in ("cpu", "cuda")
    )
    assert on_cpu.batches_at_once < on_gpu.batches_at_once or "upscale" in options
    for (images, labels), (expected_images, expected_labels) in zip(on_gpu, on_cpu, strict=True):
        torch.testing.assert_close(images.cpu(), expected_images, rtol=1e-4, atol=1e-4)
        assert labels.cpu().equal(expected_labels)


# Classes, split and noise


@pytest.mark.parametrize("noise", [0.3, -1])
@pytest.mark.parametrize("stratified", [False, True])
def test_all_options_together_equal_a_plain_pipeline(tmp_path, noise, stratified):
    """Classes are subsampled, then split, then labels are corrupted; images are cropped, shuffled, normalized."""
    (images, labels), (test_images, test_labels) = write_cifar(tmp_path, n=40)
    options = {"subsample_classes": 5, "class_sample_seed": 3, "split": 0.2, "split_seed": 8, "shuffle": True}
    options |= {"stratified": stratified, "noise": noise, "noise_seed": 6, "augmentation": True, "seed": 2}
    dataset = load("cifar10", tmp_path, 32, **options)

    kept = list(range(10))
    np.random.RandomState(3).shuffle(kept)
    kept = kept[:5]
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    assert dataset.class_names == [names[label] for label in kept]

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
    mean, std = (np.array(values, np.float32)[:, None, None] for values in CONSTANTS["cifar10", None])

    possible = {}  # content of each possible training image -> its position in `train`
    for position, index in enumerate(train):
        for _, cut in crops_of(images[index], flip=True):
            shuffled = cut.reshape(3, -1)[:, permutations[position]].reshape(3, 32, 32)
            possible[np.ascontiguousarray(shuffled).tobytes()] = position
    epochs = []
    for _ in range(2):
        found, found_labels = whole(dataset.train)
        raw = np.rint((found.numpy() * std + mean) * 255).astype(np.uint8)
        positions = [possible[image.tobytes()] for image in raw]
        assert sorted(positions) == list(range(len(train)))
        assert (found_labels.numpy() == noisy[positions]).all()
        epochs.append(positions)
    assert epochs[0] != epochs[1]

    validation, test = (images[val], labels[val]), subsample(test_images, test_labels)
    for loader, (raw, expected_labels) in ((dataset.val, validation), (dataset.test, test)):
        found, found_labels = whole(loader)
        expected = (raw.astype(np.float32) / np.float32(255) - mean) / std
        np.testing.assert_array_equal(found.numpy(), expected)
        assert (found_labels.numpy() == expected_labels).all()


@pytest.mark.parametrize("option", ["upscale", "upscale_padding"])
def test_upscaled_images_are_shuffled_by_a_permutation_per_image_number(option):
    options = {"batch_size": 8, "unnormalize": True, "split": 0.998, option: True}
    plain = load_mini(**options).train
    shuffled = load_mini(noise=-1, noise_seed=3, **options).train
    ordered = whole(plain.as_is())[0]
    (images, labels), (found, found_labels) = whole(plain), whole(shuffled)
    assert labels.equal(found_labels)
    for image, permuted in zip(images, found, strict=True):
        number = next(i for i in range(8) if ordered[i].equal(image))
        permutation = np.random.RandomState([3, number]).permutation(224 * 224)
        assert permuted.flatten().equal(image.flatten()[torch.from_numpy(permutation)])
