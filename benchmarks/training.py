"""Training throughput: the epoch loop of train.py beside its limit and beside the plain PyTorch way.

    python benchmarks/training.py --data-path DIR                   LeNet on MNIST, the CPU
    python benchmarks/training.py --dataset fashion_mnist_mini      without a download
    python benchmarks/training.py --arch vgg11 --dataset cifar10 --augmentation --cuda --data-path DIR

All are measured in one run, in turn, with the same network and batch size:

    ours       an epoch as train.py runs it
    constant   the same training step on one batch that lies on the device: what data handling cannot beat
    plain      a dataset of PIL images as torchvision's, ToTensor and Normalize, a DataLoader with workers, the
               contiguous layout, loss.item() at every step
    supply     the batches alone, without a network
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent.parent))

import data
import models
from benchmarks.common import header, plain_loader, spread
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="lenet")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-path", default="./datasets")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--augmentation", action="store_true")
    parser.add_argument("--workers", type=int, default=1, help="of the plain way")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--cuda", action="store_true")
    args = parser.parse_args()
    device = devices.choose(args.cuda)
    layout = devices.memory_format(device)
    dataset = data.load(
        args.dataset,
        args.data_path,
        args.batch_size,
        device=device,
        shuffle=True,
        augmentation=args.augmentation,
        memory_format=layout,
    )

    def network(memory_format) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = models.build(args.arch, dataset.num_classes, dataset.in_channels, dataset.image_size)
        net.to(device, memory_format=memory_format)
        # The step's cost does not depend on the learning rate, but a network that diverges may be slower.
        return net, torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

    ours, constant, plain = network(layout), network(layout), network(torch.contiguous_format)
    batches = ConstantBatches(dataset.train)
    loader = plain_loader(
        args.dataset, dataset.train, args.batch_size, args.augmentation, args.workers, shuffle=True
    )

    def supply():
        for images, _ in dataset.train:
            last = images
        return last

    ways = {
        "ours": lambda: train_epoch(*ours, dataset.train, 0),
        "constant": lambda: train_epoch(*constant, batches, 0),
        f"plain, {args.workers} worker{'s' if args.workers != 1 else ''}": lambda: plain_epoch(
            *plain, loader, device
        ),
        "supply": supply,
    }
    seconds = {name: [] for name in ways}
    for repetition in range(args.repetitions + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repetition:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)

    n = dataset.train.num_images
    augmented = ", augmented" if args.augmentation else ""
    print(header(device))
    print(f"{args.arch} on {args.dataset}{augmented}, batch {args.batch_size}, epochs of {n:,} images,")
    print(f"median [least to most] of {args.repetitions}")
    median = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    for name, values in seconds.items():
        rates = [n / value for value in values]
        print(
            f"  {name:<18} {spread(rates):>34} images/s   {median[name] / median['ours']:6.2f} x the time of ours"
        )
    share = 100 * median["supply"] / median["constant"]
    print(f"  data handling      {share:.1f} % of the time of the training step")


if __name__ == "__main__":
    main()
