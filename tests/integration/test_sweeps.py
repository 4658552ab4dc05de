"""Sweeps: what a sweeper is told, failures in other processes, and many processes on one grid."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

from configs.cli import Score, _exit_code, sweep_table
from configs.launched import EndedJob, Unfinished
from linearconv.engine import loop
from tests.conftest import REPOSITORY
from tests.records import records

BASE = ("model=base", "variant=Conv", "recipe.epochs=1")
QUICK = ("recipe.batch_size=16", "dataset.limit_train=64", "dataset.limit_test=64",
         "recipe.epochs=1", "runtime.threads=1")  # fmt: skip


class AskAndTell(Sweeper):
    """Launches one job at a time, as optimisers do, and keeps what it is told about each."""

    told: ClassVar[list[tuple[str, float | None]]] = []

    def __init__(self, direction: str, tolerant: bool) -> None:
        self._tolerant = tolerant

    def setup(self, **arguments: Any) -> None:
        self._launcher = Plugins.instance().instantiate_launcher(**arguments)

    def sweep(self, arguments: list[str]) -> None:
        parsed = OverridesParser.create().parse_overrides(arguments)
        for number, (job,) in enumerate(BasicSweeper.split_arguments(parsed, max_batch_size=1)):
            (returned,) = self._launcher.launch([job], initial_job_idx=number)
            try:
                value = float(returned.return_value)
            except Unfinished:
                value = None
                if not self._tolerant:
                    raise
            self.told.append((job[-1], value))


@pytest.fixture
def told(monkeypatch) -> list[tuple[str, float | None]]:
    """Offers hydra/sweeper=ask_and_tell; returns the jobs' last overrides and values."""
    module = SimpleNamespace(AskAndTell=AskAndTell)  # Hydra refuses plugins of other packages
    package = SimpleNamespace(test=module, __path__=[], __name__="hydra_plugins")
    monkeypatch.setitem(sys.modules, "hydra_plugins", package)
    monkeypatch.setitem(sys.modules, "hydra_plugins.test", module)
    monkeypatch.setattr(AskAndTell, "__module__", "hydra_plugins.test")
    monkeypatch.setattr(AskAndTell, "told", [])
    Plugins.instance().register(AskAndTell)
    node = {"_target_": "hydra_plugins.test.AskAndTell", "direction": "maximize", "tolerant": True}
    ConfigStore.instance().store(group="hydra/sweeper", name="ask_and_tell", node=node)
    return AskAndTell.told


OPTIMISE = ("train", "-m", "hydra/sweeper=ask_and_tell")


def test_a_sweeper_is_told_the_last_test_accuracy_and_no_value_for_a_failure(
    cli, small, tmp_path, told
):
    rates = "recipe.lr=1e-3,1e30,3e-3"
    outcome = cli(*OPTIMISE, *small, *BASE, rates)
    by_rate = {r["science"]["recipe"]["lr"]: r["test_acc_last"] for r in records(tmp_path)}
    assert set(by_rate) == {1e-3, 3e-3}
    assert told == [("recipe.lr=0.001", by_rate[1e-3]), ("recipe.lr=1e+30", None),
                    ("recipe.lr=0.003", by_rate[3e-3])]  # fmt: skip
    assert outcome.code == 1 and "1 of 3 runs did not finish" in outcome.err
    assert f"score       test_acc_last = {by_rate[1e-3]:.2f} %" in outcome.out
    first = list(told)
    told.clear()
    cli(*OPTIMISE, *small, *BASE, rates)
    assert told == first  # finished runs: what was recorded


def test_a_sweeper_is_told_the_best_validation_accuracy_where_images_are_held_out(
    cli, small, tmp_path, told
):
    outcome = cli(*OPTIMISE, *small, *BASE, "recipe.epochs=3", "recipe.val_fraction=0.25", "seed=0")
    (record,) = records(tmp_path)
    assert outcome.code == 0 and told == [("seed=0", record["val_acc_best"])]
    assert f"score       val_acc_best = {record['val_acc_best']:.2f} %" in outcome.out


def test_a_sweeper_may_stop_at_a_run_without_a_result(cli, small, tmp_path, told):
    intolerant = [*OPTIMISE, "hydra.sweeper.tolerant=false", *small, *BASE]
    outcome = cli(*intolerant, "max_minutes=1e-9", "seed=0,1")
    assert outcome.code == 75 and told == []
    assert "1 of 1 runs did not finish" in outcome.err and "Traceback" not in outcome.err
    outcome = cli(*intolerant, "alpha=0.5", "seed=x")
    assert outcome.code == 2 and "seed" in outcome.err and told == []


def test_a_sweeper_must_not_look_for_the_worst_network(cli, small, tmp_path, told):
    outcome = cli(*OPTIMISE, "hydra.sweeper.direction=minimize", *small, *BASE, "seed=0,1")
    assert outcome.code == 2 and "expected hydra.sweeper.direction=maximize" in outcome.err
    assert told == [] and not (tmp_path / "checkpoints").exists()


def test_the_exit_code_of_a_sweep(cli, small, monkeypatch):
    """That of its failures if they have one in common, 130 for all that an interrupt ends."""
    for codes, expected in (((0, 75), 75), ((75, 1), 1), ((2, 75), 1), ((0, 0), 0)):
        assert _exit_code([EndedJob(["a=1"], code, None) for code in codes]) == expected

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train_epoch", interrupted)
    assert cli("train", "-m", *small, *BASE, "seed=0,1").code == 130


def test_an_accuracy_of_zero_is_shown():
    scores = [Score(accuracy, "test_acc_last", f"run{i}") for i, accuracy in enumerate((0.0, 9.0))]
    table = sweep_table([EndedJob([f"seed={i}"], 0, score) for i, score in enumerate(scores)])
    assert table.splitlines()[1].split() == ["0", "0.00", "run0"]


def test_a_grid_goes_on_to_its_next_batch_after_a_failure(cli, small, tmp_path):
    outcome = cli("train", "-m", "hydra.sweeper.max_batch_size=1", *small, *BASE,
                  "recipe.lr=1e30,1e-3")  # fmt: skip
    assert outcome.code == 1 and "1 of 2 runs did not finish" in outcome.err
    assert len(records(tmp_path)) == 1 and "score" not in outcome.out


def start(*arguments: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "train.py"), *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_failures_in_other_processes_count(places, tmp_path):
    """The launcher pickles the job, as submitit's does."""
    process = start("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *BASE, *places,
                    *QUICK, "recipe.lr=1e30,1e-3", "runtime.threads=1")  # fmt: skip
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 1, out
    assert "1 of 2 runs did not finish" in out and "the loss became" in out
    assert re.search(r"^  exit code 1: .*recipe.lr=1e\+30$", out, flags=re.M), out
    assert len(records(tmp_path)) == 1


def finished_once(tmp_path, runs: int) -> bool:
    """Whether each run was trained by one process, and no file is half written."""
    found = records(tmp_path)
    starts = [len(record["provenance"]) for record in found]
    return starts == [1] * runs and not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("processes, runs", [(3, 3), pytest.param(8, 4, marks=pytest.mark.long)])
def test_processes_share_a_grid(cli, places, tmp_path, processes, runs):
    """The first run is the same for all of them at once."""
    grid = ["-m", *BASE, *places, *QUICK, "seed=" + ",".join(map(str, range(runs)))]
    started = [start(*grid) for _ in range(processes)]
    outputs = [process.communicate(timeout=600)[0] for process in started]
    for process, out in zip(started, outputs, strict=True):
        held = "is being trained by process" in out
        assert process.returncode == (75 if held else 0), out
        assert ("did not finish" in out) == held and "Traceback" not in out
    assert finished_once(tmp_path, runs)
    assert sum(out.count("epoch 1/1") for out in outputs) == runs
    again = cli("train", *grid)
    assert again.code == 0 and again.out.count("is already finished") == runs
