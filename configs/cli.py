"""A wrapper around `hydra.main`: messages instead of tracebacks, and meaningful exit codes.

0: done (or already done). 1: a run failed. 2: user error. 75: stopped by a time limit, run again
to continue. 130: interrupted, run again to continue.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from configs.checks import check, check_ready
from configs.compose import VERSION_BASE, compose, to_config, user_errors
from configs.groups import CONFIG_DIR, group_names
from configs.schema import EvalConfig, TrainConfig
from linearconv.errors import UserError

FAILED, MISTAKE, OUT_OF_TIME, INTERRUPTED = 1, 2, 75, 130

Job = Callable[[Any, list[str]], int]
"""Takes a config and its overrides, runs it and returns an exit code."""


def run_main(config_name: str, job: Job) -> NoReturn:
    """Run `job` for the config of the command line, or for each config of a multirun, and exit.

    In a multirun a failed job does not stop the others; all failures are listed at the end.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra propagate exceptions
    signal.signal(signal.SIGTERM, _interrupt)
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(usage(config_name))
        sys.exit(0)
    outcomes: list[tuple[list[str], int]] = []

    def task(composed: DictConfig) -> int:
        overrides = list(HydraConfig.get().overrides.task)
        code = _run_job(job, composed, overrides)
        outcomes.append((overrides, code))
        if code != 0 and "SUBMITIT_EXECUTOR" in os.environ:
            raise JobFailed(code, overrides)  # the launcher propagates only exceptions
        return code

    main = hydra.main(
        config_path=str(CONFIG_DIR), config_name=config_name, version_base=VERSION_BASE
    )(task)
    try:
        with user_errors():
            main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(MISTAKE)
    except JobFailed as failure:
        code, overrides = failure.args
        print(f"exit code {code}: {' '.join(overrides)}", file=sys.stderr)
        sys.exit(code)
    except KeyboardInterrupt:
        _exit_code(outcomes)
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(_exit_code(outcomes))


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


def _run_job(job: Job, composed: DictConfig, overrides: list[str]) -> int:
    try:
        config = to_config(composed)
        check(config)
        check_ready(config)
        return job(config, overrides)
    except UserError as error:
        print(error, file=sys.stderr)
        return MISTAKE
    except Exception:
        traceback.print_exc()
        return FAILED


def _exit_code(outcomes: list[tuple[list[str], int]]) -> int:
    bad = [(overrides, code) for overrides, code in outcomes if code != 0]
    if len(outcomes) <= 1:
        return bad[0][1] if bad else 0
    if bad:
        print(f"{len(bad)} of {len(outcomes)} runs did not finish:", file=sys.stderr)
    for overrides, code in bad:
        print(f"  exit code {code}: {' '.join(overrides)}", file=sys.stderr)
    codes = {code for _, code in bad}
    return codes.pop() if len(codes) == 1 else (FAILED if codes else 0)


class JobFailed(Exception):
    """A multirun's job failed in its own process; `args` are its exit code and overrides."""


class CheckEveryJob(Callback):
    """Composes and checks every job of a multirun before the first one starts."""

    def on_multirun_start(self, config: DictConfig, config_name: str, **kwargs: Any) -> None:
        """Exit with one message that lists every job that cannot run."""
        if not config.hydra.sweeper._target_.endswith(".BasicSweeper"):
            return  # other sweepers choose their jobs at run time
        mistakes = []
        try:
            jobs = _jobs(list(config.hydra.overrides.task))
        except UserError as error:
            jobs, mistakes = [], [str(error)]
        for overrides in jobs:
            try:
                check_ready(compose(overrides, config_name))
            except UserError as error:
                mistakes.append(f"{' '.join(overrides)}: {error}")
        if mistakes:
            print("nothing was started:", *mistakes, sep="\n", file=sys.stderr)
            sys.exit(MISTAKE)  # Hydra swallows all other exceptions of a callback


def _jobs(overrides: list[str]) -> list[list[str]]:
    """The overrides of each job of a sweep, expanded as Hydra's basic sweeper does."""
    hydra_app = GlobalHydra.instance()
    loader = hydra_app.config_loader() if hydra_app.is_initialized() else None  # for glob(*)
    with user_errors():
        parsed = OverridesParser.create(loader).parse_overrides(overrides)
        (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        return jobs
