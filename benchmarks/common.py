"""What the benchmarks share: options, random datasets, measuring, and plain PyTorch code to compare with."""

import argparse
import contextlib
import os
import platform
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import data  # noqa: E402
import models  # noqa: E402
from utils.arguments import Number  # noqa: E402
from utils.process import devices  # noqa: E402
from utils.training import precision  # noqa: E402

# The learning rate does not change the cost of a step, but a network that diverges may be slower.
HYPERPARAMETERS = argparse.Namespace(optimizer="sgd", lr=1e-3, momentum=0.9, weight_decay=1e-4)


def make_parser(doc: str | None, repetitions: int, network: bool = True) -> argparse.ArgumentParser:
    """Return a parser with the shared options; `network`: also --arch and --dataset."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--repetitions", type=Number(int, 1), default=repetitions, metavar="N", help=f"default: {repetitions}")
    add("--cuda", action="store_true", help="measure on the GPU")
    if network:
        add("--arch", default="lenet", help="default: lenet")
        add("--dataset", default="mnist", help="default: mnist")
    return parser


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add the options about images, and --tf32."""
    add = parser.add_argument
    add("--data-path", metavar="DIR", help="folder of the datasets (default: random images of the same shape)")
    add("--images", type=Number(int, 1), metavar="N", help="number of images to use (default: all)")
    add("--batch-size", type=Number(int, 1), default=128, metavar="N", help="default: 128")
    add("--tf32", action="store_true", help="use TF32 on the GPU")


def prepare_device(args: argparse.Namespace) -> tuple[torch.device, torch.memory_format]:
    """Set up the device as the programs do, print it, and return it with the memory format of images on it."""
    device, tf32 = devices.choose(args.cuda), getattr(args, "tf32", False)
    if args.cuda and device.type == "cpu":
        raise SystemExit("--cuda: PyTorch finds no GPU here")
    devices.take(device)
    precision.set_precision(device, tf32=tf32)
    host = f" ({devices.processor()})" if args.cuda else ""
    versions = f"PyTorch {torch.__version__}, torchvision {torchvision.__version__}"
    machine = f"{devices.describe(device)}; {os.cpu_count()} cores{host}"
    print(f"{machine}; Python {platform.python_version()}, {versions}")
    return device, precision.memory_format(device, tf32=tf32)


def build(args: argparse.Namespace, device: torch.device, memory_format=torch.contiguous_format) -> nn.Module:
    """Return the network of --arch for the images of --dataset, with the same random weights at each call."""
    torch.manual_seed(0)
    spec = data.info(args.dataset)
    net = models.build(args.arch, spec.num_classes, spec.in_channels, spec.image_size)
    return net.to(device, memory_format=memory_format)


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """Return the median, and the smallest and the largest value in brackets."""
    return f"{statistics.median(values):{form}} [{min(values):{form}} to {max(values):{form}}]"


def measure(ways: Mapping[str, Callable], repetitions: int, device: torch.device) -> dict[str, list[float]]:
    """Return the seconds that each way takes, several times.

    The ways take turns, so that other work on the machine disturbs all alike. The first two, which are compared
    most closely, change places every other round. The first round warms up and is not counted.
    """
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = {name: [] for name in ways}
    names = list(ways)
    for _ in range(1 + repetitions):
        for name in names:
            wait()
            start = time.perf_counter()
            ways[name]()
            wait()
            seconds[name].append(time.perf_counter() - start)
        names[:2] = reversed(names[:2])
    return {name: values[1:] for name, values in seconds.items()}


def run(command: Sequence[str], folder: Path) -> tuple[float, resource.struct_rusage]:
    """Run a process in a folder. Return its seconds from start to end, and what it used (see getrusage(2))."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: ended with exit status {process.returncode}")
    return time.perf_counter() - start, used


def report(seconds: Mapping[str, Sequence[float]], num_images: int) -> None:
    """Print a line for each way: images per second, and its time as a multiple of the first way's time."""
    first = statistics.median(next(iter(seconds.values())))
    for name, values in seconds.items():
        rates, ratio = [num_images / value for value in values], statistics.median(values) / first
        print(f"  {name:<18} {spread(rates):>34} images/s   {ratio:6.2f} x the time of ours")


class ConstantBatches(list):
    """One batch of a loader, repeated for an epoch. The last batch is as short as the loader's."""

    def __init__(self, loader):
        self.num_images, self.batch_size = loader.num_images, loader.batch_size
        batch = [tensor.clone() for tensor in next(iter(loader))]
        starts = range(0, self.num_images, self.batch_size)
        super().__init__([tensor[: self.num_images - start] for tensor in batch] for start in starts)


def take_all(batches, device: torch.device) -> None:
    """Make all batches, and copy them to the device if they are not there yet."""
    for images, labels in batches:
        images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


@contextlib.contextmanager
def dataset_folder(name: str, data_path: str | None, count: int | None = None) -> Iterator[Path]:
    """Yield --data-path, or a temporary folder with random images in the files of the dataset.

    There are `count` training images (None: as many as in the dataset). MNIST has 10,000 test images, CIFAR-10 a
    fifth of the number of training images. ImageNet has two; its images are JPEGs of 500x375 pixels.
    """
    if data_path is not None:
        yield Path(data_path).resolve()
        return
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        if name == "cifar10":
            files = Path(folder, "cifar-10-batches-bin")
            files.mkdir()
            for file in [*(f"data_batch_{index}.bin" for index in range(1, 6)), "test_batch.bin"]:
                records = random.integers(256, size=((count or 50_000) // 5, 3073), dtype=np.uint8)
                records[:, 0] %= 10
                (files / file).write_bytes(records.tobytes())
        elif name == "mnist":
            files = Path(folder, "MNIST", "raw")
            files.mkdir(parents=True)
            for part, size in (("train", count or 60_000), ("t10k", 10_000)):
                for kind, shape, end in (("images", (size, 28, 28), 256), ("labels", (size,), 10)):
                    values = random.integers(end, size=shape, dtype=np.uint8)
                    head = struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape)
                    (files / f"{part}-{kind}-idx{len(shape)}-ubyte").write_bytes(head + values.tobytes())
        elif name == "imagenet":
            for part, size in (("train", count), ("val", 2)):
                for index in range(size):
                    file = Path(folder, part, f"class{index % 2}", f"{index}.jpg")
                    file.parent.mkdir(parents=True, exist_ok=True)
                    image = Image.fromarray(random.integers(256, size=(47, 63, 3), dtype=np.uint8))
                    image.resize((500, 375), Image.Resampling.BICUBIC).save(file, quality=90)
        else:
            raise SystemExit(f"--dataset {name}: has no random images; give --data-path, or use mnist or cifar10")
        yield Path(folder)


def run_plainly(net: nn.Module, loader: DataLoader, device: torch.device, optimizer=None) -> float:
    """Train for an epoch, or evaluate without an optimizer, in plain PyTorch. Return the accuracy in percent."""
    net.train(optimizer is not None)
    loss_sum = correct = 0
    for images, labels in loader:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with torch.set_grad_enabled(optimizer is not None):
            logits = net(images)
            loss = functional.cross_entropy(logits, labels)
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss_sum += loss.item() * len(labels)
        correct += (logits.argmax(1) == labels).sum().item()
    return 100 * correct / len(loader.dataset)


class PlainDataset(Dataset):
    """Images in memory, turned into PIL images and transformed one by one, as torchvision's datasets do."""

    def __init__(self, loader, steps):
        self.images, self.labels = loader.images.cpu(), loader.labels.cpu()
        self.transform = transforms.Compose([transforms.ToPILImage(), *steps])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(self.images[index]), int(self.labels[index])


def plain_loader(images: data.Images, loader, batch_size: int, workers: int = 1, shuffle: bool = True):
    """Return the plain PyTorch way to the images of one of our loaders."""
    steps = [transforms.ToTensor(), transforms.Normalize(*images.normalization)]
    if loader.augmentation:
        flip = [transforms.RandomHorizontalFlip()] if images.spec.flip else []
        steps = [transforms.RandomCrop(images.spec.image_size, padding=4), *flip, *steps]
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than there are cores
    options = {"num_workers": workers, "pin_memory": loader.images.is_cuda}
    return DataLoader(PlainDataset(loader, steps), batch_size, shuffle=shuffle, **options)
