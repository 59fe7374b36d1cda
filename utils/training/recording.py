"""Evaluate a network after each epoch of training, log the metrics, and save the snapshots that are due."""

import contextlib
import csv
import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import data
import models
from core.errors import OneLineError
from utils import options, projections, snapshots
from utils.arguments import Settings
from utils.process import distributed
from utils.process.ending import PLATEAU
from utils.results import write_csv
from utils.runs.begin import Run
from utils.runs.record import Record
from utils.snapshots.weights import bare_weights, not_finite
from utils.training import optimizers
from utils.training.board import Board
from utils.training.metrics import Evaluation, NotFiniteError, evaluate

#: TensorBoard's tags of the network, which sort first: accuracy on the images watched, and bias.
NETWORK = ("accuracy/top1", "bias/mass", "bias/mean")
#: Columns of metrics.csv by TensorBoard's tag.
COLUMNS = {
    **{"epoch": "epoch", "loss/train": "loss_train_running", "top1/train_running": "top1_train_running"},
    **{"loss/train_evaluated": "loss_train", "top1/train": "top1_train"},
    **{f"{what}/{part}": f"{what}_{part}" for part in ("validation", "test") for what in Evaluation._fields},
    **{"lr": "lr", "seconds": "seconds", "bias/mass": "mass", "bias/mean": "mean"},
}


class Plateau(OneLineError):
    """The accuracy did not change in an epoch that --kill-plateaus watches."""

    status = PLATEAU


def is_snapshot_epoch(epoch: int, settings: Settings) -> bool:
    """Return whether a snapshot is due after the 0-based epoch."""
    every = settings.snapshot_every and (epoch + 1) % settings.snapshot_every == 0
    return bool(every) or epoch < settings.snapshot_all_until or epoch == settings.epochs - 1


def first_step(run: Run) -> int:
    """Return the first epoch, counted from 1, that a run trains or measures; 0: it measures its initialization."""
    return 0 if run.snapshot is None else run.state.get("tensorboard_step", run.first_epoch) + 1


@dataclasses.dataclass
class Recorder:
    """Evaluates a network after its epochs, logs the metrics and saves snapshots."""

    run: Run
    record: Record
    net: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler | None
    dataset: data.Dataset
    log: logging.Logger
    board: Board | None = None  #: of rank 0
    metrics: list[dict[str, Any]] = dataclasses.field(default_factory=list)  #: the rows of metrics.csv, on rank 0
    previous_top1: float | None = None  #: on the images watched, after the epoch before
    final: Evaluation | None = None  #: on the test set, after the last epoch

    def open_board(self) -> contextlib.AbstractContextManager[Board | None]:
        """Open the TensorBoard log, from the epoch on where the run begins. Only rank 0 has one."""
        run, folder = self.run, self.run.files.board_folder
        self.log.info(f"TensorBoard: {folder}")
        new = run.snapshot is None and run.settings.resume_from is None
        if new and any(folder.glob("events.out.tfevents.*")):
            earlier = f"{folder}: TensorBoard no longer shows the earlier run there"
            self.log.warning(f"{earlier}; see --tb-logdir and --name")
        if distributed.RANK > 0:
            return contextlib.nullcontext()
        self.board = Board(folder, first_step(run), self.record.config)
        return contextlib.closing(self.board)

    def begin(self) -> None:
        """Measure the initialization, or the epoch of the snapshot if its process ended before it was measured."""
        run = self.run
        if distributed.RANK == 0:
            self._log_disk_space()
            self.metrics = self._read_metrics()
            write_csv(self.metrics, run.files.metrics, COLUMNS.values())
            if run.snapshot is None:
                self.board.add(0, self._measure_bias(0))
        self.previous_top1 = run.state.get("top1_acc")
        if "unmeasured" in run.state:
            epoch, path = run.first_epoch - 1, run.snapshot.path
            self.log.info(f"epoch {epoch} was trained, and is measured now")
            ours = path.resolve() == run.files.training_state(epoch).resolve()
            watched = self._measure(epoch, run.state["unmeasured"], path if ours else None)
            if distributed.RANK == 0 and ours:
                snapshots.save(with_accuracies(snapshots.load(path), watched), path)

    def _log_disk_space(self) -> None:
        """Log how much disk space the snapshots will take, and warn if it is not there."""
        run, net, settings = self.run, self.net, self.run.settings
        states = sum(is_snapshot_epoch(epoch, settings) for epoch in range(run.first_epoch, settings.epochs))
        weights = sum(weight.nbytes for weight in net.state_dict().values())
        trained = sum(weight.nbytes for weight in net.parameters() if weight.requires_grad)
        state = weights + trained * len(optimizers.buffers_of(self.optimizer))
        needed, free = states * state + weights, shutil.disk_usage(run.files.folder).free
        each, together, there = (f"{tqdm.format_sizeof(size)}B" for size in (state, needed, free))
        count = f"{states} training state{'s' if states > 1 else ''} of {each}"
        self.log.info(f"disk space: {count}, with the final weights {together}")
        if needed > free:
            problem = f"--models-path {settings.models_path}: {there} are free, and snapshots will take {together}"
            self.log.warning(f"{problem}: make space, or give a larger --snapshot-every")

    def _read_metrics(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.csv of the epochs before those that are trained or measured now."""
        run = self.run
        path = run.snapshot.path.parent / run.files.metrics.name if run.goes_on else None
        if path is None or not path.exists():
            return []
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:  # a spreadsheet program may have saved it
                rows = [{name: row.get(name) for name in COLUMNS.values()} for row in csv.DictReader(file)]
            return [row for row in rows if int(row["epoch"]) < first_step(run)]
        except (OSError, ValueError, TypeError, csv.Error):
            self.log.warning(f"{path} cannot be read: the table begins anew")
            return []

    def finish_epoch(self, epoch: int, curves: dict[str, float], stopping: bool = False) -> bool:
        """Finish an epoch: evaluate, log its metrics and save a snapshot where one is due, or the run stops here.

        Return whether there is a snapshot. Raise Plateau if the accuracy did not change, NotFiniteError if weights
        or outputs are not finite.
        """
        due = stopping or is_snapshot_epoch(epoch, self.run.settings)
        may_be_plateau = self._watches_for_plateau(epoch)
        if not due and not may_be_plateau:
            self._log(epoch, dict(curves))
            return False
        path = self.run.files.training_state(epoch)
        state = self._state(epoch, curves) if due else None
        if not may_be_plateau:  # a plateau leaves no snapshot
            # Saved before it is measured: if the evaluation fails, the epoch need not be trained again.
            distributed.from_rank_0(lambda: snapshots.save(state, path))
        watched = self._measure(epoch, curves, None if may_be_plateau else path)
        if due:
            if distributed.RANK == 0:
                snapshots.save(with_accuracies(state, watched), path)
            self.log.info(f"  snapshot: {path}")
        return due

    def _state(self, epoch: int, curves: dict[str, float]) -> dict[str, Any]:
        """Return the training state after an epoch, which is not measured yet.

        Raise NotFiniteError where weights are not finite: the last step of an epoch comes after its last loss.
        """
        if not_finite(self.net.state_dict()):
            raise NotFiniteError(f"the last batch of epoch {epoch} broke the weights: they are not all finite")
        return {
            "format": snapshots.FORMAT,
            **self.record.in_state(),
            "epoch": epoch,
            "tensorboard_step": epoch,
            "top1_acc": None,
            "top5_acc": None,
            "top1_acc_train_running": curves["top1/train_running"],
            "unmeasured": curves,
            "model_state_dict": bare_weights(self.net),
            "optimizer_state_dict": optimizers.portable_state(self.optimizer),
            "scheduler_state_dict": self.schedule.state_dict() if self.schedule is not None else {},
        }

    def _measure(self, epoch: int, curves: dict[str, float], snapshot: Path | None) -> Evaluation:
        """Evaluate the network after an epoch, and remove its snapshot if the outputs are not finite."""
        try:
            watched = self._evaluate(epoch, dict(curves))
        except NotFiniteError as error:
            # The loss of the last batch was computed before its step.
            message = f"the last batch of epoch {epoch} broke the weights: {error}"
            if distributed.RANK == 0 and snapshot is not None:
                snapshot.unlink()
                message += f"; {snapshot} is removed"
            raise NotFiniteError(message) from None
        if self._watches_for_plateau(epoch) and watched.top1 == self.previous_top1:
            raise Plateau(f"plateau: top-1 {watched.top1:.2f} % again after epoch {epoch}")
        self.previous_top1 = watched.top1
        return watched

    def _evaluate(self, epoch: int, curves: dict[str, float]) -> Evaluation:
        """Evaluate on the images that training is watched with, and log all that is due after the epoch."""
        net, dataset = self.net, self.dataset
        images, name, tag = dataset.val, "validation split", "validation"
        if dataset.val is None:
            images, name, tag = dataset.test, "test set", "test"
        watched = evaluate(net, images, name)
        self.log.info(f"  {name}: {watched}")
        curves |= watched.named(f"{{}}/{tag}")
        curves[NETWORK[0]] = watched.top1
        if is_snapshot_epoch(epoch, self.run.settings) and self.run.settings.train_acc:
            on_train = evaluate(net, dataset.train.as_is(), "training set")
            self.log.info(f"  training set: {on_train}")
            curves |= {"loss/train_evaluated": on_train.loss, "top1/train": on_train.top1}
        if epoch == self.run.settings.epochs - 1:
            self.final = watched
            if dataset.val is not None:
                self.final = evaluate(net, dataset.test, "test set")
        self._log(epoch, curves)
        return watched

    def _log(self, epoch: int, curves: dict[str, Any]) -> None:
        """Log the curves of an epoch and the bias after it to TensorBoard and to metrics.csv, on rank 0."""
        if distributed.RANK > 0:
            return
        curves |= self._measure_bias(epoch + 1)
        self.board.add(epoch + 1, curves)
        seconds = self.dataset.train.num_images / curves["images_per_second"]
        curves |= {"epoch": epoch + 1, "seconds": seconds, **(self.final.named("{}/test") if self.final else {})}
        self.metrics.append({COLUMNS[tag]: value for tag, value in curves.items() if tag in COLUMNS})
        write_csv(self.metrics, self.run.files.metrics, COLUMNS.values())

    def _measure_bias(self, step: int) -> dict[str, Any]:
        """Return curves of the network's bias and, where a snapshot is due, of that of each layer."""
        layers = models.layers(self.net.eval()) or models.layers(self.net, with_linear=True)
        try:  # in evaluation mode: in training mode spectral norm changes the weights that are read
            measured = projections.measure({layer.name: layer.module.weight for layer in layers}, normalize=True)
        except ValueError as error:
            raise NotFiniteError(f"after {step} epochs: {error}") from None
        network = projections.network_statistics(measured.values())
        curves = {tag: network[tag.removeprefix("bias/")] for tag in NETWORK[1:] if layers}
        if step == 0 or is_snapshot_epoch(step - 1, self.run.settings):
            for what in ("projections", "mass", "mean"):
                curves |= {f"{what}/{name}": layer[what] for name, layer in measured.items()}
        return curves

    def finish(self) -> None:
        """Log the final accuracies, and write the run's row of TensorBoard's HPARAMS tab."""
        if self.final is None:  # no epoch was left to train
            self.final = evaluate(self.net, self.dataset.test, "test set")
        self.log.info(f"test set: {self.final}")
        if distributed.RANK == 0:
            self.board.finish({**self.record.config, **self.final.named("{}_test")}, NETWORK)

    def _watches_for_plateau(self, epoch: int) -> bool:
        return self.run.settings.kill_plateaus and epoch < options.PLATEAU_EPOCHS


def with_accuracies(state: dict[str, Any], watched: Evaluation) -> dict[str, Any]:
    """Return a training state, made or loaded, with the accuracies of its epoch."""
    left_out = {"unmeasured", "checksums", "structure"}
    return {
        **{key: value for key, value in state.items() if key not in left_out},
        "tensorboard_step": state["epoch"] + 1,
        "top1_acc": watched.top1,
        "top5_acc": watched.top5,
    }
