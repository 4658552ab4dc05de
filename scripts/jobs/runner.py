"""Run processes in slots: one per slot at a time, failures retried once, all stopped in time."""

from __future__ import annotations

import math
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

POLL_S = 0.2
"""Seconds between polls of the processes."""

PROGRESS_S = 300.0
"""Seconds between progress lines."""

ATTEMPTS = 2
"""Number of times a job is started before it counts as failed."""

MARK = "=="
"""Prefix of log lines that are not output of the process."""


class Outcome(StrEnum):
    """How a job ended in this call."""

    FINISHED = "finished"
    FAILED = "failed"
    ELSEWHERE = "running elsewhere"
    OUT_OF_TIME = "out of time"
    INTERRUPTED = "interrupted"
    SUBMITTED = "submitted"


@dataclass(frozen=True)
class Result:
    """How a job ended, and a message about it."""

    outcome: Outcome
    message: str = ""


Outcomes = dict[str, Result]
"""The result of each job, by name."""


@dataclass(frozen=True)
class Job:
    """One process to run.

    Attributes:
        name: unique among the jobs.
        command: the program and its arguments.
        log: the file that its output is appended to.
        after: name of the job that must finish first; None or unknown: none.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    after: str | None = None


@dataclass(frozen=True)
class Slot:
    """A place for one process at a time, with its arguments and environment.

    Attributes:
        arguments: appended to the command.
        environment: added to this process's environment.
    """

    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Running:
    job: Job
    slot: Slot
    process: subprocess.Popen


class Runner:
    """Runs jobs in slots until all have ended.

    SIGINT, SIGTERM and SIGHUP are forwarded as SIGTERM, and no further job is started; a second
    signal kills the processes.

    Args:
        jobs: in the order to start them.
        slots: one process runs in each at a time.
        judge: returns the result for a job and its exit code.
        time_argument: returns the arguments that make a process stop within a number of seconds.
        deadline: value of `time.monotonic()` by which processes should stop by themselves; none is
            started later.
        settled: results that are already known, for jobs that wait for them.
        overtime: seconds after the deadline at which those still running get SIGTERM.
        progress: returns a line about the running jobs, given their names.
        say: prints a line.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        slots: Sequence[Slot],
        *,
        judge: Callable[[Job, int], Result],
        time_argument: Callable[[float], Sequence[str]],
        settled: Mapping[str, Result] | None = None,
        deadline: float = math.inf,
        overtime: float = 0.0,
        progress: Callable[[Sequence[str]], str] = ", ".join,
        say: Callable[[str], None] = print,
    ) -> None:
        self._queue, self._free = list(jobs), list(slots)
        self.results = dict(settled or {})
        self._names = {job.name for job in jobs} | set(self.results)
        self._attempts = dict.fromkeys(self._names, 0)
        self._failures: Outcomes = {}  # of jobs that will be retried
        self._running: list[_Running] = []
        self._judge, self._time_argument = judge, time_argument
        self._deadline, self._overtime = deadline, overtime
        self._progress, self._say = progress, say
        self._told = time.monotonic()
        self._signals = 0
        self._stopped: Outcome | None = None

    def run(self) -> Outcomes:
        """Run all jobs; returns the results of all jobs by name, including `settled`."""
        with self._counted_signals():
            try:
                while self._queue or self._running:
                    self._collect()
                    self._stop_if_due()
                    self._fill()
                    self._tell()
                    time.sleep(POLL_S)
            finally:  # on an error in the runner, leave no process running
                for running in self._running:
                    running.process.terminate()
                for running in self._running:
                    running.process.wait()
        return self.results

    @contextmanager
    def _counted_signals(self) -> Iterator[None]:
        def count(signum: int, frame: object) -> None:
            self._signals += 1

        names = ("SIGINT", "SIGTERM", "SIGHUP")
        kinds = [getattr(signal, name) for name in names if hasattr(signal, name)]
        # Signals that are ignored (nohup, a shell's background jobs) stay ignored.
        kinds = [kind for kind in kinds if signal.getsignal(kind) is not signal.SIG_IGN]
        before = {kind: signal.signal(kind, count) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _stop_if_due(self) -> None:
        if self._signals > 1:
            for running in self._running:
                running.process.kill()
        if self._stopped is not None:
            return
        if self._signals:
            self._stopped = Outcome.INTERRUPTED
            self._say(
                "interrupted: runs keep their last checkpoints (interrupt again to kill them)"
            )
        elif time.monotonic() > self._deadline + self._overtime:
            self._stopped = Outcome.OUT_OF_TIME
        if self._stopped is not None:
            for running in self._running:
                running.process.terminate()

    def _collect(self) -> None:
        for running in [r for r in self._running if r.process.poll() is not None]:
            self._running.remove(running)
            self._free.append(running.slot)
            result = self._judge(running.job, running.process.returncode)
            if self._stopped is not None and result.outcome is not Outcome.FINISHED:
                told = result.message if result.outcome is not Outcome.FAILED else "stopped"
                result = Result(self._stopped, told)
            with suppress(OSError):  # e.g. a full disk
                mark(running.job.log, result.outcome)
            self._settle(running.job, result)

    def _settle(self, job: Job, result: Result) -> None:
        """Record how a job ended, or queue it again after its first failure."""
        again = result.outcome is Outcome.FAILED and self._attempts[job.name] < ATTEMPTS
        again = again and self._stopped is None
        if again:
            self._queue.append(job)
            self._failures[job.name] = result
        else:
            self.results[job.name] = result
        line = f"{result.outcome} {job.name}: {result.message}"
        if result.outcome is Outcome.FAILED:
            line += f" (log: {job.log})" + ", will be retried" * again
        self._say(line)

    def _fill(self) -> None:
        late = time.monotonic() >= self._deadline
        if self._stopped is not None or late:
            result = Result(self._stopped or Outcome.OUT_OF_TIME, "not started")
            for job in self._queue:
                self.results[job.name] = self._failures.get(job.name, result)
            self._queue.clear()
        while self._free and (job := self._next()) is not None:
            self._start(job, self._free.pop(0))

    def _next(self) -> Job | None:
        """Remove and return the first queued job that need not wait for another."""
        for job in list(self._queue):
            if job.after in self._names and job.after not in self.results:
                continue
            self._queue.remove(job)
            before = self.results.get(job.after)
            if before is None or before.outcome is Outcome.FINISHED:
                return job
            self.results[job.name] = waiting(job.after, before)
        return None

    def _start(self, job: Job, slot: Slot) -> None:
        self._attempts[job.name] += 1
        command = [*job.command, *slot.arguments]
        if self._deadline < math.inf:
            command += self._time_argument(self._deadline - time.monotonic())
        try:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            mark(job.log, time.strftime("%Y-%m-%d %H:%M:%S ") + shlex.join(command))
            with job.log.open("ab") as log:
                process = subprocess.Popen(
                    command,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", **slot.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C in a terminal reaches only the runner
                )
        except OSError as error:
            self._free.append(slot)
            self._settle(job, Result(Outcome.FAILED, str(error)))
            return
        self._running.append(_Running(job, slot, process))
        self._say(f"started {job.name}")

    def _tell(self) -> None:
        if time.monotonic() - self._told >= PROGRESS_S:
            self._told = time.monotonic()
            self._say(self._progress([running.job.name for running in self._running]))


def waiting(after: str, result: Result) -> Result:
    """The result of a job that was not started because the job before it did not finish."""
    return Result(result.outcome, f"not started: {after}, which it starts from, is not finished")


def mark(log: Path, text: str) -> None:
    """Append a line to a process's log, marked as not its output."""
    with log.open("a") as file:
        file.write(f"{MARK} {text}\n")


def last_line(log: Path) -> str:
    """The last line that the last process wrote to this log, or ""."""
    for line in reversed(tail(log)):
        if not line.startswith(MARK):
            return line
        if line.removeprefix(f"{MARK} ") not in set(Outcome):
            break  # the start of that process
    return ""


def last_failed(log: Path) -> bool:
    """Whether the last process with this log failed; False if there is no log."""
    lines = tail(log)
    return bool(lines) and lines[-1] == f"{MARK} {Outcome.FAILED}"


def tail(log: Path, size: int = 8192) -> list[str]:
    """The last non-empty lines of a file, within its last `size` bytes."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - size))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()]
