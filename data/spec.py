"""Static description of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def official_files(md5: Mapping[str, str]) -> str | None:
    """`md5:<name>=<MD5>,...` of official files, sorted by name; None without any."""
    return "md5:" + ",".join(f"{name}={md5[name]}" for name in sorted(md5)) if md5 else None


@dataclass
class Augmentation:
    """Augmentation of training images and padding of test images to 32x32 (paper, section 4.2).

    Attributes:
        train_padding: zeros added on each side before the random 32x32 crop, in pixels.
        test_padding: zeros added on each side of a test image, in pixels.
        flip: whether to mirror half the training images left to right.
    """

    train_padding: int = 4
    test_padding: int = 0
    flip: bool = False


@dataclass
class Normalisation:
    """Per-channel mean and standard deviation of the training pixels / 255, shape (C,) each."""

    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)


@dataclass
class DatasetSpec:
    """Description of a dataset, read from configs/dataset/<name>.yaml.

    Attributes:
        name: its name in configs, and the stem of its packed file.
        revision: bumped when the meaning of the config changes, which invalidates older records.
        classes: number of classes.
        channels: number of image channels C.
        image_size: height and width of the stored images, in pixels.
        train_size: number of training images.
        test_size: number of test images.
        normalisation: mean to subtract and standard deviation to divide by, per channel.
        augmentation: crop and flip.
        digest: sha256 of the data in canonical order, or None if not known yet.
        official_md5: MD5 of each official file by name; stands for a digest that is not known.
        own: made of a user's own images; there is nothing to download.
        path: its file, if that is not <name>.npz in the folder of datasets.
    """

    name: str
    revision: int
    classes: int
    channels: int
    image_size: int
    train_size: int
    test_size: int
    normalisation: Normalisation
    augmentation: Augmentation
    digest: str | None = None
    official_md5: dict[str, str] = field(default_factory=dict)
    own: bool = False
    path: str | None = None

    @property
    def published(self) -> str | None:
        """What identifies the published data in identities: the official files, else the digest.

        A digest that is found out later does not change it, so that no record is invalidated.
        """
        return official_files(self.official_md5) or self.digest

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise pixels in 0..255: floating-point (C, H, W) -> (C, H, W)."""
        mean, std = (
            images.new_tensor(values).view(-1, 1, 1)
            for values in (self.normalisation.mean, self.normalisation.std)
        )
        return images.div(255).sub(mean).div(std)
