"""Several processes under torchrun: they train as one process does, and print one error message.

Most tests fork the ranks and give them torchrun's variables, because a forked rank need not import torch again.
"""

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from programs import REFERENCE, ROOT, command, files_below, run_main, same, state_of_files, weights
from torch import nn

import compute_projections
import data
import models.registry
import reinit_layers
import train
from core.errors import RunError, UsageError
from core.seeds import derive
from data.subsets import batch_slices
from utils.process import distributed, ending

LENET = ("--arch", "lenet", "--dataset", "fashion_mnist_mini")
#: 813 images in batches of 58: the last batch holds a single image, so that rank 0 of two has none.
UNEVEN = (*LENET, "--subsample-classes", 2, "--lr", 0.005, "--seed", 1, "--batch-size", 58, "--snapshot-every", 1)
UNEVEN = (*UNEVEN, "--shuffle", "--augmentation")
TRAINED = REFERENCE / "lenet_2.tar"
FOLDER = "fashion_mnist_mini_2/lenet/1"


class Ended(NamedTuple):
    status: int  #: negative: the signal that ended the process
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines on standard error that are not warnings."""
        return [line for line in self.err.splitlines() if not line.startswith("warning: ")]


SILENT = Ended(0, "", "")
REFUSED = Ended(2, "", "")  #: the end of a rank while another rank prints the error


def serve_store(port_to: Connection) -> None:
    """Serve as torchrun's store, in a process of its own: forked ranks would inherit the locks of its threads."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port_to.send(store.port)
    signal.pause()


class Ranks:
    """Forked processes. Each calls a function as one rank of a group; the result is its exit status."""

    def __init__(self, function: Callable[[], int], size: int = 2):
        fork = multiprocessing.get_context("fork")
        here, there = fork.Pipe()
        self.store = fork.Process(target=serve_store, args=(there,), daemon=True)
        self.store.start()
        self.port = here.recv()
        self.processes = [fork.Process(target=self._run, args=(function, rank, size)) for rank in range(size)]
        for process in self.processes:
            process.start()

    def _run(self, function: Callable[[], int], rank: int, size: int) -> None:
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f".{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port)}
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        distributed.RANK = distributed.LOCAL_RANK = rank
        distributed.WORLD_SIZE = size
        sys.exit(function())

    def wait(self, timeout_s: float = 120) -> list[Ended]:
        """Wait for all ranks, and kill those that do not end in time."""
        deadline = time.monotonic() + timeout_s
        for process in self.processes:
            process.join(max(0, deadline - time.monotonic()))
            process.kill()
            process.join()
        self.store.kill()
        self.store.join()
        return [
            Ended(process.exitcode, Path(f".{rank}.out").read_text(), Path(f".{rank}.err").read_text())
            for rank, process in enumerate(self.processes)
        ]


def on_ranks(module, *options, size: int = 2) -> list[Ended]:
    """Run a program on several ranks."""
    return Ranks(lambda: run_main(module, *options), size).wait()


def torchrun(program: str | Path, *options, nodes=("--standalone", "--nproc-per-node", "2")) -> list[str]:
    """Return the command line of a program under the real torchrun, by default in two processes."""
    python, *arguments = command(program, *options)
    return [python, "-m", "torch.distributed.run", *nodes, *arguments]


def shell(line: list[str], **variables: str) -> subprocess.CompletedProcess:
    """Run a command line with additional environment variables."""
    environment = {**os.environ, **variables}
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)


def write_images(*folders: str, count: int = 1) -> None:
    """Write image folders with two classes and `count` images of each class, for training and for testing."""
    for folder in folders:
        for part in ("train", "val"):
            for name in ("apple", "pear"):
                Path(folder, part, name).mkdir(parents=True)
                for index in range(count):
                    Image.effect_noise((40, 50), 100).save(f"{folder}/{part}/{name}/{index}.png")


# Ranks train as one process


@pytest.mark.parametrize(
    "options",
    [
        {"augmentation": True, "shuffle": True},
        {"noise": -1, "noise_seed": 3, "upscale_padding": True, "subsample_classes": 1, "split": 0.96},
    ],
    ids=str,
)
def test_ranks_share_the_batches_of_one_process(options):
    batch_size = 7 if "split" in options else 1999  # the last batch holds fewer images than there are ranks
    whole, *shares = (
        data.load(data.Images("fashion_mnist_mini", "", **options), batch_size, share=share).train
        for share in ((0, 1), (0, 3), (1, 3), (2, 3))
    )
    shares[1].batches_at_once = 2  # as on a GPU
    for _ in range(2):  # epochs
        assert len(whole) == len(shares[0]) == 3
        for (images, labels), *parts in zip(whole, *shares, strict=True):
            assert torch.equal(torch.cat([part[0] for part in parts]), images)
            assert torch.equal(torch.cat([part[1] for part in parts]), labels)


def test_two_ranks_train_as_one_process_and_each_can_resume_the_other(monkeypatch):
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x)  # each rank draws its own random numbers
    assert run_main(train, *UNEVEN, "--epochs", 3, "--models-path", "whole", "--log", "whole") == 0
    parts = (*UNEVEN, "--models-path", "parts", "--log", "parts", "--resume-from", "latest")
    assert run_main(train, *parts, "--epochs", 1) == 0
    first, second = on_ranks(train, *parts, "--epochs", 2)
    assert (first.status, first.err, second) == (0, "", SILENT), (first, second)
    assert run_main(train, *parts, "--epochs", 3) == 0

    losses = []
    for name in ("whole", "parts"):
        logs = "".join(path.read_text() for path in Path("log", FOLDER).glob(f"*_{name}"))
        losses.append([float(loss) for _, loss in sorted(re.findall(r"epoch (\d) .*: loss ([\d.]+)", logs))])
    assert losses[1] == pytest.approx(losses[0], abs=2e-4)
    whole, parts = (
        [torch.load(f"{name}/{FOLDER}/lenet_{epoch}.tar", weights_only=True) for epoch in range(3)]
        for name in ("whole", "parts")
    )
    for one, other in zip(whole, parts, strict=True):
        assert one["config"] == other["config"]
        for key in ("top1_acc", "top1_acc_train_running"):
            assert one[key] == pytest.approx(other[key], abs=0.3)
    first, last, resumed = (state["model_state_dict"] for state in (whole[0], whole[2], parts[2]))
    for name, weight in last.items():
        assert (weight - resumed[name]).norm() < 1e-3 * (weight - first[name]).norm(), name


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler")
@pytest.mark.long
def test_compiled_ranks_train_as_ranks_that_are_not_compiled():
    options = (*UNEVEN, "--epochs", 1)
    assert [ended.status for ended in on_ranks(train, *options, "--models-path", "plain")] == [0, 0]
    compiled = ("--models-path", "compiled", "--tb-logdir", "board", "--compile")
    finished = shell(torchrun("train.py", *options, *compiled))
    assert (finished.returncode, finished.stderr) == (0, ""), finished.stderr
    plain, compiled = (weights(f"{run}/{FOLDER}/lenet_1.pt") for run in ("plain", "compiled"))
    for name, weight in compiled.items():
        torch.testing.assert_close(weight, plain[name], atol=1e-5, rtol=1e-3)
    assert not same(compiled, plain)  # otherwise nothing was compiled


GROUP_OF_ONE = """
import argparse, json, sys
import torch
import data, models, train
from utils.process import distributed
from utils.training import optimizers, precision
from utils.training.step import make_step

arch, amp, device = sys.argv[1], sys.argv[2] == "amp", torch.device(sys.argv[3])
precision.set_precision(device, amp)
layout = precision.memory_format(device, amp)
images = data.Images("fashion_mnist_mini", "", shuffle=True)
batches = list(data.load(images, 128, device=device, memory_format=layout).train)

def losses(lr, compiled=False):
    torch.manual_seed(0)
    net = models.build(arch, 10, 1, (28, 28)).to(device, memory_format=layout).train()
    if amp:
        precision.use_bfloat16(net, device)
    hyperparameters = argparse.Namespace(optimizer="sgd", lr=lr, momentum=0.9, weight_decay=0)
    step = make_step(net, optimizers.make_optimizer(net, hyperparameters), compiled)
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


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler")
@pytest.mark.long
@pytest.mark.parametrize(
    ("arch", "amp", "device"),
    [
        ("lenet", "", "cpu"),
        pytest.param("lenet", "", "cuda", marks=pytest.mark.cuda),
        pytest.param("resnet18", "", "cuda", marks=pytest.mark.cuda),
        pytest.param("resnet18", "amp", "cuda", marks=pytest.mark.cuda),
    ],
)
def test_group_of_one_trains_as_a_process_without_a_group(arch, amp, device):
    """NCCL needs one GPU for each process. So one process computes as if WORLD_SIZE were two.

    That doubles losses and gradients, and half the learning rate makes up for it.
    """
    finished = shell([sys.executable, "-c", GROUP_OF_ONE, arch, amp, device], PYTHONPATH=str(ROOT))
    assert finished.returncode == 0, finished.stderr
    alone, group, compiled = json.loads(finished.stdout)
    tolerance = 1e-3 if arch == "lenet" else 0.06  # small differences grow fast in ResNet-18
    assert [loss / 2 for loss in group] == pytest.approx(alone, rel=tolerance)
    assert [loss / 2 for loss in compiled] == pytest.approx(alone, rel=tolerance)


def test_rank_0_draws_the_dropout_of_one_process_and_others_their_own(monkeypatch):
    def record(*arguments):
        Path(f"dropout_{distributed.RANK}").write_text(str(torch.initial_seed()))
        raise RunError("seen enough")

    monkeypatch.setattr(train, "train_epoch", record)
    on_ranks(train, *UNEVEN, "--epochs", 1)
    assert Path("dropout_0").read_text() == str(derive(1, "dropout", 0))
    assert Path("dropout_1").read_text() == str(derive(1, "dropout", 0, 1))


def test_running_statistics_of_batch_norm_are_the_mean_over_ranks():
    """A rank without an image of the last batch leaves its statistics as they are."""
    images = torch.arange(18.0).square().view(9, 1, 2, 1)

    class Batches(list):
        batch_size, num_images = 8, 9

    def train_an_epoch() -> None:
        net = nn.Sequential(nn.BatchNorm2d(1, momentum=0.5), nn.Flatten(), nn.Linear(2, 2))
        step = train.make_step(net, torch.optim.SGD(net.parameters(), lr=0))
        shares = [images[part] for part in batch_slices(9, 8, (distributed.RANK, 2))]
        batches = Batches((share, torch.zeros(len(share), dtype=torch.long)) for share in shares)
        train.train_epoch(step, net, batches, 0)
        torch.save(net[0].running_mean, f"mean_{distributed.RANK}.pt")

    def rank() -> int:
        with distributed.group(torch.device("cpu")):
            train_an_epoch()  # frees the network before the group ends, as the programs do
        return 0

    assert Ranks(rank).wait() == [SILENT, SILENT]
    mean_0 = images[:4].mean() / 2
    mean_1 = images[4:8].mean() / 4 + images[8].mean() / 2
    for rank in range(2):
        assert torch.load(f"mean_{rank}.pt").item() == pytest.approx((mean_0 + mean_1).item() / 2)


def test_sigusr1_at_any_rank_ends_all_after_the_same_epoch(monkeypatch):
    original = train.train_epoch

    def train_epoch(step, net, batches, epoch, *more):
        if distributed.RANK == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return original(step, net, batches, epoch, *more)

    monkeypatch.setattr(train, "train_epoch", train_epoch)
    first, second = on_ranks(train, *UNEVEN, "--snapshot-every", 0, "--epochs", 3)
    assert (first.status, second.status) == (143, 143)
    again = "torchrun ... train.py .*--snapshot-every 0 --epochs 3 --resume-from latest"
    assert re.fullmatch(f"stopped by SIGUSR1 after epoch 0; go on with {again}\n", first.err)
    assert files_below(Path("models", FOLDER)) == {"lenet_init_0.pt", "lenet_0.tar", "metrics.csv", "run.json"}


def test_evaluation_counts_every_image_once(capsys):
    options = (*LENET, "--resume-from", TRAINED, "--evaluate", "--batch-size", 37)
    assert run_main(train, *options) == 0
    alone = re.search(r"test set: loss .*", capsys.readouterr().out)[0]
    first, *others = on_ranks(train, *options, "--cuda", size=3)  # there is no GPU, unless with -m cuda
    assert (first.status, re.search(r"test set: loss .*", first.out)[0]) == (0, alone)
    assert first.err.count("warning: --cuda: there is no GPU") == 2
    assert others == [SILENT, SILENT]


def test_ranks_reset_layers_with_the_result_of_one_process():
    Path("inits.txt").write_text(f"{REFERENCE / 'lenet_init_0.pt'}\n")
    options = (*LENET, "--seed", 1, "--rand", "--load-from", TRAINED, "--inits-from", "inits.txt")
    assert run_main(reinit_layers, *options, "--results", "one") == 0
    before = files_below(Path())
    first, *others = on_ranks(reinit_layers, *options, "--results", "three", "--plots", "three", size=3)
    assert (first.status, others) == (0, [SILENT, SILENT])
    name = "fashion_mnist_mini/lenet/1/reinit_lenet_2.json"
    assert Path("three", name).read_text() == Path("one", name).read_text()
    assert len([path for path in files_below(Path()) - before if path.endswith(".log")]) == 1


# One rank prints the error


def test_parameter_that_does_not_affect_the_output_is_one_line(monkeypatch):
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
    assert "torchrun: " in line


@pytest.mark.parametrize(
    ("program", "options", "status", "named"),
    [
        (train, ("--arch", "lenet", "--dataset", "imagenet", "--data-path", "nowhere"), 2, "--data-path nowhere"),
        (train, (*LENET, "--lr", 0), 2, "--lr"),
        (train, (*UNEVEN, "--lr", 1e20), 1, "the loss is nan in epoch 0"),
        (train, ("--arch", "mlp_bn", "--dataset", "fashion_mnist_mini", "--sync-bn"), 2, "--sync-bn"),
        (compute_projections, (*LENET, "--seed", 1), 2, "torchrun"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_error_of_all_ranks_is_printed_once(program, options, status, named):
    first, second = on_ranks(program, *options)
    (line,) = first.err.splitlines()
    assert line.startswith(f"{program.__name__}.py: {'error' if status == 2 else 'failed'}: ")
    assert named in line
    assert (first.status, second) == (status, (status, "", ""))


def test_error_of_rank_0_ends_the_others_with_its_status():
    assert run_main(train, *UNEVEN, "--epochs", 1) == 0
    before = state_of_files(Path("models"))
    first, second = on_ranks(train, *UNEVEN, "--epochs", 1, "--weight-decay", 0.5)
    (line,) = first.err.splitlines()
    assert line.startswith("train.py: error: models/")
    assert (first.status, second) == (2, REFUSED)
    assert state_of_files(Path("models")) == before


def test_error_of_another_rank_is_printed_with_its_number():
    write_images(".")
    Path("train/pear/0.png").write_bytes(b"no image")
    options = ("--arch", "lenet", "--dataset", "imagenet", "--data-path", ".", "-j", 0, "--batch-size", 2)
    began = time.monotonic()
    first, second = on_ranks(train, *options, "--seed", 1)
    assert time.monotonic() - began < 30
    (line,) = second.errors
    assert re.match(r"train\.py: failed: rank 1: \S*train/pear/0\.png ", line)
    assert (first.status, first.errors, second.status) == (1, [], 1)


def test_ranks_with_different_images_do_not_train():
    write_images("images_0", "images_1")
    Path("images_1/train/pear/0.png").rename("images_1/train/pear/1.png")

    def train_on_own_images():
        options = ("--data-path", f"images_{distributed.RANK}", "--seed", 1, "-j", 0)
        return run_main(train, "--arch", "lenet", "--dataset", "imagenet", *options)

    _, second = Ranks(train_on_own_images).wait()
    (line,) = second.errors
    assert (second.status, line[:37]) == (2, "train.py: error: rank 1: --data-path:")


def test_ranks_with_different_initializations_do_not_reset_layers():
    """This happens on machines without a shared file system."""
    for index in range(2):
        torch.manual_seed(index)
        torch.save(models.build("lenet", 10, 1).state_dict(), f"lenet_init_{index}.pt")
        Path(f"inits_{index}.txt").write_text(f"lenet_init_{index}.pt\n")

    def measure():
        own = ("--inits-from", f"inits_{distributed.RANK}.txt")
        return run_main(reinit_layers, *LENET, "--load-from", TRAINED, *own)

    first, second = Ranks(measure).wait()
    assert (first.status, second.status) == (2, 2)
    (line,) = second.errors
    assert line.startswith("reinit_layers.py: error: rank 1: torchrun: ")
    assert not list(Path("results").rglob("*.json"))


def test_ranks_of_which_only_some_have_a_gpu_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: distributed.RANK == 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    first, second = on_ranks(train, *LENET, "--cuda", "--seed", 1)
    (line,) = first.err.splitlines()
    assert line.startswith("train.py: error: --cuda: rank 1 ")
    assert (first.status, second) == (2, REFUSED)


# Starting and ending


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"RANK": "1", "LOCAL_RANK": "", "WORLD_SIZE": "2"}, "error: .*LOCAL_RANK"),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": ""}, "train.py: error: .*MASTER_ADDR"),
    ],
    ids=["no local rank", "no address"],
)
def test_wrong_variables_of_torchrun_are_refused(variables, named):
    finished = shell(command("train.py", *UNEVEN), **variables)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert re.fullmatch(f"{named}.*\n", finished.stderr)


def test_processes_that_never_start_end_the_wait(monkeypatch):
    monkeypatch.setattr(distributed, "WORLD_SIZE", 3)
    monkeypatch.setattr(distributed, "RENDEZVOUS_TIMEOUT_S", 0.1)
    with pytest.raises(UsageError, match="2 of 3 processes"):
        distributed._agree_on_group_name(torch.distributed.HashStore())


@ending.exit_status
def wait_for_rank_1(argv=None) -> int:
    with distributed.group(torch.device("cpu")):
        Path(f"in_group_{distributed.RANK}").touch()
        if distributed.RANK == 1:
            time.sleep(600)
        distributed.sum_(torch.zeros(1))
    return 0


@pytest.fixture
def waiting_ranks() -> Ranks:
    ranks = Ranks(wait_for_rank_1)
    while not Path("in_group_0").exists() or not Path("in_group_1").exists():
        time.sleep(0.01)
    return ranks


def test_terminated_rank_that_waits_for_another_ends_at_once(waiting_ranks):
    time.sleep(0.5)
    began = time.monotonic()
    for process in waiting_ranks.processes:
        process.terminate()
    assert [ended.status for ended in waiting_ranks.wait(20)] == [-signal.SIGTERM] * 2
    assert time.monotonic() - began < 5


def test_rank_that_lost_another_one_says_so_in_one_line(waiting_ranks):
    waiting_ranks.processes[1].kill()
    first, second = waiting_ranks.wait(20)
    (line,) = first.err.splitlines()
    assert line.startswith("test_distributed.py: failed: lost the connection to the other processes")
    assert (first.status, second.status) == (1, -signal.SIGKILL)


@pytest.mark.long
def test_finished_rank_does_not_wait_for_pythons_shutdown():
    """During the shutdown gloo's threads sometimes abort the process. Here it is always aborted."""
    Path("site").mkdir()
    Path("site/sitecustomize.py").write_text(
        "import atexit, os\nif 'RANK' in os.environ:\n    atexit.register(os.abort)\n"
    )
    finished = shell(torchrun("train.py", *UNEVEN, "--epochs", 1), PYTHONPATH="site")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "final weights: " in finished.stdout


@pytest.mark.long
def test_two_nodes_train_as_two_ranks_of_one_node():
    """Two torchruns find each other, each in its own folder, as on two machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "1")
    line = torchrun("train.py", *UNEVEN, "--epochs", 2, nodes=(*nodes, "--rdzv-endpoint", f"localhost:{port}"))
    started = []
    for name in ("first", "second"):
        Path(name).mkdir()
        started.append(subprocess.Popen(line, cwd=name, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    try:
        outputs = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], outputs
    main, other = sorted(("first", "second"), key=lambda name: -len(files_below(Path(name))))
    assert files_below(Path(other)) == set()
    on_ranks(train, *UNEVEN, "--epochs", 2)
    assert same(weights(f"{main}/models/{FOLDER}/lenet_2.pt"), weights(f"models/{FOLDER}/lenet_2.pt"))


@pytest.mark.long
def test_run_with_killed_ranks_ends_with_the_weights_of_an_undisturbed_run(torture, count):
    """torchrun restarts all ranks when rank 1 is killed after a snapshot."""
    epochs, kills = (60, 5) if torture else (6, 1)
    options = (*UNEVEN, "--epochs", epochs, "--resume-from", "latest")
    assert [ended.status for ended in on_ranks(train, *options, "--models-path", "undisturbed")] == [0, 0]
    Path("traced.py").write_text(
        "import os, pathlib, sys\nimport train\n"
        "pathlib.Path('pid_' + os.environ['RANK']).write_text(str(os.getpid()))\nsys.exit(train.main())\n"
    )
    nodes = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "9")
    line = torchrun(Path("traced.py").resolve(), *options, "--models-path", "killed", nodes=nodes)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    for number in range(kills):
        while not Path(f"killed/{FOLDER}/lenet_{10 * number}.tar").exists() and process.poll() is None:
            time.sleep(0.01)
        os.kill(int(Path("pid_1").read_text()), signal.SIGKILL)
        count("ranks killed")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert len(re.findall("weights from killed", out)) == kills
    name = f"{FOLDER}/lenet_{epochs}.pt"
    assert same(weights(f"killed/{name}"), weights(f"undisturbed/{name}"))
