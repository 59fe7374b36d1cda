"""Seconds per snapshot of compute_projections.py, beside those of the plain way to measure one.

    python benchmarks/projections.py
    python benchmarks/projections.py --cuda

Makes training snapshots of VGG-19 for ImageNet in a temporary folder (1.15 GB each, with the momentum of SGD) and
measures the projections of their convolutions

- with compute_projections.py: many snapshots by one command, each file under several names (hard links), so that
  the time for each after the first stands out from the noise of starting a process; and one alone;
- the plain way: for each snapshot a process that builds the network, loads the file with torch.load, copies it
  into the network with load_state_dict and sums the weights layer by layer.

Every process is timed from start to end, imports included, with the snapshots in the page cache; the means of all
layers, by both ways, must agree. At the end one snapshot is dropped from the page cache, to count what is read.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import models
from benchmarks.common import header, spread
from utils import snapshots
from utils.options import number
from utils.process import devices
from utils.process.ending import DONE, exit_status

PLAIN = """
import sys
import torch
import torchvision

path, device = sys.argv[1:]
net = torchvision.models.vgg19(num_classes=1000).to(device)
net.load_state_dict(torch.load(path, map_location=device)["model_state_dict"])
for module in net.modules():
    if isinstance(module, torch.nn.Conv2d):
        projections = module.weight.detach().double().sum(dim=(1, 2, 3))
        print(projections.mean().item())
"""


class Run:
    """A process, run to its end: seconds, peak resident memory and bytes read from the disk."""

    def __init__(self, command: list[str], folder: Path):
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        self.seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with exit status {process.returncode}")
        self.peak_bytes = usage.ru_maxrss * 1024
        self.disk_bytes = usage.ru_inblock * 512


def make_snapshots(count: int, folder: Path) -> None:
    """Write training states that differ in all weights: `vgg19_<epoch>.tar`."""
    torch.manual_seed(0)
    net = models.build("vgg19", num_classes=1000)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for epoch in range(count):
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)
        optimizer.step()
        optimizer.zero_grad()
        state = {
            "epoch": epoch,
            "top1_acc": 0.0,
            "top5_acc": 0.0,
            "model_state_dict": net.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "scheduler_state_dict": {},
        }
        snapshots.save(state, folder / f"vgg19_{epoch}.tar")


def check(ours: list[str], plain: list[str], snapshot: Path) -> None:
    """Make sure that both ways give the same means, layer by layer."""
    Run(ours, snapshot.parent)
    results = json.loads(
        (snapshot.parent / "results" / "imagenet" / "vgg19" / f"{snapshot.stem}.json").read_text()
    )
    means = [results[stage][block]["mean"] for stage in results if stage.isdigit() for block in results[stage]]
    theirs = subprocess.run(plain, capture_output=True, text=True, check=True).stdout.split()
    np.testing.assert_allclose(means, [float(mean) for mean in theirs], rtol=1e-6, atol=1e-6)


def read_through(path: Path) -> None:
    """Bring a file into the page cache."""
    with open(path, "rb", buffering=0) as file:
        while file.read(2**24):
            pass


def drop_from_page_cache(path: Path) -> None:
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@exit_status
def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--snapshots", type=number(int, 1), default=6, metavar="N", help="how many to make (6)")
    parser.add_argument("--names", type=number(int, 2), default=6, metavar="N", help="names for each of them (6)")
    parser.add_argument("--repeats", type=number(int, 1), default=5, metavar="N", help="runs of each command (5)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the temporary folder is made")
    parser.add_argument("--cuda", action="store_true", help="measure on the GPU, both ways")
    args = parser.parse_args(argv)
    print(header(devices.choose(args.cuda)))

    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        # In a process of its own: the peak memory of the ones we start would begin with what ours has in use.
        maker = multiprocessing.get_context("spawn").Process(target=make_snapshots, args=(args.snapshots, folder))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit("the snapshots could not be made")
        files = [folder / f"vgg19_{epoch}.tar" for epoch in range(args.snapshots)]
        paths = [folder / f"vgg19_{epoch}.tar" for epoch in range(args.snapshots * args.names)]
        for index, path in enumerate(paths[len(files) :]):
            os.link(files[index % len(files)], path)
        with torch.device("meta"):
            measured = sum(layer.module.weight.nbytes for layer in models.layers(models.build("vgg19", 1000)))
        size = paths[0].stat().st_size
        print(f"{len(files)} files of {size / 1e9:.2f} GB, {measured / 1e6:.1f} MB of it convolutions")

        program = Path(__file__).resolve().parent.parent / "compute_projections.py"
        ours = [sys.executable, str(program), "--arch", "vgg19", "--dataset", "imagenet"]
        ours += ["--cuda"] if args.cuda else []
        commands = {
            "imports": [sys.executable, "-c", "import torch, torchvision"],
            "one": [*ours, "--load-from", str(paths[0])],
            "all": [*ours, "--load-from", *map(str, paths)],
            "plain": [sys.executable, "-c", PLAIN, str(paths[0]), "cuda" if args.cuda else "cpu"],
        }
        check(commands["one"], commands["plain"], paths[0])
        runs: dict[str, list[Run]] = {name: [] for name in commands}
        for _ in range(args.repeats):  # in turn: what slows the machine down for a while slows down all
            for path in files:
                read_through(path)
            for name, command in commands.items():
                runs[name].append(Run(command, folder))
        disk = {}
        for name in ("one", "plain"):
            drop_from_page_cache(paths[0])
            disk[name] = Run(commands[name], folder).disk_bytes

    seconds = {name: [run.seconds for run in those] for name, those in runs.items()}
    each = [total / len(paths) for total in seconds["all"]]
    further = [(total - one) / (len(paths) - 1) for total, one in zip(seconds["all"], seconds["one"], strict=True)]
    plain = statistics.median(seconds["plain"])
    one = statistics.median(seconds["one"])

    print(f"\n{'seconds per snapshot: median [least to most]':46}  plain / ours")
    for text, values in {
        "plain way, one process a snapshot": seconds["plain"],
        f"one command for {len(paths)} snapshots": each,
        "  each after the first": further,
        "one command for one snapshot": seconds["one"],
    }.items():
        ratio = "" if values is seconds["plain"] else f"{plain / statistics.median(values):6.1f}"
        print(f"{text:34} {spread(values, '.3f'):24} {ratio}")
    print(f"{'import torch, torchvision':34} {spread(seconds['imports'], '.3f')}")
    print(f"\none snapshot, start to end, is {one / statistics.median(seconds['imports']):.2f} times the imports")
    if min(further) <= 0:
        print("too much noise for how long further snapshots take: give more --names, or wait for quiet")
    speed = measured / 1e9 / statistics.median(further)
    print(f"each snapshot after the first: {speed:.2f} GB/s of convolution weights")
    for name, text in (("all", f"one command for {len(paths)} snapshots"), ("plain", "the plain way")):
        print(f"peak memory of {text}: {max(run.peak_bytes for run in runs[name]) / 1e9:.2f} GB")
    for name, text in (("one", "compute_projections.py"), ("plain", "the plain way")):
        read = f"{disk[name] / 1e6:.0f} of {size / 1e6:.0f} MB" if disk[name] else "not counted on this system"
        print(f"read from the disk by {text}, nothing in the page cache: {read}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
