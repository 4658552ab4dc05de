"""Which records fill a cell, and what is computed from them."""

import copy
import json
from decimal import Decimal

import pandas as pd
import pytest

from configs import compose
from configs.experiments import Cell, cell_runs
from linearconv.engine.digests import value_sha256
from linearconv.engine.record import read_record, write_record
from linearconv.errors import UserError
from scripts.evidence import page
from scripts.evidence.claims_text import judged
from scripts.evidence.comparison import Accuracy
from scripts.evidence.figures.accuracy import accuracy_figure
from scripts.evidence.figures.cost import cost_figure
from scripts.evidence.figures.curves import curve_figures
from scripts.evidence.printed import change, paper_rows
from scripts.evidence.results import Results, load_runs, read_records, trained_on
from scripts.evidence.speeds import measured, read_benchmarks
from scripts.evidence.text import accuracy_entry, times_flops, times_params
from tests.records import add_runs, make_record, save_record

CONV = Cell("base", "Conv", "cifar10")
LINEAR = Cell("base", "Lr", "cifar10")
BASIS = Cell("vgg11_basis", "Conv", "cifar10")


def filled(folder, recipe="paper"):
    """The seeds of each cell that has records."""
    results = Results(folder, recipe)
    return {cell: list(results.records(cell)) for cell in results.cells()}


def test_exact_identity_fills_a_cell_whatever_the_seed(tmp_path):
    add_runs(tmp_path, LINEAR, [(80, 79)], first_seed=7)
    add_runs(tmp_path, Cell("vgg11", "Lr", "cifar10", 0.25), [(80, 79), (81, 80)])
    assert filled(tmp_path) == {
        LINEAR: [7],
        Cell("vgg11", "Lr", "cifar10", 0.25): [0, 1],
    }


def test_seeds_are_in_order_of_number(tmp_path):
    add_runs(tmp_path, CONV, [(80, 79)] * 11)
    assert list(Results(tmp_path, "paper").records(CONV)) == list(range(11))


CHANGES = {
    "science version": lambda identity: identity.update(science_version=0),
    "digest": lambda identity: identity["dataset"].update(digest="0" * 64),
    "limited data": lambda identity: identity["dataset"].update(limit_train=100),
    "revision of the model": lambda identity: identity["model"].update(revision=99),
    "revision of the variant": lambda identity: identity["variant"].update(revision=99),
    "strength of the regulariser": lambda identity: identity["regularizer"].update(strength=1.0),
    "epochs": lambda identity: identity["recipe"].update(epochs=249),
    "precision": lambda identity: identity.update(precision="bf16"),
    "another layout": lambda identity: identity.update(variant=None),
    "more than is known": lambda identity: identity.update(unknown=1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_any_other_identity_fills_nothing_whatever_it_is_called(tmp_path, name):
    (run,) = cell_runs(LINEAR)
    record = make_record(run, 80.0, 79.0)
    CHANGES[name](record["science"])
    save_record(tmp_path, record)  # under the name of the run that it is not
    results = Results(tmp_path, "paper")
    assert results.cells() == []
    assert [unused["run_id"] for unused in results.unused] == [run.run_id]


def test_a_run_of_another_recipe_fills_that_recipes_table_alone(tmp_path):
    add_runs(tmp_path, LINEAR, [(70, 70)], recipe="short")
    assert filled(tmp_path) == {}
    assert filled(tmp_path, "short") == {LINEAR: [0]}


def test_basis_counts_only_from_the_baseline_of_its_own_seed(tmp_path):
    add_runs(tmp_path, BASIS, [(80, 79), (81, 80)])
    assert list(Results(tmp_path, "paper").records(BASIS)) == [0, 1]
    first, second = cell_runs(BASIS, seeds=[0, 1])
    assert second.baseline.run_id != first.baseline.run_id
    record = make_record(second, 82.0, 81.0)
    record["science"]["baseline"] = first.baseline.run_id.rpartition("-")[2]
    save_record(tmp_path, record)
    assert list(Results(tmp_path, "paper").records(BASIS)) == [0]


def test_the_same_run_twice_is_named_and_counted_once(tmp_path):
    (record,) = add_runs(tmp_path, LINEAR, [(80, 79)])
    save_record(tmp_path, copy.deepcopy(record) | {"run_id": "another-name"})
    records = read_records(tmp_path)
    assert len(records.usable) == 1 and "another record of the run" in records.damaged[0]


def test_a_run_that_is_in_two_folders_counts_once(tmp_path):
    (record,) = add_runs(tmp_path, LINEAR, [(80, 79)])
    save_record(tmp_path / "studies", record)
    records = read_records(tmp_path, tmp_path / "studies")
    assert len(records.usable) == 1
    (message,) = records.damaged
    assert str(tmp_path / "studies/runs") in message and "another record of the run" in message


def test_a_point_of_figure_3_has_as_many_seeds_as_its_difference(tmp_path):
    add_runs(tmp_path, CONV, [(87, 86)])
    add_runs(tmp_path, LINEAR, [(85, 84), (86, 85), (84, 83)])
    points = accuracy_figure(Results(tmp_path, "paper"), "best").data
    (found,) = (p for p in points if (p["model"], p["variant"]) == ("base", "Lr"))
    assert (found["n"], found["accuracy"], found["std"]) == (1, 85.0, None)
    add_runs(tmp_path, CONV, [(88, 87)], first_seed=2)
    points = accuracy_figure(Results(tmp_path, "paper"), "best").data
    (found,) = (p for p in points if (p["model"], p["variant"]) == ("base", "Lr"))
    assert (found["n"], found["std"]) == (2, 0.7071)  # of its own 85 and 84, not of -2 and -4


def test_the_bound_of_a_curve_is_that_of_the_images_channels(tmp_path):
    """With one channel, conv1's 16 filters have 9 dimensions instead of 27."""
    for dataset, bound in (("cifar10", 0), ("mnist", 14)):
        add_runs(tmp_path, Cell("base", "Lr", dataset), [(80, 79)])
        figures = {figure.name: figure for figure in curve_figures(Results(tmp_path, "paper"))}
        first = figures[f"curves-{dataset}-base"].data[0]
        assert first["correlation_loss"] - first["correlation_excess"] == pytest.approx(bound)


def benchmark_file(folder, name: str, *rows: str) -> None:
    """A file of steps: model, variant, precision, milliseconds, date."""
    path = folder / "benchmarks" / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    lines = [f"{COLUMNS},date,commit,rounds,images_per_s"]
    for row in rows:
        model, variant, precision, step, date = row.split()
        lines.append(f"{model},{variant},Card,fast,{precision},{step},,{date},abc,5,1000")
    path.write_text("\n".join(lines))


def hours(folder, recipe: str) -> dict[str, float | None]:
    """By variant, the training time in the cost figure."""
    points = cost_figure(Results(folder, recipe), "best").data
    return {point["variant"]: point["training_hours"] for point in points}


def test_training_time_is_of_the_file_that_knows_most_networks(tmp_path):
    for recipe in ("paper", "modern"):
        add_runs(tmp_path, CONV, [(87, 86)], recipe=recipe)
        add_runs(tmp_path, LINEAR, [(87, 86)], recipe=recipe)
    benchmark_file(tmp_path, "a", "base Conv fp32 1 2026-01-09")
    assert hours(tmp_path, "paper") == {"Conv": pytest.approx(782 * 250 / 3.6e6, 1e-3), "Lr": None}
    both = "base Conv fp32 {} {}", "base Lr fp32 {} {}"
    benchmark_file(tmp_path, "b", *(row.format(10, "2026-01-01") for row in both))
    benchmark_file(tmp_path, "c", *(row.format(20, "2026-01-02") for row in both))
    benchmark_file(tmp_path, "d", *(row.format(30, "2026-01-01") for row in both))
    assert hours(tmp_path, "paper")["Lr"] == pytest.approx(782 * 250 * 20 / 3.6e6, 1e-3)
    assert hours(tmp_path, "modern") == {"Conv": None, "Lr": None}  # of other steps than these


def test_times_of_several_files_are_of_the_day_of_the_newest_conv(tmp_path):
    both = "base Conv fp32 5 2026-01-01", "base Lr fp32 5 2026-01-01"
    benchmark_file(tmp_path, "torch2.9", *both)
    benchmark_file(tmp_path, "torch2.10", "base Conv fp32 9 2026-01-02")
    rows = measured(tmp_path, "ms_per_step", "fast")
    assert list(zip(rows.variant, rows.value, strict=True)) == [("Conv", 9)]


def test_a_run_that_was_moved_names_both_devices(tmp_path):
    (record,) = add_runs(tmp_path, CONV, [(87, 86)])
    (start,) = record["provenance"]
    moved = start | {"device": "Card", "versions": {"torch": "2.10.0"}}
    found = trained_on(record | {"provenance": [moved, start, start]})
    assert found == {"device": "Card, then Some CPU (2 threads)", "torch": "2.10.0, then 2.9.0"}


def test_a_record_may_fill_cells_of_two_recipes(tmp_path):
    """Conv's does, if they differ in the correlation loss alone."""
    add_runs(tmp_path, CONV, [(87, 86)])
    claims = judged(Results(tmp_path, "paper"))
    sections, unused = page.sections_of([claims, claims], "best", read_benchmarks(tmp_path))
    assert [len(section.runs) for section in sections] == [1, 1] and not unused


DAMAGES = {
    "text": "{",
    "layout": "[]",
    "nan": lambda record: record | {"test_acc_best": float("nan")},
    "edited": lambda record: record | {"sha256": "0" * 64, "test_acc_best": 99.0},
    "no digest": lambda record: record,
    "key": lambda record: sealed(without(record, "test_acc_last")),
    "curve": lambda record: sealed(record | {"curve": [{"epoch": 1}]}),
    "provenance": lambda record: sealed(record | {"provenance": [{"device": "CPU"}]}),
}


def sealed(record):
    """With the digest of what it says."""
    return record | {"sha256": value_sha256(without(record, "sha256"))}


def without(record, key):
    return {name: value for name, value in record.items() if name != key}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_named_and_left_out(tmp_path, damage):
    record, _ = add_runs(tmp_path, LINEAR, [(80, 79), (81, 80)])
    path, content = tmp_path / "runs" / f"{record['run_id']}.json", DAMAGES[damage]
    path.write_text(content if isinstance(content, str) else json.dumps(content(record)))
    records = read_records(tmp_path)
    (message,) = records.damaged
    assert record["run_id"] in message and "delete it" in message
    assert filled(tmp_path) == {LINEAR: [1]}
    with pytest.warns(UserWarning, match=record["run_id"]):
        assert load_runs(tmp_path).seed.tolist() == [1]


def test_a_record_without_validation_accuracies_is_damaged_if_it_held_images_out(tmp_path):
    (run,) = cell_runs(LINEAR)
    record = make_record(run, 80.0, 79.0)
    record["science"]["recipe"]["val_fraction"] = 0.1
    save_record(tmp_path, record)
    (message,) = read_records(tmp_path).damaged
    assert "val_acc_last, curve missing or invalid" in message


def accuracy(values, baseline=None, paper=-0.5, first=0, baseline_first=0):
    def runs(pairs, first, place):
        seeds = range(first, first + len(pairs))
        found = {"run_id": list(map(str, seeds)), "accuracy": [float(p[place]) for p in pairs]}
        return pd.DataFrame(found, index=pd.Index(seeds, dtype="int64"))

    return {
        metric: Accuracy(
            paper,
            baseline is not None,
            runs(values, first, place),
            runs(baseline or [], baseline_first, place),
        )
        for place, metric in enumerate(("best", "last"))
    }


def test_mean_and_sample_deviation_of_a_baseline_by_hand():
    found = accuracy([(90, 80), (91, 80), (95, 83)], paper=90.4)
    assert found["best"].ours == pytest.approx(92)
    assert found["best"].std == pytest.approx(7**0.5)  # (4 + 1 + 9) / 2
    assert found["best"].difference == pytest.approx(1.6)
    assert found["last"].ours == pytest.approx(81)
    assert found["last"].std == pytest.approx(3**0.5)


def test_relative_accuracy_by_hand():
    found = accuracy([(89, 1), (90, 1), (91, 1)], [(90, 1), (90, 1), (93, 1)])["best"]
    assert found.ours == pytest.approx(-1)
    assert found.std == pytest.approx(1)  # of -1, 0, -2
    assert found.difference == pytest.approx(-0.5)
    assert found.verdict == "close"
    assert accuracy_entry(found).parts == ["-0.5", "-1.00 ± 1.00 (n=3)", "-0.50"]


def test_unequal_seeds_are_compared_by_those_in_common():
    found = accuracy([(89, 1), (91, 1), (50, 1)], [(90, 1), (90, 1)])["best"]
    assert found.ours == pytest.approx(0) and found.std == pytest.approx(2**0.5)  # of -1, 1
    assert accuracy_entry(found).ours == "+0.00 ± 1.41 (n=2 of 3: the baseline's seeds)"
    found = accuracy([(89, 1)], [(90, 1), (0, 1)])["best"]
    assert accuracy_entry(found).ours == "-1.00 (n=1)"
    found = accuracy([(89, 1)], [(90, 1)], baseline_first=5)["best"]
    assert accuracy_entry(found).ours == "-1.00 (n=1, baseline n=1 of other seeds)"


def test_what_has_not_run_is_never_filled():
    missing = accuracy([], [(90, 1)])["best"]
    assert (missing.ours, missing.std, missing.difference) == (None, None, None)
    assert accuracy_entry(missing).parts == ["-0.5", "not run"]
    alone = accuracy([(88, 1)], [])["best"]
    assert alone.ours is None and alone.verdict == "no baseline"
    assert accuracy_entry(alone).parts == ["-0.5", "88.00 absolute (n=1), baseline not run"]


@pytest.mark.parametrize(
    ("ours", "verdict"), [(92.9, "close"), (93.0, "above"), (91.9, "close"), (91.8, "below")]
)
def test_verdicts(ours, verdict):
    assert accuracy([(ours, 1)], paper=92.4)["best"].verdict == verdict


RELATIVE = """
base Lr 0.43↓ 2.5↑
base LRr 0.48↓ 0.5↑
vgg11 Lr 0.47↓ 13↑
vgg11 LRr 0.50↓ 1↑
allconv Lr 0.46↓ 0.4↑
allconv LRr 0.49↓ 0.1↑
resnet18 Lr 0.46↓ 4.5↑
resnet18 LRr 0.50↓ 0.4↑
resnext29 Lr 0.29↓ 2.6↑
resnext29 LRr 0.48↓ 0.2↑
mobilenetv2 Lr 0.70↑ 166↑
mobilenetv2 LRr 0.41↓ 8.5↑
"""


@pytest.mark.parametrize("line", RELATIVE.split("\n")[1:-1])
def test_relative_counts_are_those_that_table_4_prints(line):
    model, variant, params, flops = line.split()
    rows = {row.variant: row for row in paper_rows() if row.table == 4 and row.model == model}
    row, base = rows[variant], rows["Conv"]
    assert times_params(change(row.params_m, base.params_m)) == f"(×{params}) "
    assert times_flops(change(row.flops_b, base.flops_b)) == f"(×{flops}) "


def test_no_change_is_not_written():
    assert times_params(Decimal(0)) == times_flops(Decimal(0)) == ""


COLUMNS = "model,variant,device,mode,precision,ms_per_step,latency_ms_fused_b1"


def test_benchmarks(tmp_path):
    assert "not measured yet" in read_benchmarks(tmp_path).notes[0]
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    path = folder / "card.csv"
    path.write_text(f"{COLUMNS}\nbase,Lr,Card,usual,fp32,5,\nbase,Lr,Card,fast,fp32,2,0.5\n")
    found = read_benchmarks(tmp_path)
    assert found.times[("card", "fp32"), "base", "Lr"] == {
        "step_usual": 5.0,
        "step_fast": 2.0,
        "latency_b1": 0.5,
    }
    assert found.notes == ["card.csv has no column latency_ms_fused_b256."]
    path.write_text(f"{COLUMNS}\nbase,Lr,Card,usual,fp32,five,\n")
    with pytest.raises(UserError, match=r"card\.csv, line 2"):
        read_benchmarks(tmp_path)
    path.write_text("")
    with pytest.raises(UserError, match=r"card\.csv is not a readable"):
        read_benchmarks(tmp_path)
    path.write_text("model,variant\n")
    with pytest.raises(UserError, match="device, mode, precision"):
        read_benchmarks(tmp_path)


def test_times_of_another_day_than_convs_are_left_out(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/card.csv").write_text(
        f"{COLUMNS},date,rounds,images_per_s\n"
        "base,Conv,Card,fast,fp32,4,,2026-01-02,5,100\n"
        "base,Lr,Card,fast,fp32,3,,2026-01-02,5,200\n"
        "base,e,Card,fast,fp32,2,,2026-01-03,5,300\n"
        "vgg11,Lr,Card,fast,fp32,9,,2026-01-03,5,10\n"  # without a Conv
    )
    found = read_benchmarks(tmp_path)
    assert [key[1:] for key in found.times] == [("base", "Conv"), ("base", "Lr"), ("vgg11", "Lr")]
    assert any("1 rows were measured on another day" in note for note in found.notes)
    assert "e" not in set(measured(tmp_path, "images_per_s", "fast").variant)


def test_the_default_alpha_of_cells_is_the_configs():
    alpha = compose(["model=base", "variant=Lr"]).alpha
    assert Cell("base", "Lr", "cifar10", alpha) == LINEAR


def test_all_records_as_one_table(tmp_path):
    add_runs(tmp_path, LINEAR, [(80, 79), (81, 78)])
    add_runs(tmp_path, Cell("vgg11", "LRr", "cifar10", 0.25), [(70, 69)], recipe="short")
    frame = load_runs(tmp_path)
    assert frame.run_id.is_unique and len(frame) == 3
    means = frame.groupby(["model", "variant", "recipe"]).test_acc_last.mean()
    assert means.to_dict() == {("base", "Lr", "paper"): 78.5, ("vgg11", "LRr", "short"): 69}
    assert frame.set_index("model").alpha["vgg11"] == 0.25
    assert frame["rank"].dropna().tolist() == [10]
    assert set(frame.lr) == {1e-3} and set(frame.strength) == {1e-2} and set(frame.every) == {10}
    assert frame.limit_train.isna().all()
    (tmp_path / "none" / "runs").mkdir(parents=True)
    assert load_runs(tmp_path / "none").columns.tolist() == frame.columns.tolist()
    path = tmp_path / "runs" / f"{frame.run_id[0]}.json"  # as another version may have written it
    write_record(path, without(read_record(path), "timing"))
    with pytest.warns(UserWarning, match=f"{frame.run_id[0]} is left out: it lacks 'timing'"):
        assert len(load_runs(tmp_path)) == 2
