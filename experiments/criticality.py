"""What resetting the layers of several networks says: are the biased layers the critical ones?

Seeds are independent of one another, the layers of one network are not. So intervals are over seeds, and each test
says what it shuffles. The input layer and the output layer stand in the tables, and are left out of the tests.
"""

import functools
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.over_seeds import SIGNIFICANCE, correlation_interval, is_biased, mean_interval, with_spread
from experiments.tables import Results, markdown
from utils import correlation, reinit
from utils.correlation import NAMES, RIVALS

EXACT_SEEDS = EXACT_LAYERS = 7  #: up to this number of them, all orders (7! of them) are tried
ORDERS = 20_000  #: drawn at random where there are more
SIMULATIONS = 4_000  #: of an experiment, for its power
POWER = 0.8
LEARNED = 0.1  #: of the way from guessing to 100 %: a run with less did not learn
THRESHOLDS = (reinit.CRITICAL, 0.1)  #: of the accuracy beyond chance: a layer is critical, or loses much
WORDS = {name: words.replace("|", r"\|") for name, words in NAMES.items()}  #: in a table of Markdown


def start_of(results: Results) -> str:
    """Return the row of the weights that training started from."""
    return reinit.initialization_row(next(iter(results.values()))["corrected_drop"])


def not_learned(results: Results) -> dict[str, Any]:
    """Return the runs that hardly do better than guessing: they have no accuracy to lose."""

    def share(one: Mapping[str, Any]) -> float:
        return (one["top1_test"] - one["chance_top1"]) / (100 - one["chance_top1"])

    return {label: one for label, one in results.items() if share(one) < LEARNED}


def drops_of(result: Mapping[str, Any], names: Sequence[str], row: str) -> list[float]:
    """Return the share of the accuracy beyond chance that is lost when each of some layers is reset."""
    return [result["corrected_drop"][row][result["layers"].index(name)] for name in names]


# Correlations over seeds


class OverSeeds(NamedTuple):
    """Correlations of the runs for which they are defined."""

    values: list[float]
    runs: int  #: how many there are

    def __str__(self) -> str:
        if not self.values:
            return "not defined"
        interval = correlation_interval(self.values)
        between = f" ({interval.low:+.2f} to {interval.high:+.2f})" if interval else ""
        fewer = f", {len(self.values)} of {self.runs}" if len(self.values) < self.runs else ""
        return f"{statistics.fmean(self.values):+.2f}{between}{fewer}"


def over_seeds(results: Results, quantity: str, key: str = "spearman") -> OverSeeds:
    """Return a correlation of each run: of a quantity, with the accuracy lost, or given a rival."""
    found = (result["correlation"].get(quantity, {}).get(key) for result in results.values())
    return OverSeeds([value for value in found if value is not None], len(results))


def fair_coins(results: Results, of: str) -> str:
    """Draw the mean rank correlation of mass or bias with the drops of the runs, if signs were fair coins.

    Return what 95 % of draws are within, "" if no run has a correlation. Runs without one are left out, and so are
    draws in which one is undefined.
    """
    draws = []
    for seed, result in enumerate(results.values()):
        names = result["hidden_layers"]
        drops = drops_of(result, names, start_of(results))
        if result["correlation"].get(of, {}).get("spearman") is not None:
            filters = [result["projections"][name]["filters"] for name in names]
            draws.append(correlation.fair_coins(filters, drops, seed, of))
    return "{low:+.2f} to {high:+.2f}".format(**correlation.summary(np.mean(draws, axis=0))) if draws else ""


def orders(length: int, exact: int) -> np.ndarray:
    """Return the orders of so many things, (K, length): all of them, or ORDERS random ones with the given one."""
    if length <= exact:
        return np.array(list(itertools.permutations(range(length))))
    drawn = np.random.default_rng(0).permuted(np.tile(np.arange(length), (ORDERS, 1)), axis=1)
    return np.vstack([np.arange(length), drawn])


def p_of_shuffled_layers(values: Sequence[Sequence[float]], drops: Sequence[Sequence[float]]) -> float | None:
    """Return the two-sided p-value of a mean rank correlation, if any order of the layers were equally likely.

    The layers of all seeds get the same order: where all networks have the same critical layers, many seeds say no
    more than one. None if no correlation is defined. values, drops: a row a seed, a column a layer.
    """
    ranks, others = correlation.centred_ranks(values), correlation.centred_ranks(drops)
    sizes = np.linalg.norm(ranks, axis=1) * np.linalg.norm(others, axis=1)
    ranks, others, sizes = ranks[sizes > 0], others[sizes > 0], sizes[sizes > 0]
    if not len(sizes):
        return None
    others = others / sizes[:, None]
    found = np.einsum("skl,sl->k", ranks[:, orders(ranks.shape[1], EXACT_LAYERS)], others)
    return float((abs(found) >= abs((ranks * others).sum()) - 1e-9).mean())


def correlation_table(results: Results) -> str:
    """Return the rank correlations of bias and of its rivals with the accuracy lost, over seeds."""
    runs, rows = list(results.values()), []
    hidden, start = runs[0]["hidden_layers"], start_of(results)
    if len(hidden) < 3:
        return f"A rank correlation takes three hidden layers: there are {len(hidden)}."
    drops = [drops_of(run, hidden, start) for run in runs]
    for name, words in WORDS.items():
        found = over_seeds(results, name)
        if not found.values:
            rows.append([words, "not defined", *[""] * 4])
            continue
        values = [correlation.quantities([run["projections"][one] for one in hidden])[name] for run in runs]
        p_value = p_of_shuffled_layers(values, drops)
        coins = fair_coins(results, name) if name in correlation.OF_MASS else ""
        given = ["" if rival == name else str(over_seeds(results, name, f"given_{rival}")) for rival in RIVALS]
        rows.append([words, str(found), coins, f"{p_value:.2g}", *given])
    columns = ["of the accuracy lost with", "rank correlation (95 % interval)", "fair coins, 95 %"]
    columns += ["p, layers shuffled", "given depth", "given distance moved"]
    return markdown(columns, "lrrrrr", rows)


# The claim that goes one way: layers that are not biased can be reset


CLAIM_COLUMNS = ["of the biased ones", "of the others", "p, Fisher", "p, seeds shuffled"]


class Counts(NamedTuple):
    """The hidden layers of all runs, by whether they are biased and critical; (S, L) for S seeds and L layers."""

    biased: np.ndarray
    critical: np.ndarray

    def table(self) -> list[list[int]]:
        """Return [[biased and critical, biased only], [critical only, neither]]."""
        parts = [(self.biased & self.critical, self.biased & ~self.critical)]
        parts += [(~self.biased & self.critical, ~self.biased & ~self.critical)]
        return [[int(one.sum()) for one in row] for row in parts]

    def shares(self) -> list[str]:
        """Return how many of the biased layers are critical, and how many of the others."""
        return [f"{some} of {some + others}" for some, others in self.table()]

    def cells(self) -> list[str]:
        """Return the shares and the p-values, under CLAIM_COLUMNS."""
        return [*self.shares(), f"{self.p_of_fisher():.2g}", f"{self.p_of_shuffled_seeds():.2g}"]

    def p_of_fisher(self) -> float:
        """Return the p-value of Fisher's exact test that critical layers are more often biased.

        It takes all layers for independent, which they are not.
        """
        from scipy.stats import fisher_exact

        return float(fisher_exact(self.table(), alternative="greater").pvalue)

    def p_of_shuffled_seeds(self) -> float:
        """Return the p-value of so many biased critical layers, if any seed's bias went with any seed's resets.

        What a layer's place in the network alone explains has no part in it.
        """
        together = self.biased.astype(int) @ self.critical.T.astype(int)  # (S, S): bias of one, resets of another
        seeds = np.arange(len(together))
        found = together[orders(len(seeds), EXACT_SEEDS), seeds].sum(1)
        return float((found >= np.trace(together)).mean())


def count(results: Results, threshold: float) -> Counts:
    """Count the hidden layers of all runs; a layer is critical if it loses more than a threshold."""
    runs, start = list(results.values()), start_of(results)
    hidden = runs[0]["hidden_layers"]
    biased = [[is_biased(run["projections"][name]) for name in hidden] for run in runs]
    drops = np.array([drops_of(run, hidden, start) for run in runs])
    return Counts(np.array(biased), drops > threshold)


def claim_table(results: Results) -> str:
    """Return how many of the biased hidden layers and of the others are critical, and how sure it is."""
    rows = [[f"more than {100 * threshold:g} %", *count(results, threshold).cells()] for threshold in THRESHOLDS]
    return markdown(["hidden layers that lose", *CLAIM_COLUMNS], "lrrrr", rows)


# Power


@functools.cache
def power(seeds: int, layers: int, effect: float) -> float:
    """Return how often Student's test over seeds, two-sided, finds a positive correlation of normal variables.

    effect: their correlation over the layers of each network, of which the ranks are correlated.
    """
    from scipy.stats import t

    random = np.random.default_rng(0)
    first, noise = random.standard_normal((2, SIMULATIONS, seeds, layers))
    ranks = correlation.centred_ranks(first)
    others = correlation.centred_ranks(effect * first + math.sqrt(1 - effect**2) * noise)
    found = (ranks * others).sum(2) / (np.square(ranks).sum(2))
    error = found.std(axis=1, ddof=1) / math.sqrt(seeds)
    return float((found.mean(1) > t.ppf(1 - SIGNIFICANCE / 2, seeds - 1) * error).mean())


def detectable(seeds: int, layers: int) -> float | None:
    """Return the least correlation, in steps of 0.05, that is found in 80 % of cases. None: not even 0.95.

    None also for a single seed, which has no interval.
    """
    if seeds < 2:
        return None
    effects = np.arange(1, 20) / 20
    return next((float(effect) for effect in effects if power(seeds, layers, float(effect)) >= POWER), None)


def power_of(results: Results) -> str:
    """Say how large a correlation the number of seeds and hidden layers would show."""
    seeds, layers = len(results), len(next(iter(results.values()))["hidden_layers"])
    if layers < 3:
        return ""
    least = detectable(seeds, layers)
    what = f"{seeds} seeds of {layers} hidden layers"
    if least is None:
        return f"{what} would not show even a correlation of 0.95 in 80 % of cases."
    return f"{what} would show a correlation of {least:.2f} or more in at least 80 % of cases (Student's test)."


# Layer by layer, and seed by seed


def layer_table(results: Results) -> str:
    """Return bias, distance moved, and accuracy lost when it is reset, of each layer over several runs."""
    runs, start = list(results.values()), start_of(results)
    moved = all(layer.get("l2_dist") is not None for run in runs for layer in run["projections"].values())
    resets = {start: "initialization", "rand": "fresh weights"}
    resets = {row: f"reset to {words}" for row, words in resets.items()}
    resets |= {row: f"put back along the {row.replace('_', ' ')}" for row in reinit.DIRECTIONS}
    resets = {row: words for row, words in resets.items() if row in runs[0]["corrected_drop"]}
    rows = []
    for name in runs[0]["layers"]:
        layers = [run["projections"][name] for run in runs]
        cells = [with_spread([layer["mass"] for layer in layers], ".2f")]
        cells += [f"{statistics.fmean(layer['mean'] for layer in layers):+.3f}"]
        cells += [f"{sum(map(is_biased, layers))}/{len(runs)}"]
        cells += [with_spread([layer["l2_dist"] for layer in layers], ".2f")] if moved else []
        for row in resets:
            drops = [drops_of(run, [name], row)[0] for run in runs]
            cells.append(with_spread([100 * drop for drop in drops], ".0f"))
            if row == start:
                cells += [f"{sum(drop > threshold for drop in drops)}/{len(runs)}" for threshold in THRESHOLDS]
        rows.append([name if name in runs[0]["hidden_layers"] else f"*{name}*", *cells])
    columns = ["layer", "mass", "mean", "biased", *(["distance moved"] if moved else [])]
    for row, words in resets.items():
        columns.append(f"lost, {words} (%)")
        columns += ["over 50 %", "over 10 %"] if row == start else []
    return markdown(columns, "llrr" + "r" * (len(columns) - 4), rows)


def seed_table(results: Results) -> str:
    """Return the rank correlations and the critical layers of each run."""
    rows = []
    for label, result in results.items():
        critical = reinit.critical(result["corrected_drop"][start_of(results)])
        names = [name for name, one in zip(result["layers"], critical, strict=True) if one]
        found = [result["correlation"].get(name, {}).get("spearman") for name in NAMES]
        cells = ["" if value is None else f"{value:+.2f}" for value in found]
        rows.append([label, f"{result['top1_test']:.2f}", *cells, ", ".join(names) or "none"])
    columns = ["run", "test accuracy (%)", *WORDS.values(), "critical layers"]
    return markdown(columns, "lr" + "r" * len(NAMES) + "l", rows)


def mean_drops(results: Results) -> dict[str, list[float]]:
    """Return what each seed loses on average over its hidden layers, in percent.

    By row: the reset to the initialization, and those of `reinit.DIRECTIONS` that all runs have.
    """
    runs = list(results.values())
    hidden = runs[0]["hidden_layers"]
    rows = [
        start_of(results),
        *(row for row in reinit.DIRECTIONS if all(row in one["corrected_drop"] for one in runs)),
    ]
    return {row: [100 * statistics.fmean(drops_of(run, hidden, row)) for run in runs] for row in rows}


def interventions(results: Results) -> list[str]:
    """Say what putting back one direction costs on average over the hidden layers; [] where it was not done."""
    lost = mean_drops(results)
    if not lost.keys() >= set(reinit.DIRECTIONS):
        return []
    line, control = (lost[row] for row in reinit.DIRECTIONS)
    difference = percent([one - other for one, other in zip(line, control, strict=True)])
    return [
        f"Mean over the hidden layers: put back along the identity line, a layer loses {percent(line)}; as far "
        f"along the largest other direction {percent(control)}, which is less by {difference}."
    ]


def percent(values: Sequence[float]) -> str:
    """Return the mean of one value a seed, in percent, with its interval."""
    interval = mean_interval(values)
    numbers = [statistics.fmean(values), *(interval or ())]
    mean, *ends = (f"{round(number, 1) + 0.0:.1f}" for number in numbers)  # + 0.0: not -0.0
    return f"{mean} %" + (f" (95 % interval {' to '.join(ends)})" if ends else "")


# All settings beside one another


def overview_tables(settings: Mapping[str, Results]) -> list[str]:
    """Return the three tables of several settings, a row each: correlations, the one-way claim, interventions.

    settings: what was trained on what -> the results of its runs.
    """
    correlated, claimed, moved = [], [], []
    for label, results in settings.items():
        hidden = len(next(iter(results.values()))["hidden_layers"])
        if hidden > 2:
            mass = [str(over_seeds(results, "mass", key)) for key in ("spearman", "given_depth", "given_l2_dist")]
            rivals = [str(over_seeds(results, rival)) for rival in RIVALS]
            least = detectable(len(results), hidden)
            cells = [str(len(results)), str(hidden), mass[0], fair_coins(results, "mass"), *mass[1:], *rivals]
            correlated.append([label, *cells, "" if least is None else f"{least:.2f}"])
        claimed.append([label, *(cell for threshold in THRESHOLDS for cell in count(results, threshold).cells())])
        moved.append([label, *map(percent, mean_drops(results).values())])
    total = ["**all**"]
    for threshold in THRESHOLDS:
        parts = [count(results, threshold) for results in settings.values()]
        flat = Counts(
            *(np.concatenate([array.ravel() for array in arrays]) for arrays in zip(*parts, strict=True))
        )
        total += [*flat.shares(), "", ""]
    columns = ["", "seeds", "hidden layers", "mass", "fair coins, 95 %", "mass given depth", "mass given distance"]
    columns += ["depth", "distance moved", "seen in 80 %"]
    thresholds = [
        f"lose more than {100 * threshold:g} %: {name}" for threshold in THRESHOLDS for name in CLAIM_COLUMNS
    ]
    width = max(map(len, moved))  # without --identity-line there is only the reset
    moved = [[*row, *[""] * (width - len(row))] for row in moved]
    resets = ["", "reset", *(row.replace("_", " ") for row in reinit.DIRECTIONS)]
    return [
        "Rank correlation with the accuracy lost, over the hidden layers:",
        markdown(columns, "l" + "r" * 9, correlated),
        "Hidden layers:",
        markdown(["", *thresholds], "l" + "r" * 8, [*claimed, total]),
        "Accuracy lost, mean over the hidden layers:",
        markdown(resets[:width], "l" + "r" * (width - 1), moved),
    ]
