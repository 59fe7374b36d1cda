"""Evaluation on a test set: ours beside the plain PyTorch way.

    python benchmarks/evaluation.py                                      LeNet on images of MNIST's form, the CPU
    python benchmarks/evaluation.py --arch vgg11 --dataset cifar10 --cuda

Measured in one run, in turn:

    ours      utils.training.metrics.evaluate, which train.py uses
    constant  the same on one batch that lies on the device: what data handling cannot beat
    plain     a dataset of PIL images as torchvision's, ToTensor and Normalize, a DataLoader with one worker, the
              contiguous layout, `.item()` at every batch
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import data
import models
from benchmarks.common import (
    ConstantBatches,
    add_device_options,
    dataset_folder,
    evaluate_plainly,
    header,
    measure,
    plain_loader,
    prepare_device,
    report,
)
from utils.options import number
from utils.process.ending import DONE, exit_status
from utils.training import precision
from utils.training.metrics import evaluate


@exit_status
def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="lenet")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-path", help="where the datasets are (default: random images of the same form)")
    parser.add_argument("--batch-size", type=number(int, 1), default=128)
    parser.add_argument("--repetitions", type=number(int, 1), default=6)
    add_device_options(parser)
    args = parser.parse_args(argv)
    device, layout = prepare_device(args)
    with dataset_folder(args.dataset, args.data_path) as folder:
        test_set = data.load_test(args.dataset, folder, args.batch_size, device=device, memory_format=layout)

    def network(memory_format):
        torch.manual_seed(0)
        net = models.build(args.arch, test_set.num_classes, test_set.in_channels, test_set.image_size)
        net.to(device, memory_format=memory_format)
        if args.amp:
            precision.use_bfloat16(net, device)
        return net

    ours, plain = network(layout), network(torch.contiguous_format)
    constant = ConstantBatches(test_set.test)
    loader = plain_loader(args.dataset, test_set.test, args.batch_size, device, shuffle=False)
    ways = {
        "ours": lambda: evaluate(ours, test_set.test, "test set"),
        "constant": lambda: evaluate(ours, constant, "test set"),
        "plain, 1 worker": lambda: evaluate_plainly(plain, loader, device),
    }
    seconds = measure(ways, args.repetitions, device)
    loss, accuracy = evaluate_plainly(plain, loader, device)
    result = evaluate(ours, test_set.test, "test set")

    print(header(device))
    print(
        f"{args.arch} on the {test_set.test.num_images:,} test images of {args.dataset}, batch {args.batch_size}"
    )
    print(f"median [least to most] of {args.repetitions}")
    report(seconds, test_set.test.num_images)
    print(f"  losses differ by {abs(loss - result.loss):.1e}, accuracies by {abs(accuracy - result.top1):.2f} %")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
