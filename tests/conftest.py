"""Each test runs in a folder of its own, on one thread, because the tests run side by side.

Only the tests marked `cuda` use a GPU, with `-m cuda`: a process that sees a GPU and has trained cannot be forked
into ranks that train, as the tests of several processes do.

`--torture` also runs the tests marked `long`, and the long versions of the attacks on the programs. The fixture
`count` counts what was attacked; the sums are printed at the end.
"""

import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the programs that tests start

from collections import Counter

import pytest
import torch
from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("steady")


def pytest_addoption(parser):
    parser.addoption("--torture", action="store_true", help="the long versions of the attacks on the programs")


def pytest_configure(config):
    # As in a shell's background: the programs would ignore it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.option.markexpr != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before the workers start, and before anything asks for a GPU


@pytest.fixture
def torture(request) -> bool:
    """Whether the long versions were asked for."""
    return request.config.getoption("--torture")


@pytest.fixture
def count(record_property):
    """`count("snapshots damaged", 3)` adds to what is told at the end of a run with --torture."""
    return lambda what, number=1: record_property(f"count: {what}", number)


@pytest.fixture
def titles(monkeypatch) -> list[str]:
    """The titles of the figures that programs save in this process."""
    from utils import plots

    found, save = [], plots.save
    monkeypatch.setattr(
        plots, "save", lambda figure, path: found.append(figure.get_suptitle()) or save(figure, path)
    )
    return found


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.get_closest_marker("long") is None)  # first, or one process would wait for it
    reasons = {}
    if not torch.cuda.is_available():
        reasons["cuda"] = "there is no GPU, or no `-m cuda`"
    if not config.getoption("--torture") and not config.option.markexpr:
        reasons["long"] = "only with --torture"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("--torture"):
        return
    counts = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, number in report.user_properties:
                if report.when == "call" and name.startswith("count: "):
                    counts[name.removeprefix("count: ")] += number
    terminalreporter.section("what was attacked")
    for name, number in sorted(counts.items()):
        terminalreporter.write_line(f"{number:8,}  {name}")
