"""Where a run's files go: <folder>/<dataset>/<noise>/<arch>/<seed>/."""

import argparse
import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Any


def noise_folder(noise: float) -> str | None:
    """The part of the path that tells noisy data from clean: `noise_20` for a ratio of 0.2.

    `pixel_shuffle` for -1, None for 0.
    Exact: 0.29 is `noise_29` and 0.005 is `noise_0.5`, although 100 * 0.29 < 29 in floating point.
    """
    if noise == 0:
        return None
    if noise == -1:
        return "pixel_shuffle"
    return f"noise_{(100 * Decimal(repr(float(noise)))).normalize():f}"


def noise_of_snapshot(path: Path, config: dict[str, Any]) -> str | None:
    """`noise_folder` of the run that a snapshot is from: as its configuration records it, else from its path."""
    if isinstance(config.get("noise"), (int, float)):
        return noise_folder(config["noise"])
    is_noise = re.compile(r"noise_\d+(\.\d+)?|pixel_shuffle").fullmatch
    return next((parent.name for parent in Path(os.path.abspath(path)).parents if is_noise(parent.name)), None)


def dataset_folder(dataset: str, subsample_classes: int = 0) -> str:
    """The dataset's name, with the number of classes where they were subsampled: `cifar10_3`."""
    return f"{dataset}_{subsample_classes}" if subsample_classes else dataset


def run_folder(
    base: str | Path,
    dataset: str,
    arch: str,
    seed: int | None,
    subsample_classes: int = 0,
    noise: str | None = None,
) -> Path:
    """The folder below `base` for a run. `noise` as `noise_folder` gives it; no folder for a seed that is None."""
    parts = [dataset_folder(dataset, subsample_classes), noise, arch, None if seed is None else str(seed)]
    return Path(base, *(part for part in parts if part is not None))


class RunFiles:
    """Where the files of a training run go.

    Args:
        args: of train.py.
    """

    def __init__(self, args: argparse.Namespace):
        self.seed = args.seed if "seed" in args.given else None
        noise = noise_folder(args.noise)

        def folder(base: str | Path) -> Path:
            return run_folder(base, args.dataset, args.arch, self.seed, args.subsample_classes, noise)

        self.folder, self.board_folder, self.log_folder = map(folder, (args.models_path, args.tb_logdir, "./log"))
        stem = f"{args.arch}_pretrained" if args.pretrained else args.arch
        self.initial = self.folder / (f"{stem}_0.pt" if args.pretrained else f"{stem}_init_0.pt")
        self.final = self.folder / f"{stem}_{args.epochs}.pt"
        self.arch = args.arch

    def training_state(self, epoch: int) -> Path:
        """Of the state after the 0-based epoch."""
        return self.folder / f"{self.arch}_{epoch}.tar"
