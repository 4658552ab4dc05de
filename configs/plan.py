"""The runs of a table with what train.py is called with for them, and where their files lie."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.compose import compose
from configs.experiments import Run
from configs.schema import TrainConfig
from configs.science import run_id, science
from linearconv.engine.checkpoint import Checkpoints
from linearconv.engine.run import Places
from linearconv.engine.status import State, Status, run_status
from linearconv.errors import UserError


@dataclass(frozen=True)
class Planned:
    """A run that is to be there.

    Attributes:
        run: the run.
        places: where its files lie.
        overrides: what train.py is called with.
        baseline: what it starts from, or None.
    """

    run: Run
    places: Places
    overrides: tuple[str, ...]
    baseline: Planned | None = None

    @property
    def name(self) -> str:
        """The run_id."""
        return self.run.run_id

    def status(self) -> Status:
        """How far it is."""
        return run_status(self.places, self.run.science)

    def obstacle(self) -> str:
        """Why train.py cannot train it, whatever else is trained before, or ""."""
        if self.places.record.exists():
            return self.status().note
        dataset = self.run.science["dataset"]
        if dataset["digest"] is None:
            name = dataset["name"]
            return (
                f"runs on {name} fill no cell, as the published one is not pinned in "
                f"configs/dataset/{name}.yaml: `python scripts/data.py {name}` prints its digest"
            )
        if self.baseline is None or self.baseline.status().state is not State.DONE:
            return ""
        weights = Checkpoints(self.baseline.places.checkpoints).best
        if weights.exists():
            return ""
        again = shlex.join(["python", "train.py", *self.baseline.overrides, "overwrite=true"])
        return (
            f"it starts from {weights}, which is not there, though the record of that run is "
            f"(records are committed, checkpoints are not); `{again}` trains it again"
        )


def plan_runs(
    runs: Sequence[Run], extra: Sequence[str], root: Path
) -> tuple[list[Planned], TrainConfig]:
    """What to call train.py with for each run.

    Args:
        runs: a baseline before what starts from it.
        extra: overrides for all of them.
        root: the folder that train.py runs in.

    Returns:
        The planned runs, and the config of one of them: device, runtime and folders are the same
        for all.

    Raises:
        UserError: an override cannot be composed, or it would train other runs.
    """
    config = compose([*runs[0].overrides, *extra])
    _check_extra(runs, extra)
    planned: dict[str, Planned] = {}
    for run in runs:
        overrides = (*run.overrides, *extra)
        before = None
        if run.baseline is not None:
            before = planned[run.baseline.run_id]
            weights = Checkpoints(Path(config.checkpoint_dir, before.name)).best
            overrides += (override("baseline_checkpoint", weights),)
        folders = (config.results_dir, config.checkpoint_dir, config.log_dir)
        places = Places(run.run_id, *(root / folder for folder in folders))
        planned[run.run_id] = Planned(run, places, overrides, before)
    return list(planned.values()), config


KEPT_KEYS = {
    "seed": "--seeds has the runs' seeds",
    "resume": "every call goes on with what is interrupted",
    "overwrite": "a finished run is not run again",
}
"""Keys of train.py that are not the user's to set for runs of a table, and why."""


def _check_extra(runs: Sequence[Run], extra: Sequence[str]) -> None:
    for text in extra:
        if why := KEPT_KEYS.get(text.lstrip("+~").partition("=")[0]):
            raise UserError(f"{text} cannot be given for the runs of a table: {why}")
    # One run of each cell: what changes the identity does so whatever the seed.
    for run in {run.cell: run for run in runs}.values() if extra else ():
        baseline = None if run.baseline is None else run.baseline.run_id
        found = run_id(science(compose([*run.overrides, *extra]), baseline=baseline))
        if found != run.run_id:
            raise UserError(
                f"with {' '.join(extra)}, {found} would be trained instead of {run.run_id} and "
                "fill no cell of a table; a grid of your own is `python train.py -m ...`"
            )


def override(key: str, value: object) -> str:
    """`key=value` as Hydra reads it; quoted where the value has characters with a meaning."""
    text = str(value)
    if re.fullmatch(r"[a-zA-Z0-9_./:+-]+", text):
        return f"{key}={text}"
    # Hydra's rule: backslashes count twice before a quote, and a quote within has one of its own.
    quoted = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), text)
    return f"{key}='{quoted}'"
