"""Image files in one folder per class, made into the arrays of a dataset."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.batches import SIZE
from data.class_folders import SHOWN, Files, check_same_classes, class_files, split_folders
from data.duplicates import relative, report_shared, shared_pictures
from linearconv.errors import UserError

T = TypeVar("T")


class Upright(NamedTuple):
    """An image as it is looked at.

    Attributes:
        image: in RGB.
        size: width and height in the file.
        transparent: whether some of its pixels are, which are shown on white.
    """

    image: Image.Image
    size: tuple[int, int]
    transparent: bool

    @property
    def digest(self) -> bytes:
        """The same for the same picture, in whichever lossless format."""
        return hashlib.sha256(f"{self.image.size}".encode() + self.image.tobytes()).digest()


@dataclass(frozen=True)
class _Picture:
    """An image file.

    Attributes:
        path: the file.
        pixels: (32, 32, 3) uint8.
        size: width and height in the file.
        transparent: see `Upright`.
        sha256: of the file.
    """

    path: Path
    pixels: np.ndarray
    size: tuple[int, int]
    transparent: bool
    sha256: bytes

    @cached_property
    def digest(self) -> bytes:
        """Of the pixels."""
        return hashlib.sha256(self.pixels.tobytes()).digest()


def read_folder(
    folder: Path, *, test_fraction: float | None = None, strict: bool = False
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Read the images in `<folder>/train/<class>/` and `test/<class>/` or in `<folder>/<class>/`.

    Without a folder for test images (`test` or `val`), `test_fraction` of each class's images, at
    least one, are the test images: those whose files have the lowest sha256, whatever the files
    are called. The same picture several times in a class is on one side. Classes are the folders'
    names, sorted; each has images, and may have more in folders below.

    Images are resized so that their shorter side has 32 pixels (bilinear, antialiased), and the
    longer side is cropped at the centre. If all are grey they have one channel, else three;
    transparent ones are shown on white.

    Args:
        folder: the folder.
        test_fraction: default 0.2; only for a folder without test images.
        strict: refuse test images that are training images, too, instead of warning.

    Returns:
        The arrays of `data.packed.KEYS`, and what was done to the images, in sentences.

    Raises:
        UserError: no or too few images, folders that are not classes, a file that cannot be
            read, a wrong `test_fraction`, or what is not `strict`.
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
    _report_shared(folder, train, test, strict=strict)
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
    return arrays, [origin, *_copies(train, test), *_changes(pictures)]


def _report_shared(folder: Path, *splits: dict[str, list[_Picture]], strict: bool) -> None:
    train, test = ([p for pictures in split.values() for p in pictures] for split in splits)
    pairs = shared_pictures([p.digest for p in train], [p.digest for p in test])
    names = [tuple(relative([test[i].path, train[j].path], folder)) for i, j in pairs]
    report_shared(names, len(test), folder, strict=strict, option="--strict")


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
    image, size, transparent = open_upright(io.BytesIO(content))
    if image.size != (SIZE, SIZE):
        image = ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.BILINEAR)
    return _Picture(path, np.asarray(image), size, transparent, hashlib.sha256(content).digest())


def open_upright(file: Path | io.BytesIO) -> Upright:
    """An image in RGB, on white and turned upright as its EXIF data says.

    Raises:
        Exception: it cannot be read, or has more than 8 bits per channel.
    """
    with Image.open(file) as image:
        if image.mode.startswith(("I", "F")):  # Pillow would clip its values
            raise ValueError(f"mode {image.mode}, expected 8 bits per channel")
        if _more_than_8_bits(image):
            raise ValueError("16 bits per channel, expected 8")
        upright = ImageOps.exif_transpose(image)
        if not upright.has_transparency_data:
            return Upright(upright.convert("RGB"), image.size, False)
        colours = upright.convert("RGBA")  # which are any where nothing is to be seen
        white = Image.new("RGBA", colours.size, "white")
        transparent = colours.getchannel("A").getextrema()[0] < 255
        return Upright(
            Image.alpha_composite(white, colours).convert("RGB"), image.size, transparent
        )


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
    """Split each class into test and training images, independently of names and order.

    The files with one picture stay together.
    """
    test, train = {}, {}
    for name, pictures in classes.items():
        groups: dict[bytes, list[_Picture]] = {}
        for picture in sorted(pictures, key=lambda picture: picture.sha256):
            groups.setdefault(picture.digest, []).append(picture)
        if len(groups) < 2:
            copies = f" ({len(pictures)} times)" if len(pictures) > 1 else ""
            raise UserError(
                f"{name}/ has one image{copies}; expected one to train on and one to test on"
            )
        count = min(max(1, round(fraction * len(pictures))), len(pictures) - 1)
        chosen, taken = set(), 0
        for digest, group in groups.items():
            if taken + len(group) <= count:
                chosen.add(digest)
                taken += len(group)
        chosen = chosen or {min(groups, key=lambda digest: len(groups[digest]))}
        pictures = [picture for group in groups.values() for picture in group]
        test[name] = [picture for picture in pictures if picture.digest in chosen]
        train[name] = [picture for picture in pictures if picture.digest not in chosen]
    return test, train


def _drop_colours_of_grey(arrays: dict[str, np.ndarray]) -> None:
    """Keep one channel if the three are equal in all images."""
    keys = ("train_images", "test_images")
    if all((arrays[key] == arrays[key][..., :1]).all() for key in keys):
        for key in keys:
            arrays[key] = arrays[key][..., :1]


def transparency_note(transparent: int, images: int) -> str:
    """What was done to transparent images."""
    return f"{transparent} of {images} images are transparent: shown on white"


def _copies(*splits: dict[str, list[_Picture]]) -> list[str]:
    """How many pictures are there several times."""
    pictures = [p for split in splits for each in split.values() for p in each]
    copies = len(pictures) - len({p.digest for p in pictures})
    return [f"{copies} of {len(pictures)} images are copies of others"] if copies else []


def _changes(pictures: list[_Picture]) -> list[str]:
    """What was done to images of other sizes, and to transparent ones."""
    resized = [p for p in pictures if p.size != (SIZE, SIZE)]
    cropped = sum(p.size[0] != p.size[1] for p in resized)
    transparent = sum(p.transparent for p in pictures)
    notes = []
    if resized:
        notes.append(
            f"{len(resized)} of {len(pictures)} images were resized to 32x32 (bilinear, "
            "antialiased)"
            + f", {cropped} of them cropped at the centre, since they are not square"
            * bool(cropped)
        )
    if transparent:
        notes.append(transparency_note(transparent, len(pictures)))
    return notes
