"""Judging each claim: by statistics on accuracies, by counts, by measured speed, by filters."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pandas as pd

from configs.experiments import Cell
from linearconv.engine.device import is_cpu
from linearconv.errors import UserError
from linearconv.theory import correlation_loss_bound
from scripts.paper.artifacts import if_readable, read_filters
from scripts.paper.claims import Claim, Finding, Judgement, read_claims
from scripts.paper.counts import counts, filter_size, inference_flops
from scripts.paper.intervals import holm, p_below, paired, welch
from scripts.paper.printed import DATASETS, MODELS, PaperRow, absolute, paper_rows
from scripts.paper.results import Results
from scripts.paper.speeds import measured

Matrices = list[np.ndarray]
"""The |correlations| of one layer's filters, (F, F) for each run."""
ENOUGH = 3
"""Seeds on each side from which on accuracies decide anything; rounds from which on speeds do."""

LEVEL = 0.95
"""Of the intervals; a one-sided test errs in half of the rest, two one-sided ones each in 5 %."""
ERROR = (1 - LEVEL) / 2
"""Of a one-sided test."""
NO_SPREAD = "the seeds do not differ"
"""Why nothing is decided where they all have one accuracy."""


def judge(results: Results, metric: str) -> list[Judgement]:
    """All claims, judged on the records of one recipe.

    Args:
        results: the records.
        metric: "best" or "last", for the claims about accuracies.
    """
    return [Judgement(claim, JUDGES[claim.test](claim, results, metric)) for claim in read_claims()]


def _accuracy(claim: Claim, results: Results, metric: str) -> list[Finding]:
    """Tests `below`, `above` and `equivalent`, cell by cell.

    The p values of contradictions are corrected for the number of cells (Holm): of many cells at
    the margin one would contradict the claim by chance.
    """
    found, against = [], {}
    for row, dataset in _cells(claim):
        ours = results.accuracies(row.cell(dataset), metric)
        model = claim.against_model or row.model
        theirs = results.accuracies(Cell(model, claim.against, dataset), metric)
        what = f"{row.name} on {DATASETS[dataset]}"
        found.append(_compare(claim, what, ours, theirs, printed_difference(claim, row, dataset)))
        if min(len(ours), len(theirs)) >= ENOUGH:
            against[len(found) - 1] = _p_against(claim, ours.accuracy, theirs.accuracy)
    for i, p_value in zip(against, holm(list(against.values())), strict=True):
        if found[i].verdict == "contradicted" and p_value >= ERROR:
            why = f"contradicts it alone, but not as one of {len(against)} cells"
            found[i] = replace(found[i], verdict="undecided", why=why)
    return found


def _p_against(claim: Claim, ours: pd.Series, theirs: pd.Series) -> float:
    """The p value of what contradicts a claim about one cell."""
    if claim.test == "below":
        return p_below(theirs, ours)
    return p_below(ours + (claim.margin or 0.0), theirs)


def printed_difference(claim: Claim, row: PaperRow, dataset: str) -> Decimal | None:
    """The paper's difference in points for a cell of a claim, where it prints both accuracies."""
    other = next(
        other
        for other in paper_rows()
        if other.table == row.table
        and (other.model, other.variant) == (claim.against_model or row.model, claim.against)
    )
    if dataset not in other.accuracies:
        return None
    return absolute(row, dataset) - absolute(other, dataset)


def beyond_margin(claim: Claim) -> tuple[int, int]:
    """How many of a claim's cells the paper itself prints below -margin, and of how many."""
    printed = [printed_difference(claim, row, dataset) for row, dataset in _cells(claim)]
    known = [float(value) for value in printed if value is not None]
    return sum(value < -claim.margin for value in known), len(known)


def _compare(
    claim: Claim,
    what: str,
    these: pd.DataFrame,
    those: pd.DataFrame,
    printed: Decimal | None = None,
) -> Finding:
    """One difference of mean accuracies, in points, of runs from `Results.accuracies`."""
    ours, theirs = these.accuracy, those.accuracy
    runs = tuple(these.run_id), tuple(those.run_id)
    n, least = f"{len(ours)} vs {len(theirs)}", min(len(ours), len(theirs))
    if ours.empty:
        return Finding(what, "not run")
    if theirs.empty:
        return Finding(what, "undecided", n=n, why="what it is compared with has not run")
    said = "" if printed is None else f"{printed:+}"
    shared = (ours - theirs).dropna()
    of_pairs = str(paired(shared, LEVEL)) if len(shared) > 1 else ""
    if least < 2:
        estimate = f"{statistics.fmean(ours) - statistics.fmean(theirs):+.2f}"
        return Finding(what, "undecided", estimate, n, f"n < {ENOUGH}", of_pairs, said, runs)
    interval = welch(ours, theirs, LEVEL)
    verdict, why = "undecided", f"n < {ENOUGH}"
    if least >= ENOUGH:
        verdict, why = _decide(claim, ours, theirs)
        if printed is not None and not interval.low <= printed <= interval.high:
            said += " (outside)"
    return Finding(what, verdict, str(interval), n, why, of_pairs, said, runs)


def _decide(claim: Claim, ours: Sequence[float], theirs: Sequence[float]) -> tuple[str, str]:
    """A verdict and, if it is undecided, why."""
    interval = welch(ours, theirs, LEVEL)
    if interval.low == interval.high:
        return "undecided", NO_SPREAD
    if claim.test == "equivalent":
        inner = welch(ours, theirs, 2 * LEVEL - 1)  # the two one-sided tests, as an interval
        if -claim.margin < inner.low and inner.high < claim.margin:
            return "supported", ""
        if interval.low > claim.margin:
            return "supported", "better"
        if interval.high < -claim.margin:
            return "contradicted", ""
        return "undecided", "the interval includes a margin"
    above, below = interval.low > 0, interval.high < 0
    if not (above or below):
        return "undecided", "the interval includes 0"
    return "supported" if above == (claim.test == "above") else "contradicted", ""


def _best_alpha(claim: Claim, results: Results, metric: str) -> list[Finding]:
    """Each alpha of Table 2 against 0.5, with Holm's correction over all of them."""
    by_alpha = {row.alpha: results.accuracies(row.cell("cifar10"), metric) for row in claim.rows()}
    half = by_alpha.pop(0.5)
    decided = {a for a, v in by_alpha.items() if min(len(v), len(half)) >= ENOUGH}

    def adjusted(p_value: Callable[[pd.Series], float]) -> dict[float | None, float]:
        p_values = [p_value(v.accuracy) if a in decided else 1.0 for a, v in by_alpha.items()]
        return dict(zip(by_alpha, holm(p_values), strict=True))

    worse = adjusted(lambda values: p_below(values, half.accuracy))
    better = adjusted(lambda values: p_below(half.accuracy, values))
    found = []
    for alpha, runs in by_alpha.items():
        finding = _compare(claim, f"alpha = {alpha:g} against 0.5", runs, half)
        if alpha in decided and finding.why != NO_SPREAD:
            wins, loses = worse[alpha] < ERROR, better[alpha] < ERROR
            verdict = "supported" if wins else "contradicted" if loses else "undecided"
            why = "" if wins or loses else "no significant difference"
            finding = replace(finding, verdict=verdict, why=why)
        found.append(finding)
    return found


def _count(claim: Claim, results: Results, metric: str) -> list[Finding]:
    """A statistic of a count over the rows; no run is needed."""
    values = {row.name: COUNTS[claim.count](row) for row in claim.rows()}
    statistic = {"mean": statistics.fmean, "min": min, "max": max}[claim.statistic]
    value = statistic(values.values())
    verdict = "supported" if _between(value, claim) else "contradicted"
    return [
        Finding(f"{claim.statistic} over {', '.join(values)}", verdict, f"{value:.4g} by count")
    ]


def _against_conv(row: PaperRow, count: Callable[[PaperRow], float]) -> float:
    """A count of a row, relative to its plain network, minus 1."""
    plain = next(r for r in paper_rows() if (r.model, r.variant) == (row.model, "Conv"))
    return count(row) / count(plain) - 1


COUNTS: dict[str, Callable[[PaperRow], float]] = {
    "params_reduction": lambda row: -_against_conv(row, lambda r: counts(*r.network).params),
    "flops_increase": lambda row: _against_conv(row, lambda r: counts(*r.network).flops),
    "inference_increase": lambda row: abs(
        _against_conv(row, lambda r: inference_flops(*r.network))
    ),
    "cumulative_params": lambda row: (
        1 + counts(*row.network).params / counts(row.baseline, "Conv").params
    ),
}
"""By the name in configs/claims.yaml; those relative to the plain network are fractions."""


def _speed(claim: Claim, results: Results, metric: str) -> list[Finding]:
    """A measured ratio to Conv for each network and setting; a median over a benchmark's rounds."""
    rows = measured(results.folder, claim.column, claim.mode)
    networks = {(row.model, row.variant) for row in claim.rows()}
    chosen = [
        (row.model, row.variant) in networks and (is_cpu(row.device) or not claim.cpu_only)
        for row in rows.itertuples()
    ]
    rows = rows[np.array(chosen, dtype=bool)]
    if claim.statistic == "median":
        rows = rows[rows["rounds"].astype(int) >= ENOUGH]
    if rows.empty:
        return [Finding("results/benchmarks", "not run")]
    if claim.statistic == "median":
        ratio = statistics.median(rows.value)
        verdict = "supported" if _between(ratio, claim) else "contradicted"
        low, high = min(rows.value), max(rows.value)
        estimate = f"x{ratio:.2f} (x{low:.2f} to x{high:.2f})"
        return [Finding(f"median of {len(rows)} measurements", verdict, estimate)]
    found = []
    for row in rows.itertuples():
        what = f"{MODELS[row.model]}-{row.variant}, {row.device}, {row.precision}"
        estimate, why = f"x{row.value:.2f}, {row.rounds} rounds", ""
        margin = claim.cpu_margin if is_cpu(row.device) and claim.cpu_margin else claim.margin
        if int(row.rounds) < ENOUGH:
            why = f"fewer than {ENOUGH} rounds"
        elif abs(row.value - 1) <= margin:
            why = f"within {margin:.0%} of Conv"
        verdict = "undecided" if why else "supported" if row.value > 1 else "contradicted"
        found.append(Finding(what, verdict, estimate, why=why))
    return found


def _layers(
    claim: Claim, results: Results, judge_layer: Callable[[PaperRow, str, int, Matrices], Finding]
) -> list[Finding]:
    """A finding for each layer whose |correlations| the runs of a row have left."""
    found = []
    for row in claim.rows():
        records = results.records(row.cell("cifar10")).values()
        left = [if_readable(read_filters, results.folder, record["run_id"]) for record in records]
        runs = [arrays for arrays in left if arrays]
        if not runs:
            found.append(Finding(f"{row.name} on CIFAR-10", "not run"))
            continue
        for i, (layer, primary) in enumerate(zip(runs[0].layers, runs[0].primary, strict=True)):
            matrices = [np.abs(arrays.correlations[i]) for arrays in runs]
            for arrays, matrix in zip(runs, matrices, strict=True):
                if primary < 2 or np.isnan(matrix).any():
                    raise UserError(
                        f"{arrays.run_id}: the correlations of {layer} cannot be judged"
                    )
            finding = judge_layer(row, layer, primary, matrices)
            ids = tuple(arrays.run_id for arrays in runs)
            found.append(replace(finding, n=f"{len(runs)} of {len(records)}", runs=(ids, ())))
    return found


def _off_diagonal(matrix: np.ndarray) -> np.ndarray:
    return matrix[~np.eye(len(matrix), dtype=bool)]


def _orthogonal(claim: Claim, results: Results, metric: str) -> list[Finding]:
    """Mean |correlation| of primary filters, in every run."""

    def judge_layer(row: PaperRow, layer: str, primary: int, matrices: Matrices) -> Finding:
        pairs = np.stack([_off_diagonal(matrix[:primary, :primary]) for matrix in matrices])
        size = filter_size(*row.network, layer)
        bound = correlation_loss_bound(primary, size) / (primary * (primary - 1))
        random = math.sqrt(2 / (math.pi * size))  # mean |cosine| of two random vectors
        near = (pairs.mean(axis=1) - bound <= claim.margin * random).all()
        return Finding(
            f"{row.name}, {layer}: {primary} filters in {size} dimensions",
            "supported" if near else "contradicted",
            f"mean {pairs.mean():.4f}, largest {pairs.max():.2f} (bound {bound:.4f}, random "
            f"{random:.4f})",
        )

    return _layers(claim, results, judge_layer)


def _redundant(claim: Claim, results: Results, metric: str) -> list[Finding]:
    """Mean |correlation| among secondary filters against that among primary ones, in every run."""

    def judge_layer(row: PaperRow, layer: str, primary: int, matrices: Matrices) -> Finding:
        blocks = [(m[:primary, :primary], m[primary:, primary:]) for m in matrices]
        means = np.array([[_off_diagonal(block).mean() for block in pair] for pair in blocks])
        larger = (means[:, 1] > means[:, 0]).all()
        among_primary, among_secondary = means.mean(axis=0)
        return Finding(
            f"{row.name}, {layer}",
            "supported" if larger else "contradicted",
            f"secondary {among_secondary:.4f}, primary {among_primary:.4f}",
        )

    return _layers(claim, results, judge_layer)


def _cells(claim: Claim) -> list[tuple[PaperRow, str]]:
    """The cells that a claim is about, each once."""
    found = {}
    for row in claim.rows():
        for dataset in row.accuracies:
            found.setdefault((row.network, dataset), (row, dataset))
    return list(found.values())


def _between(value: float, claim: Claim) -> bool:
    low, high = claim.between
    return low - 1e-9 <= value <= (high + 1e-9 if high < math.inf else high)


JUDGES: dict[str, Callable[[Claim, Results, str], list[Finding]]] = {
    "below": _accuracy,
    "above": _accuracy,
    "equivalent": _accuracy,
    "best_alpha": _best_alpha,
    "count": _count,
    "speed": _speed,
    "orthogonal": _orthogonal,
    "redundant": _redundant,
}
