"""Files are written whole or not at all."""

import dis
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import ROOT, files_below

from utils.snapshots import files


@pytest.mark.long
def test_processes_that_write_the_same_file_leave_a_whole_one():
    """Each process writes in many pieces. Whenever a process reads the file, it is of one process alone."""
    code = """
import sys
from pathlib import Path
from utils.snapshots.files import atomic_write
for number in range(20):
    with atomic_write(Path("results.json"), "w") as file:
        for _ in range(50):
            file.write(sys.argv[1] * 1000)
            file.flush()
    content = Path("results.json").read_text()
    assert len(content) == 50_000 and len(set(content)) == 1, content[:100]
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writers = [subprocess.Popen([sys.executable, "-c", code, letter], env=environment) for letter in "abc"]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    assert files_below(Path()) == {"results.json"}


class InterruptBefore:
    """A trace function that raises KeyboardInterrupt before the n-th instruction of a module, as a signal does."""

    def __init__(self, number: int, module):
        self.number, self.file = number, module.__file__

    def __call__(self, frame, event, _):
        if frame.f_code.co_filename != self.file:
            return None
        frame.f_trace_opcodes = True
        # Python handles signals after calls and jumps, never before a NOP, which no `except` clause covers.
        if event == "opcode" and frame.f_code.co_code[frame.f_lasti] != dis.opmap["NOP"]:
            self.number -= 1
            if self.number == 0:
                raise KeyboardInterrupt
        return self


def test_file_is_whole_or_missing_after_an_interrupt_before_any_instruction():
    path = Path("results.json")

    def write():
        with files.atomic_write(path, "w") as file:
            file.write("{}")

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 asks for it before the tracing begins
    for number in range(1, 1000):
        path.unlink(missing_ok=True)
        sys.settrace(InterruptBefore(number, files))
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
    assert path.read_text() == "{}"


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "results.json"),
        (PermissionError(errno.EACCES, "Permission denied", "run.json"), "run.json"),
    ],
)
def test_error_while_writing_names_the_file_and_keeps_the_old_one(error, named):
    path = Path("results.json")
    path.write_text("old")
    with pytest.raises(OSError) as raised, files.atomic_write(path, "w") as file:  # noqa: PT011, PT012
        file.write("new")
        raise error
    assert raised.value.filename == named
    assert path.read_text() == "old"
    assert files_below(Path()) == {"results.json"}


def test_missing_folder_is_an_error_that_names_the_file():
    with pytest.raises(FileNotFoundError) as raised, files.atomic_write(Path("nowhere/results.json")):
        pass
    assert raised.value.filename == "nowhere/results.json"
