"""Runs and sweeps on a real Slurm cluster of one node, which `cluster.sh` starts here.

Skipped where Debian's slurm-wlm and munge are not installed, and for users other than root.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.jobs.slurm import Cluster, TrainJob
from tests.conftest import REPOSITORY
from tests.integration.conftest import SIZE, small_run
from tests.integration.test_slurm import result

TOOLS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scancel", "scontrol")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not all(map(shutil.which, TOOLS)) or os.getuid() != 0,
        reason="needs slurm-wlm and munge (apt-get install slurm-wlm), and root",
    ),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Path]:
    """The folder of a cluster that is running."""
    folder = tmp_path_factory.mktemp("slurm")
    script = REPOSITORY / "tests/slurm/cluster.sh"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
        subprocess.run([script, "start", folder], check=True)
        yield folder
        subprocess.run([script, "stop", folder], check=True)


def waited(condition, within: float = 60.0):
    """What `condition` returns as soon as that is true."""
    give_up = time.time() + within
    while not (found := condition()):
        assert time.time() < give_up
        time.sleep(0.3)
    return found


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def job(tmp_path):
    def make(script: str) -> TrainJob:
        files = (tmp_path / name for name in ("train.log", "record", "lock"))
        return TrainJob(("sh", "-c", script), tmp_path, *files, minutes=0)

    return make


@pytest.fixture
def sweep(cluster, places):
    """Starts `train.py -m` with submitit's launcher, a few tiny runs on CPUs."""

    def start(*overrides: str) -> subprocess.Popen:
        command = [sys.executable, "train.py", "-m", "hydra/launcher=submitit_slurm", *places]
        command += ["model=base", "variant=Conv", "runtime.threads=1", *SIZE, *overrides]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=REPOSITORY, **pipes)

    return start


def test_a_job_is_requeued_at_its_limit_as_long_as_it_trains(cluster, job, tmp_path):
    """Slurm's signal comes 90 s before the limit."""
    train = "echo start >> starts; n=$(wc -l < starts); touch epoch-000$n.pt; "
    slow = "[ $n = 2 ] && touch record || sleep 300"
    (job_id,) = Cluster(tmp_path / "submitit", minutes=2).submit([job(train + slow)])
    assert result(job_id, tmp_path, within=200) == ("success", None)
    assert (tmp_path / "starts").read_text() == "start\n" * 2


def test_a_job_whose_epochs_are_longer_than_its_limit_fails(cluster, job, tmp_path):
    jobs = [job("echo start >> starts; sleep 300")]
    (job_id,) = Cluster(tmp_path / "submitit", minutes=2).submit(jobs)
    kind, message = result(job_id, tmp_path, within=200)
    assert kind == "error" and "no epoch was finished within the time limit" in message
    waited(lambda: job_id not in said("squeue", "--noheader", "--format=%i"))
    assert (tmp_path / "starts").read_text() == "start\n"


def test_a_run_is_queued_with_its_cpus_and_trained(cluster, command, tmp_path):
    run = small_run()
    on_cpus = ("--slurm", "--device", "cpu")
    assert command([run], *on_cpus, "--slurm-partition", "down").code == 75
    (job_id,) = said("squeue", "--noheader", "--format=%i").split()
    assert "NumCPUs=2 " in said("scontrol", "show", "job", job_id)
    shown = command([run], *on_cpus, "--status").out
    assert f"{run.run_id}  queued" in shown and f"job {job_id}" in shown
    said("scancel", job_id)
    waited(lambda: not said("squeue", "--noheader"))
    assert f"{run.run_id}  missing" in command([run], *on_cpus, "--status").out
    assert command([run], *on_cpus).code == 75
    waited((tmp_path / "results/runs" / f"{run.run_id}.json").exists, within=120)
    assert command([run], *on_cpus).code == 0


def test_a_sweep_lists_each_job_however_it_ended(cluster, sweep):
    long = "recipe.epochs=1,2,10000"
    process = sweep(long, "hydra.launcher.timeout_min=5")

    def running() -> list[str]:
        lines = said("squeue", "--noheader", "--array", "--states=R", "--format=%i").split()
        return [line for line in lines if line.endswith("_2")]

    (last,) = waited(running, within=120)
    said("scancel", last)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert f"exit code 130 (job {last}: CANCELLED)" in err and "recipe.epochs=10000" in err
    table = [line.split() for line in out.splitlines()[-3:]]
    assert [row[0] for row in table] == ["1", "2", "10000"]
    assert table[0][-1].startswith("digits-base-Conv-e1-") and table[2][1:] == [
        "exit",
        "code",
        "130",
    ]


def test_a_sweep_that_is_stopped_by_its_limit_is_not_done_yet(cluster, sweep):
    process = sweep("recipe.epochs=10000", "hydra.launcher.timeout_min=3", "seed=0,1")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 75 and "Traceback" not in err, err
    assert err.count("exit code 75 (Job not requeued because: timed-out too many times.") == 2


def test_what_the_cluster_refuses_is_one_line(cluster, sweep):
    process = sweep("seed=0,1", "hydra.launcher.partition=nowhere")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "Traceback" not in err
    assert "the cluster rejected the jobs: sbatch: error: " in err.splitlines()[-1]


def test_the_device_is_asked_for_where_the_job_runs(cluster, sweep):
    process = sweep("seed=0,1", "device=cuda:99")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "nothing was started" not in err
    assert err.count("exit code 2 (device=cuda:99 is not available") == 2
