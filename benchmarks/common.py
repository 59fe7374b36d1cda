"""What the benchmarks share: where the numbers come from, medians with their spread, the plain way to images."""

import argparse
import contextlib
import os
import platform
import statistics
import struct
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch.nn import functional
from torch.utils.data import DataLoader

import data
from data.loading import normalization
from utils.options import number
from utils.process import devices
from utils.training import precision


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """The options of the programs that decide where and how it is computed."""
    parser.add_argument("--cuda", action="store_true", help="measure on the GPU")
    parser.add_argument(
        "--amp", action="store_true", help="all in bfloat16 (autocast), as the programs with --amp"
    )
    parser.add_argument(
        "--tf32", action="store_true", help="all with TF32 on the GPU, as the programs with --tf32"
    )


def add_trials_option(parser: argparse.ArgumentParser, least: int) -> None:
    """--trials of the programs that measure what cuDNN's trials cost and gain; None where it is not given."""
    parser.add_argument(
        "--trials",
        type=number(int, least),
        metavar="N",
        help=f"how many algorithms cuDNN tries for each shape on a GPU, from {least} on (PyTorch's default: 10)",
    )


def prepare_device(args: argparse.Namespace) -> tuple[torch.device, torch.memory_format]:
    """The device, set up as the programs do it, and the layout of their images and convolutions there."""
    device = devices.choose(args.cuda)
    precision.set_precision(device, args.tf32)
    return device, precision.memory_format(device, args.amp, args.tf32)


def header(device: torch.device) -> str:
    """The machine and the versions, in one line."""
    host = f" ({devices.processor()})" if device.type == "cuda" else ""
    return (
        f"{devices.describe(device)}; {os.cpu_count()} cores{host}; Python {platform.python_version()}, "
        f"PyTorch {torch.__version__}, torchvision {torchvision.__version__}"
    )


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """The median, and the smallest and the largest value in brackets."""
    return f"{statistics.median(values):{form}} [{min(values):{form}} to {max(values):{form}}]"


def measure(
    ways: Mapping[str, Callable[[], object]], repetitions: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds that each way takes, several times, in turn, so that a busy machine disturbs all alike.

    The first two, which are compared most closely, change places every other round, so that with an even number of
    repetitions each comes as often after the last way as after the other. The first round warms up and is not
    counted. What is still under way on the GPU is waited for.
    """
    seconds = {name: [] for name in ways}
    first, second, *others = ways
    for repetition in range(repetitions + 1):
        order = (second, first) if repetition % 2 else (first, second)
        for name in (*order, *others):
            way = ways[name]
            synchronize(device)
            start = time.perf_counter()
            way()
            synchronize(device)
            if repetition > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


class ConstantBatches:
    """One batch again and again, as often as an epoch has batches."""

    def __init__(self, loader):
        self.batch = next(iter(loader))
        self.length, self.num_images, self.batch_size = len(loader), loader.num_images, loader.batch_size

    def __len__(self):
        return self.length

    def __iter__(self):
        for start in range(0, self.num_images, self.batch_size):  # the last batch is as short as the real one
            images, labels = self.batch
            count = min(self.batch_size, self.num_images - start)
            yield images[:count], labels[:count]


def take_all(batches, device: torch.device) -> None:
    """Have all batches made, and bring them to the device where they are not there yet."""
    for images, labels in batches:
        images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def report(seconds: Mapping[str, Sequence[float]], num_images: int) -> None:
    """A line for each way: images a second, and how many times as long as ours it takes."""
    ours = statistics.median(seconds["ours"])
    width = max(map(len, seconds))
    for name, values in seconds.items():
        rates = [num_images / value for value in values]
        ratio = statistics.median(values) / ours
        print(f"  {name:<{width}} {spread(rates):>34} images/s   {ratio:6.2f} x the time of ours")


@contextlib.contextmanager
def dataset_folder(name: str, data_path: str | None, count: int | None = None):
    """The folder of the datasets; without one, a temporary one with random images in the form of the dataset.

    How long it takes does not depend on what is on them. count: of training images (CIFAR-10 then has
    a fifth of it for testing); None: as many as it has.
    """
    if data_path is not None:
        yield Path(data_path)
        return
    spec, random = data.info(name), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        if name == "cifar10":
            files = Path(folder, "cifar-10-batches-bin")
            files.mkdir()
            for file in [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]:
                records = random.integers(256, size=((count or 50_000) // 5, 3073), dtype=np.uint8)
                records[:, 0] %= 10
                (files / file).write_bytes(records.tobytes())
        elif name in ("mnist", "fashion_mnist"):
            files = Path(folder, {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name], "raw")
            files.mkdir(parents=True)
            for part, number in (("train", count or 60_000), ("t10k", 10_000)):
                pixels = random.integers(256, size=(number, *spec.image_size), dtype=np.uint8)
                labels = random.integers(10, size=number, dtype=np.uint8)
                head = struct.pack(">4I", 0x803, *pixels.shape)
                (files / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
                (files / f"{part}-labels-idx1-ubyte").write_bytes(
                    struct.pack(">2I", 0x801, number) + labels.tobytes()
                )
        elif not spec.in_repository:
            raise SystemExit(f"--dataset {name}: give --data-path")
        yield Path(folder)


@torch.inference_mode()
def evaluate_plainly(net: torch.nn.Module, loader: DataLoader, device: torch.device) -> tuple[float, float]:
    """Loss and accuracy in percent, as plain PyTorch code has it."""
    net.eval()
    loss = correct = count = 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        logits = net(images).float()
        loss += functional.cross_entropy(logits, labels, reduction="sum").item()
        correct += (logits.argmax(1) == labels).sum().item()
        count += len(labels)
    return loss / count, 100 * correct / count


class PlainDataset(torch.utils.data.Dataset):
    """Images in memory, made a PIL image and transformed one by one, as torchvision's dataset classes do."""

    def __init__(self, images, labels, transform):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        from PIL import Image

        pixels = self.images[index].permute(1, 2, 0).numpy()
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        return self.transform(image), int(self.labels[index])


def plain_loader(
    name: str,
    loader,
    batch_size: int,
    device: torch.device,
    augmentation: bool = False,
    workers: int = 1,
    *,
    shuffle: bool,
) -> DataLoader:
    """The plain PyTorch way to the images of a loader of ours, to be used on the device."""
    from torchvision import transforms

    spec = data.info(name)
    steps = [transforms.ToTensor(), transforms.Normalize(*normalization(spec, False, False))]
    if augmentation:
        steps.insert(0, transforms.RandomCrop(spec.image_size, padding=4))
        if spec.flip:
            steps.insert(1, transforms.RandomHorizontalFlip())
    dataset = PlainDataset(loader.images.cpu(), loader.labels.cpu(), transforms.Compose(steps))
    pinned = device.type == "cuda"
    warnings.filterwarnings("ignore", "This DataLoader will create")  # that there are fewer cores
    return DataLoader(dataset, batch_size, shuffle=shuffle, num_workers=workers, pin_memory=pinned)
