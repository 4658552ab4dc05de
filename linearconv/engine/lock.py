"""The lock that allows only one process per run, and its owner."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from linearconv.errors import UserError

logging.getLogger("filelock").setLevel(logging.WARNING)

HEARTBEAT_S = 30.0
"""Seconds between two heartbeats of a lock's owner."""

STALE_S = 600.0
"""Age in seconds of the last heartbeat at which another host's lock counts as stale."""


class RunLocked(Exception):
    """Another live process is working on the run; the message names it."""


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a run's lock file, or raise `RunLocked`.

    The operating system's file lock is authoritative: it is released when its process ends. For
    file systems that do not share such locks between hosts, the owner also writes an owner file
    next to the lock and touches it every `HEARTBEAT_S`; an owner on another kernel counts as dead
    when its last heartbeat is more than `STALE_S` from now. On such file systems two hosts that
    start a run at the same moment can both acquire the lock.

    Raises:
        RunLocked: another live process holds the lock.
        UserError: the file system has no locks, or the folder cannot be written to.
    """
    file = _file_lock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file.acquire()
    except Timeout:
        raise RunLocked(describe_owner(path)) from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be locked ({error}): put checkpoint_dir on a file system with locks"
        ) from None
    stop = threading.Event()
    try:
        if _alive_elsewhere(path):
            raise RunLocked(f"{describe_owner(path)}, last heartbeat {_age(path):.0f} s ago")
        _owner_file(path).write_text(
            json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "kernel": _kernel()})
        )
        threading.Thread(target=_heartbeat, args=(_owner_file(path), stop), daemon=True).start()
        try:
            yield
        finally:
            stop.set()
            _owner_file(path).unlink(missing_ok=True)
    finally:
        file.release()


def live_owner(path: Path) -> str | None:
    """The live process that holds a run's lock file, or None.

    The lock itself is tried only if the process in the owner file may be alive: trying it holds
    it for a moment, which would turn away a run that starts just then.
    """
    owner = read_owner(path)
    if not owner:
        return None
    if owner.get("kernel") != _kernel():
        return describe_owner(path) if _alive_elsewhere(path) else None
    if not (path.exists() and _process_exists(owner)):
        return None
    try:
        with _file_lock(path):
            return None
    except (Timeout, PermissionError):
        return describe_owner(path)
    except OSError:
        return None


def read_owner(path: Path) -> dict[str, Any]:
    """Host, process and kernel of a lock file's owner; empty if unknown."""
    try:
        owner = json.loads(_owner_file(path).read_text())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) and {"host", "pid"} <= set(owner) else {}


def describe_owner(path: Path) -> str:
    """A description of a lock file's owner, for messages."""
    owner = read_owner(path)
    return f"process {owner['pid']} on {owner['host']}" if owner else "another process"


def _file_lock(path: Path) -> FileLock:
    # Not filelock's fallback, a marker file that would outlive a killed process.
    return FileLock(path, blocking=False, fallback_to_soft=False)


def _owner_file(path: Path) -> Path:
    # A separate file: older versions of filelock truncate the lock file when opening it.
    return path.with_name(f"{path.name}-owner.json")


def _alive_elsewhere(path: Path) -> bool:
    """Whether the owner is alive on another kernel, whose locks may not be visible here."""
    owner = read_owner(path)
    return (
        bool(owner)
        and owner.get("kernel") != _kernel()
        and owner["host"] != socket.gethostname()  # else this host has been rebooted since
        and abs(_age(path)) < STALE_S
    )


def _process_exists(owner: dict[str, Any]) -> bool:
    """Whether the owner's process may exist; known only on POSIX and on the same host."""
    if os.name == "posix" and owner["host"] == socket.gethostname():
        with suppress(PermissionError):  # it exists and belongs to another user
            try:
                os.kill(owner["pid"], 0)
            except ProcessLookupError:
                return False
    return True


def _age(path: Path) -> float:
    """Seconds since the last heartbeat; negative if another host's clock is ahead."""
    with suppress(OSError):
        return time.time() - _owner_file(path).stat().st_mtime
    return float("inf")


def _kernel() -> str:
    """Id of all processes whose file locks this one sees: the boot id, else the host name."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def _heartbeat(owner: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        with suppress(OSError):  # e.g. a network file system failing briefly; retried next time
            os.utime(owner)
