"""Training planned runs on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from signal import strsignal

from configs.cli import INTERRUPTED, OUT_OF_TIME
from linearconv.engine.record import read_record
from scripts.jobs.plan import Planned, time_argument
from scripts.jobs.progress import progress
from scripts.jobs.runner import Outcome, Outcomes, Result, Runner, Slot, last_line
from scripts.jobs.status import State, train_log


def train(
    planned: Sequence[Planned],
    missing: Sequence[Planned],
    results: Outcomes,
    slots: Sequence[Slot],
    *,
    deadline: float,
    overtime: float,
) -> Outcomes:
    """Train the missing runs on this machine.

    Args:
        planned: all runs.
        missing: those to train.
        results: results of the other runs.
        slots: each trains one run at a time.
        deadline: value of `time.monotonic()` by which the runs should stop by themselves.
        overtime: seconds after the deadline at which they are terminated.

    Returns:
        The result of each planned run, by name.
    """
    by_name = {plan.name: plan for plan in planned}
    runner = Runner(
        [plan.job() for plan in missing],
        slots,
        settled=results,
        judge=lambda job, code: judge(by_name[job.name], code),
        time_argument=time_argument,
        deadline=deadline,
        overtime=overtime,
        progress=partial(progress, by_name),
        say=_say,
    )
    results = runner.run()
    for name, result in results.items():
        if result.outcome is Outcome.ELSEWHERE and by_name[name].status().state is State.DONE:
            results[name] = Result(Outcome.FINISHED, "elsewhere")
    return results


def _say(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, flush=True)


def judge(plan: Planned, code: int) -> Result:
    """How a run's process ended, from its exit code and the run's files."""
    status = plan.status()
    if status.state is State.DONE:
        record = read_record(plan.paths.record)
        return Result(Outcome.FINISHED, f"best test accuracy {record['test_acc_best']:.2f} %")
    if code == OUT_OF_TIME and status.state is State.RUNNING:
        return Result(Outcome.ELSEWHERE, status.note)
    if code == OUT_OF_TIME:
        return Result(Outcome.OUT_OF_TIME, f"after epoch {status.epoch} of {status.epochs}")
    if code == INTERRUPTED:
        return Result(Outcome.INTERRUPTED, f"after epoch {status.epoch} of {status.epochs}")
    how = f"killed by signal {-code} ({strsignal(-code)})" if code < 0 else f"exit code {code}"
    return Result(Outcome.FAILED, f"{how}: {last_line(train_log(plan.paths)) or 'no output'}")
