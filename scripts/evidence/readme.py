"""The generated blocks of pages, and how they are replaced."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from configs.experiments import Cell, all_cells
from linearconv.engine.files import CHECKOUT, atomic_write
from linearconv.errors import UserError
from scripts.evidence.claims import Finding
from scripts.evidence.claims_text import Verdicts, claims_block
from scripts.evidence.comparison import Accuracy
from scripts.evidence.figures.base import seeds
from scripts.evidence.figures.curves import cells_by_network
from scripts.evidence.figures.differences import WINDOWS, accuracy_frame, window_means
from scripts.evidence.formats import markdown_grid
from scripts.evidence.judging import groups
from scripts.evidence.printed import DATASETS
from scripts.evidence.results import METRICS, Results, test_accuracy
from scripts.evidence.speeds import Benchmarks
from scripts.evidence.statistics import difference
from scripts.evidence.tables import Row, tables
from scripts.evidence.text import NOT_RUN, Entry, Grid, mean_text

DATASET = "cifar10"

FIRST = (
    "-r loses accuracy",
    "-e loses accuracy",
    "-L is better than -e",
    "-e is worse than -Lr",
    "-Lr is better than -L",
    "-Lr keeps the accuracy within half a point",
    "-LRr keeps the accuracy within a point",
)
"""The claims of the first screen of results/README.md."""

FROM_SCRATCH = (
    "-L is better than -e",
    "-Lr is better than -L",
    "-Lr keeps the accuracy within half a point",
    "-LRr keeps the accuracy within a point",
)
"""The claims that say which variant to train, for docs/your_network.md."""

SHOWN = ("paper", "short")
"""The recipes whose runs results/README.md shows."""

THROUGH = (("L", "Conv"), ("Lr", "L"), ("L", "e"))
"""The pairs of variants whose difference is shown over the epochs."""


def renewed(text: str, blocks: dict[str, str]) -> str:
    """A page's text with what is between `<!-- NAME -->` and `<!-- end of NAME -->` replaced.

    Raises:
        UserError: a pair of markers is not there exactly once.
    """
    for name, block in blocks.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        new = f"{start}\n{block}\n{end}"
        text, count = re.subn(
            rf"{re.escape(start)}.*?{re.escape(end)}", lambda _, new=new: new, text, flags=re.S
        )
        if count != 1:
            raise UserError(f"the page must have the markers {start} and {end} once")
    return text


def renew(page: Path, blocks: dict[str, str]) -> None:
    """Replace the blocks in a file; raises as `renewed`."""
    text = renewed(page.read_text(), blocks)
    with atomic_write(page) as file:
        file.write(text.encode())


def results_block(by_recipe: dict[str, Results]) -> str:
    """`results_grid` in Markdown."""
    return "\n".join(markdown_grid(results_grid(by_recipe, "best")))


def results_grid(by_recipe: dict[str, Results], metric: str) -> Grid:
    """The networks of Tables 3 and 4 that have run on CIFAR-10: costs and accuracies."""
    found = {recipe: _rows(results, metric) for recipe, results in by_recipe.items()}
    header = [f"CIFAR-10, {metric} test accuracy (%)", "parameters", "multiply-adds (M)"]
    header += ["the paper", *(f"recipe={recipe}" for recipe in found)]
    body = []
    for rows in zip(*found.values(), strict=True):
        accuracies = [row.accuracies[DATASET] for row in rows]
        if all(accuracy.runs.empty for accuracy in accuracies):
            continue
        row = rows[0]
        cells = [row.printed.name, f"{row.counts.params:,}", _macs(row), f"{_printed(row):.1f}"]
        body.append(cells + [_absolute(accuracy) for accuracy in accuracies])
    return Grid(header, body)


def _rows(results: Results, metric: str) -> list[Row]:
    """The rows of Tables 3 and 4, each network once and those of a model together."""
    found = [t for t in tables(results, metric, Benchmarks()) if t.number in (3, 4)]
    rows = {row.printed.name: row for table in found for row in table.rows}
    models = list(dict.fromkeys(row.printed.model for row in rows.values()))
    return sorted(rows.values(), key=lambda row: models.index(row.printed.model))


def _macs(row: Row) -> str:
    return f"{row.counts.macs['inference', 'factored'] / 1e6:.1f}"


def _printed(row: Row) -> float:
    """The paper's accuracy, absolute."""
    baseline = 0.0 if row.baseline is None else float(row.baseline.accuracies[DATASET])
    return float(row.printed.accuracies[DATASET]) + baseline


def _absolute(accuracy: Accuracy) -> Entry:
    """The mean accuracy, also where the tables show the difference from a baseline."""
    accuracy = replace(accuracy, relative=False, baseline=accuracy.baseline[:0])
    if accuracy.runs.empty:
        return Entry("", NOT_RUN, "", accuracy.verdict, accuracy)
    spread = "" if accuracy.spread is None else f" ± {accuracy.spread:.2f}"
    ours = f"{accuracy.accuracy:.2f}{spread} (n={len(accuracy.runs)})"
    return Entry("", ours, "", accuracy.verdict, accuracy)


def known_block(found: Verdicts) -> str:
    """What is known at how many seeds: the first claims, cell by cell, and what has run."""
    results = found.evidence.results
    ran = results.cells()
    numbers = [len(results.records(cell)) for cell in ran]
    has_run = f"{len(ran)} have run ({seeds(numbers)})" if ran else "none has run"
    return "\n".join(
        [
            f"Of the {len(all_cells())} accuracies of the paper's tables {has_run}. Differences "
            "are of settled accuracies (the mean of the last 50 epochs), in points, with 95 % "
            "intervals; a verdict takes three seeds on each side.",
            "",
            *markdown_grid(_known_grid(found, FIRST)),
            "",
            *_together(found),
        ]
    )


def from_scratch_block(found: Verdicts) -> str:
    """What the records say of the variants that may be trained."""
    return "\n".join(markdown_grid(_known_grid(found, FROM_SCRATCH)))


def _known_grid(found: Verdicts, names: Sequence[str]) -> Grid:
    judgements = {judgement.claim.name: judgement for judgement in found.judgements}
    body = [
        [judgement.claim.name, finding.what, finding.n, finding.estimate, _paper(finding)]
        + [found.said(_short(finding))]
        for name in names
        for judgement in [judgements[name]]
        for finding in judgement.run
    ]
    return Grid(["the paper's claim", "here", "seeds", "difference", "the paper", "verdict"], body)


def _paper(finding: Finding) -> str:
    """The printed difference alone."""
    return finding.printed.partition(" ")[0]


def _short(finding: Finding) -> str:
    return f"{finding.verdict} ({finding.why})" if finding.why else finding.verdict


def _together(found: Verdicts) -> list[str]:
    """Sentences for each model and dataset: the noise of a run, and all variants together."""
    lines = []
    for group in groups(found.evidence):
        noise, agrees = group.noise["settled"], group.agreement
        if noise is None:
            lines.append(f"{group.name}: no network has two seeds, so there are no intervals.")
        else:
            borrowed = f", known from recipe={noise.recipe}" if noise.recipe else ""
            lines.append(
                f"{group.name}: two seeds of one network differ by "
                f"{math.sqrt(2) * noise.sigma:.2f} points (one standard deviation{borrowed})."
            )
        if agrees is not None:
            less = "no more" if agrees.p_value >= 0.05 else "more"
            lines.append(
                f"On the best epoch, as the paper prints it, ours are {agrees.shift:+.2f} points "
                f"from its accuracies on average; beyond that they differ by {less} than noise "
                f"does (chi-square {agrees.chi2:.1f}, {agrees.freedom} df, p = "
                f"{agrees.p_value:.2g})."
            )
    return lines


def runs_block(found: Verdicts) -> str:
    """The accuracies of one recipe's runs, settled, last and best."""
    results = found.evidence.results
    header = ["", "parameters", *(f"{metric} (%)" for metric in METRICS), "settled minus Conv's"]
    body = []
    for row in _rows(results, "best"):
        for dataset in row.accuracies:
            cell = row.printed.cell(dataset)
            records = list(results.records(cell).values())
            if not records:
                continue
            plain = results.accuracies(Cell(cell.model, "Conv", dataset), "settled").accuracy
            apart = ""
            if cell.variant != "Conv" and len(plain):
                ours = results.accuracies(cell, "settled").accuracy
                apart = str(difference(ours, plain, found.evidence.noise(cell, "settled")))
            texts = [
                mean_text([test_accuracy(record, metric) for record in records], spread=True)
                for metric in METRICS
            ]
            name = f"{row.printed.name} on {DATASETS[dataset]}"
            body.append([name, f"{records[0]['params']:,}", *texts, apart])
    return "\n".join(markdown_grid(Grid(header, body)))


def windows_block(results: Results, model: str = "base") -> str:
    """The differences of some variants through the training, in points."""
    cells = cells_by_network()[DATASET, model]
    frame = accuracy_frame(results, cells)
    seeds_of = {cell.variant: len(results.records(cell)) for cell in cells}
    header = ["epochs", *(f"{first} to {last}" for first, last in WINDOWS), "seeds"]
    body = []
    for ours, theirs in THROUGH:
        if {ours, theirs} <= set(frame):
            means = [f"{value:+.2f}" for value in window_means(frame, ours, theirs)]
            body.append(
                [f"{ours} minus {theirs}", *means, f"{seeds_of[ours]} vs {seeds_of[theirs]}"]
            )
    return "\n".join(markdown_grid(Grid(header, body)))


def results_blocks(claims: dict[str, Verdicts]) -> dict[str, str]:
    """The blocks of results/README.md, by name."""
    blocks = {
        "known": known_block(claims["paper"]),
        "through": windows_block(claims["paper"].evidence.results),
    }
    shown = [recipe for recipe in SHOWN if recipe in claims]
    return blocks | {f"runs of {recipe}": runs_block(claims[recipe]) for recipe in shown}


def claims_pages(
    results: dict[str, Results], claims: dict[str, Verdicts]
) -> dict[Path, dict[str, str]]:
    """The blocks of each page that is renewed."""
    paper = claims["paper"]
    return {
        CHECKOUT / "README.md": {"results": results_block(results), "claims": claims_block(paper)},
        CHECKOUT / "results" / "README.md": results_blocks(claims),
        CHECKOUT / "docs" / "your_network.md": {"from scratch": from_scratch_block(paper)},
    }
