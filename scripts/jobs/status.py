"""The progress of a run, read from its files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from configs.identity import Identity, identity_hash
from linearconv.engine.checkpoint import Checkpoints
from linearconv.engine.lock import live_owner
from linearconv.engine.record import read_record
from linearconv.engine.run import RunPaths
from linearconv.errors import UserError
from scripts.jobs.runner import last_failed, last_line


class State(StrEnum):
    """The state of a run."""

    DONE = "done"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    QUEUED = "queued"
    FAILED = "failed"
    MISSING = "missing"


@dataclass(frozen=True)
class Status:
    """The progress of a run.

    Attributes:
        state: see `State`.
        epoch: number of finished epochs.
        epochs: total number of epochs.
        note: which process runs it, or why it failed.
    """

    state: State
    epoch: int
    epochs: int
    note: str = ""


def train_log(paths: RunPaths) -> Path:
    """The file with the output of a run's train.py process."""
    return paths.log / "train.log"


def run_status(paths: RunPaths, identity: Identity) -> Status:
    """The progress of the run with this identity; changes nothing on disk."""
    epochs = identity["recipe"]["epochs"]
    if paths.record.exists():
        if problem := _record_problem(paths.record, identity):
            return Status(State.FAILED, 0, epochs, problem)
        return Status(State.DONE, epochs, epochs)
    saved = Checkpoints(paths.checkpoints).epochs()
    epoch = int(saved[-1].stem[6:]) if saved else 0
    owner = live_owner(paths.lock)
    if owner is not None:
        return Status(State.RUNNING, epoch, epochs, owner)
    if last_failed(train_log(paths)):
        return Status(State.FAILED, epoch, epochs, last_line(train_log(paths)))
    return Status(State.INTERRUPTED if saved else State.MISSING, epoch, epochs)


def _record_problem(path: Path, identity: Identity) -> str:
    """Why a record is not a valid record of the run, or ""."""
    try:
        record = read_record(path)
    except UserError as error:
        return str(error)
    if identity_hash(record.get("science", {})) != identity_hash(identity):
        return f"{path} is the record of another run; restore or delete it"
    return ""


def status_table(names: Sequence[str], statuses: Sequence[Status], left: Sequence[str]) -> str:
    """One line per run, and a last one with the counts.

    Args:
        names: names of the runs.
        statuses: statuses of the runs.
        left: the time left for each run, in words.
    """
    width = max(map(len, names))
    lines = [f"{'run':<{width}}  {'state':<12}{'epoch':<9}{'left':<12}"]
    for name, status, time_left in zip(names, statuses, left, strict=True):
        epoch = f"{status.epoch}/{status.epochs}"
        line = f"{name:<{width}}  {status.state:<12}{epoch:<9}{time_left:<12}{status.note}"
        lines.append(line.rstrip())
    counts = Counter(status.state for status in statuses)
    shown = (state for state in State if counts[state] or state is not State.QUEUED)
    lines.append(", ".join(f"{counts[state]} {state}" for state in shown))
    return "\n".join(lines)
