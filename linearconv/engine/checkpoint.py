"""Checkpoints at epoch boundaries."""

from __future__ import annotations

import io
import logging
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from linearconv.engine.files import atomic_write, delete_partial
from linearconv.errors import UserError

log = logging.getLogger(__name__)

KEPT = 2
"""Number of epoch checkpoints to keep: the last, and the one before it as a spare."""


class Checkpoints:
    """The checkpoints of one run: `epoch-NNNN.pt` (the last two) and `best.pt`.

    Args:
        folder: the run's own folder; created on first write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def best(self) -> Path:
        """Path of the best weights."""
        return self.folder / "best.pt"

    def epochs(self) -> list[Path]:
        """The epoch checkpoints, oldest first."""
        paths = self.folder.glob("epoch-*.pt")
        # Not "epoch-0010 (conflicted copy).pt", as programs that synchronise folders leave.
        numbered = (path for path in paths if path.stem[6:].isdecimal())
        return sorted(numbered, key=lambda path: int(path.stem[6:]))

    def save(self, epoch: int, state: dict[str, Any]) -> None:
        """Write the checkpoint after `epoch` epochs (0: before the first) and delete older ones."""
        save(self.folder / f"epoch-{epoch:04d}.pt", state)
        for old in self.epochs()[:-KEPT]:
            old.unlink()

    def load_last(self) -> dict[str, Any] | None:
        """The newest readable checkpoint, or None if there are no checkpoints.

        Damaged checkpoints are logged and, once an older one has been read, deleted.

        Raises:
            UserError: all checkpoints are damaged.
        """
        delete_partial(self.folder / "*.pt")
        damaged: list[Path] = []
        for path in reversed(self.epochs()):
            try:
                state = load(path)
            except UserError as error:
                log.warning("%s; trying the previous checkpoint", error)
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
        """Replace the checkpoints in `folder` with these.

        This folder gets another name when all are there, so that a move that was killed before can
        be repeated, and one that was killed later is forgotten.
        """
        moved, target = [*self.epochs(), self.best], Checkpoints(folder)
        moved = [path for path in moved if path.exists()]
        for path in moved:
            with atomic_write(folder / path.name) as file:
                file.write(path.read_bytes())
        names = {path.name for path in moved}
        for old in [*target.epochs(), target.best]:
            if old.name not in names:
                old.unlink(missing_ok=True)
        done = self.folder.with_name(f"{self.folder.name}-moved")
        shutil.rmtree(done, ignore_errors=True)
        self.folder.replace(done)
        shutil.rmtree(done, ignore_errors=True)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically."""
    with atomic_write(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # torch hides the system's error, e.g. a full disk, behind an internal one.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load(path: Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU; it contains tensors and plain values, no code.

    Raises:
        UserError: the file is missing, damaged or not a checkpoint of a run.
        OSError: the file could not be read, which does not mean that it is damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} not found") from None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # torch writes checksums and does not verify them.
            if archive.testzip() is not None:
                raise zipfile.BadZipFile("a checksum is wrong")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damage, with its own advice
        raise UserError(f"checkpoint {path} is damaged ({type(error).__name__})") from None
    if not isinstance(state, dict) or not {"run_id", "science", "epoch", "model"} <= set(state):
        raise UserError(f"{path} is not a checkpoint of a run of this project")
    return state


def load_weights(model: nn.Module, state: dict[str, Any]) -> None:
    """Load a checkpoint's weights into the network that its identity describes.

    Raises:
        UserError: the model has other parameters than when it was trained.
    """
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"the weights of {state['run_id']} do not fit the network that is built now "
            f"({reason}): if its model has changed since, raise `revision` in its yaml in "
            "configs/model, which makes it another run; to evaluate the old one, use the code that "
            "trained it"
        ) from None
