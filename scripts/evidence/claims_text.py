"""The judged claims as Markdown and CSV, and in short for the README."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from configs.compose import compose
from configs.groups import CONFIG_DIR
from scripts.evidence.claims import Claim, Finding, Judgement, read_rules
from scripts.evidence.formats import lines_csv, markdown_grid
from scripts.evidence.judging import AFFORDABLE, Evidence, beyond_margin, groups, judge
from scripts.evidence.results import Results
from scripts.evidence.statistics import Noise
from scripts.evidence.text import Entry, Grid


@dataclass(frozen=True)
class Verdicts:
    """The claims, judged on one recipe.

    Attributes:
        recipe: its name.
        evidence: the runs.
        judgements: of the claims that this recipe's runs say something about: for other recipes
            than the paper's, none about counts and times.
    """

    recipe: str
    evidence: Evidence
    judgements: list[Judgement]

    def said(self, text: str) -> str:
        """A verdict in the words of the recipe: another than the paper's gives none on it."""
        if self.recipe == "paper":
            return text
        at = f"at {epochs_of(self.recipe)} epochs"
        return text.replace("supported", f"holds {at}").replace("contradicted", f"fails {at}")

    def selected(self, *, trained: bool, run: bool, beyond: bool = False) -> Verdicts:
        """The claims that need runs or do not, have evidence or not, are the paper's or not."""
        kept = [
            judgement
            for judgement in self.judgements
            if judgement.claim.trained == trained
            and bool(judgement.run) == run
            and judgement.claim.beyond == beyond
        ]
        return Verdicts(self.recipe, self.evidence, kept)


def judged(results: Results, others: Sequence[Results] = ()) -> Verdicts:
    """All claims, judged on the records of one recipe.

    Args:
        results: of the recipe.
        others: of other recipes, for the noise where this one's runs are too few.
    """
    evidence = Evidence(results, [each for each in others if each.recipe != results.recipe])
    found = judge(evidence)
    if results.recipe != "paper":
        found = [judgement for judgement in found if judgement.claim.trained]
    return Verdicts(results.recipe, evidence, found)


def heading(recipe: str) -> str:
    """The page's title, which says how long the recipe trains."""
    epochs = epochs_of(recipe)
    if recipe == "paper":
        return f"The paper's claims, judged at {epochs} epochs"
    return f"At {epochs} epochs (recipe={recipe}): no verdict on the paper"


@cache
def epochs_of(recipe: str) -> int:
    """How long a recipe trains."""
    return compose(["model=base", "variant=Conv", f"recipe={recipe}"]).recipe.epochs


def claims_grid(found: Verdicts) -> Grid:
    """A row for each claim."""
    header = ["Claim", "Where", "Evidence", "Estimate", "Margin", "Verdict"]
    body = [
        [
            judgement.claim.name,
            judgement.claim.where,
            _evidence(judgement),
            _estimate(judgement),
            "" if judgement.claim.margin is None else f"{judgement.claim.margin:g}",
            found.said(judgement.text),
        ]
        for judgement in found.judgements
    ]
    return Grid(header, body)


def _evidence(judgement: Judgement) -> str:
    """How much there is."""
    claim = judgement.claim
    if not claim.trained:
        return {"count": "counts", "speed": "benchmarks"}[claim.test]
    unit = "cells" if claim.on_accuracy else "layers"
    n = "; ".join(dict.fromkeys(finding.n for finding in judgement.run))
    return f"{len(judgement.run)} of {len(judgement.findings)} {unit}" + (f", n = {n}" if n else "")


def _estimate(judgement: Judgement) -> str:
    if judgement.overall is not None:
        return judgement.overall.estimate
    run = judgement.run
    return run[0].estimate if len(run) == 1 else f"{len(run)}, see below" if run else ""


def evidence_grid(found: Verdicts) -> Grid:
    """A row for each cell, layer, count or measurement that there is."""
    header = ["Claim", "Evidence", "n", "Estimate (settled)", "Last epoch", "Best epoch"]
    header += ["Noise", "The paper", "Seeds it takes", "Verdict"]
    body, starts = [], set()
    for judgement in found.judgements:
        starts.add(len(body))
        for finding in judgement.run:
            estimate = Entry("", finding.estimate, "", finding.verdict, compared=finding.runs)
            row = [judgement.claim.name, finding.what, finding.n]
            row += [estimate if any(finding.runs) else finding.estimate]
            row += [finding.beside.get("last", ""), finding.beside.get("best", ""), finding.noise]
            row += [finding.printed, _needs(finding), found.said(_verdict(finding))]
            body.append(row)
    return Grid(header, body, starts)


def _needs(finding: Finding) -> str:
    if finding.needs is None:
        return ""
    return f"{finding.needs}" + (", not affordable" if finding.needs > AFFORDABLE else "")


def _verdict(finding: Finding) -> str:
    return f"{finding.verdict} ({finding.why})" if finding.why else finding.verdict


def noise_grid(found: Verdicts) -> Grid:
    """A row for each model and dataset: the noise of a run, and how ours and the paper's agree."""
    header = ["Network", "Runs", "Noise of the settled accuracy", "Of the last epoch"]
    header += ["Of the best epoch", "Ours minus the paper's (best epoch): common shift, the rest"]
    body = []
    for group in groups(found.evidence):
        noise = [_noise(group.noise[metric]) for metric in ("settled", "last", "best")]
        agrees, rest = group.agreement, ""
        if agrees is not None:
            rest = f"{agrees.shift:+.2f}, chi-square({agrees.freedom}) = {agrees.chi2:.1f}, p = "
            rest += f"{agrees.p_value:.2f}"
        body.append([group.name, str(group.runs), *noise, rest])
    return Grid(header, body)


def _noise(noise: Noise | None) -> str:
    if noise is None:
        return "unknown"
    bartlett = "" if noise.bartlett is None else f", Bartlett p {noise.bartlett:.2g}"
    borrowed = f" of recipe={noise.recipe}" if noise.recipe else ""
    return f"{noise.sigma:.2f} ({noise.freedom} df{borrowed}{bartlett})"


@cache
def read_frozen() -> dict[str, Any]:
    """When the rules were frozen, and what was there before: configs/rules.yaml."""
    return OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "rules.yaml"))


def frozen_lines() -> list[str]:
    """When the rules were frozen, and the records that were committed before, in Markdown."""
    frozen = read_frozen()
    date, records = str(frozen["date"]), frozen["records_before"]
    said: dict[bool, list[str]] = {True: [], False: []}  # by whether it is later
    for each in frozen["history"]:
        entry = f"{each['date']} (commit {each['commit']}): {each['what']}"
        said[str(each["date"]) > date].append(entry)
    return [
        f"The rules were frozen on {date}. How they came about: {'; '.join(said[False])}. "
        f"Since then: {'; '.join(said[True]) or 'no change'}.",
        "",
        f"{len(records)} records were committed before {date}, and were known when the rules were "
        f"written: {', '.join(f'`{run_id}`' for run_id in records)}. {frozen['note']}",
    ]


def markdown(found: Verdicts) -> str:
    """The page."""
    rules, recipe = read_rules(), found.recipe
    paper = Verdicts(recipe, found.evidence, [j for j in found.judgements if not j.claim.beyond])
    beyond = Verdicts(recipe, found.evidence, [j for j in found.judgements if j.claim.beyond])
    parts = [f"# {heading(recipe)}", "", *markdown_grid(claims_grid(paper)), ""]
    parts += ["## How is judged", "", *(f"- {rule}" for rule in rules.rules)]
    parts += ["", *frozen_lines(), ""]
    parts += ["## Noise, and all variants together", "", *markdown_grid(noise_grid(found)), ""]
    parts += ["## Cell by cell", "", *markdown_grid(evidence_grid(paper)), ""]
    if beyond.judgements:
        parts += [
            "## Beyond the paper",
            "",
            "What this project adds, and so no verdict on the paper.",
            "",
            *markdown_grid(evidence_grid(beyond)),
            "",
        ]
    quotes = [[j.claim.name, f"“{j.claim.quote}”", _note(j.claim)] for j in found.judgements]
    parts += ["## In the paper's words", ""]
    parts += [*markdown_grid(Grid(["Claim", "The paper", "Note"], quotes)), ""]
    if recipe == "paper":
        left = [[f"“{each['quote']}”", each["why"]] for each in rules.not_judged]
        parts += ["## What is not judged, and why", ""]
        parts += [*markdown_grid(Grid(["The paper", "Why"], left)), ""]
    return "\n".join(parts)


def _note(claim: Claim) -> str:
    """What a reader should know, and how many of the paper's own cells are below the margin."""
    if claim.test not in ("keeps", "every_cell"):
        return claim.note
    below, cells = beyond_margin(claim)
    said = f"The paper itself prints {below} of {cells} cells below -{claim.margin:g}."
    return " ".join(filter(None, (claim.note, said)))


def csv_text(found: Verdicts) -> str:
    """A line for each finding."""
    return lines_csv(
        [
            {
                "recipe": found.recipe,
                "claim": judgement.claim.name,
                "test": judgement.claim.test,
                "margin": judgement.claim.margin,
                "claim_verdict": judgement.verdict,
                "evidence": finding.what,
                "n": finding.n,
                "estimate": finding.estimate,
                **_numbers(finding),
                "last": finding.beside.get("last", ""),
                "best": finding.beside.get("best", ""),
                "noise": finding.noise,
                "paper": finding.printed,
                "seeds_needed": finding.needs,
                "verdict": finding.verdict,
                "why": finding.why,
            }
            for judgement in found.judgements
            for finding in judgement.findings
        ]
    )


def _numbers(finding: Finding) -> dict[str, str]:
    """The difference of settled accuracies in points, and its interval."""
    found = finding.difference
    values = (math.nan,) * 3 if found is None else (found.value, *found.interval())
    names = ("difference", "low", "high")
    return {
        name: f"{value:.4f}" if math.isfinite(value) else ""
        for name, value in zip(names, values, strict=True)
    }


def claims_block(found: Verdicts) -> str:
    """A table of the verdicts on the paper, for the README."""
    body = [
        [judgement.claim.name, found.said(judgement.text)]
        for judgement in found.judgements
        if not judgement.claim.beyond
    ]
    return "\n".join(markdown_grid(Grid(["claim", "verdict"], body)))
