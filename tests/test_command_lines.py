"""Wrong uses of the three programs, a row each, and what they warn about.

A wrong use gets one line on standard error that names the option or the file, and exit status 2; nothing is
written, and nothing is read that is not needed to know better.
"""

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from programs import REFERENCE, files_below, refused, run_main

import compute_projections
import data
import models
import reinit_layers
import train
from utils import snapshots

PROGRAMS = {"train": train, "compute": compute_projections, "reinit": reinit_layers}
LENET = "--arch lenet --dataset fashion_mnist_mini"
TRAINED = "--load-from lenet_2.tar --rand"
LONG = "a" * 5000
#: What `recorded.tar` says of the run that it is from.
RECORDED = {
    **{"arch": "lenet", "dataset": "fashion_mnist_mini", "num_classes": 10, "in_channels": 1},
    **{"subsample_classes": 10, "class_sample_seed": 1, "noise": 0.2, "noise_seed": 1, "seed": 1},
    **{"split": 0.1, "split_seed": 1, "stratified": False, "shuffle": True, "augmentation": False},
    **{"upscale": False, "upscale_padding": False, "unnormalize": False, "pretrained": False},
    **{"optimizer": "sgd", "batch_size": 128, "started_from": None, "seed_given": True},
}

# Wrong values, separated by blanks: of every option those of its kind, and those out of its range.
NOT_WHOLE = "'' many 1.5 1e3 nan inf 0x10 -1 -"
NOT_A_NUMBER = "'' some nan inf -inf 1e999 1,5"
NOT_A_LOG = "'' . .. a/ ./folder ./pipe"
NOT_A_FOLDER = "'' text.txt text.txt/below/it empty pipe /dev/null link"
NO_SNAPSHOT = f"'' folder text.txt image.png empty nowhere.tar results.json pipe /dev/null link {LONG} text.txt/x"
WRONG_VALUES = {
    "train": {
        "--arch": "'' lenett LeNet resnet 18 models.py",
        "--dataset": "'' nmist MNIST ./datasets",
        "--data-path": NOT_A_FOLDER,
        "--subsample-classes": f"{NOT_WHOLE} 11 {10**30}",
        "--class-sample-seed": f"{NOT_WHOLE} {2**32}",
        "--noise": f"{NOT_A_NUMBER} 1.1 -0.5 -2 20",
        "--noise-seed": f"{NOT_WHOLE} {2**32}",
        "--split": f"{NOT_A_NUMBER} 1 -0.1 10",
        "--split-seed": f"{NOT_WHOLE} {2**32}",
        "--workers": f"{NOT_WHOLE} {10**6}",
        "-j": f"{NOT_WHOLE} {10**6}",
        "--epochs": f"{NOT_WHOLE} {10**40}",
        "--start-epoch": f"{NOT_WHOLE} 21 {10**40}",
        "--batch-size": f"{NOT_WHOLE} 0 {2**31} {10**40}",
        "--optimizer": "'' adamw SGD",
        "--lr": f"{NOT_A_NUMBER} 0 -0.1 1e39",
        "--lr-step": f"{NOT_WHOLE} 3",
        "--lr-decay": f"{NOT_A_NUMBER} -1 1e39 0.1",
        "--weight-decay": f"{NOT_A_NUMBER} -1 1e39",
        "--momentum": f"{NOT_A_NUMBER} -1 1e39",
        "--seed": f"{NOT_WHOLE} {2**32}",
        "--models-path": NOT_A_FOLDER,
        "--snapshot-every": NOT_WHOLE,
        "--snapshot-all-until": NOT_WHOLE,
        "--tb-logdir": NOT_A_FOLDER,
        "--log": NOT_A_LOG,
    },
    "compute": {
        "--arch": "'' lenett",
        "--dataset": "'' nmist",
        "--subsample-classes": f"{NOT_WHOLE} 11 {10**30}",
        "--epoch": f"{NOT_WHOLE} 3",
        "--seed": f"{NOT_WHOLE} {2**32}",
        "--results": NOT_A_FOLDER,
        "--plots": NOT_A_FOLDER,
        "--log": NOT_A_LOG,
    },
    "reinit": {
        "--arch": "'' lenett",
        "--dataset": "'' nmist",
        "--data-path": NOT_A_FOLDER,
        "--class-sample-seed": f"{NOT_WHOLE} {2**32}",
        "--subsample-classes": NOT_WHOLE,
        "--workers": f"{NOT_WHOLE} {10**6}",
        "-j": f"{NOT_WHOLE} {10**6}",
        "--batch-size": f"{NOT_WHOLE} 0 {2**31}",
        "--mean": f"{NOT_A_NUMBER} -0.1 1.1",
        "--std": f"{NOT_A_NUMBER} -1 0",
        "--seed": f"{NOT_WHOLE} {2**32}",
        "--results": NOT_A_FOLDER,
        "--plots": NOT_A_FOLDER,
        "--log": NOT_A_LOG,
    },
}
WRONG_SNAPSHOTS = {
    ("train", ""): ["--resume-from"],
    ("compute", ""): ["--load-from", "--load-from lenet_2.tar --init-from", "--init-from"],
    ("reinit", "--rand"): ["--load-from"],
}


class Row(NamedTuple):
    program: str
    options: str  #: after the network and the dataset
    named: str  #: what the line has to name
    reads: str = ""  #: what may be read on the way: network, snapshot, data


def wrong_uses() -> Iterator[Row]:
    for program, table in WRONG_VALUES.items():
        trained = TRAINED if program == "reinit" else ""
        for option, values in table.items():
            yield Row(program, f"{trained} {option}", option)  # without a value
            for value in values.split():
                yield Row(program, f"{trained} {option} {value}", option)
    for (program, also), options in WRONG_SNAPSHOTS.items():
        for option in options:
            yield Row(program, f"{also} {option}", option.split()[-1])
            for file in NO_SNAPSHOT.split():
                named = option.split()[-1] if file == "''" else file
                yield Row(program, f"{also} {option} {file}", named, "snapshot network")
    for kind in ("folder", "text.txt", "image.png", "empty", "nowhere.tar", "pipe", "/dev/null", "link", LONG):
        named = kind if kind != LONG else "--inits-from"
        yield Row("reinit", f"--load-from lenet_2.tar --inits-from list:{kind}", named, "snapshot network data")
        if kind != "text.txt":
            yield Row("reinit", f"--load-from lenet_2.tar --inits-from {kind}", kind)
    yield from ROWS


ROWS = [
    # No such option: unknown, abbreviated, of another program, with a value that it does not take
    *(Row("train", use, re.split("[ =]", use)[0]) for use in (
        "--learning-rate 1", "--epoch 1", "--eval", "--load-from x", "--results x", "--plots x", "--with-linear",
        "--cuda=yes", "--shuffle=0", "--evaluate=test", "-x", "-e 1", "lenet", "--rand", "--lrstep 3", "---seed 1",
    )),
    *(Row("compute", use, re.split("[ =]", use)[0]) for use in (
        "--norm", "--with-lin", "--load x", "--init x", "--epochs 3", "--data-path .", "--upscale", "--rand",
        "lenet", "--normalize=1", "--noise 0.2", "--batch-size 3", "-j 3", "--snapshot x", "--inits-from x",
    )),
    *(Row("reinit", f"{TRAINED} {use}", re.split("[ =]", use)[0]) for use in (
        "--with-lin", "--load x", "--inits x", "--init-from x", "--normalize", "--pretrained", "--noise 0.2",
        "--rand=1", "--epochs 3", "--resume-from x", "--split 0.1", "lenet_2.tar",
    )),
    # Line breaks in what was given do not break the line
    Row("train", "--seed '\n-1'", "--seed"),
    Row("train", "'--no\nsuch'", "--no"),
    Row("compute", "--arch 'le\nnet'", "--arch"),
    # Misspelled
    Row("train", "--epoch 3", "did you mean --epochs"),
    Row("train", "--resume-from lates", "--resume-from lates: there is no such file (or 'latest')"),
    # Contradictions
    Row("train", "--upscale --upscale-padding", "--upscale"),
    Row("train", "--stratified", "--stratified"),
    Row("train", "--stratified --shuffle --split 0", "--stratified"),
    Row("train", "--evaluate --evaluate-train", "--evaluate"),
    Row("train", "--evaluate --eval-regularization-loss", "--evaluate"),
    Row("train", "--evaluate-train --eval-regularization-loss", "--evaluate-train"),
    Row("train", "--pretrained", "--pretrained"),
    Row("train", "--arch vgg19_orig --pretrained", "--pretrained"),
    Row("train", "--arch mlp --pretrained", "--pretrained"),
    Row("train", "--noise 0.2 --subsample-classes 1", "--noise 0.2"),
    Row("train", "--start-epoch 3 --epochs 2", "--start-epoch 3"),
    Row("train", "--start-epoch 25 --resume-from lenet_init_0.pt", "--start-epoch 25", "snapshot"),
    Row("train", "--evaluate --resume-from latest", "--resume-from latest"),
    Row("train", "--evaluate-train --resume-from latest", "--resume-from latest"),
    Row("compute", "--pretrained", "--pretrained"),
    Row("compute", "--arch vgg19_orig --pretrained", "--pretrained"),
    Row("compute", "--arch vgg11 --pretrained --load-from lenet_2.tar", "--pretrained"),
    Row("compute", "--arch mlp", "--with-linear", "network"),
    Row("compute", "--arch mlp_bn --load-from lenet_2.tar", "--with-linear", "network"),
    Row("reinit", "", "--load-from"),
    Row("reinit", "--rand", "--load-from"),
    Row("reinit", "--load-from lenet_2.tar", "--inits-from"),
    Row("reinit", "--load-from lenet_2.tar --with-linear --seed 1", "--rand"),
    Row("reinit", f"{TRAINED} --upscale --upscale-padding", "--upscale", "snapshot"),
    Row("reinit", f"{TRAINED} lenet_0.tar", "lenet_0.tar"),
    Row("reinit", f"{TRAINED} --mean 0.5 0.5 --std 0.5 0.5", "--mean", "snapshot"),
    Row("reinit", f"{TRAINED} --std 0.5", "--mean", "snapshot"),
    Row("reinit", f"{TRAINED} --mean 0.5 --std 0.5 --unnormalize", "--unnormalize", "snapshot"),
    Row("reinit", "--arch mlp --load-from mlp_3.pt --rand", "--with-linear", "snapshot network data"),
    # What the dataset cannot give
    Row("train", "--arch vgg11", "--upscale", "network"),  # 28x28 pixels vanish in it
    Row("train", "--arch alexnet", "--upscale", "network"),
    Row("train", "--arch alexnet --dataset cifar10", "--upscale", "network"),
    Row("train", "--dataset cifar10 --subsample-classes 11", "--subsample-classes 11"),
    Row("train", "--dataset cifar100 --subsample-classes 101 --class-sample-seed 1", "--subsample-classes 101"),
    Row("train", "--split 0.0001", "--split 0.0001", "network data"),
    Row("train", "--split 0.9 --stratified --subsample-classes 1 --batch-size 0", "--batch-size"),
    Row("train", "--arch mlp_bn --batch-size 3999", "--batch-size 3999", "network data"),  # one image is left over
    Row("train", "--arch mlp_bn --batch-size 1", "--batch-size 1", "network data"),
    Row("train", "--dataset imagenet --data-path nowhere", "--data-path", "network data"),
    Row("train", "--dataset imagenet --data-path folder", "--data-path", "network data"),
    Row("compute", "--dataset cifar100 --subsample-classes 101", "--subsample-classes 101"),
    Row("train", "--tf32", "--tf32", "network data"),
    Row("reinit", f"{TRAINED} --tf32", "--tf32", "snapshot"),
    Row("compute", "--dataset mnist --subsample-classes 11 --load-from lenet_2.tar", "--subsample-classes 11"),
    Row("reinit", f"{TRAINED} --subsample-classes 11", "--subsample-classes 11", "snapshot"),
    Row("reinit", f"--arch vgg11 {TRAINED}", "--upscale", "snapshot network"),
    # Snapshots of other networks and other runs
    Row("train", "--arch resnet18 --resume-from lenet_2.tar", "conv1.weight is missing", "snapshot network data"),
    Row("train", "--subsample-classes 3 --resume-from lenet_2.tar", "is 10x84, not 3x84", "snapshot network data"),
    Row("train", "--dataset cifar10 --arch lenet --resume-from recorded.tar", "--dataset cifar10", "snapshot"),
    *(Row("train", f"--resume-from recorded.tar --epochs 9 {use}", f"{use}: recorded.tar", "snapshot") for use in (
        "--arch mlp", "--subsample-classes 3", "--class-sample-seed 2", "--noise 0.3", "--noise-seed 2",
        "--split 0.2", "--split-seed 2", "--seed 2", "--optimizer adam", "--batch-size 64", "--start-epoch 5",
    )),
    *(Row("train", f"--resume-from recorded.tar {flag}", f"{flag}: recorded.tar", "snapshot") for flag in (
        "--upscale", "--upscale-padding", "--augmentation", "--unnormalize", "--stratified",
    )),
    Row("train", "--arch resnet18 --resume-from recorded.tar --pretrained", "--arch resnet18", "snapshot"),
    Row("compute", "--arch resnet18 --load-from lenet_2.tar", "conv1.weight", "snapshot network"),
    Row("compute", "--arch mlp --with-linear --load-from recorded.tar", "--arch mlp", "snapshot network"),
    Row("compute", "--dataset mnist --load-from recorded.tar", "--dataset mnist", "snapshot network"),
    Row("compute", "--dataset cifar10 --load-from lenet_2.tar", "features.0", "snapshot network"),
    Row("compute", "--subsample-classes 3 --load-from lenet_2.tar", "classifier.6.weight is 10x84, not 3x84",
        "snapshot network"),
    Row("compute", "--subsample-classes 3 --load-from recorded.tar", "--subsample-classes 3", "snapshot network"),
    Row("compute", "--seed 2 --load-from recorded.tar", "--seed 2", "snapshot network"),
    Row("compute", "--load-from lenet_2.tar mlp_3.pt", "mlp_3.pt", "snapshot network"),
    Row("compute", "--load-from lenet_2.tar --init-from mlp_3.pt", "mlp_3.pt", "snapshot network"),
    Row("reinit", f"--arch resnet18 {TRAINED}", "conv1.weight is missing",
        "snapshot network data"),
    Row("reinit", f"{TRAINED} --subsample-classes 3", "classifier.6.weight", "snapshot network data"),
    *(Row("reinit", f"--rand --load-from recorded.tar {use}", f"{at}: recorded.tar", "snapshot") for use, at in (
        ("--arch mlp", "--arch mlp"), ("--dataset mnist", "--dataset mnist"), ("--seed 2", "--seed 2"),
        ("--subsample-classes 3", "--subsample-classes 3"), ("--class-sample-seed 2", "--class-sample-seed 2"),
        ("--upscale", "--upscale"), ("--upscale-padding", "--upscale-padding"), ("--unnormalize", "--unnormalize"),
        ("--mean 0.5 --std 0.5", "--mean, --std"), ("--mean 0.286", "--mean, --std"),
    )),
    Row("reinit", "--load-from lenet_2.tar --inits-from list:mlp_3.pt", "mlp_3.pt", "snapshot network data"),
    Row("reinit", "--load-from lenet_2.tar --inits-from list:unnumbered.pt", "unnumbered.pt",
        "snapshot network data"),
    Row("reinit", "--load-from lenet_2.tar --inits-from results.json --rand", "results.json"),
    Row("compute", "--load-from lenet_2.tar lenet_0.tar --epoch 3", "--epoch 3"),
    Row("compute", "--load-from recorded.tar --epoch 4", "recorded.tar is after 3 epochs", "snapshot network"),
    *(Row(program, f"--weights-key modle {option} lenet_2.tar", "modle: lenet_2.tar", "snapshot network")
      for program, option in (
        ("compute", "--load-from"), ("reinit", "--rand --load-from"), ("train", "--resume-from"),
    )),
    # Two inputs that would write one file
    Row("compute", "--load-from lenet_2.tar --load-from runs/lenet_2.tar",
        "lenet_2.tar and runs/lenet_2.tar would both write results/", "snapshot network"),
    Row("compute", "--load-from lenet_2.tar nowhere.tar", "nowhere.tar"),
    Row("compute", "--load-from lenet_2.tar --load-from nowhere.tar", "nowhere.tar"),
    Row("compute", "--load-from nowhere.tar --load-from lenet_2.tar", "nowhere.tar"),
]  # fmt: skip


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> Path:
    """A folder with snapshots, and with what is none."""
    folder = tmp_path_factory.mktemp("things")
    for name in ("lenet_init_0.pt", "lenet_0.tar", "lenet_2.tar"):
        (folder / name).write_bytes((REFERENCE / name).read_bytes())
    (folder / "unnumbered.pt").write_bytes((REFERENCE / "lenet_init_0.pt").read_bytes())
    (folder / "runs").mkdir()
    (folder / "runs/lenet_2.tar").write_bytes((REFERENCE / "lenet_2.tar").read_bytes())
    state = torch.load(REFERENCE / "lenet_2.tar", weights_only=True)
    torch.save(state["model_state_dict"], folder / "lenet_2.pt")
    torch.save({**state, "config": RECORDED}, folder / "recorded.tar")
    with torch.device("meta"):
        mlp = models.build("mlp", 10, 1, (28, 28)).state_dict()
    torch.save({name: torch.zeros(1).expand(weight.shape) for name, weight in mlp.items()}, folder / "mlp_3.pt")
    (folder / "folder").mkdir()
    (folder / "empty").touch()
    (folder / "text.txt").write_text(
        "It is a truth universally acknowledged,\nthat a single man must want a wife.\n"
    )
    (folder / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)) * 4)
    (folder / "results.json").write_text(json.dumps({"projections": [0.5] * 2000}))
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("link")
    return folder


@pytest.fixture
def what_is_read(monkeypatch) -> set[str]:
    read = set()

    def watch(module, function: str, what: str) -> None:
        original = getattr(module, function)

        def watched(*args, **kwargs):
            if torch.get_default_device().type != "meta":  # there only shapes are computed
                read.add(what)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, function, watched)

    watch(data, "load", "data")
    watch(snapshots, "load", "snapshot")
    watch(models, "build", "network")
    return read


@pytest.mark.parametrize("row", list(wrong_uses()), ids=lambda row: f"{row.program} {row.options.strip()[:80]}")
def test_wrong_use_is_named_before_anything_is_read_or_written(
    row, things, what_is_read, monkeypatch, capsys, tmp_path, count
):
    monkeypatch.chdir(things)
    options = shlex.split(row.options)
    if options and options[-1].startswith("list:"):
        (tmp_path / "inits.txt").write_text(options[-1].removeprefix("list:") + "\n")
        options[-1] = str(tmp_path / "inits.txt")
    before = files_below(Path())
    line = refused(PROGRAMS[row.program], capsys, *LENET.split(), *options)
    assert row.named in line
    assert what_is_read <= set(row.reads.split())
    assert files_below(Path()) == before
    count("bad command lines caught")


def test_tilde_in_a_path_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    common = (*LENET.split(), "--seed", 1, "--subsample-classes", 2)
    folders = ("--models-path=~/m", "--tb-logdir=~/b", "--data-path=~/d", "--log=~/l/all.log")
    assert run_main(train, *common, *folders, "--epochs", 0) == 0
    run = "m/fashion_mnist_mini_2/lenet/1"
    assert run_main(train, *common, *folders, "--evaluate", "--resume-from", f"~/{run}/lenet_init_0.pt") == 0
    one = (*common, "--load-from", f"~/{run}/lenet_init_0.pt", "--results=~/r", "--log=~/l/all.log")
    assert run_main(compute_projections, *one, f"--init-from=~/{run}/lenet_init_0.pt") == 0
    Path("home/inits.txt").write_text(f"~/{run}/lenet_init_0.pt\n")
    assert run_main(reinit_layers, *one, "--inits-from=~/inits.txt", "--plots=~/p") == 0
    assert [path.name for path in Path().iterdir()] == ["home"]
    results = {f"r/fashion_mnist_mini_2/lenet/1/{name}lenet_init_0.json" for name in ("", "reinit_")}
    assert {f"{run}/lenet_init_0.pt", "l/all.log", *results} <= files_below(Path("home"))
    log = Path("home/l/all.log").read_text()
    for line in ("initial weights: ", "test set: ", "network  ", "trained network: "):  # one command after another
        assert line in log


ALL_OPTIONS = (
    "--data-path . --class-sample-seed 1 --noise-seed 1 --augmentation --unnormalize --split 0.5 --stratified "
    "--split-seed 1 --shuffle -j 2 --batch-size 64 --optimizer sgd --lr 0.01 --lr-step 1 --lr-decay 0.5 "
    "--weight-decay 0.001 --momentum 0.5 --kill-plateaus --models-path . --snapshot-every 1 "
    "--snapshot-all-until 1 --train-acc --tb-logdir . --log all.log --seed 1 --subsample-classes 2 --noise 0.1"
)
ALWAYS = "--data-path --workers "  # with a dataset that comes with the repository and is kept in memory
OF_TRAINING = (
    "--augmentation --optimizer --lr --lr-step --lr-decay --momentum --kill-plateaus --snapshot-every "
    "--snapshot-all-until --train-acc --tb-logdir "
)
OF_IMAGES = (
    "--class-sample-seed --noise-seed --split --stratified --split-seed --shuffle --unnormalize --batch-size "
)
NO_TRAINING = f"{OF_TRAINING} --models-path --epochs --start-epoch "
RESUMED = "--resume-from lenet_2.tar"


@pytest.mark.parametrize(
    ("program", "options", "without_effect"),
    [
        # Every option at once, in every mode: exactly these are of no effect
        ("train", f"{ALL_OPTIONS} --epochs 1", ALWAYS),
        ("train", f"{ALL_OPTIONS} --epochs 1 --resume-from latest", ALWAYS),
        ("train", f"{ALL_OPTIONS} --epochs 0", f"{ALWAYS} {OF_TRAINING} {OF_IMAGES} --weight-decay"),
        ("train", f"{ALL_OPTIONS} --epochs 0 --resume-from latest", ALWAYS),
        (
            "train",
            f"{ALL_OPTIONS} --epochs 3 --start-epoch 2 --evaluate",
            f"{ALWAYS} {NO_TRAINING} --weight-decay --noise --noise-seed",
        ),
        (
            "train",
            f"{ALL_OPTIONS} --epochs 3 --start-epoch 2 --evaluate-train",
            f"{ALWAYS} {NO_TRAINING} --weight-decay",
        ),
        (
            "train",
            f"{ALL_OPTIONS} --epochs 3 --start-epoch 2 --eval-regularization-loss",
            f"{ALWAYS} {NO_TRAINING} {OF_IMAGES} --noise",
        ),
        # What has an effect only beside another option
        ("train", "--epochs 1 --seed 1 --subsample-classes 2 --shuffle", ""),
        ("train", "--epochs 1 --subsample-classes 2 --class-sample-seed 1 --split 0.5", ""),
        ("train", "--epochs 1 --split 0.9 --shuffle --optimizer adam --momentum 0.5", "--momentum"),
        ("train", "--epochs 1 --split 0.9 --split-seed 1", "--split-seed"),
        ("train", "--epochs 1 --subsample-classes 1 --shuffle --split-seed 1", "--split-seed"),
        ("train", "--epochs 1 --subsample-classes 1 --class-sample-seed 1 --noise-seed 1 --override",
         "--noise-seed --override"),
        ("train", "--epochs 0 --class-sample-seed 1", "--class-sample-seed"),
        ("train", "--epochs 0 --seed 1 --upscale --noise 0.1", ""),
        ("train", "--evaluate --seed 1 --split 0.1 --stratified --shuffle --split-seed 1 --unnormalize", ""),
        ("train", "--evaluate --shuffle", "--shuffle"),
        ("train", "--evaluate --weights-key model", "--weights-key"),
        ("train", "--evaluate-train --shuffle --noise 0.1 --noise-seed 1 --batch-size 500", "--shuffle"),
        ("train", f"{RESUMED} --epochs 4 --split 0.9", ""),
        ("train", f"{RESUMED} --epochs 4 --split 0.9 --lr 0.05 --kill-plateaus", ""),
        ("train", f"{RESUMED} --epochs 4 --split 0.9 --lr 0.5", "--lr"),
        ("train", f"{RESUMED} --epochs 4 --split 0.9 --lr 0.5 --override", ""),
        ("train", "--resume-from lenet_2.pt --epochs 1 --split 0.9 --override", "--override"),
        ("train", f"{RESUMED} --evaluate --epochs 4 --augmentation", "--epochs --augmentation"),
        ("train", f"{RESUMED} --eval-regularization-loss --weight-decay 0.5 --split 0.1", "--split"),
        ("compute", "--seed 1 --with-linear --normalize --init-from lenet_2.tar --plots .", ""),
        ("compute", "--load-from recorded.tar --seed 1 --subsample-classes 10 --init-from lenet_init_0.pt", ""),
        ("reinit", f"{TRAINED} --seed 1 --batch-size 500", ""),
        ("reinit", f"{TRAINED} -j 3 --data-path .", ALWAYS),
        ("reinit", f"{TRAINED} --class-sample-seed 1", "--class-sample-seed"),
        ("train", "--seed 1 --epochs 0 --cuda --tf32 --deterministic --lr-step 0 --lr-decay 0",
         "--tf32 --deterministic --lr-step --lr-decay"),
        ("train", "--seed 1 --epochs 1 --subsample-classes 2 --lr-step 0 --lr-decay 0", ""),
        ("reinit", "--load-from recorded.tar --rand --class-sample-seed 1 --subsample-classes 10 --seed 1", ""),
    ],
    ids=lambda value: value.strip()[:60],
)  # fmt: skip
def test_options_without_effect_are_warned_about_and_no_others(
    program, options, without_effect, things, tmp_path, capsys, count
):
    for name in files_below(things):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(things / name)
    assert run_main(PROGRAMS[program], *LENET.split(), *shlex.split(options)) == 0
    warned = re.findall(r"^warning: (\S+) .*has no effect", capsys.readouterr().err, re.M)
    assert sorted(warned) == sorted(without_effect.split())
    count("options without effect warned about", len(warned))


@pytest.mark.parametrize(
    ("program", "options"),
    [("train", "--epochs 1 --subsample-classes 2 --seed 1"), ("compute", "--seed 1")],
)
def test_without_a_gpu_the_cpu_computes_and_the_first_and_the_last_line_say_so(program, options, capsys):
    assert run_main(PROGRAMS[program], *LENET.split(), *options.split(), "--cuda") == 0
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == last
    assert re.match(r"warning: --cuda: .*PyTorch", first)
    (record,) = [*Path("models").rglob("run.json"), *Path("results").rglob("*.json")]
    provenance = json.loads(record.read_text())["provenance"]
    assert provenance["device"].startswith("CPU")
    assert provenance["arguments"]["cuda"] is False
