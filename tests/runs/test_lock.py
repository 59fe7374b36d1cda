"""Only one run at a time writes into a folder of snapshots."""

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from programs import ROOT, command, files_below, run_main, shell

import train

QUICK = ("--arch", "lenet", "--dataset", "fashion_mnist_mini", "--subsample-classes", 2, "--seed", 1)
FOLDER = Path("models/fashion_mnist_mini_2/lenet/1")


@pytest.fixture
def running():
    """A run that goes on until it is killed."""
    options = (*QUICK, "--epochs", 100_000, "--snapshot-every", 1)
    process = subprocess.Popen(command("train.py", *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 60
    while not (FOLDER / "lenet_0.tar").exists() and time.time() < deadline:
        time.sleep(0.02)
    yield process
    process.kill()
    process.wait()


def test_second_run_is_refused_with_the_process_and_host_of_the_first(running, capsys):
    for options in ([], ["--resume-from", "latest"], ["--resume-from", FOLDER / "lenet_0.tar", "--epochs", 3]):
        assert run_main(train, *QUICK, *options) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(FOLDER) in line
        assert f"process {running.pid} on host {socket.gethostname()}" in line
    # Its snapshots can be evaluated all the same, and runs in other folders start.
    assert run_main(train, *QUICK, "--evaluate", "--resume-from", FOLDER / "lenet_0.tar") == 0
    assert run_main(train, *QUICK[:-1], 2, "--epochs", 0) == 0


def test_run_continues_a_killed_one_and_removes_its_leftovers(running):
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert (FOLDER / ".lock").exists()
    (FOLDER / ".lenet_7.tar.0123abcd.tmp").write_bytes(b"half a snapshot")
    epochs = 1 + max(int(re.search(r"\d+", path.name)[0]) for path in FOLDER.glob("lenet_*.tar"))
    finished = shell("train.py", *QUICK, "--snapshot-every", 1, "--resume-from", "latest", "--epochs", epochs + 1)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert not [name for name in os.listdir(FOLDER) if name.startswith(".")]


def test_refused_run_leaves_no_file():
    assert run_main(train, *QUICK, "--noise", 0.1, "--subsample-classes", 1) == 2
    assert files_below(Path()) == set()


CONTENDER = """
import contextlib, os, sys
from pathlib import Path
from core.errors import UsageError
from utils.runs.lock import FolderLock
entered = 0
while entered < int(sys.argv[1]):
    with FolderLock() as lock, contextlib.suppress(UsageError):
        assert lock.hold(Path("a/b")) == []
        os.close(os.open("inside", os.O_CREAT | os.O_EXCL))
        os.unlink("inside")
        entered += 1
"""


def test_two_processes_never_hold_the_lock_at_once():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([sys.executable, "-c", CONTENDER, "300"], env=environment, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    assert [process.communicate(timeout=120)[1] for process in processes] == [b""] * 4
    assert files_below(Path()) == set()


def test_run_on_a_file_system_without_locks_warns_and_goes_on(monkeypatch, capsys):
    def lockf(*_):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    assert run_main(train, *QUICK, "--epochs", 0) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ")
    assert str(FOLDER) in line
    assert (FOLDER / "lenet_init_0.pt").exists()
