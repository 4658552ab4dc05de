"""The judged claims as Markdown and CSV, and in short for the README."""

from __future__ import annotations

from configs.compose import compose
from scripts.paper.claims import Claim, Finding, Judgement
from scripts.paper.formats import lines_csv, markdown_grid
from scripts.paper.judging import ENOUGH, beyond_margin, judge
from scripts.paper.results import Results
from scripts.paper.text import Entry, Grid

METRICS = ("last", "best")
Judged = dict[str, list[Judgement]]
"""The judgements of one recipe, by metric."""

RULES = (
    "Accuracies are compared as differences of means over seeds, in points, with Welch's 95 % "
    f"interval; n is the number of seeds on each side. With fewer than {ENOUGH} on a side nothing "
    "is decided. Equivalence is supported if two one-sided tests at 5 % say so, that is, if the "
    "90 % interval is within the margin, or if the accuracy is better by more than the margin; it "
    "is contradicted if the 95 % interval is below the margin. The margins were fixed before any "
    "run of the paper's recipe, but after those at 30 epochs; the paper has none. A claim about "
    "several cells is contradicted if one of them contradicts it, with Holm's correction for the "
    "number of those that have run.",
    "The paper: its printed difference, and whether it is outside our interval of three seeds or "
    "more. Seeds in common: the mean difference seed by seed with its 95 % t interval, which "
    "decides nothing. Times decide from three rounds on, and if they are more than 10 % from "
    "Conv's, on a CPU 20 %.",
    "Judged on the last epoch, which needs no selection, and on the best one, the paper's "
    "protocol, which favours variants whose accuracy fluctuates.",
)
OTHER_RECIPE = (
    "The paper's claims are about its own recipe: a verdict on this page says whether they hold "
    "for this one. Claims about counts and times are on the page of the paper's recipe."
)


def judged(results: Results) -> Judged:
    """All claims under both metrics."""
    return {metric: judge(results, metric) for metric in METRICS}


def selected(found: Judged, *, trained: bool, run: bool) -> Judged:
    """The claims that need runs or do not, and have evidence or not."""
    return {
        metric: [
            judgement
            for judgement in judgements
            if judgement.claim.trained == trained and bool(judgement.run) == run
        ]
        for metric, judgements in found.items()
    }


def heading(recipe: str) -> str:
    """The page's title, which says how long the recipe trains."""
    epochs = epochs_of(recipe)
    only = "" if recipe == "paper" else " only"
    return f"The paper's claims at {epochs} epochs{only} (recipe {recipe})"


def epochs_of(recipe: str) -> int:
    """How long a recipe trains."""
    return compose(["model=base", "variant=Conv", f"recipe={recipe}"]).recipe.epochs


def claims_grid(found: Judged) -> Grid:
    """A row for each claim."""
    header = ["Claim", "Where", "Evidence", "Estimate (last epoch)", "Best epoch", "Margin"]
    header += ["Verdict (last)", "Verdict (best)"]
    body = []
    for last, best in zip(*found.values(), strict=True):
        claim = last.claim
        body.append(
            [
                claim.name,
                claim.where,
                _evidence(last),
                _estimate(last),
                _estimate(best) if _on_accuracy(last) else "",
                "" if claim.margin is None else f"{claim.margin:g}",
                last.text,
                best.text if _on_accuracy(last) else "",
            ]
        )
    return Grid(header, body)


def _on_accuracy(judgement: Judgement) -> bool:
    return judgement.claim.test in ("below", "above", "equivalent", "best_alpha")


def _evidence(judgement: Judgement) -> str:
    """How much there is."""
    if not _on_accuracy(judgement):
        return {"count": "counts", "speed": "benchmarks"}.get(judgement.claim.test, "filters")
    n = dict.fromkeys(finding.n for finding in judgement.run)
    return f"{len(judgement.run)} of {len(judgement.findings)} cells" + (
        f", n = {'; '.join(n)}" if n else ""
    )


def _estimate(judgement: Judgement) -> str:
    run = judgement.run
    return run[0].estimate if len(run) == 1 else f"{len(run)}, see below" if run else ""


def evidence_grid(found: Judged) -> Grid:
    """A row for each cell, count or measurement that there is, under both metrics."""
    header = ["Claim", "Evidence", "n", "Estimate (last epoch)", "The paper", "Seeds in common"]
    header += ["Verdict", "Best epoch", "The paper (best)", "Verdict (best)"]
    body, groups = [], set()
    for last, best in zip(*found.values(), strict=True):
        groups.add(len(body))
        for one, other in zip(last.findings, best.findings, strict=True):
            if one.verdict != "not run":
                again = _on_accuracy(last)
                row = [last.claim.name, one.what, one.n, _measured(one), one.printed, one.paired]
                row += [_verdict(one), _measured(other) if again else "", other.printed]
                row += [_verdict(other) if again else ""]
                body.append(row)
    return Grid(header, body, groups)


def _measured(finding: Finding) -> str | Entry:
    """The estimate, with its runs where there are any."""
    if not any(finding.runs):
        return finding.estimate
    return Entry("", finding.estimate, "", finding.verdict, compared=finding.runs)


def _verdict(finding: Finding) -> str:
    return f"{finding.verdict} ({finding.why})" if finding.why else finding.verdict


def markdown(recipe: str, found: Judged) -> str:
    """The page."""
    found = shown(recipe, found)
    quotes = [[j.claim.name, f"“{j.claim.quote}”", _note(j.claim)] for j in found["last"]]
    rules = [*RULES, *([] if recipe == "paper" else [OTHER_RECIPE])]
    parts = [
        f"# {heading(recipe)}",
        "",
        *(line for rule in rules for line in (rule, "")),
        *markdown_grid(claims_grid(found)),
        "",
        "## Cell by cell",
        "",
        *markdown_grid(evidence_grid(found)),
        "",
        "## In the paper's words",
        "",
        *markdown_grid(Grid(["Claim", "The paper", "Note"], quotes)),
        "",
    ]
    return "\n".join(parts)


def shown(recipe: str, found: Judged) -> Judged:
    """What a recipe's page shows: claims about counts and times are on the paper's alone."""
    if recipe == "paper":
        return found
    return {
        metric: [j for j in judgements if j.claim.trained] for metric, judgements in found.items()
    }


def _note(claim: Claim) -> str:
    """What a reader should know, and how many of the paper's own cells are below the margin."""
    if claim.test != "equivalent":
        return claim.note
    below, cells = beyond_margin(claim)
    said = f"The paper itself prints {below} of {cells} cells below -{claim.margin:g}."
    return " ".join(filter(None, (claim.note, said)))


def csv_text(recipe: str, found: Judged) -> str:
    """A line for each finding under each metric."""
    found = shown(recipe, found)
    return lines_csv(
        [
            {
                "recipe": recipe,
                "metric": metric,
                "claim": judgement.claim.name,
                "test": judgement.claim.test,
                "margin": judgement.claim.margin,
                "claim_verdict": judgement.verdict,
                "evidence": finding.what,
                "n": finding.n,
                "estimate": finding.estimate,
                "paper": finding.printed,
                "seeds_in_common": finding.paired,
                "verdict": finding.verdict,
                "why": finding.why,
            }
            for metric, judgements in found.items()
            for judgement in judgements
            for finding in judgement.findings
        ]
    )


def claims_block(by_recipe: dict[str, Judged]) -> str:
    """A table of the verdicts on the last epoch, a column for each recipe."""
    columns = [found["last"] for found in by_recipe.values()]
    header = ["claim", *(f"{epochs_of(name)} epochs (recipe={name})" for name in by_recipe)]
    body = []
    for first, *others in zip(*columns, strict=True):
        rest = [other.text if other.claim.trained else "" for other in others]
        body.append([first.claim.name, first.text, *rest])
    return "\n".join(markdown_grid(Grid(header, body)))
