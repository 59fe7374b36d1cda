"""Resetting layers: one pass over the test set beside an evaluation for each replacement.

    python benchmarks/reinit.py                                       LeNet on images of MNIST's form, the CPU
    python benchmarks/reinit.py --arch vgg19 --dataset cifar10 --cuda

Every convolutional layer is replaced six times, as if by that of five initializations and a fresh random one: by
its own filters in another order. All weights are random: how long it takes does not depend on them. All are
measured in one run, on the same images:

    ours    utils.reinit.accuracies, as reinit_layers.py calls it
    singly  for each replacement: copy it in, evaluate the test set as train.py does, copy back: on the batches and
            in the layout of ours (which joins small batches on a GPU), so what the single pass gains of itself
    plain   the same through a DataLoader with one worker (a dataset of PIL images as torchvision's, ToTensor and
            Normalize, the contiguous layout)

The limit is the time that the convolutions and fully connected layers of ours take in isolation: each called by
itself again and again on an input of the same shape, times the number of its calls in the pass. Beside it stands
how many floating-point operations a second ours performs in these layers, two for each multiplication with its
addition, and how many the machine performs in products of matrices.
"""

import argparse
import copy
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))

import data
import models
from benchmarks.common import (
    add_device_options,
    dataset_folder,
    evaluate_plainly,
    header,
    plain_loader,
    prepare_device,
    spread,
    synchronize,
)
from utils import reinit
from utils.options import number
from utils.process.ending import DONE, exit_status
from utils.training import precision
from utils.training.metrics import evaluate

INITIALIZATIONS = 5  # and a random one


class Limit(NamedTuple):
    """What the convolutions and fully connected layers of one batch's pass come to by themselves."""

    seconds: float  #: that they take, each called by itself
    operations: int  #: additions and multiplications


@torch.inference_mode()
def isolated(net: nn.Module, replacements, batch, device: torch.device, amp: bool) -> Limit:
    """Measure the limit, and count the operations."""
    calls, inputs = Counter(), {}

    def record(module, arguments):
        calls[module] += 1
        inputs[module] = arguments[0]

    modules = [module for module in net.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    hooks = [module.register_forward_pre_hook(record) for module in modules]
    with FlopCounterMode(display=False) as counter:
        reinit.accuracies(net, replacements, [batch], amp=amp)
    for hook in hooks:
        hook.remove()
    with torch.autocast(device.type, torch.bfloat16, enabled=amp):
        seconds = sum(
            number * seconds_of_call(lambda module=module: module(inputs[module]), device)
            for module, number in calls.items()
        )
    return Limit(seconds, counter.get_total_flops())


def seconds_of_call(call: Callable[[], object], device: torch.device) -> float:
    """The median of three measurements of ten calls each, after one that warms up."""
    times = []
    for _ in range(4):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(10):
            call()
        synchronize(device)
        times.append((time.perf_counter() - start) / 10)
    return statistics.median(times[1:])


@torch.inference_mode()
def matrix_rate(device: torch.device, amp: bool, n: int = 2048) -> float:
    """Operations a second in which the machine multiplies matrices (n, n) in the precision of the networks.

    By the faster of two libraries, as a product and as a 1x1 convolution: on AMD's processors MKL uses no AVX-512.
    """
    dtype = torch.bfloat16 if amp else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    convolution = nn.Conv2d(n, n, 1, bias=False, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    image = b.view(1, n, n // 32, 32).contiguous(memory_format=torch.channels_last)
    calls = (lambda: a @ b, lambda: convolution(image))
    return 2 * n**3 / min(seconds_of_call(call, device) for call in calls)


def one_by_one(net: nn.Module, replacements, evaluate_once) -> tuple[list[float], list[float]]:
    """Seconds that each replacement takes, copied in and out again; and what `evaluate_once` gives of it."""
    seconds, found = [], []
    for replacement in replacements:
        start = time.perf_counter()
        module = net.get_submodule(replacement.layer)
        kept = copy.deepcopy(module.state_dict())
        module.load_state_dict(replacement.parameters)
        found.append(evaluate_once())
        module.load_state_dict(kept)
        seconds.append(time.perf_counter() - start)
    return seconds, found


@exit_status
def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="lenet")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-path", help="where the datasets are (default: random images of the same form)")
    parser.add_argument("--images", type=number(int, 1), metavar="N", help="of the test set (default: all)")
    parser.add_argument("--batch-size", type=number(int, 1), help="(128, on a GPU more; the plain way: 128)")
    parser.add_argument("--repetitions", type=number(int, 1), default=3, help="of ours")
    parser.add_argument(
        "--every",
        type=number(int, 1),
        default=1,
        metavar="N",
        help="one by one every N-th replacement only (1)",
    )
    add_device_options(parser)
    args = parser.parse_args(argv)
    device, layout = prepare_device(args)
    with dataset_folder(args.dataset, args.data_path) as folder:
        test_set = data.load_test(args.dataset, folder, 128, device=device, memory_format=layout)
    fitting = reinit.fitting_batch_size(128, device, test_set.in_channels, test_set.image_size)
    batch_size = args.batch_size or fitting
    images = replace(
        test_set.test,
        images=test_set.test.images[: args.images],
        labels=test_set.test.labels[: args.images],
        batch_size=batch_size,
    )

    torch.manual_seed(0)
    trained = models.build(args.arch, test_set.num_classes, test_set.in_channels, test_set.image_size).eval()
    replacements = []
    for _ in range(INITIALIZATIONS + 1):
        for layer in models.layers(trained):
            parameters = layer.module.named_parameters()
            others = {name: p.detach()[torch.randperm(len(p))] for name, p in parameters}
            replacements.append(reinit.Replacement(layer.name, others))

    ours = copy.deepcopy(trained).to(device, memory_format=layout)
    batch = next(iter(images))
    of_batch = isolated(ours, replacements, batch, device, args.amp)
    matrices = matrix_rate(device, args.amp)
    seconds = []
    for repetition in range(args.repetitions + 1):  # the first one warms up
        synchronize(device)
        start = time.perf_counter()
        measured = reinit.accuracies(ours, replacements, images, amp=args.amp)
        if repetition:
            seconds.append(time.perf_counter() - start)

    if args.amp:
        precision.use_bfloat16(ours, device)
    sample, replaced = replacements[:: args.every], measured.replaced[:: args.every]
    singly, accuracies = one_by_one(ours, sample, lambda: evaluate(ours, images, "").top1)
    farthest = max(abs(a - b) for a, b in zip(accuracies, replaced, strict=True))
    plain = trained.to(device)
    if args.amp:
        precision.use_bfloat16(plain, device)
    loader = plain_loader(args.dataset, images, args.batch_size or 128, device, shuffle=False)
    evaluate_plainly(plain, loader, device)
    each, accuracies = one_by_one(plain, sample, lambda: evaluate_plainly(plain, loader, device)[1])
    farthest = max(farthest, *(abs(a - b) for a, b in zip(accuracies, replaced, strict=True)))

    batches = images.num_images / len(batch[1])
    limit, rate = of_batch.seconds * batches, of_batch.operations * batches / statistics.median(seconds)
    print(header(device))
    print(f"{args.arch} on the {images.num_images:,} test images of {args.dataset}, batch {batch_size}")
    told = f", {len(sample)} of them one by one, scaled" if args.every > 1 else ""
    print(f"{len(replacements)} replacements{told}; seconds")
    print(f"  ours   {spread(seconds, '.2f')} in all, of {args.repetitions}")
    for name, times in (("singly", singly), ("plain", each)):
        total = sum(times) * len(replacements) / len(sample)
        ratio = total / statistics.median(seconds)
        print(f"  {name:6} {total:.2f} in all; {spread(times, '.2f')} each   {ratio:.1f} x the time of ours")
    print(f"  limit  {limit:.2f} in all, convolutions and fully connected layers in isolation")
    print(f"         ours reaches {100 * limit / statistics.median(seconds):.0f} % of their rate")
    print(
        f"         at {rate / 1e9:,.0f} GFLOP/s, {100 * rate / matrices:.0f} % of the {matrices / 1e9:,.0f} "
        "of this machine's products of 2048x2048 matrices"
    )
    print(f"  accuracies differ by at most {farthest:.2f} %")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
