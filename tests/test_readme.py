"""The files that the README shows in full do what it says."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from programs import ROOT


def in_the_copy(program, *options):
    return subprocess.run(
        [sys.executable, program, *map(str, options)], capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def copy_with_the_files_shown():
    """The working directory, with a copy of the programs, and the network and the dataset of the README added."""
    for folder in ("models", "data", "utils"):
        shutil.copytree(ROOT / folder, folder, ignore=lambda where, _: {"__pycache__"})
    for program in ROOT.glob("*.py"):
        shutil.copy(program, program.name)
    readme = (ROOT / "README.md").read_text()
    shown = re.findall(r"This is `(\S+\.py)`.*?:\n\n```python\n(.*?)```\n", readme, re.DOTALL)
    assert [name for name, _ in shown] == ["models/tiny.py", "data/shapes.py"]
    for name, content in shown:
        assert not Path(name).exists()
        Path(name).write_text(content)


def test_added_network_is_trained_on_added_dataset_measured_and_reset(copy_with_the_files_shown):
    both = ("--arch", "tiny", "--dataset", "shapes", "--seed", 1)
    missing = in_the_copy("train.py", *both, "--data-path", ".")
    assert missing.returncode == 2
    assert len(missing.stderr.splitlines()) == 1
    random = np.random.default_rng(0)
    Path("shapes").mkdir()
    for part, n in (("train", 300), ("test", 60)):
        labels = np.arange(n) % 3
        images = random.integers(0, 80, (n, 32, 32)) + 80 * labels[:, None, None]
        np.savez(f"shapes/{part}.npz", images=images.astype(np.uint8), labels=labels)
    options = ("--data-path", ".", "--lr", 0.1, "--batch-size", 10, "--shuffle", "--epochs", 2)
    trained = in_the_copy("train.py", *both, *options)
    assert trained.returncode == 0, trained.stderr
    assert float(re.search(r"^test set: .* top-1 ([\d.]+) %", trained.stdout, re.MULTILINE)[1]) > 60
    weights = "models/shapes/tiny/1/tiny_2.pt"
    measured = in_the_copy("compute_projections.py", *both, "--load-from", weights)
    assert re.findall(r"^features\.\d+ +\d+", measured.stdout, re.MULTILINE) == [
        "features.0       16",
        "features.3       32",
        "features.6       64",
    ]
    reset = in_the_copy("reinit_layers.py", *both, "--data-path", ".", "--load-from", weights, "--rand")
    assert reset.returncode == 0, reset.stderr
