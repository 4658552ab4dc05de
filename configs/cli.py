"""A wrapper around `hydra.main`: messages instead of tracebacks, and meaningful exit codes.

0: done (or already done). 1: a run failed. 2: user error. 75: not done yet, since a time limit
stopped the run or another process holds it; run again to continue. 130: interrupted, run
again to continue.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, NoReturn

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
from configs.groups import CONFIG_DIR, group_names
from configs.launched import Jobs, Unfinished, is_grid, launched_jobs
from configs.schema import EvalConfig, TrainConfig
from linearconv.errors import UserError

FAILED, MISTAKE, OUT_OF_TIME, INTERRUPTED = 1, 2, 75, 130


class Score(NamedTuple):
    """What a sweeper can maximise: an accuracy in percent, and its name in the record."""

    name: str
    percent: float


Job = Callable[[Any, list[str]], Score | None]
"""Takes a config and its overrides and runs it; returns its score, if it has one.

It raises `Unfinished`, `UserError` or any other exception if there is no result.
"""


def run_main(config_name: str, job: Job) -> NoReturn:
    """Run `job` for the config of the command line, or for each config of a multirun, and exit.

    In a multirun a failed job does not stop the others; all failures are listed at the end. A
    sweeper that chooses its jobs by their scores decides itself what a failure means.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra propagate exceptions
    signal.signal(signal.SIGTERM, _interrupt)
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(usage(config_name))
        sys.exit(0)
    main = hydra.main(
        config_path=str(CONFIG_DIR), config_name=config_name, version_base=VERSION_BASE
    )(partial(_task, job))
    try:
        with user_errors(), launched_jobs() as jobs:
            main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(MISTAKE)
    except Unfinished:  # from a sweeper that stops at a failure, which is in the list
        pass
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(_exit_code(jobs))


def _task(job: Job, composed: DictConfig) -> float | None:
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
    if score is None:
        return None
    if hydra_config.mode is RunMode.MULTIRUN and not is_grid(hydra_config):
        print(f"score       {score.name} = {score.percent:.2f} %", flush=True)
    return score.percent


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
    except Exception:
        raise Unfinished(FAILED, traceback.format_exc().rstrip()) from None


def _interrupt(signum: int, frame: Any) -> NoReturn:
    """Handle SIGTERM like Ctrl-C."""
    raise KeyboardInterrupt


def usage(config_name: str) -> str:
    """The usage of an entry point, with the choices of each config group."""
    lines = [f"python {config_name}.py KEY=VALUE ...   (-m for a sweep, --cfg job for all keys)"]
    if config_name == "train":
        for group in ("model", "variant", "dataset", "recipe", "runtime"):
            choices = group_names(group)
            lines.append(f"  {group}= {' '.join(choices)}")
        schema = TrainConfig
    else:
        schema = EvalConfig
    lines.append((schema.__doc__ or "").strip())
    return "\n".join(lines)


def _exit_code(jobs: Jobs) -> int:
    """List the jobs that did not finish; returns the exit code for all."""
    bad = [(overrides, code) for overrides, code in jobs if code != 0]
    if bad:
        print(f"{len(bad)} of {len(jobs)} runs did not finish:", file=sys.stderr)
    for overrides, code in bad:
        print(f"  exit code {code}: {' '.join(overrides)}", file=sys.stderr)
    codes = {code for _, code in bad}
    return codes.pop() if len(codes) == 1 else (FAILED if codes else 0)


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
                check_ready(compose(overrides, config_name))
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
