"""How the steps of an epoch are carried out: one by one, or by replaying captured ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from torch import Tensor

from linearconv.engine.step import TrainStep

Replay = Callable[[], None]
"""Carries out one step, the cutting of its batch included."""

Kind = tuple[int, bool]
"""Images in the batch, and whether the correlation loss is added.

An epoch has few kinds of step: with and without the loss, and the short last batch.
"""


class TrainBatches(Protocol):
    """What the steps ask of the training data; (images, labels) lie on the model's device."""

    sizes: list[int]

    def train(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches of an epoch, counted from 0."""


class CapturableBatches(TrainBatches, Protocol):
    """Batches whose cutting can be captured with the step."""

    state: list[Tensor]

    def begin(self, epoch: int) -> None:
        """Put the choices of an epoch where `next` reads them."""

    def next(self, size: int) -> tuple[Tensor, Tensor]:
        """The next `size` images and labels of the epoch."""


class Steps(Protocol):
    """Carries out the steps of an epoch."""

    def epoch(self, epoch: int) -> Iterator[None]:
        """Train an epoch, counted from 0: a step each time the iterator is advanced."""


class EagerSteps:
    """Every operation of every step is handed to the device anew.

    Args:
        step: the training step.
        batches: the data.
    """

    def __init__(self, step: TrainStep, batches: TrainBatches) -> None:
        self._step, self._batches = step, batches

    def epoch(self, epoch: int) -> Iterator[None]:
        """Train an epoch, counted from 0: a step each time the iterator is advanced."""
        for i, (images, labels) in enumerate(self._batches.train(epoch)):
            self._step(images, labels, regularize=self._step.regularizes(i))
            yield


class CapturedSteps:
    """Each kind of step is captured once, with the cutting of its batch, and then replayed.

    Args:
        batches: the data.
        kinds: the kind of each step of an epoch.
        replays: what carries out a step of each kind.
    """

    def __init__(
        self, batches: CapturableBatches, kinds: list[Kind], replays: dict[Kind, Replay]
    ) -> None:
        self._batches, self._kinds, self._replays = batches, kinds, replays

    def epoch(self, epoch: int) -> Iterator[None]:
        """Train an epoch, counted from 0: a step each time the iterator is advanced."""
        self._batches.begin(epoch)
        for kind in self._kinds:
            self._replays[kind]()
            yield
