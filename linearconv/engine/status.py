"""How far a run is, as its files tell it."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from linearconv.engine.checkpoint import STALE_S, Checkpoints, describe_holder, read_holder
from linearconv.engine.record import identity_hash, read_record
from linearconv.engine.run import Places
from linearconv.engine.slots import last_failed, last_line
from linearconv.errors import UserError


class State(StrEnum):
    """What can be said of a run."""

    DONE = "done"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    MISSING = "missing"


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        state: see `State`.
        epoch: number of finished epochs.
        epochs: number of epochs that it has in all.
        note: who runs it, or why it failed.
    """

    state: State
    epoch: int
    epochs: int
    note: str = ""


def train_log(places: Places) -> Path:
    """Where the output of a run's process goes that is started for the user."""
    return places.log / "train.log"


def run_status(places: Places, science: dict[str, Any]) -> Status:
    """How far the run with this science config is; changes nothing on disk."""
    epochs = science["recipe"]["epochs"]
    if places.record.exists():
        if problem := _record_problem(places.record, science):
            return Status(State.FAILED, 0, epochs, problem)
        return Status(State.DONE, epochs, epochs)
    saved = Checkpoints(places.checkpoints).epochs()
    epoch = int(saved[-1].stem[6:]) if saved else 0
    holder = live_holder(places.checkpoints / "lock")
    if holder is not None:
        return Status(State.RUNNING, epoch, epochs, holder)
    if last_failed(train_log(places)):
        return Status(State.FAILED, epoch, epochs, last_line(train_log(places)))
    return Status(State.INTERRUPTED if saved else State.MISSING, epoch, epochs)


def _record_problem(path: Path, science: dict[str, Any]) -> str:
    """Why a record does not stand for the run, or ""."""
    try:
        record = read_record(path)
    except UserError as error:
        return str(error)
    if identity_hash(record.get("science", {})) != identity_hash(science):
        return f"{path} is the record of another run; restore or delete it"
    return ""


def live_holder(path: Path) -> str | None:
    """The live process that holds a run's lock file (see `checkpoint.lock`), or None.

    The kernel's lock is tried only where the process that the file names is alive on this host:
    whoever tries it holds it for a moment, and would turn away a run that starts just then.
    """
    holder = read_holder(path)
    if not holder:
        return None
    try:
        if holder["host"] != socket.gethostname():
            return describe_holder(path) if time.time() - path.stat().st_mtime < STALE_S else None
        os.kill(holder["pid"], 0)
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return describe_holder(path)
    except OSError:
        pass
    return None


def status_table(names: Sequence[str], statuses: Sequence[Status], left: Sequence[str]) -> str:
    """One line per run and a last one with the counts.

    Args:
        names: of the runs.
        statuses: of each.
        left: the time that each still needs, in words.
    """
    width = max(map(len, names))
    lines = [f"{'run':<{width}}  {'state':<12}{'epoch':<9}{'left':<12}"]
    for name, status, time_left in zip(names, statuses, left, strict=True):
        epoch = f"{status.epoch}/{status.epochs}"
        line = f"{name:<{width}}  {status.state:<12}{epoch:<9}{time_left:<12}{status.note}"
        lines.append(line.rstrip())
    counts = Counter(status.state for status in statuses)
    lines.append(", ".join(f"{counts[state]} {state}" for state in State))
    return "\n".join(lines)
