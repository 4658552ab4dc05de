"""The generated blocks of README.md, and the pages of the claims."""

import pandas as pd
import pytest

from linearconv.engine.files import CHECKOUT
from linearconv.errors import UserError
from scripts.evidence.claims_text import judged, markdown, read_frozen
from scripts.evidence.conversion import conversion_blocks
from scripts.evidence.readme import (
    claims_pages,
    renewed,
    results_block,
    results_blocks,
    windows_block,
)
from scripts.evidence.results import RESULTS, Results, read_records
from scripts.evidence.studies import outcomes, read_studies
from scripts.report import Report

YOUR_NETWORK = CHECKOUT / "docs" / "your_network.md"


@pytest.fixture(scope="module")
def results():
    return Report(RESULTS, "best", None).results


@pytest.fixture(scope="module")
def claims(results):
    return {recipe: judged(found, list(results.values())) for recipe, found in results.items()}


def test_the_claims_pages_are_those_of_the_committed_results(claims):
    for recipe, found in claims.items():
        page = RESULTS / ("claims.md" if recipe == "paper" else f"claims/{recipe}.md")
        assert page.read_text() == markdown(found)


def test_the_pages_have_the_blocks_of_the_committed_results(results, claims):
    blocks = claims_pages(results, claims)
    records = [*read_records(RESULTS).usable, *read_records(RESULTS / "studies").usable]
    blocks[YOUR_NETWORK] |= conversion_blocks(results["paper"], outcomes(read_studies(), records))
    for page, found in blocks.items():
        text = page.read_text()
        assert renewed(text, found) == text


def test_what_is_left_of_the_published_network_is_as_measured():
    """The tables of docs/your_network.md, read back, against the rows of the file."""
    rows = pd.read_csv(RESULTS / "redundancy.csv", dtype=str, keep_default_na=False)
    plain = rows[(rows.variant == "Conv") & (rows.dataset == "cifar10") & (rows.model == "base")]
    text = YOUR_NETWORK.read_text()
    for column, values in (("alpha", ["0.5", "0.75"]), ("budget", ["0.57", "0.7", "0.85"])):
        for value in values:
            same = plain[(plain[column] == value) & (plain.form == "linear") & (plain.layer == "")]
            name = f"`alpha={value}`" if column == "alpha" else value
            (line,) = (each for each in text.splitlines() if each.startswith(f"| {name} |"))
            for fitted_to in same.fitted_to.unique():
                accuracies = same[same.fitted_to == fitted_to].accuracy.astype(float)
                assert f"{accuracies.mean():.2f} (n={len(accuracies)})" in line


def test_the_block_shows_each_recipe_that_has_run(results):
    lines = results_block(results).splitlines()
    assert lines[0].endswith("| recipe=paper | recipe=short |")
    (base,) = (line for line in lines if line.startswith("| Base |"))
    found = results["short"].accuracies(next(iter(results["short"].cells())), "best")
    assert f"{found.accuracy.mean():.2f}" in base and f"(n={len(found)})" in base


def test_the_first_screen_says_how_much_is_known_at_which_n(results, claims):
    block = results_blocks(claims)["known"]
    ran = len(results["paper"].cells())
    assert f"the paper's tables {ran} have run (n = " in block
    (line,) = (line for line in block.splitlines() if line.startswith("| -Lr is better than -L |"))
    (finding,) = next(
        j for j in claims["paper"].judgements if j.claim.name == "-Lr is better than -L"
    ).run[:1]
    assert finding.estimate in line and f"| {finding.n} |" in line and "| +0.1 |" in line


def test_the_differences_through_the_training(results):
    """Of the first seeds, as the studies' recipe was chosen by; more seeds change the page."""
    first, one = set(read_frozen()["records_before"]), "1 vs 1"
    records = [r for r in read_records(RESULTS).usable if r["run_id"] in first]
    rows = windows_block(Results(RESULTS, "paper", records)).splitlines()[2:]
    assert [row.strip("| ").split(" | ") for row in rows] == [
        ["L minus Conv", "-1.46", "-0.54", "-0.27", "+0.11", "-0.04", "-0.04", one],
        ["Lr minus L", "-0.64", "-0.38", "-0.54", "-0.98", "-0.77", "-0.90", one],
        ["L minus e", "-0.03", "+0.56", "+1.00", "+1.66", "+1.50", "+1.53", one],
    ]


@pytest.mark.parametrize("text", ["", "<!-- a --><!-- end of a --><!-- a --><!-- end of a -->"])
def test_markers_must_be_there_once(text):
    with pytest.raises(UserError, match="<!-- a --> and <!-- end of a --> once"):
        renewed(text, {"a": "new"})
