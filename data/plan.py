"""All randomness of one epoch's data, which depends only on (seed, epoch)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from linearconv.engine.seeding import generator


@dataclass(frozen=True)
class EpochPlan:
    """Order, crops and flips of one epoch; entry i is for the i-th image of the epoch.

    Attributes:
        order: (N,) int64, a permutation of the samples.
        top: (N,) int64, first row of the crop in the padded image.
        left: (N,) int64, first column of the crop.
        flip: (N,) bool, whether the crop is mirrored left to right.
    """

    order: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor

    @classmethod
    def draw(cls, seed: int, epoch: int, *, size: int, offsets: int, flip: bool) -> EpochPlan:
        """Draw the plan of an epoch on the CPU; the same on every machine.

        Args:
            seed: the run's seed.
            epoch: counted from 0.
            size: number of samples N.
            offsets: number of crop positions in each direction (padded size - 32 + 1).
            flip: whether to mirror half the images; does not affect the other draws.
        """
        source = generator("epoch-plan", seed, epoch)
        order = torch.randperm(size, generator=source)
        top, left = torch.randint(offsets, (2, size), generator=source)
        coin = torch.randint(2, (size,), generator=source).bool()
        return cls(order, top, left, coin if flip else torch.zeros_like(coin))
