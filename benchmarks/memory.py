"""Peak memory of train.py beside what training cannot do without.

    python benchmarks/memory.py                        VGG-11 on images of CIFAR-10's form, the CPU
    python benchmarks/memory.py --arch lenet --dataset mnist
    python benchmarks/memory.py --cuda

A run of one epoch is made in this process, on a GPU two. What it needs at least: the network, its gradients, the
optimizer's state, what autograd keeps of a batch for the backward pass (where nothing is compiled), and the images
as bytes.

On a GPU the peak is that of PyTorch's allocator. On the CPU it is the resident memory of the process, less what it
had when all was imported, and less the code of libraries, which is mapped from their files.
"""

import argparse
import contextlib
import importlib
import io
import os
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import data
import models
import train
from benchmarks.common import add_trials_option, dataset_folder, header
from utils.options import number
from utils.process import devices
from utils.process.ending import DONE, exit_status
from utils.training import precision
from utils.training.step import Forward


def in_memory(what: str) -> int:
    """Bytes of this process in memory: RssAnon, its own; RssFile, mapped from files; VmHWM, both at the peak."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) * 1024


def kept_for_backward(forward: Forward, batch) -> int:
    """Bytes of the tensors that autograd keeps of a batch, each once, without the parameters; and of the batch."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in forward.parameters()}
    kept = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in batch}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = forward(*batch)
    loss.backward()
    return sum(kept.values())


@exit_status
def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="vgg11")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data-path", help="where the datasets are (default: random images of the same form)")
    parser.add_argument(
        "--images", type=number(int, 1), metavar="N", help="random images to train on (default: all there are)"
    )
    parser.add_argument("--batch-size", type=number(int, 1), default=128)
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--compile", action="store_true", help="on a GPU: train with --compile")
    add_trials_option(parser, least=1)
    args = parser.parse_args(argv)
    if args.images is not None and args.data_path is not None:
        parser.error("--images is about random images: give it without --data-path")
    if not args.cuda and (args.compile or args.trials is not None):
        parser.error("--compile, --trials: only with --cuda")
    device = devices.choose(args.cuda)
    for name in ("torchvision", "tensorboard.compat.proto.event_pb2", "scipy.special"):
        importlib.import_module(name)  # which the programs import when they are needed

    options = [f"--arch={args.arch}", f"--dataset={args.dataset}", f"--batch-size={args.batch_size}"]
    options += ["--seed=1", "--epochs=1", "--lr=1e-4", *(["--cuda"] if args.cuda else [])]
    options += ["--compile"] if args.compile else []
    if args.trials is not None:
        torch.backends.cudnn.benchmark_limit = args.trials
    with (
        dataset_folder(args.dataset, args.data_path, args.images) as folder,
        tempfile.TemporaryDirectory() as runs,
    ):
        folder = folder.resolve()
        os.chdir(runs)
        peaks = {}
        # On a GPU a second time: in the first one cuDNN tries its algorithms, some of which take much memory.
        for name in ("peak, with cuDNN's trials", "peak") if args.cuda else ("peak",):
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before = in_memory("RssAnon")
            if args.cuda:
                torch.cuda.reset_peak_memory_stats()
            with contextlib.redirect_stdout(io.StringIO()):
                if train.main([*options, f"--data-path={folder}"]):
                    raise SystemExit("train.py failed")
            peaks[name] = (
                torch.cuda.max_memory_allocated()
                if args.cuda
                else in_memory("VmHWM") - in_memory("RssFile") - before
            )

        layout = precision.memory_format(device)
        dataset = data.load(args.dataset, folder, args.batch_size, device=device, memory_format=layout)
    net = models.build(args.arch, dataset.num_classes, dataset.in_channels, dataset.image_size)
    net.to(device, memory_format=layout)
    batch = [tensor.clone() for tensor in next(iter(dataset.train))]  # on a GPU it is a view of several batches
    network = sum(tensor.nbytes for tensor in net.state_dict().values())
    parameters = sum(parameter.nbytes for parameter in net.parameters())
    parts = {
        "network": network,
        "gradients": parameters,
        "optimizer (momentum)": parameters,
        "kept for the backward pass": kept_for_backward(Forward(net), batch),
        "images": dataset.train.images.nbytes + dataset.test.images.nbytes,
    }
    print(header(device))
    what = [f"{args.arch} on {args.dataset}", f"batch {args.batch_size}", *(["--compile"] if args.compile else [])]
    print(", ".join([*what, *([f"--trials {args.trials}"] if args.trials is not None else [])]) + "; MB")
    for name, size in parts.items():
        print(f"  {name:28}{size / 1e6:9,.1f}")
    needed = sum(parts.values())
    print(f"  {'together':28}{needed / 1e6:9,.1f}")
    for name, peak in peaks.items():
        print(f"  {name:28}{peak / 1e6:9,.1f}   {peak / needed:.2f} times that")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
