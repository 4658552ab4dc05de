"""The paper's claims (configs/claims.yaml), and what the evidence here says about each of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache

from omegaconf import OmegaConf

from configs.groups import CONFIG_DIR
from linearconv.errors import UserError
from scripts.paper.printed import PaperRow, paper_rows


@dataclass(frozen=True)
class Claim:
    """One claim of the paper; configs/claims.yaml explains the tests.

    Attributes:
        name: what is claimed, in short.
        quote: where the paper says so, at most a line.
        where: section, table or figure.
        test: how it is judged.
        tables: numbers of the tables whose rows it is about.
        variant: of these rows, one or several.
        model: of these rows; empty for all.
        exempt: a model that the paper excepts.
        against: variant that is compared with.
        against_model: model that is compared with; empty for the row's own.
        margin: of equivalence, in points; of an orthogonal layer, as a share; of speeds, around 1.
        cpu_margin: of speeds on a CPU.
        count: what is counted.
        statistic: of a count over the rows: mean, min or max; of speeds: median, or none.
        column: of results/benchmarks.
        mode: of the rows there, usual or fast.
        cpu_only: whether rows of other devices do not count.
        between: ends of the interval in which a count or a speed supports the claim.
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
    against: str = "Conv"
    against_model: str = ""
    margin: float | None = None
    cpu_margin: float | None = None
    count: str = ""
    statistic: str = ""
    column: str = ""
    mode: str = ""
    cpu_only: bool = False
    between: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def trained(self) -> bool:
        """Whether it is judged by runs, and not by counts or measured speed alone."""
        return self.test not in ("count", "speed")

    def rows(self) -> list[PaperRow]:
        """The rows that it is about, one for each network, in print order."""
        found = {
            row.network: row
            for row in paper_rows()
            if row.table in self.tables
            and row.variant in self.variant
            and self.model in ("", row.model)
            and row.model != self.exempt
        }
        return list(found.values())


@cache
def read_claims() -> tuple[Claim, ...]:
    """The claims of configs/claims.yaml.

    Raises:
        UserError: a key that no claim has, or one that is missing.
    """
    claims = []
    for entry in OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "claims.yaml")):
        values = {"exempt" if key == "except" else key: value for key, value in entry.items()}
        if isinstance(values.get("variant"), str):
            values["variant"] = [values["variant"]]
        try:
            claims.append(Claim(**values))
        except TypeError as error:
            raise UserError(f"configs/claims.yaml: {entry.get('name')}: {error}") from None
    return tuple(claims)


@dataclass(frozen=True)
class Finding:
    """What one cell, one count or one measurement says about a claim.

    Attributes:
        what: the cell or the network, in words.
        verdict: supported, contradicted, undecided or not run.
        estimate: with its interval, or the number that was counted or measured.
        n: numbers of seeds compared; empty for counts and speeds.
        why: of a verdict that needs a reason.
        paired: the interval over the seeds in common; empty where there are fewer than two.
        printed: the difference in the paper, and whether it is outside the interval.
        runs: run_ids of the runs and of those they are compared with.
    """

    what: str
    verdict: str
    estimate: str = ""
    n: str = ""
    why: str = ""
    paired: str = ""
    printed: str = ""
    runs: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


@dataclass(frozen=True)
class Judgement:
    """A claim and all findings about it."""

    claim: Claim
    findings: list[Finding]

    @property
    def verdict(self) -> str:
        """Contradicted if any finding contradicts it, supported if all others support it."""
        kinds = self._kinds
        for verdict in ("contradicted", "undecided", "supported"):
            if kinds[verdict]:
                return verdict
        return "not run"

    @property
    def text(self) -> str:
        """The verdict, in how many of the findings it was reached, and why."""
        verdict = self.verdict
        parts = [verdict]
        if verdict != "not run" and len(self.findings) > 1:
            parts.append(f"in {self._kinds[verdict]} of {len(self.findings)}")
        reasons = dict.fromkeys(f.why for f in self.findings if f.verdict == verdict and f.why)
        if reasons:
            parts.append(f"({'; '.join(reasons)})")
        if self.run and len(self.run) < len(self.findings):
            parts.append(f"[{len(self.findings) - len(self.run)} not run]")
        return " ".join(parts)

    @property
    def run(self) -> list[Finding]:
        """The findings that there is evidence for."""
        return [finding for finding in self.findings if finding.verdict != "not run"]

    @property
    def _kinds(self) -> Counter[str]:
        return Counter(finding.verdict for finding in self.findings)
