"""The official dataset files: downloaded, parsed and packed.

torchvision downloads and parses the official files and checks their MD5 sums; only this module
imports it, since training reads the packed file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from filelock import FileLock

from data.packed import how_to_get, packed_path, write_packed
from linearconv.errors import UserError

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]


def pack(name: str, root: Path, *, download: bool = True) -> Path:
    """Write `<root>/<name>.npz`, unless it exists, from the files in `<root>/raw/<name>/`.

    Args:
        name: one of `READERS`.
        root: the folder of datasets.
        download: download missing official files; shows a progress bar.

    Raises:
        UserError: the official files are damaged, or missing and cannot be downloaded.
    """
    raw, path = root / "raw" / name, packed_path(name, root)
    try:
        raw.mkdir(parents=True, exist_ok=True)
        # Only one of several processes downloads.
        with FileLock(raw / ".lock", fallback_to_soft=False):
            if not path.exists():
                write_packed(path, READERS[name](raw, download))
                log.info("packed %s into %s", name, path)
    except (OSError, RuntimeError, ImportError, EOFError, ValueError) as error:
        raise UserError(
            f"{path} is missing, and the official files of {name} could not "
            f"be {'downloaded to' if download else 'read from'} {raw.resolve()}/: {error}. "
            f"{how_to_get(name, root)}"
        ) from None
    return path


def _assemble(train: tuple, test: tuple, classes: list[str]) -> Arrays:
    arrays: Arrays = {"classes": np.array(classes)}
    for split, (images, labels) in (("train", train), ("test", test)):
        images = np.asarray(images, dtype=np.uint8)
        arrays[f"{split}_images"] = images if images.ndim == 4 else images[..., None]
        arrays[f"{split}_labels"] = np.asarray(labels, dtype=np.int64)
    return arrays


def _torchvision(dataset: str) -> Callable[[Path, bool], Arrays]:
    """A reader of a torchvision dataset with `train=`, `.data`, `.targets` and `.classes`."""

    def read(raw: Path, download: bool) -> Arrays:
        from torchvision import datasets

        train, test = (
            getattr(datasets, dataset)(raw, train=train, download=download)
            for train in (True, False)
        )
        return _assemble((train.data, train.targets), (test.data, test.targets), train.classes)

    return read


def _svhn(raw: Path, download: bool) -> Arrays:
    """SVHN, cropped digits: its train split (without "extra") and its test split."""
    from torchvision.datasets import SVHN

    splits = [SVHN(raw, split=split, download=download) for split in ("train", "test")]
    train, test = ((s.data.transpose(0, 2, 3, 1), s.labels) for s in splits)
    return _assemble(train, test, [str(digit) for digit in range(10)])


def _digits(raw: Path, download: bool) -> Arrays:
    """The 1,797 handwritten digits that come with scikit-learn, 8x8 scaled to 32x32.

    Every fifth image of each class, in scikit-learn's order, is a test image.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    images = images.repeat(4, axis=1).repeat(4, axis=2)
    rank_in_class = np.empty(len(images), dtype=np.int64)
    for label in range(10):
        members = np.flatnonzero(digits.target == label)
        rank_in_class[members] = np.arange(len(members))
    is_test = rank_in_class % 5 == 4
    return _assemble(
        (images[~is_test], digits.target[~is_test]),
        (images[is_test], digits.target[is_test]),
        [str(digit) for digit in range(10)],
    )


READERS: dict[str, Callable[[Path, bool], Arrays]] = {
    "cifar10": _torchvision("CIFAR10"),
    "cifar100": _torchvision("CIFAR100"),
    "svhn": _svhn,
    "mnist": _torchvision("MNIST"),
    "fashion_mnist": _torchvision("FashionMNIST"),
    "digits": _digits,
}
