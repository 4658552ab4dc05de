"""scripts/reproduce.py: with real training of small runs on the digits in a table's place."""

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

import pytest
import torch

from configs.experiments import Run
from linearconv.engine.checkpoint import Checkpoints
from linearconv.engine.lock import lock
from scripts import reproduce
from scripts.jobs.local import judge
from scripts.jobs.plan import plan_runs
from scripts.jobs.status import train_log
from tests.conftest import REPOSITORY, Outcome
from tests.integration.conftest import TINY, small_run
from tests.records import without_provenance

ONE_THREAD = ("runtime.threads=1",)  # rounding depends on their number


def record(tmp_path: Path, run: Run) -> dict:
    return json.loads((tmp_path / "results/runs" / f"{run.run_id}.json").read_text())


def lines_about(run: Run, outcome: Outcome, first: str) -> list[str]:
    return [line for line in outcome.out.splitlines() if f"{first} {run.run_id}" in line]


def test_trains_what_is_missing_two_at_once_past_a_failure(command, tmp_path):
    """A first call meets a failure and finishes the others; a second one needs only the failed."""
    good, bad = runs = [small_run(), small_run(variant="r")]
    obstacle = tmp_path / "checkpoints" / bad.run_id
    obstacle.parent.mkdir()
    obstacle.write_text("a file where the run's folder should be")
    first = command(runs, "--device", "cpu", "--slots", "2", "image_every=1")
    assert first.code == 1, first.out + first.err
    assert "1 finished, 1 failed" in first.out
    failures = lines_about(bad, first, "failed")
    assert len(failures) == 2 and "retried" in failures[0] and "retried" not in failures[1]
    log = tmp_path / "logs" / bad.run_id / "train.log"
    assert str(log) in failures[1] and f"{obstacle} cannot be written to" in failures[1]
    assert "Traceback" not in log.read_text()
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    found = record(tmp_path, good)
    assert found["provenance"][0]["threads"] == threads
    assert "image_every=1" in found["provenance"][0]["overrides"]
    accuracy = f"best test accuracy {found['test_acc_best']:.2f} %"
    assert accuracy in lines_about(good, first, "finished")[0]
    assert "epoch 2/2" in (tmp_path / "logs" / good.run_id / "train.log").read_text()
    started = [line for line in first.out.splitlines() if " started " in line]
    assert len(started) == 3

    status = command(runs, "--status")
    assert status.code == 0 and "1 done, 0 running, 0 interrupted, 1 failed" in status.out
    assert "cannot be written to" in status.out and "one run at a time: about" in status.out

    obstacle.unlink()
    before = record(tmp_path, good)
    second = command(runs)
    assert second.code == 0 and "2 finished" in second.out, second.out
    assert not lines_about(good, second, "started") and record(tmp_path, good) == before
    assert command(runs).code == 0


def test_a_run_that_another_process_holds_is_left_to_it(command, tmp_path):
    """Its words in the shared log do not count: those of the owner come between."""
    run = small_run()
    held = tmp_path / "checkpoints" / run.run_id / "lock"
    with lock(held):
        folders = [f"checkpoint_dir={tmp_path}/checkpoints", f"log_dir={tmp_path}/logs"]
        plans, _ = plan_runs([run], folders)
        log = train_log(plans[0].paths)
        log.parent.mkdir(parents=True)
        log.write_text("epoch 1/2 of the owner\n")
        judged = judge(plans[0], 75)
    assert judged.outcome == "running elsewhere" and f"process {os.getpid()}" in judged.message
    assert judge(plans[0], 75).outcome == "out of time"
    assert judge(plans[0], 0).outcome == "failed"  # no record: nothing was done


def test_out_of_time_and_the_next_call_goes_on(command, tmp_path):
    run = small_run()
    late = command([run], "--max-minutes", "1e-6")
    assert late.code == 75 and "1 out of time" in late.out and " started " not in late.out
    stopped = command([run], "max_minutes=1e-9")  # of the child alone, which exits with 75 itself
    assert stopped.code == 75 and "after epoch 0 of 2" in stopped.out
    assert lines_about(run, stopped, "out of time") and not lines_about(run, stopped, "failed")
    status = command([run], "--status", "--device", "cpu")
    assert "0 done, 0 running, 1 interrupted" in status.out
    assert "est.: no epoch timed here; steps on " in status.out
    assert command([run]).code == 0
    assert command([run], "--max-minutes", "1e-6").code == 0  # nothing is left to do


def test_status_where_the_device_of_the_runs_is_not(command):
    """As on the login node of a cluster."""
    status = command([small_run()], "--status", "--slurm", "--device", "cuda:99")
    assert status.code == 0 and "0 done, 0 running" in status.out
    assert "time left unknown: device=cuda:99 is not available" in status.out


def killed_after_an_epoch(tmp_path: Path, run: Run) -> None:
    """Kill the run's process, whose number its lock tells, once it has finished an epoch."""

    def watch() -> None:
        folder = tmp_path / "checkpoints" / run.run_id
        while not (folder / "epoch-0001.pt").exists():
            time.sleep(0.01)
        os.kill(json.loads((folder / "lock-owner.json").read_text())["pid"], signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


@pytest.mark.long
def test_a_killed_child_goes_on_in_its_second_try(command, tmp_path):
    run = small_run(epochs=6)
    killed_after_an_epoch(tmp_path, run)
    outcome = command([run])
    assert outcome.code == 0, outcome.out
    assert "killed by signal 9 (Killed)" in outcome.out and "retried" in outcome.out
    starts = [(s["first_epoch"], s["last_epoch"]) for s in record(tmp_path, run)["provenance"]]
    assert len(starts) == 2 and starts[0][0] == 1 and starts[1][0] > 1 and starts[1][1] == 6


def test_what_starts_from_a_trained_network(command, tmp_path):
    baseline = small_run("vgg11", epochs=1, size=TINY)
    basis = small_run("vgg11_basis", epochs=1, size=TINY, baseline=baseline)
    runs = [baseline, basis]
    dry = command(runs, "--dry-run")
    assert dry.code == 0 and len(dry.out.splitlines()) == 2
    assert f"baseline_checkpoint={tmp_path}/checkpoints/{baseline.run_id}/best.pt" in dry.out
    outcome = command(runs, "--slots", "2")
    assert outcome.code == 0, outcome.out
    assert record(tmp_path, basis)["science"]["baseline"] == baseline.run_id.rpartition("-")[2]

    # Only the records came along, as from a clone; then there is no record of Basis either.
    (tmp_path / "checkpoints" / baseline.run_id / "best.pt").unlink()
    assert command(runs).code == 0
    (tmp_path / "results/runs" / f"{basis.run_id}.json").unlink()
    blocked = command(runs)
    assert blocked.code == 1 and " started " not in blocked.out
    assert "best.pt, which was not found" in blocked.out and "overwrite=true" in blocked.out


def test_data_that_cannot_be_had_fails_its_runs_alone(command, tmp_path, folders):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/digits.npz").write_bytes(b"no dataset")
    outcome = command([small_run()], f"--data-root={tmp_path}/data")
    assert outcome.code == 1 and "digits.npz is truncated or damaged" in outcome.out
    assert " started " not in outcome.out


def test_a_run_that_has_files_under_another_name_is_the_same(command, tmp_path):
    run = small_run(epochs=1)
    assert command([run]).code == 0
    path = tmp_path / "results/runs" / f"{run.run_id}.json"
    path.rename(path.with_name(path.name.replace("-Conv-", "-Plain-")))
    shutil.rmtree(tmp_path / "checkpoints")
    again = command([run])
    assert again.code == 0 and " started " not in again.out
    assert "digits-base-Plain-" in command([run], "--status").out


def test_a_dataset_may_lie_elsewhere(command, tmp_path, digits_root, monkeypatch):
    """A relative path counts from the working directory, as everywhere."""
    file = tmp_path / "elsewhere.npz"
    shutil.copy(digits_root / "digits.npz", file)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    path = os.path.relpath(file)
    outcome = command(
        [small_run(epochs=1)], f"dataset.path={path}", f"--data-root={tmp_path}/empty"
    )
    assert outcome.code == 0, outcome.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there_is_named_before_anything_starts(command):
    outcome = command([small_run()], "--device=cuda:99")
    assert outcome.code == 2 and "device=cuda:99 is not available" in outcome.err


def test_runs_that_would_fill_no_cell_are_refused(command):
    for override in ("recipe.epochs=7", "variant=Lr"):
        outcome = command([small_run()], override)
        assert outcome.code == 2 and "fill no cell" in outcome.err and outcome.out == ""
    outcome = command([small_run()], "nonsense=1")
    assert outcome.code == 2 and "nonsense" in outcome.err


# With the script in a process of its own.

DRIVER = """
import os, pickle, resource, sys
from scripts import reproduce
with open(sys.argv.pop(1), "rb") as file:
    runs, largest_file = pickle.load(file)
resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
reproduce.select_runs = lambda *args, **kwargs: runs
sys.exit(reproduce.main())
"""


def start(
    runs: list[Run], tmp_path: Path, *arguments: str, largest_file: int = resource.RLIM_INFINITY
) -> subprocess.Popen:
    (tmp_path / "runs.pickle").write_bytes(pickle.dumps((runs, largest_file)))
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path / "runs.pickle"), "--table", "3", *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A test run in a shell's background inherits an ignored SIGINT; a user's Ctrl-C does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_epoch(tmp_path: Path, run: Run, epoch: int) -> int:
    """Until the run has a checkpoint of this epoch or a later one; returns its process's id."""
    checkpoints = Checkpoints(tmp_path / "checkpoints" / run.run_id)
    give_up = time.time() + 300
    while not (saved := checkpoints.epochs()) or int(saved[-1].stem[6:]) < epoch:
        assert time.time() < give_up
        time.sleep(0.02)
    return json.loads((checkpoints.folder / "lock-owner.json").read_text())["pid"]


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie, whose parent has been killed, does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize(
    "kind", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_a_signal_reaches_the_children_and_ends_in_a_summary(tmp_path, folders, kind):
    run, never = small_run(epochs=500), small_run(variant="r")
    process = start([run, never], tmp_path, *folders)
    child = wait_for_epoch(tmp_path, run, 1)
    process.send_signal(kind)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert "2 interrupted" in out and "Traceback" not in out
    assert not alive(child)
    log = (tmp_path / "logs" / run.run_id / "train.log").read_text()
    assert "the same command continues after epoch" in log
    assert Checkpoints(tmp_path / "checkpoints" / run.run_id).load_last()["epoch"] >= 1


@pytest.mark.long
def test_killed_itself_it_loses_nothing(tmp_path, folders, command):
    run, other = runs = [small_run(epochs=30), small_run(variant="r")]
    process = start(runs, tmp_path, *folders, *ONE_THREAD)
    child = wait_for_epoch(tmp_path, run, 1)
    process.kill()
    process.communicate()
    assert alive(child)
    # The orphan goes on; whoever calls next leaves it alone and sees to the others.
    status = command(runs, "--status")
    assert f"process {child} on" in status.out and "1 running" in status.out
    second = command([run], *ONE_THREAD)
    assert second.code == 75 and "running elsewhere" in second.out
    # The machine dies.
    os.kill(child, signal.SIGKILL)
    third = command(runs, *ONE_THREAD)
    assert third.code == 0, third.out
    found = record(tmp_path, run)
    assert len(found["provenance"]) == 2 and found["provenance"][1]["first_epoch"] > 1
    elsewhere = [f"--{kind}-dir={tmp_path}/b/{kind}" for kind in ("results", "checkpoint", "log")]
    assert command([run], *ONE_THREAD, *elsewhere).code == 0
    uninterrupted = json.loads((tmp_path / f"b/results/runs/{run.run_id}.json").read_text())
    assert without_provenance(uninterrupted) == without_provenance(found)


@pytest.mark.long
def test_calls_of_limited_time_finish_the_work(command, tmp_path):
    measure = small_run(variant="r", epochs=10)
    assert command([measure]).code == 0
    seconds = median(record(tmp_path, measure)["timing"]["seconds_per_epoch"])
    run = small_run(epochs=round(40 / seconds))  # longer than a call may take, shorter than ten
    codes = []
    while not codes or codes[-1] == 75:
        assert len(codes) < 10
        began = time.monotonic()
        codes.append(command([run, measure], "--max-minutes", "0.25").code)
        assert time.monotonic() - began < 15 + 10
    assert codes[-1] == 0 and len(codes) > 1
    starts = [(s["first_epoch"], s["last_epoch"]) for s in record(tmp_path, run)["provenance"]]
    assert len(starts) == len(codes) and starts[0][1] + 1 == starts[1][0] > 1


@pytest.mark.long
def test_a_full_disk_fails_runs_and_the_next_call_goes_on(tmp_path, folders, command):
    """Python reports a file beyond the limit as it does a full disk, as an OSError."""
    run = small_run()
    process = start([run], tmp_path, *folders, largest_file=1 << 20)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 1 and "1 failed" in out, out
    assert "File too large" in (tmp_path / "logs" / run.run_id / "train.log").read_text()
    assert command([run]).code == 0


def script(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts/reproduce.py"), *arguments],
        capture_output=True, text=True, timeout=120, env={**os.environ, **environment},
    )  # fmt: skip


def test_status_and_dry_run_of_a_real_table(tmp_path):
    folders = [f"--{name}-dir={tmp_path}/{name}" for name in ("results", "checkpoint", "log")]
    status = script("--table", "2", "--status", "--device", "cpu", *folders)
    assert status.returncode == 0, status.stderr
    assert status.stdout.count("missing") == 7 and "6 missing" in status.stdout
    assert "cifar10-vgg11-Lr-a0.125-s0-" in status.stdout and status.stdout.count(" est.\n") == 6
    dry = script("--table", "2", "--dry-run", "--variant", "Conv", "--seeds", "0,3", *folders)
    assert dry.returncode == 0 and len(dry.stdout.splitlines()) == 2
    first, last = dry.stdout.splitlines()
    assert first.startswith("python train.py model=vgg11 variant=Conv dataset=cifar10 recipe=paper")
    assert "seed=3" in last and f"log_dir={tmp_path}/log" in last
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--table", "6"], "invalid choice"),
        (["--table", "3", "--model", "vgg12"], "choose from base, vgg11"),
        (["--table", "3", "--seeds", "0-4"], "numbers like 0,1,2, got 0-4"),
        (["--table", "3", "--slots", "x"], "at least 1, got x"),
        (["--table", "3", "--max-minutes", "nan"], "above 0"),
        (["--table", "3", "--slurm", "--slurm-option", "=x"], "KEY=VALUE"),
        (["--table", "3", "--slurm-partition", "gpu"], "--slurm-partition has no effect without"),
        (["--table", "3", "--slurm-minutes", "9", "--status"], "--slurm-minutes has no effect"),
        (["--table", "3", "baseline_checkpoint=x"], "baseline_checkpoint=x cannot be given"),
    ],
)
def test_mistakes(arguments, word, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *arguments])
    try:
        code = reproduce.main()
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and word in capsys.readouterr().err
