"""Runs as jobs of a Slurm cluster, through submitit, which requeues those that are not done."""

from __future__ import annotations

import dataclasses
import getpass
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linearconv.engine.checkpoint import STALE_S
from linearconv.engine.slots import Outcome, mark
from linearconv.errors import UserError

REQUEUES = 1000
"""Time limits that a job may run into; each start trains an epoch at least."""

STOP_S = 60.0
"""Seconds that a process has for ending by itself; submitit's signal comes 90 s before the end."""

RETRY_S = 30.0
"""Seconds between two starts of a run that another process seems to hold."""


@dataclass
class TrainJob:
    """What a job of the cluster does: train one run, or go on with it.

    It can be pickled, and called again after a requeue with nothing but itself: what has been
    trained lies in the run's checkpoints.

    Attributes:
        command: the program and its arguments; exits with 75 where its own time limit stopped it.
        cwd: the folder to run in.
        log: the file that its output is appended to.
        record: the file that is there when the run is finished.
    """

    command: tuple[str, ...]
    cwd: Path
    log: Path
    record: Path
    _process: subprocess.Popen | None = field(default=None, init=False, repr=False)

    def __call__(self) -> None:
        """Train to the end.

        Raises:
            RuntimeError: the process failed, or another one holds the run.
            SystemExit: out of time; the job has been requeued.
        """
        # A run whose host died counts as held until its lock is stale (see `checkpoint.lock`).
        give_up = time.monotonic() + STALE_S + 2 * RETRY_S
        while True:
            code = self._run()
            if self.record.exists():
                return
            if code == os.EX_TEMPFAIL:
                signal.raise_signal(_requeue_signal())  # submitit's handler calls `checkpoint`
            if code != 0:
                mark(self.log, Outcome.FAILED)
                raise RuntimeError(f"exit code {code}: see {self.log}")
            if time.monotonic() > give_up:
                raise RuntimeError(f"another process holds the run: see {self.log}")
            time.sleep(RETRY_S)

    def checkpoint(self) -> Any:
        """Called by submitit before it requeues the job: what to do then, the same again."""
        from submitit.helpers import DelayedSubmission

        self._stop()  # now, so that the run is free when the job starts on another host
        return DelayedSubmission(dataclasses.replace(self))

    def _run(self) -> int:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            # In a session of its own: the cluster's signals come to this process, which passes
            # on what the run understands.
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
            # Not wait(): `checkpoint` polls too, within a signal handler, and would wait for it.
            while (code := self._process.poll()) is None:
                time.sleep(0.2)
            return code
        finally:
            self._stop()

    def _stop(self) -> None:
        """End the process: it keeps its last checkpoint."""
        process, give_up = self._process, time.monotonic() + STOP_S
        if process is None or process.poll() is not None:
            return
        process.terminate()
        while process.poll() is None and time.monotonic() < give_up:
            time.sleep(0.1)
        process.kill()


def _requeue_signal() -> signal.Signals:
    """The signal at which submitit requeues; the variable is submitit's own."""
    return signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]


class Cluster:
    """Submits jobs.

    Args:
        folder: for submitit's files and the jobs' output; seen by all hosts.
        minutes: time limit of a job, after which it is requeued.
        parallel: how many jobs of an array may run at a time; None: submitit's 256.
        partition: the cluster's partition, or None for its default.
        options: further options of sbatch, without the dashes; True for one without a value.
        name: "slurm", or submitit's "local", which runs jobs here at once.

    Raises:
        UserError: submitit is not installed, or there is no Slurm here.
    """

    def __init__(
        self,
        folder: Path,
        *,
        minutes: int,
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
                f"{missing[0]} is not there: --slurm is for the login node of a Slurm cluster; "
                "without it, the runs are trained on this machine"
            )
        self._name = name
        self._executor = submitit.AutoExecutor(
            folder, cluster=name, **{f"{name}_max_num_timeout": REQUEUES}
        )
        self._parameters = {
            "name": "linearconv",
            "timeout_min": minutes,
            "slurm_array_parallelism": parallel,
            "slurm_partition": partition,
        }
        self._options = {"requeue": True, **(options or {})}

    def submit(self, jobs: Sequence[TrainJob], *, after: str | None = None) -> list[str]:
        """Submit jobs as one array; returns their ids.

        Args:
            jobs: what to run.
            after: id of a job that must have finished before; if it fails, these are dropped.

        Raises:
            UserError: the cluster refused them; the message is its own.
        """
        from submitit.core.utils import FailedJobError

        options = dict(self._options)
        if after is not None:
            options |= {"dependency": f"afterok:{after}", "kill-on-invalid-dep": "yes"}
        self._executor.update_parameters(**self._parameters, slurm_additional_parameters=options)
        try:
            return [job.job_id for job in self._executor.submit_array(jobs)]
        except FailedJobError as error:
            raise UserError(f"the cluster refused the jobs: {error}") from None

    def queue(self) -> set[str]:
        """The ids of this user's jobs that wait or run.

        Raises:
            UserError: the cluster does not tell.
        """
        if self._name != "slurm":
            return set()
        command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={getpass.getuser()}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise UserError(f"squeue does not tell what is queued: {done.stderr.strip()}")
        return set(done.stdout.split())
