"""Judging each claim: by statistics on accuracies, by counts, by measured speed, by filters."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from configs.experiments import Cell
from linearconv.errors import UserError
from linearconv.theory import correlation_loss_bound
from scripts.paper.artifacts import read_filters
from scripts.paper.claims import Claim, Finding, Judgement, read_claims
from scripts.paper.counts import counts, filter_size, inference_flops
from scripts.paper.intervals import holm, p_below, paired, welch
from scripts.paper.printed import DATASETS, MODELS, PaperRow, paper_rows
from scripts.paper.results import Results
from scripts.paper.speeds import measured

ENOUGH = 3
"""Seeds on each side from which on accuracies decide anything."""

LEVEL = 0.95
"""Of the intervals; a one-sided test errs in half of the rest, two one-sided ones each in 5 %."""


def judge(results: Results, metric: str) -> list[Judgement]:
    """All claims, judged on the records of one recipe.

    Args:
        results: the records.
        metric: "best" or "last", for the claims about accuracies.
    """
    return [Judgement(claim, JUDGES[claim.test](claim, results, metric)) for claim in read_claims()]


def _accuracy(claim: Claim, results: Results, metric: str) -> list[Finding]:
    """Tests `below`, `above` and `equivalent`, cell by cell."""
    found = []
    for row, dataset in _cells(claim):
        ours = results.accuracies(row.cell(dataset), metric)
        model = claim.against_model or row.model
        theirs = results.accuracies(Cell(model, claim.against, dataset), metric)
        found.append(_compare(claim, f"{row.name} on {DATASETS[dataset]}", ours, theirs))
    return found


def _compare(claim: Claim, what: str, these: pd.DataFrame, those: pd.DataFrame) -> Finding:
    """One difference of mean accuracies, in points, of runs from `Results.accuracies`."""
    ours, theirs = these.accuracy, those.accuracy
    runs = tuple(these.run_id), tuple(those.run_id)
    if not all(runs):
        return Finding(what, "not run")
    n, least = f"{len(ours)} vs {len(theirs)}", min(len(ours), len(theirs))
    shared = (ours - theirs).dropna()
    of_pairs = str(paired(shared, LEVEL)) if len(shared) > 1 else ""
    if least < 2:
        estimate = f"{statistics.fmean(ours) - statistics.fmean(theirs):+.2f}"
        return Finding(what, "undecided", estimate, n, f"n < {ENOUGH}", of_pairs, runs)
    interval = welch(ours, theirs, LEVEL)
    verdict, why = "undecided", f"n < {ENOUGH}"
    if least >= ENOUGH:
        verdict, why = _decide(claim, ours, theirs)
    return Finding(what, verdict, str(interval), n, why, of_pairs, runs)


def _decide(claim: Claim, ours: Sequence[float], theirs: Sequence[float]) -> tuple[str, str]:
    """A verdict and, if it is undecided, why."""
    interval = welch(ours, theirs, LEVEL)
    if interval.low == interval.high:
        return "undecided", "the seeds do not differ"
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
        if alpha in decided:
            error = (1 - LEVEL) / 2
            wins, loses = worse[alpha] < error, better[alpha] < error
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
    """A measured ratio for each network and setting; a median over the rounds of a benchmark."""
    rows = measured(results.folder, claim.column, claim.mode)
    networks = {(row.model, row.variant) for row in claim.rows()}
    rows = rows[[pair in networks for pair in zip(rows.model, rows.variant, strict=True)]]
    if rows.empty:
        return [Finding("results/benchmarks", "not run")]
    if claim.statistic == "median":
        ratio = statistics.median(rows.value)
        verdict = "supported" if _between(ratio, claim) else "contradicted"
        low, high = min(rows.value), max(rows.value)
        estimate = f"x{ratio:.2f} (x{low:.2f} to x{high:.2f})"
        return [Finding(f"median of {len(rows)} measurements", verdict, estimate)]
    return [
        Finding(
            f"{MODELS[row.model]}-{row.variant}, {row.device}, {row.precision}",
            "supported" if _between(row.value, claim) else "contradicted",
            f"x{row.value:.2f}, {row.rounds} rounds",
        )
        for row in rows.itertuples()
    ]


def _orthogonal(claim: Claim, results: Results, metric: str) -> list[Finding]:
    """Mean |correlation| of primary filters, in the layers that one run's artifacts hold."""
    found = []
    for row in claim.rows():
        record = results.first_record(row.cell("cifar10"))
        arrays = record and read_filters(results.folder, record["run_id"])
        if not arrays:
            found.append(Finding(f"{row.name} on CIFAR-10", "not run"))
            continue
        runs = len(results.records(row.cell("cifar10")))
        for layer, split, matrix in zip(
            arrays.layers, arrays.primary, arrays.correlations, strict=True
        ):
            off = np.abs(matrix[:split, :split])[~np.eye(split, dtype=bool)]
            if split < 2 or np.isnan(off).any():
                raise UserError(f"{arrays.run_id}: the correlations of {layer} cannot be judged")
            size = filter_size(*row.network, layer)
            bound = correlation_loss_bound(split, size) / (split * (split - 1))
            random = math.sqrt(2 / (math.pi * size))  # mean |cosine| of two random vectors
            verdict = "supported" if off.mean() - bound <= claim.margin * random else "contradicted"
            estimate = f"mean {off.mean():.4f}, largest {off.max():.2f}"
            estimate += f" (bound {bound:.4f}, random {random:.4f})"
            what = f"{row.name}, {layer}: {split} filters in {size} dimensions"
            n, run = f"1 of {runs}", (arrays.run_id,)
            found.append(Finding(what, verdict, estimate, n, runs=(run, ())))
    return found


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
}
