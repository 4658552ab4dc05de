"""A run from its identity to its record: where its files lie, and starting it again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from torch import nn

from linearconv.engine.checkpoint import Checkpoints, lock
from linearconv.engine.filters import filter_artifacts
from linearconv.engine.loop import Batches, Speed, Training, TrainSettings, fit
from linearconv.engine.record import build_record, read_record, write_artifacts, write_record
from linearconv.engine.reporting import TensorBoard, console
from linearconv.errors import UserError


@dataclass(frozen=True)
class Places:
    """Where everything of one run lies: under its run_id, never under a time.

    Attributes:
        run_id: the run's name.
        results: holds `runs/<run_id>.json` and `artifacts/<run_id>.npz`.
        checkpoint_dir: holds the folder `<run_id>`.
        log_dir: likewise.
    """

    run_id: str
    results: Path
    checkpoint_dir: Path
    log_dir: Path

    @property
    def record(self) -> Path:
        """The record, there when the run is finished."""
        return self.results / "runs" / f"{self.run_id}.json"

    @property
    def artifacts(self) -> Path:
        """Arrays for the figures."""
        return self.results / "artifacts" / f"{self.run_id}.npz"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints and of the lock."""
        return self.checkpoint_dir / self.run_id

    @property
    def log(self) -> Path:
        """The folder of the TensorBoard log."""
        return self.log_dir / self.run_id

    def make(self) -> None:
        """Make the folders, now rather than after hours of training.

        Raises:
            UserError: one cannot be made or written into.
        """
        for folder in (self.record.parent, self.artifacts.parent, self.checkpoints, self.log):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with TemporaryFile(dir=folder):
                    pass
            except OSError as error:
                raise UserError(f"{folder} cannot be written into: {error.strerror}") from None

    def finished(self) -> dict[str, Any] | None:
        """The run's record, or None while it is not finished."""
        return read_record(self.record) if self.record.exists() else None


@dataclass(frozen=True)
class Restart:
    """What to do with what an earlier start left.

    Attributes:
        resume: continue what was interrupted; else start it over.
        overwrite: run a finished run again; interrupted, this too is resumed by the next start.
    """

    resume: bool = True
    overwrite: bool = False


def execute(
    places: Places,
    science: dict[str, Any],
    model: Callable[[], nn.Module],
    batches: Batches,
    settings: TrainSettings,
    speed: Speed,
    *,
    start: dict[str, Any],
    input_shape: tuple[int, int, int],
    restart: Restart,
    image_every: int,
    deadline: float = math.inf,
) -> dict[str, Any] | None:
    """Train a run to its end, or go on with it, and write its record.

    Args:
        places: where its files lie.
        science: the hashed config.
        model: builds the network, with the run's initial weights, on its device.
        batches: the data.
        settings: what is trained.
        speed: how it is computed.
        start: provenance of this process.
        input_shape: (C, H, W) of one image.
        restart: what to do with what an earlier start left.
        image_every: epochs between two sets of images in the TensorBoard log.
        deadline: value of `time.monotonic()` by which to stop.

    Returns:
        The record; None when the time limit stopped the run.

    Raises:
        Locked: another live process works on the run.
        UserError: a folder of `places` cannot be written into.
    """
    places.make()
    with lock(places.checkpoints / "lock"):
        finished = places.finished()
        if finished is not None and not restart.overwrite:
            return finished
        training = Training(model(), settings, speed)
        checkpoints = _open_checkpoints(places, training, restart, again=finished is not None)
        observers = [
            console(),
            TensorBoard(places.log, first_epoch=training.epoch + 1, images_every=image_every),
        ]
        try:
            done = fit(
                training,
                batches,
                checkpoints,
                start=start,
                observers=observers,
                identity={"run_id": places.run_id, "science": science},
                deadline=deadline,
            )
        finally:
            for observer in observers:
                observer.close()
        if not done:
            return None
        record = build_record(
            places.run_id,
            science,
            training,
            input_shape=input_shape,
            batch_size=science["recipe"]["batch_size"],
            images_per_epoch=batches.train_size,
        )
        if checkpoints.folder != places.checkpoints:
            checkpoints.move_to(places.checkpoints)
        write_artifacts(places.artifacts, filter_artifacts(training.model))
        write_record(places.record, record)
        return record


def _open_checkpoints(
    places: Places, training: Training, restart: Restart, *, again: bool
) -> Checkpoints:
    """The run's checkpoints; `training` is brought to where they end."""
    # While a finished run is run again, the checkpoints of its record stay where they are.
    folder = places.checkpoints / "overwrite" if again else places.checkpoints
    checkpoints = Checkpoints(folder)
    if not restart.resume:
        checkpoints.clear()
    state = checkpoints.load_last()
    if state is not None:
        training.load_state_dict(state)
    return checkpoints
