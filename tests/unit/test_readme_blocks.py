"""The generated blocks of README.md, and the pages of the claims."""

import pytest

from linearconv.errors import UserError
from scripts.make_claims import README, results_by_recipe
from scripts.paper.claims_text import claims_block, judged, markdown
from scripts.paper.readme import renewed, results_block
from scripts.paper.results import RESULTS, read_records

pytestmark = pytest.mark.xdist_group("counts")


@pytest.fixture(scope="module")
def results():
    return results_by_recipe(RESULTS, read_records(RESULTS).usable)


@pytest.fixture(scope="module")
def claims(results):
    return {recipe: judged(found, list(results.values())) for recipe, found in results.items()}


def test_the_claims_pages_are_those_of_the_committed_results(claims):
    for recipe, found in claims.items():
        page = RESULTS / ("claims.md" if recipe == "paper" else f"claims/{recipe}.md")
        assert page.read_text() == markdown(found)


def test_the_readme_has_the_blocks_of_the_committed_results(results, claims):
    blocks = {"results": results_block(results), "claims": claims_block(claims["paper"])}
    text = README.read_text()
    assert renewed(text, blocks) == text


def test_the_block_shows_each_recipe_that_has_run(results):
    lines = results_block(results).splitlines()
    assert lines[0].endswith("| recipe=paper | recipe=short |")
    (base,) = (line for line in lines if line.startswith("| Base |"))
    found = results["short"].accuracies(next(iter(results["short"].cells())), "best")
    assert f"{found.accuracy.mean():.2f}" in base and f"(n={len(found)})" in base


@pytest.mark.parametrize("text", ["", "<!-- a --><!-- end of a --><!-- a --><!-- end of a -->"])
def test_markers_must_be_there_once(text):
    with pytest.raises(UserError, match="<!-- a --> and <!-- end of a --> once"):
        renewed(text, {"a": "new"})
