"""How evidence becomes a verdict: with no run, too few, and enough."""

import numpy as np
import pytest

from configs.experiments import Cell
from linearconv.engine.artifacts import pack_symmetric, write_artifacts
from linearconv.errors import UserError
from scripts.evidence import claims as claims_module
from scripts.evidence import judging
from scripts.evidence import results as results_module
from scripts.evidence.claims import Finding, Judgement, read_rules
from scripts.evidence.claims_text import csv_text, judged, markdown
from scripts.evidence.judging import (
    COUNTS,
    FILTERS,
    JUDGES,
    STATISTICS,
    Evidence,
    beyond_margin,
    combined_correlation,
    groups,
    judge,
    mean_correlation,
    pairs,
    random_correlation,
)
from scripts.evidence.results import Results
from scripts.evidence.statistics import pooled_noise
from tests.records import add_artifacts, add_runs

CLAIMS = {claim.name: claim for claim in read_rules().claims}


def cell(model: str, variant: str, alpha: float | None = None, dataset: str = "cifar10") -> Cell:
    return Cell(model, variant, dataset, alpha)


def around(mean: float, n: int, spread: float = 0.1) -> list[tuple[float, float]]:
    """(best, last) of n runs, the best one point above; the last epoch is the settled one."""
    offsets = [spread * (i - (n - 1) / 2) for i in range(n)]
    return [(mean + 1 + offset, mean + offset) for offset in offsets]


def verdict(folder, name: str, *others: str) -> Judgement:
    evidence = Evidence(Results(folder, "paper"), [Results(folder, other) for other in others])
    return JUDGES[CLAIMS[name].test](CLAIMS[name], evidence)


def test_every_claim_names_a_known_test_and_real_rows():
    for claim in CLAIMS.values():
        assert claim.test in JUDGES and len(claim.quote) <= 120
        assert claim.networks(), claim.name
        assert not claim.on_accuracy or pairs(claim), claim.name
        if claim.test == "count":
            assert claim.count in COUNTS and claim.statistic in STATISTICS
        if claim.test == "filters":
            assert claim.filters in FILTERS and claim.layers in ("", "first", "other")
        if claim.test in ("keeps", "every_cell"):
            assert claim.margin > 0
        if claim.test == "speed":
            assert claim.statistic or claim.margin > 0


def test_what_is_not_judged_has_a_quote_and_a_reason():
    for entry in read_rules().not_judged:
        assert entry["quote"] and entry["why"]


def test_a_claim_with_an_unknown_key_is_named(tmp_path, monkeypatch):
    claim = "{name: x, quote: q, where: w, tset: below}"
    (tmp_path / "claims.yaml").write_text(f"rules: []\nnot_judged: []\nclaims:\n- {claim}\n")
    monkeypatch.setattr(claims_module, "CONFIG_DIR", tmp_path)
    with pytest.raises(UserError, match="claims.yaml: x: .*tset"):
        read_rules.__wrapped__()


def test_without_runs_only_counts_are_judged(tmp_path):
    (tmp_path / "runs").mkdir()
    for judgement in judge(Evidence(Results(tmp_path, "paper"))):
        decided = judgement.claim.test == "count"
        assert (judgement.verdict in ("supported", "contradicted")) == decided, judgement


def test_counts_of_the_paper(tmp_path):
    (tmp_path / "runs").mkdir()
    counted = {c: verdict(tmp_path, c) for c in CLAIMS if CLAIMS[c].test == "count"}
    assert (
        counted["-Lr saves 44 % of the parameters on average"]
        .findings[0]
        .estimate.startswith("0.4218")
    )
    assert {name for name, found in counted.items() if found.verdict == "contradicted"} == {
        "-Lr saves 44 % of the parameters on average",
        "condition (2) holds in 1x1 layers",
    }


def test_condition_2_by_hand():
    """MobileNetV2 has 17 expanding 1x1 layers, one of them onto as many channels as it has."""
    assert COUNTS["reducing_1x1"](("resnet18", "Lr", None)) == 1
    assert np.isnan(COUNTS["reducing_1x1"](("base", "Lr", None)))
    # 17 expanding, 17 projecting, 4 shortcuts, the last one: 16 expand six times, 320 to 1280 four.
    assert COUNTS["reducing_1x1"](("mobilenetv2", "Lr", None)) == pytest.approx(22 / 39)


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_seeds_decide_nothing(tmp_path, n):
    add_runs(tmp_path, cell("base", "Conv"), around(86, 5))
    add_runs(tmp_path, cell("base", "r"), around(80, n))
    found = verdict(tmp_path, "-r loses accuracy")
    assert found.text == "undecided in 1 of 4 (n < 3) [3 not run]"
    assert found.run[0].n == f"{n} vs 5" and "[" in found.run[0].estimate


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize(
    ("ours", "spread", "expected"),
    [(84, 0.1, "supported"), (88, 0.1, "contradicted"), (86, 3, "undecided")],
)
def test_a_loss_of_accuracy(tmp_path, n, ours, spread, expected):
    add_runs(tmp_path, cell("base", "Conv"), around(86, n, spread))
    add_runs(tmp_path, cell("base", "r"), around(ours, n, spread))
    assert verdict(tmp_path, "-r loses accuracy").verdict == expected


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


def test_the_noise_is_that_of_all_variants(tmp_path):
    """Those of the model, dataset and recipe, Basis with VGG11; none of the others."""
    runs = {"Conv": around(86, 3, 0.2), "Lr": around(85, 2, 0.5), "e": around(85, 1)}
    for variant, accuracies in runs.items():
        add_runs(tmp_path, cell("vgg11", variant), accuracies)
    add_runs(tmp_path, cell("vgg11_basis", "Conv"), around(88, 3, 0.3))
    add_runs(tmp_path, cell("vgg11", "Lr", dataset="cifar100"), around(60, 3, 9))
    add_runs(tmp_path, cell("base", "Lr"), around(60, 3, 9))
    add_runs(tmp_path, cell("vgg11", "r"), around(60, 3, 9), recipe="short")
    evidence = Evidence(Results(tmp_path, "paper"), [Results(tmp_path, "short")])
    expected = pooled_noise(
        [[last for _, last in each] for each in (*runs.values(), around(88, 3, 0.3))]
    )
    assert expected.freedom == 5
    assert evidence.noise(cell("vgg11", "LRr"), "settled") == expected


def test_a_recipe_with_too_few_runs_takes_the_noise_of_another(tmp_path):
    add_runs(tmp_path, cell("base", "Conv"), [(88, 88)])
    add_runs(tmp_path, cell("base", "r"), [(87, 86)])
    for variant in ("Conv", "L", "Lr"):
        add_runs(tmp_path, cell("base", variant), around(85, 3, 0.2), recipe="short")
    (found,) = verdict(tmp_path, "-r loses accuracy", "short").run
    assert found.estimate == "-2.00 [-2.69, -1.31]"  # t(6) = 2.447 times 0.2 times root 2
    assert found.noise == "0.20 (6 df of recipe=short)" and found.verdict == "undecided"
    (alone,) = verdict(tmp_path, "-r loses accuracy").run
    assert alone.estimate == "-2.00" and alone.noise == ""


def test_a_cell_that_the_paper_does_not_print_has_no_part_in_the_agreement(tmp_path, monkeypatch):
    """One that a user has added to configs/experiment."""
    own = cell("efficientnet", "Lr")
    monkeypatch.setattr(results_module, "all_cells", lambda: (own,))
    monkeypatch.setattr(results_module, "filled_cell", lambda *_: own)
    monkeypatch.setattr(judging, "all_cells", lambda: (own,))
    add_runs(tmp_path, own, [(80, 80), (81, 81)])
    (group,) = groups(Evidence(Results(tmp_path, "paper")))
    assert (group.name, group.runs, group.agreement) == ("EfficientNet on CIFAR-10", 2, None)


def test_variances_that_differ_are_not_pooled(tmp_path):
    add_runs(tmp_path, cell("base", "Conv"), around(86, 5, 0.01))
    add_runs(tmp_path, cell("base", "r"), around(84, 5, 1))
    (found,) = verdict(tmp_path, "-r loses accuracy").run
    assert found.noise.startswith("Welch, 4.0 df (Bartlett p ")


def add_cells(folder, *differences: float) -> None:
    """Conv and Lr with three seeds each, for several datasets and models."""
    cells = [(m, d) for d in ("cifar10", "cifar100", "svhn") for m in ("base", "vgg11", "allconv")]
    for (model, dataset), difference in zip(cells, differences, strict=False):
        add_runs(folder, Cell(model, "Conv", dataset), around(86, 3))
        add_runs(folder, Cell(model, "Lr", dataset), around(86 + difference, 3))


def test_two_cells_speak_for_themselves(tmp_path):
    add_cells(tmp_path, 0.0, -3.0)
    found = verdict(tmp_path, "-Lr keeps the accuracy within half a point")
    assert found.overall is None and found.verdict == "mixed"
    assert found.text == "supported in 1, contradicted in 1 of 30 [28 not run]"


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ((-0.1, 0.0, 0.1, 0.0), "supported"),
        ((-0.1, 0.0, 0.1, -0.9), "undecided"),  # one of several cells does not decide
        ((-1.5, -1.6, -1.4, -1.5), "contradicted"),
    ],
)
def test_the_mean_of_many_cells_decides(tmp_path, differences, expected):
    add_cells(tmp_path, *differences)
    found = verdict(tmp_path, "-Lr keeps the accuracy within half a point")
    assert found.verdict == expected
    assert found.text.startswith(f"{expected} (mean of 4 cells ")
    assert found.text.endswith("[26 not run]")


@pytest.mark.parametrize(
    ("differences", "expected"), [((0.0, -3.0), "contradicted"), ((0.0, -0.1), "undecided")]
)
def test_one_cell_contradicts_that_none_loses_more(tmp_path, differences, expected):
    """And as long as any has not run, none supports it."""
    add_cells(tmp_path, *differences)
    found = verdict(tmp_path, "-Lr loses at most half a point everywhere")
    assert found.verdict == expected
    assert found.text == f"{expected} (worst: VGG11-Lr on CIFAR-10) [28 not run]"


def test_the_worst_cell_is_one_that_decides(tmp_path):
    """Not a single run that is worse."""
    add_cells(tmp_path, -3.0)
    add_runs(tmp_path, cell("base", "Conv", dataset="cifar100"), around(60, 1))
    add_runs(tmp_path, cell("base", "Lr", dataset="cifar100"), around(50, 1))
    found = verdict(tmp_path, "-Lr loses at most half a point everywhere")
    assert found.text == "contradicted (worst: Base-Lr on CIFAR-10) [28 not run]"


def test_that_all_cells_agree_takes_no_correction(tmp_path):
    """A p of 0.03 in each of several cells: each is supported."""
    add_cells(tmp_path, *[-0.5 + 0.21] * 4)  # t(4) = 2.57 with a noise of 0.1
    every = verdict(tmp_path, "-Lr loses at most half a point everywhere")
    mean = verdict(tmp_path, "-Lr keeps the accuracy within half a point")
    assert [finding.verdict for finding in every.run] == ["supported"] * 4
    (why,) = {finding.why for finding in mean.run}
    assert why == "decided alone, not as one of several cells"


def test_the_cells_of_a_claim_are_corrected_for_their_number(tmp_path):
    """0.02 contradicts in the only cell, not in one of nine."""
    loss = 0.5 + 0.25  # t(4) = 3.06 with a noise of 0.1
    add_cells(tmp_path, -loss)
    name = "-Lr loses at most half a point everywhere"
    assert verdict(tmp_path, name).findings[0].verdict == "contradicted"
    add_cells(tmp_path, -loss, *[0.0] * 8)
    assert verdict(tmp_path, name).findings[0].verdict == "undecided"


def test_without_what_it_is_compared_with_nothing_is_decided(tmp_path):
    add_runs(tmp_path, cell("base", "Lr"), around(86, 3))
    found = verdict(tmp_path, "-Lr keeps the accuracy within half a point")
    assert found.text.startswith("undecided in 1 of 30 (what it is compared with has not run)")


def test_the_papers_difference_is_judged_against_a_prediction(tmp_path):
    """Of the best epoch: -1.00 with three seeds a side, t(4) = 2.776 times 0.1 root(2 + 2/3)."""
    add_runs(tmp_path, cell("base", "Conv"), around(86, 3))
    add_runs(tmp_path, cell("base", "Lr"), around(85, 3))
    (found,) = verdict(tmp_path, "-Lr keeps the accuracy within half a point").run
    assert found.printed == "-0.1 (outside [-1.45, -0.55])"
    add_runs(tmp_path, cell("base", "r"), around(85, 3))
    assert verdict(tmp_path, "-r loses accuracy").run[0].printed == "-0.9 (in [-1.40, -0.60])"


def test_what_the_paper_prints_beyond_its_own_margins():
    assert beyond_margin(CLAIMS["-Lr keeps the accuracy within half a point"]) == (4, 30)
    assert beyond_margin(CLAIMS["-LRr keeps the accuracy within a point"]) == (8, 30)
    assert beyond_margin(CLAIMS["-Lr loses at most 2.1 points everywhere"]) == (0, 30)
    assert beyond_margin(CLAIMS["-LRr loses at most 3.1 points everywhere"]) == (0, 30)


def test_how_many_seeds_a_small_difference_takes(tmp_path):
    """The paper's +0.1 of Lr over L; not said of a margin, nor of a difference the other way."""
    for variant in ("Conv", "L", "Lr"):
        add_runs(tmp_path, cell("base", variant), around(86, 3, 0.2))
    (found,) = verdict(tmp_path, "-Lr is better than -L").run
    assert found.needs == 64
    assert verdict(tmp_path, "-Lr is at most half a point worse than -L").run[0].needs is None


def test_each_alpha_is_compared_with_a_half(tmp_path):
    add_runs(tmp_path, cell("vgg11", "Lr"), around(90, 3))
    for alpha, mean in ((0.125, 88), (0.25, 90.2), (0.75, 92)):
        add_runs(tmp_path, cell("vgg11", "Lr", alpha), around(mean, 3))
    add_runs(tmp_path, cell("vgg11", "Conv"), around(90, 3))
    found = verdict(tmp_path, "alpha = 0.5 is at most half a point worse than any other")
    assert [f.verdict for f in found.findings] == [
        "supported",
        "supported",
        "contradicted",
        "undecided",
    ]
    assert found.verdict == "contradicted" and "against 0.75" in found.text
    assert [f.what.rpartition(" ")[2] for f in found.findings] == ["0.125", "0.25", "0.75", "0.875"]
    assert found.findings[0].printed.startswith("+1.2 ")
    (eighth,) = verdict(tmp_path, "alpha = 0.125 loses accuracy").run
    assert eighth.verdict == "supported" and eighth.estimate.startswith("-2.00 ")


def add_correlations(folder, record, layer: str, primary: int, matrix: np.ndarray) -> None:
    """The arrays of a run whose filters of one layer have these correlations."""
    arrays = {
        "layers": np.array([layer]),
        "primary": np.array([primary]),
        "filters": np.zeros((2 * primary, 3, 3, 3), dtype=np.float16),
        "correlations_0": pack_symmetric(matrix.astype(np.float16)),
    }
    write_artifacts(folder / "artifacts" / f"{record['run_id']}.npz", arrays)


def test_filters_of_fewer_than_three_runs_decide_nothing(tmp_path):
    for record in add_runs(tmp_path, cell("base", "Lr"), [(86, 85)] * 2):
        add_artifacts(tmp_path, record)
    found = verdict(tmp_path, "primary filters become orthogonal")
    assert found.text == "undecided in 1 of 2 (n < 3) [1 not run]"
    assert found.run[0].what == "Base-Lr, conv2" and found.run[0].n == "2 of 2"


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ((0.011, 0.012, 0.013), "supported"),
        ((0.03, 0.031, 0.032), "contradicted"),
        ((0.011, 0.012, 0.04), "undecided"),
    ],
)
def test_more_filters_than_dimensions_are_judged_against_their_bound(tmp_path, means, expected):
    """32 filters in 27 dimensions: 0.010 at least; a tenth of chance's 0.155 more is near it."""
    claim = CLAIMS["primary filters become orthogonal"]
    for record, mean in zip(
        add_runs(tmp_path, cell("base", "Lr"), [(86, 85)] * 3), means, strict=True
    ):
        matrix = np.full((32, 32), mean) + (1 - mean) * np.eye(32)
        add_correlations(tmp_path, record, "conv1", 32, matrix)
    anywhere = claims_module.Claim(**(vars(claim) | {"layers": ""}))
    (found,) = JUDGES["filters"](anywhere, Evidence(Results(tmp_path, "paper"))).run
    assert "0.0101 at least, 0.155 of random ones" in found.estimate
    assert found.verdict == expected


def test_random_filters_are_what_chance_gives():
    random = np.random.default_rng(0)
    for size in (27, 1152):
        filters = random.normal(size=(400, size))
        unit = filters / np.linalg.norm(filters, axis=1, keepdims=True)
        assert random_correlation(size) == pytest.approx(mean_correlation(unit @ unit.T), rel=0.02)


@pytest.mark.parametrize("scale", [0.0, 0.9])
def test_random_combinations_are_what_chance_gives(scale):
    """Of orthogonal filters like random vectors in as many dimensions; of equal ones all alike."""
    primary = scale * np.ones((64, 64)) + (1 - scale) * np.eye(64)
    found = combined_correlation(primary, 64)
    if scale == 0:
        assert found == pytest.approx(random_correlation(64), rel=0.01)
    else:
        assert found > 0.6


@pytest.mark.parametrize(("scale", "expected"), [(1.0, "undecided"), (3.0, "supported")])
def test_secondary_filters_are_compared_with_random_combinations(tmp_path, scale, expected):
    """Combinations that are random are no more correlated than such, if more than primary ones."""
    random = np.random.default_rng(1)
    for record in add_runs(tmp_path, cell("base", "L"), [(86, 85)] * 3):
        coefficients = random.normal(size=(32, 32)) + (scale - 1)  # a part in common
        filters = np.concatenate([np.eye(32), coefficients])
        unit = filters / np.linalg.norm(filters, axis=1, keepdims=True)
        add_correlations(tmp_path, record, "conv2", 32, unit @ unit.T)
    found = verdict(tmp_path, "without regularisation, secondary filters are more correlated")
    assert found.run[0].verdict == expected and found.run[0].n == "3 of 3"
    assert "0.000 of primary filters" in found.run[0].estimate


def test_halves_of_a_plain_layer(tmp_path):
    for record, second in zip(
        add_runs(tmp_path, cell("base", "Conv"), [(86, 85)] * 3), (0.3, 0.31, 0.32), strict=True
    ):
        matrix = np.full((8, 8), 0.1) + 0.9 * np.eye(8)
        matrix[4:, 4:] = np.where(np.eye(4, dtype=bool), 1, second)
        add_correlations(tmp_path, record, "conv1", 8, matrix)
    found = verdict(tmp_path, "a Conv's correlations are uniform")
    assert found.run[0].verdict == "contradicted" and "0.100 and 0.300" in found.run[0].estimate


def step_over_conv(
    folder, device: str, mode: str, rounds: int, ratio: float, heuristics: str = ""
) -> None:
    """A results folder with nothing but this measurement of Base-Lr."""
    (folder / "runs").mkdir()
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "file.csv").write_text(
        "model,variant,device,mode,precision,cudnn_heuristics,rounds,step_over_conv,"
        "latency_over_conv_fused_b256\n"
        f"base,Lr,{device},{mode},fp32,{heuristics},{rounds},{ratio},1\n"
    )


def test_settings_that_are_no_longer_the_default_decide_nothing(tmp_path):
    step_over_conv(tmp_path, "Card", "fast", 5, 2.0, "A")
    (found,) = verdict(tmp_path, "LinearConv takes longer to train, factored").findings
    assert (found.verdict, found.why) == ("undecided", "superseded settings")
    assert verdict(tmp_path, "inference takes the same time (median)").verdict == "not run"


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


def test_another_recipe_gives_no_verdict_on_the_paper(tmp_path):
    add_runs(tmp_path, cell("base", "Conv"), around(86, 3), recipe="short")
    add_runs(tmp_path, cell("base", "r"), around(84, 3), recipe="short")
    add_runs(tmp_path, cell("base", "Lr"), around(84, 3), recipe="short")
    page = markdown(judged(Results(tmp_path, "short")))
    assert page.startswith("# At 30 epochs (recipe=short): no verdict on the paper\n")
    assert "| holds at 30 epochs in 1 of 4 [3 not run] |" in page
    assert "| fails at 30 epochs in 1 of 30 [29 not run] |" in page
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert not any("supported" in line or "contradicted" in line for line in tables)


def test_pages_are_complete_and_say_what_they_are(tmp_path):
    (tmp_path / "runs").mkdir()
    found = judged(Results(tmp_path, "paper"))
    page, short = markdown(found), markdown(judged(Results(tmp_path, "short")))
    assert page.startswith("# The paper's claims, judged at 250 epochs\n")
    for name, claim in CLAIMS.items():
        assert f"| {name} |" in page and (f"| {name} |" in short) == claim.trained
    for entry in read_rules().not_judged:
        assert entry["quote"] in page
    assert csv_text(found).count("\n") > len(CLAIMS)


def test_reasons_are_said_once():
    findings = [Finding("a", "undecided", why="n < 3"), Finding("b", "undecided", why="n < 3")]
    judgement = Judgement(CLAIMS["-r loses accuracy"], [*findings, Finding("c", "not run")])
    assert judgement.text == "undecided in 2 of 3 (n < 3) [1 not run]"
