"""Training runs as Slurm jobs through submitit, which requeues those that are not done."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.cli import INTERRUPTED, OUT_OF_TIME
from linearconv.engine.checkpoint import Checkpoints
from linearconv.engine.files import atomic_write
from linearconv.engine.lock import STALE_S, live_owner
from linearconv.errors import UserError
from scripts.jobs.plan import Planned, time_argument
from scripts.jobs.runner import Outcome, Outcomes, Result, mark, waiting

REQUEUES = 1000
"""How often a job may hit its time limit; each start trains at least one epoch."""

LEAST_MINUTES = 4
"""Of a job's time limit: submitit's signal comes 90 s before it, and a start takes its time."""

CPUS = 2
"""Of a job whose run is not told how many threads to use."""

STOP_S = 60.0
"""Seconds a process has to exit by itself; submitit's signal comes 90 s before the time limit."""

KILLED_S = 3600.0
"""Seconds in which Slurm ends a job that it has told to terminate."""

RETRY_S = 30.0
"""Seconds between attempts to start a run that another process seems to hold."""


@dataclass
class TrainJob:
    """A Slurm job that trains one run, or continues it.

    It can be pickled and, after a requeue, called again without other state: the progress is in
    the run's checkpoints.

    Attributes:
        command: the program and its arguments; exits with 75 if its own time limit stopped it or
            another process holds the run, with 130 if it was terminated.
        cwd: the folder to run in.
        log: the file that its output is appended to.
        record: the file that exists once the run is finished.
        lock: the run's lock, which tells the two apart; the checkpoints are beside it.
        minutes: the job's time limit.
    """

    command: tuple[str, ...]
    cwd: Path
    log: Path
    record: Path
    lock: Path
    minutes: float
    _process: subprocess.Popen | None = field(default=None, init=False, repr=False)
    _first: list[Path] = field(default_factory=list, init=False, repr=False)
    _started: float = field(default=0.0, init=False, repr=False)

    def __call__(self) -> None:
        """Train to the end.

        Raises:
            RuntimeError: the process failed or was terminated, another one holds the run, or no
                epoch was finished within the time limit.
            SystemExit: out of time; the job has been requeued.
        """
        self._first, self._started = self._saved(), time.monotonic()
        # If a run's host died, the run counts as held until its lock is stale (see `engine.lock`).
        give_up = time.monotonic() + STALE_S + 2 * RETRY_S
        while True:
            code = self._run()
            if self.record.exists():
                return
            if code == INTERRUPTED:
                # Slurm requeues what it preempts only if that still runs when the grace time is
                # over; a cancelled job it kills.
                time.sleep(KILLED_S)
                raise RuntimeError(f"terminated: see {self.log}")
            if code != OUT_OF_TIME:
                mark(self.log, Outcome.FAILED)
                raise RuntimeError(f"exit code {code}: see {self.log}")
            owner = live_owner(self.lock)
            if owner is None:
                signal.raise_signal(_requeue_signal())  # submitit's handler calls `checkpoint`
            if time.monotonic() > give_up:
                raise RuntimeError(f"{owner} holds the run: see {self.log}")
            time.sleep(RETRY_S)

    def checkpoint(self) -> Any:
        """Called by submitit before it requeues the job; returns the same job to requeue."""
        from submitit.helpers import DelayedSubmission

        self._stop()  # now, so that the run is free when the job starts on another host
        if self._saved() == self._first and self._used_its_time() and not live_owner(self.lock):
            mark(self.log, Outcome.FAILED)
            raise RuntimeError(
                "no epoch was finished within the time limit: raise --slurm-minutes; see "
                f"{self.log}"
            )
        return DelayedSubmission(dataclasses.replace(self))

    def _used_its_time(self) -> bool:
        """Whether it is the time limit that ends the job, and not a preemption soon after."""
        return time.monotonic() - self._started > 60 * self.minutes / 2

    def _saved(self) -> list[Path]:
        """The checkpoints of the epochs that are finished."""
        epochs = Checkpoints(self.lock.parent).epochs()
        return [path for path in epochs if path.stem != "epoch-0000"]

    def _run(self) -> int:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            # In its own session: Slurm's signals reach this process, which forwards those that the
            # run handles.
            self._process = subprocess.Popen(
                self.command,
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        signal.signal(signal.SIGTERM, lambda signum, frame: self._process.terminate())
        try:
            # Not wait(): during it, poll() in `checkpoint`, a signal handler, would see no exit.
            while (code := self._process.poll()) is None:
                time.sleep(0.2)
            return code
        finally:
            self._stop()

    def _stop(self) -> None:
        """Terminate the process; its last checkpoint is kept."""
        process, give_up = self._process, time.monotonic() + STOP_S
        if process is None or process.poll() is not None:
            return
        process.terminate()
        while process.poll() is None and time.monotonic() < give_up:
            time.sleep(0.1)
        process.kill()


def _requeue_signal() -> signal.Signals:
    """The signal on which submitit requeues; the environment variable is submitit's."""
    return signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]


class Cluster:
    """Submits jobs.

    Args:
        folder: for submitit's files and the jobs' output; visible to all hosts.
        minutes: time limit of a job, after which it is requeued.
        cpus: of a job.
        parallel: how many jobs of an array may run at a time; None: submitit's default, 256.
        partition: the cluster's partition, or None for its default.
        options: further sbatch options, without the dashes; True for one without a value.
        name: "slurm", or submitit's "local", which runs jobs on this machine at once.

    Raises:
        UserError: submitit or Slurm is not installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        minutes: int,
        cpus: int = CPUS,
        parallel: int | None = None,
        partition: str | None = None,
        options: Mapping[str, str | bool] | None = None,
        name: str = "slurm",
    ) -> None:
        try:
            import submitit
        except ImportError:
            raise UserError(
                "submitting to Slurm needs submitit: pip install -e '.[slurm]'"
            ) from None
        missing = [tool for tool in ("sbatch", "srun", "squeue") if shutil.which(tool) is None]
        if name == "slurm" and missing:
            raise UserError(
                f"{missing[0]} not found: use --slurm on the login node of a Slurm cluster; "
                "without it, the runs are trained on this machine"
            )
        self._name, self.minutes = name, minutes
        self._executor = submitit.AutoExecutor(
            folder, cluster=name, **{f"{name}_max_num_timeout": REQUEUES}
        )
        self._parameters = {
            "name": "linearconv",
            "timeout_min": minutes,
            "cpus_per_task": cpus,
            "slurm_array_parallelism": parallel,
            "slurm_partition": partition,
        }
        self._options = {"requeue": True, **(options or {})}

    def submit(self, jobs: Sequence[TrainJob], *, after: str | None = None) -> list[str]:
        """Submit jobs as one array; returns their ids.

        Args:
            jobs: the jobs to run.
            after: id of a job that must finish first; if it fails, these are cancelled.

        Raises:
            UserError: Slurm rejected them; the message is Slurm's.
        """
        from submitit.core.utils import FailedJobError

        options = dict(self._options)
        if after is not None:
            options |= {"dependency": f"afterok:{after}", "kill-on-invalid-dep": "yes"}
        self._executor.update_parameters(**self._parameters, slurm_additional_parameters=options)
        try:
            return [job.job_id for job in self._executor.submit_array(jobs)]
        except FailedJobError as error:
            raise UserError(f"Slurm rejected the jobs: {error}") from None

    def queue(self) -> set[str]:
        """The ids of this user's pending and running jobs.

        Raises:
            UserError: squeue failed.
        """
        if self._name != "slurm":
            return set()
        return queue()


def queue() -> set[str]:
    """The ids of this user's pending and running jobs on the cluster.

    Raises:
        UserError: squeue is missing or failed.
    """
    # By number: in a container a user may have no name.
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("squeue not found: use --slurm on a Slurm cluster") from None
    if done.returncode != 0:
        raise UserError(f"squeue failed: {done.stderr.strip()}")
    return set(done.stdout.split())


def queued(planned: Sequence[Planned]) -> dict[str, str]:
    """The job of each run that is in the queue, by the run's name.

    Raises:
        UserError: as `queue`.
    """
    ids = queue()
    jobs = {plan.name: _last_job(plan) for plan in planned}
    return {name: job for name, job in jobs.items() if job in ids}


def submit(cluster: Cluster, missing: Sequence[Planned], results: Outcomes) -> Outcomes:
    """Submit the missing runs, except those that are still queued from an earlier call.

    Args:
        cluster: the cluster to submit to.
        missing: the runs, each baseline before the runs that start from it.
        results: results of all other runs.

    Returns:
        The results of all runs, as far as known.
    """
    results = dict(results)
    # A run that stops by itself, at an epoch end, loses no work to the time limit.
    limit = time_argument(60 * max(cluster.minutes / 2, cluster.minutes - 5))
    waiting_ids = cluster.queue()
    ids = {plan.name: job_id for plan in missing if (job_id := _last_job(plan)) in waiting_ids}
    for name, job_id in ids.items():
        results[name] = Result(Outcome.SUBMITTED, f"job {job_id} is already queued")
    for plans in _stages([plan for plan in missing if plan.name not in ids]):
        after = plans[0].baseline and plans[0].baseline.name
        before = results.get(after)
        if before is not None and before.outcome not in (Outcome.FINISHED, Outcome.SUBMITTED):
            results |= {plan.name: waiting(after, before) for plan in plans}
            continue
        jobs = [
            TrainJob(
                (*job.command, *limit),
                Path.cwd(),
                *(path.absolute() for path in (job.log, plan.paths.record, plan.paths.lock)),
                cluster.minutes,
            )
            for plan, job in ((plan, plan.job()) for plan in plans)
        ]
        try:
            submitted = cluster.submit(jobs, after=ids.get(after))
        except UserError as error:
            results |= {plan.name: Result(Outcome.FAILED, str(error)) for plan in plans}
            continue
        for plan, job_id in zip(plans, submitted, strict=True):
            ids[plan.name] = job_id
            results[plan.name] = Result(Outcome.SUBMITTED, f"job {job_id}, log {plan.job().log}")
            with atomic_write(_job_file(plan)) as file:
                file.write(job_id.encode())
    return results


def _stages(plans: Sequence[Planned]) -> list[list[Planned]]:
    """First all runs without a baseline, as one array; then each run with one by itself."""
    first = [plan for plan in plans if plan.baseline is None]
    later = [[plan] for plan in plans if plan.baseline is not None]
    return [first, *later] if first else later


def _job_file(plan: Planned) -> Path:
    """The file with the id of the last job that was submitted for a run."""
    return plan.paths.log / "slurm-job"


def _last_job(plan: Planned) -> str | None:
    path = _job_file(plan)
    return path.read_text().strip() if path.exists() else None
