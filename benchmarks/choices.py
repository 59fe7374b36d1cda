"""What each choice about a training step gains: the step of train.py, and the same with one choice made otherwise.

    python benchmarks/choices.py                                        LeNet on images of MNIST's form, the CPU
    python benchmarks/choices.py --arch vgg11 --dataset cifar10 --cuda

All train on one batch that lies on the device, are measured in one run, in turn, and differ in one thing each:
what train.py does by default (fused optimizers, the layout of images), or what its options change. On a GPU each
is recorded as a CUDA graph, so that launching it takes no time, but for `without CUDA graph`, which is train.py
without --compile. What cuDNN's trials of its algorithms gain is seen by another run, with --trials 0: within one
process it keeps those that it has found.
"""

import argparse
import copy
import functools
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

import data
import models
from benchmarks.common import add_trials_option, header, measure, spread
from train import make_step
from utils.options import number
from utils.process import devices
from utils.process.ending import DONE, exit_status
from utils.training import precision
from utils.training.compilation import GraphedStep
from utils.training.optimizers import make_optimizer

OTHER_LAYOUT = {
    torch.channels_last: ("contiguous", torch.contiguous_format),
    torch.contiguous_format: ("channels_last", torch.channels_last),
}


def make_way(
    args: argparse.Namespace,
    device: torch.device,
    net: nn.Module,
    *,
    other_layout: bool = False,
    fused: bool = True,
    graphed: bool = False,
    **options: bool,
) -> Callable[[], None]:
    """Steps of training with some choices; a function, to be called again and again, that takes `args.steps`.

    net: is copied.
    options: amp, tf32, deterministic and compiled, as the options of train.py.
    """
    layout = precision.memory_format(device, options.get("amp", False), options.get("tf32", False))
    if other_layout:
        layout = OTHER_LAYOUT[layout][1]
    spec = data.info(args.dataset)
    net = copy.deepcopy(net).to(device, memory_format=layout)
    if options.get("amp"):
        precision.use_bfloat16(net, device)
    if options.get("deterministic"):
        precision.make_deterministic(net)
    optimizer = make_optimizer(net, argparse.Namespace(**vars(args), lr=1e-3, momentum=0.9, weight_decay=1e-4))
    optimizer.param_groups[0]["fused"] = fused or None
    step = make_step(net, optimizer, options.get("compiled", False))
    if graphed:
        step = GraphedStep(step, optimizer)
    images = torch.randn(args.batch_size, spec.in_channels, *spec.image_size).to(device, memory_format=layout)
    labels = torch.arange(args.batch_size, device=device) % spec.num_classes

    def take_steps() -> None:
        torch.use_deterministic_algorithms(False)
        precision.set_precision(device, options.get("tf32", False), options.get("deterministic", False))
        if args.trials == 0:
            torch.backends.cudnn.benchmark = False
        elif args.trials is not None:
            torch.backends.cudnn.benchmark_limit = args.trials
        net.train()
        for _ in range(args.steps):
            step(images, labels, args.batch_size)

    return take_steps


@exit_status
def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="lenet")
    parser.add_argument("--dataset", default="mnist", help="for the form of the images, which are of noise")
    parser.add_argument("--batch-size", type=number(int, 1), default=128)
    parser.add_argument("--optimizer", choices=("sgd", "adam"), default="sgd")
    parser.add_argument("--steps", type=number(int, 1), default=10, metavar="N", help="at a time")
    parser.add_argument("--repetitions", type=number(int, 1), default=10)
    parser.add_argument("--compile", action="store_true", help="measure what --compile gains too")
    add_trials_option(parser, least=0)
    parser.add_argument("--cuda", action="store_true")
    args = parser.parse_args(argv)
    if args.trials is not None and not args.cuda:
        parser.error("--trials: only with --cuda")
    if args.cuda and args.steps <= GraphedStep.FIRST_STEPS:
        parser.error(f"--steps: more than {GraphedStep.FIRST_STEPS}, after which a CUDA graph is made")
    device = devices.choose(args.cuda)
    spec = data.info(args.dataset)
    torch.manual_seed(0)
    net = models.build(args.arch, spec.num_classes, spec.in_channels, spec.image_size)
    other = OTHER_LAYOUT[precision.memory_format(device)][0]
    # On a GPU each as a CUDA graph: the time of what is computed, not of launching it.
    make = functools.partial(make_way, args, device, net, graphed=args.cuda)
    makers = {
        "defaults": make,
        f"in the layout {other}": functools.partial(make, other_layout=True),
        "optimizer not fused": functools.partial(make, fused=False),
        "--amp": functools.partial(make, amp=True),
    }
    if args.cuda and args.optimizer == "adam":
        del makers["optimizer not fused"]  # which cannot be a graph
    if args.cuda:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read once; for all, as --deterministic needs it
        makers |= {
            "--amp in the layout contiguous": functools.partial(make, amp=True, other_layout=True),
            "--tf32": functools.partial(make, tf32=True),
            "--tf32 in the layout contiguous": functools.partial(make, tf32=True, other_layout=True),
            "--deterministic": functools.partial(make, deterministic=True),
            "without CUDA graph": functools.partial(make, graphed=False),
        }
    if args.compile:
        compiled = functools.partial(make, graphed=False, compiled=True)  # which makes a graph of its own
        makers["--compile"] = compiled
        if args.cuda:
            makers["--compile --tf32"] = functools.partial(compiled, tf32=True)
            makers["--compile --amp"] = functools.partial(compiled, amp=True)
    seconds = measure({name: maker() for name, maker in makers.items()}, args.repetitions, device)

    print(header(device))
    what = [f"{args.arch} on images of the form of {args.dataset}", f"batch {args.batch_size}", args.optimizer]
    print(", ".join([*what, *([f"--trials {args.trials}"] if args.trials is not None else [])]))
    print(f"a step in ms: median [least to most] of {args.repetitions} times {args.steps} steps")
    first = statistics.median(seconds["defaults"])
    width = max(map(len, seconds))
    for name, values in seconds.items():
        each = [1000 * value / args.steps for value in values]
        print(
            f"  {name:<{width}} {spread(each, '.3f'):>28}   {statistics.median(values) / first:5.2f} x the first"
        )
    return DONE


if __name__ == "__main__":
    sys.exit(main())
