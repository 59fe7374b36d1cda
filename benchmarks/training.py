"""Training: the epoch loop of train.py compared with its limit and with plain PyTorch, and the whole process.

    python benchmarks/training.py                                   LeNet on images of MNIST's shape, the CPU
    python benchmarks/training.py --data-path DIR                   LeNet on MNIST itself
    python benchmarks/training.py --arch vgg11 --dataset cifar10 --cuda
    python benchmarks/training.py --compile --cuda                  what --compile gains
    python benchmarks/training.py --parts process --data-path DIR   train.py itself

--parts says what is measured. The rows of a part take turns and have the same network, batch size and precision:

    training   an epoch, on images as they are and on augmented ones
        ours       as train.py runs it
        constant   the same steps on one batch that lies on the device: the limit of data handling
        plain      torchvision's way: a dataset of PIL images with ToTensor and Normalize (and RandomCrop and
                   RandomHorizontalFlip), a DataLoader with workers, contiguous layout, loss.item() in each step
    batches    the augmented, normalized batches of an epoch, without a network
        ours, plain    as above
        limit          copy as many finished batches into the memory of one batch
    process    the process of train.py: the time of 5 more epochs. Everything in an epoch counts, such as logging;
               the start and the end of the process, with the evaluation, do not
"""

import argparse
import functools
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import common
import numpy as np
import torch

import data
from utils.arguments import Number
from utils.training.optimizers import make_optimizer
from utils.training.step import make_step, train_epoch

MORE_EPOCHS = 5  #: of the longer process
OPTIONS = ("cuda", "tf32", "compile")  #: those that train.py has too


def compare_training(args, images: data.Images, loader, device, layout) -> None:
    """Measure all ways to train an epoch on the batches of a loader of ours, and print the table."""

    def ours(compiled: bool):
        net = common.build(args, device, layout)
        step = make_step(net, make_optimizer(net, common.HYPERPARAMETERS), compiled)
        return functools.partial(train_epoch, step, net, epoch=0)

    epoch = ours(args.compile)  # both use the same network: where a network lies in memory makes a difference
    plain = common.build(args, device)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    batches = common.plain_loader(images, loader, args.batch_size, args.workers)
    ways = {
        "ours": functools.partial(epoch, loader),
        "constant": functools.partial(epoch, common.ConstantBatches(loader)),
        "plain": functools.partial(common.run_plainly, plain, batches, device, optimizer),
    }
    if args.compile:
        ways["ours, not compiled"] = functools.partial(ours(False), loader)
    seconds = common.measure(ways, args.repetitions, device)
    print("training, augmented" if loader.augmentation else "training")
    common.report(seconds, loader.num_images)
    ratios = [100 * constant / own for own, constant in zip(seconds["ours"], seconds["constant"], strict=True)]
    print(f"  rate of ours / rate on a constant batch: {common.spread(ratios, '.1f')} %, round by round")


def compare_batches(args, images: data.Images, loader, device, layout) -> None:
    """Measure the ways to make the batches of an epoch, and print the table."""
    made = torch.cat([batch for batch, _ in loader]).contiguous(memory_format=layout)
    place = torch.empty_like(made[: args.batch_size])

    def copy_all() -> None:
        for batch in made.split(len(place)):
            place[: len(batch)].copy_(batch)

    plain = common.plain_loader(images, loader, args.batch_size, args.workers)
    ways = {
        "ours": functools.partial(common.take_all, loader, device),
        "limit": copy_all,
        "plain": functools.partial(common.take_all, plain, device),
    }
    print("batches, augmented")
    common.report(common.measure(ways, args.repetitions, device), loader.num_images)


def measure_process(args: argparse.Namespace, folder: Path, num_images: int, device: torch.device) -> None:
    """Print how fast the process of train.py trains, with its CPU time, page faults and peak memory."""
    command = [sys.executable, str(common.REPOSITORY / "train.py"), "--shuffle", "--seed=1", "--lr=1e-3"]
    command += [f"--arch={args.arch}", f"--dataset={args.dataset}", f"--data-path={folder}"]
    command += [f"--batch-size={args.batch_size}", *(f"--{name}" for name in OPTIONS if getattr(args, name))]
    usages = {1: [], 1 + MORE_EPOCHS: []}

    def run(epochs: int) -> None:
        with tempfile.TemporaryDirectory() as runs:
            seconds, used = common.run([*command, f"--epochs={epochs}"], runs)
            usages[epochs].append((seconds, used.ru_utime + used.ru_stime, used.ru_minflt, used.ru_maxrss))

    common.measure({epochs: functools.partial(run, epochs) for epochs in usages}, args.repetitions, device)
    one, more = (np.array(values[1:]) for values in usages.values())  # without the round that warms up
    seconds, cpu_seconds, faults, _ = (more - one).T / (MORE_EPOCHS * num_images)  # per image of those epochs
    print(f"process\n  train.py {common.spread(1 / seconds)} images/s")
    print(f"  {1e6 * statistics.median(cpu_seconds):.0f} us of CPU time per image, ", end="")
    print(f"{statistics.median(faults) * args.batch_size:.0f} page faults per step")
    print(f"  peak memory: {common.spread(more[:, 3] * 1024 / 1e6)} MB")


def main() -> None:
    parser = common.make_parser(__doc__, repetitions=4)
    common.add_images(parser)
    add = parser.add_argument
    parts, what = ("training", "batches", "process"), "what to measure (default: training)"
    add("--parts", nargs="+", choices=parts, default=["training"], help=what)
    add("--workers", type=Number(int, 0), default=1, metavar="N", help="workers of the plain way (default: 1)")
    add("--compile", action="store_true", help="compile ours; part training: measure it without too")
    args = parser.parse_args()
    if args.images is not None and args.data_path is not None and "process" in args.parts:
        parser.error("--images: train.py trains on all images of --data-path; give one of the two")
    device, layout = common.prepare_device(args)
    with common.dataset_folder(args.dataset, args.data_path, args.images) as folder:
        images = data.Images(args.dataset, folder, shuffle=True)
        train = data.load(images, args.batch_size, device=device, memory_format=layout).train
        train = replace(train, images=train.images[: args.images], labels=train.labels[: args.images])
        options = " ".join(f"--{name}" for name in OPTIONS if getattr(args, name))
        print(f"{args.arch} on {args.dataset}, batch {args.batch_size}, {train.num_images:,} images", options)
        print(f"median [least to most] of {args.repetitions}; plain: workers {args.workers}")
        augmented = replace(train, augmentation=True)
        if "training" in args.parts:
            for loader in (train, augmented):
                torch.compiler.reset()  # it gives up on a function that it compiles for many networks
                compare_training(args, images, loader, device, layout)
        if "batches" in args.parts:
            compare_batches(args, images, augmented, device, layout)
        if "process" in args.parts:
            measure_process(args, folder, train.num_images, device)


if __name__ == "__main__":
    main()
