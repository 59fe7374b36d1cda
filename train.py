"""Train a ConvNet and keep snapshots of it.

    python train.py --arch lenet --dataset mnist --shuffle --lr 0.02 \\
        --seed 1 --snapshot-every 1
    python train.py --arch vgg11 --dataset cifar10 --augmentation \\
        --split 0.1 --stratified --shuffle --cuda
    torchrun --nproc-per-node 4 train.py --arch resnet50 --dataset imagenet \\
        --shuffle --augmentation --cuda

Snapshots go to <models-path>/<dataset>/[<noise>/]<arch>/[<name>/][<seed>/]: the
initial weights, training states after the epochs asked for, the final weights,
run.json, which says what the run is, and metrics.csv, with a row an epoch.

A run that is interrupted continues, with the same final weights, when the
same command is given again with --resume-from latest. Give it from the start:

    python train.py --arch lenet --dataset mnist --shuffle --lr 0.02 \\
        --seed 1 --snapshot-every 1 --resume-from latest

SIGUSR1 ends a run after the current epoch, with a snapshot.

Then measure its snapshots:

    python compute_projections.py --arch lenet --dataset mnist --seed 1 \\
        --normalize --load-from models/mnist/lenet/1 --plots plots

Exit status: 0 done; 1 failed under way; 2 wrong use or input;
3 plateau (--kill-plateaus); 130, 143 interrupted or stopped.
"""

if __name__ == "__main__":  # first: the other imports take seconds
    from utils.process import signals

    signals.handle_during_imports()

import dataclasses
import functools
import logging
import sys
import time
from pathlib import Path

import torch
from torch import nn

import data
import models
from core import seeds
from core.errors import UsageError
from utils import options
from utils.arguments import Settings
from utils.process import devices, distributed
from utils.process.ending import DONE, STOPPED, advise_when_interrupted, exit_status, interrupted, memory_for
from utils.process.logging import open_log
from utils.runs.begin import Run, begin, make_record, refuse_to_overwrite, way_on
from utils.runs.lock import FolderLock
from utils.runs.provenance import provenance
from utils.runs.record import save_weights
from utils.snapshots.weights import bare_weights, load_weights
from utils.sources import classes_of_head
from utils.training import optimizers, precision
from utils.training.metrics import evaluate
from utils.training.recording import Recorder
from utils.training.step import make_step, train_epoch


@exit_status
def main(argv=None) -> int:
    settings = options.parse("train", __doc__, argv)
    if options.list_choices(settings):
        return DONE
    device = devices.choose(settings.cuda)
    settings = settings.replace(cuda=device.type == "cuda")
    with distributed.group(device), FolderLock() as lock:
        devices.take(device)
        # Rank 0 decides for all: machines need not share a file system, but they share seeds and weights.
        run = distributed.from_rank_0(lambda: begin(settings, lock))
        if run is None:
            return DONE
        if distributed.from_rank_0(lambda: settings.arch_sha256) != settings.arch_sha256:
            raise UsageError("--arch: the file differs from that of rank 0")
        if run.training:
            words = sys.orig_argv if argv is None else ["python", "train.py", *argv]
            if distributed.WORLD_SIZE > 1:  # torchrun's own options are not known here
                words = ["torchrun", "...", "train.py", *(sys.argv[1:] if argv is None else argv)]
            advise_when_interrupted(functools.partial(way_on, settings, run, words))
        own = run.settings.replace(data_path=settings.data_path, workers=settings.workers)
        return execute(dataclasses.replace(run, settings=own), device)


def execute(run: Run, device: torch.device) -> int:
    """Read the data and build the network; then train or evaluate."""
    settings = run.settings
    precision.set_precision(device, settings.amp, settings.tf32, settings.deterministic)
    dataset, net, warnings = load(run, device)
    record = None
    if run.training:
        check_batches(settings, dataset)
        made_by = provenance("train.py", options.recorded_arguments(settings), device)
        made_by["processes"] = distributed.WORLD_SIZE  # dropout and batch norm depend on it
        record = distributed.from_rank_0(lambda: refuse_to_overwrite(run, make_record(run, dataset, made_by)))
    if settings.sync_bn and distributed.WORLD_SIZE > 1:
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    with memory_for("the network"):
        precision.move(net, device, settings.amp, settings.tf32)
    if settings.amp:
        precision.use_bfloat16(net, device)
    if settings.deterministic and device.type == "cuda":
        precision.make_deterministic(net)
    optimizer = schedule = None
    if run.training:
        optimizer = optimizers.make_optimizer(net, settings)
        schedule = optimizers.make_schedule(optimizer, settings, run.first_epoch)
        if run.goes_on:
            optimizers.restore(optimizer, run.snapshot.path, run.snapshot.content, settings.override)

    log, log_path = open_log(run.files.log_folder, settings.log)
    announce(log, run, dataset, net, device, log_path)
    for line in run.notes:
        log.info(line)
    for line in [*run.warnings, *warnings, *dataset.notes]:
        log.warning(line)
    if run.training:
        return train(Recorder(run, record, net, optimizer, schedule, dataset, log))
    report_evaluation(settings, net, dataset, log)
    return DONE


def load(run: Run, device: torch.device) -> tuple[data.Dataset, nn.Module, list[str]]:
    """Read the data onto the device, and build the network with its first weights, on the CPU; and warnings."""
    settings = run.settings
    with distributed.local_rank_0_first():
        with memory_for("the dataset", "keep fewer classes with --subsample-classes"):
            dataset = data.load(
                options.images(settings),
                settings.batch_size,
                device=device,
                seed=settings.seed or 0,
                workers=settings.workers,
                memory_format=precision.memory_format(device, settings.amp, settings.tf32),
                share=(distributed.RANK, distributed.WORLD_SIZE),
            )
        num_classes, warnings = dataset.num_classes, []
        if not run.training and (run.snapshot is not None or settings.pretrained):
            weights = run.snapshot.weights if run.snapshot is not None else None
            num_classes, warnings = classes_of_head(settings, dataset, weights)
        torch.manual_seed(settings.seed or 0)  # None: a snapshot is evaluated, and nothing in it is random
        pretrained = settings.pretrained and run.snapshot is None
        net = models.build(settings.arch, num_classes, dataset.in_channels, dataset.image_size, pretrained)
    fingerprints = (dataset.train_fingerprint, dataset.test_fingerprint)
    if distributed.from_rank_0(lambda: fingerprints) != fingerprints:
        raise data.DataError("--data-path: the images or labels differ from those of rank 0")
    if run.snapshot is not None:
        if run.record is not None:
            run.snapshot.check_classes(dataset.class_names)
        if run.training and run.record is not None:
            other = run.record.difference_of_images(dataset.train_fingerprint)
            message = f"{run.snapshot.path} was trained on {other}"
            if other and not settings.override:
                raise UsageError(f"--data-path {settings.data_path}: {message}; --override goes on with these")
            warnings += [message] if other else []
        load_weights(net, run.snapshot.weights, run.snapshot.path, settings.arch)
    elif settings.pretrained and dataset.in_channels != 3:
        warnings.append(f"images have {dataset.in_channels} channel(s), not 3: the first convolution is random")
    return dataset, net, warnings


def check_batches(settings: Settings, dataset: data.Dataset) -> None:
    """Refuse a batch size with which batch norm fails: it needs more than one value of each channel."""
    num_images = dataset.train.num_images
    sizes = {min(num_images, settings.batch_size), num_images % settings.batch_size or settings.batch_size}
    ranks = 1 if settings.sync_bn else distributed.WORLD_SIZE
    problem = f"--batch-size {settings.batch_size}: the last batch has too few images"
    if settings.sync_bn and settings.amp and min(sizes) < distributed.WORLD_SIZE:
        # PyTorch would exchange float32 with processes without an image, and bfloat16 with others.
        raise UsageError(f"{problem} for --sync-bn with --amp and so many processes; give another")
    if any(1 in (size // ranks, -(-size // ranks)) for size in sizes):
        net = models.structure(settings.arch, dataset.num_classes, dataset.in_channels, dataset.image_size)
        try:
            images = torch.zeros(1, dataset.in_channels, *dataset.image_size)
            net.train()(images.to(next(net.parameters()).device))
        except ValueError:
            problem += " for batch norm: a process would have a single one; give another"
            raise UsageError(problem) from None


def train(recorder: Recorder) -> int:
    """Train from the first epoch or from a snapshot to the final weights. Return the exit status."""
    run, net, dataset, log = recorder.run, recorder.net, recorder.dataset, recorder.log
    optimizer, schedule = recorder.optimizer, recorder.schedule
    settings, files = run.settings, run.files
    if distributed.RANK == 0:
        files.folder.mkdir(parents=True, exist_ok=True)  # not again: if it is removed under way, the run ends
    if run.snapshot is not None:
        distributed.from_rank_0(lambda: recorder.record.save(files.folder))
    else:
        initial = functools.partial(save_weights, recorder.record, bare_weights(net), files.initial, initial=True)
        recorder.record = distributed.from_rank_0(initial)
        log.info(f"initial weights: {files.initial}")
        if settings.epochs == 0:
            return DONE
    if dataset.val is None:
        log.info("there is no validation split: the test set is used to watch training")
    step = make_step(net, optimizer, settings.compile)
    with recorder.open_board():
        recorder.begin()
        for epoch in range(run.first_epoch, settings.epochs):
            stream = [epoch] if distributed.RANK == 0 else [epoch, distributed.RANK]
            torch.manual_seed(seeds.derive(settings.seed, "dropout", *stream))
            dataset.train.epoch = epoch
            lr = optimizer.param_groups[0]["lr"]
            began = time.perf_counter()
            loss, accuracy = train_epoch(step, net, dataset.train, epoch, settings.epochs)
            seconds = time.perf_counter() - began
            if schedule is not None:
                schedule.step()
            rate = dataset.train.num_images / seconds
            log.info(
                f"epoch {epoch} ({epoch + 1}/{settings.epochs}): loss {loss:.4f}, accuracy {accuracy:.2f} %, "
                f"lr {lr:g}, {seconds:.1f} s, {rate:,.0f} images/s"
            )
            curves = {"loss/train": loss, "top1/train_running": accuracy, "lr": lr, "images_per_second": rate}
            stopping = distributed.stop_requested()
            is_saved = recorder.finish_epoch(epoch, curves, stopping)
            if is_saved and epoch + 1 < settings.epochs and (stopping or distributed.stop_requested()):
                log.error(interrupted(f"stopped by SIGUSR1 after epoch {epoch}"))
                return STOPPED
        recorder.finish()
        if distributed.RANK == 0:
            save_weights(recorder.record, bare_weights(net), files.final)
    log.info(f"final weights: {files.final}")
    return DONE


def report_evaluation(settings: Settings, net: nn.Module, dataset: data.Dataset, log: logging.Logger) -> None:
    """Report what was asked for instead of training."""
    if settings.eval_regularization_loss:
        weights = [value for name, value in net.named_parameters() if name.split(".")[-1] == "weight"]
        loss = settings.weight_decay * sum(weight.norm().item() for weight in weights)
        log.info(f"regularization loss: {loss:.8g} (weight decay {settings.weight_decay:g})")
    asked_for = {"training set": dataset.train.as_is()} if settings.evaluate_train else {}
    if settings.evaluate:
        asked_for |= {"validation split": dataset.val, "test set": dataset.test}
    for name, images in asked_for.items():
        if images is not None:
            log.info(f"{name}: {evaluate(net, images, name)}")


def announce(
    log: logging.Logger, run: Run, dataset: data.Dataset, net: nn.Module, device: torch.device, log_path: Path
) -> None:
    """Log what is being run."""
    settings, (height, width) = run.settings, dataset.image_size
    parameters = sum(parameter.numel() for parameter in net.parameters())
    validation = f"{dataset.val.num_images:,} validation, " if dataset.val is not None else ""
    log.info(
        f"{settings.arch} ({parameters:,} parameters) on {settings.dataset}: {dataset.num_classes} classes, "
        f"{dataset.train.num_images:,} training, {validation}{dataset.test.num_images:,} test images "
        f"of {height}x{width} pixels"
    )
    if settings.subsample_classes:
        log.info(f"classes kept: {', '.join(dataset.class_names)}")
    if run.snapshot is not None:
        log.info(f"weights from {run.snapshot.path}")
    elif settings.pretrained:
        log.info("weights from the model zoo, trained on ImageNet")
    elif not run.training:
        log.warning("without --resume-from or --pretrained these are random initial weights")
    in_use = [
        f"{name} {value}"
        for name, value in options.configuration(settings).items()
        if value is not None and value is not False
        if run.training or options.mode(settings) in options.CONFIGURATION[name].modes
    ]
    log.info(f"configuration: {', '.join(in_use)}")
    if distributed.WORLD_SIZE > 1:
        log.info(f"{distributed.WORLD_SIZE} processes, each with its share of every batch")
    log.info(f"{devices.describe(device)}; PyTorch {torch.__version__}; log in {log_path}")


if __name__ == "__main__":
    sys.exit(main())
