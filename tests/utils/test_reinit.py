"""Resetting layers in one pass equals the plain way: copy weights in, evaluate the network, copy them back."""

import copy

import pytest
import torch
from torch import nn

import models
from utils import reinit
from utils.training.metrics import NotFiniteError

#: Architecture -> (channels, side) of its images: one of every family, on images that are just large enough.
FAMILIES = {"lenet": (1, 28), "mlp": (1, 8), "mlp_bn": (1, 8), "alexnet": (3, 64)}
FAMILIES |= dict.fromkeys(("vgg11", "vgg11bn", "resnet18", "resnet50", "densenet121", "googlenet"), (3, 32))
FAMILIES |= dict.fromkeys(("mobilenet_v3_small", "squeezenet1_1"), (3, 32))


def network(arch: str) -> nn.Module:
    channels, side = FAMILIES[arch]
    torch.manual_seed(0)
    net = models.build(arch, 10, channels, (side, side))
    for module in net.modules():  # batch norm as after training, with nontrivial statistics and parameters
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.1)
    return net.eval()


def random_batches(net: nn.Module, arch: str, sizes: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return batches of noise with labels that the network gets right for about half of the images."""
    channels, side = FAMILIES[arch]
    random = torch.Generator().manual_seed(9)
    batches = []
    for size in sizes:
        images = torch.randn(size, channels, side, side, generator=random)
        with torch.no_grad():
            labels = net(images).argmax(1)
        wrong = torch.rand(size, generator=random) < 0.5
        batches.append((images, torch.where(wrong, (labels + 1) % 10, labels)))
    return batches


def parameters(net: nn.Module, layer: str) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in net.get_submodule(layer).named_parameters()}


def plain_top1(net: nn.Module, replacement: reinit.Replacement, batches) -> float:
    """Return the accuracy with a replacement, measured the plain way."""
    module = net.get_submodule(replacement.layer)
    trained = parameters(net, replacement.layer)
    with torch.no_grad():
        for name, weight in replacement.parameters.items():
            getattr(module, name).copy_(weight)
        correct = sum(int((net(images).argmax(1) == labels).sum()) for images, labels in batches)
        for name, weight in trained.items():
            getattr(module, name).copy_(weight)
    return 100 * correct / sum(len(labels) for _, labels in batches)


def replacements(net: nn.Module, most: int = 9) -> list[reinit.Replacement]:
    """Return random weights for each layer; of more than `most` for the first, a middle and the last one."""
    layers = models.layers(net, with_linear=True)
    if len(layers) > most:
        layers = [layers[0], layers[len(layers) // 2], layers[-1]]
    random = torch.Generator().manual_seed(2)
    others = []
    for layer in layers:
        weights = parameters(net, layer.name).items()
        drawn = {name: 2 * weight.std() * torch.randn(weight.shape, generator=random) for name, weight in weights}
        others.append(reinit.Replacement(layer.name, drawn))
    return others


@pytest.fixture
def lenet() -> nn.Module:
    return network("lenet")


@pytest.mark.parametrize(
    "arch",
    [
        pytest.param(arch, marks=() if arch in ("lenet", "mlp", "resnet18") else pytest.mark.long)
        for arch in FAMILIES
    ],
)
def test_accuracies_equal_replacing_evaluating_and_restoring(arch):
    net = network(arch)
    batches = random_batches(net, arch, [24, 24, 11])
    before = copy.deepcopy(net.state_dict())
    others = replacements(net)
    trained = reinit.Replacement(others[0].layer, parameters(net, others[0].layer))
    for layout in (torch.contiguous_format, torch.channels_last):
        net.to(memory_format=layout)
        batches = [(images.to(memory_format=layout), labels) for images, labels in batches]
        measured = reinit.accuracies(net, others, batches)
        assert all(torch.equal(before[name], weight) for name, weight in net.state_dict().items())
        assert measured.replaced == [plain_top1(net, other, batches) for other in others]
        assert measured.top1 == plain_top1(net, trained, batches)
        with torch.no_grad():
            among_five = [(net(x).topk(5).indices == labels[:, None]).any(1) for x, labels in batches]
        assert measured.top5 == pytest.approx(100 * torch.cat(among_five).double().mean().item())
        assert len({measured.top1, *measured.replaced}) > 1


class Recurrent(nn.Module):
    """A network that uses one convolution twice; if `tied`, by two modules that share its weights."""

    def __init__(self, tied: bool):
        super().__init__()
        self.stem, self.step = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.again = self.step
        if tied:
            self.again = nn.Conv2d(8, 8, 3, padding=1)
            self.again.weight, self.again.bias = self.step.weight, self.step.bias
        self.fc = nn.Linear(8, 10)
        for parameter in self.parameters():  # large enough for other weights to give other classes
            nn.init.normal_(parameter, std=0.3)

    def segments(self):
        ends = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), self.fc]
        return [self.stem, nn.ReLU(), self.step, nn.ReLU(), self.again, *ends]

    def forward(self, images):
        for segment in self.segments():
            images = segment(images)
        return images


@pytest.mark.parametrize("tied", [False, True])
def test_weights_used_in_two_places_are_replaced_in_both(tied):
    torch.manual_seed(0)
    net, other = Recurrent(tied).eval(), Recurrent(tied)
    images = torch.randn(500, 3, 8, 8)
    with torch.no_grad():
        labels = net(images).argmax(1)
    layers = [layer.name for layer in models.layers(net)]
    assert layers == ["stem", "step"]
    for layer in layers:
        replacement = reinit.Replacement(layer, parameters(other, layer))
        expected = plain_top1(net, replacement, [(images, labels)])
        assert expected < 100
        assert reinit.accuracies(net, [replacement], [(images, labels)]).replaced == [expected]


def test_first_of_equal_outputs_is_the_prediction(lenet):
    for parameter in lenet.classifier[6].parameters():
        parameter.data.zero_()
    images, _ = random_batches(lenet, "lenet", [10])[0]
    assert reinit.accuracies(lenet, [], [(images, torch.arange(10))]).top1 == 10
    first = reinit.accuracies(lenet, [], [(images, torch.zeros(10, dtype=torch.int64))])
    assert (first.top1, first.top5) == (100, 100)


def test_each_batch_is_read_once_and_trained_segments_run_once(lenet):
    others = [other for other in replacements(lenet) if other.layer.startswith("features")]
    batches = random_batches(lenet, "lenet", [8, 8])
    calls = {other.layer: 0 for other in others}

    def count(name):
        return lambda module, inputs, output: calls.__setitem__(name, calls[name] + 1)

    for name in calls:
        lenet.get_submodule(name).register_forward_hook(count(name))
    reinit.accuracies(lenet, others, iter(batches))
    # Layer k runs once with the trained weights, and once in each branch of a layer up to it.
    assert list(calls.values()) == [2 * (1 + branches) for branches in range(1, 7)]


def test_replacement_equal_to_the_trained_weights_is_not_run(lenet):
    batches = random_batches(lenet, "lenet", [20])
    calls = []
    lenet.classifier[6].register_forward_hook(lambda *_: calls.append(1))
    same = reinit.Replacement("features.0", parameters(lenet, "features.0"))
    other_bias = parameters(lenet, "features.2")
    other_bias["bias"] = other_bias["bias"] + 1
    measured = reinit.accuracies(lenet, [same, reinit.Replacement("features.2", other_bias)], batches)
    assert len(calls) == 2  # with the trained weights, and with the other bias
    assert measured.replaced[0] == measured.top1


def test_replacements_too_large_for_memory_and_of_another_type_give_the_same_accuracies(lenet, monkeypatch):
    batches = random_batches(lenet, "lenet", [16, 5])
    half = [
        reinit.Replacement(layer, {name: weight.half() for name, weight in weights.items()})
        for layer, weights in replacements(lenet)
    ]
    rounded = [
        reinit.Replacement(layer, {name: weight.float() for name, weight in weights.items()})
        for layer, weights in half
    ]
    expected = [plain_top1(lenet, other, batches) for other in rounded]
    for room in (reinit.CPU_RESIDENT_BYTES, 0):
        monkeypatch.setattr(reinit, "CPU_RESIDENT_BYTES", room)
        assert reinit.accuracies(lenet, half, batches).replaced == expected


@pytest.mark.parametrize(("room", "sizes"), [(6, ["10", "5"]), (0, None)])
def test_batches_are_halved_until_they_fit(lenet, room, sizes):
    batches = random_batches(lenet, "lenet", [20, 20, 7])
    others = replacements(lenet)
    expected = reinit.accuracies(lenet, others, batches)

    def refuse(module, inputs):
        if len(inputs[0]) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    lenet.features[5].register_forward_pre_hook(refuse)
    lines: list[str] = []
    if sizes is None:  # a single image does not fit
        with pytest.raises(torch.OutOfMemoryError):
            reinit.accuracies(lenet, others, batches, lines.append)
    else:
        assert reinit.accuracies(lenet, others, batches, lines.append) == expected
        assert [line.split()[-1] for line in lines] == sizes


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_accuracy_of_outputs_that_are_not_finite_is_none(lenet, value):
    batches = random_batches(lenet, "lenet", [4])
    broken = parameters(lenet, "features.5")
    broken["weight"].fill_(value)
    other = replacements(lenet)[0]
    alone = reinit.accuracies(lenet, [other], batches)
    with_broken = reinit.accuracies(lenet, [reinit.Replacement("features.5", broken), other], batches)
    assert with_broken == alone._replace(replaced=[None, *alone.replaced])
    lenet.features[0].weight.data.fill_(value)
    with pytest.raises(NotFiniteError, match="4 of 4 images"):
        reinit.accuracies(lenet, [], batches)


@pytest.mark.parametrize(("channels", "side", "size"), [(3, 32, 2048), (1, 28, 8024), (3, 224, 128)])
def test_batches_of_small_images_are_larger_on_a_gpu(channels, side, size):
    assert reinit.fitting_batch_size(128, torch.device("cuda"), channels, (side, side)) == size
    assert reinit.fitting_batch_size(128, torch.device("cpu"), channels, (side, side)) == 128


def test_relative_drop_is_the_share_of_accuracy_lost():
    assert reinit.relative_drops(80, [80, 40, 8, 88]) == pytest.approx([0, 0.5, 0.9, -0.1])
    assert reinit.relative_drops(0, [0, 10]) == [None, None]
    assert reinit.relative_drops(80, [None, 80]) == [None, 0]
    assert reinit.relative_drops(80, [80, 45, 10, None], chance=10) == pytest.approx([0, 0.5, 1, None])
    assert reinit.relative_drops(10, [10, 0], chance=10) == [None, None]
    assert reinit.critical([0.5, 0.51, -1, None]) == [False, True, False, False]


def test_layers_are_put_back_along_one_direction():
    torch.manual_seed(0)
    initial, weight = torch.randn(2, 5, 3, 3, 3)
    line = torch.ones(27, dtype=torch.float64) / 27**0.5

    def parts(one):
        """Return the components along the identity line, and the rest."""
        filters = one.double().flatten(1)
        return filters @ line, filters - (filters @ line).outer(line)

    (start, _), (trained, rest) = parts(initial), parts(weight)
    put_back = {name: reinit.put_back(weight, initial, name) for name in reinit.DIRECTIONS}
    along, others = parts(put_back["identity_line"])
    torch.testing.assert_close(along, start, atol=1e-6, rtol=0)
    torch.testing.assert_close(others, rest, atol=1e-6, rtol=0)
    size = (trained - start).norm().item()
    step = (put_back["largest_direction"] - weight).double().flatten(1)
    assert step.norm().item() == pytest.approx(size, rel=1e-5)
    assert torch.linalg.matrix_rank(step, rtol=1e-4) == 1  # one direction for all filters
    torch.testing.assert_close(step @ line, torch.zeros(5, dtype=torch.float64), atol=1e-6, rtol=0)
    moved = (weight - initial).double().flatten(1)
    moved -= (moved @ line).outer(line)
    largest = torch.linalg.svd(moved).Vh[0]
    step = -step @ largest
    torch.testing.assert_close(step / step.norm(), (moved @ largest) / (moved @ largest).norm(), atol=1e-5, rtol=0)
    for name in reinit.DIRECTIONS:
        assert torch.equal(reinit.put_back(weight, weight, name), weight)


@pytest.mark.cuda
@pytest.mark.parametrize("arch", ["lenet", "vgg11bn", "resnet18"])
def test_accuracies_on_a_gpu_equal_replacing_evaluating_and_restoring(arch):
    net = network(arch)
    batches = [(images.cuda(), labels.cuda()) for images, labels in random_batches(net, arch, [24, 11])]
    net.cuda()
    others = replacements(net)
    assert reinit.accuracies(net, others, batches).replaced == [plain_top1(net, o, batches) for o in others]
