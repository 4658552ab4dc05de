"""A run from its identity to its record: its paths, training and resuming."""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from linearconv.engine.artifacts import (
    artifacts_path,
    correct_artifacts,
    filter_artifacts,
    write_artifacts,
)
from linearconv.engine.checkpoint import Checkpoints, load
from linearconv.engine.fast.runtime import Runtime
from linearconv.engine.files import check_writable, delete_partial
from linearconv.engine.interrupts import interrupts_deferred
from linearconv.engine.lock import lock
from linearconv.engine.loop import Batches, Training, TrainSettings, fit
from linearconv.engine.record import (
    build_record,
    file_digests,
    network_counts,
    read_record,
    write_record,
)
from linearconv.engine.reporting import TensorBoard, console, log_hyperparameters
from linearconv.engine.weights import MAX_PARAMETERS, weights_path, write_weights
from linearconv.errors import UserError

log = logging.getLogger(__name__)

MODEL_FILE = "model_sha256"
"""Provenance key: SHA-256 of the model's source file."""


@dataclass(frozen=True)
class RunPaths:
    """Paths of one run's files, named by run_id, not by timestamp.

    Attributes:
        run_id: the run's name.
        results: contains `runs/<run_id>.json`, `artifacts/<run_id>.npz` and, of small networks,
            `weights/<run_id>.safetensors`.
        checkpoint_dir: contains the folder `<run_id>` of checkpoints.
        log_dir: contains the folder `<run_id>` of the TensorBoard log.
    """

    run_id: str
    results: Path
    checkpoint_dir: Path
    log_dir: Path

    @property
    def record(self) -> Path:
        """The record, written when the run has finished."""
        return self.results / "runs" / f"{self.run_id}.json"

    @property
    def artifacts(self) -> Path:
        """Arrays for the figures, and which test images are classified correctly."""
        return artifacts_path(self.results, self.run_id)

    @property
    def weights(self) -> Path:
        """The best and the last weights, with which anybody can check the record."""
        return weights_path(self.results, self.run_id)

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints and of the lock."""
        return self.checkpoint_dir / self.run_id

    @property
    def overwriting(self) -> Path:
        """The folder of checkpoints while a finished run is trained again."""
        return self.checkpoints / "overwrite"

    @property
    def lock(self) -> Path:
        """The lock that keeps all but one process from the run."""
        return self.checkpoints / "lock"

    @property
    def log(self) -> Path:
        """The folder of the TensorBoard log."""
        return self.log_dir / self.run_id

    def create(self) -> None:
        """Create the folders and check that the files can be written, before hours of training.

        Raises:
            UserError: a folder cannot be created or written to, or a file's name is too long.
        """
        results = (self.record, self.artifacts, self.weights)
        for path in (*results, Checkpoints(self.checkpoints).best, self.log / "events"):
            try:
                check_writable(path)
            except OSError as error:
                what = path if error.errno == errno.ENAMETOOLONG else path.parent
                raise UserError(f"{what} cannot be written to: {error.strerror}") from None

    def finished(self) -> dict[str, Any] | None:
        """The run's record, or None if the run is not finished."""
        return read_record(self.record) if self.record.exists() else None


def settle(paths: RunPaths) -> None:
    """Finish what a process has left undone that was killed right after it had written a record.

    Raises:
        RunLocked: a live process is working on the run.
        UserError: the folder of checkpoints cannot be written to.
    """
    if paths.overwriting.exists():
        with lock(paths.lock):
            _finish_overwriting(paths)


def _finish_overwriting(paths: RunPaths) -> None:
    """Move the checkpoints of a run that was trained again, if the record is of it already."""
    record, again = paths.finished(), Checkpoints(paths.overwriting)
    if record is None:
        return
    try:
        state = again.load_last()
    except UserError:  # damaged, which whoever continues that run is told
        return
    if state is not None and state["starts"] == record["provenance"]:
        again.move_to(paths.checkpoints)


def name_in_use(run_id: str, results: Path, checkpoint_dir: Path) -> str:
    """The name under which a run's files are there already, else `run_id`.

    The hash at a run_id's end says what the run computes; the words before the seed may change, for
    instance when somebody gives its variant a config, and with it a name.
    """
    pattern = f"*-{'-'.join(run_id.split('-')[-2:])}"
    found = [
        *(path.stem for path in results.glob(f"runs/{pattern}.json")),
        *(path.name for path in checkpoint_dir.glob(pattern)),
    ]
    return run_id if run_id in found or not found else found[0]


@dataclass(frozen=True)
class Restart:
    """What to do with the files of an earlier start.

    Attributes:
        resume: continue an interrupted run; else start it over.
        overwrite: run a finished run again; if interrupted, the next start resumes it.
    """

    resume: bool = True
    overwrite: bool = False


@dataclass(frozen=True)
class RunSpec:
    """What a run trains, how, and where its files are.

    Attributes:
        paths: where its files are.
        identity: what the run computes, as a plain dict.
        model: builds the network, with the run's initial weights, on its device.
        batches: the data.
        settings: see `TrainSettings`.
        runtime: see `Runtime`.
        input_shape: (C, H, W) of one image.
    """

    paths: RunPaths
    identity: dict[str, Any]
    model: Callable[[], nn.Module]
    batches: Batches
    settings: TrainSettings
    runtime: Runtime
    input_shape: tuple[int, int, int]


def execute(
    spec: RunSpec,
    restart: Restart,
    *,
    start: dict[str, Any],
    image_every: int,
    deadline: float = math.inf,
    mirror: Callable[[dict[str, Any]], AbstractContextManager] = lambda first_start: nullcontext(),
) -> dict[str, Any] | None:
    """Train a run, or resume it, and write its record.

    Args:
        spec: the run.
        restart: what to do with the files of an earlier start.
        start: provenance of this process.
        image_every: epochs between two sets of images in the TensorBoard log.
        deadline: value of `time.monotonic()` by which to stop.
        mirror: is entered before the TensorBoard log is opened and left after it is closed; gets
            the provenance of the first start, which all those that continue it have in common.

    Returns:
        The record; None if the deadline stopped the run.

    Raises:
        RunLocked: another live process is working on the run.
        UserError: a folder of `spec.paths` cannot be written to.
    """
    paths = spec.paths
    paths.create()
    with lock(paths.lock):
        _finish_overwriting(paths)
        finished = paths.finished()
        if finished is not None and not restart.overwrite:
            return finished
        for path in (paths.record, paths.artifacts, paths.weights):
            delete_partial(path)
        training = Training(spec.model(), spec.settings, spec.runtime)
        # Before training, so that a network that cannot be counted costs no run.
        counts = network_counts(
            training.model, spec.input_shape, batch_size=spec.identity["recipe"]["batch_size"]
        )
        checkpoints = _open_checkpoints(
            spec, training, restart, again=finished is not None, model_file=start.get(MODEL_FILE)
        )
        with mirror([*training.starts, start][0]):
            observers = [
                console(),
                TensorBoard(paths.log, first_epoch=training.epoch + 1, images_every=image_every),
            ]
            try:
                done = fit(
                    training,
                    spec.batches,
                    checkpoints,
                    start=start,
                    observers=observers,
                    header={"run_id": paths.run_id, "science": spec.identity},
                    deadline=deadline,
                )
            finally:
                with interrupts_deferred():
                    for observer in observers:
                        observer.close()
            if not done:
                return None
            with interrupts_deferred():  # all files of a run belong together
                record = _publish(spec, training, checkpoints, counts)
            try:
                log_hyperparameters(paths.log, spec.identity, record)
            except OSError as error:  # the run is finished all the same
                log.warning("TensorBoard's table of hyperparameters lacks the run: %s", error)
            return record


def _publish(
    spec: RunSpec, training: Training, checkpoints: Checkpoints, counts: dict[str, Any]
) -> dict[str, Any]:
    """Write the results of a finished run, the record last; returns the record."""
    paths, model = spec.paths, training.model
    record = build_record(
        paths.run_id,
        spec.identity,
        training,
        counts=counts,
        images_per_epoch=spec.batches.train_size,
    )
    published = _published_weights(spec, training, checkpoints)
    correct = {
        name: weights["correct"].numpy()
        for name, weights in published.items()
        if weights.get("correct") is not None  # absent in older checkpoints
    }
    if record["params"] <= MAX_PARAMETERS:
        write_weights(paths.weights, published)
    write_artifacts(paths.artifacts, filter_artifacts(model) | correct_artifacts(correct))
    record = write_record(
        paths.record, record | {"files": file_digests(paths.artifacts, paths.weights)}
    )
    if checkpoints.folder != paths.checkpoints:
        checkpoints.move_to(paths.checkpoints)
    return record


def _published_weights(
    spec: RunSpec, training: Training, checkpoints: Checkpoints
) -> dict[str, dict[str, Any]]:
    """The last weights and, if they can be read and are of this curve, the best ones."""
    last = {
        "run_id": spec.paths.run_id,
        "science": spec.identity,
        "epoch": training.epoch,
        "model": training.model.state_dict(),
        "correct": training.correct,
    }
    try:
        best = load(checkpoints.best)
    except UserError as error:
        log.warning("%s: the best weights of %s are not published", error, spec.paths.run_id)
        return {"last": last}
    if (best["science"], best["epoch"]) != (spec.identity, training.selected["epoch"]):
        log.warning("%s is not of this run: the best weights are not published", checkpoints.best)
        return {"last": last}
    return {"best": best, "last": last}


def _open_checkpoints(
    spec: RunSpec, training: Training, restart: Restart, *, again: bool, model_file: str | None
) -> Checkpoints:
    """The run's checkpoints; the newest is loaded into `training`.

    If the file of the model has changed since, a run that is to replace a finished one starts over;
    another one continues, with a warning, since it may be a comment that has changed.
    """
    # While a finished run is run again, the checkpoints of its record are kept.
    folder = spec.paths.overwriting if again else spec.paths.checkpoints
    checkpoints = Checkpoints(folder)
    if not restart.resume:
        checkpoints.clear()
    state = checkpoints.load_last()
    if state is not None:
        if state["science"] != spec.identity:
            raise UserError(other_run(folder))
        before = [start.get(MODEL_FILE, model_file) for start in state["starts"]]
        changed = before and before[-1] != model_file
        if changed and again:
            checkpoints.clear()
            return checkpoints
        if changed:
            log.warning(
                "the model's file has changed since epoch %d: unless it computes the same, "
                "interrupt this run, raise the model's revision and start it again",
                state["epoch"],
            )
        training.load_state_dict(state)
    return checkpoints


def other_run(path: Path) -> str:
    """That a file has this run's name but is of another one, for messages."""
    return (
        f"{path} is of another run, whose identity has the same first eight digits of its hash: "
        "give this run other folders (results_dir= and checkpoint_dir=)"
    )
