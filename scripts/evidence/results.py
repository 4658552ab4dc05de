"""The records of finished runs, as a table, and the cells of the paper's tables that they fill."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from configs import TrainConfig, experiments, identify
from configs.experiments import Cell, all_cells, filled_cell
from configs.groups import group_names
from configs.identity import identity_hash
from configs.naming import differences, nearest_recipe, variant_name
from linearconv.engine.files import CHECKOUT
from linearconv.engine.record import read_record
from linearconv.errors import UserError
from scripts.evidence.artifacts import damage
from scripts.evidence.statistics import settled

Record = dict[str, Any]
Seeds = Mapping[int, Record]
"""The records that fill one cell, by seed in ascending order."""

RESULTS, TRIALS = CHECKOUT / experiments.RESULTS, CHECKOUT / experiments.TRIALS
"""The checkout's own results: of runs that fill cells, and of all others."""

METRICS = ("settled", "last", "best")
"""Accuracies of a run; see `test_accuracy`."""

LISTED = 8
"""How many records a note lists by name."""

CURVE = {"epoch", "test_acc", "train_acc", "correlation_loss"}
"""The keys that are read from each epoch of a curve."""


def test_accuracy(record: Record, metric: str) -> float:
    """A test accuracy of a run in percent.

    Args:
        record: see `read_checked`.
        metric: "settled", the mean over the last fifth of the epochs, at least one; "last", that
            of the last epoch; "best", the largest over the epochs, selected on test images.
    """
    if metric != "settled":
        return float(record[f"test_acc_{metric}"])
    return settled([entry["test_acc"] for entry in record["curve"]])


def recipes() -> list[str]:
    """Names of the recipes, the paper's first."""
    return sorted(group_names("recipe"), key=lambda name: name != "paper")


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


@dataclass(frozen=True)
class Records:
    """What is in the folder of records.

    Attributes:
        usable: the records, sorted by name of their files.
        damaged: a message for each one that cannot be used and is left out, and for each run whose
            arrays cannot.
    """

    usable: list[Record]
    damaged: list[str]


def read_records(*folders: Path) -> Records:
    """All records of `runs` in the folders; damaged ones are named and left out.

    A run counts once: a second record of it is named and left out, too.

    Raises:
        UserError: no such folder.
    """
    for folder in folders:
        if not (folder / "runs").is_dir():
            raise UserError(f"no records: {folder / 'runs'} not found")
    records: dict[str, Record] = {}
    damaged = []
    for path in (path for folder in folders for path in sorted((folder / "runs").glob("*.json"))):
        try:
            record = read_checked(path)
        except UserError as error:
            damaged.append(str(error))
            continue
        other = records.setdefault(identity_hash(record["science"]), record)
        if other is record:
            damaged += filter(None, [damage(path.parent.parent, record["run_id"])])
        else:
            damaged.append(f"{path} is another record of the run {other['run_id']}; delete one")
    return Records(list(records.values()), damaged)


def read_checked(path: Path) -> Record:
    """Read a record that has what the tables, figures and pages read.

    Raises:
        UserError: as `linearconv.engine.record.read_record`, or it lacks some of that.
    """
    record = read_record(path)
    if wrong := _problems(record):
        raise UserError(
            f"{path} is damaged ({', '.join(wrong)} missing or invalid); restore or delete it"
        )
    return record


def _problems(record: Record) -> list[str]:
    """The keys that are missing or invalid, each once."""
    keys = {"run_id": str, "science": dict, "curve": list, "provenance": list, "best_epoch": int}
    wrong = [key for key, kind in keys.items() if not isinstance(record.get(key), kind)]
    starts = record.get("provenance")
    if not starts or (isinstance(starts, list) and not all(map(_is_start, starts))):
        wrong.append("provenance")
    validated = _has_validation(record.get("science"))
    accuracies = ["test_acc_best", "test_acc_last", *["val_acc_last"] * validated]
    wrong += [key for key in accuracies if not _is_number(record.get(key))]
    names = CURVE | ({"val_acc"} if validated else set())
    curve = record.get("curve")
    if not curve or (isinstance(curve, list) and not all(_is_epoch(e, names) for e in curve)):
        wrong.append("curve")
    return list(dict.fromkeys(wrong))


def _has_validation(identity: Any) -> bool:
    """Whether a run held out validation images, whose accuracies its record then has."""
    recipe = identity.get("recipe") if isinstance(identity, dict) else None
    return isinstance(recipe, dict) and bool(recipe.get("val_fraction"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_start(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("device"), str)
        and isinstance(entry.get("versions"), dict)
        and isinstance(entry["versions"].get("torch"), str)
    )


def _is_epoch(entry: Any, names: set[str]) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) >= names
        and all(isinstance(entry[name], int | float) for name in names - {"correlation_loss"})
    )


def load_runs(folder: Path | None = None) -> pd.DataFrame:
    """One row for each record of a results folder, whether or not it fills a cell.

    Damaged records are left out, each with a warning that names it.

    Args:
        folder: the results folder; default: the repository's own, with its trials if there are any.

    Returns:
        See `runs_frame`.

    Raises:
        UserError: see `read_records` and `runs_frame`.
    """
    folders = [RESULTS, *[TRIALS] * TRIALS.exists()] if folder is None else [folder]
    found = read_records(*folders)
    for message in found.damaged:
        warnings.warn(message, stacklevel=2)
    return runs_frame(found.usable)


def runs_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row for each record.

    Returns:
        Columns: what was run (`run_id, dataset, model, variant, alpha, rank, init, recipe`, in
        `differs` what it overrides of that variant and recipe, e.g. `lr=0.003`, `epochs,
        batch_size, optimizer, lr, momentum, weight_decay, schedule, label_smoothing,
        val_fraction`, `strength` and `every` of the correlation loss,
        `limit_train, limit_test, precision, seed`; empty where it does not apply), accuracies in
        percent (`settled`: see `test_accuracy`), counts for one image, `seconds` (including
        evaluation), and of the process that finished it `device, threads, torch, commit, started`.
        A record that lacks one of these is left out, with a warning.
    """
    rows = []
    for record in records:
        try:
            rows.append(_frame_row(record))
        except (KeyError, IndexError, TypeError) as error:
            warnings.warn(f"{record['run_id']} is left out: it lacks {error}", stacklevel=2)
    return pd.DataFrame(rows, columns=None if rows else FRAME).astype({"rank": "Int64"})


RECIPE = ("momentum", "weight_decay", "schedule", "label_smoothing")
"""Keys of a recipe that are in the identity only if they are not Adam's or the paper's."""

FRAME = (
    *("run_id", "dataset", "model", "variant", "alpha", "rank", "init", "recipe", "differs"),
    *("epochs", "batch_size", "optimizer", "lr", *RECIPE, "val_fraction", "strength", "every"),
    *("limit_train", "limit_test", "precision", "seed", "test_acc_best", "test_acc_last"),
    *("settled", "best_epoch", "params", "macs_train_generate", "macs_train_factored"),
    *("macs_inference_fused", "macs_inference_factored", "flops_paper_convention"),
    *("seconds", "device", "threads", "torch", "commit", "started"),
)
"""The columns of a frame without rows; with validation images there are more."""


def _frame_row(record: Record) -> dict[str, Any]:
    identity, last = record["science"], record["provenance"][-1]
    variant, dataset, recipe = identity["variant"], identity["dataset"], identity["recipe"]
    regularizer = identity["regularizer"] or {}
    accuracies = {key: value for key, value in record.items() if "_acc" in key}
    macs = {
        f"{phase}_{how}": value
        for phase in ("macs_train", "macs_inference")
        for how, value in record[phase].items()
    }
    return {
        "run_id": record["run_id"],
        "dataset": dataset["name"],
        "model": identity["model"]["name"],
        "variant": variant_name(variant),
        "alpha": variant["alpha"],
        "rank": variant["rank"],
        "init": variant["init"],
        "recipe": nearest_recipe(identity)[0],
        "differs": " ".join(f"{key}={value}" for key, value in differences(identity).items()),
        "epochs": recipe["epochs"],
        "batch_size": recipe["batch_size"],
        "optimizer": recipe["optimizer"],
        "lr": recipe["lr"],
        **{key: recipe.get(key) for key in RECIPE},
        "val_fraction": recipe["val_fraction"],
        "strength": regularizer.get("strength"),
        "every": regularizer.get("every"),
        "limit_train": dataset["limit_train"],
        "limit_test": dataset["limit_test"],
        "precision": identity["precision"],
        "seed": identity["seed"],
        **accuracies,
        "settled": test_accuracy(record, "settled"),
        "best_epoch": record["best_epoch"],
        "params": record["params"],
        **macs,
        "flops_paper_convention": record["flops_paper_convention"],
        "seconds": record["timing"]["seconds"],
        "device": last["device"],
        "threads": last["threads"],
        "torch": last["versions"]["torch"],
        "commit": last["git_commit"],
        "started": last["started"],
    }


def read_redundancy(folder: Path) -> pd.DataFrame:
    """The rows of scripts/redundancy.py in a results folder; none if it has not run.

    `form` is empty in those of the networks themselves, `layer` where all are converted.
    """
    path = folder / "redundancy.csv"
    if not path.exists():
        return pd.DataFrame(columns=["run_id"])
    return pd.read_csv(path).fillna({"form": "", "fitted_to": "", "layer": ""})


def trained_on(record: Record) -> dict[str, str]:
    """The device and the version of torch; of a run that was moved, all in their order."""
    starts = record["provenance"]
    values = {
        "device": [start["device"] for start in starts],
        "torch": [start["versions"]["torch"] for start in starts],
    }
    return {name: ", then ".join(dict.fromkeys(found)) for name, found in values.items()}


def records_of(records: Iterable[Record], config: TrainConfig) -> list[Record]:
    """The records of the runs with a config, whatever their seed, sorted by it.

    If they start from a trained network, its published weights have the name of its run.
    """
    found, baseline = [], config.baseline_checkpoint and Path(config.baseline_checkpoint).stem
    for record in records:
        seeded = replace(config, seed=record["science"].get("seed"))
        if record["science"] == identify(seeded, baseline=baseline):
            found.append(record)
    return sorted(found, key=lambda record: record["science"]["seed"])


class Results:
    """The records of a results folder, sorted into the cells of one recipe's tables.

    Args:
        folder: contains `runs/` and `artifacts/`.
        recipe: a recipe's name.
        records: those of the folder; default: all usable ones.

    Attributes:
        unused: the records that fill no cell.
    """

    def __init__(self, folder: Path, recipe: str, records: Iterable[Record] | None = None) -> None:
        self.folder, self.recipe = folder, recipe
        records = read_records(folder).usable if records is None else list(records)
        self._filled = _fill(records, recipe)
        used = {id(record) for seeds in self._filled.values() for record in seeds.values()}
        self.unused = [record for record in records if id(record) not in used]

    def records(self, cell: Cell) -> Seeds:
        """The records that fill a cell."""
        return self._filled.get(cell, {})

    def cells(self) -> list[Cell]:
        """The cells that have records, in the order of the tables."""
        return [cell for cell in all_cells() if cell in self._filled]

    def accuracies(self, cell: Cell, metric: str) -> pd.DataFrame:
        """The `run_id` and the test `accuracy` (percent) of a cell's records, indexed by seed."""
        found = self.records(cell)
        return pd.DataFrame(
            {
                "run_id": [record["run_id"] for record in found.values()],
                "accuracy": [test_accuracy(record, metric) for record in found.values()],
            },
            index=pd.Index(found, name="seed", dtype="int64"),
        )


def _fill(records: list[Record], recipe: str) -> dict[Cell, dict[int, Record]]:
    """The records of each cell: only those whose identity is that of the cell's run."""
    filled: dict[Cell, dict[int, Record]] = {}
    for record in records:
        cell = filled_cell(record["science"], recipe)
        if cell is not None:
            filled.setdefault(cell, {})[record["science"]["seed"]] = record
    return {cell: dict(sorted(seeds.items())) for cell, seeds in filled.items()}
