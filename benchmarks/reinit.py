"""Evaluation, and resetting layers: one pass over the test set compared with an evaluation for each replacement.

    python benchmarks/reinit.py                                       LeNet on images of MNIST's shape, the CPU
    python benchmarks/reinit.py --arch vgg19 --dataset cifar10 --cuda

Evaluation of the test set, in turns:

    ours      utils.training.metrics.evaluate, which train.py uses
    constant  the same on one batch that lies on the device: the limit of data handling
    plain     torchvision's way: a dataset of PIL images with ToTensor and Normalize, a DataLoader with one worker,
              the contiguous layout, .item() at each batch

Resetting layers: each convolutional layer is replaced six times (as by five initializations and a random one), by
its own filters in another order. All weights are random: they do not change the time.

    ours      utils.reinit.accuracies, as reinit_layers.py calls it
    singly    for each replacement: copy it in, evaluate as train.py does, copy the weights back; same batches
    plain     the same with the plain evaluation
    limit     the convolutions and fully connected layers of ours, each called by itself on an input of the same
              shape, times the number of its calls
"""

import copy
import functools
import statistics
from collections import Counter
from dataclasses import replace

import common
import torch
from torch import nn

import data
import models
from utils import reinit
from utils.arguments import Number
from utils.training.metrics import evaluate


@torch.inference_mode()
def measure_limit(net: nn.Module, replacements, batch) -> float:
    """Return the seconds that the convolutions and fully connected layers take for a batch by themselves."""
    calls, inputs = Counter(), {}

    def record(module, arguments):
        calls[module] += 1
        inputs[module] = arguments[0]

    modules = [module for module in net.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    hooks = [module.register_forward_pre_hook(record) for module in modules]
    reinit.accuracies(net, replacements, [batch])
    for hook in hooks:
        hook.remove()
    ways = {module: lambda module=module: [module(inputs[module]) for _ in range(10)] for module in calls}
    seconds = common.measure(ways, 3, batch[0].device)
    return sum(calls[module] * statistics.median(values) / 10 for module, values in seconds.items())


def replace_singly(net: nn.Module, replacements, evaluate_once) -> list[float]:
    """Copy in each replacement, evaluate, and copy the weights back. Return the accuracies in percent."""
    accuracies = []
    for replacement in replacements:
        module = net.get_submodule(replacement.layer)
        kept = copy.deepcopy(module.state_dict())
        module.load_state_dict(replacement.parameters)
        accuracies.append(evaluate_once())
        module.load_state_dict(kept)
    return accuracies


def main() -> None:
    parser = common.make_parser(__doc__, repetitions=3)
    common.add_images(parser)
    parser.set_defaults(batch_size=None)  # 128, or what reinit_layers.py makes of it on a GPU
    what = "replace singly and plainly only every N-th time, and scale (default: 1)"
    parser.add_argument("--every", type=Number(int, 1), default=1, metavar="N", help=what)
    args = parser.parse_args()
    device, layout = common.prepare_device(args)
    with common.dataset_folder(args.dataset, args.data_path) as folder:
        images = data.Images(args.dataset, folder)
        test = data.load(images, args.batch_size or 128, device=device, memory_format=layout, test_only=True).test
    test = replace(test, images=test.images[: args.images], labels=test.labels[: args.images])
    size = args.batch_size or reinit.fitting_batch_size(128, device, images.spec.in_channels, images.image_size)
    joined = replace(test, batch_size=size)
    loader = common.plain_loader(images, test, test.batch_size, shuffle=False)
    constant = common.ConstantBatches(test)
    net, plain = common.build(args, device, layout), common.build(args, device)
    replacements = []
    for _ in range(6):
        for layer in models.layers(net):
            order = torch.randperm(len(layer.module.weight))
            others = {name: p.detach().cpu()[order] for name, p in layer.module.named_parameters()}
            replacements.append(reinit.Replacement(layer.name, others))
    sample = replacements[:: args.every]
    evaluate_plainly = functools.partial(common.run_plainly, plain, loader, device)

    print(f"{args.arch} on {test.num_images:,} test images of {args.dataset}, batch {size}")
    print(f"median [least to most] of {args.repetitions}\nevaluation, batch {test.batch_size}")
    ways = {"ours": lambda: evaluate(net, test, ""), "constant": lambda: evaluate(net, constant, "")}
    ways["plain"] = evaluate_plainly
    common.report(common.measure(ways, args.repetitions, device), test.num_images)

    batch = next(iter(joined))
    limit = measure_limit(net, replacements, batch) * test.num_images / len(batch[0])
    resets = {
        "ours": lambda: reinit.accuracies(net, replacements, joined).replaced[:: args.every],
        "singly": lambda: replace_singly(net, sample, lambda: evaluate(net, joined, "").top1),
        "plain": lambda: replace_singly(plain, sample, evaluate_plainly),
    }
    found = {}

    def reset(name: str) -> None:
        found[name] = resets[name]()

    ways = {name: functools.partial(reset, name) for name in resets}
    seconds = common.measure(ways, args.repetitions, device)
    for name in ("singly", "plain"):
        seconds[name] = [value * len(replacements) / len(sample) for value in seconds[name]]
    median = statistics.median(seconds["ours"])
    scaled = f", {len(sample)} of them singly and plainly, scaled" if args.every > 1 else ""
    print(f"{len(replacements)} replacements{scaled}; seconds")
    for name, values in seconds.items():
        ratio = statistics.median(values) / median
        print(f"  {name:6} {common.spread(values, '.2f'):>24}   {ratio:5.1f} x the time of ours")
    print(f"  limit  {limit:.2f}; ours reaches {100 * limit / median:.0f} % of its rate")
    pairs = [(a, b) for name in ("singly", "plain") for a, b in zip(found[name], found["ours"], strict=True)]
    print(f"  accuracies differ by at most {max(abs(a - b) for a, b in pairs):.2f} %")


if __name__ == "__main__":
    main()
