"""A run's arrays: filters of chosen layers for the figures, and which test images it gets right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from linearconv.engine.files import atomic_write
from linearconv.layer import LinearConv2d
from linearconv.regularizer import correlation_matrix

MAX_FILTERS = 512
"""Layers with more filters are not chosen: their matrices would make the artifacts large."""


def chosen_layers(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The first and the last convolution with at most `MAX_FILTERS` filters, by name."""
    convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    small = [name for name, conv in convs.items() if conv.out_channels <= MAX_FILTERS]
    return {name: convs[name] for name in dict.fromkeys([*small[:1], *small[-1:]])}


def primary_count(conv: nn.Conv2d) -> int:
    """Number of primary filters; for a plain convolution, of all filters."""
    return conv.primary.shape[0] if isinstance(conv, LinearConv2d) else conv.out_channels


@torch.no_grad()
def filter_artifacts(model: nn.Module) -> dict[str, np.ndarray]:
    """Arrays for Figures 1 and 3 of the paper.

    Returns:
        `layers` (L,) names of the chosen layers and `primary` (L,) their numbers of primary
        filters; `filters` (F, C, KH, KW) float16 of the first chosen layer; `correlations_<i>`
        (F * (F - 1) / 2,) float16, the correlations between all filters of chosen layer i, those
        above the diagonal row by row; `coefficients_<i>` (P, S) float16 of a LinearConv layer i,
        the paper's A, with a rank the product A1 A2.
    """
    layers = chosen_layers(model)
    arrays = {
        "layers": np.array(list(layers)),
        "primary": np.array([primary_count(conv) for conv in layers.values()]),
    }
    for i, conv in enumerate(layers.values()):
        weight = conv.weight.float().cpu()
        if i == 0:
            arrays["filters"] = weight.half().numpy()
        arrays[f"correlations_{i}"] = pack_symmetric(correlation_matrix(weight).half().numpy())
        if isinstance(conv, LinearConv2d):
            factors = [factor.float().cpu() for factor in conv.factors]
            product = factors[0] if len(factors) == 1 else factors[0] @ factors[1]
            arrays[f"coefficients_{i}"] = product.half().numpy()
    return arrays


def pack_symmetric(matrix: np.ndarray) -> np.ndarray:
    """The entries of a symmetric matrix (F, F) above its diagonal, row by row."""
    return matrix[np.triu_indices(len(matrix), k=1)]


def unpack_symmetric(entries: np.ndarray) -> np.ndarray:
    """The symmetric matrix (F, F) with ones on its diagonal whose `pack_symmetric` is `entries`.

    Raises:
        ValueError: no matrix has this number of entries.
    """
    size = round((1 + (1 + 8 * len(entries)) ** 0.5) / 2)
    if size * (size - 1) // 2 != len(entries):
        raise ValueError(f"{len(entries)} is not the number of entries above a diagonal")
    matrix = np.ones((size, size), entries.dtype)
    upper = np.triu_indices(size, k=1)
    matrix[upper] = matrix.T[upper] = entries
    return matrix


def correct_artifacts(correct: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Which test images are classified correctly, with one bit for each image.

    Args:
        correct: by the name of the weights, "best" or "last", the images (N,) as booleans.

    Returns:
        `test_images` () their number N and, for each name, `correct_<name>` (ceil(N / 8),) uint8,
        the first image in the highest bit; nothing for nothing.
    """
    arrays = {}
    for name, images in correct.items():
        arrays["test_images"] = np.array(len(images))
        arrays[f"correct_{name}"] = np.packbits(images)
    return arrays


def unpack_correct(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray | None:
    """The (N,) booleans of `correct_artifacts`; None if the arrays do not contain them.

    Raises:
        ValueError: the arrays contradict each other.
    """
    if f"correct_{name}" not in arrays:
        return None
    count, packed = int(arrays["test_images"]), arrays[f"correct_{name}"]
    if len(packed) != -(-count // 8):
        raise ValueError(f"{len(packed)} bytes are not one bit for each of {count} images")
    return np.unpackbits(packed, count=count).astype(bool)


def artifacts_path(results: Path, run_id: str) -> Path:
    """Where a run's arrays are in a results folder."""
    return results / "artifacts" / f"{run_id}.npz"


def write_artifacts(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Atomically write a run's arrays as one compressed .npz."""
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)
