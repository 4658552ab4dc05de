"""The lock of a run: one process at a time, its owner, and owners that died."""

import errno
import json
import multiprocessing
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from linearconv.engine import lock as lock_module
from linearconv.engine.lock import STALE_S, RunLocked, live_owner, lock
from linearconv.errors import UserError

HERE = socket.gethostname()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "run" / "lock"


def owned(path: Path, age: float = 0.0, **owner) -> Path:
    """The file that an owner would have left, last touched so many seconds ago."""
    file = path.with_name("lock-owner.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(owner))
    os.utime(file, (time.time() - age,) * 2)
    return file


def hold(path: Path, ready, release) -> None:
    with lock(path):
        ready.set()
        release.wait(30)


@pytest.fixture
def other(path):
    """Another process that holds the lock, and what tells it to release it."""
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(path, ready, release))
    process.start()
    assert ready.wait(30)
    yield process, release
    process.kill()
    process.join(30)


def test_a_lock_keeps_another_process_out_and_names_it(path, other):
    process, release = other
    name = f"process {process.pid} on {HERE}"
    assert live_owner(path) == name
    with pytest.raises(RunLocked, match=name), lock(path):
        pass
    release.set()
    process.join(30)
    assert live_owner(path) is None
    with lock(path):
        assert live_owner(path) == f"process {os.getpid()} on {HERE}"


def test_a_killed_owner_leaves_no_lock(path, other):
    process, _ = other
    process.kill()
    process.join(30)
    assert live_owner(path) is None
    with lock(path):
        pass


def test_a_killed_owner_leaves_no_lock_to_a_container_of_another_name(path, other, monkeypatch):
    """On one kernel the file lock proves it dead: nobody waits for its heartbeat to get old."""
    process, _ = other
    monkeypatch.setattr(socket, "gethostname", lambda: "renamed")
    with pytest.raises(RunLocked, match=f"process {process.pid} on {HERE}"), lock(path):
        pass
    assert live_owner(path) == f"process {process.pid} on {HERE}"
    process.kill()
    process.join(30)
    assert live_owner(path) is None
    with lock(path):
        assert live_owner(path) == f"process {os.getpid()} on renamed"


def test_a_rebooted_host_does_not_wait_for_itself(path):
    owned(path, host=HERE, pid=7, kernel="before the reboot")
    assert live_owner(path) is None
    with lock(path):
        pass


@pytest.mark.parametrize("reason", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_named(path, monkeypatch, reason):
    def flock(*arguments):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(UserError, match="put checkpoint_dir on a file system"), lock(path):
        pass


def test_the_owner_before_this_one_may_have_had_another_name_for_this_host(path):
    """A restarted container: its file lock died with it, whatever its file says."""
    owned(path, host="former", pid=7, kernel=lock_module._kernel())
    assert live_owner(path) is None
    with lock(path):
        pass


@pytest.mark.parametrize("ahead", [1, -1], ids=["past", "future"])
def test_another_kernels_lock_is_stale_when_its_heartbeat_is_far_away(path, ahead):
    """In the future, too, since clocks of hosts differ."""
    file = owned(path, host="elsewhere", pid=7, kernel="another")
    assert live_owner(path) == "process 7 on elsewhere"
    with pytest.raises(RunLocked, match="process 7 on elsewhere, last heartbeat"), lock(path):
        pass
    assert json.loads(file.read_text())["host"] == "elsewhere"
    owned(path, ahead * (STALE_S + 60), host="elsewhere", pid=7, kernel="another")
    assert live_owner(path) is None
    with lock(path):
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert not file.exists()


def test_what_a_dead_process_left_is_no_lock(path):
    with subprocess.Popen(["true"]) as process:
        process.wait()
    kernel = lock_module._kernel()
    for pid in (process.pid, os.getpid()):  # another process may have got its number since
        owned(path, host=HERE, pid=pid, kernel=kernel)
        assert live_owner(path) is None


@pytest.mark.parametrize("damaged", ["null", "[]", '{"pid": 1}', "{"])
def test_an_owner_that_cannot_be_read_is_none(path, damaged):
    owned(path).write_text(damaged)
    assert live_owner(path) is None
    with lock(path):
        pass


def test_looking_does_not_disturb_whoever_takes_the_lock(path):
    with lock(path):
        assert live_owner(path) is not None
        with pytest.raises(RunLocked), lock(path):
            pass
    assert live_owner(path) is None
    with lock(path):
        pass


def test_the_heartbeat_touches_the_owners_file(path, monkeypatch):
    monkeypatch.setattr(lock_module, "HEARTBEAT_S", 0.01)
    file = path.with_name("lock-owner.json")
    with lock(path):
        os.utime(file, (0, 0))
        deadline = time.time() + 10
        while file.stat().st_mtime == 0 and time.time() < deadline:
            time.sleep(0.01)
        assert file.stat().st_mtime > 0
