"""train.py is killed at any moment and started again with the same command: in the end nothing shows of it.

Most processes are forked from one that has done its imports, so that kills are cheap and fall into the phases that
matter. Some are started from the shell, and killed during their imports too.
"""

import contextlib
import json
import operator
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
from programs import REFERENCE, ROOT, command, files_below, run_main, same, snapshots_below, table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import compute_projections
import reinit_layers
import train
from utils import snapshots

COMMON = ("--arch", "lenet", "--dataset", "fashion_mnist_mini", "--seed", "1", "--snapshot-every", "1")
COMMON += ("--resume-from", "latest", "--lr", "0.001")

#: Reads a folder and a command line, forks a process that runs it there, and prints its id, then its exit status.
WARM = """
import json, os, signal, sys
import train
from utils import options
from tensorboard.compat.proto import event_pb2
from tensorboard.summary.writer import record_writer
from torch.utils.tensorboard import summary

SIGNALS = {signal.SIGINT, signal.SIGTERM}
parse = options.parse

def parse_and_be_interruptible(*arguments):  # an earlier signal would be one during the imports
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return parse(*arguments)

options.parse = parse_and_be_interruptible
signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
for line in sys.stdin:
    folder, argv = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        for number, name in ((1, "stdout.txt"), (2, "stderr.txt")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        status = train.main(argv)
        sys.stdout.flush()
        os._exit(status)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Warm:
    """Starts train.py with little delay, one process at a time."""

    def __init__(self):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.server = subprocess.Popen(
            [sys.executable, "-c", WARM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, folder: Path, options) -> int:
        """Start a run and return its process id."""
        print(json.dumps([str(folder.absolute()), options]), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def wait(self) -> int:
        """Wait for the end of the run and return its exit status."""
        return int(self.server.stdout.readline())


@pytest.fixture(scope="module")
def warm():
    warm = Warm()
    yield warm
    warm.server.stdin.close()
    warm.server.wait()


class Run:
    """A training run in a folder of its own."""

    def __init__(self, folder: str, options):
        self.folder, self.options = Path(folder), [*COMMON, *map(str, options)]
        self.folder.mkdir()

    @property
    def snapshots(self) -> Path:
        (folder,) = {path.parent for path in (self.folder / "models").rglob("*.pt")}
        return folder

    def visible(self) -> list[Path]:
        """Return the paths of the snapshots."""
        return [self.folder / "models" / name for name in snapshots_below(self.folder / "models")]

    def hidden(self) -> list[Path]:
        return list((self.folder / "models").rglob(".*"))

    def curves(self) -> dict[str, list]:
        """Return what TensorBoard shows, by tag. Speeds differ between runs: only their steps are returned."""
        (board,) = {path.parent for path in (self.folder / "tensorboard").rglob("events*")}
        events = EventAccumulator(str(board), {"scalars": 0, "histograms": 0}).Reload()
        shown = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        shown["images_per_second"] = [step for step, _ in shown["images_per_second"]]
        for tag in events.Tags()["histograms"]:
            shown[tag] = [(event.step, event.histogram_value) for event in events.Histograms(tag)]
        return shown

    def logged(self) -> str:
        """Return the text of all log files."""
        return "\n".join(path.read_text() for path in (self.folder / "log").rglob("*.log"))


def wait_for(moment: str, run: Run, epochs: int, chance: random.Random, process: Path) -> None:
    """Wait for a moment of the run that has just been started, or for its end."""
    began, before = time.time(), set(run.visible())
    if moment == "any time":
        time.sleep(chance.uniform(0, 1.5))
        return
    while process.exists() and time.time() < began + 60:
        time.sleep(0.0005)
        new = set(run.visible()) - before
        writing = [path.name for path in run.hidden() if path.suffix == ".tmp"]
        if moment == "a file is being written" and writing:
            return
        if moment == "a file is complete" and new:
            return
        is_over = any(path.name == f"lenet_{epochs - 1}.tar" for path in run.visible())
        if moment == "the end" and (is_over or any(name.startswith(f".lenet_{epochs}.pt.") for name in writing)):
            time.sleep(chance.uniform(0, 0.03))
            return


def kill_warm(warm: Warm, run: Run, moment: str, epochs: int, chance: random.Random) -> int:
    """Kill a run at a moment. Returns its exit status: 0 if it ended before."""
    pid = warm.start(run.folder, run.options)
    wait_for(moment, run, epochs, chance, Path(f"/proc/{pid}"))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return warm.wait()


def end_from_shell(run: Run, number: int, seconds: float) -> tuple[int, str]:
    """Start a run from the shell, send it a signal, and return its exit status and its standard error."""
    with subprocess.Popen(
        command("train.py", *run.options), cwd=run.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        time.sleep(seconds)
        process.send_signal(number)
        errors = process.stderr.read().decode()
    return process.returncode, errors


def options_of(number: int, chance: random.Random) -> list:
    """Return random options for a run. Those of run 0 are always the same."""
    if number == 0:
        options = ["--subsample-classes", 2, "--optimizer", "adam", "--augmentation", "--noise", 0.2]
        return [*options, "--noise-seed", 3, "--shuffle", "--split", 0.5, "--split-seed", 1]
    options = ["--subsample-classes", chance.choice([2, 3]), "--optimizer", chance.choice(["sgd", "adam"])]
    for more in (
        ["--augmentation"],
        ["--shuffle"],
        ["--split", 0.1, "--split-seed", 4],
        ["--noise", chance.choice([0.3, -1]), "--noise-seed", 5],
        ["--lr-step", 2, "--lr-decay", 0.5],
        ["--train-acc"],
    ):
        options += more if chance.random() < 0.5 else []
    if "--split-seed" in options and "--shuffle" not in options:
        options.append("--shuffle")
    return options


@pytest.mark.parametrize("number", range(14))
def test_run_that_is_killed_again_and_again_equals_the_undisturbed_one(number, warm, torture, count):
    if number > 0 and not torture:
        pytest.skip("only with --torture")
    chance = random.Random(number)
    epochs = 20 if torture else 4
    options = [*options_of(number, chance), "--epochs", epochs]
    undisturbed, killed = Run("undisturbed", options), Run("killed", options)
    warm.start(undisturbed.folder, undisturbed.options)
    assert warm.wait() == 0

    moments = ["any time", "a file is being written", "a file is complete"]
    if torture:
        moments = [chance.choice(moments) for _ in range(9)] + ["the end"]
    survived = 0
    for moment in [*moments, "the end"]:
        status = kill_warm(warm, killed, moment, epochs, chance)
        assert status in (0, -signal.SIGKILL), (killed.folder / "stderr.txt").read_text()
        survived += status != 0
        for path in killed.visible():
            snapshots.load(path)
        if chance.random() < 0.15:  # from the shell: during the imports, or after
            survived += end_from_shell(killed, signal.SIGKILL, chance.uniform(0, 6))[0] != 0
    warm.start(killed.folder, killed.options)
    assert warm.wait() == 0
    assert (killed.folder / "stderr.txt").read_text() == ""
    assert survived >= (7 if torture else 2)

    assert killed.hidden() == []
    assert files_below(killed.folder / "models") == files_below(undisturbed.folder / "models")
    records = [json.loads((run.snapshots / "run.json").read_text()) for run in (undisturbed, killed)]
    assert {**records[0], "id": None} == {**records[1], "id": None}
    for name in snapshots_below(undisturbed.snapshots):
        expected, found = (torch.load(run.snapshots / name, weights_only=True) for run in (undisturbed, killed))
        assert expected.pop("id", None) == records[0]["id"] or name.endswith(".pt")
        assert found.pop("id", None) == records[1]["id"] or name.endswith(".pt")
        assert same(expected, found), name

    expected, found = undisturbed.curves(), killed.curves()
    assert set(found["images_per_second"]) == set(range(1, epochs + 1))
    assert found == expected

    expected, found = (
        [{**row, "seconds": ""} for row in table(run.snapshots / "metrics.csv")] for run in (undisturbed, killed)
    )
    assert [row["epoch"] for row in found] == [str(epoch + 1) for epoch in range(epochs)]
    assert found == expected

    logged = re.findall(rf" INFO epoch (\d+) \(\d+/{epochs}\)", killed.logged())
    assert set(logged) == {str(epoch) for epoch in range(epochs)}
    count("kills survived", survived)
    count("runs killed again and again")


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_run_interrupted_at_any_moment_prints_one_line_and_leaves_no_temporary_files(
    number, status, word, warm, torture, count
):
    chance = random.Random(int(number))
    run = Run("run", ["--subsample-classes", 2, "--epochs", 500])
    for _ in range(50 if torture else 3):
        pid = warm.start(run.folder, run.options)
        time.sleep(chance.uniform(0, 1.5))
        os.kill(pid, number)
        assert warm.wait() == status
        said = (run.folder / "stderr.txt").read_text()
        assert re.fullmatch(rf"train\.py: {word}(; (go on with|no snapshot has been kept) .*)?\n", said), said
        assert run.hidden() == []
        for path in run.visible():
            snapshots.load(path)
        count("interruptions survived")


def interrupted_in_a_callback(function):
    """Let SIGINT arrive before a function, in a callback, whose exceptions Python prints and ignores."""

    def interrupted(*arguments, **options):
        thing = type("Thing", (), {})()  # a weak reference can point to it
        reference = weakref.ref(thing, lambda reference: os.kill(os.getpid(), signal.SIGINT))
        del thing
        assert reference() is None
        return function(*arguments, **options)

    return interrupted


@pytest.mark.parametrize(
    ("program", "name", "options"),
    [
        (train, "make_step", ["--epochs", 1]),
        (train, "report_evaluation", ["--evaluate", "--resume-from", "trained"]),
        (compute_projections, "sources.find_snapshots", ["--load-from", "trained"]),
        (reinit_layers, "announce", ["--load-from", "trained", "--rand"]),
    ],
)
def test_signal_that_arrives_in_a_callback_interrupts_the_program(program, name, options, monkeypatch, capsys):
    complaints = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    shutil.copy(REFERENCE / "lenet_2.tar", "trained")
    function = operator.attrgetter(name)(program)
    monkeypatch.setattr(f"{program.__name__}.{name}", interrupted_in_a_callback(function))
    assert run_main(program, "--arch", "lenet", "--dataset", "fashion_mnist_mini", *options) == 130
    assert re.match(rf"{program.__name__}\.py: interrupted(;|$)", capsys.readouterr().err.splitlines()[-1])
    assert complaints == []
    assert not Path("results").exists() or not files_below(Path("results"))


@pytest.mark.long
def test_program_terminated_during_its_imports_prints_no_traceback(torture, count):
    chance = random.Random(0)
    run = Run("run", ["--subsample-classes", 2, "--epochs", 500])
    for _ in range(20 if torture else 1):
        # The first: before the first instruction of the program, while Python starts.
        status, errors = end_from_shell(run, signal.SIGTERM, chance.uniform(0, 5))
        expected = {-signal.SIGTERM: "", 143: r"train\.py: terminated(; .*)?\n"}
        assert re.fullmatch(expected[status], errors), errors
        assert run.hidden() == []
        count("interruptions survived")
