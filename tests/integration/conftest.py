"""What the tests of the scripts share: calling them, and small runs in a table's place."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from configs import compose, identify, run_id
from configs.experiments import Cell, Run
from scripts import reproduce
from scripts.jobs import plan
from tests.conftest import Outcome
from train import train

SIZE = (
    "recipe.batch_size=16",
    "dataset.limit_train=192",
    "dataset.limit_test=64",
    "runtime.save_every_s=0",
)
TINY = ("recipe.batch_size=4", "dataset.limit_train=7", "dataset.limit_test=4")


def small_run(
    model: str = "base",
    variant: str = "Conv",
    *,
    epochs: int = 2,
    size: tuple[str, ...] = SIZE,
    baseline: Run | None = None,
) -> Run:
    """A run as the enumeration makes them, but on few digits."""
    cell = Cell(model, variant, "digits")
    overrides = (*cell.overrides("paper", 0), *size, f"recipe.epochs={epochs}")
    identity = identify(compose(overrides), baseline=baseline and baseline.run_id)
    return Run(cell, 0, overrides, identity, run_id(identity), baseline)


@pytest.fixture(scope="session")
def script() -> Callable[..., Outcome]:
    """Runs a script's main in this process, which spares the imports and counts each time."""

    def run(name: str, *arguments: object) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
            try:
                code = importlib.import_module(f"scripts.{name}").main()
            except SystemExit as stop:  # argparse
                code = stop.code
        return Outcome(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def folders(tmp_path, digits_root) -> list[str]:
    return [f"--results-dir={tmp_path}/results", f"--checkpoint-dir={tmp_path}/checkpoints",
            f"--log-dir={tmp_path}/logs", f"--data-root={digits_root}"]  # fmt: skip


@pytest.fixture
def command(tmp_path, folders, monkeypatch, capsys):
    """Runs the script in this process, its children for real, with some runs for the table's."""
    monkeypatch.chdir(tmp_path)  # it works from anywhere

    def call(runs: list[Run], *arguments: str) -> Outcome:
        monkeypatch.setattr(reproduce, "select_runs", lambda *args, **kwargs: runs)
        monkeypatch.setattr(reproduce, "STARTED", time.monotonic())
        monkeypatch.setattr(sys, "argv", ["reproduce.py", "--table", "3", *folders, *arguments])
        plan._data_problem.cache_clear()
        capsys.readouterr()
        code = reproduce.main()
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory, digits_root) -> Path:
    """The folders of one run of two epochs, Base-LRr on digits; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    overrides = ["model=base", "variant=LRr", "dataset=digits", *SIZE, "recipe.epochs=2"]
    overrides += [f"dataset.root={digits_root}", f"results_dir={folder}/results"]
    overrides += [f"checkpoint_dir={folder}/checkpoints", f"log_dir={folder}/logs"]
    train(compose(overrides), overrides)
    return folder
