"""A dataset of a user's own: its description is computed from its file."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from data.batches import SIZE
from data.packed import Dataset, read_file
from data.spec import Augmentation, DatasetSpec
from linearconv.errors import UserError

NAME = re.compile(r"(?!(null|none|true|false|inf|nan)$)[a-z][a-z0-9_]*")
"""Names of datasets: they are part of run_ids, whose parts are joined by hyphens, and choices on
Hydra's command line, which takes others for numbers or constants."""
NAME_RULE = (
    "must have lower-case letters, digits and underscores only, begin with a letter, and not be "
    "null, none, true, false, inf or nan: it begins the run_ids and is a choice of Hydra's"
)
"""`NAME` in words, for error messages."""

STORED_SIZES = (28, SIZE)
"""Heights and widths of images that are padded to 32x32 as the paper's datasets are."""


def name_of(path: Path) -> str:
    """A valid name for the dataset in a file: the file's own, in lower case with underscores.

    It begins with "my_" if it would be none otherwise, and is cut so that a run_id, which begins
    with it, has room for the network.
    """
    name = re.sub(r"[^a-z0-9]+", "_", path.stem.lower())[:50].strip("_") or "custom"
    return name if NAME.fullmatch(name) else f"my_{name}"


def describe(path: Path | str | None, name: str | None = None) -> DatasetSpec:
    """Describe the dataset in an .npz file; docs/datasets.md has its format.

    Images are cropped with a padding of 4 in training and not flipped: mirroring changes the
    meaning of digits and letters.

    Args:
        path: the file.
        name: the dataset's name; default: `name_of` the file.

    Raises:
        UserError: the file is missing, or cannot be trained on; the message says why.
    """
    if path is None:
        raise UserError(
            "dataset=custom needs the file of your dataset: dataset.path=my.npz; docs/datasets.md "
            "describes what it must contain"
        )
    path = Path(path).expanduser()
    if path.is_dir():
        raise UserError(
            f"dataset.path={path} is a folder, expected an .npz file. Pack the images in it: "
            f"`python scripts/prepare_data.py --from-folder {path} --name {name_of(path)}`, then "
            f"train with dataset={name_of(path)}"
        )
    try:
        dataset = read_file(path)
        _check_trainable(path, dataset)
    except UserError as error:
        raise UserError(f"{error}. docs/datasets.md describes what the file must contain") from None
    size, channels = dataset.train.images.shape[2:]
    return DatasetSpec(
        name=name or name_of(path),
        revision=1,
        classes=len(dataset.classes),
        channels=channels,
        image_size=size,
        train_size=len(dataset.train),
        test_size=len(dataset.test),
        normalisation=dataset.normalisation,
        augmentation=Augmentation(train_padding=4, test_padding=(SIZE - size) // 2, flip=False),
        digest=dataset.digest,
        own=True,
        path=str(path),
    )


def _check_trainable(path: Path, dataset: Dataset) -> None:
    """Reject images of a size or with channels that the networks do not take."""
    for name in ("train", "test"):
        images = getattr(dataset, name).images
        if images.shape[-1] not in (1, 3) or images.shape[1:3] not in [
            (s, s) for s in STORED_SIZES
        ]:
            hint = ""
            if images.shape[1] in (1, 3):
                hint = "; the channels come last: images.transpose(0, 2, 3, 1)"
            raise UserError(
                f"{path}: {name}_images has shape {images.shape}, expected (N, 32, 32, 1 or 3), "
                f"(N, 32, 32), or 28x28, which is padded{hint}"
            )
    if dataset.test.images.shape[1:] != dataset.train.images.shape[1:]:
        raise UserError(
            f"{path}: test_images are {dataset.test.images.shape[1:]}, train_images "
            f"{dataset.train.images.shape[1:]}; expected the same height, width and channels"
        )
    if len(np.unique(dataset.train.labels)) < 2:
        raise UserError(f"{path}: train_labels are all the same, expected two classes or more")
    if 0 in dataset.normalisation.std:
        raise UserError(
            f"{path}: train_images have a channel with one value everywhere (standard deviations "
            f"{dataset.normalisation.std}), which cannot be normalised; expected images"
        )
