"""Batch supply alone: augmented, normalized batches of CIFAR-10, without a network.

    python benchmarks/supply.py             random images of CIFAR-10's form, the CPU
    python benchmarks/supply.py --cuda

Measured in one run, in turn:

    ours    an epoch of data.load's training batches
    limit   an epoch of such batches, made before, copied into the memory of one
    plain   a dataset of PIL images as torchvision's, RandomCrop, RandomHorizontalFlip, ToTensor and Normalize, a
            DataLoader with one worker and with four
"""

import argparse
import functools
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import data
from benchmarks.common import dataset_folder, header, measure, plain_loader, report, take_all
from utils.options import number
from utils.process import devices
from utils.process.ending import DONE, exit_status
from utils.training import precision


def copy(images: torch.Tensor, out: torch.Tensor) -> None:
    for batch in images.split(len(out)):
        out[: len(batch)].copy_(batch)


@exit_status
def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", help="where CIFAR-10 is (default: random images of the same form)")
    parser.add_argument("--images", type=number(int, 1), metavar="N", help="of an epoch (default: all)")
    parser.add_argument("--batch-size", type=number(int, 1), default=128)
    parser.add_argument("--workers", type=number(int, 0), nargs="+", default=[1, 4], help="of the plain way (1 4)")
    parser.add_argument(
        "--plain-images", type=number(int, 1), metavar="N", help="that the plain way makes, scaled (default: all)"
    )
    parser.add_argument("--repetitions", type=number(int, 1), default=4)
    parser.add_argument("--cuda", action="store_true")
    args = parser.parse_args(argv)
    device = devices.choose(args.cuda)
    layout = precision.memory_format(device)
    options = {"device": device, "shuffle": True, "augmentation": True, "memory_format": layout}
    with dataset_folder("cifar10", args.data_path) as folder:
        train = data.load("cifar10", folder, args.batch_size, **options).train

    train = replace(train, images=train.images[: args.images], labels=train.labels[: args.images])
    images = torch.cat([images for images, _ in train]).contiguous(memory_format=layout)
    ways = {
        "ours": functools.partial(take_all, train, device),
        "limit": functools.partial(copy, images, torch.empty_like(images[: args.batch_size])),
    }
    part = replace(train, images=train.images[: args.plain_images], labels=train.labels[: args.plain_images])
    for workers in args.workers:
        loader = plain_loader("cifar10", part, args.batch_size, device, True, workers, shuffle=True)
        name = f"plain, {workers} worker{'s' if workers != 1 else ''}"
        ways[name] = functools.partial(take_all, loader, device)
    seconds = measure(ways, args.repetitions, device)
    for name in list(ways)[2:]:
        seconds[name] = [value * train.num_images / part.num_images for value in seconds[name]]

    print(header(device))
    print(f"{train.num_images:,} augmented, normalized images of 32x32, batch {args.batch_size}")
    if part.num_images < train.num_images:
        print(f"the plain way: {part.num_images:,} of them, scaled")
    print(f"median [least to most] of {args.repetitions}")
    report(seconds, train.num_images)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
