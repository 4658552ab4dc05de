"""Datasets: downloaded once, packed into one file, checked and canonically ordered on loading."""

from __future__ import annotations

import logging
from pathlib import Path

from data.batches import SIZE, Batches
from data.packed import Dataset, packed_path, read_packed
from data.reference import ReferenceBatches
from data.resident import ResidentBatches
from data.spec import Augmentation, DatasetSpec, Normalisation

__all__ = [
    "DATA",
    "SIZE",
    "Augmentation",
    "Batches",
    "Dataset",
    "DatasetSpec",
    "Normalisation",
    "ReferenceBatches",
    "ResidentBatches",
    "load_dataset",
]

DATA: dict[str, type[Batches]] = {"per_sample": ReferenceBatches, "resident": ResidentBatches}
"""The ways of cutting batches, by the name that `runtime.data` gives them; bit for bit equal."""

log = logging.getLogger(__name__)


def load_dataset(
    spec: DatasetSpec,
    root: Path,
    *,
    limit_train: int | None = None,
    limit_test: int | None = None,
    val_fraction: float = 0.0,
) -> Dataset:
    """Load a dataset, downloading and packing it at its first use.

    Args:
        spec: which dataset, and what its file must hold.
        root: the folder of packed files.
        limit_train: keep only so many training images, the first in canonical order.
        limit_test: likewise for the test images.
        val_fraction: share of the (kept) training images to hold out for validation.

    Raises:
        UserError: the data is missing and cannot be fetched, damaged, or not what `spec` says.
    """
    if not packed_path(spec.name, root).exists():
        from data.official import pack

        log.info("%s is not there yet: fetching %s", packed_path(spec.name, root), spec.name)
        pack(spec.name, root)
    dataset = read_packed(spec, root)
    if dataset.digest != spec.digest:
        log.warning(
            "%s holds other images or labels than the published %s (sha256 %s..., %s): the run "
            "gets an identity of its own and fills no cell of the tables",
            packed_path(spec.name, root),
            spec.name,
            dataset.digest[:12],
            f"expected {spec.digest[:12]}..." if spec.digest else "none is pinned yet",
        )
    return dataset.limited(limit_train, limit_test).hold_out(val_fraction)
