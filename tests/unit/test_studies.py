"""The studies' page from the records of their arms."""

import sys
from pathlib import Path

import pytest

from configs import compose, identify, run_id
from configs.experiments import Cell, Run
from linearconv.engine.seeding import seeded
from linearconv.errors import UserError
from linearconv.layer import LinearConv2d
from models import Variant, build_model
from scripts import report
from scripts.evidence import studies
from scripts.evidence.statistics import Noise, difference, pooled_noise
from scripts.evidence.studies import (
    SETTING,
    VALIDATION,
    Arm,
    Study,
    noise_of,
    outcomes,
    read_studies,
    study_grid,
)
from tests.records import make_record, save_record

BASE = SETTING.split()
PLAIN = Arm("L", "short", (*BASE, "variant=L"))
WIDE = Arm("half", "short", (*BASE, "variant=L", "variant.widths=x0.5"), "L")
STUDY = Study("widths", "?", "short", [PLAIN, WIDE])


def record(arm: Arm, accuracy: float, seed: int = 0, *more: str):
    """The record of a run whose settled accuracy is a point below the best."""
    identity = identify(compose([*arm.overrides, *more, f"seed={seed}"]))
    run = Run(Cell("base", "L", "cifar10"), seed, (), identity, run_id(identity))
    return make_record(run, accuracy + 1, accuracy)


def rows(records) -> dict[str, list[str]]:
    (found,) = outcomes([STUDY], records)
    grid = study_grid(found, {"short": noise_of([found], "short", "settled")})
    return {name: values for name, *values in grid.body}


def test_means_and_differences():
    ours, theirs = [84.0, 84.4], [85.0, 85.1, 85.5]
    records = [record(WIDE, value, seed) for seed, value in enumerate(ours)]
    records += [record(PLAIN, value, seed) for seed, value in enumerate(theirs)]
    found = rows(records)
    assert found["half"][:4] == ["1", "84.20 (n=2)", "84.20 (n=2)", "85.20 (n=2)"]
    expected = difference(ours, theirs, pooled_noise([ours, theirs]))
    assert found["half"][4] == f"from L: {expected}" and found["L"][4] == ""


@pytest.mark.parametrize("more", ["alpha=0.25", "recipe=medium", "precision=bf16"])
def test_runs_with_anything_else_do_not_count(more):
    found = rows([record(PLAIN, 85.0), record(WIDE, 85.0, 0, more)])
    assert found["half"] == ["", "not run", "not run", "not run", "from L: not run"]


def test_the_noise_is_that_of_all_networks_with_the_recipe():
    """A network in two studies counts once, one of another recipe does not."""
    other = Arm("r", "medium", (*BASE, "variant=r"))
    records = [record(arm, 85 + seed, seed) for arm in (PLAIN, WIDE, other) for seed in (0, 1)]
    found = outcomes([STUDY, STUDY, Study("x", "?", "medium", [other])], records)
    assert noise_of(found, "short", "settled").freedom == 2
    assert noise_of(found, "medium", "settled").freedom == 1


def test_an_arm_may_have_a_recipe_of_its_own_and_a_trained_network_to_start_from():
    """Records that start elsewhere are not its; two recipes have each their own noise."""
    weights = "results/weights/cifar10-base-Conv-s0-2b22fbec.safetensors"
    start = Arm("start", "finetune", (*BASE, "variant=L", f"baseline_checkpoint={weights}"), "L")
    study = Study("mine", "?", "finetune", [start, PLAIN])
    records = [record(PLAIN, 85.0 + seed, seed) for seed in (0, 1)]
    for seed in (0, 1):
        records.append(record(start, 80.0, seed))  # from no network
        config = compose([*start.overrides, f"seed={seed}"])
        identity = identify(config, baseline=Path(weights).stem)
        run = Run(Cell("base", "L", "cifar10"), seed, (), identity, run_id(identity))
        assert "-finetune-from-2b22fbec-s" in run.run_id
        records.append(make_record(run, 87.0, 87.0 + seed / 100))
    (found,) = outcomes([study], records)
    grid = study_grid(found, dict.fromkeys(("finetune", "short")))
    expected = difference([87.0, 87.01], [85.0, 86.0], Noise(1.0, 2, bartlett=0.0))
    assert grid.body[0][-1] == f"from L: {expected}"


def test_every_arm_can_be_trained_and_is_another_network():
    """No two arms of a study are one network by another name."""
    for study in read_studies():
        identities = []
        for arm in study.arms:
            words = arm.command.split()
            assert words[:3] == ["python", "train.py", "-m"]
            assert (words[-1] == "results_dir=results/studies") == (arm.recipe != "paper")
            fixed = [word for word in words[3:] if not word.startswith(("seed=", "results_dir="))]
            config = compose([*fixed, "seed=1"])
            baseline = config.baseline_checkpoint and Path(config.baseline_checkpoint).stem
            identities.append(run_id(identify(config, baseline=baseline)))
        assert len(set(identities)) == len(study.arms), study.name


@pytest.mark.parametrize(
    ("variant", "stated"), [("L", "{:.1f} to {:.1f}"), ("LRr", "{:.0f} to {:.0f}")]
)
def test_the_filters_at_the_start_are_as_the_question_says(variant, stated):
    (study,) = (study for study in read_studies() if study.name == "initialisation")
    identity = identify(compose([*BASE, f"variant={variant}"]))
    ratios = []
    for seed in range(3):
        with seeded("init", seed):
            shape = {"in_channels": 3, "classes": 10}
            model = build_model("base", Variant.from_identity(identity["variant"]), **shape)
        for layer in model.modules():
            if isinstance(layer, LinearConv2d):
                weight, primary = layer.weight.detach(), layer.primary.shape[0]
                ratios.append(float(weight[:primary].std() / weight[primary:].std()))
    assert f"Base-{variant} {stated.format(min(ratios), max(ratios))} times" in study.question


def test_the_page_names_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "read_studies", lambda: [STUDY])
    save_record(tmp_path, record(PLAIN, 82.0))
    for seed in studies.SEEDS:
        save_record(tmp_path / "studies", record(WIDE, 85.0 + seed, seed))
    monkeypatch.setattr(sys, "argv", ["report.py", "studies", "--results-dir", str(tmp_path)])
    assert report.main() == 0
    out = capsys.readouterr().out
    assert "4 runs" in out and PLAIN.command in out and "x0.5" not in out
    page = (tmp_path / "studies.md").read_text()
    assert "## Widths" in page and f"\n{PLAIN.command}\n" in page
    assert "| half | 1 | 86.00 (n=3) | 86.00 (n=3) | 87.00 (n=3) | from L: +4.00 [" in page
    assert len((tmp_path / "studies.csv").read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("study", "words"),
    [
        ("{name: mine, question: q, variant: L}", "variant"),
        ("{name: mine, arms: []}", "question"),
        ("{name: mine, question: q, arms: [], metric: best}", "metric 'best'; expected settled"),
        ("{name: mine, question: q, arms: [{name: a, runs: variant=L}]}", "runs"),
        (
            "{name: mine, question: q, arms: [{name: a, run: baseline_checkpoint=x.pt}]}",
            "baseline_checkpoint=x.pt; expected published weights",
        ),
        (
            "{name: mine, question: q, arms: [{name: a, run: variant=L, against: b}]}",
            "a is against 'b'; expected one of a",
        ),
    ],
)
def test_a_mistake_in_a_study_is_named(monkeypatch, tmp_path, study, words):
    (tmp_path / "studies.yaml").write_text(f"- {study}\n")
    monkeypatch.setattr(studies, "CONFIG_DIR", tmp_path)
    with pytest.raises(UserError, match=rf"configs/studies\.yaml: mine: .*{words}"):
        read_studies()


def test_a_study_may_be_decided_on_validation_images():
    """Its test accuracies are not shown, and have no part in the noise of the others."""
    arms = [
        Arm(rate, "short", (*BASE, "variant=Conv", "recipe.val_fraction=0.1", f"recipe.lr={rate}"))
        for rate in ("1e-3", "1e-4")
    ]
    study = Study("rates", "?", "short", arms, metric=VALIDATION)
    records = [record(arm, 50.0) | {VALIDATION: 80.0 + i} for i, arm in enumerate(arms)]
    records += [record(PLAIN, 85.0 + seed, seed) for seed in (0, 1)]
    found = outcomes([study, STUDY], records)
    grid = study_grid(found[0], {"short": None})
    assert grid.header[2:] == [f"{VALIDATION} (%)", f"Difference of {VALIDATION} (points)"]
    assert [row[2] for row in grid.body] == ["80.00 (n=1)", "81.00 (n=1)"]
    assert noise_of(found, "short", "settled").freedom == 1
    assert noise_of(found, "short", VALIDATION) is None
