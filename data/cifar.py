"""CIFAR-10 and CIFAR-100: the official binary version, or the version that torchvision downloads."""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from core.text import first_line
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

    The last label of a record is the class: CIFAR-100 has the superclass before it. All files hold the same number
    of records.

    Raises:
        DataError: a file is damaged.
        OSError: a file cannot be read.
    """
    record_bytes = label_bytes + IMAGE_BYTES
    images, labels = [], []
    for file in files:
        content = np.fromfile(file, np.uint8)
        if not content.size or content.size % record_bytes:
            raise DataError(f"{file} is damaged: {content.size} bytes are not records of {record_bytes} bytes")
        records = content.reshape(-1, record_bytes)
        images.append(records[:, label_bytes:])
        labels.append(records[:, label_bytes - 1])
        if len(labels[-1]) != len(labels[0]):
            raise DataError(f"{file} is damaged: it holds {len(records)} images, {files[0].name} {len(labels[0])}")
        if labels[-1].max() >= num_classes:
            raise DataError(f"{file} is damaged: it holds a label above {num_classes - 1}")
    images = np.concatenate(images).reshape(-1, 3, 32, 32)
    return ArraySource(torch.from_numpy(images), np.concatenate(labels).astype(np.int64))


def read_pickled(name: str, root: Path, train: bool) -> ArraySource:
    """Read the version that torchvision downloads and unpickles; torchvision compares its checksums first."""
    import torchvision.datasets

    try:
        dataset = getattr(torchvision.datasets, name)(root, train=train)
    except RuntimeError as error:
        raise DataError(f"--data-path {root}: {first_line(error)}") from None
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return ArraySource(images, np.array(dataset.targets, dtype=np.int64))


def read(root: Path, train: bool, name: str, class_names: tuple[str, ...]):
    """Read CIFAR-10 or CIFAR-100 (torchvision's name: "CIFAR10", "CIFAR100"); download it if it is missing."""
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
