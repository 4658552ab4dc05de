"""A dataset as one `.npz` file: written once, checked and put into canonical order when read."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from data.duplicates import Pairs, report_shared, shared_pictures
from data.spec import DatasetSpec, Normalisation
from linearconv.engine.files import atomic_write
from linearconv.errors import UserError

KEYS = ("train_images", "train_labels", "test_images", "test_labels", "classes")
"""The arrays of a file; without `classes`, the labels are their own names."""
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
        shared: test images that are training images, too, by their places in the file.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    digest: str
    val: Split | None = None
    official: str | None = None
    shared: Pairs = ()

    @cached_property
    def normalisation(self) -> Normalisation:
        """Mean and standard deviation of each channel of the training pixels / 255.

        Rounded to 5 decimals; from counts of the 256 values, so that no rounding depends on the
        order of the images.
        """
        images, levels = self.train.images, np.arange(256) / 255
        parts = np.array_split(images, len(images) // 4096 + 1)
        mean, std = [], []
        for channel in range(images.shape[-1]):
            counts = sum(np.bincount(p[..., channel].ravel(), minlength=256) for p in parts)
            average = np.average(levels, weights=counts)
            mean.append(round(float(average), 5))
            std.append(round(float(np.average((levels - average) ** 2, weights=counts) ** 0.5), 5))
        return Normalisation(mean, std)

    def report_shared(self, path: Path, *, strict: bool, option: str | None) -> None:
        """Say which test images of the file are training images; see `data.duplicates`."""
        names = [(f"test_images[{i}]", f"train_images[{j}]") for i, j in self.shared]
        report_shared(names, len(self.test), path, strict=strict, option=option)

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
    """The packed file of a dataset in a folder of datasets."""
    return root / f"{name}.npz"


def file_of(spec: DatasetSpec, root: Path) -> Path:
    """The file that a dataset is read from: `spec.path` or, without it, `packed_path`."""
    return packed_path(spec.name, root) if spec.path is None else Path(spec.path).expanduser()


def how_to_get(name: str, root: Path, *, own: bool = False) -> str:
    """The two ways to get the packed file of a dataset, for error messages."""
    if own:
        arguments, where = f"--from-folder DIR --name {name} --overwrite", "on your images"
    else:
        arguments = name
        where = "on a machine with network access (it downloads and packs the official files)"
    return (
        f"Either run `python scripts/prepare_data.py {arguments}` {where}, "
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
    digest = _digest(*(_canonical(split, _image_digests(split)) for split in _splits(arrays)))
    facts = {DIGEST: digest} | ({OFFICIAL: official} if official else {})
    with atomic_write(path) as file:
        np.savez(file, **arrays, **{key: np.array(value) for key, value in facts.items()})


def read_names(spec: DatasetSpec, root: Path) -> tuple[str | None, str | None]:
    """The digest and the official files stored in a dataset's file, where it has them.

    Raises:
        UserError: the file is missing or damaged.
    """
    with _advising(spec, root), _opened(file_of(spec, root)) as file:
        digest, official = (str(file[key]) if key in file.files else None for key in FACTS)
        return digest, official


def read_packed(spec: DatasetSpec, root: Path) -> Dataset:
    """Read, check and canonically order the file of a dataset.

    Raises:
        UserError: the file is missing, damaged or not the dataset that `spec` describes.
    """
    path = file_of(spec, root)
    with _advising(spec, root):
        dataset = read_file(path, named=spec.path is None)
        image = (spec.image_size, spec.image_size, spec.channels)
        for name, size in (("train", spec.train_size), ("test", spec.test_size)):
            shape = getattr(dataset, name).images.shape
            if shape != (size, *image):
                raise UserError(
                    f"{path}: {name}_images has shape {shape}, expected {(size, *image)} by "
                    f"dataset.{name}_size, dataset.image_size and dataset.channels of {spec.name}"
                )
        if len(dataset.classes) != spec.classes:
            raise UserError(f"{path}: classes must be dataset.classes={spec.classes} names")
    return dataset


def read_file(path: Path, *, named: bool = False) -> Dataset:
    """Read, check and canonically order any file with the arrays `KEYS`.

    Labels may be of any integer type, images of one channel (N, H, W). The last file that was
    read is kept: what is computed from it (statistics, digest) needs it before it is trained on,
    and so does every job of a multirun.

    Args:
        path: the file.
        named: whether the names of the classes must be in it.

    Raises:
        UserError: the file is missing or damaged, an array is missing or of the wrong kind.
    """
    with _opened(path) as file:
        modified = path.stat().st_mtime_ns
        checksums = tuple((member.filename, member.CRC) for member in file.zip.infolist())
    return _read_file(path, named, modified, checksums)


@lru_cache(maxsize=1)
def _read_file(
    path: Path, named: bool, modified: int, checksums: tuple[tuple[str, int], ...]
) -> Dataset:
    """`read_file`; the last arguments tell apart what was in the file at different times."""
    arrays = _read_arrays(path, KEYS if named else KEYS[:-1])
    for name in ("train", "test"):
        images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"]
        _check_kind(path, name, images, labels)
        arrays[f"{name}_images"] = images if images.ndim == 4 else images[..., None]
    classes = _class_names(path, arrays)
    for key in ("train_labels", "test_labels"):
        _check_labels(path, key, arrays[key], len(classes))
        arrays[key] = arrays[key].astype(np.int64)
    splits = _splits(arrays)
    digests = [_image_digests(split) for split in splits]
    train, test = map(_canonical, splits, digests)
    digest = _digest(train, test)
    if DIGEST in arrays and digest != str(arrays[DIGEST]):
        raise UserError(
            f"{path} was changed after it was packed (digest {digest}, stored {arrays[DIGEST]}); "
            f"a file that is changed on purpose must not contain the array {DIGEST}"
        )
    official = str(arrays[OFFICIAL]) if OFFICIAL in arrays and DIGEST in arrays else None
    shared = shared_pictures(*digests)
    return Dataset(train, test, classes, digest, official=official, shared=shared)


def _check_kind(path: Path, name: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Reject arrays that cannot be images or labels."""
    if images.dtype != np.uint8:
        raise UserError(
            f"{path}: {name}_images has type {images.dtype}, expected uint8 with values from 0 to "
            "255; of values from 0 to 1, save (255 * images).round().astype('uint8')"
        )
    if images.ndim not in (3, 4) or images.size == 0:
        raise UserError(
            f"{path}: {name}_images has shape {images.shape}, expected (N, height, width) or (N, "
            "height, width, channels) with at least one image"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise UserError(
            f"{path}: {name}_labels has type {labels.dtype} and shape {labels.shape}, expected "
            f"integers of shape {images.shape[:1]}, one for each of {name}_images"
        )


def _check_labels(path: Path, key: str, labels: np.ndarray, classes: int) -> None:
    """Reject labels that are not in 0..classes - 1."""
    low, high = labels.min(), labels.max()
    if low < 0 or high >= classes:
        raise UserError(
            f"{path}: {key} contains labels from {low} to {high}, expected 0 to {classes - 1}"
        )


def _class_names(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """The names of the labels; without any, the labels of the training images themselves."""
    if "classes" in arrays:
        classes = arrays["classes"]
        if classes.ndim != 1 or classes.dtype.kind != "U" or len(set(classes)) < len(classes):
            raise UserError(f"{path}: classes must be names that differ, one for each label")
        return tuple(map(str, classes))
    labels = np.unique(arrays["train_labels"])
    if not np.array_equal(labels, np.arange(len(labels))):
        shown = ", ".join(map(str, labels[:10])) + ", ..." * (len(labels) > 10)
        raise UserError(
            f"{path}: train_labels contains {len(labels)} labels ({shown}), expected 0 to "
            f"{len(labels) - 1} without gaps; renumber them "
            "(np.unique(labels, return_inverse=True)), or add the names of all labels as classes"
        )
    return tuple(map(str, labels))


def _read_arrays(path: Path, required: Sequence[str]) -> dict[str, np.ndarray]:
    with _opened(path) as file:
        missing = [key for key in required if key not in file.files]
        if not missing:
            # Reading a member to its end also checks its CRC-32.
            return {key: file[key] for key in (*KEYS, *FACTS) if key in file.files}
        found = ", ".join(file.files) or "nothing"
    raise UserError(
        f"{path} lacks {', '.join(missing)}; expected the arrays {', '.join(KEYS)}, found {found}"
    )


@contextmanager
def _opened(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Open a file; exceptions from reading it become a `UserError`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path} not found") from None
    except DAMAGE as error:
        objects = "not an .npz file, or one with Python objects"  # numpy advises unsafe loading
        reason = objects if "pickle" in str(error) else error
        raise UserError(
            f"{path} is truncated or damaged ({reason}); expected an .npz file of plain arrays"
        ) from None


@contextmanager
def _advising(spec: DatasetSpec, root: Path) -> Iterator[None]:
    """Add what to do to the message of a `UserError` about a dataset's file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}. {_remedy(spec, root)}") from None


def _remedy(spec: DatasetSpec, root: Path) -> str:
    """What to do about a file that is missing or wrong."""
    if spec.path is None:
        delete = "Delete it first. " if packed_path(spec.name, root).exists() else ""
        return delete + how_to_get(spec.name, root, own=spec.own)
    if spec.own:
        return "docs/datasets.md describes what it must contain"
    return f"dataset.path must be the packed {spec.name}; for images of your own: dataset=custom"


def _splits(arrays: Mapping[str, np.ndarray]) -> tuple[Split, Split]:
    """The training and the test images, in the order of the file."""
    return tuple(Split(arrays[f"{s}_images"], arrays[f"{s}_labels"]) for s in ("train", "test"))


def _image_digests(split: Split) -> list[bytes]:
    """The sha256 of each image's bytes."""
    rows = np.ascontiguousarray(split.images).reshape(len(split), -1)
    return [hashlib.sha256(row).digest() for row in rows]


def _canonical(split: Split, digests: list[bytes]) -> Split:
    """Sort by (sha256 of the image's bytes, label), independent of the order in the file."""
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
