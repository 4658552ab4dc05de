"""Batches of a folder of images of any size, for networks other than the paper's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from linearconv.engine.seeding import generator
from linearconv.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Normalisation, that of the published weights of torchvision and timm (ImageNet)."""


class FolderBatches:
    """Batches of FOLDER/train/<class>/ and FOLDER/test/<class>/ (or FOLDER/val/<class>/).

    Training images are random crops of at least a quarter of the area, resized and mirrored at
    random; test images are resized and cropped in the centre.

    Args:
        folder: with the two splits.
        size: height and width of the batches' images, in pixels.
        batch_size: images in a training batch.
        eval_batch_size: images in a test batch.
        limit: use only so many training images, chosen at random; None: all.
        seed: of this choice and of everything random in training.
        workers: processes that read images.
        device: of the batches.

    Attributes:
        classes: number of classes.
        train_size: number of training images.
        sizes: number of images in each training batch of an epoch.

    Raises:
        UserError: a split is missing or empty, or their classes differ.
    """

    def __init__(
        self,
        folder: Path,
        *,
        size: int,
        batch_size: int,
        eval_batch_size: int,
        limit: int | None,
        seed: int,
        workers: int,
        device: torch.device,
    ) -> None:
        from torchvision.transforms import v2

        tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        crop = v2.RandomResizedCrop(size, scale=(0.25, 1.0))
        centre = [v2.Resize(round(size * 8 / 7)), v2.CenterCrop(size)]
        train = _read(
            folder, "train", transform=v2.Compose([crop, v2.RandomHorizontalFlip(), *tensor])
        )
        self._test = _read(folder, "test", "val", transform=v2.Compose([*centre, *tensor]))
        if train.classes != self._test.classes:
            raise UserError(
                f"the training and the test images in {folder} differ in their classes: "
                f"{', '.join(train.classes)}; {', '.join(self._test.classes)}"
            )
        self.classes = len(train.classes)
        self._seed = seed
        chosen = torch.randperm(len(train), generator=generator("folder", seed, 0))[:limit]
        self._train = Subset(train, chosen.tolist())
        self.train_size = len(self._train)
        self._batch_size, self._eval_batch_size = batch_size, eval_batch_size
        full, rest = divmod(self.train_size, batch_size)
        self.sizes = [batch_size] * full + [rest] * (rest > 0)
        self._workers, self._device = workers, device

    def train(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches of an epoch, counted from 0: images (B, 3, H, W), labels (B,)."""
        loader = DataLoader(
            self._train,
            self._batch_size,
            shuffle=True,
            generator=generator("folder", self._seed, 1 + epoch),  # seeds the workers, too
            num_workers=self._workers,
        )
        return self._on_device(loader)

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test batches."""
        loader = DataLoader(self._test, self._eval_batch_size, num_workers=self._workers)
        return self._on_device(loader)

    def val(self) -> None:
        """No images are held out."""

    def _on_device(self, loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in loader:
            yield images.to(self._device), labels.to(self._device)


def _read(folder: Path, *names: str, transform: object):
    """The images of the first of these splits that is there."""
    from torchvision.datasets import ImageFolder

    for name in names:
        if (folder / name).is_dir():
            try:
                return ImageFolder(folder / name, transform)
            except FileNotFoundError as error:  # no class, or a class without images
                raise UserError(f"{folder / name}: {error}") from None
    raise UserError(
        f"{folder} has no folder {' or '.join(names)}: expected the images in "
        f"{folder}/train/<class>/ and {folder}/test/<class>/"
    )
