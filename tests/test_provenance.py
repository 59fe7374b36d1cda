"""What results and snapshots say of their making, that the same command gives the same files, and old files."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import REFERENCE, ROOT, run_main, shell

import compute_projections
import reinit_layers
import train
from utils import snapshots
from utils.process import devices
from utils.runs import provenance

QUICK = ("--arch", "lenet", "--dataset", "fashion_mnist_mini", "--subsample-classes", 2, "--seed", 1)
FOLDER = Path("models/fashion_mnist_mini_2/lenet/1")
RESULTS = Path("results/fashion_mnist_mini_2/lenet/1")
FORMAT_2 = REFERENCE / "format2/lenet_0.tar"


def trained(*options) -> Path:
    assert run_main(train, *QUICK, "--epochs", 1, "--snapshot-every", 1, *options) == 0
    Path("inits.txt").write_text(f"{FOLDER}/lenet_init_0.pt\n")
    return FOLDER / "lenet_0.tar"


def test_results_and_snapshots_say_what_made_them():
    snapshot = trained("--lr", 0.02)
    assert run_main(compute_projections, *QUICK, "--normalize", "--load-from", FOLDER) == 0
    assert run_main(reinit_layers, *QUICK, "--load-from", snapshot, "--inits-from", "inits.txt", "--rand") == 0
    made = {
        "train.py": torch.load(snapshot, weights_only=True)["provenance"],
        "compute_projections.py": json.loads((RESULTS / "lenet_0.json").read_text())["provenance"],
        "reinit_layers.py": json.loads((RESULTS / "reinit_lenet_0.json").read_text())["provenance"],
    }
    for name in ("lenet_0", "reinit_lenet_0"):  # what has been measured says who trained it
        assert json.loads((RESULTS / f"{name}.json").read_text())["trained_by"] == made["train.py"]
    assert "trained_by" not in json.loads((RESULTS / "lenet_init_0.json").read_text())
    for program, by in made.items():
        assert by["program"] == program
        assert f'version = "{by["version"]}"' in (ROOT / "pyproject.toml").read_text()
        assert by["torch"] == torch.__version__
        assert by["data_protocol"] == 1
        assert by["device"] == f"CPU, 1 thread ({devices.processor()})"
        assert (by["arguments"]["arch"], by["arguments"]["seed"]) == ("lenet", 1)
    assert made["train.py"]["arguments"]["lr"] == 0.02
    assert made["train.py"]["arguments"]["momentum"] == 0.9  # in effect, though not given
    # Of several snapshots each result names its own.
    assert made["compute_projections.py"]["arguments"]["load_from"] == str(snapshot)
    assert made["compute_projections.py"]["arguments"]["normalize"] is True
    assert made["reinit_layers.py"]["arguments"]["inits_from"] == "inits.txt"


def test_commit_is_that_of_the_checkout_and_none_without_one(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance._program_version.__wrapped__() == {"version": None, "commit": None}
    (tmp_path / "pyproject.toml").write_text('version = "7.8"\n')
    ask = provenance._program_version.__wrapped__
    assert ask() == {"version": "7.8", "commit": None}
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    assert ask()["commit"] is None  # nothing has been committed yet
    subprocess.run([*git, "add", "pyproject.toml"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert ask()["commit"] == head
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.py").write_text("")
    assert ask()["commit"] == f"{head}-dirty"  # with a network that is in no commit
    (tmp_path / "models" / "tiny.py").unlink()
    assert ask()["commit"] == head
    (tmp_path / "pyproject.toml").write_text('version = "7.9"\n')
    assert ask() == {"version": "7.9", "commit": f"{head}-dirty"}


@pytest.mark.long
def test_same_command_gives_the_same_tensors_and_the_same_json():
    files = {}
    for number in range(2):
        shutil.rmtree("models", ignore_errors=True)
        snapshot = trained("--noise", 0, "--shuffle", "--augmentation", "--split", 0.1, "--split-seed", 1)
        commands = (
            ("compute_projections.py", "--load-from", snapshot, "--init-from", FOLDER / "lenet_init_0.pt"),
            ("reinit_layers.py", "--load-from", snapshot, "--inits-from", "inits.txt", "--rand"),
        )
        for program, *options in commands:  # as processes: nothing is left of the one before
            assert shell(program, *QUICK, *options, "--results", f"results{number}").returncode == 0
        files[number] = [path.read_bytes() for path in sorted(Path(f"results{number}").rglob("*.json"))]
        files[number].append({name: w.numpy().tobytes() for name, w in weights(snapshot).items()})
    assert len(files[0]) == 3
    assert files[0] == files[1]


def weights(path) -> dict[str, torch.Tensor]:
    return snapshots.load(path)["model_state_dict"]


@pytest.mark.long
def test_number_of_data_workers_changes_no_byte_of_the_results():
    from PIL import Image

    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("apple", "pear"):
            Path(part, name).mkdir(parents=True)
            for index in range(3):
                pixels = random.integers(256, size=(230, 240, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(f"{part}/{name}/{index}.png")
    common = ("--arch", "resnet18", "--dataset", "imagenet", "--data-path", ".", "--batch-size", 2, "--seed", 1)
    assert run_main(train, *common, "--epochs", 0) == 0
    written = []
    for workers in (0, 2):  # that training does not depend on them is tested with the training runs
        options = ("--load-from", "models/imagenet/resnet18/1/resnet18_init_0.pt", "--rand", "-j", workers)
        assert run_main(reinit_layers, *common, *options) == 0
        written.append(Path("results/imagenet/resnet18/1/reinit_resnet18_init_0.json").read_bytes())
    assert written[0] == written[1]


# Files of every format so far; the authors' own are read all over the tests


def test_snapshot_of_format_2_is_evaluated_continued_and_measured(capsys):
    folder = Path("models/fashion_mnist_mini_2/noise_20/lenet/1")
    folder.mkdir(parents=True)
    shutil.copy(FORMAT_2, folder)
    lenet = ("--arch", "lenet", "--dataset", "fashion_mnist_mini")
    assert run_main(train, *lenet, "--resume-from", FORMAT_2, "--evaluate") == 0
    recorded = torch.load(FORMAT_2, weights_only=True)
    validation = re.search(r"validation split: .*", capsys.readouterr().out)[0]
    assert f"top-1 {recorded['top1_acc']:.2f} %" in validation
    options = ("--subsample-classes", 2, "--class-sample-seed", 1, "--noise", 0.2, "--noise-seed", 3, "--seed", 1)
    options += ("--split", 0.1, "--split-seed", 5, "--shuffle", "--lr", 0.02, "--lr-step", 1, "--lr-decay", 0.5)
    assert run_main(train, *lenet, *options, "--epochs", 2, "--resume-from", "latest") == 0
    output = capsys.readouterr()
    assert re.findall(r"^epoch (\d)", output.out, re.M) == ["1"]
    assert "lr 0.01," in output.out
    assert run_main(compute_projections, *lenet, "--seed", 1, "--normalize", "--load-from", FORMAT_2) == 0
    new = json.loads(Path("results/fashion_mnist_mini_2/noise_20/lenet/1/lenet_0.json").read_text())
    old = json.loads((REFERENCE / "format2/lenet_0.json").read_text())
    for stage in "012":
        for block, layer in old[stage].items():
            assert new[stage][block]["mass"] == layer["mass"]
            assert new[stage][block]["projections"] == pytest.approx(layer["projections"], abs=1e-12)
