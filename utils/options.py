"""Every option of the three programs, once.

A row of `OPTIONS` says everything that is known of an option. From the rows follow the parsers and their help,
the configuration that a run records, what `--override` replaces, which options have no effect, and what results
record. To add an option, add its row here and use it where it belongs.
"""

import dataclasses
import enum
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import data
import models
from core.errors import UsageError
from core.text import say
from utils.arguments import Number, Parser, Settings, folder, input_path, log_file, name_of_runs, path_text

TRAIN, COMPUTE, REINIT = "train", "compute_projections", "reinit_layers"
PLATEAU_EPOCHS = 10  #: --kill-plateaus watches these first epochs
LARGEST = 1e30  #: of hyperparameters: the product of two is still a float32 number, or nearly one
LOG_NAMES = {TRAIN: "train.log", COMPUTE: "positive_orthant.log", REINIT: "reinit_weights.log"}
SEED = Number(int, 0, 2**32 - 1)  #: what numpy's legacy generator takes
COUNT = Number(int, 0)
HYPERPARAMETER = Number(float, 0, LARGEST)

# What train.py does, by the options that ask for it. An option is used in some of these modes.
MODES = {
    "train": "",
    "initialize": "with --epochs 0",
    "evaluate": "with --evaluate",
    "evaluate_train": "with --evaluate-train",
    "eval_regularization_loss": "with --eval-regularization-loss",
}
TRAINING = ("train",)
WRITING = ("train", "initialize")
IMAGES = ("train", "evaluate", "evaluate_train")


class Role(enum.Flag):
    """What an option means to a run and to results."""

    NONE = 0
    IDENTITY = enum.auto()  #: determines the weights, and stays the same for the whole run
    OVERRIDABLE = enum.auto()  #: determines the weights; --override replaces it
    NETWORK = enum.auto()  #: of IDENTITY: a trained network is measured with the same value
    OUTPUT = enum.auto()  #: says where output goes, or how fast it is made; results do not record it
    PLACE = enum.auto()  #: says where or with what something is computed: it does not tell results apart


def needs(*names: str, **values: Any) -> Callable[[Mapping[str, Any]], str]:
    """Return an `effect`: the option has one only beside these options, or with these values of them."""

    def effect(options: Mapping[str, Any]) -> str:
        if any(not options.get(name) for name in names):
            return f"without {' and '.join(map(flag, names))}"
        wrong = [name for name, value in values.items() if options.get(name) != value]
        return f"with {flag(wrong[0])} {options.get(wrong[0])}" if wrong else ""

    return effect


def needs_gpu(options: Mapping[str, Any]) -> str:
    return "" if options.get("cuda") else "on the CPU"


def needs_batch_norm(options: Mapping[str, Any]) -> str:
    if not options.get("sync_bn") or models.has_batch_norm(options["arch"]):
        return ""
    return f"with {options['arch']}, which has no batch norm"


def not_with(property: str, reason: str) -> Callable[[Mapping[str, Any]], str]:
    """Return an `effect`: the option has none with a dataset that has a property (see data.info)."""

    def effect(options: Mapping[str, Any]) -> str:
        return f"with {options['dataset']}, {reason}" if getattr(data.info(options["dataset"]), property) else ""

    return effect


def needs_an_order(options: Mapping[str, Any]) -> str:
    used = mode(options) not in ("evaluate", "evaluate_train") or options.get("split")
    return "" if used else "without training and without --split"


@dataclasses.dataclass(frozen=True)
class Option:
    """What is known of an option."""

    name: str  #: as in the settings; `lr_step` is `--lr-step` on the command line
    help: str
    kind: Any = bool  #: bool (a switch), a tuple of choices, or a function that converts text, such as a Number
    default: Any = None  #: a dict: by program
    programs: tuple[str, ...] = (TRAIN,)
    role: Role = Role.NONE
    modes: tuple[str, ...] = tuple(MODES)  #: of train.py, in which the option has an effect
    effect: Callable[[Mapping[str, Any]], str] = lambda options: ""  #: why it has none beside other options
    short: str | None = None
    several: bool = False  #: takes several values, and may be repeated
    drawn: bool = False  #: a seed that is drawn where it is needed and not given
    derived: bool = False  #: follows from another option, and is not on the command line

    def add_to(self, group, program: str) -> None:
        """Add the option to an argparse group of a program."""
        names = [flag(self.name), *([self.short] if self.short else [])]
        if self.kind is bool:
            group.add_argument(*names, action="store_true", help=self.help)
            return
        more: dict[str, Any] = {"nargs": "+", "action": "extend"} if self.several else {}
        if isinstance(self.kind, tuple):
            more["choices"] = self.kind
        else:
            whole = isinstance(self.kind, Number) and self.kind.kind is int
            names_of_kinds = {folder: "DIR", input_path: "PATH", path_text: "PATH", SEED: "SEED"}
            names_of_kinds[str] = self.name.rpartition("_")[2].upper()
            more.update(type=self.kind, metavar=names_of_kinds.get(self.kind, "N" if whole else "VALUE"))
        default = self.default[program] if isinstance(self.default, dict) else self.default
        message = self.help if default is None else f"{self.help} (default: {default})"
        group.add_argument(*names, default=default, help=message, **more)

    def accepts(self, value: Any, config: Mapping[str, Any]) -> bool:
        """Return whether a recorded value is one that the option can have, beside the others recorded."""
        if value is None:
            return (self.default is None or bool(self.effect(config))) and self.kind is not bool
        if self.kind is bool:
            return isinstance(value, bool)
        if isinstance(self.kind, tuple):
            return value in self.kind
        return self.kind.accepts(value) if isinstance(self.kind, Number) else isinstance(value, str)


ALL = (TRAIN, COMPUTE, REINIT)
WITH_IMAGES = (TRAIN, REINIT)
MEASURING = (COMPUTE, REINIT)
IDENTITY, OVERRIDABLE, OUTPUT, PLACE = Role.IDENTITY, Role.OVERRIDABLE, Role.OUTPUT, Role.PLACE
NETWORK = IDENTITY | Role.NETWORK

OPTIONS: dict[str, list[Option]] = {
    "network and images": [
        Option("arch", "network, or FILE.py:NAME (without it, they are listed)", str, programs=ALL, role=NETWORK),
        Option("arch_file", "file of --arch FILE.py:NAME", input_path, programs=ALL, role=PLACE, derived=True),
        Option("arch_sha256", "its checksum", str, programs=ALL, role=IDENTITY | OVERRIDABLE, derived=True),
        Option("dataset", "dataset (without it, list the supported ones)", str, programs=ALL, role=NETWORK),
        Option("data_path", "folder of the datasets", folder, "./datasets", WITH_IMAGES, PLACE,
               effect=not_with("in_repository", "which comes with the repository")),
        Option("subsample_classes", "use only N classes; 0: all", COUNT, 0, ALL, NETWORK | PLACE),
        Option("class_sample_seed", "seed for choosing the classes (default: the first N)", SEED, None,
               WITH_IMAGES, NETWORK, IMAGES, needs("subsample_classes")),
        Option("upscale", "upscale images to 224x224 pixels", programs=WITH_IMAGES, role=NETWORK),
        Option("upscale_padding", "upscale images to 112x112 pixels and pad them with zeros to 224x224",
               programs=WITH_IMAGES, role=NETWORK),
        Option("unnormalize", "pixel values in [0, 1] instead of normalized ones", programs=WITH_IMAGES,
               role=NETWORK, modes=IMAGES),
        Option("mean", "mean of pixel values in [0, 1], one number per channel, for another program's network",
               Number(float, 0, 1), None, (REINIT,), several=True),
        Option("std", "standard deviation, one number per channel (default of both: those of the dataset)",
               Number(float, most=LARGEST, above=0), None, (REINIT,), several=True),
        Option("noise", "share of wrong labels, in [0, 1]; -1: shuffle pixels instead", Number(float, -1, 1), 0.0,
               role=IDENTITY, modes=("train", "initialize", "evaluate_train")),
        Option("noise_seed", "seed for label noise or shuffled pixels (default: drawn)", SEED, role=IDENTITY,
               modes=("train", "evaluate_train"), effect=needs("noise"), drawn=True),
        Option("augmentation", "random crops and flips; imagenet: random resized crops", role=IDENTITY,
               modes=TRAINING),
        Option("shuffle", "shuffle before the split; without a split, train in a new random order each epoch",
               role=NETWORK, modes=IMAGES, effect=needs_an_order),
        Option("split", "share of training images for validation, in [0, 1)", Number(float, 0, below=1), 0.0,
               role=NETWORK, modes=IMAGES),
        Option("stratified", "take the same share of each class for validation", role=NETWORK, modes=IMAGES),
        Option("split_seed", "seed for shuffling before the split (default: drawn)", SEED, role=NETWORK,
               modes=IMAGES, effect=needs("split", "shuffle"), drawn=True),
        Option("batch_size", "images in a batch, over all GPUs (reinit_layers.py on a GPU: more, unless given)",
               Number(int, 1, 2**31 - 1), 128, WITH_IMAGES, IDENTITY | OVERRIDABLE | PLACE, IMAGES),
        Option("workers", "processes that decode images", Number(int, 0, 1024), 1, WITH_IMAGES, OUTPUT, IMAGES,
               not_with("in_memory", "which is kept in memory"), "-j"),
    ],
    "weights": [
        Option("pretrained", "ImageNet weights from the model zoo", programs=(TRAIN, COMPUTE), role=NETWORK),
        Option("load_from", "trained networks: files, or folders (their <arch>_*.tar and .pt, or where there are "
               "none every file of weights)", input_path, None, (COMPUTE,), several=True),
        Option("load_from", "snapshot of the trained network (required)", input_path, None, (REINIT,)),
        Option("init_from", "snapshot of the initialization, to measure how far each layer has moved", input_path,
               None, (COMPUTE,)),
        Option("inits_from", "text file with the path of a snapshot on each line; its epoch may follow",
               input_path, None, (REINIT,)),
        Option("weights_key", "key of the weights in files of other programs, such as model_ema or "
               "state_dict.net (default: found by the names)", str, None, ALL,
               effect=lambda all: "" if all.get("resume_from", 0) not in (None, "latest") else "without a file"),
        Option("epoch", "for how many epochs the network of --load-from was trained, if its file does not say so",
               COUNT, None, MEASURING),
        Option("rand", "also reset layers to a new random initialization", programs=(REINIT,)),
        Option("identity_line", "also put back only the components of the filters along the identity line, and as "
               "a control as much of the direction orthogonal to it in which they moved most",
               programs=(REINIT,)),
        Option("resume_from", "continue from a snapshot; 'latest': from the newest intact one of this run",
               path_text),
        Option("override", "when resuming: take hyperparameters, batch size and training images as given now",
               modes=TRAINING, effect=needs("resume_from")),
        Option("seed", "seed of initialization, order, augmentation and dropout (default: drawn)", SEED,
               role=IDENTITY, drawn=True),
        Option("seed", "seed of a random initialization; with --load-from, the seed of the training", SEED, None,
               (COMPUTE,)),
        Option("seed", "seed of the training; --rand derives another seed from it", SEED, None, (REINIT,)),
    ],
    "training": [
        Option("epochs", "total number of epochs; 0: only write the initialization", Number(int, 0, 10**6), 20,
               modes=WRITING),
        Option("start_epoch", "number of the first epoch, from 0, with weights from a .pt file", COUNT, 0,
               modes=WRITING),
        Option("optimizer", "optimizer", ("sgd", "adam"), "sgd", role=IDENTITY, modes=TRAINING),
        Option("lr", "learning rate", Number(float, most=LARGEST, above=0), 0.001, role=OVERRIDABLE,
               modes=TRAINING),
        Option("lr_step", "multiply the learning rate by --lr-decay every N epochs; 0: never (default: never)",
               Number(int, 1, zero_is_off=True), role=OVERRIDABLE, modes=TRAINING),
        Option("lr_decay", "factor for --lr-step; 0: off (default: off)",
               Number(float, most=LARGEST, above=0, zero_is_off=True), role=OVERRIDABLE, modes=TRAINING),
        Option("weight_decay", "L2 penalty", HYPERPARAMETER, 1e-4, role=OVERRIDABLE,
               modes=("train", "eval_regularization_loss")),
        Option("momentum", "SGD momentum", HYPERPARAMETER, 0.9, role=OVERRIDABLE, modes=TRAINING,
               effect=needs(optimizer="sgd")),
        Option("kill_plateaus", f"stop if the accuracy stays the same in one of the first {PLATEAU_EPOCHS} epochs",
               modes=TRAINING),
        Option("train_acc", "measure the training accuracy at each snapshot", modes=TRAINING),
    ],
    "measurement": [
        Option("normalize", "normalize projections: cosines, in [-1, 1]", programs=(COMPUTE,)),
        Option("with_linear", "also measure (or reset) the fully connected layers", programs=MEASURING),
    ],
    "computation": [
        Option("cuda", "compute on the GPU (if there is none, on the CPU); with torchrun, training and resetting "
               "take one per process", programs=ALL, role=PLACE),
        Option("amp", "compute in bfloat16 (autocast); changes the numbers", programs=WITH_IMAGES, role=IDENTITY,
               modes=IMAGES),
        Option("tf32", "let the GPU round the factors of products to 10 bits (TF32)", programs=WITH_IMAGES,
               role=IDENTITY, modes=IMAGES),
        Option("sync_bn", "under torchrun: batch norm over the whole batch instead of each GPU's share",
               role=IDENTITY, modes=TRAINING, effect=needs_batch_norm),
        Option("deterministic", "the same bits each time on a GPU too; slower", modes=IMAGES, effect=needs_gpu),
        Option("compile", "compile the training step (torch.compile); on one GPU it is one CUDA graph",
               modes=TRAINING),
    ],
    "output": [
        Option("name", "name of the runs, part of all folders: runs with other options stand side by side",
               name_of_runs, programs=ALL, role=OUTPUT),
        Option("models_path", "folder of the snapshots", folder, "./models", role=OUTPUT, modes=WRITING),
        Option("snapshot_every", "epochs between snapshots; 0: only the last one", COUNT, 0, modes=TRAINING),
        Option("snapshot_all_until", "also keep snapshots of the first N epochs", COUNT, 0, modes=TRAINING),
        Option("tb_logdir", "folder for TensorBoard", folder, "./tensorboard", role=OUTPUT, modes=TRAINING),
        Option("results", "folder of the results", folder, "./results", MEASURING, OUTPUT),
        Option("plots", "folder of the figures (compute_projections.py draws them only with --plots)", folder,
               {COMPUTE: None, REINIT: "./plots"}, MEASURING, OUTPUT),
        Option("log", "name of the log file, below ./log; with a slash: its path", log_file, LOG_NAMES, ALL,
               OUTPUT),
    ],
    "instead of training": [
        Option("evaluate", "evaluate the network of --resume-from or --pretrained on test and validation images"),
        Option("evaluate_train", "the same on the training set"),
        Option("eval_regularization_loss", "weight decay times the summed L2 norms of parameters named weight"),
    ],
}  # fmt: skip

#: The options that determine the weights of a run.
CONFIGURATION = {row.name: row for rows in OPTIONS.values() for row in rows if row.role & (IDENTITY | OVERRIDABLE)}
#: Their values in the record of a run from before an option existed.
DEFAULTS = {name: False if row.kind is bool else row.default for name, row in CONFIGURATION.items()}


def flag(name: str) -> str:
    """Return an option as on the command line: `lr_step` is `--lr-step`."""
    return "the file of --arch with SHA-256" if name == "arch_sha256" else "--" + name.replace("_", "-")


def rows_of(program: str) -> dict[str, Option]:
    """Return the options of a program by name."""
    return {row.name: row for rows in OPTIONS.values() for row in rows if program in row.programs}


def parse(program: str, manual: str | None, argv: list[str] | None = None) -> Settings:
    """Parse the command line of a program; its docstring is the manual of `--help`."""
    parser = Parser(program, manual)
    for title, rows in OPTIONS.items():
        of_program = [row for row in rows if program in row.programs and not row.derived]
        if of_program:
            group = parser.add_argument_group(title)
            group = group.add_mutually_exclusive_group() if title == "instead of training" else group
            for row in of_program:
                row.add_to(group, program)
    return parser.parse(argv)


def mode(options: Mapping[str, Any]) -> str:
    """Return what train.py is asked to do: one of MODES."""
    asked_for = [name for name in list(MODES)[2:] if options.get(name)]
    if asked_for:
        return asked_for[0]
    return "initialize" if options.get("epochs") == 0 and options.get("resume_from") is None else "train"


def find_without_effect(settings: Settings) -> dict[str, str]:
    """Return the options that have no effect, each with the reason."""
    found = {}
    for name, row in rows_of(settings.program).items():
        needed_to_find_the_run = settings.get("resume_from") == "latest"
        if settings.program == TRAIN and mode(settings) not in row.modes and not needed_to_find_the_run:
            found[name] = MODES[mode(settings)]
        elif row.effect(settings):
            found[name] = row.effect(settings)
    if needs_gpu(settings):  # but a run records it as asked for: it may go on with a GPU
        found["tf32"] = needs_gpu(settings)
    return found


def warn_without_effect(settings: Settings, found: Mapping[str, str]) -> list[str]:
    """Return warnings about the options that were given and have no effect."""
    return [f"{flag(name)} has no effect {reason}" for name, reason in found.items() if name in settings.given]


def configuration(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that determine the weights, as in training. Those without effect are off or None."""
    options = {**options, **dict.fromkeys(list(MODES)[2:])}
    return {
        name: (False if row.kind is bool else None) if row.effect(options) else options[name]
        for name, row in CONFIGURATION.items()
    }


def recorded_arguments(settings: Settings) -> dict[str, Any]:
    """Return the options that results and snapshots record."""
    return {name: settings[name] for name, row in rows_of(settings.program).items() if not row.role & OUTPUT}


def compared_arguments(program: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that tell results apart. Of a file: whether it is given, because files may move."""
    rows = {name: row for name, row in rows_of(program).items() if name in arguments and not row.role & PLACE}
    return {
        flag(name): arguments[name] is not None if row.kind is input_path else arguments[name]
        for name, row in rows.items()
    }


def check_recorded(settings: Settings, name: str, recorded: Any, path: Path) -> None:
    """Raise UsageError where an option on the command line contradicts what a file records."""
    given = settings[name]
    if name not in settings.given or given == recorded:
        return
    if given is True:
        raise UsageError(f"{flag(name)}: {path} was trained without it")
    hint = "; --override goes on with this one" if CONFIGURATION[name].role & OVERRIDABLE else ""
    raise UsageError(f"{flag(name)} {given}: {path} was trained with {flag(name)} {recorded}{hint}")


def images(settings: Mapping[str, Any]) -> data.Images:
    """Return which images the options ask for."""
    known = {one.name: settings[one.name] for one in dataclasses.fields(data.Images) if one.name in settings}
    return data.Images(**{"dataset": None, "root": settings.get("data_path", ""), **known})


def check_computation(settings: Settings) -> None:
    """Refuse what cannot be computed, as far as that is known before a dataset is read, or downloaded."""
    if "tf32" in settings.given and "cuda" not in settings.given:
        raise UsageError("--tf32 is for a GPU: give --cuda too")
    asked_for = images(settings)
    asked_for.check()
    in_channels = data.info(settings.dataset).in_channels
    models.segments(models.structure(settings.arch, asked_for.num_classes, in_channels, asked_for.image_size))


def list_choices(settings: Settings) -> bool:
    """Without --arch or --dataset, list the supported ones. Return whether the program has nothing else to do."""
    alone = settings.program == COMPUTE and settings.arch == models.WEIGHTS_ALONE
    if settings.arch is not None and not alone:
        models.check(settings.arch)
    if settings.dataset is not None:
        data.info(settings.dataset)
    if settings.arch is None:
        say("\n  ".join(["architectures (--arch):", *models.names(), *models.OTHERS]), sys.stdout)
    if settings.dataset is None and not alone:
        say("\n  ".join(["datasets (--dataset):", *data.names()]), sys.stdout)
    missing = [flag(name) for name in ("arch", "dataset") if settings[name] is None and not alone]
    if missing and settings.given - {"arch", "dataset", "arch_sha256"}:
        say(f"{settings.program}.py: missing: {', '.join(missing)}; nothing was done", sys.stderr)
    return bool(missing)
