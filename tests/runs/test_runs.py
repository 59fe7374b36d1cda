"""What a run is: `run.json`, what it says of snapshots, and which runs are neither continued nor overwritten."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from programs import REFERENCE, files_below, refused, results, run_main, same, weights, write_datasets

import compute_projections
import reinit_layers
import train
from utils import options, snapshots

LENET = ("--arch", "lenet", "--dataset", "fashion_mnist_mini")
QUICK = (*LENET, "--subsample-classes", 2, "--lr", 0.02, "--seed", 1, "--snapshot-every", 1)
FOLDER = Path("models/fashion_mnist_mini_2/lenet/1")
LATEST = ("--resume-from", "latest")


def run(*arguments) -> int:
    return run_main(train, *arguments)


def run_json(folder=FOLDER) -> dict:
    return json.loads(Path(folder, "run.json").read_text())


def state(epoch: int, folder=FOLDER) -> dict:
    return torch.load(Path(folder, f"lenet_{epoch}.tar"), weights_only=True)


def as_before_run_json(folder=FOLDER) -> None:
    """Make the folder of a run one of an earlier version."""
    Path(folder, "run.json").unlink()
    for path in folder.glob("*.tar"):
        content = torch.load(path, weights_only=True)
        for key in ("id", "initial_weights", "overrides"):
            del content[key]
        torch.save({**content, "format": 5, "initial_fingerprint": "12345678"}, path)


# What is recorded


def test_run_json_and_training_states_say_what_the_run_is():
    assert run(*QUICK, "--noise", 0.2, "--noise-seed", 7, "--epochs", 1) == 0
    folder = Path("models/fashion_mnist_mini_2/noise_20/lenet/1")
    recorded, in_state = run_json(folder), state(0, folder)
    assert recorded["format"] == snapshots.FORMAT
    assert re.fullmatch(r"[0-9a-f]{16}", recorded["id"])
    config = recorded["config"]
    assert {"arch": "lenet", "noise": 0.2, "noise_seed": 7, "seed": 1, "num_classes": 2}.items() <= config.items()
    assert recorded["class_names"] == ["T-shirt/top", "Trouser"]
    assert recorded["provenance"]["arguments"]["lr"] == 0.02
    for key in ("id", "config", "class_names", "train_fingerprint", "initial_weights", "overrides", "provenance"):
        assert in_state[key] == recorded[key], key
    names = ("lenet_init_0.pt", "lenet_1.pt")
    assert recorded["weights"] == {name: snapshots.checksum(folder / name) for name in names}
    assert recorded["initial_weights"] == recorded["weights"]["lenet_init_0.pt"]
    assert "weights" not in in_state


def test_record_is_there_before_the_first_weights(monkeypatch):
    seen = []
    replace = snapshots.files.os.replace

    def watch(temporary, path):
        seen.append((Path(path).name, (FOLDER / "run.json").exists()))
        replace(temporary, path)

    monkeypatch.setattr(snapshots.files.os, "replace", watch)
    assert run(*QUICK, "--epochs", 1) == 0
    first = [name for name, _ in seen].index("lenet_init_0.pt")
    assert seen[first] == ("lenet_init_0.pt", True)


def test_name_is_part_of_every_folder():
    named = ("--name", "low-lr")
    assert run(*QUICK, *named, "--epochs", 1) == 0
    below = "fashion_mnist_mini_2/lenet/low-lr/1"
    assert files_below(Path("models")) == {f"{below}/{name}" for name in (
        "run.json", "metrics.csv", "lenet_init_0.pt", "lenet_0.tar", "lenet_1.pt")}  # fmt: skip
    measured = (*LENET, *named, "--subsample-classes", 2, "--seed", 1, "--load-from", f"models/{below}/lenet_1.pt")
    assert run_main(compute_projections, *measured, "--plots", "plots") == 0
    assert run_main(reinit_layers, *measured, "--rand") == 0
    for base in ("tensorboard", "results", "plots", "log"):
        assert all(path.startswith(f"{below}/") for path in files_below(Path(base))), base


# What final weights say of their run


def test_final_weights_are_known_by_their_checksum_and_say_nothing_elsewhere(capsys):
    assert run(*QUICK, "--unnormalize", "--epochs", 1) == 0
    trained = re.findall(r"^test set: .*", capsys.readouterr().out, re.M)
    evaluated = (*LENET, "--evaluate", "--resume-from")
    for name in ("lenet_1.pt", "lenet_0.tar"):
        assert run(*evaluated, FOLDER / name) == 0
        output = capsys.readouterr()
        assert re.findall(r"^test set: .*", output.out, re.M) == trained
        assert "says nothing of its run" not in output.err
        shutil.copy(FOLDER / name, ".")
    assert run(*evaluated, "lenet_0.tar") == 0
    assert re.findall(r"^test set: .*", capsys.readouterr().out, re.M) == trained
    assert run(*evaluated, "lenet_1.pt", "--subsample-classes", 2) == 0
    output = capsys.readouterr()
    assert re.findall(r"^test set: .*", output.out, re.M) != trained
    assert "lenet_1.pt says nothing of its run" in output.err

    assert run_main(reinit_layers, *LENET, "--rand", "--load-from", FOLDER / "lenet_1.pt") == 0
    output = capsys.readouterr()
    assert "pixel values are in [0, 1]" in output.out
    assert "says nothing of its run" not in output.err
    assert run_main(reinit_layers, *LENET, "--subsample-classes", 2, "--rand", "--load-from", "lenet_1.pt") == 0
    assert "lenet_1.pt says nothing of its run" in capsys.readouterr().err
    assert run_main(compute_projections, *LENET, "--load-from", FOLDER / "lenet_1.pt") == 0
    assert "classes: 2 (recorded)" in capsys.readouterr().out
    content = results("results/fashion_mnist_mini_2/lenet/lenet_1.json")
    assert content["trained_by"] == run_json()["provenance"]
    assert run_main(compute_projections, *LENET, "--subsample-classes", 2, "--load-from", "lenet_1.pt") == 0
    output = capsys.readouterr()
    assert "classes: 2 (--subsample-classes)" in output.out
    assert "lenet_1.pt says nothing of its run" in output.err


def test_initialization_of_another_run_is_warned_about(capsys):
    assert run(*QUICK, "--epochs", 1) == 0
    other = Path("models/fashion_mnist_mini_2/lenet/2/lenet_init_0.pt")
    assert run(*QUICK, "--seed", 2, "--epochs", 0) == 0
    capsys.readouterr()
    measured = (*LENET, "--load-from", FOLDER / "lenet_1.pt")
    for initial, told in ((FOLDER / "lenet_init_0.pt", False), (other, True)):
        assert run_main(compute_projections, *measured, "--init-from", initial) == 0
        assert (f"{initial} is of another run" in capsys.readouterr().err) == told
        Path("inits.txt").write_text(f"{initial}\n")
        assert run_main(reinit_layers, *measured, "--inits-from", "inits.txt") == 0
        assert (f"{initial} is of another run" in capsys.readouterr().err) == told


def test_folder_of_an_earlier_version_is_known_by_its_newest_training_state(capsys):
    assert run(*QUICK, "--unnormalize", "--epochs", 2) == 0
    trained = re.findall(r"^test set: .*", capsys.readouterr().out, re.M)
    as_before_run_json()
    assert run(*LENET, "--resume-from", FOLDER / "lenet_2.pt", "--evaluate") == 0
    assert re.findall(r"^test set: .*", capsys.readouterr().out, re.M) == trained
    assert run(*QUICK, "--unnormalize", "--epochs", 2, *LATEST) == 0
    assert "training is finished" in capsys.readouterr().out
    assert "lenet_1.tar is of another run (--lr 0.02, not 0.5)" in refused(
        train, capsys, *QUICK, "--unnormalize", "--lr", 0.5
    )
    assert run(*QUICK, "--unnormalize", "--epochs", 3, *LATEST) == 0
    assert "epoch 2 (3/3)" in capsys.readouterr().out
    assert set(run_json()["weights"]) == {"lenet_init_0.pt", "lenet_2.pt", "lenet_3.pt"}


def test_damaged_record_is_one_line_that_says_what_to_do(capsys):
    assert run(*QUICK, "--epochs", 1) == 0
    capsys.readouterr()
    (FOLDER / "run.json").write_text('{"format": 6,')
    for program, *arguments in (
        (train, *QUICK, "--epochs", 2),
        (compute_projections, *LENET, "--load-from", FOLDER / "lenet_1.pt"),
        (reinit_layers, *LENET, "--rand", "--load-from", FOLDER / "lenet_1.pt"),
    ):
        assert "run.json is damaged; without it" in refused(program, capsys, *arguments)
    (FOLDER / "run.json").unlink()
    assert run(*QUICK, "--epochs", 2, *LATEST) == 0


# Which run is the same

#: A run in which every option that determines the weights has an effect, and another value of each.
ALL = {
    **{"subsample_classes": 3, "class_sample_seed": 5, "noise": 0.2, "noise_seed": 3, "split": 0.5},
    **{"split_seed": 4, "shuffle": True, "lr": 0.01, "lr_step": 2, "lr_decay": 0.3, "seed": 1},
}
OTHER_VALUES = {
    **{"dataset": "fashion_mnist", "subsample_classes": 4, "class_sample_seed": 6, "upscale": True, "noise": 0.3},
    **{"upscale_padding": True, "unnormalize": True, "noise_seed": 4, "augmentation": True, "split": 0.6},
    **{"stratified": True, "split_seed": 5, "shuffle": False, "batch_size": 64, "seed": 2, "optimizer": "adam"},
    **{"lr": 0.02, "lr_step": 3, "lr_decay": 0.4, "weight_decay": 0.1, "momentum": 0.5, "amp": True},
}
OF_FOLDERS = ("arch", "dataset", "subsample_classes", "noise", "seed")  # another value is in another folder
OF_FILES = ("arch_sha256",)  # see tests/models/test_own_networks.py
UNTESTED = ("pretrained", "tf32", "sync_bn")  # need weights of the model zoo, a GPU, several processes
HYPERPARAMETERS = ("lr", "lr_step", "lr_decay", "weight_decay", "momentum")


def arguments_of(values: dict) -> list:
    arguments = list(LENET)
    for name, value in values.items():
        if value is not False:
            arguments += [options.flag(name)] if value is True else [options.flag(name), value]
    return arguments


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The snapshots of a run of two epochs."""
    folder = tmp_path_factory.mktemp("trained")
    assert run(*arguments_of(ALL), "--epochs", 2, "--snapshot-every", 1, "--models-path", folder) == 0
    return folder


def test_every_option_that_determines_the_weights_is_tested_here():
    assert {*OTHER_VALUES, *OF_FOLDERS, *OF_FILES, *UNTESTED} == set(options.CONFIGURATION)


@pytest.mark.parametrize("name", [name for name in OTHER_VALUES if name not in OF_FOLDERS])
def test_run_with_another_option_is_another_run(name, trained, capsys):
    shutil.copytree(trained, "models")
    other = (*arguments_of({**ALL, name: OTHER_VALUES[name]}), "--snapshot-every", 1, "--epochs", 3)
    # It is not overwritten from scratch, and not continued; but hyperparameters may be replaced.
    for how in ((), LATEST):
        assert options.flag(name) in refused(train, capsys, *other, *how)
    if name in (*HYPERPARAMETERS, "batch_size"):
        assert run(*other, *LATEST, "--override") == 0
        folder = Path("models/fashion_mnist_mini_3/noise_20/lenet/1")
        (override,) = run_json(folder)["overrides"]
        assert override == {"epoch": 2, name: OTHER_VALUES[name]}
        assert state(2, folder)["overrides"] == [override]
        assert state(1, folder)["overrides"] == []
    elif name != "shuffle":  # a switch that is off on the command line is as in the snapshot
        path = "models/fashion_mnist_mini_3/noise_20/lenet/1/lenet_1.tar"
        assert options.flag(name) in refused(train, capsys, *other, "--resume-from", path)


def test_same_command_is_the_same_run(trained, capsys):
    shutil.copytree(trained, "models")
    folder = Path("models/fashion_mnist_mini_3/noise_20/lenet/1")
    before = run_json(folder)
    same_run = (*arguments_of(ALL), "--snapshot-every", 1)
    assert run(*same_run, "--epochs", 3, *LATEST) == 0
    assert "epoch 2 (3/3)" in capsys.readouterr().out
    assert run_json(folder)["id"] == before["id"]
    expected = weights(folder / "lenet_3.pt")
    assert run(*same_run, "--epochs", 3) == 0  # from scratch
    assert same(weights(folder / "lenet_3.pt"), expected)
    assert run_json(folder)["id"] == before["id"]


@pytest.mark.parametrize("missing", ["seed", "noise_seed", "split_seed"])
def test_latest_keeps_the_seed_that_was_drawn(missing, capsys):
    values = {name: value for name, value in ALL.items() if name != missing}
    arguments = (*arguments_of(values), "--snapshot-every", 1, *LATEST)
    assert run(*arguments, "--epochs", 1) == 0
    drawn = int(re.search(rf"{options.flag(missing)} was not given: drawn (\d+)", capsys.readouterr().out)[1])
    assert run(*arguments, "--epochs", 2) == 0
    assert "drawn" not in capsys.readouterr().out
    (record,) = Path("models").rglob("run.json")
    assert json.loads(record.read_text())["config"][missing] == drawn


def test_option_without_effect_does_not_make_another_run(capsys):
    unused = ("--noise-seed", 5, "--split-seed", 5, "--optimizer", "adam", "--momentum", 0.8, "--workers", 2)
    unused += ("--lr-step", 2, "--lr-decay", 0)
    assert run(*QUICK, *unused, "--epochs", 1, *LATEST) == 0
    assert run(*QUICK, "--optimizer", "adam", "--epochs", 2, *LATEST) == 0
    assert re.findall(r"^epoch (\d+)", capsys.readouterr().out, re.M) == ["0", "1"]
    assert run(*QUICK, "--name", "s", "--shuffle", "--epochs", 1) == 0
    assert run(*QUICK, "--name", "s", "--shuffle", "--evaluate", *LATEST) == 0


# Runs that started from weights


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(("lenet_2.tar",), id="tar", marks=pytest.mark.long),
        pytest.param(("lenet_init_0.pt", "--start-epoch", 3), id="pt", marks=pytest.mark.long),
    ],
)
def test_latest_continues_a_run_that_started_from_weights(start, capsys):
    options = (*LENET, "--seed", 1, "--snapshot-every", 1, "--lr", 0.05)
    begins = ("--resume-from", REFERENCE / start[0], *start[1:])
    folder = Path("fashion_mnist_mini/lenet/1")
    assert run(*options, *begins, "--epochs", 4) == 0
    assert run(*options, *LATEST, "--epochs", 5) == 0
    assert run(*options, *begins, "--epochs", 5, "--models-path", "whole") == 0
    assert same(weights("models" / folder / "lenet_5.pt"), weights("whole" / folder / "lenet_5.pt"))
    # A new run with the same options is another one: it starts from its own initialization.
    capsys.readouterr()
    assert "is of another run (started from weights" in refused(train, capsys, *options, "--epochs", 5)
    # Before its first training state it needs the weights again.
    for path in ("models" / folder).glob("lenet_*"):
        path.unlink()
    assert "give --resume-from with these weights again" in refused(train, capsys, *options, *LATEST)
    assert run(*options, *begins, "--epochs", 4) == 0


def test_run_from_final_weights_does_not_overwrite_the_run_they_came_from(capsys):
    assert run(*QUICK, "--epochs", 2) == 0
    capsys.readouterr()
    from_weights = (*QUICK, "--resume-from", FOLDER / "lenet_2.pt")
    assert "is of another run (started from None, not weights" in refused(train, capsys, *from_weights)
    assert "is of another run (started from None" in refused(train, capsys, *QUICK, "--start-epoch", 1)
    assert run(*from_weights, "--name", "again", "--epochs", 1) == 0
    assert run(*QUICK, *LATEST, "--name", "again", "--epochs", 2) == 0
    folder = Path("models/fashion_mnist_mini_2/lenet/again/1")
    assert run_json(folder)["initial_weights"] == snapshots.checksum(FOLDER / "lenet_2.pt")
    assert run_json(folder)["id"] != run_json()["id"]


# What is finished, lost and replaced


def test_run_with_nothing_to_lose_is_replaced():
    assert run(*QUICK, "--lr", 1e20, "--epochs", 1) == 1  # its loss is not finite
    assert files_below(FOLDER) - {".lock"} == {"run.json", "metrics.csv", "lenet_init_0.pt"}
    first = run_json()
    assert run(*QUICK, "--epochs", 1) == 0
    assert run_json()["config"]["lr"] == 0.02
    assert run_json()["id"] != first["id"]


def test_latest_takes_a_drawn_seed_from_a_run_without_snapshots():
    arguments = (*LENET, "--subsample-classes", 2, *LATEST)
    assert run(*arguments, "--epochs", 0) == 0  # what a run leaves that is killed in its first epoch
    folder = Path("models/fashion_mnist_mini_2/lenet")
    initial = weights(folder / "lenet_init_0.pt")
    assert run(*arguments, "--epochs", 1) == 0
    assert same(weights(folder / "lenet_init_0.pt"), initial)


def test_run_whose_training_states_were_deleted_is_finished(capsys):
    assert run(*QUICK, "--epochs", 2, *LATEST) == 0
    for path in FOLDER.glob("*.tar"):
        path.unlink()
    capsys.readouterr()
    assert run(*QUICK, "--epochs", 2, *LATEST) == 0
    assert "training is finished" in capsys.readouterr().out
    assert "is of another run" in refused(train, capsys, *QUICK, "--lr", 0.5)


def test_final_weights_that_are_missing_or_damaged_are_written_again(capsys):
    assert run(*QUICK, "--epochs", 1, *LATEST) == 0
    final = FOLDER / "lenet_1.pt"
    whole = weights(final)
    for damage in (final.unlink, lambda: final.write_bytes(final.read_bytes()[:1000])):
        damage()
        capsys.readouterr()
        assert run(*QUICK, "--epochs", 1, *LATEST) == 0
        assert "training is finished" not in capsys.readouterr().out
        assert same(weights(final), whole)


def test_final_weights_that_the_run_did_not_write_are_not_overwritten(capsys):
    assert run(*QUICK, "--epochs", 1, *LATEST) == 0
    final = FOLDER / "lenet_1.pt"
    torch.save({name: weight + 1 for name, weight in weights(final).items()}, final)
    capsys.readouterr()
    assert f"{final} is not what this run wrote" in refused(train, capsys, *QUICK, "--epochs", 1, *LATEST)


def test_run_killed_before_its_final_weights_appear_writes_them():
    assert run(*QUICK, "--epochs", 1, *LATEST) == 0
    expected = weights(FOLDER / "lenet_1.pt")
    (FOLDER / "lenet_1.pt").unlink()  # run.json lists it already
    assert run(*QUICK, "--epochs", 1, *LATEST) == 0
    assert same(weights(FOLDER / "lenet_1.pt"), expected)


def test_override_does_not_overwrite_what_the_run_went_on_to_without_it(capsys):
    assert run(*QUICK, "--epochs", 3) == 0
    capsys.readouterr()
    again = (*QUICK, "--epochs", 3, "--resume-from", FOLDER / "lenet_0.tar", "--override", "--lr", 0.1)
    assert "lenet_1.tar" in refused(train, capsys, *again)
    for name in ("lenet_1.tar", "lenet_2.tar"):
        (FOLDER / name).unlink()
    assert "lenet_3.pt" in refused(train, capsys, *again)
    assert run(*again, "--name", "override") == 0
    (FOLDER / "lenet_3.pt").unlink()  # and the other way round
    assert run(*QUICK, "--epochs", 3, *LATEST, "--override", "--lr", 0.1) == 0
    capsys.readouterr()
    without = (*QUICK, "--epochs", 3, "--resume-from", FOLDER / "lenet_0.tar")
    assert "--override: " in refused(train, capsys, *without)


def test_run_that_goes_on_elsewhere_is_not_mixed_with_another_one_there(capsys):
    assert run(*QUICK, "--epochs", 1, "--models-path", "one") == 0
    assert run(*QUICK, "--epochs", 1, "--models-path", "other", "--lr", 0.001) == 0
    capsys.readouterr()
    goes_on = (*QUICK, "--resume-from", "one/fashion_mnist_mini_2/lenet/1/lenet_0.tar", "--epochs", 2)
    line = refused(train, capsys, *goes_on, "--models-path", "other")
    assert "is of another run (--lr 0.001, not 0.02)" in line
    shutil.copytree("one", "copy")  # of the same run
    assert run(*goes_on, "--models-path", "copy", "--lr", 0.001, "--override") == 0
    assert state(1, "copy/fashion_mnist_mini_2/lenet/1")["config"]["lr"] == 0.001


def test_snapshots_that_record_no_configuration_are_not_overwritten(capsys):
    folder = Path("models/fashion_mnist_mini/lenet/1")
    folder.mkdir(parents=True)
    shutil.copy(REFERENCE / "lenet_2.tar", folder)
    shutil.copy(REFERENCE / "lenet_0.tar", folder)
    shutil.copy(REFERENCE / "lenet_init_0.pt", folder / "lenet_3.pt")
    for start in ((), LATEST, ("--resume-from", folder / "lenet_0.tar")):
        line = refused(train, capsys, *LENET, "--seed", 1, *start)
        assert re.search(r"lenet_2\.tar (records no run|is of a run that recorded no configuration)", line)
        advice = re.search(r"give (\S+ \S+), or choose another (--name), (--seed) or (--models-path),", line)
    # Of a finished run, the final weights stay too.
    for start in ((), ("--resume-from", folder / "lenet_2.tar")):
        line = refused(train, capsys, *LENET, "--seed", 1, "--epochs", 3, *start)
        assert "lenet_3.pt is" in line
        assert "--resume-from" not in line
    # What the line says works: the run goes on where it was, or another one begins elsewhere.
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert run(*LENET, "--seed", 1, *advice[1].split(), "--epochs", 4) == 0
    assert run(*LENET, "--seed", 1, *LATEST, "--lr", 0.05, "--epochs", 5) == 0
    for option, value in ((advice[2], "a"), (advice[3], 2), (advice[4], "b")):
        assert run(*LENET, "--seed", 1, option, value, "--epochs", 0) == 0
    assert {path: path.read_bytes() for path in before} == before


def test_run_on_images_that_were_upscaled_without_rounding_is_told_apart(capsys):
    write_datasets(Path("images"), 20)
    options = ("--arch", "lenet", "--dataset", "mnist", "--data-path", "images", "--upscale-padding", "--seed", 1)
    folder = Path("models/mnist/lenet/1")
    assert run(*options, "--epochs", 1) == 0
    content = state(0, folder)
    assert content["provenance"]["data_protocol"] == 2
    images = content["train_fingerprint"]
    before = {**content, "train_fingerprint": images.removesuffix(" 2")}
    assert before["train_fingerprint"] != images
    for older in (before, {name: value for name, value in before.items() if name != "train_fingerprint"}):
        torch.save(older, folder / "lenet_0.tar")
        (folder / "run.json").unlink(missing_ok=True)
        capsys.readouterr()
        for how in (LATEST, ("--resume-from", folder / "lenet_0.tar")):
            assert "upscaled, without rounding" in refused(train, capsys, *options, *how, "--epochs", 2)
    assert run(*options, *LATEST, "--epochs", 2, "--override") == 0
    assert run_json(folder)["overrides"] == [{"epoch": 1, "train_fingerprint": images}]


def test_record_of_a_later_version_is_neither_overwritten_nor_passed_over(capsys):
    assert run(*QUICK, "--epochs", 2) == 0
    for epoch in (0, 1):
        torch.save({**state(epoch), "format": snapshots.FORMAT + 1}, FOLDER / f"lenet_{epoch}.tar")
    (FOLDER / "run.json").write_text(json.dumps({**run_json(), "format": snapshots.FORMAT + 1}))
    before = {path: path.read_bytes() for path in FOLDER.iterdir()}
    capsys.readouterr()
    for more in (
        ("--epochs", 3, *LATEST),
        ("--epochs", 2),
        ("--resume-from", FOLDER / "lenet_1.tar", "--epochs", 3),
        ("--resume-from", FOLDER / "lenet_2.pt", "--evaluate"),
    ):
        assert f"is of format {snapshots.FORMAT + 1}" in refused(train, capsys, *QUICK, *more)
    line = refused(compute_projections, capsys, *LENET, "--load-from", FOLDER / "lenet_2.pt")
    assert f"is of format {snapshots.FORMAT + 1}" in line
    assert {path: path.read_bytes() for path in FOLDER.iterdir()} == before
