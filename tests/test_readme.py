"""The files that the README shows in full do what it says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from programs import ROOT


def in_the_copy(*commands):
    """Run programs of the working directory, in one process; its exit status is that of the first that fails."""
    main = "import sys; from importlib import import_module as program; sys.exit(next(filter(None, ("
    main += (
        ", ".join(f"program({name!r}).main({list(map(str, options))!r})" for name, *options in commands)
        + ")), 0))"
    )
    backend = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}  # as Jupyter sets it for what it starts
    environment = {**os.environ, **backend}
    return subprocess.run(
        [sys.executable, "-c", main], capture_output=True, text=True, timeout=300, env=environment
    )


@pytest.fixture
def copy_with_the_files_shown():
    """The working directory, with a copy of the programs, and the network and the dataset of the README added."""
    added = ["__pycache__", "tiny.py", "shapes.py"]  # these two by a user who has followed the README
    for folder in ("core", "models", "data", "utils"):
        shutil.copytree(ROOT / folder, folder, ignore=shutil.ignore_patterns(*added))
    for program in ROOT.glob("*.py"):
        shutil.copy(program, program.name)
    readme = (ROOT / "README.md").read_text()
    shown = re.findall(r"This is `(\S+\.py)`.*?:\n\n```python\n(.*?)```\n", readme, re.DOTALL)
    assert [name for name, _ in shown] == ["models/tiny.py", "data/shapes.py"]
    for name, content in shown:
        Path(name).write_text(content)


def test_added_network_is_trained_on_added_dataset_measured_and_reset(copy_with_the_files_shown):
    both = ("--arch", "tiny", "--dataset", "shapes", "--seed", 1)
    random = np.random.default_rng(0)
    Path("shapes").mkdir()
    for part, n in (("train", 300), ("test", 60)):
        labels = np.arange(n) % 3
        images = random.integers(0, 80, (n, 32, 32)) + 80 * labels[:, None, None]
        np.savez(f"shapes/{part}.npz", images=images.astype(np.uint8), labels=labels)
    options = ("--data-path", ".", "--lr", 0.1, "--batch-size", 10, "--shuffle", "--epochs", 2)
    from_weights = (*both, "--load-from", "models/shapes/tiny/1/tiny_2.pt")
    done = in_the_copy(
        ("train", *both, *options),
        ("compute_projections", *from_weights),
        ("reinit_layers", *from_weights, "--data-path", ".", "--rand"),
        ("train", *both, "--data-path", "nowhere"),
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("train.py: error: --data-path: nowhere/shapes/train.npz")
    assert float(re.search(r"^test set: .* top-1 ([\d.]+) %", done.stdout, re.MULTILINE)[1]) > 60
    assert re.findall(r"^features\.\d+ +\d+", done.stdout, re.MULTILINE) == [
        "features.0       16",
        "features.3       32",
        "features.6       64",
    ]
    assert Path("results/shapes/tiny/1/reinit_tiny_2.json").exists()
    assert Path("plots/shapes/tiny/1/reinit_tiny_2.png").exists()
