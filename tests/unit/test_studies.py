"""The studies' page from records with and without their overrides."""

import sys

import pytest

from configs import compose, identify, run_id
from configs.experiments import Cell, Run
from linearconv.engine.seeding import seeded
from linearconv.errors import UserError
from linearconv.layer import LinearConv2d
from models import Variant, build_model
from scripts import make_studies
from scripts.paper import studies
from scripts.paper.studies import SETTING, outcomes, outcomes_grid, read_studies
from tests.records import make_record, save_record


def record(variant: str, accuracy: float, *, seed: int = 0, overrides: tuple[str, ...] = ()):
    identity = identify(compose([*SETTING, f"variant={variant}", *overrides, f"seed={seed}"]))
    run = Run(Cell("base", variant, "cifar10"), seed, (), identity, run_id(identity))
    return make_record(run, accuracy, accuracy - 1)


STUDY = next(study for study in read_studies() if study.name == "initialisation")


def row(variant: str, records, metric: str = "last"):
    grid = outcomes_grid(outcomes([STUDY], records), metric)
    (found,) = (dict(zip(grid.header, row, strict=True)) for row in grid.body if variant in row[1])
    return found


def test_means_and_differences():
    with_it = tuple(STUDY.overrides)
    records = [
        record("LRr", 85.0, overrides=with_it),
        record("LRr", 87.0, seed=1, overrides=with_it),
        record("LRr", 81.0),
        record("LRr", 83.0, seed=1),
        record("Conv", 90.0),
    ]
    found = row("LRr", records)
    assert found["With it (%)"] == "85.00 (n=2)" and found["Without (%)"] == "81.00 (n=2)"
    # Welch by hand: both variances are 2, so the error is sqrt(2), t(0.975, 2) = 4.303.
    assert found["Difference"] == "+4.00 [-2.08, +10.08]"
    assert found["Against Conv with it"] == "-4.00" and found["Against Conv without"] == "-8.00"
    assert row("LRr", records, "best")["With it (%)"] == "86.00 (n=2)"


@pytest.mark.parametrize("more", ["alpha=0.25", "regularizer.every=5", "precision=bf16"])
def test_runs_with_anything_else_do_not_count(more):
    records = [record("LRr", 85.0, overrides=(*STUDY.overrides, more))]
    assert row("LRr", records)["With it (%)"] == "not run"


def test_what_is_trained_with_the_overrides_is_compared_with_such_a_conv():
    released = next(study for study in read_studies() if "Conv" in study.variants)
    records = [
        record("Conv", 90.0),
        record("Conv", 88.0, overrides=tuple(released.overrides)),
        record("Lr", 85.0, overrides=tuple(released.overrides)),
    ]
    grid = outcomes_grid(outcomes([released], records), "last")
    (conv, linear) = (dict(zip(grid.header, row, strict=True)) for row in grid.body)
    assert linear["Against Conv with it"] == "-3.00" and conv["Difference"] == "-2.00"
    assert conv["Against Conv with it"] == ""


@pytest.mark.parametrize("study", read_studies(), ids=lambda study: study.name)
def test_the_commands_train_runs_that_count(study):
    """Their overrides give the identities that the page looks for, and no run of the tables."""
    words = study.command.split()
    assert words[:3] == ["python", "train.py", "-m"] and words[-1] == "results_dir=results/studies"
    for variant in study.variants:
        fixed = [w for w in words[3:-1] if not w.startswith(("variant=", "seed="))]
        trained = identify(compose([*fixed, f"variant={variant}", "seed=1"]))
        made = record(variant, 80.0, seed=1, overrides=tuple(study.overrides))
        assert trained == made["science"] != record(variant, 80.0, seed=1)["science"]


@pytest.mark.parametrize(
    ("variant", "stated"), [("L", "{:.1f} to {:.1f}"), ("LRr", "{:.0f} to {:.0f}")]
)
def test_the_filters_at_the_start_are_as_the_question_says(variant, stated):
    identity = identify(compose([*SETTING, f"variant={variant}"]))
    ratios = []
    for seed in range(3):
        with seeded("init", seed):
            shape = {"in_channels": 3, "classes": 10}
            model = build_model("base", Variant.from_identity(identity["variant"]), **shape)
        for layer in model.modules():
            if isinstance(layer, LinearConv2d):
                weight, primary = layer.weight.detach(), layer.primary.shape[0]
                ratios.append(float(weight[:primary].std() / weight[primary:].std()))
    assert f"Base-{variant} {stated.format(min(ratios), max(ratios))} times" in STUDY.question


def test_the_page_names_what_is_missing(tmp_path, monkeypatch, capsys):
    save_record(tmp_path, record("LRr", 82.0))
    for seed in (0, 1):
        for variant in STUDY.variants:
            made = record(variant, 85.0 + seed, seed=seed, overrides=tuple(STUDY.overrides))
            save_record(tmp_path / "studies", made)
    monkeypatch.setattr(sys, "argv", ["make_studies.py", "--results-dir", str(tmp_path)])
    assert make_studies.main() == 0
    out = capsys.readouterr().out
    assert "4 runs" in out and "strength=1e-3" in out and "variance_preserving" not in out
    page = (tmp_path / "studies.md").read_text()
    assert "| initialisation | Base-LRr | 84.50 (n=2) | 81.00 (n=1) | +3.50 |" in page
    assert len((tmp_path / "studies.csv").read_text().splitlines()) == 5


def test_an_unknown_key_of_a_study_is_named(monkeypatch, tmp_path):
    (tmp_path / "studies.yaml").write_text("- {name: mine, variant: L}\n")
    monkeypatch.setattr(studies, "CONFIG_DIR", tmp_path)
    with pytest.raises(UserError, match=r"configs/studies\.yaml: mine: .*variant"):
        read_studies()
