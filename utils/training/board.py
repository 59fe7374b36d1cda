"""TensorBoard: one folder a run, one step an epoch."""

import io
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class Board:
    """The curves of a training run. Step e is the network after e epochs; 0 is the initialization.

    PyTorch's SummaryWriter writes from a thread of its own, where a full disk ends in a traceback. A few points an
    epoch need no thread: here an error is the caller's, and what was added is in the file when `add` returns.

    Args:
        folder: where the event file goes. Created.
        first_step: what an earlier, interrupted process has written from this step on is superseded.
        config: recorded as text and as hyperparameters.
        metrics: the tags of the final metrics that the hyperparameters are compared by.

    Raises:
        OSError: from this and from `add` and `finish`: what the operating system says about disk, folder or file.
    """

    def __init__(self, folder: Path, first_step: int, config: dict[str, Any], metrics: Sequence[str]):
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard.summary import hparams, text

        folder.mkdir(parents=True, exist_ok=True)
        # A reader takes a run's files in the order of their names.
        self.path = folder / f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(self.path, "xb", buffering=0)  # noqa: SIM115 (closed by __exit__)
        self._unwritten = io.BytesIO()
        self._records = RecordWriter(self._unwritten)

        self._add_event(file_version="brain.Event:2")
        self._add_event(step=first_step, session_log=SessionLog(status=SessionLog.START))
        rows = "\n".join(f"| {name} | {value} |" for name, value in config.items())
        configuration = text("configuration", f"| option | value |\n| --- | --- |\n{rows}")
        self._add_event(step=first_step, summary=configuration)
        known = {
            name: str(value) if isinstance(value, bool) else value  # else it is shown as 1.0000
            for name, value in config.items()
            if value is not None
        }
        experiment, start, self._end = hparams(known, dict.fromkeys(metrics))
        self._add_event(summary=experiment)
        self._add_event(summary=start)
        self._write()

    def add(self, step: int, values: dict[str, float]) -> None:
        """Add a point to several curves, by their tags, and let a reader see them."""
        from torch.utils.tensorboard.summary import scalar

        for tag, value in values.items():
            self._add_event(step=step, summary=scalar(tag, value))
        self._write()

    def add_histograms(self, step: int, values: dict[str, Sequence[float]]) -> None:
        """Add the distribution of several sets of numbers, by their tags; they are written with the next `add`."""
        from torch.utils.tensorboard.summary import histogram

        for tag, numbers in values.items():
            self._add_event(step=step, summary=histogram(tag, np.asarray(numbers), bins=50))

    def finish(self) -> None:
        """Mark the run as finished."""
        self._add_event(summary=self._end)
        self._write()

    def _add_event(self, **content) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **content).SerializeToString())

    def _write(self) -> None:
        os.stat(self.path)  # an error where the folder was removed, of which an open file knows nothing
        rest = self._unwritten.getvalue()
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:  # a full disk does not say which file
            error.filename = str(self.path)
            raise
        self._unwritten.seek(0)
        self._unwritten.truncate()

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()


class NoBoard(Board):
    """Takes the same calls and writes nothing: of several processes only one has a board."""

    def __init__(self, *arguments):
        pass

    def add(self, step: int, values: dict[str, float]) -> None:
        pass

    def add_histograms(self, step: int, values: dict[str, Sequence[float]]) -> None:
        pass

    def finish(self) -> None:
        pass

    def __exit__(self, *exception) -> None:
        pass
