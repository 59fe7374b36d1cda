"""TensorBoard: one folder a run, one step an epoch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class Board:
    """The curves of a training run. Step e is the network after e epochs; 0 is the initialization.

    Args:
        folder: where the event files go.
        first_step: what an earlier, interrupted process has written from this step on is superseded.
        config: recorded as text and as hyperparameters.
        metrics: the tags of the final metrics that the hyperparameters are compared by.
    """

    def __init__(self, folder: Path, first_step: int, config: dict[str, Any], metrics: Sequence[str]):
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self.writer = SummaryWriter(folder, purge_step=first_step)
        rows = "\n".join(f"| {name} | {value} |" for name, value in config.items())
        self.writer.add_text("configuration", f"| option | value |\n| --- | --- |\n{rows}", first_step)
        known = {
            name: str(value) if isinstance(value, bool) else value  # else it is shown as 1.0000
            for name, value in config.items()
            if value is not None
        }
        # SummaryWriter.add_hparams would make another run of it, in a subfolder of its own.
        experiment, start, self._end = hparams(known, dict.fromkeys(metrics))
        self.writer.file_writer.add_summary(experiment)
        self.writer.file_writer.add_summary(start)

    def add(self, step: int, values: dict[str, float]) -> None:
        """Add a point to several curves, by their tags, and let a reader see them."""
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)
        self.writer.flush()

    def add_histograms(self, step: int, values: dict[str, Sequence[float]]) -> None:
        """Add the distribution of several sets of numbers, by their tags."""
        for tag, numbers in values.items():
            self.writer.add_histogram(tag, np.asarray(numbers), step)

    def finish(self, step: int, metrics: dict[str, float]) -> None:
        """Add the final metrics and mark the run as finished."""
        self.add(step, metrics)
        self.writer.file_writer.add_summary(self._end)

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *exception) -> None:
        self.writer.close()
