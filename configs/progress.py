"""How far planned runs are, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from configs.plan import Planned
from configs.schema import TrainConfig
from linearconv.engine.device import device_name, resolve_device
from linearconv.engine.status import State, Status, status_table
from linearconv.engine.timings import Timings, in_words


def progress(planned: Mapping[str, Planned], running: Sequence[str]) -> str:
    """A line about the runs that are being trained, and the others."""
    states = {name: plan.status() for name, plan in planned.items()}
    done = sum(status.state is State.DONE for status in states.values())
    now = (f"{name} epoch {states[name].epoch}/{states[name].epochs}" for name in running)
    return f"{done} of {len(planned)} finished; running: {', '.join(now)}"


def status_text(planned: Sequence[Planned], config: TrainConfig, root: Path) -> str:
    """A table of how far the runs are, and how long what is left takes as far as is known.

    Args:
        planned: the runs.
        config: of one of them.
        root: the folder that train.py runs in.
    """
    device = device_name(resolve_device(config.device))
    statuses = [plan.status() for plan in planned]
    timings = Timings(device, config.runtime.name)
    timings.add_records(root / config.results_dir / "runs")
    for plan, status in zip(planned, statuses, strict=True):
        if status.state is not State.DONE:
            timings.add_checkpoint(plan.places.checkpoints)
    left = [
        _seconds_left(plan, status, timings) for plan, status in zip(planned, statuses, strict=True)
    ]
    known = sum(seconds for seconds in left if seconds is not None)
    words = ["unknown" if s is None else f"~{in_words(s)}" if s else "" for s in left]
    lines = [status_table([plan.name for plan in planned], statuses, words)]
    obstacles = (plan.obstacle() for plan, s in zip(planned, statuses, strict=True) if s.note == "")
    lines += dict.fromkeys(filter(None, obstacles))
    if known:
        lines.append(f"left on {device}, one run at a time: about {in_words(known)}")
    models = (p.run.cell.model for p, s in zip(planned, left, strict=True) if s is None)
    if unknown := Counter(models):
        names = ", ".join(f"{model} ({number})" for model, number in unknown.items())
        lines.append(f"time left unknown, no epoch being timed on {device}: {names}")
    return "\n".join(lines)


def _seconds_left(plan: Planned, status: Status, timings: Timings) -> float | None:
    """Seconds that a run still needs; None: unknown."""
    epochs, seconds = status.epochs - status.epoch, timings.per_epoch(plan.run.science)
    if status.state is State.DONE:
        return 0.0
    return None if seconds is None else epochs * seconds
