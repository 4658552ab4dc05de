"""The arrays that runs leave for figures and comparisons, read from results/artifacts/."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.packed import DAMAGE
from linearconv.engine.artifacts import unpack_correct, unpack_symmetric
from linearconv.errors import UserError


@dataclass(frozen=True)
class Filters:
    """The filters of one run (see `linearconv.engine.artifacts`).

    Attributes:
        run_id: run_id of the run.
        layers: names of the chosen layers.
        primary: their numbers of primary filters.
        filters: (F, C, KH, KW), the first layer's.
        correlations: (F, F) for each chosen layer.
        coefficients: (P, S) for each chosen layer; None for a plain convolution and in the
            artifacts of runs that did not keep them.
    """

    run_id: str
    layers: list[str]
    primary: list[int]
    filters: np.ndarray
    correlations: list[np.ndarray]
    coefficients: list[np.ndarray | None]


def artifacts_path(folder: Path, run_id: str) -> Path:
    """The file of a run's arrays in a results folder, which may not exist."""
    return folder / "artifacts" / f"{run_id}.npz"


def read_filters(folder: Path, run_id: str) -> Filters | None:
    """The filters of a run; None if it left no arrays.

    Raises:
        UserError: a damaged file.
    """
    path = artifacts_path(folder, run_id)
    if not path.exists():
        return None
    try:
        with np.load(path) as arrays:
            layers = arrays["layers"].tolist()
            numbers = range(len(layers))
            return Filters(
                run_id=run_id,
                layers=layers,
                primary=arrays["primary"].tolist(),
                filters=arrays["filters"].astype(float),
                correlations=[
                    unpack_symmetric(arrays[f"correlations_{i}"]).astype(float) for i in numbers
                ],
                coefficients=[
                    arrays[name].astype(float) if name in arrays else None
                    for name in (f"coefficients_{i}" for i in numbers)
                ],
            )
    except (*DAMAGE, KeyError) as error:
        raise _damaged(path, error) from None


def read_correct(folder: Path, run_id: str, weights: str) -> np.ndarray | None:
    """Whether a run's weights, best or last, classify each test image correctly: (N,) bool.

    Returns:
        None if the run did not keep it.

    Raises:
        UserError: a damaged file.
    """
    path = artifacts_path(folder, run_id)
    if not path.exists():
        return None
    try:
        with np.load(path) as arrays:
            return unpack_correct(arrays, weights)
    except (*DAMAGE, KeyError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged ({error}); restore or delete it")
