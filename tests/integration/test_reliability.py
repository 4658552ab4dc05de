"""Runs that are killed, starved and paused (figures of the long tier: docs/reliability.md)."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.records import without_provenance

MOMENTS = {
    "step": "linearconv.engine.step.TrainStep.__call__",
    "evaluation": "linearconv.engine.loop.evaluate",
    "write": "os.fsync",
    "rename": "pathlib.Path.replace",
}
"""What a run is killed in, just before it is done for the n-th time, by the function's name."""
CALLS = {"step": 48, "evaluation": 4, "write": 11, "rename": 11}
"""How often each is called in a run of four epochs of 12 steps, or less often."""


def train_until(moment: str | None, count: int, overrides: list[str], log: Path) -> None:
    """Train in this process, which kills itself; a file that it was writing is left half full."""
    import pkgutil

    from configs.cli import run_main
    from train import train

    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if moment is not None:
        owner, name = MOMENTS[moment].rsplit(".", 1)
        owner, left = pkgutil.resolve_name(owner), [count]
        original = getattr(owner, name)

        def killed(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                if moment == "write":
                    os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, name, killed)
    sys.argv = ["train.py", *overrides]
    run_main("train", train)


@pytest.fixture(scope="module")
def start():
    """Starts `train_until` in processes that have imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train", "tests.integration.test_reliability"])

    def run(moment: str | None, count: int, overrides: list[str], folder: Path) -> int:
        folder.mkdir(exist_ok=True)
        arguments = (moment, count, overrides, folder / "output")
        process = context.Process(target=train_until, args=arguments)
        process.start()
        process.join(120)
        assert process.exitcode is not None
        return process.exitcode

    return run


def places(folder: Path) -> list[str]:
    kinds = ("results", "checkpoint", "log")
    return [f"{kind}_dir={folder / kind}" for kind in kinds]


def record(folder: Path) -> dict:
    (path,) = (folder / "results/runs").glob("*.json")
    return json.loads(path.read_text())


def tiny(digits_root: Path) -> list[str]:
    return [
        "dataset=digits",
        f"dataset.root={digits_root}",
        "dataset.limit_train=192",
        "dataset.limit_test=64",
        "recipe.batch_size=16",
        "recipe.epochs=4",
        "runtime.threads=1",
        "runtime.save_every_s=0",
    ]


def kill_and_finish(start, folder: Path, overrides: list[str], *, kills: int, seed: int) -> None:
    """A run that is killed so often ends as one that is left alone, bit for bit."""
    whole, parts = folder / "whole", folder / "parts"
    assert start(None, 0, [*overrides, *places(whole)], whole) == 0
    draw, ended = random.Random(seed), []
    for _ in range(kills):
        moment = draw.choice(list(MOMENTS))
        count = draw.randint(1, CALLS[moment] // 2)
        code = start(moment, count, [*overrides, *places(parts)], parts)
        assert code in (0, -signal.SIGKILL), (parts / "output").read_text()
        ended.append((moment, count, code))
        if code == 0:  # it was finished before: the next kills hit a run that starts over
            assert without_provenance(record(parts)) == without_provenance(record(whole))
            shutil.rmtree(parts)
    assert -signal.SIGKILL in [code for *_, code in ended]
    assert start(None, 0, [*overrides, *places(parts)], parts) == 0
    assert without_provenance(record(parts)) == without_provenance(record(whole)), ended
    assert not list(parts.rglob("*.part"))


def test_a_killed_run_ends_as_one_that_is_left_alone(start, tmp_path, digits_root):
    overrides = ["model=base", "variant=LRr", *tiny(digits_root)]
    kill_and_finish(start, tmp_path, overrides, kills=3, seed=0)


@pytest.mark.long
@pytest.mark.parametrize("runtime", ["fast", "reference"])
@pytest.mark.parametrize("model", ["base", "vgg11"])
def test_runs_killed_at_random_moments(start, tmp_path, digits_root, model, runtime):
    overrides = [f"model={model}", "variant=Lr", f"runtime={runtime}", *tiny(digits_root)]
    if model == "vgg11":  # its steps take long
        overrides += ["dataset.limit_train=48", "dataset.limit_test=16"]
    kill_and_finish(start, tmp_path, overrides, kills=30, seed=1)


def test_the_same_seed_gives_the_same_bits(start, tmp_path, digits_root):
    """In another process; another seed does not."""
    overrides = ["model=base", "variant=LRr", *tiny(digits_root), "recipe.epochs=2"]
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        folder = tmp_path / name
        assert start(None, 0, [*overrides, f"seed={seed}", *places(folder)], folder) == 0
        digests.append(record(folder)["final_weights_sha256"])
    assert digests[0] == digests[1] != digests[2]
    assert without_provenance(record(tmp_path / "a")) == without_provenance(record(tmp_path / "b"))


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of so many bytes in a folder."""
    mounted = []

    def mount(folder: Path, size: int) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("needs the right to mount a file system")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


# TensorBoard writes in a thread of its own, which says so as well.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("full", ["checkpoint", "results", "log"])
def test_a_full_disk_stops_the_run_and_loses_nothing(cli, tmp_path, digits_root, small_disk, full):
    """Three checkpoints of Base-LRr and the best weights take 8 MB."""
    folder = small_disk(tmp_path / full, 10_000_000)
    overrides = ["model=base", "variant=LRr", *tiny(digits_root), *places(tmp_path)]
    filling = folder / "filling"
    free = shutil.disk_usage(folder).free
    filling.write_bytes(b"x" * (free - {"checkpoint": 4_000_000}.get(full, 20_000)))
    outcome = cli("train", *overrides)
    assert outcome.code == 1 and "Traceback" not in outcome.err, outcome.err
    assert "No space left on device" in outcome.err and "the same command" in outcome.err
    filling.unlink()
    again = cli("train", *overrides)
    assert again.code == 0, again.err
    assert cli("train", *overrides[:-3], *places(tmp_path / "whole")).code == 0
    assert without_provenance(record(tmp_path)) == without_provenance(record(tmp_path / "whole"))


def test_a_read_only_folder_is_named_before_training(cli, tmp_path, digits_root, small_disk):
    disk = small_disk(tmp_path / "checkpoint", 10_000_000)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    outcome = cli("train", "model=base", "variant=LRr", *tiny(digits_root), *places(tmp_path))
    assert outcome.code == 2 and str(disk) in outcome.err and "Read-only" in outcome.err


@pytest.mark.parametrize("folder", ["checkpoint", "results"])
def test_a_folder_that_is_removed_meanwhile_is_named(
    cli, tmp_path, digits_root, monkeypatch, folder
):
    from linearconv.engine import loop

    overrides = ["model=base", "variant=LRr", *tiny(digits_root), *places(tmp_path)]
    original, calls = loop.train_epoch, []

    def train_epoch(*args):
        calls.append(args)
        if len(calls) == 2:
            shutil.rmtree(tmp_path / folder)
            (tmp_path / folder).write_text("a file")  # in its place, so that it cannot come back
        return original(*args)

    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    outcome = cli("train", *overrides)
    assert outcome.code == 1 and "Traceback" not in outcome.err
    assert str(tmp_path / folder) in outcome.err
    (tmp_path / folder).unlink()
    assert cli("train", *overrides).code == 0


def train_often(count: int, overrides: list[str], output: Path) -> None:
    """Train with seeds 0, 1, ... in this process; writes its open files and MB after each run."""
    import ctypes
    import gc

    from configs.cli import run_main
    from train import train

    measured: dict[str, list[float]] = {"files": [], "memory": []}
    for seed in range(count):
        sys.argv = ["train.py", *overrides, f"seed={seed}"]
        with pytest.raises(SystemExit) as stop:
            run_main("train", train)
        assert stop.value.code == 0
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back: memory in use is measured
        measured["files"].append(len(list(Path("/proc/self/fd").iterdir())))
        status = Path("/proc/self/status").read_text()
        measured["memory"].append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
    output.write_text(json.dumps(measured))


@pytest.mark.long
def test_fifty_runs_in_a_process_leave_nothing_behind(tmp_path, digits_root):
    """Neither open files nor memory grow; the first ten fill caches.

    In a process of its own: what other tests left would be freed, or reused, meanwhile.
    """
    overrides = ["model=base", "variant=LRr", *tiny(digits_root), "recipe.epochs=1"]
    arguments = (50, [*overrides, *places(tmp_path)], tmp_path / "measured.json")
    process = multiprocessing.get_context("spawn").Process(target=train_often, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0
    measured = json.loads((tmp_path / "measured.json").read_text())
    files, memory = measured["files"], measured["memory"]
    assert files[-1] <= files[9]
    assert memory[-1] < memory[9] + 10, memory  # MB; measured: 0.3. A run's own state is 8
    assert len(list((tmp_path / "results/runs").glob("*.json"))) == 50


def test_sigstop_in_an_epoch_changes_nothing(cli, tmp_path, digits_root):
    overrides = ["model=base", "variant=LRr", *tiny(digits_root)]
    command = [sys.executable, "train.py", *overrides, *places(tmp_path)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            process.send_signal(signal.SIGSTOP)
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            process.send_signal(signal.SIGCONT)
    assert process.wait(60) == 0
    assert cli("train", *overrides, *places(tmp_path / "undisturbed")).code == 0
    undisturbed = record(tmp_path / "undisturbed")
    assert without_provenance(record(tmp_path)) == without_provenance(undisturbed)
