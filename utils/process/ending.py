"""How a program ends: with one line on standard error that says why, and an exit status."""

import contextlib
import functools
import gc
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

import models
from core.errors import OneLineError, RunError
from core.text import first_line, printable, say
from utils.process import distributed, signals
from utils.process.devices import is_out_of_gpu_memory
from utils.process.logging import close_log, last_words, log_first_and_last

DONE, FAILED, WRONG_USE, PLATEAU = 0, 1, 2, 3
STOPPED = 128 + signal.SIGTERM  #: after an epoch, as SIGUSR1 asks for

_SIGNALS = {KeyboardInterrupt: signal.SIGINT, signals.Terminated: signal.SIGTERM}

_advice: list[Callable[[], str]] = []


def advise_when_interrupted(advice: Callable[[], str]) -> None:
    """Let the line about a signal that ends the program say how it goes on."""
    _advice[:] = [advice]


def interrupted(reason: str) -> str:
    """Return why a program ends early, and how it goes on."""
    return "; ".join([reason, *(advice() for advice in _advice)])


def _says(pattern: str, kind: type[Exception] = Exception) -> Callable[[Exception], bool]:
    """Return a condition: the error is of this kind and its message matches the pattern."""
    return lambda error: isinstance(error, kind) and re.search(pattern, str(error)) is not None


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _is_from_compiler(error: Exception) -> bool:
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


_LOST = "lost the connection to the other processes of this run; has one ended? ({error})"

#: Errors of PyTorch and the operating system: condition and message. The first condition that holds counts.
_EXPLANATIONS = (
    (is_out_of_gpu_memory, "out of GPU memory: give a smaller --batch-size"),
    (_is_out_of_memory, "out of memory: give a smaller --batch-size"),
    (_says("Too many open files"), "{error}: raise the limit (ulimit -n), or give fewer --workers"),
    (_says("", OSError), "{error}"),
    (_is_from_compiler, "--compile: {error}: repair the compiler, make space in TMPDIR, or omit --compile"),
    # The compiled code checks the strides of its tensors.
    (_says(r"torch\.ops\.", AssertionError), "--compile: compiled wrongly by PyTorch ({error}): omit --compile"),
    (_says("deterministic implementation|Deterministic behavior was enabled"), "--deterministic: {error}"),
    (_says("Expected to have finished reduction"), "torchrun: the network has unused parameters; use one process"),
    (_says(r"DataLoader worker \(pid"), "a data worker was killed, out of memory? ({error}): use fewer --workers"),
    (_says("", torch.distributed.DistError), _LOST),
    (_says("NCCL|/gloo/", RuntimeError), _LOST),
)


def _explain(error: BaseException) -> str | None:
    """Explain an error of PyTorch or the operating system; None if it is unknown."""
    text = first_line(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return next((message.format(error=text) for applies, message in _EXPLANATIONS if applies(error)), None)


def exit_status(main: Callable[..., int]) -> Callable[..., int]:
    """Decorate a main function: print one line about a known error that ends it, and return an exit status."""

    @functools.wraps(main)
    def guarded(argv=None) -> int:
        name = Path(sys.modules[main.__module__].__file__).name
        os.environ["MPLBACKEND"] = "agg"  # not Jupyter's, which it passes on, and which may not be installed
        _advice.clear()
        if distributed.RANK > 0:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
        with contextlib.suppress(AttributeError):  # stdout is closed, or a notebook's
            sys.stdout.reconfigure(errors="backslashreplace")  # for file names that its encoding does not cover
        # While a rank waits for another one, Python's signal handlers do not run: the default ones end it at once.
        with signals.as_exceptions(enabled=distributed.WORLD_SIZE == 1):
            try:
                status = main(argv)
                log_first_and_last()
                signals.ignore_more()
            except BaseException as error:
                signals.ignore_more()
                status = _report(error, name)
                if status is None:
                    raise
                if distributed.WORLD_SIZE > 1 and torch.cuda.is_initialized():
                    _exit_now(status)  # before the error's tensors are freed: NCCL may wait for ended ranks
            finally:
                close_log()
        if distributed.WORLD_SIZE > 1:
            gc.collect()  # ends data workers and removes their temporary files
            _exit_now(status)
        return status

    return guarded


def _report(error: BaseException, program: str) -> int | None:
    """Print why the program ends and return its exit status; None if the error is unknown."""
    shown = ""
    kind = signals.received() or type(error)  # libraries may replace a signal's exception by one of their own
    if kind in _SIGNALS:
        reason, status = signals.REASONS[_SIGNALS[kind]], 128 + _SIGNALS[kind]
    elif isinstance(error, OneLineError):
        reason, status = str(error), error.status
    else:
        reason, status = _explain(error), FAILED
        own = models.explain_own_error(error)
        if own is not None and (reason is None or isinstance(error, OSError)):
            (reason, shown), status = own, WRONG_USE
    if reason is None:
        return None
    sys.unraisablehook = lambda unraisable: None  # "Exception ignored in ..." at exit, of data workers for example
    if kind in _SIGNALS:
        with contextlib.suppress(OSError, OneLineError):
            reason = interrupted(reason)
        last_words(f"{program}: {reason}")
        return status
    prints, status = distributed.announce_failure(status)
    if prints:
        if shown:
            say(printable(shown.rstrip()), sys.stderr)
        rank = f"rank {distributed.RANK}: " if distributed.RANK else ""
        last_words(f"{program}: {'error' if status == WRONG_USE else 'failed'}: {rank}{reason}")
    return status


def _exit_now(status: int) -> NoReturn:
    """End a rank without Python's shutdown, in which gloo may abort the process and NCCL prints many lines."""
    for child in multiprocessing.active_children():  # data workers
        child.terminate()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # it is closed, or nobody reads it
            stream.flush()
    os._exit(status)


@contextlib.contextmanager
def memory_for(what: str, advice: str = "use a machine with more memory"):
    """Raise a RunError that names what does not fit, and gives advice, if memory runs out in the block."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_gpu_memory(error):
            raise RunError(f"out of GPU memory: {what} does not fit: run without --cuda, or {advice}") from None
        if _is_out_of_memory(error):
            raise RunError(f"out of memory: {what} does not fit: {advice}") from None
        raise
