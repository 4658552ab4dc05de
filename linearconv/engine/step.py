"""One training step, the steps of an epoch, and the evaluation of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linearconv.engine.precision import autocast
from linearconv.regularizer import model_correlation_loss


@dataclass(frozen=True)
class Regularizer:
    """When and how strongly the correlation loss is added (paper, section 4.2).

    Attributes:
        strength: the paper's lambda.
        every: it is added in steps i of an epoch with i mod every == every - 1, i from 0.
        centered: Pearson correlation, as in the released code, instead of Algorithm 1's cosine.
        until: it is added in the first `until` epochs only; None: in all.
    """

    strength: float
    every: int
    centered: bool
    until: int | None = None

    def applies(self, epoch: int, step: int) -> bool:
        """Whether the loss is added in a step of an epoch, both counted from 0."""
        if self.until is not None and epoch >= self.until:
            return False
        return step % self.every == self.every - 1


class TrainStep:
    """Forward, loss, backward and update for one batch; sums its metrics on the device.

    It never waits for the device and keeps no state on the host, so that it can be captured.

    Args:
        model: the network, in training mode.
        optimizer: over the model's parameters.
        regularizer: None if the variant has no correlation loss.
        precision: see `linearconv.engine.precision`.
        label_smoothing: share of each target distribution that is uniform over the classes, in
            [0, 1).

    Attributes:
        sums: float64 (2,), cross-entropy (with smoothed labels, if they are) and number of correct
            predictions summed over the images since it was last zeroed; read once per epoch, not
            in each step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        regularizer: Regularizer | None,
        precision: str,
        label_smoothing: float = 0.0,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.regularizer, self.precision = regularizer, precision
        self.label_smoothing = label_smoothing
        device = next(model.parameters()).device
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)

    def regularizes(self, epoch: int, step: int) -> bool:
        """Whether the correlation loss is added in a step of an epoch, both counted from 0."""
        return self.regularizer is not None and self.regularizer.applies(epoch, step)

    def cross_entropy(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Of a batch: logits (B, K), images (B, C, H, W), labels (B,) -> scalar."""
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def __call__(self, images: Tensor, labels: Tensor, *, regularize: bool) -> None:
        """Train on one batch: images (B, C, H, W), labels (B,)."""
        with autocast(self.precision, images.device):
            logits = self.model(images)
            loss = cross_entropy = self.cross_entropy(logits, images, labels)
        if regularize and self.regularizer is not None:
            correlation = model_correlation_loss(self.model, centered=self.regularizer.centered)
            loss = cross_entropy + self.regularizer.strength * correlation
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.sums[0].add_(cross_entropy, alpha=len(labels))
            self.sums[1].add_((logits.argmax(dim=1) == labels).sum())


class TrainBatches(Protocol):
    """The interface to the training data; (images, labels) are on the model's device."""

    sizes: list[int]

    def train(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches of an epoch, counted from 0."""


class Steps(Protocol):
    """Runs the steps of an epoch."""

    def epoch(self, epoch: int) -> Iterator[None]:
        """Train an epoch, counted from 0: one step each time the iterator is advanced."""


class EagerSteps:
    """Runs every step eagerly.

    Args:
        step: the training step.
        batches: the data.
    """

    def __init__(self, step: TrainStep, batches: TrainBatches) -> None:
        self._step, self._batches = step, batches

    def epoch(self, epoch: int) -> Iterator[None]:
        """Train an epoch, counted from 0: one step each time the iterator is advanced."""
        for i, (images, labels) in enumerate(self._batches.train(epoch)):
            self._step(images, labels, regularize=self._step.regularizes(epoch, i))
            yield


@dataclass(frozen=True)
class Evaluation:
    """A network's predictions for a set of N images.

    Attributes:
        loss: mean cross-entropy (nats).
        correct: (N,) bool on the CPU, whether each image is classified correctly.
    """

    loss: float
    correct: Tensor

    @property
    def accuracy(self) -> float:
        """Percentage of the images that are classified correctly."""
        return 100.0 * self.correct.count_nonzero().item() / len(self.correct)


@torch.no_grad()
def evaluate(
    network: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], precision: str
) -> Evaluation:
    """Evaluate a network that is in evaluation mode; waits for the device only at the end."""
    losses, correct = [], []
    for images, labels in batches:
        with autocast(precision, images.device):
            logits = network(images)
            loss = F.cross_entropy(logits, labels, reduction="sum")
        losses.append(loss.double())
        correct.append(logits.argmax(dim=1) == labels)
    if not correct:
        raise ValueError("no images to evaluate")
    correct = torch.cat(correct).cpu()
    return Evaluation(sum(losses).item() / len(correct), correct)
