"""Which runs are behind each table, and what train.py is called with for them."""

import csv
from itertools import product
from pathlib import Path

import pytest

from configs import compose, identify, run_id
from configs.experiments import (
    TABLES,
    TRIALS,
    Cell,
    cell_runs,
    results_dir,
    select_runs,
    table_cells,
)
from linearconv.errors import UserError
from scripts.jobs.plan import override, plan_runs
from tests.conftest import REPOSITORY

DATASETS = ("cifar10", "cifar100", "svhn", "mnist", "fashion_mnist")


@pytest.mark.parametrize(("table", "count"), [(2, 6), (3, 20), (4, 90), (5, 12)])
def test_number_of_cells(table, count):
    cells = table_cells(table)
    assert len(cells) == len(set(cells)) == count


@pytest.mark.parametrize("table", TABLES)
def test_cells_are_those_that_the_paper_prints(table):
    with (REPOSITORY / "results/paper/tables.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["table"] == str(table)]
    printed = set()
    for row, name in product(rows, DATASETS):
        if row[name]:
            alpha = row["alpha"] if table == 2 and row["variant"] != "Conv" else ""
            printed.add(Cell(row["model"], row["variant"], name, float(alpha) if alpha else None))
    assert printed and set(table_cells(table)) == printed


def test_a_run_is_shared_by_the_tables_that_show_it():
    name = dict(model=["vgg11"], variant=["Conv"], dataset=["cifar10"])
    ids = {select_runs([table], **name)[0].run_id for table in TABLES}
    assert len(ids) == 1 and len(select_runs(TABLES, **name)) == 1
    shared = select_runs([2], model=["vgg11"], variant=["Lr"])[2]  # alpha=0.5 written out
    assert shared.run_id == select_runs([3], **name | {"variant": ["Lr"]})[0].run_id


def test_each_run_is_what_train_would_run():
    for run in select_runs([2, 5], seeds=[0, 7], dataset=["cifar10"]):
        baseline = None if run.baseline is None else run.baseline.run_id
        identity = identify(compose(run.overrides), baseline=baseline)
        assert identity == run.identity and run_id(identity) == run.run_id
        assert f"-s{run.seed}-" in run.run_id


@pytest.mark.parametrize(
    ("overrides", "folder"),
    [
        (["variant=Lr"], "results"),
        (["variant=Lr", "recipe=short", "seed=7", "runtime=reference"], "results"),
        (["variant=LRr", "dataset=mnist"], "results"),
        (["variant=e", "dataset=mnist"], "results/trials"),
        (["variant=Lr", "recipe.lr=3e-3"], "results/trials"),
        (["variant=Lr", "dataset.limit_train=5000"], "results/trials"),
        (["variant=Lr", "alpha=0.25"], "results/trials"),
        (["variant=LRr", "variant.rank=4"], "results/trials"),
        (["variant=Lr", "precision=bf16"], "results/trials"),
        (["variant=Lr", "dataset=digits"], "results/trials"),
        (["variant=Lr", "recipe.lr=3e-3", "results_dir=mine"], "mine"),
        (["variant=Lr", "results_dir=mine"], "mine"),
    ],
)
def test_only_runs_that_fill_a_cell_go_to_the_results(overrides, folder):
    config = compose(["model=base", *overrides])
    assert results_dir(config, identify(config)) == Path(folder)


def test_other_images_than_the_published_fill_no_cell():
    config = compose(["model=base", "variant=Lr"])
    assert results_dir(config, identify(config, digest="f" * 64)) == Path(TRIALS)


def test_baselines_come_first_also_where_they_are_not_asked_for():
    runs = select_runs([5], model=["vgg11_basis"], seeds=[0, 1])
    assert [run.cell.model for run in runs] == ["vgg11", "vgg11_basis"] * 4
    for baseline, run in zip(runs[::2], runs[1::2], strict=True):
        assert run.baseline == baseline
        assert run.identity["baseline"] == baseline.run_id.rpartition("-")[2]
        assert (run.seed, run.cell.dataset) == (baseline.seed, baseline.cell.dataset)
    assert len({run.run_id for run in runs}) == 8


def test_every_cell_comes_with_one_seed_before_the_next():
    seeds = [run.seed for run in select_runs([3], seeds=[2, 0], model=["base"])]
    assert seeds == [2] * 10 + [0] * 10


def test_recipes_make_other_runs():
    cell = Cell("base", "Lr", "mnist")
    ids = {cell_runs(cell, recipe=recipe)[0].run_id for recipe in ("paper", "short", "demo")}
    assert len(ids) == 3
    with pytest.raises(UserError, match="nonsense"):
        cell_runs(cell, recipe="nonsense")


def test_narrowing_names_its_choices():
    with pytest.raises(UserError, match="model 'resnet18'; choose from vgg11$"):
        select_runs([2], model=["resnet18"])
    with pytest.raises(UserError, match="no cell matches all filters"):
        select_runs([5], model=["vgg11_basis"], variant=["LRr"])


@pytest.fixture(scope="module")
def table2():
    return select_runs([2])


def test_extra_overrides_that_keep_the_runs_are_passed_on(table2):
    extra = ["runtime.execution=auto", "results_dir=a", "checkpoint_dir=/b", "recipe.lr=1e-3"]
    planned, config = plan_runs(table2, extra)
    assert [plan.name for plan in planned] == [run.run_id for run in table2]
    for plan in planned:
        assert plan.overrides == (*plan.run.overrides, *extra)
        assert plan.paths.record == Path("a/runs") / f"{plan.name}.json"
        assert plan.paths.checkpoints == Path("/b") / plan.name
    assert config.runtime.execution == "auto"


@pytest.mark.parametrize("extra", ["recipe.epochs=3", "alpha=0.25", "precision=fp32"])
def test_extra_overrides_that_make_other_runs_are_refused(table2, extra):
    with pytest.raises(UserError, match=r"fill no cell.*train\.py -m"):
        plan_runs(table2, [extra])


@pytest.mark.parametrize("extra", ["seed=0", "overwrite=true", "++resume=false", "recipe=short"])
def test_what_is_not_the_users_to_set_is_refused(table2, extra):
    with pytest.raises(UserError, match="cannot be given for the runs of a table: "):
        plan_runs(table2, [extra])


def test_runs_on_data_that_is_not_pinned_are_blocked():
    runs = select_runs([4], model=["base"], variant=["Conv"], dataset=["svhn", "cifar10"])
    plans = {plan.run.cell.dataset: plan for plan in plan_runs(runs, [])[0]}
    assert {plan.blocked_by() for plan in plans.values()} == {""}  # SVHN by its official files
    plans["svhn"].run.identity["dataset"]["digest"] = None
    assert "svhn.yaml has neither a digest nor official_md5" in plans["svhn"].blocked_by()


def test_what_starts_from_a_baseline_is_told_where_it_is():
    runs = select_runs([5], model=["vgg11_basis"], dataset=["cifar10"])
    baseline, basis = plan_runs(runs, ["checkpoint_dir=c"])[0]
    assert basis.overrides[-1] == f"baseline_checkpoint=c/{baseline.name}/best.pt"
    assert basis.baseline is baseline and baseline.baseline is None


@pytest.mark.parametrize(
    "value", ["plain/a-b.c", "a b", "a,b", "it's", "x=y", "back\\slash", "\\'", "end\\", "{x}", "ä"]
)
def test_any_path_comes_through_hydra(value):
    overrides = ["model=base", "variant=Conv", override("results_dir", value)]
    assert compose(overrides).results_dir == value
