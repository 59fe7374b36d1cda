"""Networks and datasets that users add: unusual ones work, and what is wrong with one is said in a line."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import refused, results, run_main
from torch import nn
from torch.nn.utils import prune

import compute_projections
import data
import data.registry
import models
import models.registry
import reinit_layers
import train
from data.registry import ArraySource, Spec

ADDED = ("--arch", "added", "--dataset", "added", "--seed", 1)
FOLDER = Path("models/added/added/1")


class Network(nn.Module):
    """Two convolutions and a fully connected layer, for grey images of 8x8 pixels."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, images):
        x = self.second(self.first(images).relu()).relu()
        return self.fc(x.mean([2, 3]))


class Masked(Network):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.arange(8) % 4 != 0)
        self.register_buffer("order", torch.arange(8).flip(0))

    def forward(self, images):
        x = self.second(self.first(images).relu()).relu()
        return self.fc((x.mean([2, 3]) * self.mask)[:, self.order])


class Frozen(Network):
    def __init__(self):
        super().__init__()
        self.first.requires_grad_(False)


class WithSpare(Network):
    def __init__(self):
        super().__init__()
        self.spare = nn.Conv2d(1, 4, 3)


class Deciding(Network):
    def forward(self, images):
        return super().forward(images if images.mean() > 0 else -images)


class GivingTwo(Network):
    def forward(self, images):
        return super().forward(images), images


class WithAnotherHead(Network):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)


class Lazy(Network):
    def __init__(self):
        super().__init__()
        self.first = nn.LazyConv2d(4, 3, padding=1)


class ForVolumes(Network):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv3d(1, 4, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, images):
        x = self.second(self.first(images[:, None]).squeeze(2).relu()).relu()
        return self.fc(x.mean([2, 3]))


class Complex(Network):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3, dtype=torch.complex64))

    def forward(self, images):
        return super().forward(images) + self.shift.abs()


class WithComplexBuffer(Network):
    def __init__(self):
        super().__init__()
        self.register_buffer("waves", torch.ones(3, dtype=torch.complex64))


class WithExtraState(Network):
    def __init__(self):
        super().__init__()
        self.fc = LinearThatCounts(8, 3)


class LinearThatCounts(nn.Linear):
    def get_extra_state(self):
        return {"calls": 0}

    def set_extra_state(self, state):
        pass


class Head(nn.Module):
    """Three pixels are the logits."""

    def forward(self, images):
        return images.flatten(1)[:, :3]


class WithConstants(Network):
    """What is in no snapshot: a random buffer that is not saved, an attribute; and values are looked at early."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", 2 * torch.rand(8, device="cpu"), persistent=False)
        self.shift = torch.full((8,), 0.5)
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]

    def forward(self, images):
        x = self.second(self.first(images).relu()).relu()
        return self.fc(x.mean([2, 3]) * self.scale + self.shift * self.rates[1])


class Double(Network):
    def __init__(self):
        super().__init__()
        self.double()

    def forward(self, images):
        return super().forward(images.double()).float()


class Random(Network):
    def forward(self, images):
        return super().forward(images + 0.1 * torch.randn_like(images))


class Misdescribed(Network):
    def segments(self):  # without the ReLUs
        return [self.first, self.second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), self.fc]


class Unflattened(Network):
    def segments(self):  # which do not fit one another
        return [self.first, self.second, self.fc]


class ChangingItsInput(Network):
    def __init__(self):
        super().__init__()
        self.rest = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.block = Block(self.second)

    def segments(self):
        return [self.first, self.block, self.rest, self.fc]

    def forward(self, images):
        return self.fc(self.rest(self.block(self.first(images))))


class Block(nn.Module):
    def __init__(self, convolution):
        super().__init__()
        self.convolution = convolution

    def forward(self, x):
        return self.convolution(nn.functional.silu(x, inplace=True))


class Parametrized(Network):
    def __init__(self, how, **options):
        super().__init__()
        how(self.second, **options)


def read(root, train, **changes):
    random = np.random.default_rng(int(train))
    images = torch.from_numpy(random.integers(0, 256, (30, 1, 8, 8), dtype=np.uint8))
    parts = {"images": images, "labels": np.arange(30) % 3, "names": ("0", "1", "2"), **changes}
    return ArraySource(parts["images"], parts["labels"]), parts["names"]


@pytest.fixture
def add(monkeypatch):
    """`add(network)`, `add(images=..., labels=..., names=...)`: what is read of the added dataset."""

    def add(network=Network, **changes):
        spec = Spec("added", 3, 1, (8, 8), ((0.5,), (0.25,)), functools.partial(read, **changes))
        monkeypatch.setitem(models.registry._builders, "added", lambda *arguments: network())
        monkeypatch.setitem(data.registry._specs, "added", spec)
        compute_projections.structure.cache_clear()

    return add


@pytest.mark.parametrize("arch", ["added_init", "added_pretrained", "added_2"])
def test_snapshots_of_a_network_whose_name_looks_like_a_snapshots(arch, add, monkeypatch, capsys):
    add()
    monkeypatch.setitem(models.registry._builders, arch, lambda *arguments: Network())
    options = ("--arch", arch, "--dataset", "added", "--seed", 1)
    training = (*options, "--snapshot-every", 1, "--batch-size", 7)
    assert run_main(train, *training, "--epochs", 2) == 0
    assert run_main(train, *training, "--epochs", 2, "--lr", 0.5) == 2
    assert "is of another run (--lr" in capsys.readouterr().err
    assert run_main(train, *training, "--epochs", 3, "--resume-from", "latest") == 0
    assert "epoch 1 " not in capsys.readouterr().out
    folder = Path("models/added", arch, "1")
    assert run_main(compute_projections, *options, "--load-from", folder) == 0
    measured = {path.stem for path in Path("results/added", arch, "1").iterdir()}
    assert measured >= {f"{arch}_init_0", f"{arch}_0", f"{arch}_1", f"{arch}_2", f"{arch}_3"}


def trained(*options) -> int:
    return run_main(train, *ADDED, "--snapshot-every", 1, "--lr", 0.1, "--batch-size", 7, *options)


def weights(folder: str) -> dict[str, torch.Tensor]:
    return torch.load(f"{folder}/added/added/1/added_2.pt", weights_only=True)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("network", [Network, Masked, Frozen, WithSpare, Deciding, WithConstants, Double])
def test_unusual_networks_are_continued_measured_and_reset(network, optimizer, add, capsys):
    add(network)
    options = ("--optimizer", optimizer, "--resume-from", "latest")
    assert trained(*options, "--epochs", 2, "--models-path", "whole") == 0
    assert trained(*options, "--epochs", 1) == 0
    capsys.readouterr()
    assert trained(*options, "--epochs", 2) == 0
    output = capsys.readouterr()
    assert f"weights from {FOLDER}/added_0.tar" in output.out
    assert output.err == ""
    whole, parts = weights("whole"), weights("models")
    assert all(torch.equal(weight, parts[name]) for name, weight in whole.items())
    assert not torch.equal(whole["second.weight"], torch.load(FOLDER / "added_init_0.pt")["second.weight"])
    assert run_main(compute_projections, *ADDED, "--load-from", FOLDER) == 0
    Path("inits.txt").write_text(f"{FOLDER}/added_init_0.pt\n")
    assert run_main(reinit_layers, *ADDED, "--load-from", FOLDER / "added_2.pt", "--inits-from", "inits.txt") == 0
    # All have started from the same weights, and evaluated the same network.
    assert run_main(compute_projections, *ADDED) == 0
    drawn, initial = (
        results(f"results/added/added/1/{name}.json")["0"]["1"]["projections"]
        for name in ("init_added", "added_init_0")
    )
    assert drawn == initial
    top1 = results("results/added/added/1/reinit_added_2.json")["top1_test"]
    assert top1 == torch.load(FOLDER / "added_1.tar", weights_only=True)["top1_acc"]


def test_buffer_of_another_kind_is_of_another_network(add, capsys):
    add(Masked)
    assert trained("--epochs", 1) == 0
    state = torch.load(FOLDER / "added_1.pt", weights_only=True)
    torch.save({**state, "mask": state["mask"].float()}, "added_1.pt")
    capsys.readouterr()
    line = refused(compute_projections, capsys, *ADDED, "--load-from", "added_1.pt")
    assert "mask is of type torch.float32, not torch.bool" in line


@pytest.mark.parametrize(("network", "output"), [(GivingTwo, "a tuple"), (WithAnotherHead, "[1, 4]")])
def test_network_that_does_not_give_logits_is_refused(network, output, add, capsys):
    add(network)
    line = refused(train, capsys, *ADDED)
    assert line.endswith(f"--arch added: of an image it makes {output}, not logits of shape [1, 3]")


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (lambda: None, "what its builder returns is no torch.nn.Module, but a NoneType"),
        (lambda: torch.relu, "what its builder returns is no torch.nn.Module, but a builtin_function_or_method"),
        (Lazy, "first.weight has no shape yet: layers must be built with all of their sizes"),
        (ForVolumes, "first.weight has five dimensions, which is not supported"),
        (Complex, "shift is of type torch.complex64: parameters must be floating-point numbers"),
        (WithComplexBuffer, "waves is of type torch.complex64, of which snapshots hold none"),
        (WithExtraState, "fc._extra_state is no tensor, and snapshots hold nothing else of a network"),
    ],
    ids=["none", "function", "lazy", "volumes", "complex", "complex buffer", "extra state"],
)
def test_network_that_cannot_be_trained_and_kept_is_refused(network, told, add, capsys):
    add(network)
    for program in (train, compute_projections):
        assert refused(program, capsys, *ADDED).endswith(f"--arch added: {told}")


@pytest.mark.parametrize("network", [lambda: Network().requires_grad_(False), Head])
def test_network_without_anything_to_train_is_refused(network, add, capsys):
    add(network)
    assert "--arch added has no parameters to train" in refused(train, capsys, *ADDED)


def test_frozen_network_is_evaluated(add, capsys):
    add()
    assert trained("--epochs", 1) == 0
    capsys.readouterr()
    add(lambda: Network().requires_grad_(False))
    assert run_main(train, *ADDED, "--resume-from", FOLDER / "added_1.pt", "--evaluate") == 0
    assert "test set: loss" in capsys.readouterr().out


@pytest.mark.parametrize("network", [Misdescribed, Unflattened, ChangingItsInput])
def test_segments_that_cannot_be_branched_from_are_refused(network, add, capsys):
    add(network)
    assert trained("--epochs", 1) == 0
    capsys.readouterr()
    line = refused(reinit_layers, capsys, *ADDED, "--load-from", FOLDER / "added_1.pt", "--rand")
    assert "a segment of the network, Block, changes its input" in line or "the segments of the network" in line
    assert (network is ChangingItsInput) == ("changes its input" in line)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("how", "options"),
    [
        (nn.utils.parametrizations.weight_norm, {}),
        (nn.utils.weight_norm, {}),
        (nn.utils.spectral_norm, {}),
        (prune.l1_unstructured, {"name": "weight", "amount": 2}),
        (prune.l1_unstructured, {"name": "bias", "amount": 2}),
    ],
)
def test_layer_whose_weights_are_computed_from_others_is_trained_but_not_measured(how, options, add, capsys):
    add(functools.partial(Parametrized, how, **options))
    assert trained("--epochs", 1) == 0
    capsys.readouterr()
    for more in ((), ("--load-from", FOLDER / "added_1.pt")):
        assert "second is parametrized" in refused(compute_projections, capsys, *ADDED, *more)
    line = refused(reinit_layers, capsys, *ADDED, "--load-from", FOLDER / "added_1.pt", "--rand")
    assert "second is parametrized" in line


class Shared(Network):
    def __init__(self):
        super().__init__()
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.third = nn.Conv2d(4, 4, 3, padding=1)
        self.third.weight = self.second.weight
        self.fc = nn.Linear(4, 3)

    def forward(self, images):
        x = self.third(self.second(self.first(images).relu()).relu())
        return self.fc(x.mean([2, 3]))


def test_filters_that_two_layers_share_count_once(add):
    add(Shared)
    assert trained("--epochs", 1) == 0
    assert run_main(compute_projections, *ADDED, "--load-from", FOLDER / "added_1.pt") == 0
    measured = results("results/added/added/1/added_1.json")
    assert [layer["name"] for layer in measured["0"].values()] == ["first", "second"]
    assert measured["net"]["filters"] == 8


def test_network_whose_output_is_random_can_be_reset(add):
    add(Random)
    assert trained("--epochs", 1) == 0
    assert run_main(reinit_layers, *ADDED, "--load-from", FOLDER / "added_1.pt", "--rand") == 0


@pytest.mark.parametrize("segments", [4, None, [], [torch.relu]], ids=["number", "none", "empty", "function"])
def test_segments_that_are_not_modules_are_refused(segments, add, capsys):
    network = Network()
    network.segments = (lambda: segments) if segments != 4 else 4
    add(lambda: network)
    assert "`segments`" in refused(train, capsys, *ADDED)


class InModule(nn.Module):
    """Of which all, or one part of two, is called what DataParallel calls it."""

    def __init__(self, alone: bool):
        super().__init__()
        self.module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        self.scale = nn.Identity() if alone else nn.Linear(3, 3)

    def forward(self, images):
        return self.scale(self.module(images))


def test_part_that_is_called_as_by_dataparallel_keeps_its_name_or_is_refused(add, capsys):
    add(lambda: InModule(alone=False))
    assert trained("--epochs", 1) == 0
    assert run_main(reinit_layers, *ADDED, "--load-from", FOLDER / "added_1.pt", "--rand") == 0
    assert results("results/added/added/1/reinit_added_1.json")["layers"] == ["module.0"]
    capsys.readouterr()
    add(lambda: InModule(alone=True))
    assert "module.0.weight would be taken for the 0.weight" in refused(train, capsys, *ADDED)


def test_classes_of_training_and_test_images_in_another_order_are_refused(add, monkeypatch, capsys):
    names = [("a", "b", "c"), ("c", "b", "a")]
    add()
    spec = data.info("added")
    other = replace(spec, read=lambda root, train: (spec.read(root, train)[0], names[train]))
    monkeypatch.setitem(data.registry._specs, "added", other)
    assert "are not in the same order" in refused(train, capsys, *ADDED)


@pytest.mark.parametrize("kind", [nn.Sequential, nn.ModuleList])
def test_part_of_a_network_may_be_called_segments(kind, add):
    class Parted(nn.Module):
        def __init__(self):
            super().__init__()
            self.segments = kind([nn.Conv2d(1, 4, 3)]) if kind is nn.ModuleList else kind(nn.Conv2d(1, 4, 3))
            self.fc = nn.Linear(4, 3)

        def forward(self, images):
            return self.fc(self.segments[0](images).mean([2, 3]))

    add(Parted)
    assert trained("--epochs", 1) == 0
    assert run_main(reinit_layers, *ADDED, "--load-from", FOLDER / "added_1.pt", "--rand") == 0
    measured = results("results/added/added/1/reinit_added_1.json")
    assert measured["layers"] == ["segments.0"]


@pytest.mark.parametrize("names", [np.array(["a", "b", "c"]), np.arange(3), (0, 1, 2)], ids=str)
def test_class_names_of_any_type_are_text(names, add, capsys):
    add(names=names)
    assert trained("--epochs", 1) == 0
    assert trained("--epochs", 2, "--resume-from", "latest") == 0
    output = capsys.readouterr()
    assert "warning: passed over" not in output.err
    assert f"weights from {FOLDER}/added_0.tar" in output.out


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": np.arange(30, dtype=np.int32) % 3}, "labels are no array (n,) of int64"),
        ({"labels": (np.arange(30) % 3).tolist()}, "labels are no array (n,) of int64"),
        ({"labels": np.arange(30) % 4}, "labels are not in 0 to 2"),
        ({"labels": np.arange(30) % 3 - 1}, "labels are not in 0 to 2"),
        ({"labels": np.arange(0), "images": torch.zeros(0, 1, 8, 8, dtype=torch.uint8)}, "there are no images"),
        ({"names": ("a", "b", "b")}, "two classes have the same name"),
        ({"names": ("a", "b", "c", "d")}, "there are 4 classes, not 3"),
        ({"images": torch.zeros(30, 1, 8, 8)}, "images are no uint8 tensor (30, 1, 8, 8)"),
        ({"images": torch.zeros(30, 1, 8, 9, dtype=torch.uint8)}, "images are no uint8 tensor (30, 1, 8, 8)"),
        ({"images": np.zeros((30, 1, 8, 8), np.uint8)}, "images are no uint8 tensor (30, 1, 8, 8)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_dataset_that_is_not_as_it_should_be_is_refused(changes, told, add, capsys):
    add(**changes)
    assert told in refused(train, capsys, *ADDED)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"normalization": ((0.5,), (0.25, 0.25))}, "a value for each channel"),
        ({"normalization": ((0.5,), (0.0,))}, "standard deviations more than 0"),
        ({"normalization_upscaled": ((float("nan"),), (1.0,))}, "means are finite"),
        ({"image_size": (0, 8)}, "at least 1"),
    ],
)
def test_specification_that_cannot_be_is_refused(changes, told, add, monkeypatch, capsys):
    add()
    sound = {"num_classes": 3, "in_channels": 1, "image_size": (8, 8), "normalization": ((0.5,), (0.25,))}
    monkeypatch.setitem(data.registry._specs, "added", Spec("added", read=read, **{**sound, **changes}))
    assert told in refused(train, capsys, *ADDED)


def test_other_images_are_another_run(add, capsys):
    """Of the same classes and as many, so that nothing else tells."""
    add()
    assert trained("--epochs", 1) == 0
    add(images=torch.ones(30, 1, 8, 8, dtype=torch.uint8))
    capsys.readouterr()
    again = (*ADDED, "--snapshot-every", 1, "--lr", 0.1, "--batch-size", 7)
    line = refused(train, capsys, *again, "--epochs", 1)
    assert "added_0.tar is of another run (other images or labels)" in line
    line = refused(train, capsys, *again, "--epochs", 2, "--resume-from", "latest")
    assert "added_0.tar was trained on other images or labels; --override goes on with these" in line
    assert run_main(train, *again, "--epochs", 2, "--resume-from", "latest", "--override") == 0
    assert "warning: models/added/added/1/added_0.tar was trained on other images" in capsys.readouterr().err
    add(images=torch.ones(27, 1, 8, 8, dtype=torch.uint8), labels=np.arange(27) % 3)
    line = refused(train, capsys, *again, "--epochs", 3, "--resume-from", "latest")
    assert "added_1.tar was trained on 30 training images, not 27" in line
    assert run_main(train, *ADDED, "--resume-from", FOLDER / "added_0.tar", "--evaluate") == 0  # which may be
