"""How evidence becomes a verdict: with no run, too few, and enough."""

import numpy as np
import pytest

from configs.experiments import Cell
from linearconv.engine.artifacts import pack_symmetric, write_artifacts
from linearconv.errors import UserError
from scripts.paper import claims as claims_module
from scripts.paper.claims import Finding, Judgement, read_claims
from scripts.paper.claims_text import csv_text, judged, markdown
from scripts.paper.judging import COUNTS, JUDGES, judge
from scripts.paper.results import Results
from tests.records import add_artifacts, add_runs

# In one worker, which counts the networks of the tables once.
pytestmark = pytest.mark.xdist_group("counts")

CLAIMS = {claim.name: claim for claim in read_claims()}


def cell(model: str, variant: str, alpha: float | None = None) -> Cell:
    return Cell(model, variant, "cifar10", alpha)


def around(mean: float, n: int, spread: float = 0.1) -> list[tuple[float, float]]:
    """(best, last) of n runs, the best one point above."""
    offsets = [spread * (i - (n - 1) / 2) for i in range(n)]
    return [(mean + 1 + offset, mean + offset) for offset in offsets]


def verdict(folder, name: str, metric: str = "last") -> Judgement:
    found = {j.claim.name: j for j in judge(Results(folder, "paper"), metric)}
    return found[name]


def test_every_claim_names_a_known_test_and_real_rows():
    for claim in CLAIMS.values():
        assert claim.test in JUDGES and len(claim.quote) <= 120
        assert claim.rows(), claim.name
        assert claim.test != "count" or claim.count in COUNTS
        assert claim.test != "equivalent" or claim.margin > 0


def test_a_claim_with_an_unknown_key_is_named(tmp_path, monkeypatch):
    (tmp_path / "claims.yaml").write_text("- {name: x, quote: q, where: w, tset: below}\n")
    monkeypatch.setattr(claims_module, "CONFIG_DIR", tmp_path)
    with pytest.raises(UserError, match="claims.yaml: x: .*tset"):
        read_claims.__wrapped__()


def test_without_runs_only_counts_are_judged(tmp_path):
    (tmp_path / "runs").mkdir()
    for judgement in judge(Results(tmp_path, "paper"), "last"):
        decided = judgement.claim.test == "count"
        assert (judgement.verdict in ("supported", "contradicted")) == decided, judgement


def test_counts_of_the_paper(tmp_path):
    (tmp_path / "runs").mkdir()
    assert (
        verdict(tmp_path, "-Lr saves 44 % of the parameters on average")
        .findings[0]
        .estimate.startswith("0.4218")
    )
    contradicted = {
        j.claim.name
        for j in judge(Results(tmp_path, "paper"), "last")
        if j.verdict == "contradicted"
    }
    assert contradicted == {"-Lr saves 44 % of the parameters on average"}


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_seeds_decide_nothing(tmp_path, n):
    add_runs(tmp_path, cell("base", "Conv"), around(86, 5))
    add_runs(tmp_path, cell("base", "r"), around(80, n))
    found = verdict(tmp_path, "-r loses accuracy")
    assert found.text == "undecided in 1 of 4 (n < 3) [3 not run]"
    assert found.run[0].n == f"{n} vs 5"
    assert ("[" in found.run[0].estimate) == (n == 2)


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize(
    ("ours", "spread", "expected"),
    [(84, 0.1, "supported"), (88, 0.1, "contradicted"), (86, 3, "undecided")],
)
def test_a_loss_of_accuracy(tmp_path, n, ours, spread, expected):
    add_runs(tmp_path, cell("base", "Conv"), around(86, n, spread))
    add_runs(tmp_path, cell("base", "r"), around(ours, n, spread))
    for metric in ("last", "best"):
        assert verdict(tmp_path, "-r loses accuracy", metric).verdict == expected


@pytest.mark.parametrize(
    ("ours", "spread", "expected"),
    [
        (86.1, 0.1, "supported"),
        (89, 0.1, "supported"),  # better
        (85, 0.1, "contradicted"),
        (85.6, 0.3, "undecided"),
        (86, 0, "undecided"),  # seeds that do not differ say nothing of others
    ],
)
def test_keeping_the_accuracy(tmp_path, ours, spread, expected):
    add_runs(tmp_path, cell("base", "Conv"), around(86, 5, spread))
    add_runs(tmp_path, cell("base", "Lr"), around(ours, 5, spread))
    assert verdict(tmp_path, "-Lr keeps the accuracy within half a point").verdict == expected


def test_one_cell_that_contradicts_contradicts_the_claim(tmp_path):
    for model, loss in (("base", 0.0), ("vgg11", 3.0)):
        add_runs(tmp_path, cell(model, "Conv"), around(86, 3))
        add_runs(tmp_path, cell(model, "Lr"), around(86 - loss, 3))
    assert (
        verdict(tmp_path, "-Lr keeps the accuracy within half a point").text
        == "contradicted in 1 of 30 [28 not run]"
    )


def test_the_best_alpha_is_corrected_for_their_number(tmp_path):
    add_runs(tmp_path, cell("vgg11", "Lr"), around(90, 3))
    for alpha, mean in ((0.125, 88), (0.25, 89.99), (0.75, 92)):
        add_runs(tmp_path, cell("vgg11", "Lr", alpha), around(mean, 3))
    found = verdict(tmp_path, "alpha = 0.5 is best")
    assert [f.verdict for f in found.findings] == [
        "supported",
        "undecided",
        "contradicted",
        "not run",
    ]


def test_filters_against_their_bound(tmp_path):
    (record,) = add_runs(tmp_path, cell("base", "Lr"), [(86, 85)])
    add_artifacts(tmp_path, record)
    found = verdict(tmp_path, "primary filters become orthogonal")
    assert "conv1: 4 filters in 27 dimensions" in found.run[0].what
    assert "(bound 0.0000, random 0.1536)" in found.run[0].estimate
    assert found.verdict == "contradicted"  # they are random


@pytest.mark.parametrize(("scale", "expected"), [(1.0, "contradicted"), (0.05, "supported")])
def test_random_filters_are_not_orthogonal(tmp_path, scale, expected):
    """Not even in many dimensions, where their correlations are small."""
    (record,) = add_runs(tmp_path, cell("base", "Lr"), [(86, 85)])
    filters = np.random.default_rng(0).normal(size=(128, 1152))
    unit = filters / np.linalg.norm(filters, axis=1, keepdims=True)
    matrix = scale * (unit @ unit.T) + (1 - scale) * np.eye(128)
    arrays = {
        "layers": np.array(["conv4"]),
        "primary": np.array([128]),
        "filters": np.zeros((256, 3, 3, 3), dtype=np.float16),
        "correlations_0": pack_symmetric(matrix.astype(np.float16)),
    }
    write_artifacts(tmp_path / "artifacts" / f"{record['run_id']}.npz", arrays)
    found = verdict(tmp_path, "primary filters become orthogonal")
    assert found.run[0].verdict == expected


def test_measured_speed(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "card.csv").write_text(
        "model,variant,device,mode,precision,rounds,step_over_conv,latency_over_conv_fused_b256\n"
        "base,Lr,Card,usual,fp32,5,1.2,1.01\nbase,Lr,Card,fast,fp32,5,0.9,1.02\n"
        "base,Lr,Card,fast,fp32,5,0.8,\nbase,L,Card,fast,fp32,5,9,9\nother,Lr,Card,fast,fp32,5,9,9\n"
    )
    usual = verdict(tmp_path, "LinearConv takes longer to train, as the paper computes it")
    fast = verdict(tmp_path, "LinearConv takes longer to train, factored")
    assert (usual.verdict, fast.verdict) == ("supported", "contradicted")
    assert [finding.estimate for finding in fast.findings] == ["x0.80, 5 rounds"]
    assert verdict(tmp_path, "inference takes the same time (median)").verdict == "not run"


def test_pages_are_complete_and_say_what_they_are(tmp_path):
    (tmp_path / "runs").mkdir()
    found = judged(Results(tmp_path, "short"))
    page = markdown("short", found)
    assert page.startswith("# The paper's claims at 30 epochs only (recipe short)\n")
    assert markdown("paper", found).startswith(
        "# The paper's claims at 250 epochs (recipe paper)\n"
    )
    for name in CLAIMS:
        assert f"| {name} |" in page
    assert csv_text("short", found).count("\n") > 2 * len(CLAIMS)


def test_reasons_are_said_once():
    findings = [Finding("a", "undecided", why="n < 3"), Finding("b", "undecided", why="n < 3")]
    judgement = Judgement(CLAIMS["-r loses accuracy"], [*findings, Finding("c", "not run")])
    assert judgement.text == "undecided in 2 of 3 (n < 3) [1 not run]"
