"""Batches gathered on the device, which stores the whole dataset: no per-image or host work.

All images are stored as one table of uint8 pixels. A batch is one gather from it, at addresses
that combine crop, flip and zero padding, and one lookup of normalised values. This needs no
arithmetic on pixels, so the images equal those of `ReferenceBatches` bit for bit on every device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.batches import SIZE, Batches, BatchIterator
from data.packed import Split
from data.plan import EpochPlan


@dataclass(frozen=True)
class _Pixels:
    """A split on the device.

    Attributes:
        values: (N * H * W + 1, C) uint8; the last row is the zero pixel for padding.
        labels: (N,) int64.
    """

    values: Tensor
    labels: Tensor

    @classmethod
    def of(cls, split: Split, device: torch.device) -> _Pixels:
        images = torch.from_numpy(split.images).to(device)
        channels = images.shape[-1]
        values = torch.cat([images.reshape(-1, channels), images.new_zeros(1, channels)])
        return cls(values, torch.from_numpy(split.labels).to(device))

    @property
    def padding(self) -> int:
        """Address of the zero pixel."""
        return len(self.values) - 1

    @property
    def address_dtype(self) -> torch.dtype:
        """Of addresses, which reach twice the zero pixel's beyond a corner of an image."""
        return torch.int32 if 2 * self.padding <= torch.iinfo(torch.int32).max else torch.int64


class ResidentBatches(Batches):
    """Batches gathered from the device's memory; see `Batches`.

    `train` works in any loop; `begin` and `next` are for captured training steps: they read and
    update tensors at fixed addresses, so that each replay makes the next batch.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        dataset, spec, device = self.dataset, self.spec, self.device
        self._train, self._test = (_Pixels.of(s, device) for s in (dataset.train, dataset.test))
        self._val = None if dataset.val is None else _Pixels.of(dataset.val, device)
        # Normalised value v of channel c at c * 256 + v, computed on the CPU: CUDA divides by a
        # scalar by multiplying with its reciprocal, which rounds differently.
        levels = torch.arange(256, dtype=self.dtype).expand(spec.channels, 1, 256)
        self._normalised = spec.normalise(levels).flatten().to(device)
        self._channel = torch.arange(spec.channels, dtype=torch.int32, device=device) * 256
        self._range = torch.arange(self.batch_size, device=device)
        # Read by `next`: the epoch's addresses, and the number of samples taken so far.
        self._addresses = torch.zeros(
            self.train_size, 2 * SIZE + 1, dtype=self._train.address_dtype, device=device
        )
        self._taken = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def state(self) -> list[Tensor]:
        """The tensors that `next` changes."""
        return [self._taken]

    def train(self, epoch: int) -> BatchIterator:
        """The augmented training batches of one epoch, counted from 0."""
        self.begin(epoch)
        for size in self.sizes:
            yield self.next(size)

    def begin(self, epoch: int) -> None:
        """Store the random choices of an epoch, counted from 0, for `next`."""
        padding = self.spec.augmentation.train_padding
        self._addresses.copy_(self._addresses_of(self._train, self.plan(epoch), padding))
        self._taken.zero_()

    def next(self, size: int) -> tuple[Tensor, Tensor]:
        """The next `size` images of the epoch, and their labels."""
        addresses = self._addresses.index_select(0, self._taken + self._range[:size])
        self._taken += size
        return self._gather(self._train, addresses)

    def _plain(self, split: Split) -> BatchIterator:
        pixels = self._test if split is self.dataset.test else self._val
        count = len(split)
        zeros = torch.zeros(count, dtype=torch.int64)
        unvaried = EpochPlan(torch.arange(count), zeros, zeros, zeros.bool())
        padding = self.spec.augmentation.test_padding
        for addresses in self._addresses_of(pixels, unvaried, padding).split(self.eval_batch_size):
            yield self._gather(pixels, addresses)

    def _addresses_of(self, pixels: _Pixels, plan: EpochPlan, padding: int) -> Tensor:
        """32 row addresses, 32 column addresses and index of each sample -> (N, 65).

        The address of a pixel is that of its row plus that of its column; outside the image the
        sum is `pixels.padding` or more.
        """
        order, top, left, flip = (
            t.to(self.device)[:, None] for t in (plan.order, plan.top, plan.left, plan.flip)
        )
        size, steps = self.spec.image_size, torch.arange(SIZE, device=self.device)
        row = top + steps - padding
        column = left + torch.where(flip, SIZE - 1 - steps, steps) - padding
        inside = [(place >= 0) & (place < size) for place in (row, column)]
        row = torch.where(inside[0], (order * size + row) * size, pixels.padding)
        column = torch.where(inside[1], column, pixels.padding)
        return torch.cat([row, column, order], dim=1).to(pixels.address_dtype)

    def _gather(self, pixels: _Pixels, addresses: Tensor) -> tuple[Tensor, Tensor]:
        """Addresses (B, 65) -> images (B, C, 32, 32) in channels_last, labels (B,)."""
        rows, columns, samples = addresses.split([SIZE, SIZE, 1], dim=1)
        place = (rows[:, :, None] + columns[:, None, :]).clamp_max_(pixels.padding)
        values = pixels.values.index_select(0, place.flatten())
        images = self._normalised.index_select(0, (values + self._channel).flatten())
        images = images.view(len(addresses), SIZE, SIZE, -1).permute(0, 3, 1, 2)
        return images, pixels.labels.index_select(0, samples.flatten())
