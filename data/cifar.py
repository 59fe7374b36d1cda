"""CIFAR-10 and CIFAR-100: the official binary version where it is there, else through torchvision."""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from data.download import download
from data.registry import ArraySource, DataError, Spec, register

IMAGE_BYTES = 3 * 32 * 32

CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
CIFAR100_CLASSES = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()
)


def read_binary(files: list[Path], label_bytes: int, num_classes: int) -> ArraySource:
    """Read files of the binary version: records of `label_bytes` labels and 3,072 pixels, channel by channel.

    Of several labels the last is the class (CIFAR-100 has the superclass before it). The files of one part
    hold the same number of records.

    Raises:
        DataError: a file is missing, or is not a whole number of records with labels in range.
    """
    record_bytes = label_bytes + IMAGE_BYTES
    images = labels = None  # filled file by file: all of them need the memory once
    for number, file in enumerate(files):
        if file.exists() and not file.is_file():
            raise DataError(f"{file} is not a file")
        try:
            content = np.fromfile(file, dtype=np.uint8)
        except OSError as error:
            raise DataError(f"{file}: {error.strerror}") from None
        if not content.size or content.size % record_bytes:
            raise DataError(f"{file} is damaged: {content.size} bytes are not records of {record_bytes} bytes")
        records = content.reshape(-1, record_bytes)
        count = len(records)
        if images is None:
            images = np.empty((len(files), count, 3, 32, 32), np.uint8)
            labels = np.empty((len(files), count), np.int64)
        elif count != images.shape[1]:
            raise DataError(f"{file} is damaged: it holds {count} images, {files[0].name} {images.shape[1]}")
        labels[number] = records[:, label_bytes - 1]
        if labels[number].max() >= num_classes:
            raise DataError(
                f"{file} is damaged: it holds the label {labels[number].max()}; there are {num_classes} classes"
            )
        images[number] = records[:, label_bytes:].reshape(count, 3, 32, 32)
    return ArraySource(torch.from_numpy(images).flatten(0, 1), labels.reshape(-1))


def read(root: Path, train: bool, name: str, class_names: tuple[str, ...]):
    """Read CIFAR-10 or CIFAR-100 ("CIFAR10", "CIFAR100") from the folder of the datasets.

    Raises:
        DataError: it is not there and cannot be downloaded, or is damaged.
    """
    if name == "CIFAR10":
        folder, pickled, label_bytes = root / "cifar-10-batches-bin", "cifar-10-batches-py", 1
        files = [f"data_batch_{number}.bin" for number in range(1, 6)] if train else ["test_batch.bin"]
    else:
        folder, pickled, label_bytes = root / "cifar-100-binary", "cifar-100-python", 2
        files = ["train.bin"] if train else ["test.bin"]
    if folder.exists():
        return read_binary([folder / file for file in files], label_bytes, len(class_names)), class_names
    if not (root / pickled).exists():
        download(name, root, pickled)
    return read_pickled(name, root, train), class_names


def read_pickled(name: str, root: Path, train: bool) -> ArraySource:
    """Read the version that torchvision downloads and unpickles, after it has compared the files' checksums."""
    import torchvision.datasets

    try:
        dataset = getattr(torchvision.datasets, name)(root, train=train)
    except (OSError, RuntimeError) as error:
        raise DataError(f"--data-path {root}: {str(error).splitlines()[0]}") from None
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return ArraySource(images, np.array(dataset.targets, dtype=np.int64))


colour_32x32 = partial(Spec, in_channels=3, image_size=(32, 32), flip=True)

register(
    colour_32x32(
        "cifar10",
        num_classes=10,
        normalization=((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        normalization_upscaled=((0.4914, 0.4822, 0.4465), (0.1953, 0.1925, 0.1942)),
        normalization_padded=((0.1229, 0.1206, 0.1117), (0.2367, 0.2323, 0.2190)),
        read=partial(read, name="CIFAR10", class_names=CIFAR10_CLASSES),
    )
)
register(
    colour_32x32(
        "cifar100",
        num_classes=100,
        normalization=((0.5071, 0.4865, 0.4409), (0.2009, 0.1984, 0.2023)),
        normalization_upscaled=((0.5071, 0.4865, 0.4409), (0.1942, 0.1918, 0.1958)),
        normalization_padded=((0.1268, 0.1217, 0.1103), (0.2435, 0.2343, 0.2177)),
        read=partial(read, name="CIFAR100", class_names=CIFAR100_CLASSES),
    )
)
