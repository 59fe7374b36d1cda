"""Training throughput: the epoch loop of train.py beside its limit and beside the plain PyTorch way.

    python benchmarks/training.py                                   LeNet on images of MNIST's form, the CPU
    python benchmarks/training.py --data-path DIR                   LeNet on MNIST itself
    python benchmarks/training.py --arch vgg11 --dataset cifar10 --cuda
    python benchmarks/training.py --compile --cuda                  what --compile gains

All are measured in one run, in turn, with the same network, batch size and precision, on images as they are and on
augmented ones:

    ours       an epoch as train.py runs it
    constant   the same training step on one batch that lies on the device: what data handling cannot beat
    plain      a dataset of PIL images as torchvision's, ToTensor and Normalize (and RandomCrop and
               RandomHorizontalFlip), a DataLoader with workers, the contiguous layout, loss.item() at every step
    supply     the batches alone, without a network
"""

import argparse
import functools
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent.parent))

import data
import models
from benchmarks.common import (
    ConstantBatches,
    add_device_options,
    dataset_folder,
    header,
    measure,
    plain_loader,
    prepare_device,
    report,
    spread,
    take_all,
)
from data.memory import MemoryLoader
from train import make_step, train_epoch
from utils.options import number
from utils.process.ending import DONE, exit_status
from utils.training import precision
from utils.training.optimizers import make_optimizer

# The step's cost does not depend on the learning rate, but a network that diverges may be slower.
ARGUMENTS = argparse.Namespace(optimizer="sgd", lr=1e-3, momentum=0.9, weight_decay=1e-4)


def plain_epoch(net, optimizer, loader, device) -> None:
    net.train()
    total = 0.0
    for images, labels in loader:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        loss = functional.cross_entropy(net(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()


@exit_status
def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="lenet")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-path", help="where the datasets are (default: random images of the same form)")
    parser.add_argument("--batch-size", type=number(int, 1), default=128)
    parser.add_argument("--images", type=number(int, 1), metavar="N", help="of an epoch (default: all)")
    parser.add_argument("--workers", type=number(int, 0), nargs="+", default=[1, 4], help="of the plain way (1 4)")
    parser.add_argument("--repetitions", type=number(int, 1), default=4)
    parser.add_argument("--compile", action="store_true", help="ours compiled, and beside it ours as it is")
    add_device_options(parser)
    args = parser.parse_args(argv)
    device, layout = prepare_device(args)
    with dataset_folder(args.dataset, args.data_path) as folder:
        options = {"device": device, "shuffle": True, "memory_format": layout}
        train = data.load(args.dataset, folder, args.batch_size, **options).train
    train = replace(train, images=train.images[: args.images], labels=train.labels[: args.images])

    print(header(device))
    what = [f"{args.arch} on {args.dataset}", f"batch {args.batch_size}", f"{train.num_images:,} images"]
    what += [f"--{name}" for name in ("amp", "tf32", "compile") if getattr(args, name)]
    print(", ".join(what))
    print(f"median [least to most] of {args.repetitions}")
    for augmentation in (False, True):
        print("augmented" if augmentation else "as they are")
        torch.compiler.reset()  # it gives up on a function with many networks
        compare(args, replace(train, augmentation=augmentation), device, layout)
    return DONE


def compare(
    args: argparse.Namespace, train: MemoryLoader, device: torch.device, layout: torch.memory_format
) -> None:
    """Measure all ways to train an epoch on the batches of a loader of ours, and print the table."""

    def network(memory_format: torch.memory_format) -> nn.Module:
        torch.manual_seed(0)
        spec = data.info(args.dataset)
        net = models.build(args.arch, spec.num_classes, spec.in_channels, spec.image_size)
        net.to(device, memory_format=memory_format)
        if args.amp:
            precision.use_bfloat16(net, device)
        return net

    def ours(compiled: bool = args.compile):
        net = network(layout)
        step = make_step(net, make_optimizer(net, ARGUMENTS), compiled)
        return functools.partial(train_epoch, step, net, epoch=0)

    epoch_of = ours()  # the same network for both: where another one lies in memory makes a difference of its own
    ways = {
        "ours": functools.partial(epoch_of, train),
        "constant": functools.partial(epoch_of, ConstantBatches(train)),
        "supply": functools.partial(take_all, train, device),
    }
    if args.compile:
        ways["ours, not compiled"] = functools.partial(ours(compiled=False), train)
    plain = network(torch.contiguous_format)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    for workers in args.workers:
        loader = plain_loader(
            args.dataset, train, args.batch_size, device, train.augmentation, workers, shuffle=True
        )
        name = f"plain, {workers} worker{'s' if workers != 1 else ''}"
        ways[name] = functools.partial(plain_epoch, plain, optimizer, loader, device)
    seconds = measure(ways, args.repetitions, device)

    report(seconds, train.num_images)
    for name, of in (("constant", "ours"), ("supply", "constant")):
        ratios = [100 * one / other for one, other in zip(seconds[name], seconds[of], strict=True)]
        told = "of the constant-batch step" if of == "ours" else "data handling, of the time of that step"
        print(f"  {told}: {spread(ratios, '.1f')} %, round by round")


if __name__ == "__main__":
    sys.exit(main())
