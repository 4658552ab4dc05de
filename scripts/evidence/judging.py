"""Judging each claim: by statistics on accuracies, by filters, by counts, by measured speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from statistics import fmean, median

import numpy as np
import pandas as pd
from scipy.special import gammaln

from configs.experiments import Cell, all_cells
from linearconv.engine.device import is_cpu
from linearconv.errors import UserError
from linearconv.theory import correlation_loss_bound
from models import architecture
from scripts.evidence.artifacts import Layer, if_readable, read_layers
from scripts.evidence.claims import DECIDED, Claim, Finding, Judgement, Network, read_rules
from scripts.evidence.counts import counts
from scripts.evidence.printed import DATASETS, MODELS, PaperRow, absolute, paper_rows
from scripts.evidence.results import METRICS, Results
from scripts.evidence.speeds import measured
from scripts.evidence.statistics import (
    ONE_SIDED,
    Agreement,
    Difference,
    Noise,
    agreement,
    difference,
    holm,
    mean_difference,
    pooled_noise,
    prediction,
    random_effects,
    seeds_needed,
)

ENOUGH = 3
"""Seeds on each side from which on accuracies and filters decide; rounds from which on speeds do;
cells from which on their mean does."""
FREEDOM = 4
"""Degrees of freedom from which on a recipe's own runs tell its noise: two networks, 3 seeds."""
AFFORDABLE = 10
"""Seeds a side above which a difference cannot be found by anybody's means here."""
NOT_INFERIOR = 0.05
"""One-sided error of finding that an accuracy is above -margin."""
DRAWS, DRAWS_SEED = 50, 0
"""Of random coefficients."""


@dataclass(frozen=True)
class Evidence:
    """The runs that claims are judged on.

    Attributes:
        results: of the recipe.
        others: of other recipes, which tell the noise where the recipe's own runs are too few.
    """

    results: Results
    others: Sequence[Results] = ()

    def noise(self, cell: Cell, metric: str) -> Noise | None:
        """That of a cell's accuracy: one for all variants of its model, dataset and recipe."""
        own = _pooled(self.results, cell, metric)
        if own is not None and own.freedom >= FREEDOM:
            return own
        others = [_pooled(each, cell, metric, each.recipe) for each in self.others]
        return max(filter(None, [own, *others]), key=lambda noise: noise.freedom, default=None)


def _pooled(results: Results, cell: Cell, metric: str, recipe: str = "") -> Noise | None:
    """The noise of all variants with a cell's model and dataset."""
    return pooled_noise(
        (
            results.accuracies(other, metric).accuracy
            for other in results.cells()
            if (_family(other.model), other.dataset) == (_family(cell.model), cell.dataset)
        ),
        recipe,
    )


def _family(model: str) -> str:
    """The model that the paper compares a model with: VGG11 for OctConv and Basis."""
    return next(
        (row.baseline for row in paper_rows() if row.model == model and row.baseline), model
    )


def judge(evidence: Evidence) -> list[Judgement]:
    """All claims, judged on the settled accuracy."""
    return [JUDGES[claim.test](claim, evidence) for claim in read_rules().claims]


@dataclass(frozen=True)
class Pair:
    """Two cells whose accuracies a claim compares."""

    what: str
    ours: Cell
    theirs: Cell
    printed: Decimal | None


def pairs(claim: Claim) -> list[Pair]:
    """The comparisons of a claim about accuracies, each once, in print order."""
    found = {}
    for row in claim.rows():
        for dataset in row.accuracies:
            for other in _others(claim, row):
                against = f" against {other.alpha:g}" if claim.against_alpha else ""
                alpha = f", alpha {row.alpha:g}" if claim.alpha is not None else ""
                what = f"{row.name} on {DATASETS[dataset]}{alpha}{against}"
                known = dataset in other.accuracies
                printed = absolute(row, dataset) - absolute(other, dataset) if known else None
                pair = Pair(what, row.cell(dataset), other.cell(dataset), printed)
                found.setdefault((pair.ours, pair.theirs), pair)
    return list(found.values())


def _others(claim: Claim, row: PaperRow) -> list[PaperRow]:
    """The rows that a row is compared with."""
    model = claim.against_model or row.model
    rows = {
        other.network: other
        for other in paper_rows()
        if (other.table, other.model, other.variant) == (row.table, model, claim.against)
        and (not claim.against_alpha or other.alpha in claim.against_alpha)
    }
    return list(rows.values())


def beyond_margin(claim: Claim) -> tuple[int, int]:
    """How many of a claim's cells the paper itself prints below -margin, and of how many."""
    known = [float(pair.printed) for pair in pairs(claim) if pair.printed is not None]
    return sum(value < -claim.margin for value in known), len(known)


def _accuracy(claim: Claim, evidence: Evidence) -> Judgement:
    """Tests `below`, `above`, `keeps` and `every_cell`, cell by cell and together."""
    findings = [_compare(claim, pair, evidence) for pair in pairs(claim)]
    deciding = [i for i, finding in enumerate(findings) if _decides(finding)]
    differences = [findings[i].difference for i in deciding]
    p_values = [_p_values(claim, each) for each in differences]
    supporting, against = ([pair[side] for pair in p_values] for side in (0, 1))
    each_must = claim.test == "every_cell"  # and then takes no correction
    corrected = zip(supporting if each_must else holm(supporting), holm(against), strict=True)
    for i, alone, several in zip(deciding, p_values, corrected, strict=True):
        verdict, why = _verdict(claim, *several), ""
        if verdict not in DECIDED:
            decided = _verdict(claim, *alone) in DECIDED
            why = "decided alone, not as one of several cells" if decided else _limit(claim)
        findings[i] = replace(findings[i], verdict=verdict, why=why)
    return Judgement(claim, findings, _together(claim, findings, differences))


def _limit(claim: Claim) -> str:
    """Why a claim with enough seeds is undecided."""
    if claim.test in ("below", "above"):
        return "the interval includes 0"
    return "the interval includes the margin"


def _decides(finding: Finding) -> bool:
    """Whether there are enough seeds, and they differ."""
    enough = finding.difference is not None and finding.why == ""
    return enough and finding.difference.known


def _p_values(claim: Claim, found: Difference) -> tuple[float, float]:
    """One-sided p values of what supports a claim, and of what contradicts it."""
    if claim.test == "below":
        return found.p_below(), found.p_above()
    if claim.test == "above":
        return found.p_above(), found.p_below()
    return found.p_above(-claim.margin), found.p_below(-claim.margin)


def _verdict(claim: Claim, supporting: float, against: float) -> str:
    """The verdict that goes with the p values."""
    enough = NOT_INFERIOR if claim.test in ("keeps", "every_cell") else ONE_SIDED
    if supporting < enough:
        return "supported"
    return "contradicted" if against < ONE_SIDED else "undecided"


def _together(
    claim: Claim, findings: Sequence[Finding], differences: Sequence[Difference]
) -> Finding | None:
    """What the cells say together; None where each speaks for itself."""
    ran = [finding for finding in findings if finding.difference is not None]
    if claim.test == "every_cell" and ran:
        contradicting = [finding for finding in ran if finding.verdict == "contradicted"]
        decided = [finding for finding in ran if finding.verdict in DECIDED]
        worst = min(contradicting or decided or ran, key=lambda each: each.difference.value)
        verdicts = [finding.verdict for finding in findings]
        verdict = "undecided"
        if "contradicted" in verdicts:
            verdict = "contradicted"
        elif set(verdicts) == {"supported"}:
            verdict = "supported"
        why = f"worst: {worst.what}"
        return Finding("the worst cell", verdict, worst.estimate, worst.n, why)
    if len(differences) < ENOUGH:
        return None
    mean = random_effects(differences)
    verdict = _verdict(claim, *_p_values(claim, mean.difference))
    spread = f"{mean.tau:.2f} between cells, p {mean.heterogeneity:.2g} that they are equal"
    why = f"mean of {len(differences)} cells {mean.difference}; {spread}"
    return Finding("mean of the cells", verdict, str(mean.difference), "", why)


def _compare(claim: Claim, pair: Pair, evidence: Evidence) -> Finding:
    """One difference of mean accuracies; its verdict is left open where there are enough seeds."""
    found = {
        metric: [evidence.results.accuracies(cell, metric) for cell in (pair.ours, pair.theirs)]
        for metric in METRICS
    }
    ours, theirs = found["settled"]
    if ours.empty:
        return Finding(pair.what, "not run")
    n = f"{len(ours)} vs {len(theirs)}"
    if theirs.empty:
        return Finding(pair.what, "undecided", n=n, why="what it is compared with has not run")
    noises = {metric: evidence.noise(pair.ours, metric) for metric in METRICS}
    differences = {
        metric: difference(*(runs.accuracy for runs in both), noises[metric])
        for metric, both in found.items()
    }
    settled = differences.pop("settled")
    few = min(len(ours), len(theirs)) < ENOUGH
    why = f"n < {ENOUGH}" if few else "" if settled.known else "the seeds do not differ"
    return Finding(
        pair.what,
        "undecided",
        str(settled),
        n,
        why,
        settled,
        {metric: str(each) for metric, each in differences.items()},
        _printed(pair, differences["best"], noises["best"]),
        _needs(claim, pair, noises["settled"]),
        noise_text(settled, noises["settled"]),
        (tuple(ours.run_id), tuple(theirs.run_id)),
    )


def noise_text(found: Difference, noise: Noise | None) -> str:
    """Where an interval is from."""
    if noise is None or not found.known:
        return ""
    if found.method == "Welch":
        return f"Welch, {found.freedom:.1f} df (Bartlett p {noise.bartlett:.2g})"
    borrowed = f" of recipe={noise.recipe}" if noise.recipe else ""
    return f"{noise.sigma:.2f} ({noise.freedom} df{borrowed})"


def _printed(pair: Pair, best: Difference, noise: Noise | None) -> str:
    """The paper's difference, and whether ours predicts it."""
    if pair.printed is None:
        return ""
    said = f"{pair.printed:+}"
    if noise is None or not best.known:
        return said
    low, high = prediction(best, noise)
    where = "in" if low <= pair.printed <= high else "outside"
    return f"{said} ({where} [{low:+.2f}, {high:+.2f}])"


def _needs(claim: Claim, pair: Pair, noise: Noise | None) -> int | None:
    """Seeds a side that would find the printed difference, if it is of the claimed sign."""
    signs = {"below": -1, "above": 1}
    if claim.test not in signs or noise is None or not pair.printed or not noise.sigma:
        return None
    if pair.printed * signs[claim.test] < 0:
        return None
    return max(ENOUGH, seeds_needed(float(pair.printed), noise.sigma))


@dataclass(frozen=True)
class Group:
    """A model's variants on a dataset: their noise, and whether the paper's accuracies are ours.

    Attributes:
        name: of the model and the dataset.
        runs: how many.
        noise: by metric; None if no variant has two seeds.
        agreement: of the best epoch, as the paper prints it; None for a single variant.
    """

    name: str
    runs: int
    noise: dict[str, Noise | None]
    agreement: Agreement | None


def groups(evidence: Evidence) -> Iterator[Group]:
    """Each model and dataset that has runs, in the order of the tables."""
    ran = evidence.results.cells()
    for key in dict.fromkeys((_family(cell.model), cell.dataset) for cell in all_cells()):
        cells = [cell for cell in ran if (_family(cell.model), cell.dataset) == key]
        if not cells:
            continue
        noise = {metric: evidence.noise(cells[0], metric) for metric in METRICS}
        best = {cell: evidence.results.accuracies(cell, "best").accuracy.tolist() for cell in cells}
        paper = {cell: printed for cell in cells if (printed := _paper(cell)) is not None}
        agrees = None
        if noise["best"] is not None:
            ours = [best[cell] for cell in paper]
            agrees = agreement(ours, list(paper.values()), noise["best"])
        name = f"{MODELS[key[0]]} on {DATASETS[key[1]]}"
        yield Group(name, sum(map(len, best.values())), noise, agrees)


def _paper(cell: Cell) -> float | None:
    """The paper's accuracy of a cell, absolute; None for a cell that somebody has added."""
    for row in paper_rows():
        if cell.dataset in row.accuracies and row.cell(cell.dataset) == cell:
            return float(absolute(row, cell.dataset))
    return None


def _filters(claim: Claim, evidence: Evidence) -> Judgement:
    """A finding for each layer whose filters the runs of a row have left."""
    statistic, findings = FILTERS[claim.filters], []
    for row in claim.rows():
        ids = [r["run_id"] for r in evidence.results.records(row.cell("cifar10")).values()]
        left = {i: if_readable(read_layers, evidence.results.folder, i) for i in ids}
        by_layer: dict[str, dict[str, Layer]] = {}
        first = next((layers[0].name for layers in left.values() if layers), None)
        for run_id, layers in left.items():
            for layer in layers or []:
                if claim.layers in ("", "first" if layer.name == first else "other"):
                    by_layer.setdefault(layer.name, {})[run_id] = layer
        if not by_layer:
            findings.append(Finding(f"{row.name} on CIFAR-10", "not run"))
        for name, found in by_layer.items():
            findings.append(_layer(claim, row, name, found, statistic, len(ids)))
    return Judgement(claim, findings)


def _layer(
    claim: Claim,
    row: PaperRow,
    name: str,
    found: dict[str, Layer],
    statistic: FilterStatistic,
    runs: int,
) -> Finding:
    """What one layer of the runs says."""
    size, values = counts(*row.network).filter_sizes[name], []
    for run_id, layer in found.items():
        if layer.primary < 2 or np.isnan(layer.correlations).any():
            raise UserError(f"{run_id}: the correlations of {name} cannot be judged")
        values.append(statistic(layer, size))
    mean = mean_difference([value for value, _ in values])
    low, high = mean.interval()
    verdict, why = "undecided", f"n < {ENOUGH}"
    if len(values) >= ENOUGH:
        inside = _between(low, claim) and _between(high, claim)
        outside = high < claim.between[0] or low > claim.between[1]
        verdict = "supported" if inside else "contradicted" if outside else "undecided"
        why = "" if verdict in DECIDED else "the interval includes the limit"
    interval = f" [{low:.3f}, {high:.3f}]" if len(values) > 1 else ""
    return Finding(
        f"{row.name}, {name}",
        verdict,
        f"{mean.value:.3f}{interval}: {values[0][1]}" + (" (first seed)" * (len(values) > 1)),
        f"{len(values)} of {runs}",
        why,
        runs=(tuple(found), ()),
    )


FilterStatistic = Callable[[Layer, int], tuple[float, str]]
"""Of a layer and the number of values in a filter: the number that is judged, and what it is of."""


def mean_correlation(matrix: np.ndarray) -> float:
    """The mean of the absolute values off the diagonal."""
    return float(np.abs(matrix[~np.eye(len(matrix), dtype=bool)]).mean())


def random_correlation(size: int) -> float:
    """The mean |cosine| of two random vectors with independent normal entries."""
    return math.exp(gammaln(size / 2) - gammaln((size + 1) / 2)) / math.sqrt(math.pi)


def combined_correlation(primary: np.ndarray, secondary: int) -> float:
    """The mean |cosine| of random combinations, with independent normal coefficients.

    Args:
        primary: (P, P), the cosines of the filters that are combined.
        secondary: number of combinations.
    """
    random, means = np.random.default_rng(DRAWS_SEED), []
    for _ in range(DRAWS):
        coefficients = random.normal(size=(secondary, len(primary)))
        products = coefficients @ primary @ coefficients.T
        norms = np.sqrt(products.diagonal())
        means.append(mean_correlation(products / np.outer(norms, norms)))
    return fmean(means)


def _all_over_random(layer: Layer, size: int) -> tuple[float, str]:
    ours, random = mean_correlation(layer.correlations), random_correlation(size)
    return ours - random, f"{ours:.3f} of the filters, {random:.3f} of random ones"


def _halves_apart(layer: Layer, size: int) -> tuple[float, str]:
    half = len(layer.correlations) // 2
    first = mean_correlation(layer.correlations[:half, :half])
    second = mean_correlation(layer.correlations[half:, half:])
    return 2 * (first - second) / (first + second), f"{first:.3f} and {second:.3f}"


def _secondary_over_random(layer: Layer, size: int) -> tuple[float, str]:
    primary = layer.correlations[: layer.primary, : layer.primary]
    rest = layer.correlations[layer.primary :, layer.primary :]
    ours, random = mean_correlation(rest), combined_correlation(primary, len(rest))
    return ours - random, (
        f"{ours:.3f} of secondary filters, {random:.3f} of random combinations, "
        f"{mean_correlation(primary):.3f} of primary filters"
    )


def _primary(layer: Layer, size: int, bounded: bool = False) -> tuple[float, str]:
    matrix, random = layer.correlations[: layer.primary, : layer.primary], random_correlation(size)
    ours = mean_correlation(matrix)
    bound = correlation_loss_bound(layer.primary, size) / (layer.primary * (layer.primary - 1))
    return (ours - bound * bounded) / random, (
        f"{ours:.4f} of {layer.primary} filters in {size} dimensions, {bound:.4f} at least, "
        f"{random:.3f} of random ones"
    )


def _primary_over_bound(layer: Layer, size: int) -> tuple[float, str]:
    return _primary(layer, size, bounded=True)


FILTERS: dict[str, FilterStatistic] = {
    "all_over_random": _all_over_random,
    "halves_apart": _halves_apart,
    "secondary_over_random": _secondary_over_random,
    "primary": _primary,
    "primary_over_bound": _primary_over_bound,
}
"""By the name in configs/claims.yaml; of mean |cosines| between filters."""


def _count(claim: Claim, evidence: Evidence) -> Judgement:
    """A statistic of a count over the networks; no run is needed."""
    networks = claim.networks()
    counted = {name: COUNTS[claim.count](network) for name, network in networks.items()}
    values = {name: value for name, value in counted.items() if not math.isnan(value)}
    value = STATISTICS[claim.statistic](values, networks)
    verdict = "supported" if _between(value, claim) else "contradicted"
    what = f"{claim.statistic} over {', '.join(values)}"
    return Judgement(claim, [Finding(what, verdict, f"{value:.4g} by count")])


STATISTICS: dict[str, Callable[[dict[str, float], dict[str, Network]], float]] = {
    "mean": lambda values, networks: fmean(values.values()),
    "min": lambda values, networks: min(values.values()),
    "max": lambda values, networks: max(values.values()),
    "argmin": lambda values, networks: networks[min(values, key=values.__getitem__)][2],
    "argmax": lambda values, networks: networks[max(values, key=values.__getitem__)][2],
}
"""By the name in configs/claims.yaml; argmin and argmax are alphas."""


def _against_conv(network: Network, count: Callable[[Network], float]) -> float:
    """A count of a network, relative to the plain one that the paper compares it with, minus 1."""
    return count(network) / count((_family(network[0]), "Conv", None)) - 1


def _cumulated(network: Network, count: Callable[[Network], float]) -> float:
    """A count of a network and its trained baseline, relative to the baseline."""
    return 1 + count(network) / count((architecture(network[0]).baseline, "Conv", None))


def _params(network: Network) -> float:
    return counts(*network).params


def _flops(network: Network) -> float:
    return counts(*network).flops


COUNTS: dict[str, Callable[[Network], float]] = {
    "params": _params,
    "flops": _flops,
    "params_reduction": lambda network: -_against_conv(network, _params),
    "flops_increase": lambda network: _against_conv(network, _flops),
    "inference_increase": lambda network: abs(
        _against_conv(network, lambda each: counts(*each).flops_inference)
    ),
    "cumulative_params": lambda network: _cumulated(network, _params),
    "cumulative_flops": lambda network: _cumulated(network, _flops),
    "reducing_1x1": lambda network: counts(*network).reducing_1x1,
}
"""By the name in configs/claims.yaml; reductions and increases are fractions of the baseline."""


def _speed(claim: Claim, evidence: Evidence) -> Judgement:
    """A measured ratio to Conv for each network and setting; a median over a benchmark's rounds."""
    rows = measured(evidence.results.folder, claim.column, claim.mode)
    networks = {network[:2] for network in claim.networks().values()}
    chosen = [
        (row.model, row.variant) in networks and (is_cpu(row.device) or not claim.cpu_only)
        for row in rows.itertuples()
    ]
    rows = rows[np.array(chosen, dtype=bool)]
    if claim.statistic == "median":
        rows = rows[(rows["rounds"].astype(int) >= ENOUGH) & ~rows.superseded.astype(bool)]
    if rows.empty:
        return Judgement(claim, [Finding("results/benchmarks", "not run")])
    if claim.statistic == "median":
        return Judgement(claim, [_median(claim, rows)])
    return Judgement(claim, [_time(claim, row) for row in rows.itertuples()])


def _median(claim: Claim, rows: pd.DataFrame) -> Finding:
    ratio = median(rows.value)
    verdict = "supported" if _between(ratio, claim) else "contradicted"
    estimate = f"x{ratio:.2f} (x{min(rows.value):.2f} to x{max(rows.value):.2f})"
    return Finding(f"median of {len(rows)} measurements", verdict, estimate)


def _time(claim: Claim, row: pd.Series) -> Finding:
    what = f"{MODELS[row.model]}-{row.variant}, {row.device}, {row.precision}"
    margin = claim.cpu_margin if is_cpu(row.device) and claim.cpu_margin else claim.margin
    verdict, why = "supported" if row.value > 1 else "contradicted", ""
    if row.superseded:
        verdict, why = "undecided", "superseded settings"
    elif int(row.rounds) < ENOUGH:
        verdict, why = "undecided", f"fewer than {ENOUGH} rounds"
    elif abs(row.value - 1) <= margin:
        verdict, why = "undecided", f"within {margin:.0%} of Conv"
    return Finding(what, verdict, f"x{row.value:.2f}, {row.rounds} rounds", why=why)


def _between(value: float, claim: Claim) -> bool:
    low, high = claim.between
    return low - 1e-9 <= value <= high + 1e-9


JUDGES: dict[str, Callable[[Claim, Evidence], Judgement]] = {
    "below": _accuracy,
    "above": _accuracy,
    "keeps": _accuracy,
    "every_cell": _accuracy,
    "filters": _filters,
    "count": _count,
    "speed": _speed,
}
"""By the name in configs/claims.yaml."""
