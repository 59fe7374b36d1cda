"""Evaluate a network after each epoch of training, log the metrics, and save the snapshots that are due."""

import contextlib
import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

import data
import models
from utils import options, projections, snapshots
from utils.arguments import Settings
from utils.process import distributed
from utils.runs.begin import Run
from utils.runs.record import Record
from utils.snapshots.weights import bare_weights, extremes
from utils.training import optimizers
from utils.training.board import Board
from utils.training.metrics import Evaluation, NotFiniteError, evaluate

#: The metrics that TensorBoard shows beside the hyperparameters.
FINAL_METRICS = ("final/test_loss", "final/test_top1", "final/test_top5")


@dataclasses.dataclass(frozen=True)
class Training:
    """A training run, and everything that it works with."""

    run: Run
    record: Record
    net: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler | None
    dataset: data.Dataset
    log: logging.Logger


class Plateau(Exception):
    """The accuracy did not change in an epoch that --kill-plateaus watches; the message says so."""


def is_snapshot_epoch(epoch: int, settings: Settings) -> bool:
    """Return whether a snapshot is due after the 0-based epoch."""
    every = settings.snapshot_every and (epoch + 1) % settings.snapshot_every == 0
    return bool(every) or epoch < settings.snapshot_all_until or epoch == settings.epochs - 1


def open_board(training: Training) -> contextlib.AbstractContextManager[Board | None]:
    """Open the TensorBoard log of a run, from the epoch on where it begins. Only rank 0 has one."""
    run, log = training.run, training.log
    folder = run.files.board_folder
    log.info(f"TensorBoard: {folder}")
    new = run.snapshot is None and run.settings.resume_from is None
    if new and any(folder.glob("events.out.tfevents.*")):
        log.warning(f"{folder}: TensorBoard no longer shows the earlier run there; see --tb-logdir and --name")
    first_step = 0
    if run.snapshot is not None:
        first_step = run.snapshot.content.get("tensorboard_step", run.first_epoch) + 1
    if distributed.RANK > 0:
        return contextlib.nullcontext()
    return Board(folder, first_step, training.record.config, FINAL_METRICS)


class Recorder:
    """Evaluates a network after its epochs, logs the metrics and saves snapshots."""

    def __init__(self, training: Training, board: Board | None):
        self.training, self.board = training, board
        self.settings, self.files = training.run.settings, training.run.files
        before = training.run.snapshot
        self.previous_top1 = before.content.get("top1_acc") if before is not None else None
        self.final: Evaluation | None = None  #: on the test set, after the last epoch

    def begin(self) -> None:
        """Measure the initialization, or the epoch of the snapshot if its process ended before it was measured."""
        run = self.training.run
        if run.snapshot is None:
            self._log_bias(0)
        elif "unmeasured" in run.snapshot.content:
            epoch, path = run.first_epoch - 1, run.snapshot.path
            self.training.log.info(f"epoch {epoch} was trained, and is measured now")
            ours = path.resolve() == self.files.training_state(epoch).resolve()
            watched = self._measure(epoch, run.snapshot.content["unmeasured"], path if ours else None)
            if distributed.RANK == 0 and ours:
                snapshots.save(with_accuracies(snapshots.load(path), watched), path)

    def finish_epoch(self, epoch: int, curves: dict[str, float], stopping: bool = False) -> bool:
        """Finish an epoch: evaluate, log its metrics and save a snapshot where one is due, or the run stops here.

        Return whether there is a snapshot. Raise Plateau if the accuracy did not change, NotFiniteError if weights
        or outputs are not finite.
        """
        due, watched_for_plateau = is_snapshot_epoch(epoch, self.settings), self._watches_for_plateau(epoch)
        due = due or stopping
        path = self.files.training_state(epoch)
        if due:
            check_weights(self.training.net, epoch)
        if due and not watched_for_plateau:  # a plateau leaves no snapshot
            # Saved before it is measured: if the evaluation fails, the epoch need not be trained again.
            state = {**self._state(epoch, curves), "unmeasured": curves}
            distributed.from_rank_0(lambda: snapshots.save(state, path))
        if due or watched_for_plateau:
            watched = self._measure(epoch, curves, None if watched_for_plateau else path, due)
        else:
            self._add_to_board(epoch + 1, curves)
        if due:
            if distributed.RANK == 0:
                snapshots.save(with_accuracies(self._state(epoch, curves), watched), path)
            self.training.log.info(f"  snapshot: {path}")
        return due

    def _state(self, epoch: int, curves: dict[str, float]) -> dict[str, Any]:
        """Return the training state after an epoch; its accuracies are not known yet."""
        training = self.training
        return {
            "format": snapshots.FORMAT,
            **training.record.in_state(),
            "epoch": epoch,
            "tensorboard_step": epoch,
            "top1_acc": None,
            "top5_acc": None,
            "top1_acc_train_running": curves["top1/train_running"],
            "model_state_dict": bare_weights(training.net),
            "optimizer_state_dict": optimizers.portable_state(training.optimizer),
            "scheduler_state_dict": training.schedule.state_dict() if training.schedule is not None else {},
        }

    def _measure(
        self, epoch: int, curves: dict[str, float], snapshot: Path | None, due: bool = True
    ) -> Evaluation:
        """Evaluate the network after an epoch, and remove its snapshot if the outputs are not finite."""
        try:
            watched = self._evaluate(epoch, dict(curves), due)
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

    def _evaluate(self, epoch: int, curves: dict[str, float], due: bool) -> Evaluation:
        """Evaluate on the images that training is watched with; log what belongs to a snapshot, if one is due."""
        net, dataset, log = self.training.net, self.training.dataset, self.training.log
        images, name, tag = dataset.val, "validation split", "validation"
        if dataset.val is None:
            images, name, tag = dataset.test, "test set", "test"
        watched = evaluate(net, images, name)
        log.info(f"  {name}: {watched}")
        curves |= {f"{what}/{tag}": value for what, value in watched._asdict().items()}
        if due:
            self._log_bias(epoch + 1)
            if self.settings.train_acc:
                on_train = evaluate(net, dataset.train.as_is(), "training set")
                log.info(f"  training set: {on_train}")
                curves |= {"loss/train_evaluated": on_train.loss, "top1/train": on_train.top1}
        if epoch == self.settings.epochs - 1:
            self.final = watched if dataset.val is None else evaluate(net, dataset.test, "test set")
            curves |= zip(FINAL_METRICS, self.final, strict=True)
        self._add_to_board(epoch + 1, curves)
        return watched

    def _log_bias(self, step: int) -> None:
        """Log how the filters of each layer are oriented (utils/projections.py)."""
        net = self.training.net
        layers = models.layers(net) or models.layers(net, with_linear=True)
        try:
            measured = projections.measure({layer.name: layer.module.weight for layer in layers}, normalize=True)
        except ValueError as error:
            raise NotFiniteError(f"after {step} epochs: {error}") from None
        logged = ("projections", "mass", "mean")
        self._add_to_board(
            step, {f"{what}/{name}": layer[what] for name, layer in measured.items() for what in logged}
        )

    def _add_to_board(self, step: int, values: dict[str, Any]) -> None:
        if self.board is not None:
            self.board.add(step, values)

    def _watches_for_plateau(self, epoch: int) -> bool:
        return self.settings.kill_plateaus and epoch < options.PLATEAU_EPOCHS


def with_accuracies(state: dict[str, Any], watched: Evaluation) -> dict[str, Any]:
    """Return a training state, made or loaded, with the accuracies of its epoch."""
    left_out = {"unmeasured", "checksums", "structure"}
    return {
        **{key: value for key, value in state.items() if key not in left_out},
        "tensorboard_step": state["epoch"] + 1,
        "top1_acc": watched.top1,
        "top5_acc": watched.top5,
    }


def check_weights(net: nn.Module, epoch: int) -> None:
    """Raise NotFiniteError where weights are not finite: the last step of an epoch comes after its last loss."""
    tensors = [tensor for tensor in net.state_dict().values() if tensor.is_floating_point() and tensor.numel()]
    if not extremes(tensors).isfinite().all():
        raise NotFiniteError(f"the last batch of epoch {epoch} broke the weights: they are not all finite")
