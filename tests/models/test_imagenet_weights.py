"""ImageNet weights for torchvision's networks: files, checksums, damage and failed downloads."""

import math
import re
import urllib.error
from types import SimpleNamespace

import pytest
import torch
from torchvision.models import get_model, get_model_weights

import models
from models import zoo


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """torchvision's folder for weights, empty; a download fails."""

    def fail(url, *args, **kwargs):
        raise urllib.error.URLError("no downloads in tests")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


#: The file of the weights, and the last layer.
WEIGHTS = {
    "alexnet": ("alexnet-owt-7be5be79.pth", "classifier.6"),
    "densenet121": ("densenet121-a639ec97.pth", "classifier"),
    "googlenet": ("googlenet-1378be20.pth", "fc"),
    "resnet18": ("resnet18-f37072fd.pth", "fc"),
    "squeezenet1_0": ("squeezenet1_0-b66bff10.pth", "classifier.1"),
}
RESNET18 = WEIGHTS["resnet18"][0]


def zoo_file(arch, folder, zipped=True):
    """Write a file of weights like torchvision's; return the weights that are not of auxiliary heads."""
    torch.manual_seed(99)
    options = {"aux_logits": True, "init_weights": False} if arch == "googlenet" else {}
    weights = get_model(arch, **options).state_dict()
    for weight in weights.values():
        weight += 1  # unlike any initialization
    in_file = weights
    if arch == "densenet121":  # the names in its file are older: modules could have dots in their names
        in_file = {re.sub(r"(denselayer\d+\.)(norm|conv)([12])", r"\1\2.\3", key): w for key, w in weights.items()}
        assert "features.denseblock1.denselayer1.norm.1.weight" in in_file
    torch.save(in_file, folder / WEIGHTS[arch][0], _use_new_zipfile_serialization=zipped)
    return {key: weight for key, weight in weights.items() if not key.startswith("aux")}


def changed(net, weights):
    found = net.state_dict()
    assert found.keys() == weights.keys()
    return {name for name in weights if not found[name].equal(weights[name])}


@pytest.mark.parametrize("arch", WEIGHTS)
def test_pretrained_weights_are_loaded_and_other_classes_get_a_new_last_layer(checkpoints, arch):
    weights = zoo_file(arch, checkpoints, zipped=arch != "resnet18")
    assert changed(models.build(arch, 1000, pretrained=True), weights) == set()
    torch.manual_seed(0)
    net = models.build(arch, 10, 3, (64, 64), pretrained=True)
    last = WEIGHTS[arch][1]
    assert changed(net, weights) == {f"{last}.weight", f"{last}.bias"}
    weight = net.get_submodule(last).weight
    assert weight.shape == (10, *weights[f"{last}.weight"].shape[1:])
    bound = 1 / math.sqrt(weight[0].numel())  # of PyTorch's default initialization
    assert 0.5 * bound < weight.abs().max() <= bound
    assert net.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 10)


def test_grey_images_get_a_new_first_convolution_only(checkpoints):
    weights = zoo_file("resnet18", checkpoints)
    net = models.build("resnet18", 1000, in_channels=1, pretrained=True)
    assert changed(net, weights) == {"conv1.weight"}
    assert net.conv1.weight.shape == (64, 1, 7, 7)


@pytest.mark.parametrize(
    ("arch", "file"),
    [("resnet50", "resnet50-0676ba61.pth"), ("efficientnet_b1", "efficientnet_b1_rwightman-bac287d4.pth")],
)
def test_weights_are_the_first_that_torchvision_published(checkpoints, monkeypatch, arch, file):
    asked = []
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *arguments, **options: asked.append(arguments))
    with pytest.raises(models.ModelError):
        models.build(arch, 1000, pretrained=True)
    sha256 = file.rpartition("-")[2].removesuffix(".pth")
    assert asked == [(f"https://download.pytorch.org/models/{file}", str(checkpoints / file), sha256)]


def test_every_other_network_has_imagenet_weights_with_a_checksum_in_their_name():
    for arch in models.other_names():
        models.check(arch, pretrained=True)
        versions = get_model_weights(arch)
        assert hasattr(versions, "IMAGENET1K_V1") == (arch != "regnet_y_128gf")
        assert all(re.search(r"-[0-9a-f]{8,}\.pth$", weights.url) for weights in versions)
        assert len(versions.DEFAULT.meta["categories"]) == 1000


@pytest.mark.parametrize(("sha256", "rank"), [("f37072fd0c75", "0"), ("f37072fe0c75", "0"), ("f37072fe0c75", "1")])
def test_one_process_of_each_machine_warns_of_another_checksum(sha256, rank, checkpoints, monkeypatch, capsys):
    zoo_file("resnet18", checkpoints)
    monkeypatch.setattr(zoo.hashlib, "sha256", lambda content: SimpleNamespace(hexdigest=lambda: sha256))
    monkeypatch.setenv("LOCAL_RANK", rank)
    models.build("resnet18", 1000, pretrained=True)
    warned = capsys.readouterr().err
    assert warned.startswith(f"warning: {checkpoints / RESNET18} ") == (sha256[7] == "e" and rank == "0")


class Code:
    """Runs a function when it is unpickled."""

    ran = False

    def __reduce__(self):
        return (setattr, (Code, "ran", True))


def save_old(content, file):
    torch.save(content, file, _use_new_zipfile_serialization=False)


def truncate(file, save, keep):
    save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, file)
    file.write_bytes(file.read_bytes()[:keep])


DAMAGED = {
    "empty": lambda file: file.write_bytes(b""),
    "zip without its end": lambda file: truncate(file, torch.save, -30),
    "old format without its end": lambda file: truncate(file, save_old, -1),
    "web page": lambda file: file.write_bytes(b"<!DOCTYPE html>\n<html>no such file</html>\n"),
    "code in a zip": lambda file: torch.save({"conv1.weight": Code()}, file),
    "code in old format": lambda file: save_old({"conv1.weight": Code()}, file),
    "list": lambda file: torch.save([torch.zeros(3)], file),
    "other network": lambda file: torch.save(get_model("resnet34").state_dict(), file),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_file_of_weights_is_named(checkpoints, damage):
    file = checkpoints / RESNET18
    DAMAGED[damage](file)
    with pytest.raises(models.ModelError, match=r"^--pretrained: .*") as error:
        models.build("resnet18", 1000, pretrained=True)
    assert str(file) in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not Code.ran


@pytest.mark.parametrize(
    "failure",
    [urllib.error.URLError(OSError(-2, "Name or service not known")), RuntimeError("invalid hash value")],
)
def test_failed_download_is_an_error_that_names_the_address(checkpoints, monkeypatch, failure):
    def fail(*args, **kwargs):
        raise failure

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(models.ModelError, match=rf"^--pretrained: .*https://download.pytorch.org/.*{RESNET18}"):
        models.build("resnet18", 1000, pretrained=True)
