"""Count the silent filters of trained networks: after the ReLU they give 0 at every position of every test image.

    python experiments/silent_filters.py --title "LeNet on MNIST" --epoch 10 --data-path DIR \\
        --output silent_lenet_mnist "true labels" models/mnist/lenet "corrupted" models/mnist/noise_100/lenet

A silent filter no longer learns. Most silent filters have a projection <= 0, so a layer with many of them looks
biased. Each folder has one subfolder per seed, as train.py writes them with --seed. The table is <output>.md.
"""

import argparse
import datetime
import statistics
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

import data
import models
from core.errors import UsageError
from core.text import say
from experiments.over_seeds import expected_bias, with_spread
from experiments.reading import ResultError, labelled_folders, seeds_in
from experiments.tables import made_by, markdown
from utils import correlation, projections, snapshots
from utils.arguments import Number
from utils.runs.provenance import provenance
from utils.snapshots.files import atomic_write, try_folder
from utils.snapshots.weights import load_weights

#: Of one network: layer -> whether each filter is silent, and whether its projection is <= 0; (N,) bool.
Measured = Mapping[str, tuple[Tensor, Tensor]]


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--title", required=True, help="name of the network")
    parser.add_argument("--epoch", type=Number(int, 1), required=True, metavar="N", help="epochs trained")
    parser.add_argument("--data-path", default="./datasets", metavar="DIR", help="folder of the datasets")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="PATH", help="path of the table, without suffix"
    )
    parser.add_argument(
        "groups",
        nargs="+",
        metavar="LABEL FOLDER",
        help="label of each group and the folder of its seeds, of which those count that all groups have",
    )
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
        try_folder("--output", file.parent)
        seeds = set.intersection(*({one.name for one in seeds_in(folder)} for folder in args.groups.values()))
        states = {label: states_of(folder, seeds, args.epoch) for label, folder in args.groups.items()}
        groups = {label: [measure(path, args.data_path) for path in paths] for label, paths in states.items()}
        measured = table(groups)
        trained = [
            snapshots.load_record(path).get("provenance", {}) for paths in states.values() for path in paths
        ]
        now = provenance("silent_filters.py", vars(args), torch.device("cpu"))
        made = [
            f"Trained: {made_by(trained)}",
            f"Measured on {datetime.date.today():%Y-%m-%d}: {made_by([now])}",
        ]
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file, "w") as opened:
            opened.write("\n\n".join([f"# {args.title}: silent filters", explanation, measured, *made]) + "\n")
    except (ResultError, UsageError, models.ModelError, OSError) as error:
        print(f"silent_filters.py: error: {error}", file=sys.stderr)
        return 2
    say(measured, sys.stdout)
    return 0


def states_of(folder: Path, seeds: Collection[str], epochs: int) -> list[Path]:
    """Return the training states after so many epochs, one of each of the seeds in a folder."""
    if not seeds:
        raise ResultError("the groups have no seed in common")
    found = []
    for seed in (one for one in seeds_in(folder) if one.name in seeds):
        states = list(seed.glob(f"*_{epochs - 1}.tar"))
        if len(states) != 1:
            raise ResultError(f"{seed} has {len(states)} training states after {epochs} epochs, not one")
        found += states
    return found


@torch.inference_mode()
def measure(path: Path, data_path: str) -> Measured:
    """Find the silent filters of a training state, on the test set of its dataset."""
    state = snapshots.load(path)
    config = state.get("config")
    if not config:
        raise ResultError(f"{path} does not record how it was trained")
    names = ("subsample_classes", "class_sample_seed", "upscale", "upscale_padding", "unnormalize")
    asked = data.Images(config["dataset"], data_path, **{name: config.get(name) for name in names})
    images = data.load(asked, 500, test_only=True)
    net = models.build(config["arch"], images.num_classes, images.in_channels, images.image_size)
    load_weights(net, state["model_state_dict"], path, config["arch"])
    net.eval()
    segments, layers = models.segments(net), models.layers(net)
    layer_of_relu = {}  # number of the segment -> the layer whose output the ReLU gets
    for layer in layers:
        start = next((i for i, segment in enumerate(segments) if segment is layer.module), len(segments))
        relu = next((i for i in range(start, len(segments)) if isinstance(segments[i], nn.ReLU)), None)
        if relu is None or relu in layer_of_relu:
            raise ResultError(f"{config['arch']}: {layer.name} is not followed by a ReLU of its own")
        layer_of_relu[relu] = layer.name
    active = {layer.name: torch.zeros(len(layer.module.weight), dtype=torch.bool) for layer in layers}
    for x, _ in images.test:
        for i, segment in enumerate(segments):
            x = segment(x)
            if i in layer_of_relu:
                active[layer_of_relu[i]] |= (x > 0).flatten(2).any(2).any(0)
    return {layer.name: (~active[layer.name], projections.project(layer.module.weight) <= 0) for layer in layers}


def table(groups: Mapping[str, Sequence[Measured]]) -> str:
    """Return the table in Markdown. groups: label -> what `measure` returns, one per seed."""
    rows = []
    for name, (of_first, _) in next(iter(groups.values()))[0].items():
        cells = []
        for runs in groups.values():
            silent, non_positive = (torch.cat([run[name][which] for run in runs]) for which in (0, 1))
            counts = ", ".join(str(int(run[name][0].sum())) for run in runs)
            cells.append(f"{counts}; {percent(non_positive[silent])} / {percent(non_positive[~silent])}")
        rows.append([name, str(len(of_first)), *cells])
    for label, of_all in (("of all filters", True), ("of those that are not silent", False)):
        biases = [[bias(run, of_all) for run in runs] for runs in groups.values()]
        cells = ["-" if None in of_seeds else with_spread(of_seeds, ".3f") for of_seeds in biases]
        rows.append([f"**mean bias** {label}", "", *cells])
        chances = [[chance(run, of_all) for run in runs] for runs in groups.values()]
        cells = ["-" if None in of_seeds else f"{statistics.fmean(of_seeds):.3f}" for of_seeds in chances]
        rows.append(["by chance", "", *cells])
    return markdown(["layer", "filters", *groups], "lr" + "l" * len(groups), rows)


def chance(run: Measured, of_all: bool) -> float | None:
    """Return what `bias` is on average if signs are fair coins."""
    filters = [len(silent) if of_all else int((~silent).sum()) for silent, _ in run.values()]
    expected = [expected_bias(count) for count in filters if count]
    return statistics.fmean(expected) if expected else None


def bias(run: Measured, of_all: bool) -> float | None:
    """Return the mean |mass - 1/2| over layers, of all filters or of those that are not silent."""
    chosen = [non_positive if of_all else non_positive[~silent] for silent, non_positive in run.values()]
    masses = [flags.double().mean().item() for flags in chosen if len(flags)]
    return statistics.fmean(correlation.bias(masses)) if masses else None


def percent(flags: Tensor) -> str:
    """Return the share of true flags, for a table."""
    return f"{100 * flags.double().mean():.0f} %" if len(flags) else "-"


if __name__ == "__main__":
    sys.exit(main())
