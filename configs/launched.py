"""How the jobs of a multirun ended, whatever launcher ran them: Hydra tells only the sweeper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from linearconv.errors import UserError

FAILED, MISTAKE, OUT_OF_TIME, INTERRUPTED = 1, 2, 75, 130
"""Exit codes; see `configs.cli`."""

CLUSTER_STATES = {
    "TIMEOUT": OUT_OF_TIME,
    "PREEMPTED": OUT_OF_TIME,
    "NODE_FAIL": OUT_OF_TIME,
    "BOOT_FAIL": OUT_OF_TIME,
    "CANCELLED": INTERRUPTED,
}
"""The exit code for a job that a cluster has ended in this state; others have failed."""


class Unfinished(Exception):
    """A job ended without a result; `args` are its exit code and a message."""


@dataclass(frozen=True)
class EndedJob:
    """A job of a multirun that has ended.

    Attributes:
        overrides: its own and those that all jobs share.
        code: its exit code.
        score: what it returned; None without a result.
        why: it has no result, if a job elsewhere has none.
    """

    overrides: list[str]
    code: int
    score: float | None
    why: str = ""


def is_grid(hydra_config: DictConfig) -> bool:
    """Whether the sweeper is Hydra's own, whose jobs are known beforehand."""
    return hydra_config.sweeper._target_.endswith(".BasicSweeper")


def is_here(hydra_config: DictConfig) -> bool:
    """Whether the launcher runs the jobs on this machine, and not on a cluster's hosts."""
    kind = hydra_config.launcher._target_.rpartition(".")[2]
    return kind in ("BasicLauncher", "JoblibLauncher", "LocalLauncher")


@contextmanager
def launched_jobs() -> Iterator[list[EndedJob]]:
    """The jobs that Hydra launches meanwhile, in this process or in others."""
    jobs: list[EndedJob] = []
    original = Plugins.instantiate_launcher

    def instantiate(
        plugins: Plugins,
        hydra_context: HydraContext,
        task_function: TaskFunction,
        config: DictConfig,
    ) -> Launcher:
        launcher = original(plugins, hydra_context, task_function, config)
        return _Watched(launcher, jobs, goes_on=is_grid(config.hydra), here=is_here(config.hydra))

    Plugins.instantiate_launcher = instantiate  # every sweeper gets its launcher here
    try:
        yield jobs
    finally:
        Plugins.instantiate_launcher = original


class _Watched(Launcher):
    """A launcher that keeps how its jobs ended.

    Args:
        launcher: runs the jobs.
        jobs: each job is appended to it.
        goes_on: hide failures from the sweeper, which else would start no further batch.
        here: whether the jobs run on this machine, where they have said why they ended.
    """

    def __init__(
        self, launcher: Launcher, jobs: list[EndedJob], *, goes_on: bool, here: bool
    ) -> None:
        self._launcher, self._jobs = launcher, jobs
        self._goes_on, self._here = goes_on, here

    def setup(self, **arguments: Any) -> None:
        self._launcher.setup(**arguments)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        with _ended_jobs_are_results():
            returned = self._launcher.launch(job_overrides, initial_job_idx=initial_job_idx)
        for job, overrides in zip(returned, job_overrides, strict=True):
            job.overrides = job.overrides or list(overrides)  # of a job that was ended
            failed = job.status is JobStatus.FAILED
            # Not the property `return_value`, which prints and raises.
            value = job._return_value
            code, score = (value.args[0], None) if failed else (0, value)
            why = last_line(value.args[1]) if failed and not self._here else ""
            self._jobs.append(EndedJob(list(job.overrides), code, score, why))
            if failed and self._goes_on:
                job.status, job.return_value = JobStatus.COMPLETED, None
        return returned


@contextmanager
def _ended_jobs_are_results() -> Iterator[None]:
    """With submitit: what ends one job of a cluster leaves the results of the others.

    Raises:
        UserError: the cluster has rejected the jobs; the message is its own.
    """
    try:
        from submitit.core.core import Job
        from submitit.core.utils import FailedJobError, UncompletedJobError
    except ImportError:  # no launcher can use it
        yield
        return
    original = Job.results

    def results(job: Job) -> list[JobReturn]:
        try:
            return original(job)
        except UncompletedJobError as error:
            state = job.state.partition(" ")[0]  # CANCELLED by 1000
            code = CLUSTER_STATES.get(state, FAILED)
            why = f"job {job.job_id}: {state}"
            if code == FAILED:
                why += f", {last_line(error)}"
            ended = JobReturn(status=JobStatus.FAILED)
            ended.return_value = Unfinished(code, why)
            return [ended]

    Job.results = results
    try:
        yield
    except FailedJobError as error:  # of sbatch
        raise UserError(f"the cluster rejected the jobs: {last_line(error)}") from None
    finally:
        Job.results = original


def last_line(message: object) -> str:
    """The last line of a message, which may quote a traceback."""
    lines = str(message).strip().splitlines()
    return lines[-1].strip() if lines else ""
