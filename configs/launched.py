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


class Unfinished(Exception):
    """A job ended without a result; `args` are its exit code and a message."""


@dataclass(frozen=True)
class EndedJob:
    """A job of a multirun that has ended.

    Attributes:
        overrides: its own and those that all jobs share.
        code: its exit code.
        score: what it returned; None without a result.
    """

    overrides: list[str]
    code: int
    score: float | None


def is_grid(hydra_config: DictConfig) -> bool:
    """Whether the sweeper is Hydra's own, whose jobs are known beforehand."""
    return hydra_config.sweeper._target_.endswith(".BasicSweeper")


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
        return _Watched(launcher, jobs, goes_on=is_grid(config.hydra))

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
    """

    def __init__(self, launcher: Launcher, jobs: list[EndedJob], *, goes_on: bool) -> None:
        self._launcher, self._jobs, self._goes_on = launcher, jobs, goes_on

    def setup(self, **arguments: Any) -> None:
        self._launcher.setup(**arguments)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        returned = self._launcher.launch(job_overrides, initial_job_idx=initial_job_idx)
        for job in returned:
            failed = job.status is JobStatus.FAILED
            # Not the property `return_value`, which prints and raises.
            value = job._return_value
            code, score = (value.args[0], None) if failed else (0, value)
            self._jobs.append(EndedJob(list(job.overrides), code, score))
            if failed and self._goes_on:
                job.status, job.return_value = JobStatus.COMPLETED, None
        return returned
