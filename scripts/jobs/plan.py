"""The runs of a table, with their overrides for train.py and the paths of their files."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from configs import TrainConfig, compose, dataset_config, identify, run_id
from configs.experiments import RESULTS, Run
from data import DatasetFile
from linearconv.engine.checkpoint import Checkpoints
from linearconv.engine.files import CHECKOUT, in_checkout
from linearconv.engine.run import RunPaths, name_in_use
from linearconv.errors import UserError
from scripts.jobs.runner import Job
from scripts.jobs.status import State, Status, run_status, train_log


@dataclass(frozen=True)
class Planned:
    """A run of a table, finished or not.

    Attributes:
        run: the run.
        paths: paths of its files.
        overrides: overrides for train.py.
        baseline: the run it starts from, or None.
    """

    run: Run
    paths: RunPaths
    overrides: tuple[str, ...]
    baseline: Planned | None = None

    @property
    def name(self) -> str:
        """The run_id, in the words that its files have."""
        return self.paths.run_id

    def status(self) -> Status:
        """Its progress."""
        return run_status(self.paths, self.run.identity)

    def job(self) -> Job:
        """The process that trains it."""
        after = None if self.baseline is None else self.baseline.name
        command = (sys.executable, str(CHECKOUT / "train.py"), *self.overrides)
        return Job(self.name, command, train_log(self.paths), after)

    @property
    def shown(self) -> str:
        """The command that trains it, for a terminal."""
        return shlex.join(["python", str(in_checkout("train.py")), *self.overrides])

    def blocked_by(self) -> str:
        """Why it cannot be trained, other than a baseline that is still to be trained, or ""."""
        if self.paths.record.exists():
            return self.status().note
        dataset = self.run.identity["dataset"]
        if dataset["digest"] is None:
            name = dataset["name"]
            return (
                f"runs on {name} fill no cell, because configs/dataset/{name}.yaml has neither a "
                f"digest nor official_md5: `python scripts/prepare_data.py {name}` prints the "
                "digest"
            )
        if self.baseline is None or self.baseline.status().state is not State.DONE:
            return ""
        weights = Checkpoints(self.baseline.paths.checkpoints).best
        if weights.exists():
            return ""
        return (
            f"it starts from {weights}, which was not found, although that run has a record "
            "(records are committed, checkpoints are not); retrain it with "
            f"`{self.baseline.shown} overwrite=true`"
        )


def plan_runs(runs: Sequence[Run], extra: Sequence[str]) -> tuple[list[Planned], TrainConfig]:
    """Plan the call of train.py for each run.

    Args:
        runs: each baseline before the runs that start from it.
        extra: further overrides, the same for all runs.

    Returns:
        The planned runs, and the config of one of them: device, runtime and folders are the same
        for all.

    Raises:
        UserError: an override is invalid, or changes which runs are trained.
    """
    config = compose([*runs[0].overrides, *extra])
    config.results_dir = config.results_dir or str(in_checkout(RESULTS))  # all fill cells
    _check_extra(runs, extra)
    results, checkpoints, logs = map(
        Path, (config.results_dir, config.checkpoint_dir, config.log_dir)
    )
    planned: dict[str, Planned] = {}
    for run in runs:
        overrides = (*run.overrides, *extra)
        before = None
        if run.baseline is not None:
            before = planned[run.baseline.run_id]
            weights = Checkpoints(checkpoints / before.name).best
            overrides += (override("baseline_checkpoint", weights),)
        name = name_in_use(run.run_id, results, checkpoints)
        paths = RunPaths(name, results, checkpoints, logs)
        planned[run.run_id] = Planned(run, paths, overrides, before)
    return list(planned.values()), config


KEPT_KEYS = {
    "seed": "--seeds sets the seeds",
    "recipe": "--recipe sets the recipe, e.g. --recipe short",
    "resume": "interrupted runs are always continued",
    "overwrite": "finished runs are always skipped",
    "baseline_checkpoint": "each run starts from the baseline that is trained for it",
}
"""Keys of train.py that cannot be set for runs of a table, and why."""


def _check_extra(runs: Sequence[Run], extra: Sequence[str]) -> None:
    for text in extra:
        if why := KEPT_KEYS.get(text.lstrip("+~").partition("=")[0]):
            raise UserError(f"{text} cannot be given for the runs of a table: {why}")
    # One run per cell is enough: an override changes the identity for all seeds or for none.
    for run in {run.cell: run for run in runs}.values() if extra else ():
        baseline = None if run.baseline is None else run.baseline.run_id
        found = run_id(identify(compose([*run.overrides, *extra]), baseline=baseline))
        if found != run.run_id:
            raise UserError(
                f"with {' '.join(extra)}, {found} would be trained instead of {run.run_id} and "
                "would fill no cell of a table; for your own grid, use `python train.py -m ...`"
            )


def override(key: str, value: object) -> str:
    """`key=value` in Hydra's syntax; quoted if the value contains special characters."""
    text = str(value)
    if re.fullmatch(r"[a-zA-Z0-9_./:+-]+", text):
        return f"{key}={text}"
    # Hydra's rule: backslashes before a quote are doubled, and quotes in the value are escaped.
    quoted = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), text)
    return f"{key}='{quoted}'"


def time_argument(seconds: float) -> list[str]:
    """The override that makes train.py stop within `seconds`."""
    return [f"max_minutes={max(seconds, 0.001) / 60:.6f}"]


def data_problem(run: Run, root: Path, path: str | None) -> str:
    """Why no run on this run's dataset could fill a cell, or ""; downloads missing data.

    Args:
        run: the run.
        root: the folder of packed datasets.
        path: the packed file (`dataset.path`), if it is not in the folder.
    """
    return _data_problem(run.cell.dataset, run.identity["dataset"]["digest"], root, path)


@cache
def _data_problem(name: str, expected: str, root: Path, path: str | None) -> str:
    file = DatasetFile(replace(dataset_config(name), path=path), root)
    try:
        file.load()
    except UserError as error:
        return str(error)
    if file.digest == expected:
        return ""
    return f"{file.unknown}: runs on it fill no cell"
