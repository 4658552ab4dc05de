"""Train the runs behind the paper's tables, as far as they are missing.

    python scripts/reproduce.py --table 3                     # again and again, until it exits 0
    python scripts/reproduce.py --table 4 --status
    python scripts/reproduce.py --table 4 --model base --seeds 0,1,2 --slots 2 --max-minutes 50
    python scripts/reproduce.py --table 4 --slurm --slurm-partition gpu

Finished runs are skipped, interrupted ones go on, a failed one is tried once more. Exit code 0:
all are finished; 1: some failed; 2: a mistake; 75: not all are finished yet, call again;
130: interrupted, likewise.
"""

from __future__ import annotations

import time

STARTED = time.monotonic()
"""When the process started (the imports take seconds): --max-minutes counts from here."""

import argparse
import math
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from signal import SIGTERM, default_int_handler, signal, strsignal

from configs import TrainConfig, dataset_config
from configs.cli import FAILED, INTERRUPTED, MISTAKE, OUT_OF_TIME
from configs.experiments import TABLES, Run, select_runs
from configs.placement import slots
from configs.plan import Planned, override, plan_runs
from configs.progress import progress, status_text
from data import load_dataset
from linearconv.engine.cluster import Cluster, TrainJob
from linearconv.engine.files import atomic_write
from linearconv.engine.record import read_record
from linearconv.engine.slots import Job, Outcome, Result, Runner, last_line, waiting
from linearconv.engine.status import State, train_log
from linearconv.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
"""Where train.py is, and where it runs."""

NARROWED = ("model", "variant", "dataset")
"""What narrows a table down to some of its cells."""

FOLDERS = {
    "results-dir": "results_dir",
    "checkpoint-dir": "checkpoint_dir",
    "log-dir": "log_dir",
    "data-root": "dataset.root",
}
"""Options that are keys of train.py."""

Outcomes = dict[str, Result]
"""How each run ended, by its run_id."""


def main() -> int:
    """Do what the arguments ask for; returns the exit code."""
    args = parser().parse_intermixed_args()
    try:
        tables = TABLES if args.table == "all" else (int(args.table),)
        narrowed = {key: getattr(args, key) for key in NARROWED}
        return reproduce(
            select_runs(tables, recipe=args.recipe, seeds=args.seeds, **narrowed), args
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--table", required=True, choices=[*map(str, TABLES), "all"])
    for key in NARROWED:
        add(
            f"--{key}", type=_names, default=(), metavar="A,B", help=f"only the cells of this {key}"
        )
    add("--seeds", type=_seeds, default=(0,), metavar="0,1,2", help="of each cell (default: 0)")
    add("--recipe", default="paper", help="paper (default), short or demo")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="for train.py; none that changes results")
    add("--status", action="store_true", help="say how far the runs are, and do nothing")
    add("--dry-run", action="store_true", help="print the commands of what is missing")
    add("--slots", type=_count, default=1, metavar="N", help="processes per device (default: 1)")
    add("--max-minutes", type=_minutes, default=math.inf, metavar="M", help="stop in time")
    add("--device", help="auto (default), cpu, cuda or cuda:N")
    for option, key in FOLDERS.items():
        add(f"--{option}", type=Path, help=f"{key} of train.py")
    add("--slurm", action="store_true", help="submit the runs to a Slurm cluster")
    add("--slurm-partition", metavar="NAME")
    add(
        "--slurm-minutes", type=_count, default=240, metavar="M", help="a job's limit (default 240)"
    )
    add("--slurm-parallel", type=_count, metavar="N", help="jobs at a time")
    add("--slurm-option", type=_option, action="append", default=[], metavar="KEY[=VALUE]",
        help="a further option of sbatch")  # fmt: skip
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))


def _seeds(text: str) -> tuple[int, ...]:
    if not all(map(str.isdecimal, names := _names(text))) or not names:
        raise argparse.ArgumentTypeError(f"must be numbers like 0,1,2, got {text}")
    return tuple(dict.fromkeys(map(int, names)))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
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
    """Do with these runs what the arguments ask for; returns the exit code."""
    planned, config = plan_runs(runs, [*_options(args), *args.overrides], ROOT)
    if args.status:
        print(status_text(planned, config, ROOT))
        return 0
    results = settled(planned)
    missing = [plan for plan in planned if plan.name not in results]
    if args.dry_run:
        for plan in missing:
            print(shlex.join(["python", "train.py", *plan.overrides]))
        print(summary(planned, results), file=sys.stderr)
        return 0
    cluster = cluster_of(args, config) if args.slurm else None
    for plan in missing:
        if problem := data_problem(plan.run, config):
            results[plan.name] = Result(Outcome.FAILED, problem)
    missing = [plan for plan in missing if plan.name not in results]
    if cluster is not None:
        results = submit(cluster, missing, results, args.slurm_minutes)
    else:
        results = train(planned, missing, results, config, args)
    print(summary(planned, results))
    return exit_code(results)


def _options(args: argparse.Namespace) -> list[str]:
    """The options that train.py has as keys; paths are relative to where the user is."""
    found = [] if args.device is None else [override("device", args.device)]
    for option, key in FOLDERS.items():
        path = getattr(args, option.replace("-", "_"))
        found += [] if path is None else [override(key, path.absolute())]
    return found


def settled(planned: Sequence[Planned]) -> Outcomes:
    """The runs that there is nothing to do about now."""
    results = {}
    for plan in planned:
        status = plan.status()
        if status.state is State.DONE:
            results[plan.name] = Result(Outcome.FINISHED, "before")
        elif status.state is State.RUNNING:
            results[plan.name] = Result(Outcome.ELSEWHERE, status.note)
        elif obstacle := plan.obstacle():
            results[plan.name] = Result(Outcome.FAILED, obstacle)
    return results


def data_problem(run: Run, config: TrainConfig) -> str:
    """Why no run on this run's dataset could fill a cell, or ""; downloads what is not there."""
    return _data_problem(run.cell.dataset, run.science["dataset"]["digest"], config.dataset.root)


@cache
def _data_problem(name: str, expected: str, root: str) -> str:
    try:
        found = load_dataset(dataset_config(name), ROOT / root).digest
    except UserError as error:
        return str(error)
    if found == expected:
        return ""
    return (
        f"the data in {ROOT / root} has the digest {found} instead of the published {expected}: "
        "runs on it fill no cell"
    )


def train(
    planned: Sequence[Planned],
    missing: Sequence[Planned],
    results: Outcomes,
    config: TrainConfig,
    args: argparse.Namespace,
) -> Outcomes:
    """Train the missing runs on this machine; returns how all of `planned` ended."""
    by_name = {plan.name: plan for plan in planned}
    limit = 60 * args.max_minutes
    overtime = min(30.0, limit / 20)  # for an epoch that takes a little longer than the others
    runner = Runner(
        [_job(plan) for plan in missing],
        slots(config, args.slots),
        settled=results,
        judge=lambda job, code: judge(by_name[job.name], code),
        cwd=ROOT,
        time_argument=_time_argument,
        deadline=STARTED + limit - overtime,
        overtime=overtime,
        progress=partial(progress, by_name),
        say=_say,
    )
    results = runner.run()
    for name, result in results.items():
        if result.outcome is Outcome.ELSEWHERE and by_name[name].status().state is State.DONE:
            results[name] = Result(Outcome.FINISHED, "elsewhere")
    return results


def _job(plan: Planned) -> Job:
    after = None if plan.baseline is None else plan.baseline.name
    return Job(
        plan.name, (sys.executable, "train.py", *plan.overrides), train_log(plan.places), after
    )


def _time_argument(seconds: float) -> list[str]:
    return [f"max_minutes={max(seconds, 0.001) / 60:.6f}"]


def _say(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, flush=True)


def judge(plan: Planned, code: int) -> Result:
    """How a run's process ended, from its exit code and what it left."""
    status = plan.status()
    if status.state is State.DONE:
        record = read_record(plan.places.record)
        return Result(Outcome.FINISHED, f"best test accuracy {record['test_acc_best']:.2f} %")
    if code == OUT_OF_TIME:
        return Result(Outcome.OUT_OF_TIME, f"after epoch {status.epoch} of {status.epochs}")
    if code == INTERRUPTED:
        return Result(Outcome.INTERRUPTED, f"after epoch {status.epoch} of {status.epochs}")
    if code == 0 and status.state is State.RUNNING:
        return Result(Outcome.ELSEWHERE, status.note)
    how = f"killed by signal {-code} ({strsignal(-code)})" if code < 0 else f"exit code {code}"
    return Result(Outcome.FAILED, f"{how}: {last_line(train_log(plan.places)) or 'no output'}")


def cluster_of(args: argparse.Namespace, config: TrainConfig) -> Cluster:
    """The cluster as the arguments describe it."""
    if args.slots > 1 or args.max_minutes < math.inf:
        raise UserError(
            "--slots and --max-minutes are for this machine; --slurm has --slurm-parallel and "
            "--slurm-minutes, and goes on by itself after a job's time limit"
        )
    options = dict(args.slurm_option)
    if config.device != "cpu" and not any(key.startswith(("gpus", "gres")) for key in options):
        options["gpus-per-node"] = "1"
    return Cluster(
        ROOT / config.log_dir / "slurm",
        minutes=args.slurm_minutes,
        parallel=args.slurm_parallel,
        partition=args.slurm_partition,
        options=options,
    )


def submit(
    cluster: Cluster, missing: Sequence[Planned], results: Outcomes, minutes: int
) -> Outcomes:
    """Submit the missing runs as jobs of so many minutes; returns what is known of all runs.

    Those that an earlier call submitted and that are still in the queue are left there.
    """
    results = dict(results)
    # Stopping by itself, at an epoch's end, a run loses nothing to the limit.
    limit = _time_argument(60 * max(minutes / 2, minutes - 5))
    queue = cluster.queue()
    ids = {plan.name: job_id for plan in missing if (job_id := _last_job(plan)) in queue}
    for name, job_id in ids.items():
        results[name] = Result(Outcome.SUBMITTED, f"job {job_id} is in the queue already")
    for plans in _stages([plan for plan in missing if plan.name not in ids]):
        after = plans[0].baseline and plans[0].baseline.name
        before = results.get(after)
        if before is not None and before.outcome not in (Outcome.FINISHED, Outcome.SUBMITTED):
            results |= {plan.name: waiting(after, before) for plan in plans}
            continue
        jobs = [
            TrainJob((*job.command, *limit), ROOT, job.log, plan.places.record)
            for plan, job in zip(plans, map(_job, plans), strict=True)
        ]
        try:
            submitted = cluster.submit(jobs, after=ids.get(after))
        except UserError as error:
            results |= {plan.name: Result(Outcome.FAILED, str(error)) for plan in plans}
            continue
        for plan, job_id in zip(plans, submitted, strict=True):
            ids[plan.name] = job_id
            results[plan.name] = Result(Outcome.SUBMITTED, f"job {job_id}, log {_job(plan).log}")
            with atomic_write(_job_file(plan)) as file:
                file.write(job_id.encode())
    return results


def _stages(plans: Sequence[Planned]) -> list[list[Planned]]:
    """One array of all runs that start from no other, then each that does."""
    first = [plan for plan in plans if plan.baseline is None]
    later = [[plan] for plan in plans if plan.baseline is not None]
    return [first, *later] if first else later


def _job_file(plan: Planned) -> Path:
    """Where the id of the last job is noted that was to train a run."""
    return plan.places.log / "slurm-job"


def _last_job(plan: Planned) -> str | None:
    path = _job_file(plan)
    return path.read_text().strip() if path.exists() else None


def summary(planned: Sequence[Planned], results: Outcomes) -> str:
    """The number of runs that ended in each way, and what is to be said of the others."""
    counts = Counter(result.outcome for result in results.values())
    counts["to do"] = len(planned) - len(results)
    lines = [", ".join(f"{counts[way]} {way}" for way in [*Outcome, "to do"] if counts[way])]
    said: dict[Result, list[str]] = {}
    for plan in planned:
        result = results.get(plan.name)
        if result is not None and result.outcome is not Outcome.FINISHED:
            said.setdefault(result, []).append(plan.name)
    for result, names in said.items():  # what many runs share, a missing dataset say, once
        lines += [f"{result.outcome}: {result.message}", *(f"    {name}" for name in names)]
    return "\n".join(lines)


def exit_code(results: Outcomes) -> int:
    """What the results come to; see `configs.cli`."""
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
    signal(SIGTERM, default_int_handler)  # ends the preparations too as Ctrl-C does
    sys.exit(main())
