"""Batches of a folder of images of any size, for networks other than the paper's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.class_folders import check_same_classes, class_files, split_folders
from data.duplicates import relative, report_shared, shared_pictures
from data.image_folder import open_upright, read_all, transparency_note
from data.spec import Normalisation
from linearconv.engine.seeding import generator, seeded
from linearconv.errors import UserError

log = logging.getLogger(__name__)

TEST_SHARE = 0.2
"""Of a folder that does not say which images are for testing."""

Transform = Callable[[Any], Tensor]
"""PIL image -> (3, H, W); draws from torch's global generator, if at random."""


class FolderBatches:
    """Batches of FOLDER/train/<class>/ and FOLDER/test/<class>/ (or FOLDER/val/<class>/).

    Of FOLDER/<class>/ a fifth of each class, drawn at random but always the same, is for testing.
    Training images are random crops of at least a quarter of the area, resized and mirrored at
    random; test images are resized and cropped in the centre. The training batches are a function
    of the seed and the epoch, however many processes read them.

    Args:
        folder: with the two splits.
        size: height and width of the batches' images, in pixels.
        normalisation: of the three channels.
        batch_size: images in a training batch.
        eval_batch_size: images in a test batch.
        limit: use only so many training images, chosen at random; None: all.
        seed: of this choice and of everything random in training.
        workers: processes that read images; 0: the calling one reads them.
        device: of the batches.
        strict: refuse test images that are training images, too, instead of warning.

    Attributes:
        classes: number of classes.
        train_size: number of training images.
        sizes: number of images in each training batch of an epoch.

    Raises:
        UserError: a split is missing or empty, their classes differ, an image is damaged, or what
            is not `strict`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        size: int,
        normalisation: Normalisation,
        batch_size: int,
        eval_batch_size: int,
        limit: int | None,
        seed: int,
        workers: int,
        device: torch.device,
        strict: bool = False,
    ) -> None:
        train, test = _samples(folder)
        self.classes = 1 + max(label for _, label in train)
        chosen = torch.randperm(len(train), generator=generator("folder", seed, 0))[:limit]
        self._train, self._test = [train[i] for i in chosen.tolist()], test
        _check(folder, self._train, self._test, threads=max(1, workers), strict=strict)
        self.train_size = len(self._train)
        self._batch_size, self._eval_batch_size = batch_size, eval_batch_size
        full, rest = divmod(self.train_size, batch_size)
        self.sizes = [batch_size] * full + [rest] * (rest > 0)
        self._seed, self._workers, self._device = seed, workers, device
        self._varied, self._centred = _transforms(size, normalisation)

    def train(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches of an epoch, counted from 0: images (B, 3, H, W), labels (B,)."""
        order = torch.randperm(
            self.train_size, generator=generator("folder", self._seed, 1 + epoch)
        )
        images = _Images(self._train, self._varied, (self._seed, epoch))
        return self._batches(images, self._batch_size, order.tolist())

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test batches."""
        images = _Images(self._test, self._centred, ())
        return self._batches(images, self._eval_batch_size, range(len(self._test)))

    def val(self) -> None:
        """No images are held out."""

    def _batches(
        self, images: _Images, batch_size: int, order: list[int] | range
    ) -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(
            images,
            batch_size,
            sampler=order,
            num_workers=self._workers,
            generator=torch.Generator(),  # or it would draw from the global one, as dropout does
        )
        for batch, labels in loader:
            yield batch.to(self._device), labels.to(self._device)


@dataclass(frozen=True)
class _Images(Dataset):
    """Images that are a function of their index and of `seed`, in whichever process they are read.

    Attributes:
        samples: the file and the label of each.
        transform: of an image.
        seed: of what is random in it.
    """

    samples: list[tuple[Path, int]]
    transform: Transform
    seed: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        image = open_upright(path).image
        with seeded("folder-image", *self.seed, index):
            return self.transform(image), label


def _samples(folder: Path) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """The files and labels of the training and of the test images."""
    train_folder, test_folder = split_folders(folder)
    train, test = class_files(train_folder), {}
    if test_folder is None:
        for label, (name, files) in enumerate(train.items()):
            if len(files) < 2:
                raise UserError(
                    f"{folder / name} has one image; expected one to train on and one to test on"
                )
            order = torch.randperm(len(files), generator=generator("folder-split", label)).tolist()
            count = max(1, round(TEST_SHARE * len(files)))
            test[name] = [files[i] for i in sorted(order[:count])]
            train[name] = [files[i] for i in sorted(order[count:])]
    else:
        test = class_files(test_folder)
        check_same_classes(train_folder, train, test_folder, test)
    return tuple(
        [(path, label) for label, files in enumerate(split.values()) for path in files]
        for split in (train, test)
    )


def _check(
    folder: Path,
    train: list[tuple[Path, int]],
    test: list[tuple[Path, int]],
    *,
    threads: int,
    strict: bool,
) -> None:
    """Decode all images, since damage should be found before training, and compare them."""

    def read(path: Path) -> tuple[bytes, bool]:
        upright = open_upright(path)
        return upright.digest, upright.transparent

    files = [path for path, _ in (*train, *test)]
    digests, transparent = zip(*read_all(files, read, folder, threads=threads), strict=True)
    if any(transparent):
        log.warning(transparency_note(sum(transparent), len(files)))
    pairs = shared_pictures(digests[: len(train)], digests[len(train) :])
    names = [tuple(relative([test[i][0], train[j][0]], folder)) for i, j in pairs]
    report_shared(names, len(test), folder, strict=strict, option="--strict")


def _transforms(size: int, normalisation: Normalisation) -> tuple[Transform, Transform]:
    """What is done to training and to test images."""
    from torchvision.transforms import v2

    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    normalised = v2.Normalize(normalisation.mean, normalisation.std)
    varied = [v2.RandomResizedCrop(size, scale=(0.25, 1.0)), v2.RandomHorizontalFlip()]
    centred = [v2.Resize(round(size * 8 / 7)), v2.CenterCrop(size)]
    first, second = (v2.Compose([*crop, *to_tensor, normalised]) for crop in (varied, centred))
    return first, second
