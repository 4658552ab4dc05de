"""Image files in one folder per class, made into the arrays of a dataset."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.batches import SIZE
from linearconv.errors import UserError

Files = dict[str, list[Path]]
"""The image files of each class."""

T = TypeVar("T")

SHOWN = 5
"""Files named in an error message."""

SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation")
"""Names of folders that hardly are classes, in lower case."""


@dataclass(frozen=True)
class _Picture:
    """An image file.

    Attributes:
        pixels: (32, 32, 3) uint8.
        size: width and height in the file.
        sha256: of the file.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    sha256: bytes


def read_folder(
    folder: Path, *, test_fraction: float | None = None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Read the images in `<folder>/train/<class>/` and `test/<class>/` or in `<folder>/<class>/`.

    Without a folder for test images (`test` or `val`), `test_fraction` of each class's images, at
    least one, are the test images: those whose files have the lowest sha256, whatever the files
    are called. Classes are the folders' names, sorted; each has images, and may have more in
    folders below.

    Images are resized so that their shorter side has 32 pixels (bilinear, antialiased), and the
    longer side is cropped at the centre. If all are grey they have one channel, else three;
    transparency is dropped.

    Args:
        folder: the folder.
        test_fraction: default 0.2; only for a folder without test images.

    Returns:
        The arrays of `data.packed.KEYS`, and what was done to the images, in sentences.

    Raises:
        UserError: no or too few images, folders that hardly are classes, a file that cannot be
            read, or a wrong `test_fraction`.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; expected one with a folder of images per class")
    train_folder, test_folder = split_folders(
        folder, f", or give --from-folder {folder / 'train'} to have test images taken from it"
    )
    files = [class_files(train_folder)]
    if test_folder is not None:
        if test_fraction is not None:
            raise UserError(f"--test-fraction is not used, since {test_folder} has the test images")
        files.append(class_files(test_folder))
        check_same_classes(train_folder, files[0], test_folder, files[1])
    fraction = 0.2 if test_fraction is None else test_fraction
    if not 0 < fraction < 1:
        raise UserError(f"--test-fraction must be between 0 and 1 (exclusive), got {fraction}")
    train, *rest = _pictures(files, folder)
    if rest:
        (test,) = rest
    else:
        test, train = _take_test_share(train, fraction)
    arrays = {"classes": np.array(list(train))}
    for split, classes in (("train", train), ("test", test)):
        arrays[f"{split}_images"] = np.stack([p.pixels for c in classes.values() for p in c])
        counts = [len(pictures) for pictures in classes.values()]
        arrays[f"{split}_labels"] = np.repeat(np.arange(len(counts)), counts)
    _drop_colours_of_grey(arrays)
    origin = (
        f"test images: {sum(map(len, test.values()))} by the sha256 of their files, the same "
        "share of each class"
        if test_folder is None
        else f"test images: those in {test_folder.name}/"
    )
    pictures = [p for classes in (train, test) for c in classes.values() for p in c]
    return arrays, [origin, *_resizing(pictures)]


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
    folders = (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return sorted(folders, key=lambda path: path.name)  # paths ignore case on Windows


def _files_below(folder: Path) -> Iterator[Path]:
    """The files in a folder and in those below, linked ones too.

    Hidden ones are left out: thumbnails are copies of images.
    """
    entered = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        status = Path(root).stat()
        if (status.st_dev, status.st_ino) in entered:  # a link to a folder above
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(root, name) for name in names if not name.startswith("."))
        # A link to nothing is an image that is missing: reading it will say so.
        yield from (path for path in paths if path.is_file() or path.is_symlink())


def class_files(folder: Path) -> Files:
    """The files of each class, hidden ones and those in hidden folders left out.

    Raises:
        UserError: there are fewer than two classes, or one without files.
    """
    files = {path.name: sorted(_files_below(path)) for path in _folders(folder)}
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
        if found and all(path.parent != folder / name for path in found)
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


def _pictures(splits: list[Files], folder: Path) -> list[dict[str, list[_Picture]]]:
    """Read the images of all splits and classes; raises as `read_all`."""
    files = [path for classes in splits for paths in classes.values() for path in paths]
    pictures = iter(read_all(files, _read, folder))
    return [
        {name: [next(pictures) for _ in paths] for name, paths in classes.items()}
        for classes in splits
    ]


def read_all(
    files: list[Path], read: Callable[[Path], T], folder: Path, *, threads: int = 1
) -> list[T]:
    """What `read` makes of each image file.

    Args:
        files: in `folder`.
        read: raises any exception for a file that is no image, or a damaged one.
        folder: for the message.
        threads: that read at the same time.

    Raises:
        UserError: some cannot be read; the message names the first few.
    """
    problems = []

    def attempt(path: Path) -> T | None:
        try:
            return read(path)
        except Exception as error:  # Pillow's decoders raise whatever damage makes them stumble on
            what = str(error).splitlines()[0] if str(error) else "damaged"
            if isinstance(error, UnidentifiedImageError):  # whose message names an object of ours
                what = "not an image"
            problems.append(f"{path} ({what})")
        return None

    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(attempt, files))
    if problems:
        more = f", and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(
            f"{len(problems)} of {len(files)} files in {folder} cannot be read as images: "
            f"{', '.join(sorted(problems)[:SHOWN])}{more}. Mend or remove them"
        )
    return results


def _read(path: Path) -> _Picture:
    """Read one image for a dataset of 32x32 pixels."""
    content = path.read_bytes()
    upright, size = open_upright(io.BytesIO(content))
    if upright.size != (SIZE, SIZE):
        upright = ImageOps.fit(upright, (SIZE, SIZE), Image.Resampling.BILINEAR)
    return _Picture(np.asarray(upright), size, hashlib.sha256(content).digest())


def open_upright(file: Path | io.BytesIO) -> tuple[Image.Image, tuple[int, int]]:
    """An image in RGB, turned upright as its EXIF data says, and its size in the file.

    Raises:
        Exception: it cannot be read, or has more than 8 bits per channel.
    """
    with Image.open(file) as image:
        if image.mode.startswith(("I", "F")):  # Pillow would clip its values
            raise ValueError(f"mode {image.mode}, expected 8 bits per channel")
        if _more_than_8_bits(image):
            raise ValueError("16 bits per channel, expected 8")
        return ImageOps.exif_transpose(image).convert("RGB"), image.size


def _more_than_8_bits(image: Image.Image) -> bool:
    """Whether Pillow will drop the lower bits of a colour image, whose mode does not tell.

    Its decoder's arguments do: the raw mode (of PNG and TIFF, "RGB;16B"), the largest value (PPM).
    """
    for _, _, _, arguments in getattr(image, "tile", ()):
        for each in arguments if isinstance(arguments, tuple) else (arguments,):
            if isinstance(each, str) and ";16" in each:
                return True
            if image.format == "PPM" and isinstance(each, int) and each > 255:
                return True
    return False


def _take_test_share(
    classes: dict[str, list[_Picture]], fraction: float
) -> tuple[dict[str, list[_Picture]], dict[str, list[_Picture]]]:
    """Split each class into test and training images, independently of names and order."""
    test, train = {}, {}
    for name, pictures in classes.items():
        if len(pictures) < 2:
            raise UserError(f"{name}/ has one image; expected one to train on and one to test on")
        ordered = sorted(pictures, key=lambda picture: picture.sha256)
        count = min(max(1, round(fraction * len(ordered))), len(ordered) - 1)
        test[name], train[name] = ordered[:count], ordered[count:]
    return test, train


def _drop_colours_of_grey(arrays: dict[str, np.ndarray]) -> None:
    """Keep one channel if the three are equal in all images."""
    keys = ("train_images", "test_images")
    if all((arrays[key] == arrays[key][..., :1]).all() for key in keys):
        for key in keys:
            arrays[key] = arrays[key][..., :1]


def _resizing(pictures: list[_Picture]) -> list[str]:
    """What was done to images of other sizes."""
    resized = [p for p in pictures if p.size != (SIZE, SIZE)]
    cropped = sum(p.size[0] != p.size[1] for p in resized)
    if not resized:
        return []
    note = f"{len(resized)} of {len(pictures)} images were resized to 32x32 (bilinear, antialiased)"
    if cropped:
        note += f", {cropped} of them cropped at the centre, since they are not square"
    return [note]
