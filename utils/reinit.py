"""Resetting one layer at a time to other weights, at the price of one pass over the data.

The experiment of Zhang, Bengio and Singer, "Are All Layers Created Equal?" (JMLR 23, 2022): a layer of a trained
network gets earlier weights back (their re-initialization) or fresh random ones (re-randomization), all others
stay trained, and the accuracy on the test set is measured.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import models
from core.text import first_line
from utils.process import distributed
from utils.process.devices import is_out_of_gpu_memory
from utils.training.metrics import NotFiniteError, count_correct

#: Of a batch on a GPU: with less in it, it waits for the host to launch (benchmarks/NOTES.md).
GPU_BATCH_BYTES = 24 * 2**20


class Replacement(NamedTuple):
    """Other weights for one layer."""

    layer: str  #: name of the module in the network
    parameters: dict[str, Tensor]  #: "weight", and "bias" where the layer has one


class Accuracies(NamedTuple):
    """In percent of the images."""

    top1: float  #: of the trained network
    top5: float
    replaced: list[float | None]  #: top-1, with each replacement in turn; None: its outputs are not all finite


def relative_drops(trained: float, accuracies: Sequence[float | None]) -> list[float | None]:
    """The share of the trained network's accuracy that is lost: (trained - accuracy) / trained.

    Args:
        trained: accuracy of the trained network in percent.
        accuracies: with a layer replaced, in percent; None: not defined.

    Returns:
        1 where all is lost, 0 where nothing is, less where accuracy is gained; None where there was none to lose,
        or none is left that is defined.
    """
    return [None if accuracy is None or not trained else (trained - accuracy) / trained for accuracy in accuracies]


def critical(drops: Sequence[float | None]) -> list[bool]:
    """Whether a layer is critical, as Zhang, Bengio and Singer call those whose resetting destroys the accuracy.

    The threshold is this program's: more than half of the accuracy is lost.
    """
    return [drop is not None and drop > 0.5 for drop in drops]


def initialization_row(rows: Mapping[str, Any]) -> str | None:
    """The epoch of the weights that training started from: 0, or -1 for the model zoo's; None: not measured."""
    return next((row for row in ("0", "-1") if row in rows), None)


class _Branch:
    """A replacement where it leaves the trained network: a call of its segment with other parameters."""

    def __init__(self, row: int, segment: nn.Module, prefix: str, replacement: Replacement, resident: bool):
        self.row, self.segment = row, segment
        trained = dict(segment.named_parameters(remove_duplicate=False))  # by every name of a shared one
        self.trained = {prefix + name: trained[prefix + name] for name in replacement.parameters}
        self.replaced = {prefix + name: weight for name, weight in replacement.parameters.items()}
        self.resident = resident
        if resident:
            self.replaced = self._on_device()

    def _on_device(self) -> dict[str, Tensor]:
        """The replacing weights in the place, type and layout of the trained ones: the same kernels take them."""
        return {name: torch.empty_like(self.trained[name]).copy_(weight) for name, weight in self.replaced.items()}

    def weights(self) -> dict[str, Tensor]:
        return self.replaced if self.resident else self._on_device()

    def is_trained(self) -> bool:
        """Whether the replacement changes nothing."""
        return all(torch.equal(weight, self.trained[name]) for name, weight in self.weights().items())

    def __call__(self, x: Tensor) -> Tensor:
        return torch.func.functional_call(self.segment, self.weights(), (x,))


def fitting_batch_size(asked: int, device: torch.device, in_channels: int, image_size: tuple[int, int]) -> int:
    """The number of images of a batch, on all ranks together: as asked, on GPUs GPU_BATCH_BYTES a rank at least.

    Args:
        asked: images.
        device: that they are on.
        in_channels: of an image.
        image_size: (height, width) in pixels.
    """
    if device.type != "cuda":
        return asked
    return max(asked, distributed.WORLD_SIZE * (GPU_BATCH_BYTES // (4 * in_channels * math.prod(image_size))))


@torch.inference_mode()
def check_segments(net: nn.Module, shape: Sequence[int]) -> None:
    """Make sure that the segments that a network says it consists of, one after another, are the network.

    Nor may one that has weights change its input: branches start from that too.

    Args:
        net: it is put in evaluation mode.
        shape: of a batch of images, (B, C, H, W); they are of noise.

    Raises:
        ModelError: they are not.
    """
    net.eval()
    device = next(net.parameters()).device
    images = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device)
    expected, found = net(images.clone()), images
    changes_its_input, segments = None, models.segments(net)
    try:
        for segment in segments:
            given, before = found, found.clone()
            found = segment(given)
            if next(segment.parameters(), None) is not None and not given.equal(before):
                changes_its_input = type(segment).__name__
    except (RuntimeError, TypeError, ValueError) as error:
        if is_out_of_gpu_memory(error):
            raise
        raise models.ModelError(
            f"the segments of the network cannot be run one after another: {first_line(error)}"
        ) from None
    if not expected.isfinite().all():  # which is found out, and said, when accuracies are measured
        return
    largest = expected.abs().max().item()
    same = found.shape == expected.shape and torch.allclose(found, expected, 1e-3, 1e-3 * largest)
    if not same and segments != [net]:  # whose output may be random
        raise models.ModelError("the segments of the network, run one after another, do not give what it gives")
    if changes_its_input:
        raise models.ModelError(f"a segment of the network, {changes_its_input}, changes its input in place")


@torch.inference_mode()
def accuracies(
    net: nn.Module,
    replacements: Sequence[Replacement],
    batches: Iterable[tuple[Tensor, Tensor]],
    say: Callable[[str], None] = print,
    amp: bool = False,
) -> Accuracies:
    """Measure a network as it is and with each replacement in turn, in one pass over the batches.

    Each batch goes through the network segment by segment. At the segment that holds a replaced layer, the
    replacement branches off and runs the rest of the network, on what the trained segments before have computed.
    The network is never changed: a branch calls its segment with other parameters. A replacement that is equal
    to the trained weights is not run.

    Beside a batch this needs the memory of one replacement. Where all of them together are small (at most 256 MiB
    on the CPU, a quarter of the free memory of a GPU) they are kept on the device; else each is brought there when
    its turn comes.

    Accuracies are those of replacing, evaluating the whole network and restoring, with the same batches.

    Args:
        net: on the device of the batches; it is put in evaluation mode.
        replacements: of layers of the network.
        batches: images (B, C, H, W) and labels (B,); of several ranks each has its share, and all get the result.
        say: told in one line when a GPU runs out of memory, and batches are cut in half from there on.
        amp: compute in bfloat16 where autocast takes that to be safe.

    Raises:
        KeyError: a replacement of a layer that the network does not have.
        NotFiniteError: the outputs of the network as it is are not finite.
        torch.OutOfMemoryError: a single image does not fit.
    """
    net.eval()
    segments = models.segments(net)
    device = next(net.parameters()).device
    branches, unchanged = _place(net, segments, replacements, resident=_fit_in_memory(replacements, device))
    # Row 0: the network as it is; row 1 + i: with replacement i. Columns: top-1, top-5, outputs not finite.
    counts = torch.zeros(1 + len(replacements), 3, dtype=torch.int64, device=device)
    num_images, largest = 0, None
    for images, labels in batches:
        start = 0
        while start < len(labels):
            stop = len(labels) if largest is None else min(start + largest, len(labels))
            try:
                with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                    counts += _count(segments, branches, images[start:stop], labels[start:stop], len(counts))
            except RuntimeError as error:
                if stop - start == 1 or not is_out_of_gpu_memory(error):
                    raise
                largest = (stop - start) // 2
            else:
                start = stop
                continue
            # Outside of the except clause, whose exception keeps the memory of the failed attempt.
            torch.cuda.empty_cache()
            say(f"out of GPU memory with {stop - start} images: going on with batches of {largest}")
        num_images += len(labels)

    counts = distributed.sum_(counts).cpu()
    num_images = distributed.sum_(torch.tensor(num_images)).item()
    if counts[0, 2]:
        raise NotFiniteError(
            f"the outputs of the network as it is are not finite for {counts[0, 2]} of {num_images} images"
        )
    counts[unchanged] = counts[0].clone()
    percent = counts.double() * 100 / num_images
    replaced = [None if broken else top1 for top1, _, broken in percent[1:].tolist()]
    return Accuracies(percent[0, 0].item(), percent[0, 1].item(), replaced)


def _place(
    net: nn.Module, segments: Sequence[nn.Module], replacements: Sequence[Replacement], resident: bool
) -> tuple[list[list[_Branch]], list[int]]:
    """For each segment the replacements that branch off there; and the rows of those that change nothing."""
    modules = dict(net.named_modules())
    place = {
        id(module): (number, f"{name}." if name else "")
        for number, segment in enumerate(segments)
        for name, module in segment.named_modules()
    }
    branches: list[list[_Branch]] = [[] for _ in segments]
    unchanged = []
    for row, replacement in enumerate(replacements, start=1):
        number, prefix = place[id(modules[replacement.layer])]
        branch = _Branch(row, segments[number], prefix, replacement, resident)
        if branch.is_trained():
            unchanged.append(row)
        else:
            branches[number].append(branch)
    return branches, unchanged


def _fit_in_memory(replacements: Sequence[Replacement], device: torch.device) -> bool:
    """Whether all replacements may stay on the device."""
    room = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 256 * 2**20
    return sum(weight.nbytes for replacement in replacements for weight in replacement.parameters.values()) <= room


def _count(
    segments: Sequence[nn.Module],
    branches: list[list[_Branch]],
    images: Tensor,
    labels: Tensor,
    num_rows: int,
) -> Tensor:
    """What one batch adds to the counts; (num_rows, 3)."""
    counts = torch.zeros(num_rows, 3, dtype=torch.int64, device=labels.device)

    def count(row: int, logits: Tensor) -> None:
        counts[row, :2] = count_correct(logits.float(), labels)
        counts[row, 2] = (~logits.isfinite()).any(1).sum()

    trunk = images
    for number, segment in enumerate(segments):
        for branch in branches[number]:
            x = branch(trunk)
            for rest in segments[number + 1 :]:
                x = rest(x)
            count(branch.row, x)
        trunk = segment(trunk)
    count(0, trunk)
    return counts
