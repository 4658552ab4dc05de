"""Base class of the batch implementations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from data.packed import Dataset, Split
from data.plan import EpochPlan
from data.spec import DatasetSpec

SIZE = 32
"""Height and width of every network's input, in pixels (paper, section 4.2)."""

WARM_START_IMAGES = 512
"""Training images that a converted network is fitted to."""

BatchIterator = Iterator[tuple[Tensor, Tensor]]


def first_images(batches: BatchIterator, count: int) -> Tensor:
    """The images of the first batches, at most `count`."""
    found: list[Tensor] = []
    while sum(map(len, found)) < count and (batch := next(batches, None)):
        found.append(batch[0])
    return torch.cat(found)[:count]


class Batches(ABC):
    """Batches of a dataset, augmented as in the paper.

    Every batch is (images (B, C, 32, 32) of `dtype`, labels (B,) int64) on `device`. The last
    batch of a pass is smaller if the batch size does not divide the number of images.

    Args:
        dataset: the images and labels.
        spec: its augmentation and normalisation.
        batch_size: images per training batch.
        eval_batch_size: images per evaluation batch; does not affect the accuracy.
        seed: the run's seed, for the `EpochPlan`s.
        device: device of the batches.
        dtype: type of the images, and of the arithmetic that normalises them.
    """

    def __init__(
        self,
        dataset: Dataset,
        spec: DatasetSpec,
        *,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dataset, self.spec, self.seed = dataset, spec, seed
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.device, self.dtype = device, dtype

    @property
    def train_size(self) -> int:
        """Number of training images in an epoch."""
        return len(self.dataset.train)

    @property
    def sizes(self) -> list[int]:
        """Number of images in each training batch of an epoch."""
        full, rest = divmod(self.train_size, self.batch_size)
        return [self.batch_size] * full + [rest] * (rest > 0)

    def plan(self, epoch: int) -> EpochPlan:
        """The random choices of an epoch, counted from 0."""
        augmentation = self.spec.augmentation
        offsets = self.spec.image_size + 2 * augmentation.train_padding - SIZE + 1
        size = self.train_size
        return EpochPlan.draw(self.seed, epoch, size=size, offsets=offsets, flip=augmentation.flip)

    @abstractmethod
    def train(self, epoch: int) -> BatchIterator:
        """The augmented training batches of one epoch, counted from 0."""

    def test(self) -> BatchIterator:
        """The test images in canonical order, without augmentation."""
        return self._plain(self.dataset.test)

    def val(self) -> BatchIterator | None:
        """The held-out training images, without augmentation; None without `val_fraction`."""
        return None if self.dataset.val is None else self._plain(self.dataset.val)

    @abstractmethod
    def _plain(self, split: Split) -> BatchIterator:
        """The images of a split in order, only padded to 32x32 and normalised."""
