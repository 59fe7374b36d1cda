"""Resetting layers: one pass over the test set beside an evaluation for each replacement.

    python benchmarks/reinit.py --data-path DIR                       LeNet on MNIST, the CPU
    python benchmarks/reinit.py --dataset fashion_mnist_mini          without a download
    python benchmarks/reinit.py --arch vgg19 --dataset cifar10 --cuda --data-path DIR

Every convolutional layer is replaced by that of five initializations and a fresh random one. All weights are
random: how long it takes does not depend on them. Both are measured in one run, on the same images:

    ours    utils.reinit.accuracies, as reinit_layers.py calls it
    plain   for each replacement: copy it in, evaluate the test set through a DataLoader with one worker (a
            dataset of PIL images as torchvision's, ToTensor and Normalize, the contiguous layout), copy back

The rate of ours counts all multiplications of a convolution, those with the zeros of its padding too, which a good
kernel leaves out: it can be more than that of a matrix product.
"""

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))

import data
import models
from benchmarks.common import header, plain_loader, spread
from utils import devices, reinit

INITIALIZATIONS = 5  # and a random one


def matrix_product_rate(device: torch.device, size: int) -> float:
    """FLOP/s of a float32 product of two large matrices on this machine, the best of ten."""
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    seconds = []
    for _ in range(10):
        synchronize(device)
        start = time.perf_counter()
        a @ b
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@torch.inference_mode()
def evaluate_plainly(net, loader, device: torch.device) -> float:
    correct = count = 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        correct += (net(images).argmax(1) == labels).sum().item()
        count += len(labels)
    return 100 * correct / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="lenet")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-path", default="./datasets")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=3, help="of ours")
    parser.add_argument("--cuda", action="store_true")
    args = parser.parse_args()
    device = devices.choose(args.cuda)
    layout = devices.memory_format(device)
    test_set = data.load_test(args.dataset, args.data_path, args.batch_size, device=device, memory_format=layout)

    def network(seed: int):
        torch.manual_seed(seed)
        return models.build(args.arch, test_set.num_classes, test_set.in_channels, test_set.image_size).eval()

    trained = network(0)
    replacements = []
    for seed in range(1, INITIALIZATIONS + 2):
        other = network(seed).state_dict()
        replacements += [
            reinit.Replacement(layer.name, {kind: other[f"{layer.name}.{kind}"] for kind in ("weight", "bias")})
            for layer in models.layers(trained)
        ]

    ours = copy.deepcopy(trained).to(device, memory_format=layout)
    first_batch = next(iter(test_set.test))
    with FlopCounterMode(display=False) as counter:
        reinit.accuracies(ours, replacements, [first_batch])
    flop = counter.get_total_flops() / len(first_batch[1]) * test_set.test.num_images
    seconds = []
    for _ in range(args.repetitions):
        synchronize(device)
        start = time.perf_counter()
        measured = reinit.accuracies(ours, replacements, test_set.test)
        seconds.append(time.perf_counter() - start)

    plain = trained.to(device)
    loader = plain_loader(args.dataset, test_set.test, args.batch_size, shuffle=False)
    each, accuracies = [], []
    for replacement in replacements:
        start = time.perf_counter()
        module = plain.get_submodule(replacement.layer)
        kept = copy.deepcopy(module.state_dict())
        module.load_state_dict(replacement.parameters)
        accuracies.append(evaluate_plainly(plain, loader, device))
        module.load_state_dict(kept)
        each.append(time.perf_counter() - start)

    rate, peak = flop / statistics.median(seconds), matrix_product_rate(device, 8192 if args.cuda else 2048)
    farthest = max(abs(a - b) for a, b in zip(accuracies, measured.replaced, strict=True))
    print(header(device))
    print(
        f"{args.arch} on the {test_set.test.num_images:,} test images of {args.dataset}, batch {args.batch_size}"
    )
    print(f"{len(replacements)} replacements; seconds")
    print(f"  ours   {spread(seconds, '.2f')} in all, of {args.repetitions}")
    print(f"  plain  {sum(each):.2f} in all; {spread(each, '.2f')} each")
    print(f"  ratio  {sum(each) / statistics.median(seconds):.1f}")
    print(
        f"  ours computes at {rate / 1e9:,.1f} GFLOP/s, {100 * rate / peak:.0f} % of the machine's matrix product"
    )
    print(f"  (float32, {peak / 1e9:,.1f} GFLOP/s); accuracies differ by at most {farthest:.2f} %")


if __name__ == "__main__":
    main()
