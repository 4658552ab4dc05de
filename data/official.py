"""The official dataset files: downloaded, parsed and packed.

torchvision downloads and parses the official files and checks their MD5 sums; only this module
imports it, since training reads the packed file.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from data.packed import how_to_get, packed_path, write_packed
from data.spec import official_files
from linearconv.errors import UserError

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]

DAMAGE = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    AssertionError,
    pickle.UnpicklingError,
    tarfile.TarError,
)
"""Exceptions of torchvision's readers for missing, damaged or malicious files."""


def pack(
    name: str,
    root: Path,
    *,
    download: bool = True,
    official_md5: Mapping[str, str] | None = None,
) -> Path:
    """Write `<root>/<name>.npz`, unless it exists, from the official files.

    They are read from where torchvision puts them, under `<root>/raw/<name>/` or `<root>`, or
    from archives directly in one of these folders; what is missing is downloaded into the first.

    Args:
        name: one of `DATASETS`.
        root: the folder of datasets.
        download: download missing official files; shows a progress bar.
        official_md5: MD5s of official files that must match; written into the packed file.

    Raises:
        UserError: the official files are damaged, or missing and cannot be downloaded.
    """
    root, md5 = root.expanduser(), official_md5 or {}
    raw, path = root / "raw" / name, packed_path(name, root)
    if name not in DATASETS:
        raise UserError(
            f"{path} not found, and data/official.py does not know how to download {name}: copy "
            f"the packed file there, or set `own: true` in configs/dataset/{name}.yaml and pack "
            "your images (docs/datasets.md)"
        )
    try:
        raw.mkdir(parents=True, exist_ok=True)
        # Only one of several processes downloads.
        with FileLock(raw / ".lock", fallback_to_soft=False):
            if not path.exists():
                folder, arrays = _read(DATASETS[name], raw, root, download=download)
                _check_md5(folder, md5)
                write_packed(path, arrays, official=official_files(md5))
                log.info("packed %s into %s", name, path)
    except (ImportError, *DAMAGE) as error:
        raise UserError(
            f"{path} is missing, and the official files of {name} could not "
            f"be {'downloaded to' if download else 'read from'} {raw.resolve()}/: {error}. "
            f"{how_to_get(name, root)}"
        ) from None
    return path


@dataclass(frozen=True)
class Archive:
    """An official file: its folder under torchvision's root, its name and its MD5."""

    folder: str
    name: str
    md5: str

    def is_in(self, folder: Path) -> bool:
        """Whether the undamaged file is in a folder."""
        path = folder / self.name
        return path.is_file() and _md5(path) == self.md5


@dataclass(frozen=True)
class Official:
    """The official files of a dataset.

    Attributes:
        read: reads them, unpacked, from a folder; with True it first downloads what is missing,
            and unpacks.
        archives: names the files to download.
    """

    read: Callable[[Path, bool], Arrays]
    archives: Callable[[], list[Archive]]


def _read(official: Official, raw: Path, root: Path, *, download: bool) -> tuple[Path, Arrays]:
    """The dataset, and the folder that it was read from."""
    for folder in (raw, root):
        try:
            return folder, official.read(folder, False)
        except DAMAGE:
            continue  # not there, or damaged
    missing = [archive for archive in official.archives() if not _provide(archive, raw, root)]
    if missing and not download:
        names = ", ".join(f"{archive.name} (MD5 {archive.md5})" for archive in missing)
        raise FileNotFoundError(f"expected in that folder or in {root.resolve()}/: {names}")
    with _unpacking_inside():
        return raw, official.read(raw, True)


@contextmanager
def _unpacking_inside() -> Iterator[None]:
    """Let tarfile refuse members that would be written outside the folder.

    torchvision unpacks without a filter, and only Python 3.14 has one by default. Python before
    3.11.4 knows none; there the MD5, which torchvision checks first, must suffice.
    """
    if not hasattr(tarfile, "data_filter"):
        yield
        return
    before = tarfile.TarFile.extraction_filter
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before and staticmethod(before)


def _provide(archive: Archive, raw: Path, root: Path) -> bool:
    """Put an archive where torchvision looks for it, if it is in one of the folders."""
    target = raw / archive.folder
    for folder in (target, raw, root / archive.folder, root):
        if archive.is_in(folder):
            if folder.resolve() != target.resolve():
                target.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / archive.name, target / archive.name)
            return True
    return False


def _check_md5(folder: Path, official_md5: Mapping[str, str]) -> None:
    for name, expected in official_md5.items():
        found = _md5(folder / name)
        if found != expected:
            raise ValueError(f"{name} has MD5 {found}, the official file {expected}; delete it")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _assemble(train: tuple, test: tuple, classes: list[str]) -> Arrays:
    arrays: Arrays = {"classes": np.array(classes)}
    for split, (images, labels) in (("train", train), ("test", test)):
        images = np.asarray(images, dtype=np.uint8)
        arrays[f"{split}_images"] = images if images.ndim == 4 else images[..., None]
        arrays[f"{split}_labels"] = np.asarray(labels, dtype=np.int64)
    return arrays


def _torchvision(dataset: str) -> Official:
    """A torchvision dataset with `train=`, `.data`, `.targets` and `.classes`."""

    def read(raw: Path, download: bool) -> Arrays:
        from torchvision import datasets

        train, test = (
            getattr(datasets, dataset)(raw, train=train, download=download)
            for train in (True, False)
        )
        return _assemble((train.data, train.targets), (test.data, test.targets), train.classes)

    def archives() -> list[Archive]:
        from torchvision import datasets

        kind = getattr(datasets, dataset)
        if hasattr(kind, "resources"):
            return [Archive(f"{dataset}/raw", name, md5) for name, md5 in kind.resources]
        return [Archive("", kind.filename, kind.tgz_md5)]

    return Official(read, archives)


def _svhn_archives() -> list[Archive]:
    from torchvision.datasets import SVHN

    return [Archive("", *SVHN.split_list[split][1:]) for split in ("train", "test")]


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


DATASETS: dict[str, Official] = {
    "cifar10": _torchvision("CIFAR10"),
    "cifar100": _torchvision("CIFAR100"),
    "svhn": Official(_svhn, _svhn_archives),
    "mnist": _torchvision("MNIST"),
    "fashion_mnist": _torchvision("FashionMNIST"),
    "digits": Official(_digits, list),
}
