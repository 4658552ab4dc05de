"""The training loop: epochs, evaluation, checkpoints, until done, interrupted or out of time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from linearconv.engine.capture import CudaGraphs, checked_capture
from linearconv.engine.checkpoint import Checkpoints, save
from linearconv.engine.folding import FoldedNetwork
from linearconv.engine.optimizer import adam, load_state, set_lr
from linearconv.engine.pooling import pooling_before_norm, pooling_before_relu
from linearconv.engine.precision import precision_flags
from linearconv.engine.reporting import Entry, Observer
from linearconv.engine.small_images import small_image_products
from linearconv.engine.step import Regularizer, TrainStep, evaluate
from linearconv.engine.stepping import EagerSteps, Steps, TrainBatches
from linearconv.regularizer import model_correlation_loss, regularized_filters


class Batches(TrainBatches, Protocol):
    """What the engine asks of a dataset."""

    train_size: int

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

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return self.lr * self.lr_decay_factor ** (epoch // self.lr_decay_every)


@dataclass(frozen=True)
class Speed:
    """How it is computed: each switch keeps the numbers, up to rounding.

    Attributes:
        channels_last: images and filters lie in memory channel by channel innermost.
        fused_adam: Adam as one operation over all parameters.
        capture: on CUDA, whole steps are captured as CUDA graphs and replayed (bit for bit).
        fold_batch_norms: evaluation folds batch norms into the convolutions before them.
        pool_before_relu: max pooling comes before the ReLU that it follows (bit for bit).
        pool_before_norm: with `pool_before_relu`, training on a CPU, it comes before the batch norm
            too.
        small_image_products: on a CPU, convolutions of small images are matrix products.
        save_every_s: seconds between two checkpoints, which are written at epochs' ends alone;
            so much work is lost at most when a process is killed (bit for bit).
    """

    channels_last: bool = False
    fused_adam: bool = False
    capture: bool = False
    fold_batch_norms: bool = False
    pool_before_relu: bool = False
    pool_before_norm: bool = False
    small_image_products: bool = False
    save_every_s: float = 0.0


class Training:
    """Everything of a run that changes while it trains, and so everything a checkpoint holds.

    Args:
        model: on its device already.
        settings: see `TrainSettings`.
        speed: see `Speed`.

    Attributes:
        curve: one object per finished epoch (see `record.py`).
        seconds: duration of each finished epoch, evaluation included.
        starts: one provenance object per process that worked on the run.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings, speed: Speed = Speed()) -> None:
        if speed.channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.model, self.settings, self.speed = model, settings, speed
        self.optimizer = adam(model, settings.lr, fused=speed.fused_adam)
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

    def steps(self, batches: Batches) -> tuple[Steps, str]:
        """What carries out the steps of the epochs, and what to say of it in the provenance."""
        self.model.train()  # a captured step stays in the mode in which it was captured
        if self.speed.capture and self.step.sums.is_cuda:
            return checked_capture(self.step, batches, CudaGraphs())
        return EagerSteps(self.step, batches), "eager"

    def evaluated(self) -> Callable[[Tensor], Tensor]:
        """The network with its present weights, in evaluation mode, to be used at once."""
        self.model.eval()
        if not self.speed.fold_batch_norms:
            return self.model
        self._folded.refresh()
        return self._folded

    @cached_property
    def _folded(self) -> FoldedNetwork:
        return FoldedNetwork(self.model)

    @contextmanager
    def rewritten(self) -> Iterator[None]:
        """Within it, the network computes in the ways that `speed` names."""
        with ExitStack() as ways:
            if self.speed.pool_before_relu:
                ways.enter_context(pooling_before_relu(self.model))
            if self.speed.pool_before_norm:
                ways.enter_context(pooling_before_norm(self.model))
            if self.speed.small_image_products:
                ways.enter_context(small_image_products(self.model))
            yield

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values alone, so that `torch.load(weights_only=True)` reads it."""
        return {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "curve": self.curve,
            "test_acc_best": self.best("test_acc")["test_acc"] if self.curve else None,
            "seconds": self.seconds,
            "starts": self.starts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.model.load_state_dict(state["model"])
        load_state(self.optimizer, state["optimizer"])
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
    """Train until the settings' number of epochs, with checkpoints at epochs' ends.

    A KeyboardInterrupt passes through; the epoch in progress is lost then, and finished ones that
    took less than `Speed.save_every_s` since the last checkpoint.

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
    start = {**start, "first_epoch": first + 1, "last_epoch": None}
    training.starts.append(start)
    saves = _Saves(training, checkpoints, identity)
    saves.save()
    with precision_flags(training.settings.precision), training.rewritten():
        if first < epochs:
            steps, start["steps"] = training.steps(batches)
        while training.epoch < epochs:
            began = clock()
            slowest = max(training.seconds[first:], default=0.0)  # of this process's epochs
            if began + slowest > deadline:
                saves.save()
                return False
            for observer in observers:
                observer.epoch_started(training.epoch + 1, epochs, len(batches.sizes))
            entry = train_epoch(training, steps, batches, observers)
            training.curve.append(entry)
            training.seconds.append(clock() - began)
            start["last_epoch"] = training.epoch
            saves.epoch_finished(last=training.epoch == epochs)
            for observer in observers:
                speed = batches.train_size / training.seconds[-1]
                observer.epoch_finished(entry, speed, training.model)
    return True


def train_epoch(
    training: Training, steps: Steps, batches: Batches, observers: Sequence[Observer]
) -> Entry:
    """Train one epoch and evaluate; returns its entry of the curve."""
    epoch, sums = training.epoch, training.step.sums
    lr = training.settings.lr_at(epoch)
    set_lr(training.optimizer, lr)
    training.model.train()
    sums.zero_()
    for _ in steps.epoch(epoch):
        for observer in observers:
            observer.step_done()
    loss_sum, correct_sum = sums.tolist()  # the epoch's one wait for the device
    entry = {
        "epoch": epoch + 1,
        "lr": lr,
        "train_loss": loss_sum / batches.train_size,
        "train_acc": 100.0 * correct_sum / batches.train_size,
        "correlation_loss": _correlation(training),
    }
    network = training.evaluated()
    for name, split in (("test", batches.test()), ("val", batches.val())):
        if split is not None:
            result = evaluate(network, split, training.settings.precision)
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


class _Saves:
    """Writes a run's checkpoints, not more often than they are worth.

    Where epochs take less than a second, a checkpoint after each would take longer than they do.
    """

    def __init__(
        self,
        training: Training,
        checkpoints: Checkpoints,
        identity: dict[str, Any],
    ) -> None:
        self._training, self._checkpoints, self._identity = training, checkpoints, identity
        self._time, self._epoch = -math.inf, -1  # of the last save
        self._best: dict[str, Any] | None = None  # weights not yet written

    def epoch_finished(self, *, last: bool) -> None:
        """Remember the weights if they are the best so far; save if it is time, or the end."""
        training = self._training
        selected_by = "val_acc" if "val_acc" in training.curve[-1] else "test_acc"
        if training.best(selected_by) is training.curve[-1]:
            weights = {name: t.clone() for name, t in training.model.state_dict().items()}
            self._best = {"epoch": training.epoch, "model": weights}
        if last or time.monotonic() - self._time >= training.speed.save_every_s:
            self.save()

    def save(self) -> None:
        """Write the best weights, if they are new, and the checkpoint, unless it is there."""
        training = self._training
        if self._epoch == training.epoch:
            return
        # Best weights first: if the process dies in between, the epoch is repeated and writes both.
        if self._best is not None:
            save(self._checkpoints.best, {**self._identity, **self._best})
            self._best = None
        self._checkpoints.save(training.epoch, {**self._identity, **training.state_dict()})
        self._time, self._epoch = time.monotonic(), training.epoch
