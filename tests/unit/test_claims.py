"""How evidence becomes a verdict: with no run, too few, and enough."""

import numpy as np
import pytest

from configs.experiments import Cell
from linearconv.engine.artifacts import pack_symmetric, write_artifacts
from linearconv.errors import UserError
from scripts.paper import claims as claims_module
from scripts.paper.claims import Finding, Judgement, read_claims
from scripts.paper.claims_text import csv_text, judged, markdown
from scripts.paper.judging import COUNTS, JUDGES, beyond_margin, judge
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
        assert claim.test != "speed" or claim.statistic or claim.margin > 0


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


def test_a_contradiction_is_corrected_for_the_number_of_cells(tmp_path):
    """0.8 points below with an interval of 0.3 would contradict half a point, but in one of 12."""
    for dataset in ("cifar10", "cifar100", "svhn", "mnist"):
        for model in ("base", "vgg11", "allconv"):
            low = (dataset, model) == ("cifar10", "base")
            add_runs(tmp_path, Cell(model, "Conv", dataset), around(86, 3, 0.1))
            add_runs(tmp_path, Cell(model, "Lr", dataset), around(85.2 if low else 86, 3, 0.1))
    found = verdict(tmp_path, "-Lr keeps the accuracy within half a point")
    assert found.findings[0].verdict == "undecided"
    assert found.findings[0].why == "contradicts it alone, but not as one of 12 cells"
    assert [f.verdict for f in found.run[1:]] == ["supported"] * 11


def test_a_corrected_p_value_must_be_below_half_of_what_the_interval_leaves(tmp_path):
    """0.016 in one of two cells: 0.033."""
    for model, gain in (("base", 0.2613), ("vgg11", -3.0)):
        add_runs(tmp_path, cell(model, "Conv"), around(86, 3, 0.1))
        add_runs(tmp_path, cell(model, "r"), around(86 + gain, 3, 0.1))
    found = {f.what: f for f in verdict(tmp_path, "-r loses accuracy").run}
    assert found["Base-r on CIFAR-10"].verdict == "undecided"
    assert "not as one of 2 cells" in found["Base-r on CIFAR-10"].why


def test_pairs_are_of_the_seeds_in_common(tmp_path):
    add_runs(tmp_path, cell("base", "r"), [(90, 84.0), (90, 84.3), (90, 84.1)])
    conv = [(90, 86.0), (90, 86.1), (90, 86.2)]
    add_runs(tmp_path, cell("base", "Conv"), conv, first_seed=1)
    found = verdict(tmp_path, "-r loses accuracy").run[0]
    assert found.paired.startswith("-1.85 [") and found.estimate.startswith("-1.97 [")


def test_without_what_it_is_compared_with_nothing_is_decided(tmp_path):
    add_runs(tmp_path, cell("base", "Lr"), around(86, 3))
    found = verdict(tmp_path, "-Lr keeps the accuracy within half a point")
    assert found.text.startswith("undecided in 1 of 30 (what it is compared with has not run)")


def test_what_the_paper_prints_is_beside_the_interval(tmp_path):
    add_runs(tmp_path, cell("base", "Conv"), around(86, 3))
    add_runs(tmp_path, cell("base", "Lr"), around(84, 3))
    add_runs(tmp_path, cell("base", "e"), around(83.1, 3))
    assert verdict(tmp_path, "-Lr keeps the accuracy within half a point").run[0].printed == (
        "-0.1 (outside)"
    )
    assert verdict(tmp_path, "-e is worse than -Lr").run[0].printed == "-0.9"
    assert beyond_margin(CLAIMS["-Lr keeps the accuracy within half a point"]) == (4, 30)


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


def test_an_alpha_is_worse_below_half_of_what_the_interval_leaves(tmp_path):
    """0.008 in one of four, of which three have not run: 0.032."""
    for alpha, mean in ((None, 90), (0.25, 90 - 0.3266)):
        add_runs(tmp_path, cell("vgg11", "Lr", alpha), around(mean, 3, 0.1))
    (finding,) = verdict(tmp_path, "alpha = 0.5 is best").run
    assert (finding.verdict, finding.why) == ("undecided", "no significant difference")


def test_alphas_whose_seeds_do_not_differ_decide_nothing(tmp_path):
    for alpha, mean in ((None, 90), (0.25, 85)):
        add_runs(tmp_path, cell("vgg11", "Lr", alpha), around(mean, 3, 0))
    assert verdict(tmp_path, "alpha = 0.5 is best").verdict == "undecided"


def test_filters_against_their_bound(tmp_path):
    (record,) = add_runs(tmp_path, cell("base", "Lr"), [(86, 85)])
    add_artifacts(tmp_path, record)
    found = verdict(tmp_path, "primary filters become orthogonal")
    assert "conv1: 4 filters in 27 dimensions" in found.run[0].what
    assert "(bound 0.0000, random 0.1536)" in found.run[0].estimate
    assert found.verdict == "contradicted"  # they are random


def add_correlations(folder, record, layer: str, primary: int, matrix: np.ndarray) -> None:
    """The arrays of a run whose filters of one layer have these correlations."""
    arrays = {
        "layers": np.array([layer]),
        "primary": np.array([primary]),
        "filters": np.zeros((2 * primary, 3, 3, 3), dtype=np.float16),
        "correlations_0": pack_symmetric(matrix.astype(np.float16)),
    }
    write_artifacts(folder / "artifacts" / f"{record['run_id']}.npz", arrays)


@pytest.mark.parametrize(("scale", "expected"), [(1.0, "contradicted"), (0.05, "supported")])
def test_random_filters_are_not_orthogonal(tmp_path, scale, expected):
    """Not even in many dimensions, where their correlations are small."""
    (record,) = add_runs(tmp_path, cell("base", "Lr"), [(86, 85)])
    filters = np.random.default_rng(0).normal(size=(128, 1152))
    unit = filters / np.linalg.norm(filters, axis=1, keepdims=True)
    matrix = scale * (unit @ unit.T) + (1 - scale) * np.eye(128)
    add_correlations(tmp_path, record, "conv4", 128, matrix)
    found = verdict(tmp_path, "primary filters become orthogonal")
    assert found.run[0].verdict == expected


@pytest.mark.parametrize(
    ("means", "expected"),
    [((0.018,), "supported"), ((0.03,), "contradicted"), ((0.018, 0.03), "contradicted")],
)
def test_more_filters_than_dimensions_are_judged_against_their_bound(tmp_path, means, expected):
    """In every run: 32 filters in 27 dimensions have 0.010 at least; 0.015 more are near it."""
    runs = add_runs(tmp_path, cell("base", "Lr"), [(86, 85)] * len(means))
    for record, mean in zip(runs, means, strict=True):
        matrix = np.full((32, 32), mean) + (1 - mean) * np.eye(32)
        add_correlations(tmp_path, record, "conv1", 32, matrix)
    found = verdict(tmp_path, "primary filters become orthogonal").run[0]
    assert "(bound 0.0101, random 0.1536)" in found.estimate and found.verdict == expected


def step_over_conv(folder, device: str, mode: str, rounds: int, ratio: float) -> None:
    """A results folder with nothing but this measurement of Base-Lr."""
    (folder / "runs").mkdir()
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "file.csv").write_text(
        "model,variant,device,mode,precision,rounds,step_over_conv\n"
        f"base,Lr,{device},{mode},fp32,{rounds},{ratio}\n"
    )


def test_measured_speed(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "card.csv").write_text(
        "model,variant,device,mode,precision,rounds,step_over_conv,latency_over_conv_fused_b256\n"
        "base,Lr,Card,usual,fp32,5,1.2,1.01\nbase,Lr,Card,fast,fp32,5,0.9,1.02\n"
        "base,Lr,Card,fast,fp32,5,0.7,\nbase,L,Card,fast,fp32,5,9,9\nother,Lr,Card,fast,fp32,5,9,9\n"
    )
    usual = verdict(tmp_path, "LinearConv takes longer to train, as the paper computes it")
    fast = verdict(tmp_path, "LinearConv takes longer to train, factored")
    assert (usual.verdict, fast.verdict) == ("not run", "contradicted")  # a GPU's usual loop
    assert [finding.estimate for finding in fast.findings] == ["x0.70, 5 rounds"]
    assert verdict(tmp_path, "inference takes the same time (median)").verdict == "not run"


@pytest.mark.parametrize(
    ("ratio", "rounds", "expected"),
    [(1.21, 3, "supported"), (0.79, 3, "contradicted"), (1.19, 9, "undecided"),
     (0.81, 9, "undecided"), (0.5, 2, "undecided")],
)  # fmt: skip
def test_a_time_decides_if_it_is_beyond_the_noise(tmp_path, ratio, rounds, expected):
    step_over_conv(tmp_path, "CPU (2 threads)", "usual", rounds, ratio)
    usual = verdict(tmp_path, "LinearConv takes longer to train, as the paper computes it")
    assert usual.verdict == expected


@pytest.mark.parametrize(
    ("ratio", "expected"), [(1.01, "supported"), (0.94, "contradicted"), (1.06, "contradicted")]
)
def test_a_median_of_times_counts_those_of_enough_rounds(tmp_path, ratio, expected):
    (tmp_path / "runs").mkdir()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "cpu.csv").write_text(
        "model,variant,device,mode,precision,rounds,latency_over_conv_fused_b256\n"
        f"base,Lr,CPU,fast,fp32,3,{ratio}\nvgg11,Lr,CPU,fast,fp32,1,9\n"
    )
    (finding,) = verdict(tmp_path, "inference takes the same time (median)").findings
    assert finding.what == "median of 1 measurements" and finding.verdict == expected
    assert finding.estimate.startswith(f"x{ratio}")


@pytest.mark.parametrize(("device", "expected"), [("Card", "supported"), ("CPU (2 threads)", "un")])
def test_a_cpus_times_vary_more(tmp_path, device, expected):
    step_over_conv(tmp_path, device, "fast", 5, 1.15)
    fast = verdict(tmp_path, "LinearConv takes longer to train, factored")
    assert fast.verdict.startswith(expected)


@pytest.mark.parametrize(("among", "expected"), [(0.5, "supported"), (0.01, "contradicted")])
def test_secondary_filters_are_more_correlated_or_not(tmp_path, among, expected):
    """In one of two runs not: then they are not."""
    matrix = np.full((8, 8), 0.1) + 0.9 * np.eye(8)
    for record, value in zip(
        add_runs(tmp_path, cell("base", "L"), [(86, 85)] * 2), (0.5, among), strict=True
    ):
        matrix[4:, 4:] = np.where(np.eye(4, dtype=bool), 1, value)
        add_correlations(tmp_path, record, "conv1", 4, matrix)
    found = verdict(tmp_path, "without regularisation, secondary filters are more correlated")
    assert found.run[0].verdict == expected and found.run[0].n == "2 of 2"


def test_pages_are_complete_and_say_what_they_are(tmp_path):
    (tmp_path / "runs").mkdir()
    found = judged(Results(tmp_path, "short"))
    page = markdown("short", found)
    assert page.startswith("# The paper's claims at 30 epochs only (recipe short)\n")
    assert markdown("paper", found).startswith(
        "# The paper's claims at 250 epochs (recipe paper)\n"
    )
    whole = markdown("paper", found)
    for name, claim in CLAIMS.items():
        assert f"| {name} |" in whole and (f"| {name} |" in page) == claim.trained
    assert csv_text("paper", found).count("\n") > 2 * len(CLAIMS)


def test_reasons_are_said_once():
    findings = [Finding("a", "undecided", why="n < 3"), Finding("b", "undecided", why="n < 3")]
    judgement = Judgement(CLAIMS["-r loses accuracy"], [*findings, Finding("c", "not run")])
    assert judgement.text == "undecided in 2 of 3 (n < 3) [1 not run]"
