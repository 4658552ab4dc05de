"""A wrapper around `hydra.main`: messages instead of tracebacks, and meaningful exit codes.

0: done (or already done). 1: a run failed. 2: user error. 75: not done yet, since a time limit
stopped the run or another process holds it; run again to continue. 130: interrupted, run
again to continue.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from configs.checks import check, check_ready
from configs.compose import VERSION_BASE, compose, to_config, user_errors
from configs.groups import CONFIG_DIR
from configs.launched import (
    FAILED,
    INTERRUPTED,
    MISTAKE,
    OUT_OF_TIME,
    EndedJob,
    Unfinished,
    is_grid,
    is_here,
    launched_jobs,
)
from configs.usage import check_keys, usage
from linearconv.errors import UserError
from linearconv.table import aligned


class Score(float):
    """What a sweeper can maximise: an accuracy in percent.

    Attributes:
        name: its key in the record.
        run_id: whose it is.
    """

    def __new__(cls, percent: float, name: str, run_id: str) -> Score:
        """An accuracy with its key in the record of the run `run_id`."""
        score = super().__new__(cls, percent)
        score.name, score.run_id = name, run_id
        return score

    def __getnewargs__(self) -> tuple[float, str, str]:
        return float(self), self.name, self.run_id  # launchers pickle it


Job = Callable[[Any, list[str]], Score | None]
"""Takes a config and its overrides and runs it; returns its score, if it has one.

It raises `Unfinished`, `UserError` or any other exception if there is no result.
"""


def run_main(config_name: str, job: Job) -> NoReturn:
    """Run `job` for the config of the command line, or for each config of a multirun, and exit.

    In a multirun a failed job does not stop the others; all failures are listed at the end. A
    sweeper that chooses its jobs by their scores decides itself what a failure means.
    """
    printable()
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_Stderr()])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra propagate exceptions
    _pickle_by_name(job)
    signal.signal(signal.SIGTERM, _interrupt)
    if {"-h", "--help"} & set(sys.argv[1:]):
        exit_now(0, usage(config_name))
    main = hydra.main(
        config_path=str(CONFIG_DIR), config_name=config_name, version_base=VERSION_BASE
    )(partial(_task, job))
    try:
        check_keys(sys.argv[1:], config_name)
        with user_errors(), launched_jobs() as jobs:
            main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(MISTAKE)
    except OSError as error:  # Hydra's own: a job's are in the list
        what = error.filename or "a file"  # without a name if a disk is full
        print(f"{what} cannot be written to: {error.strerror}", file=sys.stderr)
        sys.exit(MISTAKE)
    except Unfinished:  # from a sweeper that stops at a failure, which is in the list
        pass
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    exit_now(_exit_code(jobs))


def printable() -> None:
    """Make all names printable: what the terminal's encoding lacks is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def exit_now(code: Any, *lines: str) -> NoReturn:
    """Print lines and exit, also if nobody reads the output any more, as in `| head`."""
    try:
        print(*lines, sep="\n", end="\n" * bool(lines), flush=True)
    except BrokenPipeError:  # the interpreter would flush again, and print a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


class _Stderr(logging.StreamHandler):
    """Writes to what sys.stderr is at the time: a progress bar puts lines above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        self.setStream(sys.stderr)
        super().emit(record)


def _pickle_by_name(job: Job) -> None:
    """Let launchers pickle a script's function as one of the module of that name.

    A function of `__main__` they pickle with all that it refers to, such as this process's clock
    and thread count; its module a worker imports by itself.
    """
    if job.__module__ == "__main__":
        script = sys.modules["__main__"]
        job.__module__ = Path(script.__file__).stem
        sys.modules[job.__module__] = script


def _task(job: Job, composed: DictConfig) -> Score | None:
    """What Hydra calls for each job, in the launcher's process; returns what a sweeper sees."""
    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    try:
        score = _run_job(job, composed, overrides)
    except Unfinished as end:
        code, message = end.args
        print(message, file=sys.stderr, flush=True)
        if hydra_config.mode is RunMode.RUN:
            sys.exit(code)  # an exception would make Hydra add a line of its own
        raise
    if score is not None and hydra_config.mode is RunMode.MULTIRUN and not is_grid(hydra_config):
        print(f"score       {score.name} = {score:.2f} %", flush=True)
    return score


def _run_job(job: Job, composed: DictConfig, overrides: list[str]) -> Score | None:
    """Check and run a job; every way to fail is an `Unfinished`."""
    try:
        config = to_config(composed)
        check(config)
        check_ready(config)
        return job(config, overrides)
    except Unfinished:
        raise
    except UserError as error:
        raise Unfinished(MISTAKE, str(error)) from None
    except Exception as error:
        if type(error).__name__ == "UncompletedJobError":  # submitit's, at the time limit
            message = f"{error} Run the same command again, which continues"
            raise Unfinished(OUT_OF_TIME, message) from None
        raise Unfinished(FAILED, traceback.format_exc().rstrip()) from None


def _interrupt(signum: int, frame: Any) -> NoReturn:
    """Handle SIGTERM like Ctrl-C."""
    raise KeyboardInterrupt


def _exit_code(jobs: Sequence[EndedJob]) -> int:
    """List the jobs of a sweep, what did not finish on stderr; returns the exit code for all."""
    if len(jobs) > 1 and any(job.score is not None for job in jobs):
        print(sweep_table(jobs))
    bad = [job for job in jobs if job.code != 0]
    if bad:
        print(f"{len(bad)} of {len(jobs)} runs did not finish:", file=sys.stderr)
    for job in bad:
        why = f" ({job.why})" if job.why else ""
        print(f"  exit code {job.code}{why}: {' '.join(job.overrides)}", file=sys.stderr)
    codes = {job.code for job in bad}
    return codes.pop() if len(codes) == 1 else (FAILED if codes else 0)


def sweep_table(jobs: Sequence[EndedJob]) -> str:
    """The jobs of a sweep with the keys in which they differ, their scores and run_ids."""
    settings = [dict(text.partition("=")[::2] for text in job.overrides) for job in jobs]
    keys = list(dict.fromkeys(key for each in settings for key in each))
    differing = [key for key in keys if len({each.get(key) for each in settings}) > 1]
    names = list(dict.fromkeys(job.score.name for job in jobs if isinstance(job.score, Score)))
    rows = [[*differing, *names, "run"]]
    for job, each in zip(jobs, settings, strict=True):
        score = job.score if isinstance(job.score, Score) else None
        accuracies = [
            f"{score:.2f}" if score is not None and score.name == name else "" for name in names
        ]
        run = f"exit code {job.code}" if score is None else score.run_id
        rows.append([*(each.get(key, "") for key in differing), *accuracies, run])
    return aligned(rows, left=[*range(len(differing)), len(rows[0]) - 1])


class CheckEveryJob(Callback):
    """Composes and checks every job of a multirun before the first one starts."""

    def on_multirun_start(self, config: DictConfig, config_name: str, **kwargs: Any) -> None:
        """Exit with one message that lists every job that cannot run."""
        jobs, mistakes = [], []
        try:
            if is_grid(config.hydra):
                jobs = _jobs(list(config.hydra.overrides.task))
            else:  # it chooses its jobs at run time; each is checked before it trains
                _check_direction(config.hydra.sweeper)
        except UserError as error:
            mistakes = [str(error)]
        for overrides in jobs:
            try:
                check_ready(compose(overrides, config_name), device=is_here(config.hydra))
            except UserError as error:
                mistakes.append(f"{' '.join(overrides)}: {error}")
        if mistakes:
            print("nothing was started:", *mistakes, sep="\n", file=sys.stderr)
            sys.exit(MISTAKE)  # Hydra swallows all other exceptions of a callback


def _check_direction(sweeper: DictConfig) -> None:
    """Raise `UserError` if Optuna would look for the worst network, as it does by default."""
    named = sweeper.get("direction", "maximize")
    if getattr(named, "name", named) != "maximize":
        raise UserError(
            "a run's score is an accuracy: expected hydra.sweeper.direction=maximize, "
            f"got {getattr(named, 'name', named)}"
        )


def _jobs(overrides: list[str]) -> list[list[str]]:
    """The overrides of each job of a sweep, expanded as Hydra's basic sweeper does."""
    hydra_app = GlobalHydra.instance()
    loader = hydra_app.config_loader() if hydra_app.is_initialized() else None  # for glob(*)
    with user_errors():
        parsed = OverridesParser.create(loader).parse_overrides(overrides)
        (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        return jobs
