"""Images as a network's input, for checking exported files."""

from __future__ import annotations

import numpy as np
import torch

from data import Dataset, DatasetSpec, ResidentBatches
from data.packed import Split


def random_batches(spec: DatasetSpec, *, count: int) -> ResidentBatches:
    """Batches whose test images are `count` random ones of a dataset's kind, all in one batch."""
    shape = (count, spec.image_size, spec.image_size, spec.channels)
    pixels = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    images = Split(pixels, np.zeros(count, dtype=np.int64))
    return ResidentBatches(
        Dataset(images[:0], images, classes=(), digest=""),
        spec,
        batch_size=count,
        eval_batch_size=count,
        seed=0,
        device=torch.device("cpu"),
    )
