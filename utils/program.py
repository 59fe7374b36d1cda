"""What the three programs share at their edges: one-line errors, exit statuses, and arguments of the same name."""

import argparse
import contextlib
import functools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch

import data
import models
from data.transforms import UPSCALED
from utils import distributed
from utils.devices import DeviceError
from utils.distributed import GroupError
from utils.logging import close_log, last_words, say
from utils.metrics import NotFiniteError
from utils.snapshots import SnapshotError

DONE, FAILED, WRONG_USE, PLATEAU = 0, 1, 2, 3
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


class UsageError(ValueError):
    """Wrong use or wrong input: the message, one line, names the option or the file and says what to do."""


class RunError(RuntimeError):
    """The run failed under way, by no fault of the command line; the message is one line."""


class Terminated(BaseException):
    """The process was asked to end by SIGTERM."""


def exit_status(main: Callable[..., int]) -> Callable[..., int]:
    """Turn what stops a program into one line on standard error and an exit status (see README)."""

    @functools.wraps(main)
    def guarded(argv=None) -> int:
        name = Path(sys.modules[main.__module__].__file__).name
        in_main_thread = threading.current_thread() is threading.main_thread()
        before = {}
        _asked_to_end.clear()
        if in_main_thread:
            before[signal.SIGTERM] = signal.signal(signal.SIGTERM, _terminate)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else a shell has it ignored
                before[signal.SIGINT] = signal.signal(signal.SIGINT, _interrupt)
        if in_main_thread and distributed.WORLD_SIZE > 1:
            # Python's handlers would have their turn only when waiting for another process is over.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        with contextlib.suppress(AttributeError):  # there is none
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be more than it can say
        if distributed.RANK > 0:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (to the end of the process)
        try:
            return main(argv)
        except Exception as error:
            status, reason = _explain(error)
            if reason is None:
                raise
            says_why, status = distributed.fail(status)
            if says_why:
                rank = f"rank {distributed.RANK}: " if distributed.RANK else ""
                last_words(f"{name}: {'error' if status == WRONG_USE else 'failed'}: {rank}{reason}")
            return status
        except KeyboardInterrupt:
            _say_no_more()
            last_words(f"{name}: interrupted")
            return INTERRUPTED
        except Terminated:
            _say_no_more()
            last_words(f"{name}: terminated")
            return TERMINATED
        finally:
            close_log()
            for number, handler in before.items():
                signal.signal(number, handler)

    return guarded


def _say_no_more() -> None:
    """What objects complain of while they are torn down, data workers for one, is of no interest any more."""
    sys.unraisablehook = lambda unraisable: None


@contextlib.contextmanager
def memory_for(what: str, otherwise: str = "a machine with more is needed"):
    """Say what did not fit, where too little memory ends the block; outside such blocks it was a batch.

    Args:
        what: is made or moved to the device in the block.
        otherwise: what to do about it, beside not using the GPU.

    Raises:
        RunError: it did not fit.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if _is_out_of_gpu_memory(error):
            raise RunError(f"out of GPU memory: {what} does not fit: run without --cuda, or {otherwise}") from None
        if _is_out_of_memory(error):
            raise RunError(f"out of memory: {what} does not fit: {otherwise}") from None
        raise


def _is_out_of_gpu_memory(error: Exception) -> bool:
    # A GPU with no room for as much as CUDA itself raises the second.
    return isinstance(error, torch.OutOfMemoryError) or "CUDA error: out of memory" in str(error)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _explain(error: Exception) -> tuple[int, str | None]:
    """The exit status that an error ends a program with, and what to say of it; None: nobody expected it."""
    if isinstance(error, (UsageError, models.ModelError, data.DataError, DeviceError, GroupError, SnapshotError)):
        return WRONG_USE, str(error)
    if isinstance(error, (RunError, NotFiniteError, data.ImageError)):
        return FAILED, str(error)
    lost = distributed.connection_lost(error)
    if lost is not None:
        return FAILED, f"another process of this run is gone ({lost})"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return FAILED, f"{where}{error.strerror or error}"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return FAILED, f"--compile: {_first_line(error)}: give no --compile, or mend the compiler"
    if re.search("deterministic implementation|Deterministic behavior was enabled", str(error)):
        return FAILED, f"--deterministic: {_first_line(error)}"
    if "Expected to have finished reduction" in str(error):
        return (
            WRONG_USE,
            "torchrun: parameters of the network have no bearing on its output, which is not supported",
        )
    return FAILED, _out_of_memory(error) if isinstance(error, (MemoryError, RuntimeError)) else None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _out_of_memory(error: Exception) -> str | None:
    """What to say of an error that came of too little memory; None of any other."""
    if _is_out_of_gpu_memory(error):
        return "out of GPU memory: give a smaller --batch-size"
    if _is_out_of_memory(error):
        return "out of memory: give a smaller --batch-size"
    if "DataLoader worker" in str(error):
        return (
            f"a data worker was killed, perhaps for want of memory ({str(error).splitlines()[0]}): fewer --workers"
        )
    return None


_asked_to_end: list[type[BaseException]] = []  #: by signals, since the program began


def _terminate(signum, frame):
    _asked_to_end.append(Terminated)
    raise Terminated


def _interrupt(signum, frame):
    _asked_to_end.append(KeyboardInterrupt)
    raise KeyboardInterrupt


def check_signals() -> None:
    """Raise again what a signal has raised, where that got lost: C code clears an exception now and then."""
    if _asked_to_end:
        raise _asked_to_end[0]


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and which remembers the options that were given."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **kwargs)

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


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog):
        super().__init__(prog, max_help_position=32, width=110)


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


workers = number(int, least=0, most=1024)  #: processes


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


def option(name: str) -> str:
    """The option as on the command line: `lr_step` is `--lr-step`."""
    return "--" + name.replace("_", "-")


def check_recorded(args: argparse.Namespace, name: str, recorded, path: Path) -> None:
    """Raise UsageError where an option that was given contradicts what a snapshot records."""
    given = getattr(args, name)
    if name in args.given and given != recorded:
        raise UsageError(f"{option(name)} {given}: {path} was trained with {option(name)} {recorded}")


def check_dataset(args: argparse.Namespace) -> dict[str, str]:
    """Refuse what a dataset cannot give, as far as that is known before it is read, or downloaded.

    Returns:
        the options that have no effect with it, each with the reason.

    Raises:
        UsageError: --upscale and --upscale-padding are both given, or there are fewer classes.
        models.ModelError: its images are too small for the architecture.
    """
    spec = data.info(args.dataset)
    if args.upscale and args.upscale_padding:
        raise UsageError("--upscale and --upscale-padding exclude each other")
    if spec.in_memory and args.subsample_classes > spec.num_classes:  # a folder may hold any number of classes
        raise UsageError(
            f"--subsample-classes {args.subsample_classes}: {args.dataset} has {spec.num_classes} classes"
        )
    size = (UPSCALED, UPSCALED) if args.upscale or args.upscale_padding else spec.image_size
    with torch.device("meta"):
        models.build(args.arch, args.subsample_classes or spec.num_classes, spec.in_channels, size)
    found = {}
    if spec.in_memory:
        found["workers"] = f"with {args.dataset}, which is kept in memory"
    if spec.in_repository:
        found["data_path"] = f"with {args.dataset}, which comes with the repository"
    return found


def warn_of(without_effect: dict[str, str], args: argparse.Namespace) -> list[str]:
    """What to warn about: the options that were given, of those that have no effect."""
    return [f"{option(name)} has no effect {why}" for name, why in without_effect.items() if name in args.given]


def list_choices(args: argparse.Namespace) -> bool:
    """Without --arch or without --dataset, list the supported ones; returns whether that was all there is to do.

    Raises:
        UsageError, models.ModelError: what was given of the two does not exist.
    """
    if args.arch is not None:
        models.check(args.arch)
    if args.dataset is not None and args.dataset not in data.names():
        raise UsageError(f"--dataset {args.dataset}: no such dataset; there are {', '.join(data.names())}")
    if args.arch is None:
        others = (
            "and torchvision's other ConvNets by its names, such as densenet121, mobilenet_v2, resnext50_32x4d,",
            "efficientnet_b0 (a name that does not exist is answered with all of them)",
        )
        say("\n  ".join(["architectures (--arch):", *models.names(), *others]), sys.stdout)
    if args.dataset is None:
        say("\n  ".join(["datasets (--dataset):", *data.names()]), sys.stdout)
    return args.arch is None or args.dataset is None
