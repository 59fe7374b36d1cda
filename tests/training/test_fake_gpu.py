"""Run fake_gpu.py in a process of its own.

Fake tensors make PyTorch believe that there is a GPU. Its backward passes then start a thread for that GPU, and a
process with such a thread cannot be forked, as tests of several processes do.
"""

import subprocess
import sys
from pathlib import Path

from programs import ROOT


def test_computation_on_a_gpu_stays_there_and_asks_for_no_value():
    path = Path(__file__).with_name("fake_gpu.py")
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", path]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stdout
