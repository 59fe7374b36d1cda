"""Where the files of a run go: <base>/<dataset>/<noise>/<arch>/<name>/<seed>/."""

import os
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from utils.arguments import Settings


def noise_folder(noise: float) -> str | None:
    """Return the folder that tells noisy data from clean data (see docs/files.md); None for a ratio of 0."""
    if noise == 0:
        return None
    if noise == -1:
        return "pixel_shuffle"
    return f"noise_{(100 * Decimal(repr(float(noise)))).normalize():f}"  # exact: as a float, 100 * 0.29 < 29


def noise_of_snapshot(path: Path, config: Mapping[str, Any]) -> str | None:
    """Return the `noise_folder` of the run of a snapshot: from its configuration, else from its path."""
    if isinstance(config.get("noise"), (int, float)):
        return noise_folder(config["noise"])
    is_noise = re.compile(r"noise_\d+(\.\d+)?|pixel_shuffle").fullmatch
    return next((parent.name for parent in Path(os.path.abspath(path)).parents if is_noise(parent.name)), None)


def dataset_folder(dataset: str | None, subsample_classes: int = 0) -> str | None:
    """Return the dataset's name, followed by the number of classes if they are subsampled: `cifar10_3`."""
    return f"{dataset}_{subsample_classes}" if dataset and subsample_classes else dataset


def describe_data(dataset: str | None, subsample_classes: int = 0, noise: str | None = None) -> str:
    """Name the data of a run for people: "cifar10, 4 classes, 20 % label noise". noise: its folder."""
    parts = [dataset, f"{subsample_classes} classes" if subsample_classes else ""]
    if noise is not None:
        share = noise.removeprefix("noise_")
        parts.append("shuffled pixels" if share == noise else f"{share} % label noise")
    return ", ".join(filter(None, parts))


def run_folder(base: str | Path, settings: Settings, noise: str | None) -> Path:
    """Return the folder of a run below `base`. `noise`: as `noise_folder` returns it."""
    dataset = dataset_folder(settings.dataset, settings.subsample_classes)
    seed = str(settings.seed) if "seed" in settings.given else None
    parts = [dataset, noise, settings.arch, settings.name, seed]
    return Path(base, *(part for part in parts if part is not None))


class RunFiles:
    """The files of a training run: folders of snapshots, of TensorBoard and of the log, and what is in them."""

    def __init__(self, settings: Settings):
        noise, bases = noise_folder(settings.noise), (settings.models_path, settings.tb_logdir, "./log")
        self.folder, self.board_folder, self.log_folder = (run_folder(base, settings, noise) for base in bases)
        stem = f"{settings.arch}_pretrained" if settings.pretrained else settings.arch
        self.initial = self.folder / (f"{stem}_0.pt" if settings.pretrained else f"{stem}_init_0.pt")
        self.final = self.folder / f"{stem}_{settings.epochs}.pt"
        self.metrics = self.folder / "metrics.csv"  # a table of losses, accuracies and bias, a row an epoch
        self.arch = settings.arch

    def training_state(self, epoch: int) -> Path:
        """Return the path of the training state after the 0-based epoch."""
        return self.folder / f"{self.arch}_{epoch}.tar"
