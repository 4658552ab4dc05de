"""Folders of images, one for each class, as the file system has them."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from linearconv.errors import UserError

Files = dict[str, list[Path]]
"""The image files of each class."""

SHOWN = 5
"""Names in an error message."""

SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation")
"""Names of folders that mean a split, not a class, in lower case."""

LEFT_BY_SYSTEMS = frozenset(
    (
        "@eadir",  # Synology: thumbnails
        "@tmp",
        "#recycle",
        "#snapshot",
        "@recycle",  # QNAP
        "@recently-snapshot",
        "__macosx",  # an archive made on macOS
        "icon\r",
        "$recycle.bin",  # Windows
        "system volume information",
        "thumbs.db",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "lost+found",  # Linux
    )
)
"""What systems put beside images, in lower case: thumbnails and deleted files are copies."""


def is_left_out(name: str) -> bool:
    """Whether a file or folder is hidden or was put there by the system, not by the user."""
    return name.startswith(".") or name.lower() in LEFT_BY_SYSTEMS


def class_name(folder: Path) -> str:
    """The name of a folder as text that compares and prints everywhere.

    Accents are composed (macOS stores them apart from their letters), and bytes that are not UTF-8
    are escaped.
    """
    return unicodedata.normalize("NFC", os.fsencode(folder.name).decode(errors="backslashreplace"))


def split_folders(folder: Path, otherwise: str = "") -> tuple[Path, Path | None]:
    """The folders of training and of test images; None without one for test images.

    A folder `train` that has images instead of folders is a class of that name.

    Args:
        folder: with the two.
        otherwise: what else can be done if there are training images alone, for the message.

    Raises:
        UserError: there are training images alone.
    """
    train = folder / "train"
    if not (train.is_dir() and _folders(train)):
        return folder, None
    for name in ("test", "val"):
        if (folder / name).is_dir():
            return train, folder / name
    raise UserError(f"{folder} has train/ but neither test/ nor val/: add one{otherwise}")


def _folders(folder: Path) -> list[Path]:
    folders = (p for p in folder.iterdir() if p.is_dir() and not is_left_out(p.name))
    return sorted(folders, key=lambda path: path.name)  # paths ignore case on Windows


def _files_below(folder: Path) -> Iterator[Path]:
    """The files in a folder and in those below, linked ones too."""
    entered = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        status = Path(root).stat()
        if (status.st_dev, status.st_ino) in entered:  # a link to a folder above
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not is_left_out(name))
        paths = (Path(root, name) for name in names if not is_left_out(name))
        # A link to nothing is an image that is missing: reading it will say so.
        yield from (path for path in paths if path.is_file() or path.is_symlink())


def class_files(folder: Path) -> Files:
    """The files of each class by `class_name`, in its order; without those `is_left_out` names.

    Raises:
        UserError: there are fewer than two classes, or one without files.
    """
    merged: Files = {}
    for path in _folders(folder):
        merged.setdefault(class_name(path), []).extend(sorted(_files_below(path)))
    files = dict(sorted(merged.items()))
    _check_classes(folder, files)
    empty = [name for name, found in files.items() if not found]
    if len(files) < 2 or empty:
        raise UserError(
            f"{folder} has "
            + (f"no images in {', '.join(empty)}" if empty else f"{len(files)} folder(s)")
            + "; expected two folders or more, one for each class, with its images in it"
        )
    return files


def check_same_classes(
    train_folder: Path, train: dict[str, Any], test_folder: Path, test: dict[str, Any]
) -> None:
    """Check that the training and the test images have the same classes, the keys.

    Raises:
        UserError: they differ.
    """
    if list(test) != list(train):
        raise UserError(
            f"{train_folder} has the classes {', '.join(train)}, but {test_folder} "
            f"{', '.join(test)}: expected the same"
        )


def _check_classes(folder: Path, files: Files) -> None:
    """Reject folders that are groups of classes, as Train/ and Test/ are, and not classes."""
    groups = [
        name
        for name, found in files.items()
        if found and all(path.parent.parent != folder for path in found)
    ]
    splits = [name for name in files if name.lower() in SPLITS]
    if not groups and len(splits) < 2:  # one may be a class: of vehicles, say
        return
    names = groups or splits
    reason = "only folders in them" if groups else "names of splits"
    raise UserError(
        f"{folder}: {', '.join(names[:SHOWN])}{', ...' * (len(names) > SHOWN)} have {reason}, "
        "expected one folder for each class, with its images in it. Folders of training and of "
        "test images, each with the folders of the classes: rename them to train/ and test/"
    )
