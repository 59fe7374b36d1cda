"""TensorBoard logs of a training run: one folder a run, one step an epoch."""

import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import RunError

HPARAMS = ".hparams"  #: suffix of the event file of the HPARAMS tab


class Board:
    """Write the metrics of a training run for TensorBoard. Step e is the network after e epochs.

    TensorBoard hides what an earlier, interrupted process logged from `first_step` on. Each method returns when
    its data is on disk: a killed process loses nothing that it has logged. Each may raise RunError.
    """

    def __init__(self, folder: Path, first_step: int, config: dict[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        threading.excepthook = _report_thread_error
        rows = "\n".join(f"| {name} | {value} |" for name, value in config.items())
        with self._flushed():
            for earlier in folder.glob(f"*{HPARAMS}"):  # TensorBoard would go on to show that row
                earlier.unlink()
            self._writer = SummaryWriter(str(folder), purge_step=first_step)
            self._writer.add_text("configuration", f"| option | value |\n| --- | --- |\n{rows}", first_step)

    def add(self, step: int, values: dict[str, float | Sequence[float]]) -> None:
        """Add a point to a curve for each number, and a histogram for each sequence of numbers, by their tags."""
        with self._flushed():
            for tag, value in values.items():
                if isinstance(value, Sequence):
                    self._writer.add_histogram(tag, np.asarray(value), step, bins=50)
                else:
                    self._writer.add_scalar(tag, value, step)

    def finish(self, values: dict[str, Any], metrics: Sequence[str]) -> None:
        """Write the row of a finished run in the HPARAMS tab: its final values, and the ends of these curves.

        It is in a file of its own, which goes when the run goes on, or another one begins in the folder.
        """
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        known = {
            name: str(value) if isinstance(value, bool) else value  # TensorBoard shows True as 1.0000
            for name, value in values.items()
            if value is not None
        }
        # Not add_hparams: it writes into a subfolder, which TensorBoard shows as another run.
        with self._flushed(), SummaryWriter(str(self.folder), filename_suffix=HPARAMS) as writer:
            for summary in hparams(known, dict.fromkeys(metrics)):
                writer.file_writer.add_summary(summary)

    @contextlib.contextmanager
    def _flushed(self):
        """Flush at the end of the block, and raise errors as a RunError that names the folder."""
        try:
            yield
            self._writer.flush()
        except OSError as error:
            raise RunError(f"{self.folder}: {error.strerror or error}") from None

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a failed writer raises its error again; all data is flushed already
            self._writer.close()


def _report_thread_error(args, report=threading.excepthook) -> None:
    """Report an error in a thread, but not one in SummaryWriter's: `flush` raises it in the main thread."""
    if type(args.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
        report(args)
