"""One run at a time in a folder of snapshots."""

import contextlib
import dis
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
from utils.runs.lock import FolderLock
from utils.snapshots import files

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
        holder = f"process {running.pid} on host {socket.gethostname()}"
        assert capsys.readouterr().err == f"train.py: error: {FOLDER} is in use by another run: {holder}\n"
    # Its snapshots may be looked at all the same, and other runs are free.
    assert run_main(train, *QUICK, "--evaluate", "--resume-from", FOLDER / "lenet_0.tar") == 0
    assert run_main(train, *QUICK[:-1], 2, "--epochs", 0) == 0


def test_killed_run_holds_no_lock_and_what_it_left_goes_with_the_next(running):
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert (FOLDER / ".lock").exists()
    (FOLDER / ".lenet_7.tar.tmp").write_bytes(b"half a snapshot")
    epochs = 1 + max(int(re.search(r"\d+", path.name)[0]) for path in FOLDER.glob("lenet_*.tar"))
    finished = shell("train.py", *QUICK, "--snapshot-every", 1, "--resume-from", "latest", "--epochs", epochs + 1)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert {Path(name).suffix for name in files_below(FOLDER)} == {".pt", ".tar"}
    assert not [name for name in os.listdir(FOLDER) if name.startswith(".")]


def test_run_that_is_refused_leaves_no_folder():
    finished = shell("train.py", *QUICK, "--noise", 0.1, "--subsample-classes", 1)
    assert finished.returncode == 2
    assert os.listdir() == []


CONTENDER = """
import os, sys
from pathlib import Path
from utils.snapshots import files
from utils.runs.lock import FolderLock
entered = 0
while entered < int(sys.argv[1]):
    with FolderLock() as lock:
        if lock.hold(Path("a/b")) is None:
            os.close(os.open("inside", os.O_CREAT | os.O_EXCL))
            os.unlink("inside")
            entered += 1
"""


def test_never_two_at_once_while_the_lock_and_its_folder_come_and_go():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([sys.executable, "-c", CONTENDER, "300"], env=environment, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    assert [process.communicate(timeout=120)[1] for process in processes] == [b""] * 4
    assert files_below(Path()) == set()


def test_folders_that_were_there_stay():
    Path("a").mkdir()
    with FolderLock() as lock:
        assert lock.hold(Path("a/b/c")) is None
        assert Path("a/b/c/.lock").read_text().startswith(f"process {os.getpid()} on host ")
    assert [str(path) for path in Path().rglob("*")] == ["a"]


def test_processes_that_write_one_file_wait_for_each_other():
    """Each content is written in many pieces; a reader, and in the end everybody, sees a whole one."""
    code = """
import sys
from pathlib import Path
from utils.snapshots.files import atomic_write
for number in range(100):
    with atomic_write(Path("results.json"), "w") as file:
        for _ in range(50):
            file.write(sys.argv[1] * 1000)
            file.flush()
    content = Path("results.json").read_text()
    assert len(content) == 50_000 and len(set(content)) == 1, content[:100]
"""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writers = [subprocess.Popen([*command, letter], env=environment) for letter in "abc"]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    assert files_below(Path()) == {"results.json"}


class InterruptBefore:
    """A trace function: KeyboardInterrupt before the n-th instruction of a module, as of a signal's handler."""

    def __init__(self, number: int, module):
        self.number, self.file = number, module.__file__

    def __call__(self, frame, event, _):
        if frame.f_code.co_filename != self.file:
            return None
        frame.f_trace_opcodes = True
        # A handler runs after calls and jumps, never before a NOP, at which no `except` of the code holds.
        if event == "opcode" and frame.f_code.co_code[frame.f_lasti] != dis.opmap["NOP"]:
            self.number -= 1
            if self.number == 0:
                raise KeyboardInterrupt
        return self


@pytest.mark.parametrize("fails", [False, True])
def test_interrupted_before_any_instruction_a_file_is_whole_or_gone(fails):
    path = Path("results.json")

    def write():
        with contextlib.suppress(ZeroDivisionError), files.atomic_write(path, "w") as file:
            file.write("{}")
            sys.settrace(InterruptBefore(number, files) if fails else sys.gettrace())
            if fails:
                raise ZeroDivisionError

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 asks for it before the tracing begins
    for number in range(1, 1000):
        path.unlink(missing_ok=True)
        sys.settrace(None if fails else InterruptBefore(number, files))
        try:
            write()
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            sys.settrace(before)
        assert files_below(Path()) <= {"results.json"}, number
        assert not path.exists() or path.read_text() == "{}"
    assert 10 < number < 999
    assert path.exists() is not fails


def test_interrupted_waiting_for_another_process_it_leaves_the_file_of_that_one():
    path = Path("results.json")
    with files.atomic_write(path, "w") as file:
        code = f"""
import signal
from pathlib import Path
from utils.snapshots.files import atomic_write
signal.signal(signal.SIGALRM, lambda *_: 1 / 0)
signal.setitimer(signal.ITIMER_REAL, 0.2)
with atomic_write(Path({str(path)!r}), "w") as file:
    file.write("of the other")
"""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        waited = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert "ZeroDivisionError" in waited.stderr
        file.write("of this one")
    assert path.read_text() == "of this one"
    assert files_below(Path()) == {"results.json"}
