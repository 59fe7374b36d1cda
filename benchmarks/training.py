"""Training throughput: the epoch loop of train.py beside its limit and beside the plain PyTorch way.

    python benchmarks/training.py                                   LeNet on images of MNIST's form, the CPU
    python benchmarks/training.py --data-path DIR                   LeNet on MNIST itself
    python benchmarks/training.py --arch vgg11 --dataset cifar10 --augmentation --cuda

All are measured in one run, in turn, with the same network and batch size:

    ours       an epoch as train.py runs it
    constant   the same training step on one batch that lies on the device: what data handling cannot beat
    plain      a dataset of PIL images as torchvision's, ToTensor and Normalize, a DataLoader with workers, the
               contiguous layout, loss.item() at every step
    supply     the batches alone, without a network
"""

import argparse
import functools
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent.parent))

import data
import models
from benchmarks.common import dataset_folder, header, measure, plain_loader, report
from data.memory import MemoryLoader
from train import train_epoch
from utils import devices


def plain_epoch(net, optimizer, loader, device) -> None:
    net.train()
    total = 0.0
    for images, labels in loader:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        loss = functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()


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


def first_images(loader: MemoryLoader, count: int | None) -> MemoryLoader:
    """The loader with fewer images: a smaller epoch."""
    return replace(loader, images=loader.images[:count], labels=loader.labels[:count])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="lenet")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-path", help="where the datasets are (default: random images of the same form)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--augmentation", action="store_true")
    parser.add_argument("--images", type=int, metavar="N", help="of an epoch (default: all)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4], help="of the plain way (1 4)")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--cuda", action="store_true")
    args = parser.parse_args()
    device = devices.choose(args.cuda)
    layout = devices.memory_format(device)
    with dataset_folder(args.dataset, args.data_path) as folder:
        dataset = data.load(
            args.dataset,
            folder,
            args.batch_size,
            device=device,
            shuffle=True,
            augmentation=args.augmentation,
            memory_format=layout,
        )
    images = first_images(dataset.train, args.images)

    def network(memory_format) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = models.build(args.arch, dataset.num_classes, dataset.in_channels, dataset.image_size)
        net.to(device, memory_format=memory_format)
        # The step's cost does not depend on the learning rate, but a network that diverges may be slower.
        return net, torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

    ours, constant, plain = network(layout), network(layout), network(torch.contiguous_format)
    batches = ConstantBatches(images)

    def supply():
        for batch, _ in images:
            last = batch
        return last

    ways = {
        "ours": lambda: train_epoch(*ours, images, 0),
        "constant": lambda: train_epoch(*constant, batches, 0),
        "supply": supply,
    }
    for workers in args.workers:
        loader = plain_loader(args.dataset, images, args.batch_size, args.augmentation, workers, shuffle=True)
        name = f"plain, {workers} worker{'s' if workers != 1 else ''}"
        ways[name] = functools.partial(plain_epoch, *plain, loader, device)
    seconds = measure(ways, args.repetitions, device)

    augmented = ", augmented" if args.augmentation else ""
    print(header(device))
    print(f"{args.arch} on {args.dataset}{augmented}, batch {args.batch_size}, {images.num_images:,} images,")
    print(f"median [least to most] of {args.repetitions}")
    report(seconds, images.num_images)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"  of the constant-batch step: {100 * median['constant'] / median['ours']:.1f} %")
    print(f"  data handling: {100 * median['supply'] / median['constant']:.1f} % of the time of the training step")


if __name__ == "__main__":
    main()
