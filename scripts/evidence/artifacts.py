"""The arrays that runs leave for figures and comparisons, read from results/artifacts/."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from data.packed import DAMAGE
from linearconv.engine.artifacts import artifacts_path, unpack_correct, unpack_symmetric
from linearconv.engine.record import check_file
from linearconv.engine.weights import weights_path
from linearconv.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Layer:
    """The filters of one layer at the end of a run.

    Attributes:
        name: of the layer.
        primary: number P of primary filters, which come first; of a plain layer, of all.
        correlations: (F, F), the cosines between the filters.
    """

    name: str
    primary: int
    correlations: np.ndarray


def read_layers(folder: Path, run_id: str) -> list[Layer]:
    """The layers of a run: all, of its published last weights, or else the few of its arrays.

    Raises:
        UserError: a damaged file.
    """
    path = weights_path(folder, run_id)
    if not path.exists():
        filters = read_filters(folder, run_id)
        if filters is None:
            return []
        found = zip(filters.layers, filters.primary, filters.correlations, strict=True)
        return [Layer(*layer) for layer in found]
    check_file(path)
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); restore or delete it") from None
    last = {
        key.removeprefix("last/"): value for key, value in state.items() if key.startswith("last/")
    }
    return [
        _layer(last, *key.rsplit(".", 1))
        for key, value in last.items()
        if value.ndim == 4 and key.endswith((".weight", ".primary"))
    ]


def _layer(state: Mapping[str, np.ndarray], name: str, kind: str) -> Layer:
    """A layer from a state dict with its filters (F, C, KH, KW), or the primary ones alone."""
    rows = state[f"{name}.{kind}"]
    primary = rows.reshape(len(rows), -1).astype(float)
    names = (f"{name}.{factor}" for factor in ("coefficients", "coefficients1", "coefficients2"))
    factors = [state[factor].astype(float) for factor in names if factor in state]
    secondary = [reduce(np.matmul, factors).T @ primary] if factors else []
    return Layer(name, len(primary), _cosines(np.concatenate([primary, *secondary])))


def _cosines(rows: np.ndarray) -> np.ndarray:
    """The cosines (F, F) of the rows (F, K)."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows @ rows.T) / (norms @ norms.T)


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


def read_filters(folder: Path, run_id: str) -> Filters | None:
    """The filters of a run; None if it left none.

    Raises:
        UserError: a damaged file.
    """

    def filters(arrays: Mapping[str, np.ndarray]) -> Filters | None:
        layers = arrays["layers"].tolist()
        if not layers:
            return None
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

    return _read(folder, run_id, filters)


def read_correct(folder: Path, run_id: str, weights: str) -> np.ndarray | None:
    """Whether a run's weights, best or last, classify each test image correctly: (N,) bool.

    Returns:
        None if the run did not keep it.

    Raises:
        UserError: a damaged file.
    """
    return _read(folder, run_id, lambda arrays: unpack_correct(arrays, weights))


def damage(folder: Path, run_id: str) -> str | None:
    """What is wrong with the arrays of a run, or None."""
    try:
        read_filters(folder, run_id)
        read_correct(folder, run_id, "last")
    except UserError as error:
        return str(error)
    return None


def if_readable(read: Callable[..., T], *arguments: object) -> T | None:
    """What one of these functions reads; None, too, if the file is damaged.

    `scripts.evidence.results.read_records` names such files.
    """
    try:
        return read(*arguments)
    except UserError:
        return None


def _read(folder: Path, run_id: str, read: Callable[[Mapping[str, np.ndarray]], T]) -> T | None:
    """What `read` makes of a run's arrays; None if it left none."""
    path = artifacts_path(folder, run_id)
    if not path.exists():
        return None
    check_file(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return read(arrays)
    except (*DAMAGE, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}); restore or delete it") from None
