"""Images as a network's input, for checking and calibrating exported files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data import DatasetFile, DatasetSpec, load_dataset


def normalised(pixels: np.ndarray, spec: DatasetSpec) -> Tensor:
    """Pixels (N, H, W, C) uint8 as a network's input (N, C, 32, 32), without augmentation."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32).contiguous()
    return spec.normalise(F.pad(images, (spec.augmentation.test_padding,) * 4))


def check_images(
    spec: DatasetSpec, root: Path, *, count: int, limit: int | None
) -> tuple[Tensor, str]:
    """The first `count` test images or, where the dataset's file is missing, random ones.

    Args:
        spec: the dataset.
        root: the folder of packed datasets; nothing is downloaded.
        count: number of images.
        limit: number of test images that the run had, None for all.

    Returns:
        The images, normalised, and what they are.
    """
    if DatasetFile(spec, root).path.exists():
        data = load_dataset(spec, root, limit_train=1, limit_test=limit)
        return normalised(data.test.images[:count], spec), "test images"
    shape = (count, spec.image_size, spec.image_size, spec.channels)
    pixels = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    return normalised(pixels, spec), f"random images, since {spec.name}.npz is not in {root}"
