"""What each choice about a training step gains: the step of train.py, and the same with one choice changed.

    python benchmarks/choices.py                                        LeNet on images of MNIST's shape, the CPU
    python benchmarks/choices.py --arch vgg11 --dataset cifar10 --cuda

All rows train on one batch that lies on the device, and take turns. Each row differs from train.py's defaults in
one choice. On a GPU the steps are CUDA graphs, so that launching them takes no time, except in the row `without
CUDA graph`, which is train.py without --compile. To see what cuDNN's trials gain, run the program again with
--trials 0: a process keeps the algorithms that it has found.
"""

import argparse
import os
import statistics
from collections.abc import Callable

import common
import torch

import data
from utils.arguments import Number
from utils.training import precision
from utils.training.compilation import GraphedStep
from utils.training.optimizers import make_optimizer
from utils.training.step import make_step

BATCH_SIZE = 128


def make_steps(
    args: argparse.Namespace,
    device: torch.device,
    memory_format: torch.memory_format | None = None,
    fused: bool = True,
    graphed: bool = False,
    amp: bool = False,
    tf32: bool = False,
    deterministic: bool = False,
    compiled: bool = False,
) -> Callable[[], None]:
    """Return a function that takes --steps training steps.

    Args:
        memory_format: of images and weights; None: as train.py chooses it.
        fused: use the fused optimizer.
        graphed: run the step as a CUDA graph.
        amp, tf32, deterministic, compiled: options of train.py.
    """
    memory_format = memory_format or precision.memory_format(device, amp, tf32)
    net = common.build(args, device, memory_format).train()
    if amp:
        precision.use_bfloat16(net, device)
    if deterministic:
        precision.make_deterministic(net)
    optimizer = make_optimizer(net, common.HYPERPARAMETERS)
    optimizer.param_groups[0]["fused"] = fused or None
    step = make_step(net, optimizer, compiled)
    step = GraphedStep(step, optimizer) if graphed else step
    spec = data.info(args.dataset)
    images = torch.randn(BATCH_SIZE, spec.in_channels, *spec.image_size).to(device, memory_format=memory_format)
    labels = torch.arange(BATCH_SIZE, device=device) % spec.num_classes

    def take_steps() -> None:
        torch.use_deterministic_algorithms(False)
        precision.set_precision(device, amp, tf32, deterministic)
        if args.trials == 0:
            torch.backends.cudnn.benchmark = False
        elif args.trials is not None:
            torch.backends.cudnn.benchmark_limit = args.trials
        for _ in range(args.steps):
            step(images, labels, BATCH_SIZE)

    return take_steps


def main() -> None:
    parser = common.make_parser(__doc__, repetitions=10)
    add = parser.add_argument
    what = "steps in a repetition (default: 10); on a GPU more than 3, after which a CUDA graph is made"
    add("--steps", type=Number(int, 1), default=10, metavar="N", help=what)
    add("--compile", action="store_true", help="also measure --compile")
    what = "algorithms that cuDNN tries for each shape; 0: none (default: PyTorch's, 10)"
    add("--trials", type=Number(int, 0), metavar="N", help=what)
    args = parser.parse_args()
    device, used = common.prepare_device(args)
    contiguous = torch.contiguous_format
    other = torch.channels_last if used == contiguous else contiguous
    choices = {
        "defaults": {},
        "channels_last" if used == contiguous else "contiguous": {"memory_format": other},
        "optimizer not fused": {"fused": False},
        "--amp": {"amp": True},
    }
    if args.cuda:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read once; --deterministic needs it
        choices |= {
            "--amp, contiguous": {"amp": True, "memory_format": contiguous},
            "--tf32": {"tf32": True},
            "--tf32, contiguous": {"tf32": True, "memory_format": contiguous},
            "--deterministic": {"deterministic": True},
            "without CUDA graph": {"graphed": False},
        }
    if args.compile:  # it makes a CUDA graph of its own
        choices["--compile"] = {"compiled": True, "graphed": False}
    ways = {name: make_steps(args, device, **{"graphed": args.cuda, **choice}) for name, choice in choices.items()}
    seconds = common.measure(ways, args.repetitions, device)

    trials = "" if args.trials is None else f", --trials {args.trials}"
    print(f"{args.arch} on images of the shape of {args.dataset}, batch {BATCH_SIZE}{trials}")
    print(f"ms per step: median [least to most] of {args.repetitions} times {args.steps} steps")
    for name, values in seconds.items():
        steps = common.spread([1000 * value / args.steps for value in values], ".3f")
        ratio = statistics.median(values) / statistics.median(seconds["defaults"])
        print(f"  {name:<20} {steps:>28}   {ratio:5.2f} x the first")


if __name__ == "__main__":
    main()
