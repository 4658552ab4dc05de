"""The progress of planned runs, as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from configs import TrainConfig
from linearconv.engine.device import device_name, resolve_device
from linearconv.engine.reporting import in_words
from linearconv.errors import UserError
from scripts.jobs.plan import Planned
from scripts.jobs.runner import Outcome, Outcomes, Result
from scripts.jobs.status import State, Status, status_table
from scripts.jobs.timings import Epoch, Timings, recorded_device

ESTIMATED = "est."
"""Marks a time that no run was measured for."""


def progress(planned: Mapping[str, Planned], running: Sequence[str]) -> str:
    """One line: the number of finished runs, and the epochs of those that are running."""
    states = {name: plan.status() for name, plan in planned.items()}
    done = sum(status.state is State.DONE for status in states.values())
    now = (f"{name} epoch {states[name].epoch}/{states[name].epochs}" for name in running)
    return f"{done} of {len(planned)} finished; running: {', '.join(now)}"


def status_text(
    planned: Sequence[Planned], config: TrainConfig, queued: Mapping[str, str] | None = None
) -> str:
    """A table of the progress of the runs, and the time left as far as it is known.

    Args:
        planned: the runs.
        config: the config of any of them.
        queued: the job of each run that a cluster has in its queue; None without a cluster.
    """
    statuses = [_with_queue(plan.status(), (queued or {}).get(plan.name)) for plan in planned]
    records = Path(config.results_dir, "runs")
    try:
        device = device_name(resolve_device(config.device))
    except UserError as error:  # as on the login node of a cluster
        device = None if queued is None else recorded_device(records, config.device)
        if device is None:
            left, notes = [None] * len(planned), [f"time left unknown: {error}"]
    if device is not None:
        timings = Timings(device, config.runtime.name)
        timings.add_records(records)
        pairs = list(zip(planned, statuses, strict=True))
        for plan, status in pairs:
            if status.state is not State.DONE:
                timings.add_checkpoint(plan.paths.checkpoints)
        left = [_time_left(plan, status, timings) for plan, status in pairs]
        notes = _notes(planned, left, device)
    lines = [status_table([plan.name for plan in planned], statuses, list(map(_words, left)))]
    blocked = (plan.blocked_by() for plan, s in zip(planned, statuses, strict=True) if s.note == "")
    return "\n".join([*lines, *dict.fromkeys(filter(None, blocked)), *notes])


def _with_queue(status: Status, job: str | None) -> Status:
    """The status of a run whose job is in a cluster's queue: an older failure is history."""
    if job is None or status.state in (State.DONE, State.RUNNING):
        return status
    return replace(status, state=State.QUEUED, note=f"job {job}")


def _notes(planned: Sequence[Planned], left: Sequence[Epoch | None], device: str) -> list[str]:
    """The sum of the times left, where estimates come from, and what is not known."""
    notes = []
    if known := sum(each.seconds for each in left if each is not None):
        notes.append(f"time left on {device}, one run at a time: about {in_words(known)}")
    for source in dict.fromkeys(each.source for each in left if each and each.source):
        notes.append(f"{ESTIMATED}: no epoch timed here; steps on {source} (results/benchmarks)")
    models = (p.run.cell.model for p, s in zip(planned, left, strict=True) if s is None)
    if unknown := Counter(models):
        names = ", ".join(f"{model} ({number})" for model, number in unknown.items())
        notes.append(f"time left unknown, no epoch timed on {device}: {names}")
    return notes


def _time_left(plan: Planned, status: Status, timings: Timings) -> Epoch | None:
    """What a run still needs, summed over its epochs; None: unknown."""
    epoch = timings.per_epoch(plan.run.identity)
    if status.state is State.DONE:
        return Epoch(0.0)
    return epoch and replace(epoch, seconds=(status.epochs - status.epoch) * epoch.seconds)


def _words(left: Epoch | None) -> str:
    """The time left as it is shown in the table of runs."""
    if left is None:
        return "unknown"
    mark = f" {ESTIMATED}" if left.source else ""
    return f"~{in_words(left.seconds)}{mark}" if left.seconds else ""


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
