"""The checks of fake_gpu.py, in a process of their own.

Fake tensors leave PyTorch with the idea that there is a GPU. Later its backward passes start a thread for that
GPU, and a process with such a thread cannot be forked into ranks that train, which other tests do.
"""

import subprocess
import sys

from programs import ROOT


def test_what_is_computed_on_a_gpu_stays_there_and_asks_for_no_value():
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", ROOT / "tests/fake_gpu.py"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stdout
