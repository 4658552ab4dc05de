"""scripts/compare.py: any networks, with all their seeds, against one variant."""

import csv

import pytest

from configs import compose, identify, run_id
from configs.experiments import Cell, Run
from scripts.evidence.statistics import difference, pooled_noise
from tests.records import add_runs, make_record, save_record

OURS, PLAIN = [(86, 85), (88, 86), (87, 84)], [(87, 88), (88, 89), (89, 90)]


@pytest.fixture
def results(tmp_path):
    """Three seeds of Lr and of Conv, one of Conv with another recipe, one run of VGG11."""
    add_runs(tmp_path, Cell("base", "Lr", "cifar10"), OURS)
    add_runs(tmp_path, Cell("base", "Conv", "cifar10"), PLAIN)
    add_runs(tmp_path, Cell("base", "Conv", "cifar10"), [(50, 50)], recipe="short")
    add_runs(tmp_path, Cell("vgg11", "L", "cifar10"), [(70, 70)])
    return tmp_path


def against(ours, theirs) -> str:
    """The text of a difference; these two are all networks of their setting."""
    return str(difference(ours, theirs, pooled_noise([ours, theirs])))


def rows(out: str) -> dict[str, list[str]]:
    cells = [line.strip("| ").split(" | ") for line in out.splitlines()[2:]]
    return {name: values for name, *values in cells}


def test_networks_with_their_spread_and_difference(script, results):
    found = script("compare", "--results-dir", results)
    assert found.code == 0, found.err
    table = rows(found.out)
    interval = against([85, 86, 84], [88, 89, 90])
    ours, plain = table["cifar10-base-Lr"], table["cifar10-base-Conv"]
    assert ours == ["1", "0.0", "85.00 ± 1.00 (n=3)", "0, 1, 2", interval]
    assert plain[2:4] == ["89.00 ± 1.00 (n=3)", "0, 1, 2"]
    assert table["cifar10-base-Conv-short"][2] == "50.00 (n=1)"  # another setting
    assert table["cifar10-vgg11-L"][2] == "70.00 (n=1)"  # without a Conv of its own
    best = script("compare", "--results-dir", results, "--metric", "best", "--against", "Lr")
    assert rows(best.out)["cifar10-base-Conv"][-1] == against([87, 88, 89], [86, 88, 87])


def test_one_seed_has_a_difference_without_an_interval(script, results):
    found = script("compare", "--results-dir", results, "seed=0")
    assert rows(found.out)["cifar10-base-Lr"][2:] == ["85.00 (n=1)", "0", "-3.00"]


def test_the_runs_and_their_curves_are_written(script, results, tmp_path):
    table, figure = tmp_path / "runs.csv", tmp_path / "curves.svg"
    options = ("model=base", "lr=1e-3", "--csv", table, "--figure", figure)
    assert script("compare", "--results-dir", results, *options).code == 0
    with table.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 7 and {line["network"] for line in lines} == {
        "cifar10-base-Lr", "cifar10-base-Conv", "cifar10-base-Conv-short",
    }  # fmt: skip
    assert "cifar10-base-Lr (n = 3)" in figure.read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["modle=base"], "modle=base: expected COLUMN=VALUE with a column of load_runs(); did you"),
        (["base"], "base: expected COLUMN=VALUE"),
        (["model=narrow"], "no run has model=narrow; of the others, model is base, vgg11"),
        (["--metric", "val"], "has no accuracy 'val': expected another --metric"),
        (["--figure", "x.png"], "--figure must end in .svg or .pdf, got x.png"),
        (["--csv", "."], "--csv: . is a folder; expected the name of a file"),
        (["--figure", "nowhere/x.svg"], "--figure: there is no folder nowhere"),
        (["--results-dir", "nowhere"], "no records: nowhere/runs not found"),
    ],
)
def test_mistakes(script, results, options, words):
    done = script("compare", "--results-dir", results, *options)
    assert done.code == 2 and words in done.err and len(done.err.splitlines()) == 1


def test_several_folders_and_damaged_records(script, results, tmp_path):
    more = tmp_path / "studies"
    add_runs(more, Cell("base", "r", "cifar10"), [(80, 80)])
    (more / "runs/damaged.json").write_text("{")
    both = ("compare", "--results-dir", results, "--results-dir", more)
    found = script(*both)
    assert found.code == 0 and "damaged.json" in found.err
    assert rows(found.out)["cifar10-base-r"][2:] == ["80.00 (n=1)", "0", "-9.00 [-12.21, -5.79]"]
    assert script(*both, "--strict").code == 1


def test_runs_from_two_trained_networks_are_two_networks(script, tmp_path):
    """Of the comparison system Basis, which has a baseline for each seed, they are seeds of one."""
    for baseline in ("cifar10-base-Conv-s0-00000000", "cifar10-base-Conv-s1-11111111"):
        config = compose(["model=base", "variant=L", "dataset=cifar10", "recipe=finetune"])
        identity = identify(config, baseline=baseline)
        run = Run(Cell("base", "L", "cifar10"), 0, (), identity, run_id(identity))
        save_record(tmp_path, make_record(run, 88.0, 87.0))
    add_runs(tmp_path, Cell("vgg11_basis", "Conv", "cifar10"), OURS)
    table = rows(script("compare", "--results-dir", tmp_path).out)
    assert table["cifar10-base-L-finetune-from-00000000"][3] == "0"
    assert table["cifar10-base-L-finetune-from-11111111"][3] == "0"
    assert [name for name, row in table.items() if row[3] == "0, 1, 2"]
    assert len(table) == 3
