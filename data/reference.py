"""The simplest batches: images are padded, cropped, flipped and normalised one at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from data.batches import SIZE, Batches, BatchIterator
from data.packed import Split


class ReferenceBatches(Batches):
    """The reference for faster implementations; see `Batches`."""

    def train(self, epoch: int) -> BatchIterator:
        """The augmented training batches of one epoch, counted from 0."""
        split, plan = self.dataset.train, self.plan(epoch)
        padding = self.spec.augmentation.train_padding
        parts = (
            part.split(self.batch_size) for part in (plan.order, plan.top, plan.left, plan.flip)
        )
        for order, *choices in zip(*parts, strict=True):
            samples = zip(order.tolist(), *(choice.tolist() for choice in choices), strict=True)
            images = [self._prepare(split, index, padding, *rest) for index, *rest in samples]
            yield self._batch(images, split, order)

    def _plain(self, split: Split) -> BatchIterator:
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
        return self.spec.normalise(image.to(self.dtype))

    def _batch(self, images: list[Tensor], split: Split, index: Tensor) -> tuple[Tensor, Tensor]:
        batch = torch.stack(images), torch.from_numpy(split.labels)[index]
        if self.device.type == "cuda":  # pinned memory lets the copy overlap with computation
            return tuple(t.pin_memory().to(self.device, non_blocking=True) for t in batch)
        return batch
