"""Train the missing runs behind the paper's tables.

    python scripts/reproduce.py --table 3                     # repeat until it exits with 0
    python scripts/reproduce.py --table 4 --status
    python scripts/reproduce.py --table 4 --model base --seeds 0,1,2 --slots 2 --max-minutes 50
    python scripts/reproduce.py --table 4 --slurm --slurm-partition gpu

Finished runs are skipped, interrupted ones continued, failed ones retried once. Exit code 0: all
finished; 1: some failed; 2: user error; 75: not all finished yet, run again; 130: interrupted, run
again.
"""

from __future__ import annotations

import time

STARTED = time.monotonic()
"""When the process started (the imports take seconds): --max-minutes counts from here."""

try:
    from scripts.command import exit_with
except ModuleNotFoundError as missing:
    raise SystemExit(f"{missing}: run `make setup`, or pip install -e '.[train]'") from None

import argparse
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGTERM, default_int_handler, signal

import torch

from configs import TrainConfig
from configs.cli import FAILED, INTERRUPTED, MISTAKE, OUT_OF_TIME
from configs.experiments import TABLES, Run, select_runs
from linearconv.engine.device import check_cuda
from linearconv.errors import UserError
from scripts.jobs.devices import sharing_note, slots
from scripts.jobs.local import train
from scripts.jobs.plan import Planned, data_problem, override, plan_runs
from scripts.jobs.progress import status_text, summary
from scripts.jobs.runner import Outcome, Outcomes, Result
from scripts.jobs.slurm import CPUS, LEAST_MINUTES, Cluster, queued, submit
from scripts.jobs.status import State

FILTERS = ("model", "variant", "dataset")
"""Options that select cells of a table."""

SLURM_MINUTES = 240
"""Default time limit of a job."""

FOLDERS = {
    "results-dir": "results_dir",
    "checkpoint-dir": "checkpoint_dir",
    "log-dir": "log_dir",
    "data-root": "dataset.root",
}
"""Options that set keys of train.py."""


def main() -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_intermixed_args()
    try:
        tables = TABLES if args.table == "all" else (int(args.table),)
        filters = {key: getattr(args, key) for key in FILTERS}
        return reproduce(select_runs(tables, recipe=args.recipe, seeds=args.seeds, **filters), args)
    except UserError as error:
        print(error, file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("interrupted: the same command continues", file=sys.stderr)
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--table", required=True, choices=[*map(str, TABLES), "all"])
    for key in FILTERS:
        add(f"--{key}", type=_names, default=(), metavar="A,B", help=f"only cells of these {key}s")
    add("--seeds", type=_seeds, default=(0,), metavar="0,1,2", help="seeds per cell (default: 0)")
    add("--recipe", default="paper", help="paper (default), released, short, demo, modern")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="for train.py; must not change results")
    add("--status", action="store_true", help="print the progress of the runs and exit")
    add("--dry-run", action="store_true", help="print the commands of the missing runs and exit")
    add("--slots", type=_count, default=1, metavar="N", help="processes per device (default: 1)")
    add("--max-minutes", type=_minutes, default=math.inf, metavar="M", help="stop within M minutes")
    add("--device", help="auto (default), cpu, cuda or cuda:N")
    for option, key in FOLDERS.items():
        add(f"--{option}", type=Path, help=f"{key} of train.py")
    add("--slurm", action="store_true", help="submit the runs to a Slurm cluster")
    add("--slurm-partition", metavar="NAME")
    add(
        "--slurm-minutes",
        type=_count,
        metavar="M",
        help=f"time limit per job (default: {SLURM_MINUTES})",
    )
    add("--slurm-parallel", type=_count, metavar="N", help="maximum number of jobs at a time")
    add("--slurm-option", type=_option, action="append", metavar="KEY[=VALUE]",
        help="a further sbatch option")  # fmt: skip
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))


def _seeds(text: str) -> tuple[int, ...]:
    if not all(map(str.isdecimal, names := _names(text))) or not names:
        raise argparse.ArgumentTypeError(f"must be numbers like 0,1,2, got {text}")
    return tuple(dict.fromkeys(map(int, names)))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text}")
    return int(text)


def _minutes(text: str) -> float:
    with suppress(ValueError):
        if float(text) > 0:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")


def _option(text: str) -> tuple[str, str | bool]:
    key, found, value = text.removeprefix("--").partition("=")
    if not key:
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE or KEY, got {text}")
    return key, value if found else True


def reproduce(runs: Sequence[Run], args: argparse.Namespace) -> int:
    """Show, train or submit these runs; returns the exit code."""
    _check_slurm(args)
    planned, config = plan_runs(runs, [*_options(args), *args.overrides])
    if args.status:
        print(status_text(planned, config, in_queue(planned) if args.slurm else None))
        return 0
    results = settled(planned)
    missing = [plan for plan in planned if plan.name not in results]
    if args.dry_run:
        for plan in missing:
            print(plan.shown)
        print(summary(planned, results), file=sys.stderr)
        return 0
    cluster = cluster_of(args, config) if args.slurm else None
    if cluster is None and config.device.startswith("cuda"):
        check_cuda(torch.device(config.device))
    for plan in missing:
        if problem := data_problem(plan.run, Path(config.dataset.root), config.dataset.path):
            results[plan.name] = Result(Outcome.FAILED, problem)
    missing = [plan for plan in missing if plan.name not in results]
    if cluster is not None:
        results = submit(cluster, missing, results)
    else:
        limit = 60 * args.max_minutes
        overtime = min(30.0, limit / 20)  # for an epoch slightly longer than the others
        free_slots = slots(config, args.slots)
        if note := sharing_note(free_slots):
            print(note, flush=True)
        deadline = STARTED + limit - overtime
        results = train(planned, missing, results, free_slots, deadline=deadline, overtime=overtime)
    print(summary(planned, results))
    return exit_code(results)


def in_queue(planned: Sequence[Planned]) -> dict[str, str]:
    """The jobs of these runs that are in the cluster's queue, if it can be asked."""
    try:
        return queued(planned)
    except UserError as error:
        print(f"what is queued is not known: {error}", file=sys.stderr)
        return {}


def _check_slurm(args: argparse.Namespace) -> None:
    """Check that options are given which go together.

    Raises:
        UserError: they do not.
    """
    given = [name for name, value in vars(args).items() if name.startswith("slurm_") and value]
    if given and not args.slurm:
        raise UserError(f"--{given[0].replace('_', '-')} has no effect without --slurm: add it")
    if args.slurm and (args.slots > 1 or args.max_minutes < math.inf):
        raise UserError(
            "--slots and --max-minutes apply to this machine only; with --slurm, use "
            "--slurm-parallel and --slurm-minutes (a job is requeued at its time limit)"
        )
    if args.slurm_minutes is not None and args.slurm_minutes < LEAST_MINUTES:
        raise UserError(
            f"--slurm-minutes must be at least {LEAST_MINUTES}, got {args.slurm_minutes}: a job is "
            "told to stop 90 s before its limit, and is requeued if it has trained an epoch"
        )


def _options(args: argparse.Namespace) -> list[str]:
    """Overrides from the options for train.py."""
    device = args.device
    if args.slurm and device in (None, "auto"):
        device = "cuda"  # a GPU is reserved: rather an error than a training on the CPU beside it
    found = [] if device is None else [override("device", device)]
    for option, key in FOLDERS.items():
        path = getattr(args, option.replace("-", "_"))
        found += [] if path is None else [override(key, path.expanduser().absolute())]
    return found


def settled(planned: Sequence[Planned]) -> Outcomes:
    """The results of runs that are finished, running elsewhere or blocked."""
    results = {}
    for plan in planned:
        status = plan.status()
        if status.state is State.DONE:
            results[plan.name] = Result(Outcome.FINISHED, "before")
        elif status.state is State.RUNNING:
            results[plan.name] = Result(Outcome.ELSEWHERE, status.note)
        elif reason := plan.blocked_by():
            results[plan.name] = Result(Outcome.FAILED, reason)
    return results


def cluster_of(args: argparse.Namespace, config: TrainConfig) -> Cluster:
    """The cluster to submit to, as set by the arguments."""
    options = dict(args.slurm_option or ())
    if config.device != "cpu" and not any(key.startswith(("gpus", "gres")) for key in options):
        options["gpus-per-node"] = "1"
    return Cluster(
        Path(config.log_dir, "slurm").absolute(),
        minutes=args.slurm_minutes or SLURM_MINUTES,
        cpus=config.runtime.threads or CPUS,
        parallel=args.slurm_parallel,
        partition=args.slurm_partition,
        options=options,
    )


def exit_code(results: Outcomes) -> int:
    """The exit code for these results; see `configs.cli`."""
    outcomes = {result.outcome for result in results.values()}
    for outcome, code in (
        (Outcome.INTERRUPTED, INTERRUPTED),
        (Outcome.OUT_OF_TIME, OUT_OF_TIME),
        (Outcome.FAILED, FAILED),
        (Outcome.ELSEWHERE, OUT_OF_TIME),
        (Outcome.SUBMITTED, OUT_OF_TIME),
    ):
        if outcome in outcomes:
            return code
    return 0


if __name__ == "__main__":
    signal(SIGTERM, default_int_handler)  # before training starts, like Ctrl-C
    exit_with(main)
