"""Errors of PyTorch and the operating system end a program with one line that says what to do."""

import errno
import os
import signal
import time

import pytest
import torch

from core.errors import RunError, UsageError
from utils.process import ending
from utils.process.ending import exit_status, memory_for

CompilerError = type("CompilerError", (RuntimeError,), {"__module__": "torch._inductor.exc"})


@pytest.mark.parametrize(
    ("error", "status", "named"),
    [
        (UsageError("--lr 0: wrong"), 2, "--lr 0"),
        (RunError("the loss is nan"), 1, "the loss is nan"),
        (OSError(errno.ENOSPC, "No space left on device", "lenet_0.tar"), 1, "lenet_0.tar: No space"),
        (OSError(errno.EMFILE, "Too many open files", "0.png"), 1, "ulimit -n"),
        (RuntimeError("received 0 items of ancdata: Too many open files"), 1, "--workers"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), 1, "--workers"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 1, "out of GPU memory: give"),
        (RuntimeError("CUDA error: out of memory\nmore lines"), 1, "out of GPU memory: give"),
        (RuntimeError("[/gloo/transport/tcp/pair.cc:534] Connection closed by peer"), 1, "closed by peer"),
        (torch.distributed.DistBackendError("NCCL error in: NCCLUtils.cpp:94\nmore lines"), 1, "NCCL error in"),
        (MemoryError(), 1, "out of memory: give"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 1, "--batch-size"),
        (CompilerError("C++ compile error\n\nmore lines"), 1, "--compile"),
        (RuntimeError("cumsum does not have a deterministic implementation, but\nmore"), 1, "--deterministic"),
    ],
    ids=str,
)
def test_known_error_is_one_line(error, status, named, capsys):
    @exit_status
    def main(argv=None):
        raise error

    assert main() == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"test_ending.py: {'error' if status == 2 else 'failed'}: ")
    assert named in line


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("Caught it in DataLoader worker 0.")])
def test_unknown_error_keeps_its_traceback(error):
    @exit_status
    def main(argv=None):
        raise error

    with pytest.raises(type(error), match=str(error)):
        main()


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_while_a_program_ends_is_ignored(first, monkeypatch, capsys):
    def close_slowly():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

    @exit_status
    def main(argv=None):
        os.kill(os.getpid(), first)
        time.sleep(10)

    monkeypatch.setattr(ending, "close_log", close_slowly)
    assert main() == 128 + first
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_memory_error_names_what_does_not_fit():
    with pytest.raises(RunError, match="the network does not fit"), memory_for("the network"):
        raise MemoryError
