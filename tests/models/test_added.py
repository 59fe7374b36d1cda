"""Networks and datasets that users add: the three programs on them, and errors in one line."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import refused, results, run_main, same, weights
from torch import nn
from torch.nn.utils import prune

import compute_projections
import data.registry
import models.registry
import reinit_layers
import train
from data.registry import Source, Spec
from utils import sources

ADDED = ("--arch", "added", "--dataset", "added", "--seed", 1)
TRAINING = (*ADDED, "--snapshot-every", 1, "--lr", 0.1, "--batch-size", 7)
FOLDER = Path("models/added/added/1")
RESULTS = Path("results/added/added/1")


class Network(nn.Module):
    """Two convolutions and a fully connected layer, for grey images of 8x8 pixels and three classes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.fc = nn.Linear(8, 3)

    def features(self, images):
        return self.second(self.first(images).relu()).relu().mean([2, 3])

    def forward(self, images):
        return self.fc(self.features(images))


class WithBuffers(Network):
    """Has buffers of several types, one of them not saved, and reads values of tensors while it is built."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.arange(8) % 4 != 0)
        self.register_buffer("order", torch.arange(8).flip(0))
        self.register_buffer("scale", 2 * torch.rand(8, device="cpu"), persistent=False)
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]

    def forward(self, images):
        x = self.features(images) * self.mask * self.scale + self.rates[1]
        return self.fc(x[:, self.order])


class WithUnusedLayer(Network):
    def __init__(self):
        super().__init__()
        self.spare = nn.Conv2d(1, 4, 3)


class WithSharedWeights(Network):
    def __init__(self):
        super().__init__()
        self.second, self.third = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.third.weight = self.second.weight
        self.fc = nn.Linear(4, 3)

    def features(self, images):
        return self.third(self.second(self.first(images).relu()).relu()).mean([2, 3])


class WithTwoOutputs(Network):
    def forward(self, images):
        return super().forward(images), images


class WithSegmentsWithoutReLU(Network):
    def segments(self):
        return [self.first, self.second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), self.fc]


class WithSegmentInPlace(Network):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.SiLU(inplace=True), self.second)

    def segments(self):
        return [self.first, self.block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), self.fc]

    def forward(self, images):
        return self.fc(self.block(self.first(images)).mean([2, 3]))


def read(root, train, **changes):
    random = np.random.default_rng(int(train))
    images = torch.from_numpy(random.integers(0, 256, (30, 1, 8, 8), dtype=np.uint8))
    parts = {"images": images, "labels": np.arange(30) % 3, **changes}
    return Source(parts["images"], parts["labels"]), ("0", "1", "2")


@pytest.fixture
def add(monkeypatch):
    """Return a function that adds a network, and a dataset with other `images` or `labels`."""

    def add(network=Network, **changes):
        spec = Spec("added", 3, 1, (8, 8), ((0.5,), (0.25,)), functools.partial(read, **changes))
        monkeypatch.setitem(models.registry._builders, "added", lambda *arguments: network())
        monkeypatch.setitem(data.registry._specs, "added", spec)
        sources.structure.cache_clear()

    return add


# Networks


@pytest.mark.parametrize(
    ("network", "optimizer"),
    [(Network, "adam"), (WithBuffers, "sgd"), (WithUnusedLayer, "sgd"), (WithUnusedLayer, "adam")],
)
def test_networks_are_trained_continued_measured_and_reset(network, optimizer, add, capsys):
    add(network)
    training = (*TRAINING, "--optimizer", optimizer, "--resume-from", "latest")
    assert run_main(train, *training, "--epochs", 2, "--models-path", "uninterrupted") == 0
    assert run_main(train, *training, "--epochs", 1) == 0
    capsys.readouterr()
    assert run_main(train, *training, "--epochs", 2) == 0
    output = capsys.readouterr()
    assert f"weights from {FOLDER}/added_0.tar" in output.out
    assert output.err == ""
    trained, initial = weights(FOLDER / "added_2.pt"), weights(FOLDER / "added_init_0.pt")
    assert same(trained, weights("uninterrupted/added/added/1/added_2.pt"))
    assert not torch.equal(trained["second.weight"], initial["second.weight"])

    assert run_main(compute_projections, *ADDED, "--load-from", FOLDER) == 0
    measured = results(RESULTS / "added_2.json")["0"]
    assert [layer["name"] for layer in measured.values()][:2] == ["first", "second"]
    expected = trained["second.weight"].double().sum([1, 2, 3]).tolist()
    assert measured["1"]["projections"] == pytest.approx(expected, abs=1e-9)
    assert run_main(compute_projections, *ADDED) == 0  # a new initialization with the same seed
    new, initial = (results(RESULTS / f"{name}.json") for name in ("init_added", "added_init_0"))
    assert new["0"]["1"]["projections"] == initial["0"]["1"]["projections"]

    Path("inits.txt").write_text(f"{FOLDER}/added_init_0.pt\n")
    inits = ("--load-from", FOLDER / "added_2.pt", "--inits-from", "inits.txt")
    assert run_main(reinit_layers, *ADDED, *inits) == 0
    top1 = torch.load(FOLDER / "added_1.tar", weights_only=True)["top1_acc"]
    assert results(RESULTS / "reinit_added_2.json")["top1_test"] == top1


def test_network_whose_output_is_not_logits_is_refused(add, capsys):
    add(WithTwoOutputs)
    assert "--arch added" in refused(train, capsys, *ADDED)


def test_network_with_all_weights_frozen_is_evaluated_but_not_trained(add, capsys):
    add(lambda: Network().requires_grad_(False))
    assert "--arch" in refused(train, capsys, *ADDED)
    torch.save(Network().state_dict(), "added_1.pt")
    assert run_main(train, *ADDED, "--resume-from", "added_1.pt", "--evaluate") == 0
    assert "test set: loss" in capsys.readouterr().out


@pytest.mark.parametrize("network", [WithSegmentsWithoutReLU, WithSegmentInPlace])
def test_wrong_segments_are_refused(network, add, capsys):
    add(network)
    assert run_main(train, *TRAINING, "--epochs", 1) == 0
    capsys.readouterr()
    line = refused(reinit_layers, capsys, *ADDED, "--load-from", FOLDER / "added_1.pt", "--rand")
    assert "segment" in line
    assert ("in place" in line) == (network is WithSegmentInPlace)


def test_filters_that_two_layers_share_count_once(add):
    add(WithSharedWeights)
    assert run_main(train, *TRAINING, "--epochs", 1) == 0
    assert run_main(compute_projections, *ADDED, "--load-from", FOLDER / "added_1.pt") == 0
    measured = results(RESULTS / "added_1.json")
    assert [layer["name"] for layer in measured["0"].values()] == ["first", "second"]
    assert measured["net"]["filters"] == 8
    assert run_main(reinit_layers, *ADDED, "--load-from", FOLDER / "added_1.pt", "--rand") == 0


@pytest.mark.parametrize(
    ("change", "options"),
    [(nn.utils.parametrizations.weight_norm, {}), (prune.l1_unstructured, {"name": "bias", "amount": 2})],
)
def test_pruned_or_parametrized_layer_is_trained_but_not_measured(change, options, add, capsys):
    def network():
        net = Network()
        change(net.second, **options)
        return net

    add(network)
    assert run_main(train, *TRAINING, "--epochs", 1) == 0
    capsys.readouterr()
    load = ("--load-from", FOLDER / "added_1.pt")
    assert "second" in refused(compute_projections, capsys, *ADDED)
    assert "second" in refused(compute_projections, capsys, *ADDED, *load)
    assert "second" in refused(reinit_layers, capsys, *ADDED, *load, "--rand")


# Datasets


def test_classes_in_another_order_in_the_test_set_are_refused(add, monkeypatch, capsys):
    add()
    names = [("a", "b", "c"), ("c", "b", "a")]
    spec = data.registry._specs["added"]
    other = replace(spec, read=lambda root, train: (spec.read(root, train)[0], names[train]))
    monkeypatch.setitem(data.registry._specs, "added", other)
    assert "order" in refused(train, capsys, *ADDED)


def test_other_images_of_the_same_number_and_classes_are_another_run(add, capsys):
    add()
    assert run_main(train, *TRAINING, "--epochs", 1) == 0
    add(images=torch.ones(30, 1, 8, 8, dtype=torch.uint8))
    capsys.readouterr()
    assert "added_0.tar" in refused(train, capsys, *TRAINING, "--epochs", 1)
    resume = (*TRAINING, "--resume-from", "latest")
    line = refused(train, capsys, *resume, "--epochs", 2)
    assert "added_0.tar" in line
    assert "--override" in line
    assert run_main(train, *resume, "--epochs", 2, "--override") == 0
    assert "warning: models/added/added/1/added_0.tar" in capsys.readouterr().err
    add(images=torch.ones(27, 1, 8, 8, dtype=torch.uint8), labels=np.arange(27) % 3)
    assert "added_1.tar" in refused(train, capsys, *resume, "--epochs", 3)
    assert run_main(train, *ADDED, "--resume-from", FOLDER / "added_0.tar", "--evaluate") == 0
