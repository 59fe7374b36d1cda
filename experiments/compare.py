"""Compare training runs over seeds: the figures and the table of a finding, from the results of the programs.

    python experiments/compare.py bias --title "LeNet on MNIST" --epoch 10 --output bias_lenet_mnist \\
        "true labels" results/mnist/lenet "shuffled pixels" results/mnist/pixel_shuffle/lenet
    python experiments/compare.py criticality --title "LeNet on MNIST" --epoch 10 \\
        --output criticality_lenet_mnist results/mnist/lenet

    python experiments/compare.py networks --title "Model zoo" --output model_zoo results/imagenet/*/*.json
    python experiments/compare.py published --title "Packages" --output published_networks results/weights

Each folder has one subfolder per seed, as compute_projections.py and reinit_layers.py write them with --seed. The
figures are <output>_mass and <output>_mean, or <output>_map and <output>_points (.png and .pdf). The table is
<output>.md; it names the device and the versions that the results were made with.
"""

import argparse
import datetime
import os
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ["MPLBACKEND"] = "agg"  # whatever a notebook sets for what it starts

from core.text import say
from experiments import criticality, figures
from experiments.over_seeds import SIGNIFICANCE
from experiments.published_networks import NETWORKS
from experiments.reading import (
    ResultError,
    check_layers,
    check_resets,
    check_seeds,
    labelled_folders,
    read,
    read_run,
    seeds_in,
)
from experiments.tables import bias_table, made_by, network_table, package_table, published_table
from utils import plots
from utils.arguments import Number
from utils.snapshots.files import atomic_write


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--title", required=True, help="name of the network, or of the group of networks")
    common.add_argument(
        "--output", type=Path, required=True, metavar="PATH", help="path of the files, without suffix"
    )
    of_runs = argparse.ArgumentParser(add_help=False, parents=[common])
    of_runs.add_argument("--epoch", type=Number(int, 1), required=True, metavar="N", help="epochs trained")
    bias = kinds.add_parser("bias", parents=[of_runs], help="mass and mean over epochs, for groups of runs")
    groups = {"nargs": "+", "metavar": "LABEL FOLDER", "help": "label of each group and the folder of its seeds"}
    bias.add_argument("groups", **groups)
    bias.add_argument("--note", metavar="TEXT", help="further text above the table")
    criticality = kinds.add_parser("criticality", parents=[of_runs], help="bias and the accuracy lost, over seeds")
    criticality.add_argument("folder", type=Path, help="folder of the seeds")
    overview = kinds.add_parser("overview", parents=[common], help="criticality, a row for each group of runs")
    overview.add_argument("groups", **groups)
    networks = kinds.add_parser("networks", parents=[common], help="bias of the layers of several networks")
    networks.add_argument("files", type=Path, nargs="+", help="results of compute_projections.py, one per network")
    published = kinds.add_parser("published", parents=[common], help="bias of the networks in packages on PyPI")
    published.add_argument("folder", type=Path, help="folder of the results of compute_projections.py")
    args = parser.parse_args(argv)
    if "groups" in args:
        args.groups = labelled_folders(parser, args.groups)
    if not args.output.name:
        parser.error("--output: give the files a name")
    return args


def main(argv=None) -> int:
    args = parse_arguments(argv)
    try:
        {
            "bias": compare_bias,
            "criticality": compare_criticality,
            "overview": compare_settings,
            "networks": compare_networks,
            "published": compare_published,
        }[args.kind](args)
    except (ResultError, OSError) as error:
        print(f"compare.py: error: {error}", file=sys.stderr)
        return 2
    return 0


def compare_bias(args: argparse.Namespace) -> None:
    groups = {
        label: [read_run(seed, args.epoch) for seed in seeds_in(folder)] for label, folder in args.groups.items()
    }
    all_runs = [run for runs in groups.values() for run in runs]
    if any(run.epochs[args.epoch].keys() != all_runs[0].epochs[args.epoch].keys() for run in all_runs):
        raise ResultError("the runs have different layers: give runs of one architecture")
    notes = []
    for label, runs in groups.items():
        last = {str(run.files[-1]): read(run.files[-1]) for run in runs}
        notes += [f"{label}: {line}" for line in check_seeds(last)]
    epochs = {label: [run.epochs for run in runs] for label, runs in groups.items()}
    for statistic in ("mass", "mean"):
        save(figures.compare_runs(epochs, statistic, args.title), args.output, statistic)
    number_of_seeds = ", ".join(map(str, sorted({len(runs) for runs in groups.values()})))
    explanation = (
        f"Trained for {args.epoch} epochs, {number_of_seeds} seeds. In a cell: mass (mean ± standard deviation, "
        "n - 1, over seeds), mean projection (cosine), and in how many of the seeds the layer is biased (exact "
        f"binomial test without filters of zeros, p < {SIGNIFICANCE}: by chance in at most one of 20). Chance: "
        "the mean of |mass - 1/2| with fair coins. Intervals and p: Student's, of the mean over seeds; p of each "
        "comparison by itself."
    )
    if args.note:
        explanation += f"\n\n{args.note}"
    files = [path for run in all_runs for path in run.files]
    write_table(args, explanation, [*notes, bias_table(groups, args.epoch)], files)


def compare_criticality(args: argparse.Namespace) -> None:
    files = [result_of_resets(seed, args.epoch) for seed in seeds_in(args.folder)]
    results = {f"seed {path.parent.name}": read(path) for path in files}
    check_resets(results)
    notes = check_seeds(results)
    runs, guessing = list(results.values()), criticality.not_learned(results)
    learned = {label: one for label, one in results.items() if label not in guessing} or results
    of_mass = criticality.over_seeds(learned, "mass")
    text = f"Spearman's rank correlation, mean of {len(of_mass.values)} seeds, hidden layers: {of_mass}"
    if coins := criticality.fair_coins(learned, "mass"):
        text += f"\nwith fair coins instead: {coins} in 95 % of draws"
    drawn, title = list(learned.values()), f"{args.title}, mean of {len(learned)} seeds"
    save(plots.accuracy_loss(mean_of_runs(drawn), title), args.output, "map")
    save(figures.bias_and_criticality_of_runs(drawn, args.title, text), args.output, "points")
    explanation = (
        f"Networks after {args.epoch} epochs, {len(runs)} seeds. Accuracy lost: (accuracy - accuracy after the "
        f"reset) / (accuracy - {runs[0]['chance_top1']:g} %), the latter being that of guessing. A layer is "
        "critical where it loses more than half. Biased: an exact binomial test, without filters of zeros, "
        f"rejects fair coins at {SIGNIFICANCE}. Mean: projection (cosine). Distance moved: |W - W0| / |W0|. The "
        "input layer and an output layer are in italics, and left out of all that follows the first table. "
        "±: standard deviation (n - 1) over seeds.\n\n"
        "Rank correlation: Spearman's, over the hidden layers of a network; its mean over seeds with Student's "
        "interval, cut off at -1 and 1. Fair coins: the mean over seeds, if the signs of all filters were fair "
        "coins. p, layers shuffled: how often the mean is as far from 0 if the layers are shuffled, in the same "
        "way in all seeds. Given depth, given distance moved: the partial rank correlation, where it is defined. "
        "The claim that goes one way is that a layer can be reset without much loss where it is not biased; then "
        "few of the others are critical. Fisher's test takes all layers for independent. p, seeds shuffled: how "
        "often as many layers are both biased and critical if the bias of each seed is paired with the resets of "
        "another one."
    )
    tables = [
        *notes,
        *(criticality.layer_table(results), *criticality.interventions(results)),
        *(criticality.correlation_table(results), criticality.power_of(results)),
        *(criticality.claim_table(results), criticality.seed_table(results)),
    ]
    if len(learned) < len(results):
        tables += [
            f"Without {', '.join(guessing)}, which did not learn (less than {100 * criticality.LEARNED:g} % of "
            "the way from guessing to 100 %), and are not in the figures:",
            criticality.correlation_table(learned),
            criticality.claim_table(learned),
        ]
    write_table(args, explanation, list(filter(None, tables)), files)


def compare_settings(args: argparse.Namespace) -> None:
    settings, files, notes = {}, [], []
    for label, folder in args.groups.items():
        of_group = [result_of_resets(seed) for seed in seeds_in(folder)]
        settings[label] = {f"{label}, seed {path.parent.name}": read(path) for path in of_group}
        check_resets(settings[label])
        notes += [f"{label}: {line}" for line in check_seeds(settings[label])]
        files += of_group
    explanation = (
        "Correlations are means over seeds with Student's 95 % interval. Fair coins: the same, if the signs of "
        "all filters were fair coins. Seen in 80 %: the least correlation that so many seeds and layers show in "
        "80 % of cases. A layer is biased where an exact binomial test rejects fair coins. Accuracy lost is that "
        "beyond guessing. The table of each setting explains the columns."
    )
    write_table(args, explanation, [*notes, *criticality.overview_tables(settings)], files)


def result_of_resets(folder: Path, epoch: int | None = None) -> Path:
    """Return the result of reinit_layers.py for the network after so many epochs, in the folder of a seed.

    epoch: None for the only result that is there.
    """
    if epoch is None:
        found = list(folder.glob("reinit_*.json"))
        if len(found) == 1:
            return found[0]
        raise ResultError(f"{folder} has {len(found)} results of resetting layers: there must be one")
    found = [path for path in sorted(folder.glob("reinit_*.json")) if read(path).get("epoch") == str(epoch)]
    if not found:
        raise ResultError(f"{folder} has no results of resetting layers after {epoch} epochs")
    # `<arch>_2.tar` is after three epochs, as the final weights `<arch>_3.pt` are, whose result comes first.
    return max(found, key=lambda path: bool(re.search(rf"_{epoch}(\.pt)?\.json$", path.name)))


def mean_of_runs(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean over runs of what the heat map shows of results of reinit_layers.py."""
    first = results[0]
    drops = {
        row: [
            statistics.fmean(of_layer)
            for of_layer in zip(*(one["relative_drop"][row] for one in results), strict=True)
        ]
        for row in first["relative_drop"]
    }
    top1 = statistics.fmean(one["top1_test"] for one in results)
    return {"layers": first["layers"], "relative_drop": drops, "top1_test": top1}


def compare_networks(args: argparse.Namespace) -> None:
    results = {}
    for path in args.files:
        content = read(path)
        check_layers(path, content)
        if "net" not in content:
            raise ResultError(f"{path} is not a result of compute_projections.py")
        if content["arch"] in results:
            raise ResultError(f"{path} is a second result of {content['arch']}: give one result per network")
        results[content["arch"]] = content
    save(figures.masses_of_networks(results, args.title), args.output, "mass")
    explanation = (
        "A layer is biased where an exact binomial test over its filters, those of zeros left out, rejects "
        f"fair coins at {SIGNIFICANCE}; by chance that would be 5 % of the layers or fewer. Bias is "
        "|mass - 1/2| of those filters, its mean over layers; chance: its expectation where signs are fair coins."
    )
    write_table(args, explanation, [network_table(results)], args.files)


def compare_published(args: argparse.Namespace) -> None:
    files = {stem: args.folder / f"{stem}.json" for stem in NETWORKS}
    results = {stem: read(path) for stem, path in files.items()}
    for stem, path in files.items():
        check_layers(path, results[stem])
    save(figures.masses_by_depth(results, args.title), args.output, "mass")
    explanation = (
        "A layer is biased where an exact binomial test over its filters, those of zeros left out, rejects fair "
        f"coins at {SIGNIFICANCE}. By chance: how many layers would be, on average, if all signs were fair coins. "
        "The input layer is the first one. 1x1 convolutions include those of squeeze-and-excitation and of side "
        "outputs. Fully connected layers and transposed convolutions are left out.\n\n"
        "Networks with batch normalization folded into all or some filters are apart. Folding multiplies a filter "
        "by a factor. It keeps the sign of the trained filter only if the factor is positive, which the file no "
        "longer tells. Fair coins stay fair when some of them are flipped: the test still holds for these signs, "
        "but they are not those of the trained filters. In the two OCR networks of this group a folded filter is "
        "also the sum of several trained branches, one of which can be the identity: this alone can change signs."
    )
    write_table(args, explanation, [package_table(), published_table(results)], list(files.values()))


def save(figure, output: Path, what: str) -> None:
    for path in plots.save(figure, output.with_name(f"{output.name}_{what}")):
        say(f"figure: {path}", sys.stdout)


def write_table(args: argparse.Namespace, explanation: str, tables: list[str], files: list[Path]) -> None:
    """Write and print the tables; the file also says what the results were made with, and when."""
    results = [read(path) for path in files]
    date = datetime.date.fromtimestamp(max(path.stat().st_mtime for path in files))
    made = [f"Measured on {date:%Y-%m-%d}: {made_by([one.get('provenance', {}) for one in results])}"]
    # Results of an initialization do not record this.
    trained = [one["trained_by"] for one in results if isinstance(one.get("trained_by"), dict)]
    if trained:
        made.insert(0, f"Trained: {made_by(trained)}")
    text = "\n\n".join([f"# {args.title}", explanation, *tables, *made])
    path = args.output.with_name(f"{args.output.name}.md")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        file.write(text + "\n")
    say("\n\n".join([*tables, f"table: {path}"]), sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
