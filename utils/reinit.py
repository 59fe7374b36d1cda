"""Reset one layer of a trained network at a time, and measure the accuracy, in one pass over the data.

The experiment of Zhang, Bengio and Singer, "Are All Layers Created Equal?" (JMLR 23, 2022): one layer gets earlier
weights back (re-initialization) or fresh random weights (re-randomization), all others stay trained, and the
accuracy on the test set is measured.
"""

import functools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

import models
from utils.process import distributed
from utils.process.devices import is_out_of_gpu_memory
from utils.training.metrics import NotFiniteError, count_correct

#: A GPU waits for the host to launch kernels if a batch of images is smaller (docs/speed.md).
GPU_BATCH_BYTES = 24 * 2**20
#: Replacements stay on the device if all of them together fit in this, or in a quarter of a GPU's free memory.
CPU_RESIDENT_BYTES = 256 * 2**20


class Replacement(NamedTuple):
    """Other weights for one layer."""

    layer: str  #: name of the module in the network
    parameters: dict[str, Tensor]  #: "weight", and "bias" if the layer has one

    @classmethod
    def of(cls, layer: str, weights: Mapping[str, Tensor]) -> "Replacement":
        """Return the replacement of a layer by its parameters in a state_dict."""
        names = [name for name in ("weight", "bias") if f"{layer}.{name}" in weights]
        return cls(layer, {name: weights[f"{layer}.{name}"] for name in names})


class Accuracies(NamedTuple):
    """Accuracies in percent of the images."""

    top1: float  #: of the trained network
    top5: float  #: of the trained network
    replaced: list[float | None]  #: top-1 with each replacement in turn; None: some outputs are not finite


CRITICAL = 0.5  #: a layer that loses more of the accuracy beyond chance is critical; the threshold is ours
#: Directions, common to the filters of a layer, along which `put_back` moves them.
DIRECTIONS = ("identity_line", "largest_direction")


@torch.no_grad()
def put_back(weight: Tensor, initial: Tensor, direction: str) -> Tensor:
    """Put the filters of a layer back to their initialization along one direction; all else stays trained.

    Args:
        weight, initial: W and W0, (N, ...) with N filters.
        direction: "identity_line": the component of each filter along (1, ..., 1), the direction that the
            projections are measured with, becomes the initial one. "largest_direction", a control: orthogonal to
            it, the direction along which the filters moved most; the layer moves as far in sum, |W' - W|_F.

    Returns:
        W', of the shape and type of the weights.
    """
    moved = (weight.double() - initial.to(weight.device).double()).flatten(1)
    line = moved.new_full((moved.shape[1],), moved.shape[1] ** -0.5)
    along = moved @ line
    step = along.outer(line)
    if direction == "largest_direction":
        rest = moved - step
        most = torch.linalg.eigh(rest @ rest.T).eigenvectors[:, -1] @ rest
        step = (rest @ most).outer(most)
        step *= along.norm() / step.norm().clamp_min(torch.finfo(step.dtype).tiny)
    return (weight.double() - step.view_as(weight)).to(weight.dtype)


def relative_drops(trained: float, accuracies: Sequence[float | None], chance: float = 0) -> list[float | None]:
    """Return the share of the trained network's accuracy that is lost: (trained - accuracy) / (trained - chance).

    Accuracies are in percent; `chance` is what guessing gives, 100 / classes, or 0 for the share of all accuracy.
    The share is negative if accuracy is gained; None if the accuracy is None or the trained network does not guess
    better.
    """
    gained = trained - chance
    return [None if one is None or gained <= 0 else (trained - one) / gained for one in accuracies]


def critical(drops: Sequence[float | None]) -> list[bool]:
    """Return whether each layer is critical, by the share of the accuracy beyond chance that is lost."""
    return [drop is not None and drop > CRITICAL for drop in drops]


def hidden_layers(layers: Sequence[models.Layer]) -> list[str]:
    """Return the names of the layers between the first one, whose input is the image, and the output layer.

    layers: in network order. If the last one is fully connected it is the output layer.
    """
    last = len(layers) - bool(layers and isinstance(layers[-1].module, nn.Linear))
    return [layer.name for layer in layers[1:last]]


def initialization_row(rows: Collection[str]) -> str | None:
    """Return the row of the weights that training started from: epoch "0" or "-1" (model zoo); None: neither."""
    return next((row for row in ("0", "-1") if row in rows), None)


def fitting_batch_size(asked: int, device: torch.device, in_channels: int, image_size: tuple[int, int]) -> int:
    """Return the batch size over all ranks: as asked, but on GPUs at least GPU_BATCH_BYTES of images per rank.

    image_size: (height, width) in pixels.
    """
    if device.type != "cuda":
        return asked
    return max(asked, distributed.WORLD_SIZE * (GPU_BATCH_BYTES // (4 * in_channels * math.prod(image_size))))


@torch.inference_mode()
def check_segments(net: nn.Module, shape: Sequence[int]) -> None:
    """Check, on random images, that the segments of a network, run one after another, equal the network.

    A segment with weights must not change its input either: branches start from the same input.
    shape: of a batch of images, (B, C, H, W).

    Raises:
        ModelError: the check fails.
    """
    net.eval()
    device = next(net.parameters()).device
    images = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device)
    expected, found, segments = net(images.clone()), images, models.segments(net)
    for segment in segments:
        given = found.clone()
        output = segment(found)
        if next(segment.parameters(), None) is not None and not found.equal(given):
            raise models.ModelError(f"segment {type(segment).__name__} of the network changes its input in place")
        found = output
    if segments == [net] or not expected.isfinite().all():
        return  # one segment may be random; `accuracies` reports outputs that are not finite
    tolerance = 1e-3 * expected.abs().max().item()
    if found.shape != expected.shape or not torch.allclose(found, expected, 1e-3, tolerance):
        raise models.ModelError("the segments of the network, run one after another, do not give its output")


@torch.inference_mode()
def accuracies(
    net: nn.Module,
    replacements: Sequence[Replacement],
    batches: Iterable[tuple[Tensor, Tensor]],
    say: Callable[[str], None] = print,
    amp: bool = False,
) -> Accuracies:
    """Measure the accuracy of a network as it is and with each replacement in turn, in one pass over the batches.

    Each batch goes through the network segment by segment. At the segment that holds a replaced layer, the
    replacement branches off: it gets the output of the trained segments before, and runs the rest of the network.
    The network itself never changes. A replacement that equals the trained weights is not run. The accuracies are
    those of replacing, evaluating the whole network and restoring, with the same batches.

    The network, on any device, is put in evaluation mode. batches: images (B, C, H, W) and labels (B,); of several
    ranks each has its share, and all get the result. say: gets a line when a GPU runs out of memory and batches
    are halved from there on. amp: compute in bfloat16 where autocast considers that safe.

    Raise NotFiniteError if the outputs of the network as it is are not finite, and torch.OutOfMemoryError if a
    single image does not fit.
    """
    net.eval()
    segments = models.segments(net)
    device = next(net.parameters()).device
    branches, unchanged = _branches(net, segments, replacements, device)
    # Row 0: the network as it is; row 1 + i: with replacement i. Columns: top-1, top-5, outputs not finite.
    counts = torch.zeros(1 + len(replacements), 3, dtype=torch.int64, device=device)
    num_images = 0
    largest = math.inf  # number of images that fit in memory
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        num_images += len(labels)
        while len(labels):
            size = min(largest, len(labels))
            try:
                with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                    counts += _count(segments, branches, images[:size], labels[:size], len(counts))
                images, labels = images[size:], labels[size:]
                continue
            except RuntimeError as error:
                if size == 1 or not is_out_of_gpu_memory(error):
                    raise
                largest = size // 2
            # Outside the except clause: its exception keeps the memory of the failed attempt.
            torch.cuda.empty_cache()
            say(f"out of GPU memory with {size} images: going on with batches of {largest}")

    counts = distributed.sum_(counts).cpu()
    num_images = distributed.sum_(torch.tensor(num_images)).item()
    if counts[0, 2]:
        share = f"{counts[0, 2]} of {num_images} images"
        raise NotFiniteError(f"the outputs of the network as it is are not finite for {share}")
    counts[unchanged] = counts[0].clone()
    percent = counts.double() * 100 / num_images
    replaced = [None if broken else top1 for top1, _, broken in percent[1:].tolist()]
    return Accuracies(percent[0, 0].item(), percent[0, 1].item(), replaced)


Branch = tuple[int, Callable[[], dict[str, Tensor]]]  #: row of the counts; returns weights, by name in the segment


def _branches(
    net: nn.Module, segments: Sequence[nn.Module], replacements: Sequence[Replacement], device: torch.device
) -> tuple[list[list[Branch]], list[int]]:
    """Return the branches at each segment, and the rows of the replacements that equal the trained weights."""
    room = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else CPU_RESIDENT_BYTES
    resident = sum(weight.nbytes for one in replacements for weight in one.parameters.values()) <= room
    places = {
        id(module): (number, name)
        for number, segment in enumerate(segments)
        for name, module in segment.named_modules()
    }
    branches: list[list[Branch]] = [[] for _ in segments]
    unchanged = []
    for row, (layer, parameters) in enumerate(replacements, start=1):
        module = net.get_submodule(layer)
        number, place = places[id(module)]
        trained = {f"{place}.{name}".lstrip("."): module.get_parameter(name) for name in parameters}
        load = functools.partial(_load, parameters.values(), trained)
        if resident:
            load = functools.cache(load)
        if all(torch.equal(weight, trained[name]) for name, weight in load().items()):
            unchanged.append(row)
        else:
            branches[number].append((row, load))
    return branches, unchanged


def _load(weights: Iterable[Tensor], trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights on the device of the trained ones, in their type and memory layout: the same kernels run."""
    pairs = zip(trained.items(), weights, strict=True)
    return {name: torch.empty_like(old).copy_(weight) for (name, old), weight in pairs}


def _count(
    segments: Sequence[nn.Module], branches: list[list[Branch]], images: Tensor, labels: Tensor, num_rows: int
) -> Tensor:
    """Return the counts of one batch, (num_rows, 3)."""
    counts = torch.zeros(num_rows, 3, dtype=torch.int64, device=labels.device)

    def count(row: int, logits: Tensor) -> None:
        counts[row, :2] = count_correct(logits.float(), labels)
        counts[row, 2] = (~logits.isfinite()).any(1).sum()

    trunk = images
    for number, segment in enumerate(segments):
        for row, load in branches[number]:
            x = torch.func.functional_call(segment, load(), (trunk,))
            for rest in segments[number + 1 :]:
                x = rest(x)
            count(row, x)
        trunk = segment(trunk)
    count(0, trunk)
    return counts
