"""What docs/extending.md and README.md add works as they say: networks, datasets, a statistic, a figure ..."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from programs import ROOT, results, table

PAGE = ROOT / "docs" / "extending.md"
#: Runs the page in a copy of the repository, then a command whose dataset is missing; prints the exit status.
RUN = """
import io, sys
sys.path[:0] = [".", "docs"]
import pages
pages.run(open(sys.argv[1], encoding="utf-8").read())
print(pages.call("train.py", ["--arch", "tiny", "--dataset", "shapes", "--data-path", "nowhere", "--seed", "1"]))
"""


@pytest.fixture
def copy():
    """The working directory, with a copy of the programs."""
    # Not what a user who has followed the page has added.
    added = [*re.findall(r"This is `\w+/(?:\w+/)?(\w+\.py)`", PAGE.read_text(encoding="utf-8")), "__pycache__"]
    assert added == ["tiny.py", "shapes.py", "medians.py", "__pycache__"]
    for folder in ("core", "models", "data", "utils", "docs"):
        shutil.copytree(ROOT / folder, folder, ignore=shutil.ignore_patterns(*added))
    for program in ROOT.glob("*.py"):
        shutil.copy(program, program.name)


def test_what_the_page_adds_is_trained_on_measured_drawn_and_reset(copy):
    backend = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}  # as Jupyter sets it for what it starts
    command = [sys.executable, "-c", RUN, str(PAGE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **backend})
    assert done.stdout.splitlines() == ["2"], done.stderr
    assert done.stderr.startswith("train.py: error: --data-path: nowhere/shapes/train.npz")
    measured = results("results/shapes/tiny/1/tiny_2.json")
    names = ["features.3", "features.6"]  # of the three layers those with 32 filters or more
    assert [layer["name"] for stage in "12" for layer in measured[stage].values()] == names
    for layer in (*measured["1"].values(), *measured["2"].values(), measured["net"]):
        assert layer["median"] == pytest.approx(statistics.median(layer["projections"]))
    assert measured["provenance"]["arguments"]["least_filters"] == 32
    assert [row["layer"] for row in table("results/shapes/tiny/1/projections.csv") if row["median"]] == names
    assert Path("plots/shapes/tiny/1/medians_tiny_2.png").exists()
    reset = results("results/shapes/tiny/1/reinit_tiny_2.json")
    assert reset["layers"] == names
    assert reset["top1_test"] > 60
    assert json.loads(Path("models/shapes/tiny/1/run.json").read_text())["class_names"][0] == "circle"


def test_what_the_readme_adds_is_trained_on(copy):
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"This is `((?:models|data)/\w+\.py)`:\n\n```python\n(.*?)^```$", page, re.M | re.S))
    assert list(files) == ["models/small.py", "data/pets.py"]
    for path, content in files.items():
        Path(path).write_text(content)
    Path("pets").mkdir()
    labels = torch.arange(64) % 2
    images = (200 * labels[:, None, None, None] + torch.randint(50, (64, 1, 32, 32))).byte()
    for part in ("train", "test"):
        torch.save((images, labels), f"pets/{part}.pt")
    options = "--arch small --dataset pets --data-path pets --epochs 1 --lr 0.1 --batch-size 8 --seed 1".split()
    done = subprocess.run([sys.executable, "train.py", *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "small (4,866 parameters) on pets: 2 classes, 64 training, 64 test images" in done.stdout
