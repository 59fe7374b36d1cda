"""Networks in files of the user's own, by --arch FILE.py:NAME."""

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
from programs import ROOT, refused, results, run_main, same, table, weights
from torch import nn

import compute_projections
import models
import reinit_layers
import train
from utils import sources

MINI = ("--dataset", "fashion_mnist_mini", "--subsample-classes", 2, "--seed", 1)
NET = """
from torch import nn
from blocks import convolution

class Net(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.conv = convolution(in_channels, 4)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean([2, 3]))
"""
BLOCKS = "from torch import nn\nfrom utils import SIZE\nconvolution = lambda *widths: nn.Conv2d(*widths, SIZE)\n"
FOLDER = Path("models/fashion_mnist_mini_2/Net/1")


@pytest.fixture(autouse=True)
def forget_modules():
    """Forget the modules beside the files of a test, which other tests have under the same names."""
    before = set(sys.modules)
    yield
    sources.structure.cache_clear()
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(Path.cwd())):
            del sys.modules[name]


def write(name, text):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def net():
    """A file that imports from files beside it, one of them called as a package of ours."""
    write("mine/mynet.py", NET)
    write("mine/blocks.py", BLOCKS)
    write("mine/utils.py", "SIZE = 5\n")
    return ("--arch", "mine/mynet.py:Net", *MINI)


def test_network_in_a_file_is_trained_and_measured(net):
    assert run_main(train, *net, "--epochs", 1, "--lr", 0.1) == 0
    torch.manual_seed(1)
    convolution = nn.Conv2d(1, 4, 5)
    initial, trained = weights(FOLDER / "Net_init_0.pt"), weights(FOLDER / "Net_1.pt")
    assert same(initial["conv.weight"], convolution.weight.detach())
    assert not trained["conv.weight"].equal(initial["conv.weight"])
    config = json.loads((FOLDER / "run.json").read_text())
    assert config["config"]["arch"] == "Net"

    assert run_main(compute_projections, *net, "--load-from", FOLDER / "Net_1.pt") == 0
    measured = results("results/fashion_mnist_mini_2/Net/1/Net_1.json")
    expected = trained["conv.weight"].double().sum([1, 2, 3]).tolist()
    assert measured["0"]["0"]["projections"] == pytest.approx(expected, abs=1e-9)

    checksum = hashlib.sha256(NET.encode()).hexdigest()
    for made_by in (measured["provenance"], measured["trained_by"], config["provenance"]):
        assert made_by["arguments"]["arch"] == "Net"
        assert made_by["arguments"]["arch_file"] == "mine/mynet.py"
        assert checksum.startswith(made_by["arguments"]["arch_sha256"])
    assert sys.modules["utils"].__file__ == str(ROOT / "utils" / "__init__.py")


def test_run_goes_on_with_a_changed_file_only_with_override(net, capsys):
    again = (*net, "--snapshot-every", 1, "--resume-from", "latest")
    assert run_main(train, *again, "--epochs", 1) == 0
    write("elsewhere/mynet.py", NET)  # the same, in another place
    write("elsewhere/blocks.py", BLOCKS)
    write("elsewhere/utils.py", "SIZE = 5\n")
    assert run_main(train, "--arch", "elsewhere/mynet.py:Net", *again[2:], "--epochs", 2) == 0
    write("mine/mynet.py", NET.replace("relu", "sigmoid"))
    state = FOLDER / "Net_1.tar"
    for options in (again, (*net, "--resume-from", state)):
        capsys.readouterr()
        line = refused(train, capsys, *options, "--epochs", 3)
        assert str(state) in line
        assert "SHA-256" in line
        assert "--override goes on" in line
    assert run_main(train, *net, "--resume-from", state, "--evaluate") == 0
    assert f"warning: {state} was trained with the file of --arch with SHA-256" in capsys.readouterr().err
    assert run_main(train, *again, "--epochs", 3, "--override") == 0
    assert f"warning: {state} was trained with the file of --arch with SHA-256" in capsys.readouterr().err
    (override,) = json.loads((FOLDER / "run.json").read_text())["overrides"]
    assert override["epoch"] == 2
    assert override["arch_sha256"]
    assert run_main(reinit_layers, *net, "--load-from", state, "--rand") == 0
    assert f"warning: {state} was trained with the file of --arch with SHA-256" in capsys.readouterr().err


def test_file_in_a_package_is_part_of_it():
    write("project/models/__init__.py", "from .small import Small\n")
    write("project/models/layers.py", "from torch import nn\nfrom utils.sizes import SIZE\n")
    write(
        "project/models/small.py",
        "from .layers import nn, SIZE\nfrom models.layers import SIZE as AGAIN\n"
        "class Small(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(1, SIZE, AGAIN))\n"
        "        from utils.sizes import SIZE as THIRD\n",
    )
    write("project/utils/sizes.py", "SIZE = 3\n")
    assert models.load_own("project/models/small.py:Small").name == "Small"
    assert [*models.build("Small", 10, 1)[0].weight.shape] == [3, 1, 3, 3]
    assert Path(sys.modules["models"].__file__).parent == ROOT / "models"


@pytest.mark.parametrize(
    ("signature", "passed"),
    [
        ("num_classes, in_channels", {"num_classes": 7, "in_channels": 2}),
        ("in_channels=3, image_size=None", {"in_channels": 2, "image_size": (8, 9)}),
        ("width=3", {}),
        ("**options", {"num_classes": 7}),
        ("in_channels, *widths, **options", {"in_channels": 2, "num_classes": 7}),
        ("*, num_classes=10", {"num_classes": 7}),
    ],
)
def test_class_or_function_gets_the_arguments_that_it_takes(signature, passed):
    write(
        "net.py",
        f"""
from torch import nn
def make({signature}):
    net = nn.Linear(2, 2)
    net.passed = {{**locals(), **locals().get("options", {{}})}}
    return net
class Net(nn.Linear):
    def __init__(self, {signature}):
        self.passed = {{**locals(), **locals().get("options", {{}})}}
        super().__init__(2, 2)
""",
    )
    for name in ("make", "Net"):
        models.load_own(f"net.py:{name}")
        found = models.build(name, 7, 2, (8, 9), must_fit=False).passed
        own = {key: found[key] for key in ("num_classes", "in_channels", "image_size") if found.get(key)}
        assert own == passed


WRONG = {
    "no file": ("nowhere.py:Net", "", "nowhere.py cannot be read (No such file or directory)"),
    "a folder": ("folder.py:Net", "", "folder.py cannot be read (Is a directory)"),
    "no name": ("net.py", "class Net(nn.Module): pass\ndef small(): pass\n", "net.py has Net, small"),
    "empty name": ("net.py:", "class Net(nn.Module): pass\n", "net.py has Net"),
    "another name": ("net.py:Nett", "class Net(nn.Module): pass\nx = 3\n", "net.py has Net\n"),
    "no network in it": ("net.py:Net", "", "net.py has none"),
    "a network": ("net.py:net", "net = nn.Linear(2, 2)\n", "net is a Linear: give FILE.py:NAME"),
    "not callable": ("net.py:net", "net = 3\n", "net is a int: give FILE.py:NAME"),
    "no module": ("net.py:net", "def net(): return {}\n", "it makes a dict, not an nn.Module"),
    "arguments": ("net.py:net", "def net(block, layers, width=1): pass\n", "missing a required argument: 'block'"),
    "lazy layers": ("net.py:net", "def net(): return nn.LazyBatchNorm2d(affine=False)\n", "it has lazy layers"),
    "a name of ours": ("net.py:lenet", "def lenet(): pass\n", "My_lenet = lenet"),
    "a name of torchvision's": ("net.py:densenet121", "def densenet121(): pass\n", "My_densenet121 = densenet121"),
    "an option's name": ("net.py:weights", "def weights(): pass\n", "another network is called weights"),
}  # fmt: skip


@pytest.mark.parametrize(("arch", "content", "named"), WRONG.values(), ids=WRONG)
def test_file_without_the_network_is_refused(arch, content, named, capsys):
    Path("folder.py").mkdir()
    write("net.py", f"from torch import nn\n{content}")
    for program in (train, compute_projections):
        line = refused(program, capsys, "--arch", arch, *MINI)
        assert f"--arch {arch}" in line
        assert named in line + "\n"


@pytest.mark.parametrize("layers", ["nn.Flatten(), nn.Linear(9, 10)", "nn.Conv2d(3, 4, 3)", "nn.BatchNorm1d(4)"])
def test_layers_that_do_not_take_the_images_are_refused(layers, capsys):
    write("net.py", f"from torch import nn\ndef net(): return nn.Sequential({layers})\n")
    assert "--arch net.py:net: it does not take images [1, 1, 28, 28]: " in refused(
        train, capsys, "--arch", "net.py:net", *MINI
    )


def test_network_may_have_weights_of_five_dimensions():
    layers = "nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 2, (1, 3, 3)), nn.Flatten(), nn.Linear(1352, 2)"
    write("net.py", f"from torch import nn\ndef net(): return nn.Sequential({layers})\n")
    assert run_main(train, "--arch", "net.py:net", *MINI, "--epochs", 1) == 0


def test_run_with_spectral_norm_goes_on_exactly():
    layers = "parametrizations.spectral_norm(nn.Conv2d(1, 8, 3)), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()"
    net = f"def net(): return nn.Sequential({layers}, nn.Linear(32, 2))\n"
    write("net.py", f"from torch import nn\nfrom torch.nn.utils import parametrizations\n{net}")
    options = ("--arch", "net.py:net", *MINI, "--lr", 0.1, "--resume-from", "latest")
    for base, epochs in (("whole", (2,)), ("parts", (1, 2))):
        for end in epochs:
            assert run_main(train, *options, "--epochs", end, "--models-path", base) == 0
    whole, parts = (weights(f"{base}/fashion_mnist_mini_2/net/1/net_2.pt") for base in ("whole", "parts"))
    assert same(whole, parts)


def test_network_may_have_the_name_of_its_dataset():
    write("net.py", "from torch import nn\ndef mnist(): return nn.Sequential(nn.Conv2d(1, 4, 3))\n")
    Path("noise_20").mkdir()
    torch.save(nn.Sequential(nn.Conv2d(1, 4, 3)).state_dict(), "noise_20/mnist_1.pt")
    options = ("--arch", "net.py:mnist", "--dataset", "mnist", "--load-from", "noise_20/mnist_1.pt")
    assert run_main(compute_projections, *options) == 0
    assert [row["noise"] for row in table("results/mnist/noise_20/mnist/projections.csv")] == ["noise_20"]


ERRORS = {
    "syntax": ("class Net(nn.Module:\n", "SyntaxError", 2),
    "import": ("import nothing_like_it\n", "ModuleNotFoundError: No module named 'nothing_like_it'", 2),
    "missing file": ("open('nowhere.txt')\n", "FileNotFoundError", 2),
    "a script": ("import sys\nsys.exit('usage')\n", "SystemExit: usage", 3),
    "in __init__": ("def Net(): return nn.Conv2d(3, 4, 3, groups=2)\n", "ValueError: in_channels must be", 2),
    "in what it calls": ("def helper():\n    {}[7]\ndef Net():\n    helper()\n", "KeyError: 7", 3),
    "in forward": (
        "class Net(nn.Linear):\n    def __init__(self): super().__init__(3, 2)\n"
        "    def forward(self, x):\n        try:\n            return 1 / 0\n        except ZeroDivisionError:\n"
        "            return super().forward(x)\n",
        "RuntimeError: ", 8,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "named", "line"), ERRORS.values(), ids=ERRORS)
def test_error_in_the_file_keeps_its_traceback(content, named, line, capsys):
    write("net.py", f"from torch import nn\n{content}")
    assert run_main(train, "--arch", "net.py:Net", *MINI) == 2
    *traceback, last = capsys.readouterr().err.splitlines()
    assert last.startswith(f"train.py: error: --arch net.py:Net: {named}")
    files = [shown.split('"')[1] for shown in traceback if shown.startswith("  File")]
    assert set(files) == {str(Path("net.py").resolve())}
    assert any(f"line {line}" in shown for shown in traceback)
    assert not Path("models").exists()
