"""The training loop: epochs, evaluation, checkpoints, until done, interrupted or out of time."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from linearconv.engine.checkpoint import Checkpoints, load_weights, save
from linearconv.engine.fast.runtime import AcceleratedModel, Runtime
from linearconv.engine.interrupts import interrupts_deferred
from linearconv.engine.optimizer import (
    ADAM,
    OptimizerSettings,
    build_optimizer,
    load_state,
    set_lr,
)
from linearconv.engine.precision import precision_flags
from linearconv.engine.reporting import Entry, Observer
from linearconv.engine.seeding import derive_seed
from linearconv.engine.step import Regularizer, Steps, TrainBatches, TrainStep, evaluate
from linearconv.errors import first_line
from linearconv.regularizer import model_correlation_loss, regularized_filters

log = logging.getLogger(__name__)

SCHEDULES = ("step", "multistep", "cosine")
"""How the learning rate falls from epoch to epoch; see `TrainSettings`."""


class Batches(TrainBatches, Protocol):
    """The interface to a dataset that the engine needs."""

    train_size: int

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test batches."""

    def val(self) -> Iterator[tuple[Tensor, Tensor]] | None:
        """The validation batches, or None if no images were held out."""


@dataclass(frozen=True)
class TrainSettings:
    """Training settings, apart from model and data (paper, section 4.2).

    Attributes:
        epochs: passes over the training images.
        lr: initial learning rate.
        lr_decay_every: epochs between two decays of the learning rate; schedule "step" only.
        lr_decay_factor: factor of each decay; not with the schedule "cosine".
        regularizer: the correlation loss, or None.
        precision: "tf32", "fp32" or "bf16".
        optimizer: see `OptimizerSettings`.
        schedule: "step", "multistep" or "cosine", half a period from `lr` towards 0 (Loshchilov
            and Hutter, 2017, without restarts).
        lr_milestones: numbers of finished epochs after which the rate decays; "multistep" only.
        label_smoothing: see `TrainStep`.
        seed: of what a model draws from torch's own generators (`torch.nn.Dropout`).
    """

    epochs: int
    lr: float
    lr_decay_every: int
    lr_decay_factor: float
    regularizer: Regularizer | None
    precision: str = "tf32"
    optimizer: OptimizerSettings = ADAM
    schedule: str = "step"
    lr_milestones: tuple[int, ...] = ()
    label_smoothing: float = 0.0
    seed: int = 0

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        if self.schedule == "multistep":
            decays = sum(epoch >= milestone for milestone in self.lr_milestones)
        else:
            decays = epoch // self.lr_decay_every
        return self.lr * self.lr_decay_factor**decays


class Training:
    """All state of a run that changes during training, and so all that a checkpoint contains.

    Args:
        model: already on its device.
        settings: see `TrainSettings`.
        runtime: see `Runtime`.

    Attributes:
        curve: one dict per finished epoch (see `record.py`).
        correct: (N,) bool, whether the last epoch's network classifies each test image correctly;
            None before the first epoch.
        seconds: duration of each finished epoch, including evaluation.
        starts: one provenance dict per process that worked on the run.
    """

    def __init__(
        self, model: nn.Module, settings: TrainSettings, runtime: Runtime | None = None
    ) -> None:
        self.model, self.settings, self.runtime = model, settings, runtime or Runtime()
        self.accelerated = AcceleratedModel(model, self.runtime)
        self.optimizer = build_optimizer(
            model, settings.lr, settings.optimizer, fused=self.runtime.fused_optimizer
        )
        self.step = TrainStep(
            model,
            self.optimizer,
            settings.regularizer,
            settings.precision,
            settings.label_smoothing,
        )
        self.curve: list[Entry] = []
        self.correct: Tensor | None = None
        self.seconds: list[float] = []
        self.starts: list[dict[str, Any]] = []

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.curve)

    def best(self, key: str) -> Entry:
        """The first epoch with the highest accuracy `key`."""
        return max(self.curve, key=lambda entry: entry[key])

    @property
    def selected(self) -> Entry:
        """The epoch whose weights are the best: by validation images if there are any."""
        return self.best("val_acc" if "val_acc" in self.curve[-1] else "test_acc")

    @property
    def measured_execution(self) -> str | None:
        """The execution of "auto" layers that an earlier start measured to be the fastest."""
        measured = (start["execution"] for start in self.starts if "execution" in start)
        return next(measured, None)

    def state_dict(self) -> dict[str, Any]:
        """Only tensors and plain values, so that `torch.load(weights_only=True)` can read it."""
        return {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "curve": self.curve,
            "correct": self.correct,
            "test_acc_best": self.best("test_acc")["test_acc"] if self.curve else None,
            "seconds": self.seconds,
            "starts": self.starts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        load_weights(self.model, state)
        load_state(self.optimizer, state["optimizer"])
        self.curve, self.seconds, self.starts = state["curve"], state["seconds"], state["starts"]
        self.correct = state.get("correct")  # absent in older checkpoints


class NonFiniteLoss(RuntimeError):
    """A loss became infinite or NaN."""


def fit(
    training: Training,
    batches: Batches,
    checkpoints: Checkpoints,
    *,
    header: dict[str, Any],
    start: dict[str, Any],
    observers: Sequence[Observer] = (),
    deadline: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Train for the settings' number of epochs, with checkpoints at epoch boundaries.

    A KeyboardInterrupt propagates, but not while an epoch is saved and reported. The epoch in
    progress is lost; those that are finished are saved first.

    Args:
        training: new, or loaded from a checkpoint.
        batches: the data.
        checkpoints: where to save.
        header: stored in each checkpoint next to the state: the run_id and the identity.
        start: provenance of this process, appended to `training.starts`.
        observers: notified of the progress.
        deadline: value of `clock` by which to stop; an epoch starts only if there is time left
            for one as long as the slowest so far (see `_longest`).
        clock: returns seconds; replaced in tests.

    Returns:
        Whether the run is finished; False if the deadline stopped it.

    Raises:
        NonFiniteLoss: a loss is not finite; its epoch is discarded.
    """
    start = {**start, "first_epoch": training.epoch + 1, "last_epoch": None}
    if training.epoch < training.settings.epochs:  # else its results alone are written again
        training.starts.append(start)
    saves = _Saves(training, checkpoints, header)
    saves.save()
    try:
        return _fit(training, batches, saves, start, observers, deadline, clock)
    except BaseException as error:
        with interrupts_deferred():
            try:
                saves.save_finished()
            except (RuntimeError, OSError) as second:  # of a failed device or disk, as the first
                log.warning("the epochs since the last checkpoint are lost: %s", first_line(second))
                raise error from None
        if isinstance(error, NonFiniteLoss):  # to go on would fail again
            raise
        log.info(
            "stopped in epoch %d: the same command %s",
            training.epoch + 1,
            f"continues after epoch {training.epoch} (without resume=false)"
            if training.epoch
            else "starts with it again",
        )
        raise


def _fit(
    training: Training,
    batches: Batches,
    saves: _Saves,
    start: dict[str, Any],
    observers: Sequence[Observer],
    deadline: float,
    clock: Callable[[], float],
) -> bool:
    """The epochs of `fit`."""
    epochs, first = training.settings.epochs, training.epoch
    with precision_flags(training.settings.precision), training.accelerated.rewritten():
        if first < epochs:
            steps, notes = training.accelerated.steps(
                training.step, batches, execution=training.measured_execution
            )
            start |= notes
        while training.epoch < epochs:
            began = clock()
            if began + _longest(training.seconds[first:]) > deadline:
                saves.save()
                return False
            for observer in observers:
                observer.epoch_started(training.epoch + 1, epochs, len(batches.sizes))
            # So that a resumed run draws what it would have drawn.
            torch.manual_seed(derive_seed("training", training.settings.seed, training.epoch))
            entry = train_epoch(training, steps, batches, observers)
            with interrupts_deferred():
                training.curve.append(entry)
                training.seconds.append(clock() - began)
                start["last_epoch"] = training.epoch
                saves.epoch_finished(last=training.epoch == epochs)
                for observer in observers:
                    speed = batches.train_size / training.seconds[-1]
                    observer.epoch_finished(entry, speed, training.model)
    return True


def _longest(seconds: list[float]) -> float:
    """How long the next epoch may take: as long as the slowest that this process has trained.

    Not counted are epochs of more than three times the fastest: the process was paused in them.
    """
    return max((s for s in seconds if s <= 3 * min(seconds)), default=0.0)


def train_epoch(
    training: Training, steps: Steps, batches: Batches, observers: Sequence[Observer]
) -> Entry:
    """Train one epoch and evaluate; returns its entry in the curve."""
    epoch, sums = training.epoch, training.step.sums
    lr = training.settings.lr_at(epoch)
    set_lr(training.optimizer, lr)
    training.model.train()
    sums.zero_()
    for step, _ in enumerate(steps.epoch(epoch)):
        # On a CPU reading the sum costs nothing; a GPU would have to be waited for.
        if sums.device.type == "cpu" and not math.isfinite(sums[0].item()):
            raise NonFiniteLoss(
                f"the loss became {sums[0].item()} in step {step + 1} of epoch {epoch + 1}"
            )
        for observer in observers:
            observer.step_done()
    training.accelerated.epoch_trained(len(batches.sizes))
    loss_sum, correct_sum = sums.tolist()  # the only wait for the device while training an epoch
    entry = {
        "epoch": epoch + 1,
        "lr": lr,
        "train_loss": loss_sum / batches.train_size,
        "train_acc": 100.0 * correct_sum / batches.train_size,
        "correlation_loss": _correlation(training),
    }
    network = training.accelerated.evaluated()
    for name, split in (("test", batches.test()), ("val", batches.val())):
        if split is not None:
            result = evaluate(network, split, training.settings.precision)
            if name == "test":
                training.correct = result.correct
            entry |= {f"{name}_loss": result.loss, f"{name}_acc": result.accuracy}
    for name, value in entry.items():
        if value is not None and not math.isfinite(value):
            raise NonFiniteLoss(f"{name} became {value} in epoch {epoch + 1}")
    return entry


@torch.no_grad()
def _correlation(training: Training) -> float | None:
    """Value of Algorithm 1 after the epoch, whatever is trained on; None for Conv."""
    if not any(True for _ in regularized_filters(training.model)):
        return None
    return model_correlation_loss(training.model).item()


class _Saves:
    """Writes a run's checkpoints, at most every `Runtime.save_every_s` seconds.

    If epochs take less than a second, a checkpoint after each would take longer than training.
    """

    def __init__(
        self, training: Training, checkpoints: Checkpoints, header: dict[str, Any]
    ) -> None:
        self._training, self._checkpoints, self._header = training, checkpoints, header
        self._time, self._epoch = -math.inf, -1  # of the last save
        self._best: dict[str, Any] | None = None  # weights not yet written
        self._finished: dict[str, Any] | None = None  # the state after an epoch not yet written

    def epoch_finished(self, *, last: bool) -> None:
        """Keep the weights if they are the best so far; save if due or after the last epoch."""
        training = self._training
        if training.selected is training.curve[-1]:
            weights = {name: t.clone() for name, t in training.model.state_dict().items()}
            self._best = {"epoch": training.epoch, "model": weights, "correct": training.correct}
        if last or time.monotonic() - self._time >= training.runtime.save_every_s:
            self.save()
        else:
            self._finished = copy.deepcopy(training.state_dict())

    def save(self) -> None:
        """Write the best weights, if new, and the checkpoint, unless already written.

        To be called between two epochs.
        """
        if self._epoch != self._training.epoch:
            self._write(self._training.state_dict())

    def save_finished(self) -> None:
        """The same in the middle of an epoch: write the state after the last finished one."""
        if self._finished is not None:
            self._write(self._finished)

    def _write(self, state: dict[str, Any]) -> None:
        # Best weights first: if the process dies in between, the epoch is repeated and writes both.
        if self._best is not None:
            save(self._checkpoints.best, {**self._header, **self._best})
            self._best = None
        self._checkpoints.save(state["epoch"], {**self._header, **state})
        self._time, self._epoch, self._finished = time.monotonic(), state["epoch"], None
