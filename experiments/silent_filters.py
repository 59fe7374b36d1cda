"""How many filters of trained networks are silent: after the ReLU they give 0, wherever they look.

    python experiments/silent_filters.py --title "LeNet on MNIST" --epoch 10 --data-path DIR \\
        --output silent_lenet_mnist "true labels" models/mnist/lenet "corrupted" models/mnist/noise_100/lenet

A silent filter no longer learns. Most of them have a projection that is not positive, so a layer that falls silent
looks biased. Each folder holds one subfolder a seed, as train.py writes them with --seed; the images are those of
the test set. The table, in Markdown, goes to <output>.md.
"""

import argparse
import datetime
import statistics
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

import data
import models
from core.text import say
from experiments.over_seeds import expected_bias, with_spread
from experiments.reading import ResultError, labelled_folders, seeds_in
from experiments.tables import made_by
from utils import correlation, projections, snapshots
from utils.options import number
from utils.runs.provenance import provenance
from utils.snapshots.files import atomic_write, make_writable


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--title", required=True, help="which network this is")
    parser.add_argument("--epoch", type=number(int, 1), required=True, metavar="N", help="epochs trained")
    parser.add_argument("--data-path", default="./datasets", metavar="DIR", help="where the datasets are")
    parser.add_argument("--output", type=Path, required=True, metavar="PATH", help="of the table, without suffix")
    parser.add_argument("groups", nargs="+", metavar="LABEL FOLDER", help="each group's name and folder of seeds")
    args = parser.parse_args(argv)
    args.groups = labelled_folders(parser, args.groups)
    if not args.output.name:
        parser.error("--output: give the file a name")
    return args


def main(argv=None) -> int:
    args = parse_arguments(argv)
    explanation = (
        f"Networks after {args.epoch} epochs. In a cell: how many filters are silent, that is give 0 after the "
        "ReLU at every position of every test image, one number a seed; then the mass of these, and of the "
        "others, all seeds together. Bias is |mass - 1/2|, its mean over the layers (of the filters that are not "
        "silent: over the layers that have any); in a cell: mean and standard deviation (n - 1) over seeds."
    )
    file = args.output.with_name(f"{args.output.name}.md")
    try:
        make_writable(file.parent)
        states = {label: states_of(folder, args.epoch) for label, folder in args.groups.items()}
        groups = {label: [measure(path, args.data_path) for path in paths] for label, paths in states.items()}
        measured = table(groups)
        trained = [
            snapshots.load_record(path).get("provenance", {}) for paths in states.values() for path in paths
        ]
        now = provenance("silent_filters.py", args, torch.device("cpu"))
        made = [
            f"Trained: {made_by(trained)}",
            f"Measured on {datetime.date.today():%Y-%m-%d}: {made_by([now])}",
        ]
        with atomic_write(file, "w") as opened:
            opened.write("\n\n".join([f"# {args.title}: silent filters", explanation, measured, *made]) + "\n")
    except (
        *(ResultError, snapshots.SnapshotError, snapshots.NewerFormatError),
        *(data.DataError, models.ModelError, OSError),
    ) as error:
        print(f"silent_filters.py: error: {error}", file=sys.stderr)
        return 2
    say(measured, sys.stdout)
    return 0


def states_of(folder: Path, epochs: int) -> list[Path]:
    """The training states after so many epochs, of all seeds in a folder."""
    found = []
    for seed in seeds_in(folder):
        states = list(seed.glob(f"*_{epochs - 1}.tar"))
        if len(states) != 1:
            raise ResultError(f"{seed} has no training state after {epochs} epochs, or several")
        found += states
    return found


@torch.inference_mode()
def measure(path: Path, data_path: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Layer -> whether each filter is silent, and whether its projection is not positive; (N,) bool."""
    state = snapshots.load(path)
    config = state.get("config")
    if not config:
        raise ResultError(f"{path} does not record how it was trained")
    names = ("subsample_classes", "class_sample_seed", "upscale", "upscale_padding", "unnormalize")
    images = data.load_test(config["dataset"], data_path, 500, **{name: config.get(name) for name in names})
    net = models.build(config["arch"], images.num_classes, images.in_channels, images.image_size)
    snapshots.load_weights(net, state["model_state_dict"], path, config["arch"])
    net.eval()
    segments, layers = models.segments(net), models.layers(net)
    after = {}  # the ReLU's segment -> the layer whose output it is
    for layer in layers:
        start = next((i for i, segment in enumerate(segments) if segment is layer.module), None)
        relu = None
        if start is not None:
            relu = next((i for i in range(start, len(segments)) if isinstance(segments[i], nn.ReLU)), None)
        if relu is None or relu in after:
            raise ResultError(f"{config['arch']}: {layer.name} is not followed by a ReLU of its own")
        after[relu] = layer
    active = {layer.name: torch.zeros(len(layer.module.weight), dtype=torch.bool) for layer in layers}
    for x, _ in images.test:
        for index, segment in enumerate(segments):
            x = segment(x)
            if index in after:
                active[after[index].name] |= (x > 0).flatten(2).any(2).any(0)
    return {layer.name: (~active[layer.name], projections.project(layer.module.weight) <= 0) for layer in layers}


def table(groups) -> str:
    """In Markdown. groups: label -> of each seed what `measure` gives."""
    lines = [
        "| layer | filters | " + " | ".join(groups) + " |",
        "| --- | --: |" + " --- |" * len(groups),
    ]
    first = next(iter(groups.values()))[0]
    for name, (of_first, _) in first.items():
        cells = []
        for runs in groups.values():
            is_silent, negative = (torch.cat([run[name][which] for run in runs]) for which in (0, 1))
            shares = (percent(negative[of_kind]) for of_kind in (is_silent, ~is_silent))
            cells.append(", ".join(str(int(run[name][0].sum())) for run in runs) + "; " + " / ".join(shares))
        lines.append(f"| {name} | {len(of_first)} | {' | '.join(cells)} |")
    for label, of_all in (("of all filters", True), ("of those that are not silent", False)):
        biases = [[bias(run, of_all) for run in runs] for runs in groups.values()]
        cells = ["-" if None in of_seeds else with_spread(of_seeds, ".3f") for of_seeds in biases]
        lines.append(f"| **mean bias** {label} | | {' | '.join(cells)} |")
        chances = [[chance(run, of_all) for run in runs] for runs in groups.values()]
        cells = ["-" if None in of_seeds else f"{statistics.fmean(of_seeds):.3f}" for of_seeds in chances]
        lines.append(f"| by chance | | {' | '.join(cells)} |")
    return "\n".join(lines)


def chance(run: dict[str, tuple[torch.Tensor, torch.Tensor]], of_all: bool) -> float | None:
    """What `bias` would be on average if signs were fair coins."""
    filters = [len(silent) if of_all else int((~silent).sum()) for silent, _ in run.values()]
    expected = [expected_bias(count) for count in filters if count]
    return statistics.fmean(expected) if expected else None


def bias(run: dict[str, tuple[torch.Tensor, torch.Tensor]], of_all: bool) -> float | None:
    """The mean |mass - 1/2| of the layers of a network, with or without silent filters; None: of no filter."""
    chosen = [negative if of_all else negative[~silent] for silent, negative in run.values()]
    masses = [flags.double().mean().item() for flags in chosen if len(flags)]
    return statistics.fmean(correlation.bias(masses)) if masses else None


def percent(flags: torch.Tensor) -> str:
    return f"{100 * flags.double().mean():.0f} %" if len(flags) else "-"


if __name__ == "__main__":
    sys.exit(main())
