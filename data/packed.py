"""A dataset as one `.npz` file: written once, checked and put into canonical order when read."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.spec import DatasetSpec
from linearconv.engine.files import atomic_write
from linearconv.errors import UserError

KEYS = ("train_images", "train_labels", "test_images", "test_labels", "classes")
DIGEST = "digest"
"""Key of the digest; files packed elsewhere may lack it."""
OFFICIAL = "official_files"
"""Key of `spec.official_files`; only in files packed from official files with verified MD5s."""
FACTS = (DIGEST, OFFICIAL)

DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    RuntimeError,  # encrypted member; its subclass NotImplementedError: unknown compression
    zipfile.BadZipFile,
    zlib.error,
)
"""Exceptions that reading a damaged .npz raises."""


@dataclass(frozen=True)
class Split:
    """Images (N, H, W, C) uint8 and labels (N,) int64."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | np.ndarray) -> Split:
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Dataset:
    """A loaded dataset in canonical order.

    Attributes:
        train: training images and labels.
        test: test images and labels.
        classes: name of each label.
        digest: sha256 of the whole dataset, before `limited` and `hold_out`.
        val: training images held out for model selection, or None.
        official: the official files that it was packed from, see `spec.official_files`, or None.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    digest: str
    val: Split | None = None
    official: str | None = None

    def limited(self, train: int | None, test: int | None) -> Dataset:
        """Keep only the first `train` and `test` images, in canonical order (None: all)."""
        return replace(self, train=self.train[:train], test=self.test[:test])

    def hold_out(self, fraction: float) -> Dataset:
        """Move the last `fraction` of the training images, in canonical order, to `val`."""
        if fraction == 0:
            return self
        count = round(fraction * len(self.train))
        kept = len(self.train) - count
        return replace(self, train=self.train[:kept], val=self.train[kept:])


def packed_path(name: str, root: Path) -> Path:
    """The packed file of a dataset."""
    return root / f"{name}.npz"


def how_to_get(name: str, root: Path) -> str:
    """The two ways to get a dataset, for error messages."""
    return (
        f"Either run `python scripts/prepare_data.py {name}` on a machine with network access "
        f"(it downloads and packs the official files), "
        f"or copy {name}.npz, packed that way on another machine, into {root.resolve()}/"
    )


def write_packed(
    path: Path, arrays: Mapping[str, np.ndarray], *, official: str | None = None
) -> None:
    """Atomically write a dataset's arrays (see `KEYS`) and their digest as one .npz.

    Args:
        path: the packed file.
        arrays: the dataset.
        official: the verified official files that they were read from; see `spec.official_files`.
    """
    digest = _digest(*(_canonical(split) for split in _splits(arrays)))
    facts = {DIGEST: digest} | ({OFFICIAL: official} if official else {})
    with atomic_write(path) as file:
        np.savez(file, **arrays, **{key: np.array(value) for key, value in facts.items()})


def read_names(spec: DatasetSpec, root: Path) -> tuple[str | None, str | None]:
    """The digest and the official files stored in `<root>/<name>.npz`, where it has them.

    Raises:
        UserError: the file is missing or damaged.
    """
    with _opened(spec, root) as file:
        digest, official = (str(file[key]) if key in file.files else None for key in FACTS)
        return digest, official


def read_packed(spec: DatasetSpec, root: Path) -> Dataset:
    """Read, check and canonically order `<root>/<name>.npz`.

    Raises:
        UserError: the file is missing, damaged or not the dataset that `spec` describes.
    """
    path = packed_path(spec.name, root)
    arrays = _read_arrays(spec, root)
    for key, expected in _expected(spec).items():
        actual = (arrays[key].shape, arrays[key].dtype.name)
        if actual != expected:
            raise UserError(
                f"{path}: {key} has shape {actual[0]} and type {actual[1]}, expected "
                f"{expected[0]} and {expected[1]} for {spec.name}. {how_to_get(spec.name, root)}"
            )
    if arrays["classes"].shape != (spec.classes,) or arrays["classes"].dtype.kind != "U":
        raise UserError(
            f"{path}: classes must be {spec.classes} names. {how_to_get(spec.name, root)}"
        )
    for key in ("train_labels", "test_labels"):
        low, high = arrays[key].min(), arrays[key].max()
        if low < 0 or high >= spec.classes:
            raise UserError(
                f"{path}: {key} contains labels from {low} to {high}, expected 0 to "
                f"{spec.classes - 1}. {how_to_get(spec.name, root)}"
            )
    train, test = (_canonical(split) for split in _splits(arrays))
    digest = _digest(train, test)
    if DIGEST in arrays and digest != str(arrays[DIGEST]):
        raise UserError(
            f"{path} was changed after it was packed (digest {digest}, stored {arrays[DIGEST]}). "
            f"Delete it first. {how_to_get(spec.name, root)}"
        )
    official = str(arrays[OFFICIAL]) if OFFICIAL in arrays and DIGEST in arrays else None
    return Dataset(train, test, tuple(map(str, arrays["classes"])), digest, official=official)


def _read_arrays(spec: DatasetSpec, root: Path) -> dict[str, np.ndarray]:
    with _opened(spec, root) as file:
        missing = [key for key in KEYS if key not in file.files]
        if not missing:
            # Reading a member to its end also checks its CRC-32.
            return {key: file[key] for key in (*KEYS, *FACTS) if key in file.files}
    raise UserError(
        f"{packed_path(spec.name, root)} lacks {', '.join(missing)}; expected the arrays "
        f"{', '.join(KEYS)}. {how_to_get(spec.name, root)}"
    )


@contextmanager
def _opened(spec: DatasetSpec, root: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Open the packed file; exceptions from reading it become a `UserError`."""
    path = packed_path(spec.name, root)
    try:
        with np.load(path, allow_pickle=False) as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path} not found. {how_to_get(spec.name, root)}") from None
    except DAMAGE as error:
        raise UserError(
            f"{path} is truncated or damaged ({error}); expected the packed {spec.name}. "
            f"Delete it first. {how_to_get(spec.name, root)}"
        ) from None


def _expected(spec: DatasetSpec) -> dict[str, tuple[tuple[int, ...], str]]:
    image = (spec.image_size, spec.image_size, spec.channels)
    return {
        "train_images": ((spec.train_size, *image), "uint8"),
        "train_labels": ((spec.train_size,), "int64"),
        "test_images": ((spec.test_size, *image), "uint8"),
        "test_labels": ((spec.test_size,), "int64"),
    }


def _splits(arrays: Mapping[str, np.ndarray]) -> tuple[Split, Split]:
    """The training and the test images, in the order of the file."""
    return tuple(Split(arrays[f"{s}_images"], arrays[f"{s}_labels"]) for s in ("train", "test"))


def _canonical(split: Split) -> Split:
    """Sort by (sha256 of the image's bytes, label), independent of the order in the file."""
    rows = np.ascontiguousarray(split.images).reshape(len(split), -1)
    digests = [hashlib.sha256(row).digest() for row in rows]
    order = sorted(range(len(split)), key=lambda i: (digests[i], split.labels[i]))
    return split[np.array(order, dtype=np.int64)]


def _digest(*splits: Split) -> str:
    """sha256 over the splits: each sample's image bytes, then its label (little-endian int64)."""
    digest = hashlib.sha256()
    for split in splits:
        pixels = split.images.reshape(len(split), -1)
        labels = split.labels.astype("<i8").reshape(-1, 1).view(np.uint8)
        digest.update(np.concatenate([pixels, labels], axis=1))
    return digest.hexdigest()
