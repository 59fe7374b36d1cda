"""Train a ConvNet and keep snapshots of it.

    python train.py --arch lenet --dataset mnist --shuffle --lr 0.02 --epochs 3 --seed 1 --snapshot-every 1
    python train.py --arch vgg11 --dataset cifar10 --augmentation --split 0.1 --stratified --shuffle --cuda

    torchrun --nproc-per-node 4 train.py --arch resnet50 --dataset imagenet --shuffle --augmentation --cuda

Snapshots go to <models-path>/<dataset>/<arch>/<seed>/: the initialization, training states after the epochs
asked for, the final weights. A run that is preempted goes on where it was, with the same final weights, when the
same command is given again with `--resume-from latest`; give it from the start:

    python train.py --arch lenet --dataset mnist --shuffle --seed 1 --snapshot-every 1 --resume-from latest

Exit status: 0 done; 1 failed under way; 2 wrong use or input; 3 plateau (--kill-plateaus); 130, 143 interrupted.
"""

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import data
import models
from core import seeds
from core.errors import RunError, UsageError
from core.text import say
from utils import projections, snapshots
from utils.options import (
    Parser,
    add_device,
    add_test_images,
    check_dataset,
    check_tf32,
    file_name,
    folder,
    list_choices,
    not_empty,
    number,
    option,
    seed,
    warn_of,
)
from utils.process import devices, distributed
from utils.process.ending import DONE, PLATEAU, exit_status, memory_for
from utils.process.logging import epochs_logged, open_log
from utils.runs import resume
from utils.runs.configuration import DRAWN_SEEDS, LARGEST, configuration, ineffective
from utils.runs.folders import RunFiles
from utils.runs.lock import FolderLock
from utils.runs.provenance import provenance
from utils.training import optimizers, precision
from utils.training.board import Board, NoBoard
from utils.training.metrics import Evaluation, NotFiniteError, evaluate
from utils.training.step import make_step, train_epoch

PLATEAU_EPOCHS = 10  #: --kill-plateaus watches these first epochs
#: In TensorBoard, beside hyperparameters.
FINAL_METRICS = ("final/test_loss", "final/test_top1", "final/test_top5")


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = Parser("train.py", __doc__)
    group = parser.add_argument_group("network and images")
    add_test_images(group)
    add = group.add_argument
    add("--pretrained", action="store_true", help="ImageNet weights from the model zoo")
    add(
        "--noise",
        type=number(float),
        default=0.0,
        metavar="R",
        help="ratio of corrupted labels; -1: shuffle pixels (0)",
    )
    add("--noise-seed", type=seed, metavar="S", help="seed for noise or shuffling (default: drawn)")
    add("--augmentation", action="store_true", help="random crops and flips; imagenet: resized crops")
    add("--unnormalize", action="store_true", help="pixel values in [0, 1] instead of normalized ones")
    add(
        "--split",
        type=number(float, 0),
        default=0.0,
        metavar="F",
        help="share of the validation split, in [0, 1) (0)",
    )
    add("--stratified", action="store_true", help="the same share of each class")
    add("--split-seed", type=seed, metavar="S", help="seed for shuffling before the split (default: drawn)")
    add(
        "--shuffle",
        action="store_true",
        help="shuffle before the split; without a split, train in a new random order each epoch",
    )

    add = parser.add_argument_group("training").add_argument
    add(
        "--epochs",
        type=number(int, 0, 10**6),
        default=20,
        metavar="N",
        help="in all (20); 0: write the initialization",
    )
    add(
        "--start-epoch",
        type=number(int, 0),
        default=0,
        metavar="N",
        help="first epoch, from 0, with weights from a .pt (0)",
    )
    add("--optimizer", choices=("sgd", "adam"), default="sgd", help="how weights are changed (sgd)")
    add(
        "--lr", type=number(float, above=0, most=LARGEST), default=0.001, metavar="F", help="learning rate (0.001)"
    )
    add("--lr-step", type=number(int, 1), metavar="N", help="epochs between decays of the learning rate (off)")
    add("--lr-decay", type=number(float, above=0, most=LARGEST), metavar="F", help="factor of a decay (off)")
    add(
        "--weight-decay",
        type=number(float, 0, LARGEST),
        default=1e-4,
        metavar="F",
        help="L2 penalty (1e-4)",
    )
    add("--momentum", type=number(float, 0, LARGEST), default=0.9, metavar="F", help="of sgd (0.9)")
    add("--seed", type=seed, metavar="S", help="of initialization, order, augmentation, dropout (default: drawn)")
    add(
        "--kill-plateaus",
        action="store_true",
        help=f"evaluate after each of the first {PLATEAU_EPOCHS} epochs; stop at the same accuracy twice in a row",
    )

    group = parser.add_argument_group("computation")
    add_device(group)
    add = group.add_argument
    add(
        "--sync-bn",
        action="store_true",
        help="under torchrun, batch norm over the whole batch instead of each GPU's share",
    )
    add("--deterministic", action="store_true", help="the same bits each time on a GPU too, slower")
    add("--compile", action="store_true", help="torch.compile the training step; on one GPU it is one CUDA graph")

    add = parser.add_argument_group("snapshots and reports").add_argument
    add("--models-path", type=folder, default="./models", metavar="DIR", help="where snapshots go (%(default)s)")
    add(
        "--snapshot-every",
        type=number(int, 0),
        default=0,
        metavar="E",
        help="epochs between snapshots (0: only the last)",
    )
    add(
        "--snapshot-all-until",
        type=number(int, 0),
        default=0,
        metavar="E",
        help="also every epoch before E, from 0 (0)",
    )
    add(
        "--resume-from",
        type=not_empty,
        metavar="PATH",
        help="continue from a snapshot; 'latest': from this run's newest intact one",
    )
    add(
        "--override",
        action="store_true",
        help="when resuming, hyperparameters, batch size and training images are as given now",
    )
    add("--train-acc", action="store_true", help="training accuracy at each snapshot")
    add("--tb-logdir", type=folder, default="./tensorboard", metavar="DIR", help="TensorBoard (%(default)s)")
    add("--log", type=file_name, default="train.log", metavar="NAME", help="log file (%(default)s)")

    add = parser.add_argument_group("instead of training").add_mutually_exclusive_group().add_argument
    add("--evaluate", action="store_true", help="evaluate on the test set and the validation split, and exit")
    add("--evaluate-train", action="store_true", help="evaluate on the training set and exit")
    add(
        "--eval-regularization-loss",
        action="store_true",
        help="weight decay * sum of the L2 norms of all parameters named weight, and exit",
    )
    return parser.parse_args(argv)


def check_arguments(args: argparse.Namespace, training: bool, start: resume.Start) -> list[str]:
    """Refuse contradictions; returns what to warn about: options that were given and have no effect."""
    models.check(args.arch, args.pretrained)
    if 0 < args.noise < 1e-6:
        raise UsageError(f"--noise {args.noise:g}: a ratio of less than 1e-6 corrupts nothing")
    if args.split >= 1:
        raise UsageError(f"--split {args.split:g}: a share in [0, 1)")
    if args.stratified and not args.split:
        raise UsageError("--stratified: there is no split; give --split")
    if (args.lr_step is None) != (args.lr_decay is None):
        given, missing = ("--lr-step", "--lr-decay") if args.lr_decay is None else ("--lr-decay", "--lr-step")
        raise UsageError(f"{given}: give {missing} too")

    bare_weights = start.snapshot is not None and "epoch" not in start.snapshot
    if "pretrained" in args.given and bare_weights and "_pretrained_" not in start.path.name:
        raise UsageError(
            f"--pretrained: contradicts --resume-from {start.path}, which is where the weights come from"
        )

    without_effect = {**unused(args, training, start), **ineffective(args), **check_dataset(args)}
    check_tf32(args)
    if not args.cuda:
        without_effect["deterministic"] = "without --cuda"
    if distributed.WORLD_SIZE == 1:
        without_effect.setdefault("sync_bn", "in one process: batch norm is over the whole batch there")
    elif args.sync_bn and "sync_bn" not in without_effect and training and not args.cuda:
        raise UsageError("--sync-bn: PyTorch has it on GPUs only; give --cuda too")
    if bare_weights and training and args.epochs == 0:
        raise UsageError(f"--epochs 0: writes the initialization, and {start.path} has the weights already")
    if args.resume_from is None:
        without_effect["override"] = "without --resume-from"
    elif bare_weights:
        without_effect["override"] = f"with {start.path}, which holds weights alone"
    return warn_of(without_effect, args)


def unused(args: argparse.Namespace, training: bool, start: resume.Start) -> dict[str, str]:
    """The options that have no effect because nothing is trained, or looked at, that they are about."""
    if args.resume_from == "latest":  # which needs all of them to know the run by
        return {}
    of_training = (
        *("augmentation", "optimizer", "lr", "lr_step", "lr_decay", "momentum", "override", "kill_plateaus"),
        *("sync_bn", "compile", "snapshot_every", "snapshot_all_until", "train_acc", "tb_logdir"),
    )
    of_computing = ("amp", "tf32", "deterministic")
    of_images = (
        *("class_sample_seed", "noise_seed", "split", "stratified", "split_seed", "shuffle", "unnormalize"),
        *("batch_size", "workers"),
    )
    if training:
        if start.first_epoch >= PLATEAU_EPOCHS:
            return {"kill_plateaus": f"after the first {PLATEAU_EPOCHS} epochs"}
        if args.epochs == 0 and start.snapshot is None:
            return dict.fromkeys((*of_training, *of_images, *of_computing, "weight_decay"), "with --epochs 0")
        return {}
    found = dict.fromkeys((*of_training, "epochs", "start_epoch", "models_path"), "without training")
    if args.eval_regularization_loss:
        return {**found, **dict.fromkeys((*of_images, *of_computing, "noise"), "with --eval-regularization-loss")}
    found["weight_decay"] = "without training"
    if args.evaluate:
        found |= dict.fromkeys(("noise", "noise_seed"), "on the images that --evaluate evaluates")
    if not args.split:
        found["shuffle"] = "without training and without --split"
    return found


def is_snapshot_epoch(epoch: int, args: argparse.Namespace) -> bool:
    """Whether a snapshot is due after the 0-based epoch: every so many epochs, and after the last."""
    every = args.snapshot_every and (epoch + 1) % args.snapshot_every == 0
    return bool(every) or epoch < args.snapshot_all_until or epoch == args.epochs - 1


@exit_status
def main(argv=None) -> int:
    args = parse_arguments(argv)
    if list_choices(args):
        return DONE
    device = devices.choose(args.cuda)
    with distributed.group(device), FolderLock() as lock:
        return run(args, device, lock)


def begin(args: argparse.Namespace, training: bool, lock: FolderLock):
    """Find where to begin, and complete the arguments by what a snapshot records and by seeds.

    Returns:
        the arguments, the start, what to tell the user and what to warn about; None: training is finished.
    """
    warned = []
    if training and args.resume_from == "latest":  # before looking for it: another run might be about to end
        warned += resume.hold_folder(args, lock)
    start = resume.find_start(args, training)
    warned += start.warnings + check_arguments(args, training, start)
    if training and is_finished(args, start):
        finished = f"{start.path} is after {start.first_epoch} epochs, --epochs is {args.epochs}"
        say(f"training is finished: {finished}", sys.stdout)
        return None

    if training:  # once more: what the snapshot records may lead to another folder
        warned += resume.hold_folder(args, lock)
    elif start.snapshot is not None and "config" not in start.snapshot and not args.eval_regularization_loss:
        warned.append(f"{start.path} does not say how its images were prepared: they are as the options say")
    drawn = []
    for name in DRAWN_SEEDS:
        needed = name not in ineffective(args) and (training or start.snapshot is None or name != "seed")
        if needed and getattr(args, name) is None:
            setattr(args, name, seeds.draw())
            drawn.append(f"{option(name)} was not given: drawn {getattr(args, name)}")
    return args, start, [*start.notes, *drawn], list(dict.fromkeys(warned))


def is_finished(args: argparse.Namespace, start: resume.Start) -> bool:
    """Whether a run has nothing left to train, nor its final weights to write.

    Raises:
        UsageError: it would start after its last epoch; or the final weights that are there are of another run.
    """
    after_training_state = start.snapshot is not None and "epoch" in start.snapshot
    if start.first_epoch > args.epochs and not after_training_state:
        raise UsageError(f"--start-epoch {start.first_epoch}: there are {args.epochs} epochs (--epochs)")
    if start.snapshot is None or start.first_epoch < args.epochs:
        return False
    if start.first_epoch > args.epochs:
        return True
    if "unmeasured" in start.snapshot:
        return False
    path = RunFiles(args).final
    try:
        final = snapshots.load(path)["model_state_dict"]
    except snapshots.SnapshotError:  # it is not there, or damaged
        return False
    if snapshots.fingerprint(final) != snapshots.fingerprint(start.snapshot["model_state_dict"]):
        raise UsageError(f"{path} holds other weights than {start.path}, and would be overwritten: remove it")
    return True


def run(args: argparse.Namespace, device: torch.device, lock: FolderLock) -> int:
    """Find where to begin, read the data, build the network; then train or evaluate."""
    devices.take(device)
    training = not (args.evaluate or args.evaluate_train or args.eval_regularization_loss)
    # Rank 0 finds it for all: machines need not share a file system, but seeds and weights.
    begun = distributed.from_main(lambda: begin(args, training, lock))
    if begun is None:
        return DONE
    of_this_rank = {name: getattr(args, name) for name in ("data_path", "workers")}
    args, start, notes, warned = begun
    vars(args).update(of_this_rank)
    if args.amp:
        precision.check_bfloat16(device)
    precision.set_precision(device, args.tf32, args.deterministic)
    files = RunFiles(args)
    with distributed.one_a_machine_first():
        with memory_for("the dataset", "keep fewer classes with --subsample-classes"):
            dataset = load_data(args, device)
        torch.manual_seed(args.seed or 0)  # None: evaluation of a snapshot, with nothing random in it
        net = models.build(
            args.arch,
            dataset.num_classes,
            dataset.in_channels,
            dataset.image_size,
            pretrained=args.pretrained and start.snapshot is None,
        )
    if start.snapshot is not None:
        snapshots.check_class_names(start.path, start.snapshot, dataset.class_names)
        snapshots.load_weights(net, start.snapshot["model_state_dict"], start.path, args.arch)
    elif args.pretrained and dataset.in_channels != 3:
        told = (
            f"images have {dataset.in_channels} channels, not 3" if dataset.in_channels > 1 else "images are grey"
        )
        warned.append(f"{told}: the first convolution is a new one with random weights, not ImageNet's")
    images = (dataset.train_fingerprint, dataset.test_fingerprint)
    if distributed.from_main(lambda: images) != images:
        raise data.DataError("--data-path: not the images, or not the labels, that rank 0 has")
    if training:
        check_last_batch(args, dataset)
        other = snapshots.describe_other_images(start.snapshot or {}, dataset.train_fingerprint)
        if other:
            if not args.override:
                raise UsageError(
                    f"--data-path {args.data_path}: {start.path} was trained on {other}; "
                    "--override goes on with these"
                )
            warned.append(f"{start.path} was trained on {other}")
        distributed.from_main(lambda: resume.refuse_to_overwrite(args, dataset, net, start))
        if distributed.RANK == 0:
            files.folder.mkdir(parents=True, exist_ok=True)  # not again: where it vanishes under way, the run ends
    if args.sync_bn and distributed.WORLD_SIZE > 1:
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    with memory_for("the network"):
        net.to(device, memory_format=precision.memory_format(device, args.amp, args.tf32))
    if args.amp:
        precision.use_bfloat16(net, device)
    if args.deterministic and device.type == "cuda":
        precision.make_deterministic(net)
    optimizer = schedule = None
    if training:
        optimizer = optimizers.make_optimizer(net, args)
        schedule = optimizers.make_schedule(optimizer, args, start.first_epoch)
    if training and start.snapshot is not None and "epoch" in start.snapshot:
        optimizers.restore(optimizer, schedule, start.path, start.snapshot, args.override)
    for weights in ("model_state_dict", "optimizer_state_dict"):  # ranks other than 0 hold copies of them
        (start.snapshot or {}).pop(weights, None)

    done_before = set()
    if args.resume_from is not None and distributed.RANK == 0:
        done_before = epochs_logged(files.log_folder, args.log, describe_configuration(args), files.folder)
    log, log_path = open_log(files.log_folder, args.log)
    announce(log, args, dataset, net, device, start.path, log_path)
    for line in notes:
        log.info(line)
    for line in [*warned, *dataset.notes]:
        log.warning(line)
    if training:
        return train(Training(args, net, optimizer, schedule, dataset, files, start, log), done_before)

    report_evaluation(args, net, dataset, log)
    return DONE


def report_evaluation(
    args: argparse.Namespace, net: nn.Module, dataset: data.Dataset, log: logging.Logger
) -> None:
    """Tell what was asked for instead of training."""
    if args.eval_regularization_loss:
        norms = [
            weight.norm().item() for name, weight in net.named_parameters() if name.split(".")[-1] == "weight"
        ]
        log.info(f"regularization loss: {args.weight_decay * sum(norms):.8g} (weight decay {args.weight_decay:g})")
    if args.evaluate_train:
        log.info(f"training set: {evaluate(net, dataset.train.as_is(), 'training set')}")
    if args.evaluate and dataset.val is not None:
        log.info(f"validation split: {evaluate(net, dataset.val, 'validation split')}")
    if args.evaluate:
        log.info(f"test set: {evaluate(net, dataset.test, 'test set')}")


class Training(NamedTuple):
    """What a training run has to do with."""

    args: argparse.Namespace
    net: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler | None
    dataset: data.Dataset
    files: RunFiles
    start: resume.Start
    log: logging.Logger


def train(training: Training, done_before: set[int]) -> int:
    """The training run, from its first epoch or from a snapshot to the final weights.

    `done_before`: epochs that earlier processes of this run have logged.
    """
    args, net, optimizer, schedule, dataset, files, start, log = training
    if start.snapshot is None:
        if distributed.RANK == 0:
            snapshots.save(snapshots.bare_weights(net), files.initial)
        log.info(f"initial weights: {files.initial}")
        if args.epochs == 0:
            return DONE
    if dataset.val is None:
        log.info("there is no validation split: the test set is used to watch training")
    recorded = describe_run(args, net, dataset, start)
    step = make_step(net, optimizer, args.compile)
    with open_board(training, recorded["config"]) as board:
        recorder = Recorder(training, recorded, board)
        try:
            recorder.begin()
            for epoch in range(start.first_epoch, args.epochs):
                stream = [epoch] if distributed.RANK == 0 else [epoch, distributed.RANK]
                torch.manual_seed(seeds.derive(args.seed, "dropout", *stream))
                dataset.train.epoch = epoch
                lr = optimizer.param_groups[0]["lr"]
                if not lr <= LARGEST:
                    raise RunError(f"the learning rate is {lr:g} in epoch {epoch}: --lr-step, --lr-decay")
                began = time.perf_counter()
                loss, accuracy = train_epoch(step, net, dataset.train, epoch)
                seconds = time.perf_counter() - began
                if schedule is not None:
                    schedule.step()
                rate = dataset.train.num_images / seconds
                again = ", again" if epoch in done_before else ""
                log.info(
                    f"epoch {epoch} ({epoch + 1}/{args.epochs}){again}: loss {loss:.4f}, "
                    f"accuracy {accuracy:.2f} %, lr {lr:g}, {seconds:.1f} s, {rate:,.0f} images/s"
                )
                curves = {"loss/train": loss, "top1/train_running": accuracy, "lr": lr, "images_per_second": rate}
                recorder.add(epoch, curves)
        except Plateau as plateau:
            log.error(str(plateau))
            return PLATEAU
        # Where there was no epoch left to train it has not been measured.
        final = evaluate(net, dataset.test, "test set") if recorder.final is None else recorder.final
        log.info(f"test set: {final}")
        board.finish()
    if distributed.RANK == 0:
        snapshots.save(snapshots.bare_weights(net), files.final)
    log.info(f"final weights: {files.final}")
    return DONE


class Plateau(Exception):
    """The accuracy has not changed in an epoch that is watched for that (--kill-plateaus); the message says so."""


class Recorder:
    """What a training run leaves behind of each epoch: a snapshot where one is due, its accuracies, its curves."""

    def __init__(self, training: Training, recorded: dict[str, Any], board: Board):
        """`recorded`: what `describe_run` gives."""
        self.training, self.recorded, self.board = training, recorded, board
        self.previous_top1 = (training.start.snapshot or {}).get("top1_acc")
        self.final: Evaluation | None = None  #: on the test set, after the last epoch

    def begin(self) -> None:
        """What is left to do of the epoch before the first one: of the initialization, or of the snapshot's.

        Raises:
            Plateau, NotFiniteError: as `add`.
        """
        path, snapshot = self.training.start.path, self.training.start.snapshot
        if snapshot is None:
            watch_bias(self.board, 0, self.training.net)
        elif "unmeasured" in snapshot:  # the run ended while it was evaluated
            epoch = self.training.start.first_epoch - 1
            self.training.log.info(f"epoch {epoch} was trained, and is measured now")
            ours = path.resolve() == self.training.files.training_state(epoch).resolve()
            watched = self._measure(epoch, snapshot["unmeasured"], path if ours else None)
            if distributed.RANK == 0 and ours:
                snapshots.save(with_accuracies(snapshots.load(path), watched), path)

    def add(self, epoch: int, curves: dict[str, float]) -> None:
        """Evaluate and write what is due after an epoch, of whose training the curves are.

        Raises:
            Plateau: the run is to stop here.
            NotFiniteError: the weights or the outputs are not finite; no snapshot of the epoch is left.
        """
        snapshot_is_due = is_snapshot_epoch(epoch, self.training.args)
        watched_for_plateau = watches_for_plateaus(epoch, self.training.args)
        path = self.training.files.training_state(epoch)
        if snapshot_is_due:
            check_weights(self.training.net, epoch)
        if snapshot_is_due and not watched_for_plateau:  # of a plateau there is no snapshot
            # Whatever ends the evaluation, on whichever rank, the epoch need not be trained again.
            distributed.from_main(lambda: snapshots.save(self._state(epoch, curves), path))
        if snapshot_is_due or watched_for_plateau:
            watched = self._measure(epoch, curves, None if watched_for_plateau else path)
        else:
            self.board.add(epoch + 1, curves)
        if snapshot_is_due:
            if distributed.RANK == 0:
                snapshots.save(with_accuracies(self._state(epoch, curves), watched), path)
            self.training.log.info(f"  snapshot: {path}")

    def _state(self, epoch: int, curves: dict[str, float]) -> dict[str, Any]:
        return {**training_state(self.recorded, self.training, epoch, curves), "unmeasured": curves}

    def _measure(self, epoch: int, curves: dict[str, float], snapshot: Path | None) -> Evaluation:
        """The evaluation after an epoch, of which a snapshot may be written already."""
        try:
            watched, self.final = measure_epoch(self.training, epoch, self.board, curves)
        except NotFiniteError as error:
            if distributed.RANK == 0 and snapshot is not None:
                snapshot.unlink()
                raise NotFiniteError(f"{error}; {snapshot} is removed") from None
            raise
        if watches_for_plateaus(epoch, self.training.args) and watched.top1 == self.previous_top1:
            raise Plateau(f"plateau: top-1 {watched.top1:.2f} % again after epoch {epoch}")
        self.previous_top1 = watched.top1
        return watched


def open_board(training: Training, config: dict[str, Any]) -> Board:
    """What TensorBoard shows of the run, from where it starts on."""
    files, start, log = training.files, training.start, training.log
    log.info(f"TensorBoard: {files.board_folder}")
    new = start.snapshot is None and training.args.resume_from is None
    if new and any(files.board_folder.glob("events.out.tfevents.*")):
        log.warning(f"TensorBoard shows no more of the earlier run in {files.board_folder}: see --tb-logdir")
    first_step = 0
    if start.snapshot:
        first_step = start.snapshot.get("tensorboard_step", start.first_epoch) + 1
    kind = Board if distributed.RANK == 0 else NoBoard
    return kind(files.board_folder, first_step, config, FINAL_METRICS)


def describe_run(args: argparse.Namespace, net: nn.Module, dataset: data.Dataset, start: resume.Start) -> dict:
    """What each training state of a run records of the run."""
    config = {
        **configuration(args),
        "num_classes": dataset.num_classes,
        "in_channels": dataset.in_channels,
        "seed_given": "seed" in args.given,
        "overridden": args.override or bool(start.snapshot and start.snapshot.get("config", {}).get("overridden")),
    }
    made_by = provenance("train.py", args, next(net.parameters()).device)
    made_by["processes"] = distributed.WORLD_SIZE  # dropout and batch norm depend on it
    return {
        "format": snapshots.FORMAT,
        "config": config,
        "class_names": dataset.class_names,
        "train_fingerprint": dataset.train_fingerprint,
        "initial_fingerprint": fingerprint_of_initialization(net, start),
        "provenance": made_by,
    }


def fingerprint_of_initialization(net: nn.Module, start: resume.Start) -> str | None:
    """Of the weights that a run has been trained from since epoch 0; None: not known."""
    if start.snapshot is not None and "epoch" in start.snapshot:
        return start.snapshot.get("initial_fingerprint")
    if start.snapshot is not None and start.first_epoch:
        return None
    return snapshots.fingerprint(snapshots.bare_weights(net))


def training_state(
    of_run: dict[str, Any], training: Training, epoch: int, curves: dict[str, float]
) -> dict[str, Any]:
    """What is saved of an epoch (see utils/snapshots.py), but for the accuracies, which are not known yet.

    Args:
        of_run: what `describe_run` gives.
        curves: of the epoch's training.
    """
    schedule = training.schedule
    return {
        **of_run,
        "epoch": epoch,
        "tensorboard_step": epoch,
        "top1_acc": None,
        "top5_acc": None,
        "top1_acc_train_running": curves["top1/train_running"],
        "model_state_dict": snapshots.bare_weights(training.net),
        "optimizer_state_dict": optimizers.portable_state(training.optimizer),
        "scheduler_state_dict": schedule.state_dict() if schedule is not None else {},
    }


def with_accuracies(state: dict, watched: Evaluation) -> dict:
    """A training state, made or loaded, when its epoch has been measured: without what was needed for that."""
    left_out = {"unmeasured", "checksums", "structure"}
    return {
        **{key: value for key, value in state.items() if key not in left_out},
        "tensorboard_step": state["epoch"] + 1,
        "top1_acc": watched.top1,
        "top5_acc": watched.top5,
    }


def check_weights(net: nn.Module, epoch: int) -> None:
    """Raise NotFiniteError where weights are not finite, by the last step of an epoch, say, after its loss."""
    tensors = [tensor for tensor in net.state_dict().values() if tensor.is_floating_point() and tensor.numel()]
    if not snapshots.extremes(tensors).isfinite().all():
        raise NotFiniteError(f"the last batch of epoch {epoch} broke the weights: they are not all finite")


def watches_for_plateaus(epoch: int, args: argparse.Namespace) -> bool:
    return args.kill_plateaus and epoch < PLATEAU_EPOCHS


def measure_epoch(
    training: Training, epoch: int, board: Board, curves: dict[str, float]
) -> tuple[Evaluation, Evaluation | None]:
    """Evaluate a network after an epoch, and let TensorBoard show all there is of it.

    Args:
        curves: of the epoch's training.

    Returns:
        the evaluation on the images that training is watched with; and after the last epoch that on the test set.

    Raises:
        NotFiniteError: the weights are not finite, or the outputs.
    """
    args, net, dataset, log = training.args, training.net, training.dataset, training.log
    curves = dict(curves)
    with_snapshot = is_snapshot_epoch(epoch, args)
    images, name, tag = dataset.val, "validation split", "validation"
    if dataset.val is None:
        images, name, tag = dataset.test, "test set", "test"
    try:
        watched = evaluate(net, images, name)
    except NotFiniteError as error:  # the loss of the last batch was computed before its step
        raise NotFiniteError(f"the last batch of epoch {epoch} broke the weights: {error}") from None
    log.info(f"  {name}: {watched}")
    curves |= {f"{what}/{tag}": value for what, value in watched._asdict().items()}
    if with_snapshot:
        watch_bias(board, epoch + 1, net)
    if with_snapshot and args.train_acc:
        on_train = evaluate(net, dataset.train.as_is(), "training set")
        log.info(f"  training set: {on_train}")
        curves |= {"loss/train_evaluated": on_train.loss, "top1/train": on_train.top1}
    final = None
    if epoch == args.epochs - 1:
        final = watched if dataset.val is None else evaluate(net, dataset.test, "test set")
        curves |= zip(FINAL_METRICS, final, strict=True)
    board.add(epoch + 1, curves)
    return watched, final


def watch_bias(board: Board, step: int, net: nn.Module) -> None:
    """Let TensorBoard show how the filters of every layer lie to the identity line (utils/projections.py)."""
    layers = models.layers(net) or models.layers(net, with_linear=True)
    try:
        measured = projections.measure({layer.name: layer.module.weight for layer in layers}, normalize=True)
    except ValueError as error:
        raise NotFiniteError(f"after {step} epochs: {error}") from None
    board.add_histograms(step, {f"projections/{name}": layer["projections"] for name, layer in measured.items()})
    board.add(
        step, {f"{what}/{name}": layer[what] for name, layer in measured.items() for what in ("mass", "mean")}
    )


def load_data(args: argparse.Namespace, device: torch.device) -> data.Dataset:
    """The images that the options ask for, as `data.load` gives them, on the device."""
    names = (
        *("subsample_classes", "class_sample_seed", "noise", "noise_seed", "augmentation", "upscale"),
        *("upscale_padding", "split", "stratified", "split_seed", "shuffle", "unnormalize", "workers"),
    )
    return data.load(
        args.dataset,
        args.data_path,
        args.batch_size,
        device=device,
        seed=args.seed or 0,
        memory_format=precision.memory_format(device, args.amp, args.tf32),
        share=(distributed.RANK, distributed.WORLD_SIZE),
        **{name: getattr(args, name) for name in names},
    )


def check_last_batch(args: argparse.Namespace, dataset: data.Dataset) -> None:
    """Refuse a batch size that leaves a single image to a batch norm that needs more, at the end of an epoch."""
    ranks = 1 if args.sync_bn else distributed.WORLD_SIZE
    sizes = (min(args.batch_size, dataset.train.num_images), dataset.train.num_images % args.batch_size)
    if args.sync_bn and args.amp and any(0 < size < distributed.WORLD_SIZE for size in sizes):
        # PyTorch's synchronized batch norm then exchanges float32 with some ranks, and bfloat16 with those.
        raise UsageError(
            f"--batch-size {args.batch_size}: some processes would have no image of the last batch, with which "
            "--sync-bn and --amp do not go together; choose another"
        )
    if not any(1 in (size // ranks, -(-size // ranks)) for size in sizes):
        return
    try:
        models.try_an_image(args.arch, dataset.num_classes, dataset.in_channels, dataset.image_size, training=True)
    except ValueError:
        raise UsageError(
            f"--batch-size {args.batch_size}: a {'batch' if ranks == 1 else 'share of a batch'}, the last "
            "one at least, would hold a single image, of which batch norm has no variance; choose another"
        ) from None


def describe_configuration(args: argparse.Namespace) -> str:
    """A line with all that determines the weights; by it the log files of a run are known, too."""
    options = {
        name: value for name, value in configuration(args).items() if value is not None and value is not False
    }
    return "configuration: " + ", ".join(f"{name} {value}" for name, value in options.items())


def announce(
    log: logging.Logger,
    args: argparse.Namespace,
    dataset: data.Dataset,
    net: nn.Module,
    device: torch.device,
    snapshot_path: Path | None,
    log_path: Path,
) -> None:
    """Say what is being run."""
    parameters = sum(parameter.numel() for parameter in net.parameters())
    validation = f"{dataset.val.num_images:,} validation, " if dataset.val is not None else ""
    height, width = dataset.image_size
    log.info(
        f"{args.arch} ({parameters:,} parameters) on {args.dataset}: {dataset.num_classes} classes, "
        f"{dataset.train.num_images:,} training, {validation}{dataset.test.num_images:,} test images "
        f"of {height}x{width} pixels"
    )
    if args.subsample_classes:
        log.info(f"classes kept: {', '.join(dataset.class_names)}")
    if snapshot_path is not None:
        log.info(f"weights from {snapshot_path}")
    elif args.pretrained:
        log.info("weights from the model zoo, trained on ImageNet")
    elif args.evaluate or args.evaluate_train or args.eval_regularization_loss:
        log.warning("without --resume-from or --pretrained these are random initial weights")
    log.info(describe_configuration(args))
    if distributed.WORLD_SIZE > 1:
        log.info(f"{distributed.WORLD_SIZE} processes, each with its share of every batch")
    log.info(f"{devices.describe(device)}; PyTorch {torch.__version__}; log in {log_path}")


if __name__ == "__main__":
    sys.exit(main())
