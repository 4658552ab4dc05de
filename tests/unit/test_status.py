"""What a run's files say of it, and what measured epochs say of those to come."""

import socket
import subprocess
import sys

import pytest

from configs import compose, identify, run_id
from linearconv.engine.checkpoint import save
from linearconv.engine.record import SCHEMA, write_record
from linearconv.engine.reporting import in_words
from linearconv.engine.run import RunPaths
from scripts.jobs import timings as timings_module
from scripts.jobs.status import State, Status, run_status, status_table, train_log
from scripts.jobs.timings import Epoch, Timings, benchmarked

HERE = socket.gethostname()


def identity(*overrides: str) -> dict:
    return identify(compose(["model=base", "variant=Lr", "dataset=digits", *overrides]))


@pytest.fixture
def scene(tmp_path):
    known = identity()
    folders = (tmp_path / name for name in ("results", "checkpoints", "logs"))
    return RunPaths(run_id(known), *folders), known


def checkpoint(paths, known, *, epoch, seconds=(), starts=()):
    state = {"run_id": paths.run_id, "science": known, "epoch": epoch, "model": {}}
    state |= {"seconds": list(seconds), "starts": list(starts)}
    save(paths.checkpoints / f"epoch-{epoch:04d}.pt", state)


def log(paths, *lines):
    train_log(paths).parent.mkdir(parents=True, exist_ok=True)
    train_log(paths).write_text("\n".join(lines) + "\n")


def test_missing_interrupted_failed_and_done(scene):
    paths, known = scene
    assert run_status(paths, known) == Status(State.MISSING, 0, 250)
    checkpoint(paths, known, epoch=0)
    checkpoint(paths, known, epoch=12)
    assert run_status(paths, known) == Status(State.INTERRUPTED, 12, 250)
    log(paths, "No space left on device", "== failed")
    assert run_status(paths, known) == Status(State.FAILED, 12, 250, "No space left on device")
    log(paths, "No space left on device", "== failed", "== 2025-01-01 again", "epoch 13/250")
    assert run_status(paths, known).state is State.INTERRUPTED
    write_record(paths.record, {"schema": SCHEMA, "science": known})
    assert run_status(paths, known) == Status(State.DONE, 250, 250)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({"schema": SCHEMA, "science": {"another": "run"}}, "record of another run"),
        ({"schema": SCHEMA}, "record of another run"),
        ({"schema": -1}, "not a record of layout"),
    ],
)
def test_a_record_that_is_not_the_runs_does_not_count(scene, content, word):
    paths, known = scene
    write_record(paths.record, content)
    status = run_status(paths, known)
    assert status.state is State.FAILED and word in status.note


def test_a_live_process_holds_its_run(scene):
    paths, known = scene
    code = (
        "import sys, time; from pathlib import Path\n"
        "from linearconv.engine.lock import lock\n"
        "with lock(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(paths.checkpoints / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        status = run_status(paths, known)
        assert status.state is State.RUNNING
        assert status.note == f"process {process.pid} on {HERE}"
        process.kill()
    assert run_status(paths, known).state is State.MISSING


def start(first, last, device="GPU", runtime="reference"):
    return {
        "device": device,
        "runtime": {"name": runtime},
        "first_epoch": first,
        "last_epoch": last,
    }


def test_durations_of_the_same_network_first_then_of_the_model():
    timings = Timings("GPU", "reference")
    assert timings.per_epoch(identity()) is None
    timings.add(identity("variant=Conv"), [10.0, 30.0, 20.0], [start(1, 3)])
    assert timings.per_epoch(identity()) == Epoch(20.0)  # another variant of the model
    assert timings.per_epoch(identity("dataset=mnist")) == Epoch(20.0)
    timings.add(identity("seed=4", "recipe=short"), [7.0], [start(1, 1)])
    assert timings.per_epoch(identity()) == Epoch(7.0)
    for other in ("model=vgg11", "precision=bf16", "recipe.batch_size=8", "dataset.limit_train=9"):
        assert timings.per_epoch(identity(other)) is None


def test_only_what_was_measured_on_this_device_with_this_runtime_counts():
    timings = Timings("GPU", "reference")
    starts = [start(1, 2, device="CPU"), start(3, 3, runtime="fast"), start(4, 5), start(6, None)]
    timings.add(identity(), [1.0, 2.0, 3.0, 4.0, 6.0], starts)
    assert timings.per_epoch(identity()) == Epoch(5.0)


def test_until_an_epoch_was_timed_it_is_estimated_from_a_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(timings_module, "BENCHMARKS", tmp_path)
    monkeypatch.setattr(timings_module, "benchmarked", benchmarked.__wrapped__)  # not cached
    columns = "model,variant,device,mode,precision,date,images_per_s\n"
    (tmp_path / "a-torch2.11.0.csv").write_text(
        f"{columns}"
        "base,Conv,A (2 threads),fast,fp32,,1000\n"
        "base,Lr,A (2 threads),fast,fp32,2026-02-01,2000\n"
        "base,Lr,A (2 threads),usual,fp32,,1\n"
        "base,Lr,B (2 threads),fast,fp32,,4000\n"
        "base,Lr,GPU,fast,tf32,,50000\n"
        "base,Lr,GPU,fast,fp32,2026-02-01,40000\n"
        "base,Lr,GPU,fast,bf16,,90000\n"
    )
    (tmp_path / "a-torch2.9.0.csv").write_text(  # an older torch, though its name sorts last
        f"{columns}"
        "base,Lr,A (2 threads),fast,fp32,2026-01-01,500\n"
        "allconv,Lr,A (2 threads),fast,fp32,2026-01-01,100\n"
    )
    base = ["dataset=cifar10"]
    known = {
        device: Timings(device, "fast").per_epoch(identity("variant=Lr", *base))
        for device in ("A (2 threads)", "B (2 threads)", "C (4 threads)", "GPU", "other GPU")
    }
    assert known == {
        "A (2 threads)": Epoch(25.0, "A (2 threads)"),
        "B (2 threads)": Epoch(12.5, "B (2 threads)"),
        "C (4 threads)": Epoch(25.0, "A (2 threads)"),
        "GPU": Epoch(1.0, "GPU"),
        "other GPU": None,
    }
    here = Timings("A (2 threads)", "fast")
    assert here.per_epoch(identity("variant=r", *base)) == Epoch(50.0, "A (2 threads)")  # Conv's
    assert here.per_epoch(identity("model=allconv", *base)) == Epoch(500.0, "A (2 threads)")
    assert here.per_epoch(identity("model=vgg11", *base)) is None
    mine = start(1, 1, device="A (2 threads)", runtime="fast")
    here.add(identity("variant=Lr", *base), [7.0], [mine])
    assert here.per_epoch(identity("variant=Lr", *base)) == Epoch(7.0)


def test_durations_are_read_from_records_and_checkpoints(scene, tmp_path):
    paths, known = scene
    record = {"schema": SCHEMA, "science": known, "provenance": [start(1, 1)]}
    write_record(paths.record, record | {"timing": {"seconds_per_epoch": [3.0]}})
    (paths.record.parent / "bad.json").write_text("{")
    write_record(paths.record.parent / "old.json", {"schema": SCHEMA})
    timings = Timings("GPU", "reference")
    timings.add_checkpoint(paths.checkpoints)
    assert timings.per_epoch(known) is None
    timings.add_records(paths.record.parent)
    assert timings.per_epoch(known) == Epoch(3.0)
    checkpoint(paths, known, epoch=2, seconds=[5.0, 5.0], starts=[start(1, 2)])
    timings.add_checkpoint(paths.checkpoints)
    assert timings.per_epoch(known) == Epoch(5.0)
    (paths.checkpoints / "epoch-0003.pt").write_bytes(b"damaged")
    timings.add_checkpoint(paths.checkpoints)
    assert timings.per_epoch(known) == Epoch(5.0)


def test_table():
    statuses = [Status(State.DONE, 3, 3), Status(State.RUNNING, 1, 3, "process 7 on x")]
    lines = status_table(["first", "second-run"], statuses, ["", "~2 min"]).splitlines()
    assert lines[1].split() == ["first", "done", "3/3"]
    assert " ".join(lines[2].split()) == "second-run running 1/3 ~2 min process 7 on x"
    assert lines[3] == "1 done, 1 running, 0 interrupted, 0 failed, 0 missing"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59, "59 s"), (61, "1 min"), (3599, "1 h 0 min"), (12_000, "3 h 20 min"),
     (190_800, "2 d 5 h")],
)  # fmt: skip
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words
