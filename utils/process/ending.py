"""How a program ends: what stops it is told in one line on standard error, and by the exit status."""

import contextlib
import functools
import gc
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

from core.errors import OneLineError, RunError
from core.text import first_line
from utils.process import distributed, signals
from utils.process.devices import is_out_of_gpu_memory
from utils.process.logging import close_log, last_words

DONE, FAILED, WRONG_USE, PLATEAU = 0, 1, 2, 3
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


#: By the exception of a signal: what is said, and the exit status.
_ENDED = {KeyboardInterrupt: ("interrupted", INTERRUPTED), signals.Terminated: ("terminated", TERMINATED)}


def exit_status(main: Callable[..., int]) -> Callable[..., int]:
    """Turn what stops a program into one line on standard error and an exit status (see README)."""

    @functools.wraps(main)
    def guarded(argv=None) -> int:
        name = Path(sys.modules[main.__module__].__file__).name
        in_main_thread = threading.current_thread() is threading.main_thread()
        before = {}
        signals.forget()
        if in_main_thread:
            before[signal.SIGTERM] = signal.signal(signal.SIGTERM, signals.handler)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else a shell has it ignored
                before[signal.SIGINT] = signal.signal(signal.SIGINT, signals.handler)
        if in_main_thread and distributed.WORLD_SIZE > 1:
            # Python's handlers would have their turn only when waiting for another process is over.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        with contextlib.suppress(AttributeError):  # there is none
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be more than it can say
        if distributed.RANK > 0:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (to the end of the process)
        try:
            status = main(argv)
        except BaseException as error:
            # A signal's exception may come out as another one, of which it is the cause.
            asked = signals.asked_to_end() or type(error)
            if asked in _ENDED:
                _say_no_more()
                word, status = _ENDED[asked]
                last_words(f"{name}: {word}")
                return status
            if not isinstance(error, Exception):
                raise
            status, reason = _explain(error)
            if reason is None:
                raise
            _say_no_more()
            says_why, status = distributed.fail(status)
            if says_why:
                rank = f"rank {distributed.RANK}: " if distributed.RANK else ""
                last_words(f"{name}: {'error' if status == WRONG_USE else 'failed'}: {rank}{reason}")
            if distributed.WORLD_SIZE > 1 and torch.cuda.is_initialized():
                _leave(status)  # at once: NCCL may wait for ranks that are gone
        finally:
            close_log()
            for number, handler in before.items():
                signal.signal(number, handler)
        if distributed.WORLD_SIZE > 1:
            gc.collect()  # data workers end, and their temporary files
            _leave(status)
        return status

    return guarded


def _leave(status: int) -> NoReturn:
    """End one of several processes at once, when all of its work is done or it has failed.

    While Python ends, a thread of gloo that wants to run some of it aborts the process, now and then; and NCCL
    complains at length of its end.
    """
    close_log()
    for child in multiprocessing.active_children():  # data workers
        child.terminate()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # it is closed, or nobody reads it
            stream.flush()
    os._exit(status)


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
        if is_out_of_gpu_memory(error):
            raise RunError(f"out of GPU memory: {what} does not fit: run without --cuda, or {otherwise}") from None
        if _is_out_of_memory(error):
            raise RunError(f"out of memory: {what} does not fit: {otherwise}") from None
        raise


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _explain(error: Exception) -> tuple[int, str | None]:
    """The exit status that an error ends a program with, and what to say of it; None: nobody expected it."""
    if isinstance(error, OneLineError):
        return error.status, str(error)
    lost = None if is_out_of_gpu_memory(error) else distributed.connection_lost(error)
    if lost is not None:
        return FAILED, f"the processes of this run cannot go on together: is one gone? ({lost})"
    if isinstance(error, (OSError, RuntimeError)) and "Too many open files" in str(error):
        return (
            FAILED,
            f"{first_line(error)}: raise the limit (ulimit -n), or give fewer --workers",
        )
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return FAILED, f"{where}{error.strerror or error}"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        full = ": there is no room for temporary files (TMPDIR)" if "No space left on device" in str(error) else ""
        return FAILED, f"--compile: {first_line(error)}{full}: give no --compile, or mend the compiler"
    if isinstance(error, AssertionError) and "torch.ops." in str(error):  # of strides, in what was compiled
        return FAILED, f"--compile: compiled wrongly by PyTorch ({first_line(error)}): give no --compile"
    if re.search("deterministic implementation|Deterministic behavior was enabled", str(error)):
        return FAILED, f"--deterministic: {first_line(error)}"
    if "Expected to have finished reduction" in str(error):
        return FAILED, "torchrun: parameters of the network have no bearing on its output, which is not supported"
    return FAILED, _out_of_memory(error) if isinstance(error, (MemoryError, RuntimeError)) else None


def _out_of_memory(error: Exception) -> str | None:
    """What to say of an error that came of too little memory; None of any other."""
    if is_out_of_gpu_memory(error):
        return "out of GPU memory: give a smaller --batch-size"
    if _is_out_of_memory(error):
        return "out of memory: give a smaller --batch-size"
    if "DataLoader worker" in str(error):
        return (
            f"a data worker was killed, perhaps for want of memory ({str(error).splitlines()[0]}): fewer --workers"
        )
    return None
