"""Seconds per snapshot of compute_projections.py, compared with the plain way to measure one.

    python benchmarks/projections.py
    python benchmarks/projections.py --cuda

Make training snapshots of VGG-19 for ImageNet in a temporary folder (1.15 GB each, with the momentum of SGD; 80 MB
of it are convolutions) and measure the projections of their convolutions

- with compute_projections.py: many snapshots in one command, each file under several names (hard links), so that
  the time of each snapshot after the first stands out from the noise of starting a process; and one snapshot;
- in the plain way: for each snapshot a process that builds the network, loads the file with torch.load, copies it
  into the network with load_state_dict and sums the weights layer by layer.

Each process is timed from start to end, with the snapshots in the page cache. At the end one snapshot is dropped
from the page cache, to count the bytes that are read from the disk. TMPDIR chooses the disk (default: /tmp).
"""

import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import common
import torch

import models
from utils import snapshots
from utils.arguments import Number

PLAIN = """
import sys
import torch
import torchvision

path, device = sys.argv[1:]
net = torchvision.models.vgg19(num_classes=1000).to(device)
net.load_state_dict(torch.load(path, map_location=device)["model_state_dict"])
for module in net.modules():
    if isinstance(module, torch.nn.Conv2d):
        print(module.weight.detach().double().sum(dim=(1, 2, 3)).mean().item())
"""


def make_snapshots(count: int, folder: Path) -> None:
    """Write training states `vgg19_<epoch>.tar` that differ in all weights."""
    torch.manual_seed(0)
    net = models.build("vgg19", num_classes=1000)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for epoch in range(count):
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)
        optimizer.step()
        optimizer.zero_grad()
        state = {"epoch": epoch, "top1_acc": 0.0, "top5_acc": 0.0, "scheduler_state_dict": {}}
        state |= {"model_state_dict": net.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
        snapshots.save(state, folder / f"vgg19_{epoch}.tar")


def main() -> None:
    parser = common.make_parser(__doc__, repetitions=5, network=False)
    add = parser.add_argument
    add("--snapshots", type=Number(int, 1), default=6, metavar="N", help="snapshots to make (default: 6)")
    add("--names", type=Number(int, 2), default=6, metavar="N", help="names of each snapshot (default: 6)")
    args = parser.parse_args()
    common.prepare_device(args)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a new process: the peak memory of processes that this one starts would include its own.
        maker = multiprocessing.get_context("spawn").Process(target=make_snapshots, args=(args.snapshots, folder))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit("the snapshots could not be made")
        paths = [folder / f"vgg19_{epoch}.tar" for epoch in range(args.snapshots * args.names)]
        files = paths[: args.snapshots]
        for index, path in enumerate(paths[len(files) :]):
            os.link(files[index % len(files)], path)
        size = paths[0].stat().st_size
        print(f"{len(files)} files of {size / 1e9:.2f} GB")

        program = str(common.REPOSITORY / "compute_projections.py")
        ours = [sys.executable, program, "--arch", "vgg19", "--dataset", "imagenet"]
        ours += ["--cuda"] if args.cuda else []
        commands = {
            "imports": [sys.executable, "-c", "import torch, torchvision"],
            "one": [*ours, "--load-from", str(paths[0])],
            "all": [*ours, "--load-from", *map(str, paths)],
            "plain": [sys.executable, "-c", PLAIN, str(paths[0]), "cuda" if args.cuda else "cpu"],
        }
        runs = {name: [] for name in commands}
        for _ in range(args.repetitions):  # in turns: other work on the machine disturbs all alike
            for path in files:
                subprocess.run(["cat", path], stdout=subprocess.DEVNULL, check=True)  # into the page cache
            for name, command in commands.items():
                runs[name].append(common.run(command, folder))
        disk = {}
        for name in ("one", "plain"):
            with open(paths[0], "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            disk[name] = common.run(commands[name], folder)[1].ru_inblock * 512

    seconds = {name: [run[0] for run in those] for name, those in runs.items()}
    pairs = zip(seconds["all"], seconds["one"], strict=True)
    print(f"\n{'seconds per snapshot: median [least to most]':46}  plain / this")
    for text, values in {
        "plain way, one process a snapshot": seconds["plain"],
        f"one command for {len(paths)} snapshots": [total / len(paths) for total in seconds["all"]],
        "  each after the first": [(total - first) / (len(paths) - 1) for total, first in pairs],
        "one command for one snapshot": seconds["one"],
        "import torch, torchvision": seconds["imports"],
    }.items():
        ratio = statistics.median(seconds["plain"]) / statistics.median(values)
        print(f"{text:34} {common.spread(values, '.3f'):24} {ratio:6.1f}")
    for name, text in (("all", f"one command for {len(paths)} snapshots"), ("plain", "the plain way")):
        print(f"peak memory of {text}: {max(used.ru_maxrss for _, used in runs[name]) * 1024 / 1e9:.2f} GB")
    for name, text in (("one", "compute_projections.py"), ("plain", "the plain way")):
        read = f"{disk[name] / 1e6:.0f} of {size / 1e6:.0f} MB" if disk[name] else "not counted on this system"
        print(f"read from the disk by {text}, nothing in the page cache: {read}")


if __name__ == "__main__":
    main()
