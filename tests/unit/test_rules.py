"""The rules of judgement are frozen: they do not change without a new date."""

import datetime
import hashlib
import re

from scripts.evidence.claims_text import read_frozen
from scripts.evidence.judging import Evidence, groups, judge
from scripts.evidence.results import RESULTS, Results, read_records
from tests.conftest import REPOSITORY


def test_the_rules_have_not_changed_since_they_were_frozen():
    frozen = read_frozen()
    digest = hashlib.sha256()
    for name in frozen["files"]:
        digest.update((REPOSITORY / name).read_bytes())
    assert digest.hexdigest() == frozen["sha256"], (
        f"{', '.join(frozen['files'])} changed. If that is meant, add to the history in "
        f"configs/rules.yaml when and what, and set sha256: {digest.hexdigest()}"
    )


def test_every_change_of_the_rules_has_its_date_and_commit():
    history = read_frozen()["history"]
    dates = [datetime.date.fromisoformat(str(entry["date"])) for entry in history]
    assert dates == sorted(dates)
    assert all(re.fullmatch(r"[0-9a-f]{7}", entry["commit"]) for entry in history)


def test_the_records_that_were_there_before_are_named():
    named = read_frozen()["records_before"]
    there = {path.stem for path in RESULTS.rglob("runs/*.json")}
    assert len(named) == len(set(named)) == 42 and set(named) <= there


def test_the_numbers_that_the_rules_were_written_with():
    """Of the records that were there before; those that follow change the pages, not these."""
    before = set(read_frozen()["records_before"])
    records = [r for r in read_records(RESULTS).usable if r["run_id"] in before]
    paper, short = (Results(RESULTS, recipe, records) for recipe in ("paper", "short"))
    evidence = Evidence(paper, [short])
    (group,) = groups(evidence)
    assert group.runs == 6
    sigma = {metric: (round(n.sigma, 2), n.freedom) for metric, n in group.noise.items()}
    assert sigma == {"settled": (0.20, 12), "last": (0.19, 12), "best": (0.23, 12)}
    assert group.noise["settled"].bartlett > 0.1
    agrees = group.agreement
    found = round(agrees.shift, 2), round(agrees.chi2, 1), agrees.freedom, round(agrees.p_value, 2)
    assert found == (0.56, 8.2, 5, 0.22)  # 0.15 if the noise were known
    by_name = {judgement.claim.name: judgement for judgement in judge(evidence)}
    filters = {
        "a Conv's filters are correlated": ["0.190", "0.099", "0.064", "0.036"],
        "without regularisation, secondary filters are more correlated": [
            "0.227", "0.185", "0.142", "0.100",
        ],
    }  # fmt: skip
    for name, values in filters.items():
        estimates = [finding.estimate.split(": ")[1] for finding in by_name[name].run]
        assert [estimate.split(" of ")[0] for estimate in estimates] == values
    chance = [f.estimate.split(", ")[1] for f in by_name["a Conv's filters are correlated"].run]
    assert chance == [f"{value} of random ones" for value in ("0.155", "0.047", "0.033", "0.024")]
