"""Several processes under torchrun: the same training as in one, and one voice when something is wrong.

Most tests fork the ranks, which have the environment that torchrun gives them: so they need not import torch anew.
"""

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from programs import REFERENCE, ROOT, command, files_below, run_main, same, state_of_files, weights
from torch import nn

import compute_projections
import data
import models.registry
import reinit_layers
import train
from core.seeds import derive
from data.subsets import batch_slices
from utils import snapshots
from utils.process import distributed
from utils.process import ending as program
from utils.runs import resume
from utils.runs.configuration import configuration, difference
from utils.training.step import Forward, train_batch

LENET = ("--arch", "lenet", "--dataset", "fashion_mnist_mini")
#: 813 images in batches of 58: the last one holds a single image, and rank 0 of two has none of it.
UNEVEN = (*LENET, "--subsample-classes", 2, "--lr", 0.005, "--seed", 1, "--batch-size", 58, "--snapshot-every", 1)
UNEVEN = (*UNEVEN, "--shuffle", "--augmentation")
FOLDER = "fashion_mnist_mini_2/lenet/1"


class Ended(NamedTuple):
    status: int  #: negative: the signal that ended it
    out: str
    err: str


class Ranks:
    """Forked processes, each of which calls a function as a rank of a group; its result is the exit status."""

    def __init__(self, function: Callable[[], int], size: int):
        self.store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.pids = [self._start(function, rank, size) for rank in range(size)]

    def _start(self, function, rank: int, size: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            for stream, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(f".{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port)}
            os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
            distributed.RANK = distributed.LOCAL_RANK = rank
            distributed.WORLD_SIZE = size
            status = function()
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def wait(self, timeout: float = 120) -> list[Ended]:
        statuses = []
        deadline = time.monotonic() + timeout
        for pid in self.pids:
            ended = 0
            while not ended and time.monotonic() < deadline:
                ended, status = os.waitpid(pid, os.WNOHANG)
                time.sleep(0.01)
            if not ended:
                os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
            statuses.append(os.waitstatus_to_exitcode(status))
        return [
            Ended(status, Path(f".{rank}.out").read_text(), Path(f".{rank}.err").read_text())
            for rank, status in enumerate(statuses)
        ]


def on_ranks(module, *options, size: int = 2) -> list[Ended]:
    """Run a program as torchrun does."""
    return Ranks(lambda: run_main(module, *options), size).wait()


def torchrun_command(program: str, *options, restarts: int = 0) -> list[str]:
    """The command line of a program in two processes under the real torchrun."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", restarts)
    python, *arguments = command(program, *options)
    return [python, *map(str, torchrun), *arguments]


def told(ended: Ended) -> list[str]:
    """The lines on standard error that are no warnings."""
    return [line for line in ended.err.splitlines() if not line.startswith("warning: ")]


# The same training


def test_shares_of_every_batch_make_it_up_in_order():
    for n, batch_size, ranks in ((10, 4, 3), (9, 4, 3), (5, 8, 2), (813, 58, 4), (3, 2, 5)):
        shares = [batch_slices(n, batch_size, (rank, ranks)) for rank in range(ranks)]
        order = list(range(n))
        for number, parts in enumerate(zip(*shares, strict=True)):
            batch = order[number * batch_size : (number + 1) * batch_size]
            assert [index for part in parts for index in order[part]] == batch
            sizes = [part.stop - part.start for part in parts]
            assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    "options",
    [
        {"augmentation": True, "shuffle": True},
        {"noise": -1, "noise_seed": 3},
        {"noise": -1, "noise_seed": 3, "upscale_padding": True, "subsample_classes": 1, "split": 0.96},
    ],
    ids=str,
)
def test_ranks_see_their_share_of_the_very_batches_that_one_process_sees(options):
    # The last batch holds fewer images than there are ranks.
    batch_size = 7 if "split" in options else 1999
    whole, *shares = (
        data.load("fashion_mnist_mini", "", batch_size, share=share, **options).train
        for share in ((0, 1), (0, 3), (1, 3), (2, 3))
    )
    shares[1].batches_at_once = 2  # as on a GPU
    for _ in range(2):  # epochs
        assert len(whole) == len(shares[0]) == 3
        for (images, labels), *parts in zip(whole, *shares, strict=True):
            assert torch.equal(torch.cat([part[0] for part in parts]), images)
            assert torch.equal(torch.cat([part[1] for part in parts]), labels)


def test_rank_decodes_only_its_share_of_a_folder_and_may_have_no_image():
    from PIL import Image

    for part in ("train", "val"):
        for name in ("apple", "pear"):
            Path(part, name).mkdir(parents=True)
            for index in range(2):
                Image.effect_noise((40, 50), 100).save(f"{part}/{name}/{index}.png")
    shares = [data.load("imagenet", ".", 3, workers=0, share=(rank, 2)).train for rank in range(2)]
    assert [len(labels) for _, labels in shares[0]] == [1, 0]
    assert [images.shape for images, _ in shares[0]] == [(1, 3, 224, 224), (0, 3, 224, 224)]
    Path("train/apple/0.png").write_bytes(b"")  # of rank 0
    assert [len(labels) for _, labels in shares[1]] == [2, 1]
    with pytest.raises(data.ImageError, match=r"apple/0\.png"):
        list(shares[0])


def test_two_ranks_train_as_one_process_and_either_continues_the_other(monkeypatch):
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x)  # its random numbers are each rank's own
    assert run_main(train, *UNEVEN, "--epochs", 3, "--models-path", "whole") == 0
    parts = (*UNEVEN, "--models-path", "parts", "--resume-from", "latest")
    assert run_main(train, *parts, "--epochs", 1) == 0
    first, second = on_ranks(train, *parts, "--epochs", 2)
    assert (first.status, first.err, second) == (0, "", (0, "", "")), (first, second)
    assert "2 processes, each with its share of every batch" in first.out
    assert run_main(train, *parts, "--epochs", 3) == 0

    whole, parts = (
        [torch.load(f"{run}/{FOLDER}/lenet_{epoch}.tar", weights_only=True) for epoch in range(3)]
        for run in ("whole", "parts")
    )
    losses = [dict(re.findall(r"epoch (\d) .*: loss ([\d.]+)", text)) for text in _logs_of("whole", "parts")]
    for epoch in "012":
        assert float(losses[0][epoch]) == pytest.approx(float(losses[1][epoch]), abs=2e-4)
    for epoch in range(3):
        assert whole[epoch]["config"] == parts[epoch]["config"]
        for key in ("top1_acc", "top1_acc_train_running"):
            assert whole[epoch][key] == pytest.approx(parts[epoch][key], abs=0.3), epoch
    step = {
        name: (whole[2]["model_state_dict"][name] - weight).norm()
        for name, weight in whole[0]["model_state_dict"].items()
    }
    for name, weight in whole[2]["model_state_dict"].items():
        assert (weight - parts[2]["model_state_dict"][name]).norm() < 1e-3 * step[name], name


def _logs_of(*runs: str) -> list[str]:
    """What each run has logged, in all its processes."""
    logs = [log.read_text() for log in Path("log", FOLDER).iterdir()]
    return ["".join(log for log in logs if f" {run}/{FOLDER}/" in log) for run in runs]


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler")
def test_compiled_ranks_of_which_one_has_no_image_of_the_last_batch():
    finished = subprocess.run(
        torchrun_command("train.py", *UNEVEN, "--epochs", 2, "--compile"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    assert re.search(r"^epoch 1 .*: loss 0\.", finished.stdout, re.M), finished.stdout


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler")
def test_compiled_ranks_train_as_ranks_that_are_not():
    options = (*LENET, "--subsample-classes", 2, "--lr", 0.02, "--seed", 1, "--batch-size", 900, "--epochs", 2)
    assert [ended.status for ended in on_ranks(train, *options, "--models-path", "plain")] == [0, 0]
    torchrun = torchrun_command(
        "train.py", *options, "--models-path", "compiled", "--tb-logdir", "board", "--compile"
    )
    finished = subprocess.run(torchrun, capture_output=True, text=True, timeout=300)
    assert (finished.returncode, finished.stderr) == (0, ""), finished.stderr
    plain, compiled = (weights(f"{run}/{FOLDER}/lenet_2.pt") for run in ("plain", "compiled"))
    for name, weight in compiled.items():
        torch.testing.assert_close(weight, plain[name], atol=1e-6, rtol=1e-4)
    assert not same(compiled, plain)  # which shows that something was compiled


GROUP_OF_ONE = """
import argparse, json, sys
import torch
import data, models, train
from utils.process import devices, distributed
from utils.training import optimizers

arch, amp, device = sys.argv[1], sys.argv[2] == "amp", torch.device(sys.argv[3])
precision.set_precision(device)
layout = precision.memory_format(device, amp)
batches = list(data.load("fashion_mnist_mini", "", 128, device=device, shuffle=True, memory_format=layout).train)

def losses(lr, compiled=False):
    torch.manual_seed(0)
    net = models.build(arch, 10, 1, (28, 28)).to(device, memory_format=layout).train()
    if amp:
        precision.use_bfloat16(net, device)
    hyperparameters = argparse.Namespace(optimizer="sgd", lr=lr, momentum=0.9, weight_decay=0)
    step = train.make_step(net, optimizers.make_optimizer(net, hyperparameters), compiled)
    torch.manual_seed(1)
    return [step(*batch, 128)[0].item() for batch in batches[:6]]

alone = losses(1e-3)
backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
distributed.WORLD_SIZE = 2
print(json.dumps([alone, losses(1e-3 / 2), losses(1e-3 / 2, compiled=True)]))
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("arch", "precision", "device"),
    [
        ("lenet", None, "cpu"),
        pytest.param("lenet", None, "cuda", marks=pytest.mark.cuda),
        pytest.param("resnet18", None, "cuda", marks=pytest.mark.cuda),
        pytest.param("resnet18", "amp", "cuda", marks=pytest.mark.cuda),
    ],
)
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler")
def test_group_of_one_trains_as_one_process_without_also_when_it_is_compiled(arch, precision, device):
    """NCCL wants a GPU for each process: so this is one, and takes the ways of several as WORLD_SIZE says two.

    Losses and gradients are doubled by it, which half of the learning rate undoes.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    script = [sys.executable, "-c", GROUP_OF_ONE, arch, str(precision), device]
    ended = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    alone, group, compiled = json.loads(ended.stdout)
    tolerance = 1e-3 if arch == "lenet" else 0.06  # small differences grow fast in ResNet-18
    assert [loss / 2 for loss in group] == pytest.approx(alone, rel=tolerance)
    assert [loss / 2 for loss in compiled] == pytest.approx(alone, rel=tolerance)


def test_network_with_a_parameter_that_it_does_not_use_is_one_line(monkeypatch):
    class WithSpare(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.spare, self.fc = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3), nn.Linear(4, 10)

        def forward(self, images):
            return self.fc(self.first(images).relu().mean([2, 3]))

    monkeypatch.setitem(models.registry._builders, "spare", lambda *arguments: WithSpare())
    ranks = on_ranks(train, "--arch", "spare", "--dataset", "fashion_mnist_mini", "--seed", 1)
    (line,) = "".join(ended.err for ended in ranks).splitlines()
    assert [ended.status for ended in ranks] == [1, 1]
    assert "parameters of the network have no bearing on its output" in line


def test_dropout_of_rank_0_is_that_of_one_process_and_others_have_their_own(monkeypatch):
    def record(*arguments):
        Path(f"dropout_{distributed.RANK}").write_text(str(torch.initial_seed()))
        raise program.RunError("seen enough")

    monkeypatch.setattr(train, "train_epoch", record)
    on_ranks(train, *UNEVEN, "--epochs", 1)
    assert Path("dropout_0").read_text() == str(derive(1, "dropout", 0))
    assert Path("dropout_1").read_text() == str(derive(1, "dropout", 0, 1))


def test_running_statistics_of_batch_norm_are_the_mean_over_ranks():
    """Also where a rank has no image of the last batch, which leaves its statistics as they are."""
    images = torch.arange(18.0).square().view(9, 1, 2, 1)

    class Batches:
        batch_size, num_images = 8, 9

        def __len__(self):
            return 2

        def __iter__(self):
            for part in batch_slices(9, 8, (distributed.RANK, 2)):
                yield images[part], torch.zeros(len(images[part]), dtype=torch.long)

    def train_an_epoch() -> int:
        net = nn.Sequential(nn.BatchNorm2d(1, momentum=0.5), nn.Flatten(), nn.Linear(2, 2))
        with distributed.group(torch.device("cpu")):
            optimizer = torch.optim.SGD(net.parameters(), lr=0)
            step = functools.partial(train_batch, Forward(net), optimizer)
            train.train_epoch(step, net, Batches(), 0)
        torch.save(net[0].running_mean, f"mean_{distributed.RANK}.pt")
        return 0

    assert Ranks(train_an_epoch, 2).wait() == [(0, "", "")] * 2
    of_rank_0 = images[:4].mean() / 2
    of_rank_1 = images[4:8].mean() / 4 + images[8].mean() / 2
    for rank in range(2):
        assert torch.load(f"mean_{rank}.pt").item() == pytest.approx((of_rank_0 + of_rank_1).item() / 2)


def test_evaluation_counts_every_image_once(capsys):
    options = (*LENET, "--resume-from", REFERENCE / "lenet_2.tar", "--evaluate", "--batch-size", 37)
    assert run_main(train, *options) == 0
    one = re.search(r"test set: loss .*", capsys.readouterr().out)[0]
    first, *others = on_ranks(train, *options, size=3)
    assert (first.status, re.search(r"test set: loss .*", first.out)[0]) == (0, one)
    assert others == [(0, "", "")] * 2


def test_result_of_resetting_layers_is_that_of_one_process():
    Path("inits.txt").write_text(f"{REFERENCE / 'lenet_init_0.pt'}\n")
    options = (
        *LENET,
        "--seed",
        1,
        "--rand",
        "--load-from",
        REFERENCE / "lenet_2.tar",
        "--inits-from",
        "inits.txt",
    )
    assert run_main(reinit_layers, *options, "--results", "one") == 0
    before = files_below(Path())
    first, *others = on_ranks(reinit_layers, *options, "--results", "three", "--plots", "three", size=3)
    assert first.status == 0
    assert others == [(0, "", "")] * 2
    name = "fashion_mnist_mini/lenet/1/reinit_lenet_2.json"
    assert Path("three", name).read_text() == Path("one", name).read_text()
    assert len([path for path in files_below(Path()) - before if path.endswith(".log")]) == 1


# Sync-BN


def test_snapshot_of_before_there_was_sync_bn_is_one_without(capsys):
    snapshot = REFERENCE / "format2/lenet_0.tar"
    config = snapshots.load(snapshot)["config"]
    assert "sync_bn" not in config
    assert difference({**config, "sync_bn": False}, config) == ""
    assert difference({**config, "sync_bn": True}, config) == "--sync-bn False, not True"
    folder = Path("models/fashion_mnist_mini_2/noise_20/lenet/1")
    folder.mkdir(parents=True)
    shutil.copy(snapshot, folder)
    options = ["--resume-from", "latest", "--epochs", 2]
    for name in ("subsample_classes", "class_sample_seed", "noise", "noise_seed", "split", "split_seed", "seed"):
        options += [f"--{name.replace('_', '-')}", config[name]]
    options += [
        "--shuffle",
        "--lr",
        config["lr"],
        "--lr-step",
        config["lr_step"],
        "--lr-decay",
        config["lr_decay"],
    ]
    assert run_main(train, *LENET, *options) == 0
    assert f"weights from {folder}/lenet_0.tar" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arch", "recorded", "why"),
    [("mlp_bn", True, "in one process"), ("resnet18", True, "in one process"), ("vgg11", False, "with vgg11")],
)
def test_sync_bn_is_recorded_where_there_is_batch_norm_and_has_no_effect_in_one_process(arch, recorded, why):
    args = train.parse_arguments(["--arch", arch, "--dataset", "cifar10", "--sync-bn"])
    start = resume.find_start(args, training=True)
    assert configuration(args)["sync_bn"] is recorded
    (warning,) = train.check_arguments(args, True, start)
    assert warning.startswith(f"--sync-bn has no effect {why}")


def test_sync_bn_is_refused_where_pytorch_has_none():
    first, second = on_ranks(train, "--arch", "mlp_bn", "--dataset", "fashion_mnist_mini", "--sync-bn")
    assert (first.status, second) == (2, (2, "", ""))
    assert first.err == "train.py: error: --sync-bn: PyTorch has it on GPUs only; give --cuda too\n"


# One voice


def test_what_all_ranks_find_wrong_is_said_once():
    missing = ("--arch", "lenet", "--dataset", "imagenet", "--data-path", "nowhere")
    first, second = on_ranks(train, *missing)
    (line,) = first.err.splitlines()
    assert line.startswith("train.py: error: --data-path: nowhere")
    assert (first.status, second) == (2, (2, "", ""))
    first, second = on_ranks(train, *LENET, "--lr", 0)
    (line,) = first.err.splitlines()
    assert "--lr" in line
    assert (first.status, second) == (2, (2, "", ""))
    first, second = on_ranks(train, *UNEVEN, "--lr", 1e20)
    (line,) = first.err.splitlines()
    assert "the loss is nan in epoch 0" in line
    assert (first.status, second) == (1, (1, "", ""))


def test_what_rank_0_alone_finds_wrong_ends_the_others_with_its_status():
    assert run_main(train, *UNEVEN, "--epochs", 1) == 0
    before = state_of_files(Path())
    first, second = on_ranks(train, *UNEVEN, "--epochs", 1, "--weight-decay", 0.5)
    (line,) = first.err.splitlines()
    assert re.match("train.py: error: models/.* would be overwritten", line)
    assert (first.status, second) == (2, (2, "", ""))
    after = state_of_files(Path())
    assert after.keys() - before.keys() <= {".0.out", ".0.err", ".1.out", ".1.err"}
    assert {name: after.get(name) for name in before} == before


def test_what_another_rank_alone_finds_wrong_is_said_with_its_number():
    from PIL import Image

    for part in ("train", "val"):
        for name in ("apple", "pear"):
            Path(part, name).mkdir(parents=True)
            Image.effect_noise((40, 50), 100).save(f"{part}/{name}/0.png")
    Path("train/pear/0.png").write_bytes(b"no image")
    options = ("--arch", "lenet", "--dataset", "imagenet", "--data-path", ".", "-j", 0, "--batch-size", 2)
    began = time.monotonic()
    first, second = on_ranks(train, *options, "--seed", 1)
    assert time.monotonic() - began < 30
    (line,) = told(second)
    assert re.match(r"train\.py: failed: rank 1: \S*train/pear/0\.png cannot be read", line)
    assert (first.status, told(first), second.status) == (1, [], 1)


@pytest.mark.parametrize("variables", [("abc", "0", "0"), ("2", "5", "0"), ("2", "-1", "0")])
def test_variables_that_torchrun_does_not_set_are_refused(variables):
    environment = {**os.environ, **dict(zip(("WORLD_SIZE", "RANK", "LOCAL_RANK"), variables, strict=True))}
    line = command("train.py", "--arch", "lenet", "--dataset", "mnist")
    finished = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert re.fullmatch(r"error: not as torchrun sets them: RANK=.*\n", finished.stderr)


def test_measuring_is_refused_in_several_processes():
    first, second = on_ranks(compute_projections, "--arch", "lenet", "--dataset", "mnist", "--seed", 1)
    assert (first.status, second) == (2, (2, "", ""))
    assert first.err.startswith("compute_projections.py: error: torchrun: ")
    assert len(first.err.splitlines()) == 1


@program.exit_status
def wait_for_ever(argv=None) -> int:
    with distributed.group(torch.device("cpu")):
        Path(f"in_group_{distributed.RANK}").touch()
        if distributed.RANK == 1:
            time.sleep(600)
        distributed.sum_(torch.zeros(1))
    return 0


def test_rank_that_waits_for_another_ends_at_once_when_it_is_terminated():
    ranks = Ranks(wait_for_ever, 2)
    while not Path("in_group_0").exists() or not Path("in_group_1").exists():
        time.sleep(0.01)
    time.sleep(0.5)
    began = time.monotonic()
    for pid in ranks.pids:
        os.kill(pid, signal.SIGTERM)
    assert [ended.status for ended in ranks.wait(20)] == [-signal.SIGTERM] * 2
    assert time.monotonic() - began < 5


def test_rank_whose_neighbour_was_killed_says_so_in_one_line():
    ranks = Ranks(wait_for_ever, 2)
    while not Path("in_group_0").exists() or not Path("in_group_1").exists():
        time.sleep(0.01)
    os.kill(ranks.pids[1], signal.SIGKILL)
    first, second = ranks.wait(20)
    (line,) = first.err.splitlines()
    assert line.startswith(
        "test_distributed.py: failed: the processes of this run cannot go on together: is one gone? ("
    )
    assert (first.status, second.status) == (1, -signal.SIGKILL)


def test_two_nodes_train_as_two_ranks_of_one():
    """Two torchrun that find one another, each in a folder of its own, as on two machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = ("--nnodes", 2, "--nproc-per-node", 1, "--rdzv-backend", "c10d", "--rdzv-id", 1)
    torchrun = ("-m", "torch.distributed.run", *nodes, "--rdzv-endpoint", f"localhost:{port}")
    python, *arguments = command("train.py", *UNEVEN, "--epochs", 2)
    started = []
    for name in ("first", "second"):
        Path(name).mkdir()
        line = [python, *map(str, torchrun), *arguments]
        started.append(subprocess.Popen(line, cwd=name, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    try:
        told = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], told
    written = {name: files_below(Path(name)) for name in ("first", "second")}
    main, other = sorted(written, key=lambda name: -len(written[name]))
    assert written[other] == set()
    on_ranks(train, *UNEVEN, "--epochs", 2)
    assert same(weights(f"{main}/models/{FOLDER}/lenet_2.pt"), weights(f"models/{FOLDER}/lenet_2.pt"))


def test_ranks_that_are_done_do_not_wait_for_python_to_end():
    """In which threads of gloo abort them now and then; here something aborts them always."""
    Path("site").mkdir()
    Path("site/sitecustomize.py").write_text(
        "import atexit, os\nif 'RANK' in os.environ:\n    atexit.register(os.abort)\n"
    )
    finished = subprocess.run(
        torchrun_command("train.py", *UNEVEN, "--epochs", 1),
        env={**os.environ, "PYTHONPATH": "site"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "final weights: " in finished.stdout


def test_run_whose_rank_is_killed_goes_on_under_torchrun_with_the_same_weights(torture, count):
    """The real torchrun: rank 1 is killed after the first snapshot; all ranks are started again."""
    epochs = 60 if torture else 6
    options = (*UNEVEN, "--epochs", epochs, "--resume-from", "latest")
    assert [ended.status for ended in on_ranks(train, *options, "--models-path", "undisturbed")] == [0, 0]
    torchrun = torchrun_command("train.py", *options, "--models-path", "killed", restarts=9)
    process = subprocess.Popen(torchrun, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for number in range(5 if torture else 1):
        while not Path(f"killed/{FOLDER}/lenet_{10 * number}.tar").exists() and process.poll() is None:
            time.sleep(0.01)
        os.kill(_rank_1_of(process.pid), signal.SIGKILL)
        count("ranks killed")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert len(re.findall("weights from killed", out)) == (5 if torture else 1)
    name = f"{FOLDER}/lenet_{epochs}.pt"
    assert same(weights(f"killed/{name}"), weights(f"undisturbed/{name}"))


def test_part_of_what_torchrun_sets_is_refused():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MASTER_")}
    environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    finished = subprocess.run(command("train.py", *UNEVEN), capture_output=True, text=True, env=environment)
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert line.startswith("train.py: error: RANK and WORLD_SIZE are set, but not all that torchrun sets")


@pytest.mark.parametrize(
    ("trained", "initial", "told"),
    [
        (
            ("0.tar", "0.tar"),
            ("init_0.pt", "init_0.pt"),
            "the trained network, epoch 0, what is recorded of its training",
        ),
        ((), ("init_0.pt", "init_0.pt"), "epoch 0"),
        ((), ("init_0.pt", "0.tar"), "epoch 1, epoch 0"),
    ],
)
def test_ranks_with_other_files_are_refused(trained, initial, told):
    """As on two machines without a shared file system."""
    names = []
    for rank in (0, 1):
        options = ("--subsample-classes", 2, "--epochs", 1, "--seed", 1 + rank, "--models-path", f"rank_{rank}")
        assert run_main(train, *LENET, *options) == 0
        names.append(f"rank_{rank}/fashion_mnist_mini_2/lenet/{1 + rank}/lenet_")

    def measure():
        rank = distributed.RANK
        Path(f"{rank}.txt").write_text(names[rank] + initial[rank])
        weights = names[rank] + trained[rank] if trained else f"{names[0]}0.tar"
        return run_main(reinit_layers, *LENET, "--load-from", weights, "--inits-from", f"{rank}.txt")

    first, second = Ranks(measure, 2).wait()
    assert (first.status, second.status) == (2, 2)
    assert f"reinit_layers.py: error: rank 1: torchrun: rank 0 measures something else: {told}\n" in second.err
    assert not list(Path("results").rglob("*.json"))


def test_ranks_whose_snapshots_record_something_else_are_refused():
    """Only the final weights are on the second machine, not the training state that says how to use them."""
    options = ("--subsample-classes", 2, "--epochs", 1, "--seed", 1, "--unnormalize", "--models-path", "rank_0")
    assert run_main(train, *LENET, *options) == 0
    folder = "fashion_mnist_mini_2/lenet/1"
    Path("rank_1", folder).mkdir(parents=True)
    shutil.copy(f"rank_0/{folder}/lenet_1.pt", f"rank_1/{folder}/lenet_1.pt")

    def measure():
        weights = f"rank_{distributed.RANK}/{folder}/lenet_1.pt"
        return run_main(reinit_layers, *LENET, "--subsample-classes", 2, "--load-from", weights, "--rand")

    first, second = Ranks(measure, 2).wait()
    assert (first.status, second.status) == (2, 2)
    assert "rank 0 measures something else: what is recorded of its training\n" in second.err


def test_ranks_with_other_options_are_refused():
    def measure():
        more = ("--rand", "--with-linear") if distributed.RANK else ("--rand",)
        return run_main(reinit_layers, *LENET, "--load-from", REFERENCE / "lenet_2.tar", "--seed", 1, *more)

    first, second = Ranks(measure, 2).wait()
    assert (first.status, second.status) == (2, 2)
    assert "rank 0 measures something else: the options\n" in second.err


@pytest.mark.parametrize(
    ("program", "part", "told"),
    [
        (train, "train", "--data-path: not the images, or not the labels, that rank 0 has"),
        (train, "val", "--data-path: not the images, or not the labels, that rank 0 has"),
        (reinit_layers, "val", "torchrun: rank 0 measures something else: the test images"),
    ],
)
def test_ranks_with_other_images_are_refused(program, part, told):
    from PIL import Image

    for rank in (0, 1):
        for where in ("train", "val"):
            for name in ("apple", "pear"):
                Path(f"images_{rank}", where, name).mkdir(parents=True)
                Image.effect_noise((40, 50), 100).save(f"images_{rank}/{where}/{name}/0.png")
    Path(f"images_1/{part}/pear/0.png").rename(f"images_1/{part}/pear/1.png")
    more = ("--seed", 1)
    if program is reinit_layers:
        more = ("--load-from", "resnet18_1.pt", "--rand", "--subsample-classes", 2)
        torch.save(models.build("resnet18", 2).state_dict(), "resnet18_1.pt")

    def run():
        options = (
            "--arch",
            "resnet18",
            "--dataset",
            "imagenet",
            "--data-path",
            f"images_{distributed.RANK}",
            "-j",
            0,
        )
        return run_main(program, *options, *more)

    _, second = Ranks(run, 2).wait()
    assert second.status == 2
    assert f"error: rank 1: {told}\n" in second.err


def test_ranks_read_their_images_where_their_own_options_say():
    from PIL import Image

    for part in ("train", "val"):
        for name in ("apple", "pear"):
            Path("images_0", part, name).mkdir(parents=True)
            Image.effect_noise((40, 50), 100).save(f"images_0/{part}/{name}/0.png")

    def train_with_its_own():
        options = ("--data-path", f"images_{distributed.RANK}", "--seed", 1, "--epochs", 1, "-j", 0)
        return run_main(train, "--arch", "lenet", "--dataset", "imagenet", *options)

    _, second = Ranks(train_with_its_own, 2).wait()
    (line,) = told(second)
    assert line.startswith("train.py: error: rank 1: ")
    assert "images_1" in line


def _rank_1_of(agent: int) -> int:
    for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        if "\0RANK=1\0" in Path(f"/proc/{child}/environ").read_text(errors="replace"):
            return int(child)
    raise AssertionError("there is no rank 1")


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("[1] is setting up NCCL communicator: wait timeout", "[1] is setting up NCCL communicator: wait timeout"),
        (
            "NCCL error in: NCCLUtils.cpp:94, unhandled system error. Version 2\nncclSystemError: System call\n"
            "Last error:\nError while creating shared memory segment /dev/shm/nccl-1\n",
            "NCCL error in: NCCLUtils.cpp:94, unhandled system error. Version 2; "
            "Error while creating shared memory segment /dev/shm/nccl-1",
        ),
        (
            "[/gloo/tcp/pair.cc:534] Connection closed by peer [::1]:1. This may",
            "Connection closed by peer [::1]:1",
        ),
    ],
)
def test_what_broke_the_connection_is_said_in_a_line(message, told, monkeypatch):
    monkeypatch.setattr(distributed, "WORLD_SIZE", 2)
    assert distributed.connection_lost(torch.distributed.DistBackendError(message)) == told
    assert distributed.connection_lost(RuntimeError("the shapes do not fit")) is None


def test_processes_that_do_not_come_are_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(distributed, "WORLD_SIZE", 3)
    monkeypatch.setattr(distributed, "COMING", 0.1)
    with pytest.raises(distributed.GroupError, match="of 3 processes 2 did not come"):
        distributed._agree_on_a_name(torch.distributed.HashStore())
