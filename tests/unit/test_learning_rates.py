"""The choice of learning rates from records of validation accuracy."""

import shutil
import sys

import pytest

from configs import compose, identify, run_id
from configs.experiments import Cell, Run
from scripts import report
from scripts.evidence.learning_rates import DATASET, SETTING, THIRD, choices, choices_grid, command
from tests.records import make_record, save_record


def record(model: str, lr: float, accuracy: float, *, seed: int = 0, more: tuple[str, ...] = ()):
    overrides = [f"model={model}", "variant=Conv", f"dataset={DATASET}", *SETTING]
    identity = identify(compose([*overrides, f"recipe.lr={lr:g}", f"seed={seed}", *more]))
    run = Run(Cell(model, "Conv", DATASET), seed, (), identity, run_id(identity))
    # The test images say the opposite.
    made = make_record(run, 99 - accuracy, 98 - accuracy) | {
        "val_acc_last": accuracy,
        "val_acc_best": 97 - accuracy,
    }
    for entry in made["curve"]:
        entry["val_acc"] = accuracy
    return made


def by_model(records):
    return {choice.model: choice for choice in choices(records)}


def test_the_rate_with_the_higher_mean_is_chosen():
    records = [
        record("base", 1e-3, 80.0),
        record("base", 1e-3, 85.0, seed=1),
        record("base", 1e-4, 81.0),
        record("allconv", 1e-3, 70.0),
        record("allconv", 1e-4, 60.0),
        record("resnet18", 1e-3, 90.0),
        record("resnet18", 1e-4, 91.0),
        record("vgg11", 1e-3, 90.0),
    ]
    found = by_model(records)
    assert found["base"].verdict == "as configured"
    assert found["base"].accuracies == {1e-3: [80.0, 85.0], 1e-4: [81.0]}
    assert found["allconv"].verdict == "differs from the config"
    assert found["resnet18"].verdict == "undecided"  # by a point, which chance may give
    assert found["vgg11"].verdict == "open"
    assert "vgg11_basis" not in found  # starts from trained weights
    (base,) = (row for row in choices_grid(choices(records)).body if row[0] == "Base")
    assert base[1:] == ["30", "82.50 (n=2)", "81.00 (n=1)", "0.001", "as configured"]


@pytest.mark.parametrize(
    "more", [("recipe.val_fraction=0.2",), ("recipe.epochs=29",), ("variant=Lr",)]
)
def test_runs_with_another_setting_do_not_count(more):
    assert by_model([record("base", 1e-3, 80.0, more=more)])["base"].runs == {}


def test_a_third_of_the_epochs_decides_until_the_whole_pair_is_there():
    shorter = [record("vgg11", 1e-3, 80.0, more=THIRD), record("vgg11", 1e-4, 75.0, more=THIRD)]
    longer = [record("vgg11", 1e-3, 88.0), record("vgg11", 1e-4, 90.0)]
    for records, epochs, verdict in (
        (shorter[:1], 30, "open"),
        (shorter, 10, "as configured"),
        (shorter + longer[:1], 10, "as configured"),
        (shorter + longer, 30, "differs from the config"),
    ):
        choice = by_model(records)["vgg11"]
        assert (choice.epochs, choice.verdict) == (epochs, verdict)
        row = next(row for row in choices_grid(choices(records)).body if row[0] == "VGG11")
        assert row[1] == ("-" if not choice.runs else str(epochs))


def test_the_command_trains_runs_that_count():
    """Its overrides give the identities that the page looks for."""
    words = command(["base"]).split()
    assert words[:3] == ["python", "train.py", "-m"] and "recipe.lr=0.001,0.0001" in words
    overrides = [word for word in words[3:] if not word.startswith("recipe.lr")]
    identity = identify(compose([*overrides, "recipe.lr=1e-4"]))
    assert identity == record("base", 1e-4, 80.0)["science"]


def test_the_page_and_the_curves_are_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    folder = tmp_path / "learning_rates"
    for made in (record("base", 1e-3, 80.0), record("base", 1e-4, 78.0)):
        save_record(folder, made)
    command = ["report.py", "learning_rates", "--results-dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    assert report.main() == 0
    out = capsys.readouterr().out
    assert "base: as configured" in out and "vgg11: open" in out and "model=vgg11,allconv" in out
    page = (folder / "README.md").read_text()
    assert "| Base | 30 | 80.00 (n=1) | 78.00 (n=1) | 0.001 | as configured |" in page
    assert (folder / "curves.svg").stat().st_size > 1000
    assert len((folder / "choices.csv").read_text().splitlines()) == 3
    shutil.rmtree(folder / "runs")
    assert report.main() == 0 and "base: open" in capsys.readouterr().out
    assert not (folder / "curves.svg").exists()
