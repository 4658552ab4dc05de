"""The paper's claims and the rules (configs/claims.yaml), and what the evidence says of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from configs.groups import CONFIG_DIR
from linearconv.errors import UserError
from scripts.evidence.printed import MODELS, PaperRow, paper_rows
from scripts.evidence.statistics import Difference

DECIDED = ("supported", "contradicted")
NEEDED = {
    "below": (),
    "above": (),
    "keeps": ("margin",),
    "every_cell": ("margin",),
    "filters": ("filters", "between"),
    "count": ("count", "statistic", "between"),
    "speed": ("column", "mode"),
}
"""What a claim's test needs besides the fields that all claims have."""

Network = tuple[str, str, float | None]
"""Model, variant and alpha; see `PaperRow.network`."""


@dataclass(frozen=True)
class Claim:
    """One claim of the paper; configs/claims.yaml explains the tests.

    Attributes:
        name: what is claimed, in short.
        quote: where the paper says so, at most a line.
        where: section, table or figure.
        test: how it is judged.
        tables: numbers of the tables whose rows it is about; none for a network in no table.
        variant: of these rows, one or several.
        model: of these rows; empty for all.
        exempt: a model that the paper excepts.
        alpha: of these rows; None for all.
        against: variant that is compared with.
        against_model: model that is compared with; empty for the row's own.
        against_alpha: alphas that are compared with; none for the row's own.
        margin: of an accuracy, in points; of speeds, around 1.
        cpu_margin: of speeds on a CPU.
        filters: the statistic of a layer's filters.
        layers: first, other (than the first) or empty for all.
        count: what is counted.
        statistic: of a count over the networks: mean, min, max, argmin or argmax (the alpha); of
            speeds: median, or none.
        column: of results/benchmarks.
        mode: of the rows there, usual or fast.
        cpu_only: whether rows of other devices do not count.
        between: ends of the interval in which a number supports the claim.
        beyond: whether it is not the paper's, so that it gives no verdict on it.
        note: what a reader should know of the judgement.
    """

    name: str
    quote: str
    where: str
    test: str
    variant: list[str]
    tables: list[int] = field(default_factory=lambda: [4])
    model: str = ""
    exempt: str = ""
    alpha: float | None = None
    against: str = "Conv"
    against_model: str = ""
    against_alpha: list[float] = field(default_factory=list)
    margin: float | None = None
    cpu_margin: float | None = None
    filters: str = ""
    layers: str = ""
    count: str = ""
    statistic: str = ""
    column: str = ""
    mode: str = ""
    cpu_only: bool = False
    between: list[float] = field(default_factory=list)
    beyond: bool = False
    note: str = ""

    @property
    def on_accuracy(self) -> bool:
        """Whether it is about accuracies."""
        return self.test in ("below", "above", "keeps", "every_cell")

    @property
    def trained(self) -> bool:
        """Whether it is judged by runs, and not by counts or measured speed alone."""
        return self.on_accuracy or self.test == "filters"

    def rows(self) -> list[PaperRow]:
        """The rows that it is about, one for each network, in print order."""
        found = {
            row.network: row
            for row in paper_rows()
            if row.table in self.tables
            and row.variant in self.variant
            and self.model in ("", row.model)
            and row.model != self.exempt
            and self.alpha in (None, row.alpha)
        }
        return list(found.values())

    def networks(self) -> dict[str, Network]:
        """The networks that it is about, by name, in print order."""
        if not self.tables:
            names = {f"{MODELS[self.model]}-{v}": (self.model, v, None) for v in self.variant}
            return dict(names)
        rows = self.rows()
        several = len({row.name for row in rows}) < len(rows)  # of one network, with other alphas
        return {row.name + f", alpha {row.alpha}" * several: row.network for row in rows}


@dataclass(frozen=True)
class Rules:
    """Everything in configs/claims.yaml.

    Attributes:
        rules: how is judged, in paragraphs.
        claims: the claims.
        not_judged: `quote` and `why` of the paper's other statements.
    """

    rules: list[str]
    claims: list[Claim]
    not_judged: list[dict[str, str]]


@cache
def read_rules() -> Rules:
    """Read configs/claims.yaml.

    Raises:
        UserError: a key that no claim has, or one that is missing.
    """
    whole = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "claims.yaml"))
    return Rules(whole["rules"], [_claim(entry) for entry in whole["claims"]], whole["not_judged"])


def _claim(entry: dict[str, Any]) -> Claim:
    values = {"exempt" if key == "except" else key: value for key, value in entry.items()}
    if isinstance(values.get("variant"), str):
        values["variant"] = [values["variant"]]
    known = {each.name: each for each in fields(Claim)}
    always = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    needed = (*always, *NEEDED.get(values.get("test"), ()))
    problems = [f"there is no field {name}" for name in values if name not in known]
    problems += [f"{name} is missing" for name in needed if values.get(name) in (None, "", [])]
    if values.get("test") not in (None, *NEEDED):
        problems.append(f"test must be one of {', '.join(NEEDED)}, got {values['test']}")
    if problems:
        raise UserError(f"configs/claims.yaml: {entry.get('name')}: {'; '.join(problems)}")
    return Claim(**values)


@dataclass(frozen=True)
class Finding:
    """What one cell, one layer, one count or one measurement says about a claim.

    Attributes:
        what: the cell or the network, in words.
        verdict: supported, contradicted, undecided or not run.
        estimate: with its interval, or the number that was counted or measured.
        n: numbers of seeds compared; empty for counts and speeds.
        why: of a verdict that needs a reason.
        difference: of accuracies, in points; None for other evidence.
        beside: of accuracies, the difference of the last and of the best epoch.
        printed: the difference in the paper, and whether ours predicts it.
        needs: seeds a side that would find the printed difference; None where it does not apply.
        noise: of the difference: its method, sigma and degrees of freedom.
        runs: run_ids of the runs and of those they are compared with.
    """

    what: str
    verdict: str
    estimate: str = ""
    n: str = ""
    why: str = ""
    difference: Difference | None = None
    beside: dict[str, str] = field(default_factory=dict)
    printed: str = ""
    needs: int | None = None
    noise: str = ""
    runs: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


@dataclass(frozen=True)
class Judgement:
    """A claim and all findings about it.

    Attributes:
        claim: the claim.
        findings: what each cell, layer, count or measurement says.
        overall: what they say together; None where each speaks for itself.
    """

    claim: Claim
    findings: list[Finding]
    overall: Finding | None = None

    @property
    def verdict(self) -> str:
        """Supported, contradicted, undecided, mixed or not run."""
        if self.overall is not None:
            return self.overall.verdict
        kinds = self._kinds
        decided = [kind for kind in DECIDED if kinds[kind]]
        if decided:
            return decided[0] if len(decided) == 1 else "mixed"
        return "undecided" if kinds["undecided"] else "not run"

    @property
    def text(self) -> str:
        """The verdict, in how many of the findings it was reached, and why."""
        if self.overall is not None:
            parts = [self.overall.verdict, self.overall.why and f"({self.overall.why})"]
        elif self.verdict == "mixed":
            parts = [", ".join(f"{kind} in {self._kinds[kind]}" for kind in DECIDED)]
            parts.append(f"of {len(self.findings)}")
        else:
            parts = [self.verdict]
            if self.run and len(self.findings) > 1:
                parts.append(f"in {self._kinds[self.verdict]} of {len(self.findings)}")
            why = dict.fromkeys(f.why for f in self.findings if f.verdict == self.verdict and f.why)
            parts.append(why and f"({'; '.join(why)})")
        absent = len(self.findings) - len(self.run)
        if self.run and absent:
            parts.append(f"[{absent} not run]")
        return " ".join(filter(None, parts))

    @property
    def run(self) -> list[Finding]:
        """The findings that there is evidence for."""
        return [finding for finding in self.findings if finding.verdict != "not run"]

    @property
    def _kinds(self) -> Counter[str]:
        return Counter(finding.verdict for finding in self.findings)
