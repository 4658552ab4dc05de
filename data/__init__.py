"""Datasets: downloaded once, packed into one file, checked and canonically ordered on loading."""

from __future__ import annotations

from pathlib import Path

from data.batches import SIZE, WARM_START_IMAGES, Batches, first_images
from data.dataset_file import DatasetFile, default_root
from data.packed import Dataset
from data.reference import ReferenceBatches
from data.resident import ResidentBatches
from data.spec import Augmentation, DatasetSpec, Normalisation

__all__ = [
    "DATA",
    "SIZE",
    "WARM_START_IMAGES",
    "Augmentation",
    "Batches",
    "Dataset",
    "DatasetFile",
    "DatasetSpec",
    "Normalisation",
    "ReferenceBatches",
    "ResidentBatches",
    "default_root",
    "first_images",
    "load_dataset",
]

DATA: dict[str, type[Batches]] = {"per_sample": ReferenceBatches, "resident": ResidentBatches}
"""Batch implementations by their name in `runtime.data`; their batches are bit-identical."""


def load_dataset(
    spec: DatasetSpec,
    root: Path,
    *,
    limit_train: int | None = None,
    limit_test: int | None = None,
    val_fraction: float = 0.0,
    strict: bool = False,
    option: str | None = "dataset.strict=true",
) -> Dataset:
    """Load a dataset, downloading and packing it on first use; see `DatasetFile.load`.

    Args:
        spec: the dataset, and what its file must contain.
        root: the folder of packed files.
        limit_train: keep only the first `limit_train` training images in canonical order.
        limit_test: the same for the test images.
        val_fraction: share of the (kept) training images to hold out for validation.
        strict: refuse test images of a user's own that are training images, too, instead of
            warning.
        option: what makes `strict` true, for the message.

    Raises:
        UserError: the data is damaged, does not match `spec`, is missing and cannot be fetched, or
            is not `strict`.
    """
    return DatasetFile(spec, root).load(
        limit_train=limit_train,
        limit_test=limit_test,
        val_fraction=val_fraction,
        strict=strict,
        option=option,
    )
