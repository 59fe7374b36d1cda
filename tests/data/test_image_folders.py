"""Folders of images: they are decoded as torchvision does it, whatever the number of workers."""

import os
import re
import shutil
import struct

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sample_datasets import load_folder, whole, write_images
from torchvision.transforms import v2

from core.seeds import derive
from data import corruption, subsets
from utils.process.logging import close_log, open_log


def test_classes_are_counted_and_images_decoded_as_torchvision_does_it(tmp_path):
    paths = write_images(tmp_path, size=(300, 260))
    dataset = load_folder(tmp_path)
    assert dataset.class_names == ["n000", "n001", "n002"]
    assert (dataset.num_classes, dataset.image_size) == (3, (224, 224))
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


def test_padded_images_are_half_as_large_with_zeros_around(tmp_path):
    write_images(tmp_path, counts=(2, 2), size=(250, 250))
    (images, _), (plain, _) = (
        whole(load_folder(tmp_path, unnormalize=True, upscale_padding=padding).test) for padding in (True, False)
    )
    assert images.shape == (4, 3, 224, 224)
    inner = images[:, :, 56:168, 56:168]
    assert images.count_nonzero() == inner.count_nonzero()
    half = v2.functional.resize(plain, [112, 112], antialias=True)
    assert (inner - half).abs().mean() < 0.01


def test_augmented_images_are_the_crops_and_flips_that_torchvision_draws_from_their_seeds(tmp_path):
    paths = write_images(tmp_path, size=(300, 260))
    loader = load_folder(tmp_path, unnormalize=True, augmentation=True, seed=5).train
    crop = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()])
    for epoch in range(2):
        random = np.random.Generator(np.random.PCG64(derive(5, "augmentation", epoch)))
        for path, image, seed in zip(
            paths, whole(loader)[0], random.integers(2**63, size=len(paths)), strict=True
        ):
            torch.manual_seed(int(seed))
            assert image.equal(v2.functional.pil_to_tensor(crop(Image.open(path))) / 255)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1", "LA"])
def test_images_of_any_mode_are_converted_to_rgb(tmp_path, mode):
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
    if mode in ("RGBA", "CMYK"):  # these hold all of the colours
        assert np.abs(reread.astype(int) - np.asarray(original)[16:240, 16:240]).max() <= 2


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_do_not_depend_on_the_number_of_workers_and_resume_in_any_epoch(tmp_path, workers):
    write_images(tmp_path)
    options = {"shuffle": True, "augmentation": True, "seed": 3, "noise": -1, "noise_seed": 1, "split": 0.25}
    one = load_folder(tmp_path, **options, split_seed=0)
    other = load_folder(tmp_path, workers=workers, batch_size=2, **options, split_seed=0)
    first = whole(one.train)
    for ours, theirs in zip(first, whole(other.train), strict=True):
        assert ours.equal(theirs)
    second = whole(one.train)
    assert not first[0].equal(second[0])
    resumed = load_folder(tmp_path, workers=workers, **options, split_seed=0).train
    resumed.epoch = 1
    for ours, theirs, later in zip(second, whole(other.train), whole(resumed), strict=True):
        assert ours.equal(theirs)
        assert ours.equal(later)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_leave_the_global_generator_alone(tmp_path, workers):
    """Otherwise dropout would depend on how many epochs this process has trained."""
    write_images(tmp_path)
    loader = load_folder(tmp_path, workers=workers, shuffle=True, augmentation=True).train
    torch.manual_seed(0)
    expected = torch.rand(1)
    for _ in range(2):
        torch.manual_seed(0)
        whole(loader)
        assert torch.rand(1).equal(expected)


def test_notes_warn_of_too_many_workers_and_upscaling_without_effect(tmp_path, monkeypatch, recwarn):
    write_images(tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert load_folder(tmp_path, workers=2, shuffle=True).notes == []
    dataset = load_folder(tmp_path, workers=3, shuffle=True)
    (note,) = dataset.notes
    assert "--workers 3" in note
    whole(dataset.test)
    assert not [warning for warning in recwarn.list if "worker" in str(warning.message)]
    (note,) = load_folder(tmp_path, shuffle=True, upscale=True).notes
    assert "--upscale" in note


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"noise": 0.5, "noise_seed": 1},
        {"subsample_classes": 3, "class_sample_seed": 1},
        {"noise": -1, "noise_seed": 1},
    ],
)
def test_notes_warn_of_training_class_by_class(tmp_path, options):
    write_images(tmp_path)
    assert any("--shuffle" in note for note in load_folder(tmp_path, **options).notes)
    assert load_folder(tmp_path, split=0.3, **options).notes == []


def test_pixel_shuffle_uses_a_permutation_per_image_number(tmp_path):
    write_images(tmp_path)
    plain, labels = whole(load_folder(tmp_path, unnormalize=True).train)
    dataset = load_folder(tmp_path, unnormalize=True, noise=-1, noise_seed=4)
    shuffled, shuffled_labels = whole(dataset.train)
    assert labels.equal(shuffled_labels)
    for number, (image, found) in enumerate(zip(plain, shuffled, strict=True)):
        permutation = torch.from_numpy(np.random.RandomState([4, number]).permutation(224 * 224))
        assert found.flatten(1).equal(image.flatten(1)[:, permutation])
    assert whole(dataset.test)[0].equal(whole(load_folder(tmp_path, unnormalize=True).test)[0])


def test_classes_are_chosen_then_split_then_labels_corrupted(tmp_path):
    paths = write_images(tmp_path, counts=(10,) * 10, size=(30, 30), suffix=".jpg")
    options = {"subsample_classes": 6, "class_sample_seed": 2, "split": 0.2, "stratified": True, "shuffle": True}
    dataset = load_folder(tmp_path, 16, split_seed=3, noise=0.5, noise_seed=4, augmentation=True, **options)
    names = [f"n{number:03}" for number in range(10)]
    kept = subsets.sample_classes(names, 6, 2)
    chosen, labels = subsets.relabel(np.repeat(range(10), 10), names, kept)
    train, val = subsets.split_indices(60, 0.2, True, 3, labels)
    train.sort()
    noisy = corruption.corrupt_labels(labels[train], 6, 0.5, 4)
    assert dataset.class_names == kept
    assert dataset.train.preparation.files == [str(paths[index]) for index in chosen[train]]
    assert dataset.val.preparation.files == [str(paths[index]) for index in chosen[val]]
    assert whole(dataset.train.as_is())[1].tolist() == noisy.tolist()
    assert sorted(whole(dataset.train)[1].tolist()) == sorted(noisy.tolist())
    assert whole(dataset.val)[1].tolist() == labels[val].tolist()
    assert np.bincount(whole(dataset.test)[1]).tolist() == [10] * 6


def test_what_systems_leave_in_folders_is_neither_a_class_nor_an_image(tmp_path):
    paths = write_images(tmp_path)
    left = ["._000.png", "._001.png", ".hidden.png", "Thumbs.db", "@eaDir/000.png/S.png", "deep/.cache/1.png"]
    for name in [
        *(f"train/n000/{name}" for name in left),
        *(f"val/{name}/0.png" for name in (".ipynb", "__MACOSX")),
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(paths[0], tmp_path / name)
    for name in ("notes.txt", "a.svg", "b.SVG", "README"):
        (tmp_path / "val/n001" / name).write_text("no image")
    dataset = load_folder(tmp_path, shuffle=True)
    assert (dataset.class_names, dataset.train.num_images, dataset.test.num_images) == (
        ["n000", "n001", "n002"],
        12,
        12,
    )
    (note,) = dataset.notes
    assert "12 files or folders are left out" in note
    for named in ("2 ._*", "1 Thumbs.db", "1 @eaDir", "1 .cache", "1 .ipynb", "1 __MACOSX", "1 *.txt", "2 *.svg"):
        assert named in note


SUFFIXES = "jpg jpeg jpe jfif png bmp webp tif tiff ppm pgm gif avif JPG Gif".split()


def test_all_usual_formats_are_read(tmp_path):
    write_images(tmp_path, counts=(1,), suffix=".jpg")
    original = Image.effect_noise((300, 260), 20)
    readable = [suffix for suffix in SUFFIXES if f".{suffix.lower()}" in Image.registered_extensions()]
    for suffix in readable:
        original.save(tmp_path / f"train/n000/x.{suffix}")
    dataset = load_folder(tmp_path, 50, unnormalize=True, shuffle=True)
    assert dataset.notes == []
    images, _ = whole(dataset.train.as_is())
    assert len(images) == 1 + len(readable)
    expected = v2.functional.pil_to_tensor(v2.CenterCrop(224)(v2.Resize(256)(original.convert("RGB")))) / 255
    assert (images[1:] - expected).abs().mean([1, 2, 3]).max() < 0.05


@pytest.mark.parametrize("workers", [0, 2])
def test_warnings_about_images_are_logged_once_with_the_file(tmp_path, workers, capsys):
    paths = write_images(tmp_path, counts=(3, 3), suffix=".jpg")
    for path in paths[1::2]:  # EXIF data that end too early
        content = path.read_bytes()
        exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 200) + b"\x12\x01\x03\0\x01\0\0\0"
        path.write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[20:])
    _, log = open_log(tmp_path, "x.log")
    try:
        dataset = load_folder(tmp_path, 2, workers=workers, shuffle=True)
        for _ in range(2):
            whole(dataset.train)
        whole(dataset.train.as_is())
        whole(dataset.test)
    finally:
        close_log()
    lines = sorted(capsys.readouterr().err.splitlines())
    assert [line.partition(" Corrupt EXIF")[0] for line in lines] == [f"warning: {path}:" for path in paths[1::2]]
    assert sorted(re.findall(r"WARNING (.*)", log.read_text())) == [
        line.removeprefix("warning: ") for line in lines
    ]
