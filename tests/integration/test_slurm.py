"""Submitting to a cluster: jobs that submitit runs here, and arrays that a stand-in is given."""

import json
import os
import re
import signal
import stat
import sys
import time
from pathlib import Path

import pytest
import submitit

from linearconv.engine.lock import lock
from linearconv.engine.record import SCHEMA, write_record
from linearconv.errors import UserError
from scripts.jobs import slurm as slurm_module
from scripts.jobs.runner import Outcome, last_failed, mark
from scripts.jobs.slurm import Cluster, TrainJob
from tests.conftest import REPOSITORY
from tests.integration.conftest import SIZE, TINY, small_run


@pytest.fixture
def local(tmp_path) -> Cluster:
    return Cluster(tmp_path / "submitit", minutes=10, name="local")


@pytest.fixture
def job(tmp_path):
    """A job of a shell command, finished when the file `record` exists."""

    def make(script: str, minutes: float = 0.0) -> TrainJob:
        files = (tmp_path / name for name in ("train.log", "record", "lock"))
        return TrainJob(("sh", "-c", script), tmp_path, *files, minutes)

    return make


def result(job_id: str, tmp_path: Path, *, within: float = 120.0) -> tuple[str, object]:
    """What submitit's process wrote when the job ended: ("success" or "error", ...)."""
    paths = submitit.core.utils.JobPaths(tmp_path / "submitit", job_id, 0)
    give_up = time.time() + within
    while not paths.result_pickle.exists():
        assert time.time() < give_up, paths.stderr.read_text()
        time.sleep(0.05)
    return submitit.core.utils.pickle_load(paths.result_pickle)


def test_a_job_that_stops_in_time_is_requeued_until_it_is_done(local, job, tmp_path):
    script = (
        "echo start >> starts; n=$(wc -l < starts); touch epoch-000$n.pt; "
        "[ $n = 2 ] && touch record || exit 75"
    )
    (job_id,) = local.submit([job(script)])
    assert result(job_id, tmp_path) == ("success", None)
    assert (tmp_path / "starts").read_text() == "start\n" * 2


@pytest.mark.parametrize("limit", ["train.py's own", "Slurm's"])
def test_a_job_that_trains_no_epoch_is_not_requeued(local, job, tmp_path, limit):
    """It would be started for ever."""
    end = "exit 75" if limit == "train.py's own" else "kill -USR2 $PPID; sleep 60"
    (tmp_path / "epoch-0000.pt").touch()  # written before the first epoch
    (job_id,) = local.submit([job(f"echo start >> starts; {end}")])
    kind, message = result(job_id, tmp_path)
    assert kind == "error" and "no epoch was finished within the time limit: raise" in message
    assert (tmp_path / "starts").read_text() == "start\n"
    assert last_failed(tmp_path / "train.log")


def test_a_failed_job_fails_and_names_its_log(local, job, tmp_path):
    (job_id,) = local.submit([job("echo start >> starts; exit 1")])
    kind, message = result(job_id, tmp_path)
    assert kind == "error" and f"exit code 1: see {tmp_path}/train.log" in message
    assert (tmp_path / "starts").read_text() == "start\n"
    assert last_failed(tmp_path / "train.log")


def test_a_terminated_job_leaves_its_end_to_slurm(job, tmp_path, monkeypatch):
    """It keeps running, so that Slurm can requeue it, and is not marked as failed."""
    waited = []
    monkeypatch.setattr(slurm_module, "KILLED_S", 0.1)
    monkeypatch.setattr(slurm_module.time, "sleep", waited.append)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(RuntimeError, match=f"terminated: see {tmp_path}/train.log"):
            job("echo stopped; exit 130")()
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert waited[-1] == slurm_module.KILLED_S
    assert (tmp_path / "train.log").read_text() == "stopped\n"


def test_a_run_that_another_process_holds_is_tried_again(job, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm_module, "RETRY_S", 0.1)
    held = job("echo start >> starts; [ $(wc -l < starts) = 2 ] && touch record; exit 75")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with lock(held.lock):
            held()
            assert (tmp_path / "starts").read_text() == "start\n" * 2
            (tmp_path / "record").unlink()
            monkeypatch.setattr(slurm_module, "STALE_S", 0.0)
            with pytest.raises(RuntimeError, match=f"process {os.getpid()} on .* holds the run"):
                held()
    finally:
        signal.signal(signal.SIGTERM, handler)


@pytest.mark.long
def test_a_preempted_run_goes_on_where_it_was(local, tmp_path, digits_root):
    """submitit's signal stops a real run, which keeps its checkpoint, and requeues the job."""
    # The plain runtime: the fast one could be done before the signal comes.
    run = small_run(epochs=12, size=(*SIZE, "runtime=reference"))
    places = [f"{kind}_dir={tmp_path}/{kind}" for kind in ("results", "checkpoint", "log")]
    train = TrainJob(
        (sys.executable, "train.py", *run.overrides, *places, f"dataset.root={digits_root}"),
        REPOSITORY,
        tmp_path / "train.log",
        tmp_path / "results/runs" / f"{run.run_id}.json",
        tmp_path / "checkpoint" / run.run_id / "lock",
        minutes=10,
    )
    (job_id,) = local.submit([train])
    folder = tmp_path / "checkpoint" / run.run_id
    give_up = time.time() + 120
    while not (folder / "epoch-0002.pt").exists():
        assert time.time() < give_up
        time.sleep(0.02)
    pid = json.loads((folder / "lock-owner.json").read_text())["pid"]
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent, signal.SIGUSR2)
    assert result(job_id, tmp_path) == ("success", None)
    record = json.loads(train.record.read_text())
    first, second = record["provenance"]
    assert first["last_epoch"] >= 2 and second["first_epoch"] == first["last_epoch"] + 1
    assert "the same command continues after epoch" in train.log.read_text()


def test_a_job_that_is_preempted_early_is_requeued(local, job, tmp_path):
    """Although it has trained nothing yet."""
    script = "echo start >> starts; [ $(wc -l < starts) = 2 ] && touch record || kill -USR2 $PPID"
    (job_id,) = local.submit([job(f"{script}; sleep 2", minutes=10)])
    assert result(job_id, tmp_path) == ("success", None)


def test_checkpoint_resubmits_the_same_job(job):
    train = job("true")
    train.lock.with_name("epoch-0001.pt").touch()
    again = train.checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function == train and again.args == () and again.kwargs == {}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """An sbatch that keeps what it is given and counts; returns the submitted files' texts."""
    tools = tmp_path / "bin"
    tools.mkdir()
    script = (
        "#!/bin/sh\n"
        f"cd {tools}; n=$(ls | grep -c given); cp $1 given$n\n"
        "echo Submitted batch job $((100 + n))\n"
    )
    queue = f"#!/bin/sh\ncat {tools}/queue 2> /dev/null; true\n"
    for name, text in (("sbatch", script), ("srun", "#!/bin/sh\n"), ("squeue", queue)):
        (tools / name).write_text(text)
        (tools / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return lambda: [path.read_text() for path in sorted(tools.glob("given*"))]


def test_the_queue_of_a_user_without_a_name(slurm, tmp_path):
    """In a container: asked by number."""
    (tmp_path / "bin/squeue").write_text("#!/bin/sh\necho \"$@\" | tr ' ' '\\n' | grep user\n")
    assert Cluster(tmp_path, minutes=10, name="slurm").queue() == {f"--user={os.getuid()}"}


def test_one_array_and_basis_after_its_baseline(command, slurm, tmp_path):
    baseline = small_run("vgg11", size=TINY)
    basis = small_run("vgg11_basis", size=TINY, baseline=baseline)
    other = small_run()
    outcome = command(
        [baseline, basis, other], "--slurm", "--slurm-partition", "gpu", "--slurm-minutes", "100",
        "--slurm-parallel", "1", "--slurm-option", "account=mine", "--slurm-option=--mem=8G",
        "--slurm-option", "exclusive",
    )  # fmt: skip
    assert outcome.code == 75, outcome.err
    array, after = slurm()
    for flag in ("array=0-1%1", "partition=gpu", "time=100", "account=mine", "mem=8G", "exclusive",
                 "requeue", "gpus-per-node=1", "cpus-per-task=2", "signal=USR2@90",
                 "open-mode=append"):  # fmt: skip
        assert f"#SBATCH --{flag}\n" in array, array
    assert "dependency" not in array and "--array" not in after
    assert "#SBATCH --dependency=afterok:100_0\n" in after
    assert "#SBATCH --kill-on-invalid-dep=yes\n" in after
    for run, job_id in ((baseline, "100_0"), (other, "100_1"), (basis, "101")):
        assert f"submitted: job {job_id}, log {tmp_path}/logs/{run.run_id}/train.log" in outcome.out
    (pickled,) = (tmp_path / "logs/slurm").glob("101*submitted.pkl")
    train = submitit.helpers.DelayedSubmission.load(pickled).function
    assert train.command[:2] == (sys.executable, str(REPOSITORY / "train.py"))
    assert f"{tmp_path}/checkpoints/{baseline.run_id}/best.pt" in " ".join(train.command)
    assert train.command[-1] == "max_minutes=95.000000"
    assert "device=cuda" in train.command  # rather an error than a CPU beside the reserved GPU
    assert train.record == tmp_path / "results/runs" / f"{basis.run_id}.json"
    assert train.lock == tmp_path / "checkpoints" / basis.run_id / "lock"


def test_a_cpu_or_own_gpu_options_leave_the_gpu_out(command, slurm):
    run = small_run()
    assert command([run], "--slurm", "--device", "cpu").code == 75
    assert command([run], "--slurm", "--slurm-option", "gres=gpu:a100:1").code == 75
    assert not any("gpus-per-node" in text for text in slurm())
    assert "#SBATCH --gres=gpu:a100:1\n" in slurm()[1]
    assert command([run], "--slurm", "runtime.threads=5").code == 75
    assert "#SBATCH --cpus-per-task=5\n" in slurm()[2]


def test_the_status_knows_the_queue_and_needs_no_gpu(command, slurm, tmp_path):
    """As on a login node: the time left is estimated for the device of the latest record."""
    run, other = small_run(), small_run("vgg11")
    assert command([run], "--slurm").code == 75
    log = tmp_path / "logs" / run.run_id / "train.log"
    mark(log, Outcome.FAILED)  # of an earlier job
    (tmp_path / "bin/queue").write_text("100\n")
    shown = command([run, other], "--slurm", "--status").out
    assert re.search(rf"^{run.run_id} +queued .* job 100$", shown, flags=re.M), shown
    assert "time left unknown: device=cuda is not available" in shown
    (tmp_path / "bin/queue").write_text("")
    shown = command([run], "--slurm", "--status").out
    assert re.search(rf"^{run.run_id} +failed ", shown, flags=re.M)
    record = {"schema": SCHEMA, "provenance": [{"started": "2026", "device": "NVIDIA H200"}]}
    write_record(tmp_path / "results/runs/a.json", record)
    shown = command([run, other], "--slurm", "--status").out
    assert "time left on NVIDIA H200" in shown and "not available" not in shown


def test_what_is_in_the_queue_is_not_submitted_again(command, slurm, tmp_path):
    baseline = small_run("vgg11", size=TINY)
    basis = small_run("vgg11_basis", size=TINY, baseline=baseline)
    other = small_run()
    assert command([baseline, other], "--slurm").code == 75
    (tmp_path / "bin/queue").write_text("100_0\n7\n")  # the other one has left it, unfinished
    outcome = command([baseline, basis, other], "--slurm", "--device", "cuda")
    assert outcome.code == 75 and "submitted: job 100_0 is already queued" in outcome.out
    _, again, after = slurm()
    assert "--array" not in again and "dependency" not in again
    assert "#SBATCH --dependency=afterok:100_0\n" in after
    (tmp_path / "bin/queue").write_text("100_0\n101\n102\n")
    assert command([baseline, basis, other], "--slurm").code == 75 and len(slurm()) == 3


def test_what_the_cluster_refuses_is_said_beside_what_it_took(command, slurm, tmp_path):
    sbatch = tmp_path / "bin/sbatch"
    script = sbatch.read_text()
    refusal = "grep -q dependency $1 && echo sbatch: error: no dependencies here >&2 && exit 1\n"
    sbatch.write_text(script.replace("cd ", refusal + "cd ", 1))
    baseline = small_run("vgg11", size=TINY)
    basis = small_run("vgg11_basis", size=TINY, baseline=baseline)
    outcome = command([baseline, basis], "--slurm")
    assert outcome.code == 1 and "1 failed, 1 submitted" in outcome.out
    assert "submitted: job 100" in outcome.out
    assert "failed: Slurm rejected the jobs: sbatch: error: no dep" in outcome.out
    assert "Traceback" not in outcome.err
    sbatch.write_text("#!/bin/sh\necho sbatch: error: invalid partition >&2; exit 1\n")
    outcome = command([small_run()], "--slurm")
    assert outcome.code == 1 and "invalid partition" in outcome.out


def test_what_is_missing_is_named(command, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = command([small_run()], "--slurm")
    assert outcome.code == 2 and "sbatch not found" in outcome.err
    assert "Traceback" not in outcome.err
    for option in ("--slots=2", "--max-minutes=9"):
        outcome = command([small_run()], "--slurm", option)
        assert outcome.code == 2 and "--slurm-minutes" in outcome.err
    outcome = command([small_run()], "--slurm", "--slurm-minutes=3")
    assert outcome.code == 2 and "--slurm-minutes must be at least 4, got 3" in outcome.err
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[slurm\]'"):
        Cluster(tmp_path, minutes=1)
