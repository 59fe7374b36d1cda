"""What the pages in docs/ and the manuals of the programs show is right as it is written."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from programs import ROOT, results, run_main, table, write_datasets
from torchvision import datasets

import compute_projections
import data
import models
import reinit_layers
import train
from experiments import compare
from utils.options import parse as options_of

sys.path.insert(0, str(ROOT / "docs"))
import pages

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
LONG = ("results.md", "robustness.md")
REGISTERED = [*models.names(), *data.names()]  # before the pages register their own
TESTED_APART = ("files.md", "own_networks.md", "extending.md")  #: below, and in test_extending.py


def text_of(name: str) -> str:
    path = README if name == README.name else ROOT / "docs" / name
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.name, marks=[pytest.mark.long] if path.name in LONG else [])
        for path in PAGES
        if path.name not in TESTED_APART
    ],
)
def test_commands_and_snippets_of_a_page_run_and_print_what_it_shows(name, monkeypatch):
    page = text_of(name)
    if "pandas" in page:
        pytest.importorskip("pandas")
    if re.search(r"--dataset (mnist|fashion_mnist|cifar10)\b", page):
        write_datasets(Path("datasets"))
    monkeypatch.syspath_prepend(Path.cwd())
    before = set(sys.modules)
    pages.run(page)
    for name in set(sys.modules) - before:  # files of the page
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(Path.cwd()):
            del sys.modules[name]


def test_page_on_files_lists_the_files_of_a_run_and_names_every_key_and_column():
    page = text_of("files.md")
    pages.run(page)
    names = set()
    for path in Path().glob("*/fashion_mnist_mini_2/**/*.*"):
        if path.suffix == ".csv":
            names |= set(table(path)[0])
        elif path.suffix == ".json":
            content = results(path)
            names |= {name for name in content if not name.isdigit()}
            names |= {name for part in content.get("0", {}).values() for name in part}
    assert {"config", "top1_train_running", "p_value_without_zeros", "rand_seed", "relative_drop"} <= names
    assert sorted(name for name in names if f"`{name}`" not in page) == []


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("```bash\npython train.py --arch lenett --dataset mnist\n```\n", "exit status 2 of: python train.py"),
        ("```bash\nls nowhere\n```\n", "exit status 2 of: ls nowhere"),
        ("```bash\ntrue # exit status 1\n```\n", "exit status 0 of: true"),
        ("```python\nprint('a 1\\nb 2')\n```\n\n```text\nb 1\na 2\n```\n", "not printed: a 2"),
        ("```sh\ntorchrun --nproc-per-node 2 \\\n    train.py --learning-rate 1\n```\n", "wrong options"),
        ("```sh\nsrun python train.py --seed $TASK --rand &\n```\n", "wrong options"),
        (
            "This is `a.py`:\n\n```python\nx = 1\n```\n\n```diff\n+++ b/a.py\n@@\n-x = 2\n+x = 3\n```\n",
            "are 0 times",
        ),
    ],
)
def test_wrong_page_is_noticed(page, said):
    with pytest.raises(AssertionError, match=re.escape(said)):
        pages.run(page)


def test_output_that_differs_in_numbers_alone_is_brought_up_to_date():
    page = "```bash\nfor i in 4 5; do\n  echo at $i, loss 1e-5\ndone\n```\n\n```text\n...\nat 9, loss 3\n```\n"
    assert pages.run(page) == page.replace("at 9, loss 3", "at 4, loss 1e-5")


def test_benchmarks_on_the_pages_on_speed_have_the_options_shown(monkeypatch):
    class OptionsAreRight(Exception):
        """Raised where a benchmark would begin."""

    def prepare_device(args):
        raise OptionsAreRight

    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    common = importlib.import_module("common")
    monkeypatch.setattr(common, "prepare_device", prepare_device)
    text = text_of("speed.md") + text_of("speed_decisions.md")
    commands = re.findall(r"\b(choices|folder|projections|reinit|training)\.py([^`]*)`", text)
    assert len(commands) > 20
    for name, options in commands:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *options.replace("DIR", ".").split()])
        with pytest.raises(OptionsAreRight):
            importlib.import_module(name).main()
    for name in {"common", *dict(commands)}:
        del sys.modules[name]


def test_tables_of_options_are_those_of_the_programs():
    assert pages.with_options(text_of("options.md")) == text_of("options.md"), "run `make docs`"


def test_tables_name_every_network_and_dataset():
    page = text_of("options.md")
    assert [name for name in REGISTERED if f"`{name}`" not in page] == []


@pytest.mark.parametrize("path", sorted({*PAGES, *ROOT.glob("*.md")}), ids=lambda path: path.name)
def test_links_of_a_page_lead_to_files_and_headings(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        file, _, heading = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in anchors, link


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= (250 if path == README else 200)


def test_page_on_own_networks_shows_the_right_numbers(monkeypatch):
    write_datasets(Path("datasets"))
    monkeypatch.syspath_prepend(Path.cwd())
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    page = pages.run(text_of("own_networks.md"))
    from mynet import Net

    sys.modules.pop("mynet")
    trained, initial = torch.load("trained.pt"), torch.load("Net_init_0.pt")
    measured = results("results/fashion_mnist/Net/trained.json")
    assert measured["epoch"] == str(trained["epoch"]) == "7"
    reset = results("results/fashion_mnist/Net/reinit_trained.json")
    assert reset["layers"] == ["conv1", "conv2"]
    assert reset["provenance"]["arguments"]["arch_file"] == "mynet.py"
    test_set = datasets.FashionMNIST("datasets", train=False)
    images, net = (test_set.data[:, None] / 255 - 0.2860) / 0.3530, Net()
    for number, layer in enumerate(reset["layers"]):
        weight = trained["state_dict"][f"{layer}.weight"].double().flatten(1)
        cosines = weight.sum(1) / (weight.norm(dim=1) * weight.shape[1] ** 0.5)
        found = measured["0"][str(number)]
        assert found["name"] == layer
        assert found["projections"] == pytest.approx(cosines.tolist(), abs=1e-9)
        start = initial[f"{layer}.weight"].double().flatten(1)
        assert found["l2_dist"] == pytest.approx(((weight - start).norm() / start.norm()).item(), abs=1e-9)
        old = {f"{layer}.{name}": initial[f"{layer}.{name}"] for name in ("weight", "bias")}
        net.load_state_dict(trained["state_dict"] | old)
        with torch.no_grad():
            top1 = 100 * (net(images).argmax(1) == test_set.targets).double().mean().item()
        assert reset["init_from_epoch"]["0"][number] == pytest.approx(
            top1, abs=0.34
        )  # an image may round otherwise
        assert f"{layer} reset: top-1 {reset['init_from_epoch']['0'][number]:.2f} %" in page
    drawn = {path.stem for path in Path("plots/fashion_mnist/Net").iterdir()}
    assert drawn >= {"projections_trained", "reinit_trained", "criticality_trained"}


def commands_in(text: str) -> list[list[str]]:
    """The command lines of Python programs in a text, as indented blocks."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("    python ")]


@pytest.mark.parametrize(
    ("program", "following"),
    [
        (train, "compute_projections.py"),
        (compute_projections, "reinit_layers.py"),
        (reinit_layers, "experiments/compare.py"),
    ],
)
def test_help_names_the_next_command_and_every_command_in_it_is_valid(program, following, capsys):
    assert run_main(program, "--help") == 0
    found = commands_in(capsys.readouterr().out)
    assert found[-1][0] == following
    for name, *options in found:
        if name == "experiments/compare.py":
            assert compare.parse_arguments(options).kind == "criticality"
        else:
            assert name in (f"{program.__name__}.py", following)
            options_of(name.removesuffix(".py"), None, options)


def test_newest_version_in_the_list_of_changes_is_that_of_the_programs():
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == version
