"""Batches cut on the device, which holds the whole dataset: no work per image, none by the host.

All images lie in memory as one long table of pixels, uint8. A batch is one gather from it, by
addresses that put crop, flip and zero padding together, and one look-up of normalised values.
Nothing is computed on the way, so the images equal those of `ReferenceBatches` bit for bit, on
every device.
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
        values: (N * H * W + 1, C) uint8; the last one is the zero of the padding.
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


class ResidentBatches(Batches):
    """Batches from the device's own memory; see `Batches`.

    Beside `train`, which any loop can use, `begin` and `next` serve a captured training step:
    they read and advance tensors at fixed places, so that each replay cuts the next batch.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        dataset, spec, device = self.dataset, self.spec, self.device
        self._train, self._test = (_Pixels.of(s, device) for s in (dataset.train, dataset.test))
        self._val = None if dataset.val is None else _Pixels.of(dataset.val, device)
        # Normalised value v of channel c at c * 256 + v, computed on the CPU: CUDA divides by a
        # number by multiplying with its inverse, which rounds otherwise.
        levels = torch.arange(256, dtype=self.dtype).expand(spec.channels, 1, 256)
        self._normalised = spec.normalise(levels).flatten().to(device)
        self._channel = torch.arange(spec.channels, dtype=torch.int32, device=device) * 256
        self._range = torch.arange(self.batch_size, device=device)
        # Where `next` reads: the epoch's addresses, and how many samples it has taken so far.
        self._addresses = torch.zeros(
            self.train_size, 2 * SIZE + 1, dtype=torch.int32, device=device
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
        """Put the choices of an epoch, counted from 0, where `next` reads them."""
        padding = self.spec.augmentation.train_padding
        self._addresses.copy_(self._addresses_of(self._train, self.plan(epoch), padding))
        self._taken.zero_()

    def next(self, size: int) -> tuple[Tensor, Tensor]:
        """The next `size` images of the epoch, and their labels."""
        addresses = self._addresses.index_select(0, self._taken + self._range[:size])
        self._taken += size
        return self._cut(self._train, addresses)

    def _plain(self, split: Split) -> BatchIterator:
        pixels = self._test if split is self.dataset.test else self._val
        count = len(split)
        zeros = torch.zeros(count, dtype=torch.int64)
        unvaried = EpochPlan(torch.arange(count), zeros, zeros, zeros.bool())
        padding = self.spec.augmentation.test_padding
        for addresses in self._addresses_of(pixels, unvaried, padding).split(self.eval_batch_size):
            yield self._cut(pixels, addresses)

    def _addresses_of(self, pixels: _Pixels, plan: EpochPlan, padding: int) -> Tensor:
        """For each sample of a plan: its 32 rows, its 32 columns and its number -> (N, 65) int32.

        A pixel's address is its row's plus its column's; outside the image it is `pixels.padding`
        or more.
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
        return torch.cat([row, column, order], dim=1).to(torch.int32)

    def _cut(self, pixels: _Pixels, addresses: Tensor) -> tuple[Tensor, Tensor]:
        """Addresses (B, 65) -> images (B, C, 32, 32), channels last in memory, labels (B,)."""
        rows, columns, samples = addresses.split([SIZE, SIZE, 1], dim=1)
        place = (rows[:, :, None] + columns[:, None, :]).clamp_max_(pixels.padding)
        values = pixels.values.index_select(0, place.flatten())
        images = self._normalised.index_select(0, (values + self._channel).flatten())
        images = images.view(len(addresses), SIZE, SIZE, -1).permute(0, 3, 1, 2)
        return images, pixels.labels.index_select(0, samples.flatten())
