"""Checkpoints at epoch boundaries, and the lock that keeps a run to one process."""

from __future__ import annotations

import fcntl
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

import torch

from linearconv.engine.files import atomic_write
from linearconv.errors import UserError

log = logging.getLogger(__name__)

KEPT = 2
"""How many of the last checkpoints stay: the one before the last is a spare."""

HEARTBEAT_S = 30.0
"""Seconds between two signs of life of a lock's holder."""

STALE_S = 600.0
"""Age in seconds of the last sign of life at which another host's lock counts as dead."""


class Checkpoints:
    """The checkpoints of one run: `epoch-NNNN.pt` (the last two) and `best.pt`.

    Args:
        folder: the run's own folder; made when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def best(self) -> Path:
        """Where the best weights lie."""
        return self.folder / "best.pt"

    def epochs(self) -> list[Path]:
        """The epoch checkpoints, oldest first."""
        return sorted(self.folder.glob("epoch-*.pt"), key=lambda path: int(path.stem[6:]))

    def save(self, epoch: int, state: dict[str, Any]) -> None:
        """Write the checkpoint after `epoch` epochs (0: before the first), drop the older ones."""
        save(self.folder / f"epoch-{epoch:04d}.pt", state)
        for old in self.epochs()[:-KEPT]:
            old.unlink()

    def load_last(self) -> dict[str, Any] | None:
        """The newest readable checkpoint, or None where there is none.

        A damaged one is named and, once an older one has been read, deleted.

        Raises:
            UserError: there are checkpoints, and all are damaged.
        """
        for partial in self.folder.glob(".*.part"):
            partial.unlink()  # of a process that was killed while it wrote
        damaged: list[Path] = []
        for path in reversed(self.epochs()):
            try:
                state = load(path)
            except UserError as error:
                log.warning("%s; trying the checkpoint before it", error)
                damaged.append(path)
                continue
            for bad in damaged:
                bad.unlink()
            return state
        if damaged:
            raise UserError(
                f"no checkpoint in {self.folder}/ can be read; resume=false starts the run over"
            )
        return None

    def clear(self) -> None:
        """Delete all checkpoints of the run."""
        for path in [*self.epochs(), self.best]:
            path.unlink(missing_ok=True)

    def move_to(self, folder: Path) -> None:
        """Replace the checkpoints in `folder` by these."""
        Checkpoints(folder).clear()
        for path in [*self.epochs(), self.best]:
            path.replace(folder / path.name)
        self.folder.rmdir()


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, all or nothing."""
    with atomic_write(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # torch hides the system's own reason, a full disk say, behind an inner one of its own.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU; holds tensors and plain values, no code.

    Raises:
        UserError: the file is missing, damaged or no checkpoint of a run.
        OSError: it could not be read now, which says nothing of its content.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}") from None
    except OSError:
        raise
    except Exception as error:  # torch reports damage with many types, and advice of its own
        raise UserError(f"checkpoint {path} is damaged ({type(error).__name__})") from None
    if not isinstance(state, dict) or not {"run_id", "science", "epoch", "model"} <= set(state):
        raise UserError(f"{path} is no checkpoint of a run of this project")
    return state


class Locked(Exception):
    """Another live process works on the run; the message says which."""


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a run's lock file, or raise `Locked`.

    On one host the kernel's file lock decides, which dies with its process. For file systems
    that do not share such locks between hosts, the holder also writes its host and process into
    the file and touches it every `HEARTBEAT_S`; a lock of another host counts as stale when its
    last touch is older than `STALE_S`. On such file systems two hosts that start a run within the
    same moment can both get it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(describe_holder(path)) from None
        except OSError as error:
            raise UserError(
                f"{path} cannot be locked ({error}): put checkpoint_dir on a file system with locks"
            ) from None
        elsewhere = read_holder(path).get("host", socket.gethostname()) != socket.gethostname()
        age = time.time() - path.stat().st_mtime
        if elsewhere and age < STALE_S:
            raise Locked(f"{describe_holder(path)}, which last gave a sign of life {age:.0f} s ago")
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        file.flush()
        stop = threading.Event()
        beat = threading.Thread(target=_heartbeat, args=(path, stop), daemon=True)
        beat.start()
        try:
            yield
        finally:
            stop.set()
            file.truncate(0)


def _heartbeat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        with suppress(OSError):  # a network file system's hiccup; the next beat may pass
            os.utime(path)


def read_holder(path: Path) -> dict[str, Any]:
    """Host and process of the holder of a lock file; empty where it names none."""
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) and {"host", "pid"} <= set(holder) else {}


def describe_holder(path: Path) -> str:
    """Words for the holder of a lock file."""
    holder = read_holder(path)
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'an unknown host')}"
