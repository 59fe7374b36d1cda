"""The command line: its parser, the kinds of values, the options that programs share, and checks of them."""

import argparse
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import data
import models
from core.errors import UsageError
from core.text import say
from data.transforms import UPSCALED
from utils.process import distributed
from utils.process.ending import WRONG_USE
from utils.process.logging import last_words


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and which remembers the options that were given."""

    def __init__(self, prog: str, manual: str | None):
        """`manual`: of which the first line stands before the options, the rest after them; None: python -OO."""
        description, _, rest = (manual or "").partition("\n")
        layout = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=32, width=110)
        super().__init__(
            prog, description=description, epilog=rest.strip("\n"), allow_abbrev=False, formatter_class=layout
        )

    def parse_args(self, argv=None) -> argparse.Namespace:
        """As argparse does; `given` of the result holds the names of the options on the command line."""
        argv = sys.argv[1:] if argv is None else argv
        args = super().parse_args(argv)
        only_given = argparse.Namespace(**{action.dest: _UNSET for action in self._actions})
        super().parse_args(argv, only_given)
        args.given = {name for name, value in vars(only_given).items() if value is not _UNSET}
        return args

    def error(self, message: str):
        if distributed.LOCAL_RANK == 0:
            last_words(f"{self.prog}: error: {message}")
        self.exit(WRONG_USE)


_UNSET: list = []  #: a list, which an option that may be given repeatedly extends: to another one, a copy


def number(kind: type, least=None, most=None, above=None) -> Callable:
    """An argparse type: an int or a finite float in a range."""

    def convert(text: str):
        try:
            value = kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None
        if kind is float and not abs(value) < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
        if least is not None and value < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        if most is not None and value > most:
            raise argparse.ArgumentTypeError(f"{text} is more than {most}")
        if above is not None and value <= above:
            raise argparse.ArgumentTypeError(f"{text} is not more than {above}")
        return value

    return convert


seed = number(int, least=0, most=2**32 - 1)  #: what numpy's legacy generator takes, and torch's tells apart


LONGEST_NAME = 200  #: of a log file, in bytes: file systems take 255, of which the date has some


def file_name(text: str) -> str:
    """An argparse type: the name of a file, without folders."""
    if not text or "/" in text or text in (".", ".."):
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a file")
    if len(os.fsencode(text)) > LONGEST_NAME:
        raise argparse.ArgumentTypeError(f"a name of more than {LONGEST_NAME} bytes")
    return text


def not_empty(text: str) -> str:
    """An argparse type: any text but that of an unset variable, which as a path would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


def input_path(text: str) -> Path:
    """An argparse type: the path of something to read."""
    return Path(not_empty(text))


def folder(text: str) -> Path:
    """An argparse type: a folder that exists or can be made, as far as what lies on its path tells."""
    if not text:
        raise argparse.ArgumentTypeError("the name of a folder is empty")
    path = Path(text)
    for part in (path, *path.parents):
        if part.is_symlink() and not part.exists():
            raise argparse.ArgumentTypeError(f"{part} is a link to a place that does not exist")
        if part.exists() and not part.is_dir():
            raise argparse.ArgumentTypeError(f"{part} is not a folder")
    return path


def add_test_images(group) -> None:
    """Add the options that say which network, and which images it is measured with."""
    add = group.add_argument
    add("--arch", help="network; without it, list the supported ones")
    add("--dataset", help="dataset; without it, list the supported ones")
    add("--data-path", type=folder, default="./datasets", metavar="DIR", help="where datasets are (%(default)s)")
    add("--subsample-classes", type=number(int, 0), default=0, metavar="N", help="use only N classes (0: all)")
    add("--class-sample-seed", type=seed, metavar="S", help="seed for choosing them (default: the first N)")
    add("--upscale", action="store_true", help="upscale images to 224x224")
    add("--upscale-padding", action="store_true", help="upscale images to 112x112, zero-pad to 224x224")
    add(
        "--batch-size",
        type=number(int, 1, 2**31 - 1),
        default=128,
        metavar="N",
        help="images a batch, on all GPUs together (128)",
    )
    add(
        "--workers",
        "-j",
        type=number(int, 0, 1024),
        default=1,
        metavar="N",
        help="processes that decode images (1)",
    )


def add_device(group) -> None:
    """Add the options that say what is computed on, and how precisely."""
    add = group.add_argument
    add("--cuda", action="store_true", help="use the GPU; under torchrun each process has one")
    add("--amp", action="store_true", help="compute in bfloat16 (autocast); changes the numbers")
    add("--tf32", action="store_true", help="let the GPU round the factors of products to 10 bits (TF32)")


def check_tf32(args: argparse.Namespace) -> None:
    """Raise UsageError where --tf32, which results record, is given without a GPU."""
    if "tf32" in args.given and not args.cuda:
        raise UsageError("--tf32 is about a GPU: give --cuda too")


def option(name: str) -> str:
    """The option as on the command line: `lr_step` is `--lr-step`."""
    return "--" + name.replace("_", "-")


def check_recorded(args: argparse.Namespace, name: str, recorded, path: Path) -> None:
    """Raise UsageError where an option that was given contradicts what a snapshot records."""
    given = getattr(args, name)
    if name not in args.given or given == recorded:
        return
    if given is True:
        raise UsageError(f"{option(name)}: {path} was trained without it")
    raise UsageError(f"{option(name)} {given}: {path} was trained with {option(name)} {recorded}")


def check_dataset(args: argparse.Namespace) -> dict[str, str]:
    """Refuse what a dataset cannot give, as far as that is known before it is read, or downloaded.

    Returns:
        the options that have no effect with it, each with the reason.

    Raises:
        data.DataError: the options exclude each other, or there are fewer classes.
        models.ModelError: its images are too small for the architecture.
    """
    spec = data.info(args.dataset)
    names = ("subsample_classes", "noise", "upscale", "upscale_padding")
    data.check_options(args.dataset, **{name: value for name, value in vars(args).items() if name in names})
    num_classes = args.subsample_classes or spec.num_classes
    # For what these raise: images too small, no logits, segments that are no modules.
    models.segments(models.structure(args.arch, num_classes, spec.in_channels, image_size(args)))
    found = {}
    if spec.in_memory:
        found["workers"] = f"with {args.dataset}, which is kept in memory"
    if spec.in_repository:
        found["data_path"] = f"with {args.dataset}, which comes with the repository"
    return found


def image_size(args: argparse.Namespace) -> tuple[int, int]:
    """Height and width of the images as the network is given them, in pixels."""
    upscaled = args.upscale or args.upscale_padding
    return (UPSCALED, UPSCALED) if upscaled else data.info(args.dataset).image_size


def warn_of(without_effect: dict[str, str], args: argparse.Namespace) -> list[str]:
    """What to warn about: the options that were given, of those that have no effect."""
    return [f"{option(name)} has no effect {why}" for name, why in without_effect.items() if name in args.given]


def list_choices(args: argparse.Namespace) -> bool:
    """Without --arch or without --dataset, list the supported ones; returns whether that was all there is to do.

    Raises:
        models.ModelError, data.DataError: what was given of the two does not exist.
    """
    if args.arch is not None:
        models.check(args.arch)
    if args.dataset is not None:
        data.info(args.dataset)
    if args.arch is None:
        others = (
            "and torchvision's other ConvNets by its names, such as densenet121, mobilenet_v2, resnext50_32x4d,",
            "efficientnet_b0 (a name that does not exist is answered with all of them)",
        )
        say("\n  ".join(["architectures (--arch):", *models.names(), *others]), sys.stdout)
    if args.dataset is None:
        say("\n  ".join(["datasets (--dataset):", *data.names()]), sys.stdout)
    return args.arch is None or args.dataset is None
