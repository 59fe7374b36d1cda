"""Signals while a program imports what it needs: one line, and a notebook that imports a program keeps its own."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from programs import command

import train  # noqa: F401 (importing a program leaves the signals alone)


def start_importing(program: str, **variables: str) -> subprocess.Popen:
    """Start a program whose import of PyTorch takes until a file `go` appears, and wait until it is there."""
    Path("site/torch").mkdir(parents=True, exist_ok=True)
    Path("site/torch/__init__.py").write_text(
        "import pathlib, time\n"
        "pathlib.Path('importing').touch()\n"
        "while not pathlib.Path('go').exists():\n    time.sleep(0.01)\n"
        "raise SystemExit(9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": "site", **variables}
    process = subprocess.Popen(command(program), env=environment, stderr=subprocess.PIPE, text=True)
    while not Path("importing").exists():
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("program", ["train.py", "compute_projections.py", "reinit_layers.py"])
@pytest.mark.parametrize(("number", "reason"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_signal_during_the_imports_is_one_line(program, number, reason):
    process = start_importing(program)
    process.send_signal(number)
    assert process.communicate(timeout=30)[1] == f"{program}: {reason}\n"
    assert process.returncode == 128 + number


def test_signal_during_the_imports_of_a_rank_is_printed_by_rank_0_alone():
    process = start_importing("train.py", RANK="1", LOCAL_RANK="1", WORLD_SIZE="2")
    process.send_signal(signal.SIGTERM)
    assert (process.communicate(timeout=30)[1], process.returncode) == ("", 143)


def test_sigusr1_during_the_imports_waits_for_training():
    process = start_importing("train.py")
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.1)
    Path("go").touch()
    assert (process.communicate(timeout=30)[1], process.returncode) == ("", 9)


def test_imported_program_leaves_the_signals_alone():
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
