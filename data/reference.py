"""The plainest batches: one image at a time is padded, cropped, flipped and normalised."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from data.packed import Dataset, Split
from data.plan import EpochPlan
from data.spec import DatasetSpec

SIZE = 32
"""Height and width of every network's input, in pixels (paper, section 4.2)."""

Batches = Iterator[tuple[Tensor, Tensor]]


class ReferenceBatches:
    """Batches of a dataset as the paper augments them: the oracle for faster ways.

    Every batch is (images (B, C, 32, 32) of `dtype`, labels (B,) int64) on `device`. The last
    batch of a pass is shorter where the batch size does not divide the number of images.

    Args:
        dataset: what to show.
        spec: its augmentation and normalisation.
        batch_size: images in a training batch.
        eval_batch_size: images in an evaluation batch; changes no accuracy.
        seed: the run's seed, for the `EpochPlan`s.
        device: where the batches shall lie.
        dtype: type of the images; the computation is done in it too.
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
        self._mean, self._std = (
            torch.tensor(values, dtype=dtype).view(-1, 1, 1)
            for values in (spec.normalisation.mean, spec.normalisation.std)
        )

    @property
    def train_size(self) -> int:
        """Number of training images in an epoch."""
        return len(self.dataset.train)

    @property
    def steps_per_epoch(self) -> int:
        """Number of training batches in an epoch."""
        return -(-self.train_size // self.batch_size)

    def train(self, epoch: int) -> Batches:
        """The augmented training batches of one epoch, counted from 0."""
        split, padding = self.dataset.train, self.spec.augmentation.train_padding
        offsets = self.spec.image_size + 2 * padding - SIZE + 1
        plan = EpochPlan.draw(
            self.seed, epoch, size=len(split), offsets=offsets, flip=self.spec.augmentation.flip
        )
        parts = (
            part.split(self.batch_size) for part in (plan.order, plan.top, plan.left, plan.flip)
        )
        for order, *choices in zip(*parts, strict=True):
            samples = zip(order.tolist(), *(choice.tolist() for choice in choices), strict=True)
            images = [self._prepare(split, index, padding, *rest) for index, *rest in samples]
            yield self._batch(images, split, order)

    def test(self) -> Batches:
        """The test images in canonical order, not varied."""
        return self._plain(self.dataset.test)

    def val(self) -> Batches | None:
        """The held-out training images, not varied; None without `val_fraction`."""
        return None if self.dataset.val is None else self._plain(self.dataset.val)

    def _plain(self, split: Split) -> Batches:
        padding = self.spec.augmentation.test_padding
        for index in torch.arange(len(split)).split(self.eval_batch_size):
            images = [self._prepare(split, i, padding, 0, 0, False) for i in index.tolist()]
            yield self._batch(images, split, index)

    def _prepare(
        self, split: Split, index: int, padding: int, top: int, left: int, flip: bool
    ) -> Tensor:
        """Pad, crop, flip, scale to [0, 1] and normalise one image -> (C, 32, 32)."""
        image = torch.from_numpy(split.images[index]).permute(2, 0, 1)
        image = F.pad(image, [padding] * 4)[:, top : top + SIZE, left : left + SIZE]
        if flip:
            image = image.flip(-1)
        return image.to(self.dtype).div(255).sub(self._mean).div(self._std)

    def _batch(self, images: list[Tensor], split: Split, index: Tensor) -> tuple[Tensor, Tensor]:
        batch = torch.stack(images), torch.from_numpy(split.labels)[index]
        if self.device.type == "cuda":  # pinned memory lets the copy run beside the computation
            return tuple(t.pin_memory().to(self.device, non_blocking=True) for t in batch)
        return batch
