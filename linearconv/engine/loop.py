"""The training loop: epochs, evaluation, checkpoints, until done, interrupted or out of time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from linearconv.engine.checkpoint import Checkpoints, save
from linearconv.engine.precision import precision_flags
from linearconv.engine.reporting import Entry, Observer
from linearconv.engine.step import Regularizer, TrainStep, evaluate
from linearconv.regularizer import model_correlation_loss, regularized_filters


class Batches(Protocol):
    """What the engine asks of a dataset; (images, labels) lie on the model's device."""

    train_size: int
    steps_per_epoch: int

    def train(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches of an epoch, counted from 0."""

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test batches."""

    def val(self) -> Iterator[tuple[Tensor, Tensor]] | None:
        """The validation batches, if images were held out."""


@dataclass(frozen=True)
class TrainSettings:
    """What is trained, apart from model and data (paper, section 4.2).

    Attributes:
        epochs: passes over the training images.
        lr: initial learning rate of Adam.
        lr_decay_every: epochs between two multiplications of the learning rate.
        lr_decay_factor: what it is multiplied by.
        regularizer: the correlation loss, or None.
        precision: "tf32", "fp32" or "bf16".
    """

    epochs: int
    lr: float
    lr_decay_every: int
    lr_decay_factor: float
    regularizer: Regularizer | None
    precision: str = "tf32"


class Training:
    """Everything of a run that changes while it trains, and so everything a checkpoint holds.

    Args:
        model: on its device already.
        settings: see `TrainSettings`.

    Attributes:
        curve: one object per finished epoch (see `record.py`).
        seconds: duration of each finished epoch, evaluation included.
        starts: one provenance object per process that worked on the run.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings) -> None:
        self.model, self.settings = model, settings
        self.optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
        self.scheduler = torch.optim.lr_scheduler.StepLR(
            self.optimizer, settings.lr_decay_every, settings.lr_decay_factor
        )
        self.step = TrainStep(model, self.optimizer, settings.regularizer, settings.precision)
        self.curve: list[Entry] = []
        self.seconds: list[float] = []
        self.starts: list[dict[str, Any]] = []

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.curve)

    def best(self, key: str) -> Entry:
        """The first epoch with the highest accuracy `key`."""
        return max(self.curve, key=lambda entry: entry[key])

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values alone, so that `torch.load(weights_only=True)` reads it."""
        return {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "curve": self.curve,
            "test_acc_best": self.best("test_acc")["test_acc"] if self.curve else None,
            "seconds": self.seconds,
            "starts": self.starts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.curve, self.seconds, self.starts = state["curve"], state["seconds"], state["starts"]


class NonFiniteLoss(RuntimeError):
    """A loss became infinite or NaN."""


def fit(
    training: Training,
    batches: Batches,
    checkpoints: Checkpoints,
    *,
    identity: dict[str, Any],
    start: dict[str, Any],
    observers: Sequence[Observer] = (),
    deadline: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Train until the settings' number of epochs; every epoch ends in a checkpoint.

    A KeyboardInterrupt passes through; the last checkpoint then holds all finished epochs.

    Args:
        training: new, or loaded from a checkpoint.
        batches: the data.
        checkpoints: where to save.
        identity: stored in each checkpoint beside the state: the run_id and the science.
        start: provenance of this process, appended to `training.starts`.
        observers: told of the progress.
        deadline: value of `clock` by which to stop; no epoch is started that would not fit if
            it took as long as the slowest so far.
        clock: seconds; for tests.

    Returns:
        Whether the run is finished; False when the deadline stopped it.

    Raises:
        NonFiniteLoss: a loss of an epoch is not finite; that epoch is not kept.
    """
    epochs = training.settings.epochs
    first = training.epoch
    training.starts.append({**start, "first_epoch": first + 1, "last_epoch": None})
    checkpoints.save(first, {**identity, **training.state_dict()})
    with precision_flags(training.settings.precision):
        while training.epoch < epochs:
            began = clock()
            slowest = max(training.seconds[first:], default=0.0)  # of this process's epochs
            if began + slowest > deadline:
                return False
            for observer in observers:
                observer.epoch_started(training.epoch + 1, epochs, batches.steps_per_epoch)
            entry = train_epoch(training, batches, observers)
            training.curve.append(entry)
            training.seconds.append(clock() - began)
            training.starts[-1]["last_epoch"] = training.epoch
            _save_epoch(training, checkpoints, identity)
            for observer in observers:
                speed = batches.train_size / training.seconds[-1]
                observer.epoch_finished(entry, speed, training.model)
    return True


def train_epoch(training: Training, batches: Batches, observers: Sequence[Observer]) -> Entry:
    """Train one epoch and evaluate; returns its entry of the curve."""
    step, epoch = training.step, training.epoch
    training.model.train()
    step.sums.zero_()
    learning_rate = training.scheduler.get_last_lr()[0]
    for i, (images, labels) in enumerate(batches.train(epoch)):
        regularizer = training.settings.regularizer
        step(images, labels, regularize=regularizer is not None and regularizer.applies(i))
        for observer in observers:
            observer.step_done()
    training.scheduler.step()
    loss_sum, correct_sum = step.sums.tolist()  # the epoch's one wait for the device
    entry = {
        "epoch": epoch + 1,
        "lr": learning_rate,
        "train_loss": loss_sum / batches.train_size,
        "train_acc": 100.0 * correct_sum / batches.train_size,
        "correlation_loss": _correlation(training),
    }
    for name, split in (("test", batches.test()), ("val", batches.val())):
        if split is not None:
            result = evaluate(training.model, split, training.settings.precision)
            entry |= {f"{name}_loss": result.loss, f"{name}_acc": result.accuracy}
    for name, value in entry.items():
        if value is not None and not math.isfinite(value):
            raise NonFiniteLoss(f"{name} became {value} in epoch {epoch + 1}")
    return entry


@torch.no_grad()
def _correlation(training: Training) -> float | None:
    """Value of Algorithm 1 after the epoch, whether or not it is trained on; None for Conv."""
    if not any(True for _ in regularized_filters(training.model)):
        return None
    regularizer = training.settings.regularizer
    centered = regularizer is not None and regularizer.centered
    return model_correlation_loss(training.model, centered=centered).item()


def _save_epoch(training: Training, checkpoints: Checkpoints, identity: dict[str, Any]) -> None:
    # Best weights first: if the process dies in between, the epoch is repeated and writes both.
    selected_by = "val_acc" if "val_acc" in training.curve[-1] else "test_acc"
    if training.best(selected_by) is training.curve[-1]:
        weights = {"epoch": training.epoch, "model": training.model.state_dict()}
        save(checkpoints.best, {**identity, **weights})
    checkpoints.save(training.epoch, {**identity, **training.state_dict()})
