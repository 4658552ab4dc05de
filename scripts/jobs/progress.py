"""The progress of planned runs, as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from configs import TrainConfig
from linearconv.engine.device import device_name, resolve_device
from scripts.jobs.plan import Planned
from scripts.jobs.runner import Outcome, Outcomes, Result
from scripts.jobs.status import State, Status, status_table
from scripts.jobs.timings import Timings, in_words


def progress(planned: Mapping[str, Planned], running: Sequence[str]) -> str:
    """One line: the number of finished runs, and the epochs of those that are running."""
    states = {name: plan.status() for name, plan in planned.items()}
    done = sum(status.state is State.DONE for status in states.values())
    now = (f"{name} epoch {states[name].epoch}/{states[name].epochs}" for name in running)
    return f"{done} of {len(planned)} finished; running: {', '.join(now)}"


def status_text(planned: Sequence[Planned], config: TrainConfig, root: Path) -> str:
    """A table of the progress of the runs, and the time left as far as it is known.

    Args:
        planned: the runs.
        config: the config of any of them.
        root: the folder that train.py runs in.
    """
    device = device_name(resolve_device(config.device))
    statuses = [plan.status() for plan in planned]
    timings = Timings(device, config.runtime.name)
    timings.add_records(root / config.results_dir / "runs")
    for plan, status in zip(planned, statuses, strict=True):
        if status.state is not State.DONE:
            timings.add_checkpoint(plan.paths.checkpoints)
    left = [
        _seconds_left(plan, status, timings) for plan, status in zip(planned, statuses, strict=True)
    ]
    known = sum(seconds for seconds in left if seconds is not None)
    words = ["unknown" if s is None else f"~{in_words(s)}" if s else "" for s in left]
    lines = [status_table([plan.name for plan in planned], statuses, words)]
    blocked = (plan.blocked_by() for plan, s in zip(planned, statuses, strict=True) if s.note == "")
    lines += dict.fromkeys(filter(None, blocked))
    if known:
        lines.append(f"time left on {device}, one run at a time: about {in_words(known)}")
    models = (p.run.cell.model for p, s in zip(planned, left, strict=True) if s is None)
    if unknown := Counter(models):
        names = ", ".join(f"{model} ({number})" for model, number in unknown.items())
        lines.append(f"time left unknown, no epoch timed on {device}: {names}")
    return "\n".join(lines)


def _seconds_left(plan: Planned, status: Status, timings: Timings) -> float | None:
    """Seconds that a run still needs; None: unknown."""
    epochs, seconds = status.epochs - status.epoch, timings.per_epoch(plan.run.identity)
    if status.state is State.DONE:
        return 0.0
    return None if seconds is None else epochs * seconds


def summary(planned: Sequence[Planned], results: Outcomes) -> str:
    """The number of runs by outcome, and the messages of the unfinished ones."""
    counts = Counter(result.outcome for result in results.values())
    counts["to do"] = len(planned) - len(results)
    lines = [", ".join(f"{counts[way]} {way}" for way in [*Outcome, "to do"] if counts[way])]
    unfinished: dict[Result, list[str]] = {}
    for plan in planned:
        result = results.get(plan.name)
        if result is not None and result.outcome is not Outcome.FINISHED:
            unfinished.setdefault(result, []).append(plan.name)
    for result, names in unfinished.items():  # a message shared by many runs is printed once
        lines += [f"{result.outcome}: {result.message}", *(f"    {name}" for name in names)]
    return "\n".join(lines)
