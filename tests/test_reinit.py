"""Resetting layers in one pass, beside the plain way: copy in, evaluate the whole network, copy back."""

import copy

import pytest
import torch
from torch import nn

import models
from utils import reinit
from utils.training.metrics import NotFiniteError

#: One of every family, on images that are just large enough: architecture -> (channels, side of the images).
FAMILIES = {
    "lenet": (1, 28),
    "mlp": (1, 8),
    "mlp_bn": (1, 8),
    "alexnet": (3, 64),
    "vgg11": (3, 32),
    "vgg11bn": (3, 32),
    "resnet18": (3, 32),
    "resnet50": (3, 32),
    "densenet121": (3, 32),
    "googlenet": (3, 32),
    "mobilenet_v3_small": (3, 32),
    "squeezenet1_1": (3, 32),
}


def network(arch: str, seed: int = 0) -> nn.Module:
    channels, side = FAMILIES[arch]
    torch.manual_seed(seed)
    net = models.build(arch, 10, channels, (side, side))
    for module in net.modules():  # batch norm as after training: neither statistics nor parameters are trivial
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.1)
    return net.eval()


def images_and_labels(
    arch: str, sizes: list[int], seed: int = 9, net: nn.Module | None = None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of noise, labelled so that the network (default: that of seed 0) gets about half of them right."""
    channels, side = FAMILIES[arch]
    net = network(arch) if net is None else net
    random = torch.Generator().manual_seed(seed)
    batches = []
    for size in sizes:
        images = torch.randn(size, channels, side, side, generator=random)
        with torch.no_grad():
            labels = net(images).argmax(1)
        wrong = torch.rand(size, generator=random) < 0.5
        batches.append((images, torch.where(wrong, (labels + 1) % 10, labels)))
    return batches


def parameters(net: nn.Module, layer: str) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in dict(net.named_modules())[layer].named_parameters()}


def plain_top1(net: nn.Module, replacement: reinit.Replacement, batches) -> float:
    """The plain way: copy in, evaluate, copy back."""
    module = dict(net.named_modules())[replacement.layer]
    trained = parameters(net, replacement.layer)
    with torch.no_grad():
        for name, weight in replacement.parameters.items():
            getattr(module, name).copy_(weight)
        correct = sum(int((net(images).argmax(1) == labels).sum()) for images, labels in batches)
        for name, weight in trained.items():
            getattr(module, name).copy_(weight)
    return 100 * correct / sum(len(labels) for _, labels in batches)


def replacements(arch: str, net: nn.Module, with_linear=True, seed: int = 1) -> list[reinit.Replacement]:
    other = network(arch, seed)
    return [
        reinit.Replacement(layer.name, parameters(other, layer.name)) for layer in models.layers(net, with_linear)
    ]


@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_accuracies_are_those_of_replacing_evaluating_and_restoring(arch, layout):
    net = network(arch).to(memory_format=layout)
    batches = [
        (images.to(memory_format=layout), labels)
        for images, labels in images_and_labels(arch, [24, 24, 11], net=net)
    ]
    before = copy.deepcopy(net.state_dict())
    others = replacements(arch, net)
    # Of large networks, three layers: the first, one in the middle, the last.
    others = others if len(others) < 10 else [others[0], others[len(others) // 2], others[-1]]
    measured = reinit.accuracies(net, others, batches)
    assert measured.replaced == [plain_top1(net, other, batches) for other in others]
    trained = reinit.Replacement(others[0].layer, parameters(net, others[0].layer))
    assert measured.top1 == plain_top1(net, trained, batches)
    assert len({measured.top1, *measured.replaced}) > 1
    # The network is as it was.
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


class Recurrent(nn.Module):
    """A network that uses one convolution twice; with `tied`, by two modules that share its weights."""

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
def test_weights_that_are_used_twice_are_replaced_in_both_places(tied):
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


def test_top5_counts_the_five_likeliest():
    net = network("lenet")
    batches = images_and_labels("lenet", [50])
    ((images, labels),) = batches
    with torch.no_grad():
        ranks = net(images).argsort(1, descending=True)
    expected = 100 * (ranks[:, :5] == labels[:, None]).any(1).double().mean().item()
    assert reinit.accuracies(net, [], batches).top5 == pytest.approx(expected)


def test_of_equal_logits_the_first_counts():
    net = network("lenet")
    net.classifier[6].weight.data.zero_()
    net.classifier[6].bias.data.zero_()
    images, _ = images_and_labels("lenet", [10])[0]
    assert reinit.accuracies(net, [], [(images, torch.arange(10))]).top1 == 10
    first = reinit.accuracies(net, [], [(images, torch.zeros(10, dtype=torch.int64))])
    assert (first.top1, first.top5) == (100, 100)


def test_each_batch_is_read_once_and_trained_segments_run_once():
    net = network("lenet")
    others = replacements("lenet", net, with_linear=False)
    calls: dict[str, int] = {}

    def count(name):
        return lambda module, inputs, output: calls.__setitem__(name, calls.get(name, 0) + 1)

    for layer in models.layers(net):
        layer.module.register_forward_hook(count(layer.name))
    read = []

    def batches():
        for batch in images_and_labels("lenet", [8, 8]):
            read.append(batch)
            yield batch

    reinit.accuracies(net, others, batches())
    assert len(read) == 2
    # Layer k runs once as it is, and in the branches of the layers up to it.
    assert list(calls.values()) == [2 * (1 + branches) for branches in range(1, 7)]


def test_replacement_equal_to_the_trained_weights_is_not_run():
    net = network("lenet")
    batches = images_and_labels("lenet", [20])
    calls = []
    net.classifier[6].register_forward_hook(lambda *_: calls.append(1))
    same = reinit.Replacement("features.0", parameters(net, "features.0"))
    only_bias = parameters(net, "features.2")
    only_bias["bias"] = only_bias["bias"] + 1
    measured = reinit.accuracies(net, [same, reinit.Replacement("features.2", only_bias)], batches)
    assert len(calls) == 2  # the network as it is, and the other bias
    assert measured.replaced[0] == measured.top1


def test_replacements_that_do_not_fit_are_brought_one_at_a_time(monkeypatch):
    net = network("lenet")
    batches = images_and_labels("lenet", [16, 5])
    others = replacements("lenet", net)
    kept = reinit.accuracies(net, others, batches)
    monkeypatch.setattr(reinit, "_fit_in_memory", lambda *_: False)
    assert reinit.accuracies(net, others, batches) == kept


def test_half_precision_weights_are_compared_and_used_as_float32():
    net = network("lenet")
    batches = images_and_labels("lenet", [40])
    (first, *_) = replacements("lenet", net)
    half = reinit.Replacement(first.layer, {name: weight.half() for name, weight in first.parameters.items()})
    rounded = reinit.Replacement(first.layer, {name: w.half().float() for name, w in first.parameters.items()})
    assert reinit.accuracies(net, [half], batches).replaced == [plain_top1(net, rounded, batches)]


def test_batches_are_halved_until_they_fit():
    """A network that takes 6 images at a time at the most, as a small GPU would."""
    net = network("lenet")
    batches = images_and_labels("lenet", [20, 20, 7])
    others = replacements("lenet", net)
    expected = reinit.accuracies(net, others, batches)

    def refuse(module, inputs):
        if len(inputs[0]) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")

    net.features[5].register_forward_pre_hook(refuse)
    said: list[str] = []
    assert reinit.accuracies(net, others, batches, said.append) == expected
    assert len(said) == 2
    assert "going on with batches of 10" in said[0]
    assert "going on with batches of 5" in said[1]


def test_image_that_does_not_fit_by_itself_is_an_error():
    net = network("lenet")

    def refuse(module, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    net.features[5].register_forward_pre_hook(refuse)
    with pytest.raises(torch.OutOfMemoryError):
        reinit.accuracies(net, [], images_and_labels("lenet", [4]), lambda line: None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_give_no_accuracy(value):
    net = network("lenet")
    batches = images_and_labels("lenet", [4])
    broken = parameters(net, "features.5")
    broken["weight"].fill_(value)
    other = replacements("lenet", net)[0]
    alone = reinit.accuracies(net, [other], batches)
    with_broken = reinit.accuracies(net, [reinit.Replacement("features.5", broken), other], batches)
    assert with_broken == alone._replace(replaced=[None, *alone.replaced])
    net.features[0].weight.data.fill_(value)
    with pytest.raises(NotFiniteError, match="as it is are not finite for 4 of 4 images"):
        reinit.accuracies(net, [], batches)


@pytest.mark.parametrize(("channels", "side", "size"), [(3, 32, 2048), (1, 28, 8024), (3, 224, 128)])
def test_batches_of_small_images_are_large_on_a_gpu(channels, side, size):
    assert reinit.fitting_batch_size(128, torch.device("cuda"), channels, (side, side)) == size
    assert reinit.fitting_batch_size(128, torch.device("cpu"), channels, (side, side)) == 128


def test_relative_drop_is_the_share_of_accuracy_lost():
    assert reinit.relative_drops(80, [80, 40, 8, 88]) == pytest.approx([0, 0.5, 0.9, -0.1])
    assert reinit.relative_drops(0, [0, 10]) == [None, None]
    assert reinit.relative_drops(80, [None, 80]) == [None, 0]
    assert reinit.critical([0.5, 0.51, -1, None]) == [False, True, False, False]


@pytest.mark.cuda
@pytest.mark.parametrize("arch", ["lenet", "vgg11bn", "resnet18"])
def test_on_a_gpu_accuracies_are_those_of_replacing_evaluating_and_restoring(arch):
    net = network(arch).cuda()
    batches = [(images.cuda(), labels.cuda()) for images, labels in images_and_labels(arch, [24, 11])]
    others = replacements(arch, net)
    assert reinit.accuracies(net, others, batches).replaced == [plain_top1(net, o, batches) for o in others]
