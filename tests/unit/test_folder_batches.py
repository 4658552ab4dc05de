"""Folders of images as batches: the same whoever reads them, and read as datasets are."""

import numpy as np
import pytest
import torch
from PIL import Image

from data.folder_batches import FolderBatches
from data.spec import Normalisation
from linearconv.errors import UserError

NORMALISATION = Normalisation([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])


@pytest.fixture
def folder(tmp_path):
    """Six training and two test images of two classes, 20 pixels high and 30 wide."""
    random = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 1)):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / label / f"{i}.png")
    return tmp_path


def batches(folder, *, workers=0, seed=0, size=16, limit=None, strict=False) -> FolderBatches:
    return FolderBatches(
        folder, size=size, normalisation=NORMALISATION, batch_size=4, eval_batch_size=4,
        limit=limit, seed=seed, workers=workers, device=torch.device("cpu"), strict=strict,
    )  # fmt: skip


def train_images(*args, epoch=0, **kwargs) -> torch.Tensor:
    return torch.cat([images for images, _ in batches(*args, **kwargs).train(epoch)])


def test_batches_are_a_function_of_seed_and_epoch(folder):
    torch.manual_seed(0)
    alone = train_images(folder)
    state = torch.get_rng_state()
    assert torch.equal(train_images(folder, workers=2), alone)
    assert torch.equal(torch.get_rng_state(), state)  # dropout draws the same, too
    assert not torch.equal(train_images(folder, epoch=1), alone)
    assert not torch.equal(train_images(folder, seed=1), alone)
    assert alone.shape == (6, 3, 16, 16)


def test_each_image_is_cropped_in_its_own_way(folder):
    """Six copies of one image."""
    first, *others = sorted((folder / "train").rglob("*.png"))
    for other in others:
        other.write_bytes(first.read_bytes())
    images = train_images(folder)
    assert len({tuple(image.flatten().tolist()) for image in images}) == 6


def test_pictures_of_both_splits_and_transparent_ones_are_named(folder, caplog):
    image = Image.open(folder / "train" / "cat" / "0.png")
    image.save(folder / "val" / "dog" / "0.tif")  # the same pixels
    image.putalpha(100)
    image.save(folder / "train" / "cat" / "1.png")
    batches(folder)
    transparent, shared = caplog.messages
    assert transparent == "1 of 9 images are transparent: shown on white"
    assert "1 of 3 test images are" in shared and "val/dog/0.tif = train/cat/0.png" in shared
    with pytest.raises(UserError, match="1 of 3 test images .* leave out --strict"):
        batches(folder, strict=True)


def test_labels_sizes_and_the_limit(folder):
    found = batches(folder)
    assert (found.classes, found.train_size, found.sizes) == (2, 6, [4, 2])
    assert sorted(torch.cat([labels for _, labels in found.train(0)]).tolist()) == [
        0,
        0,
        0,
        1,
        1,
        1,
    ]
    assert torch.cat([labels for _, labels in found.test()]).tolist() == [0, 1]
    assert batches(folder, limit=5).sizes == [4, 1]


def test_a_limit_takes_images_of_all_classes_by_the_seed(folder):
    labels, means = set(), set()
    for seed in range(4):
        ((images, chosen),) = batches(folder, limit=3, seed=seed).train(0)
        labels |= set(chosen.tolist())
        means.add(round(images.mean().item(), 3))
    assert labels == {0, 1} and len(means) > 1


def test_test_images_are_resized_cropped_in_the_centre_and_normalised(folder):
    """20 x 30 pixels become 16 x 24, eight sevenths of 14, of which the centre is left."""
    ((images, _),) = batches(folder, size=14).test()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in vars(NORMALISATION).values())
    for image, label in zip(images, ("cat", "dog"), strict=True):
        resized = Image.open(folder / "val" / label / "0.png").resize((24, 16), Image.BILINEAR)
        pixels = torch.from_numpy(np.array(resized)[1:15, 5:19]).permute(2, 0, 1)
        torch.testing.assert_close(image, (pixels / 255 - mean) / std)
    assert images.std() > 0.5


def test_training_images_are_normalised(folder):
    for path in (folder / "train").rglob("*.png"):
        Image.new("RGB", (30, 20), (102, 153, 204)).save(path)
    (expected,) = {
        tuple(x.tolist()) for x in train_images(folder).mean(dim=(2, 3)).round(decimals=3)
    }
    assert expected == pytest.approx((0.0, 0.4, 2 / 3), abs=1e-3)


def test_images_are_turned_upright_and_hidden_files_left_out(folder):
    path = folder / "val" / "cat" / "0.png"
    upright = batches(folder, size=20)
    ((expected, _),) = upright.test()
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    Image.open(path).rotate(180).save(path, exif=exif)
    (folder / "val" / ".cache").mkdir()
    (folder / "val" / "dog" / ".DS_Store").write_bytes(b"no image")
    ((found, _),) = batches(folder, size=20).test()
    assert torch.equal(found, expected)


def test_damaged_images_are_named_before_training(folder):
    path = folder / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=rf"1 of 8 files in .* cannot be read as images: {path}"):
        batches(folder)


def test_images_of_16_bits_are_refused(folder):
    path = folder / "val" / "dog" / "0.png"
    Image.fromarray(np.zeros((20, 30), np.uint16)).save(path)
    with pytest.raises(UserError, match="mode I;16, expected 8 bits per channel"):
        batches(folder)


def test_splits_must_have_the_same_classes(folder):
    (folder / "train" / "dog").rename(folder / "train" / "bird")
    with pytest.raises(UserError, match="has the classes bird, cat, but .* cat, dog"):
        batches(folder)


def test_a_folder_of_training_images_alone(folder):
    for path in sorted((folder / "val").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (folder / "val").rmdir()
    with pytest.raises(UserError, match="neither test/ nor val/: add one$"):
        batches(folder)


def test_without_splits_a_fifth_of_each_class_is_for_testing(folder):
    for i in range(3, 10):
        (folder / "train" / "cat" / f"{i}.png").write_bytes(
            (folder / "train" / "cat" / "0.png").read_bytes()
        )
    found = [batches(folder / "train", seed=seed) for seed in (0, 1)]
    tested = [[(images, labels) for images, labels in each.test()] for each in found]
    labels = [torch.cat([labels for _, labels in each]).tolist() for each in tested]
    assert labels == [[0, 0, 1], [0, 0, 1]]  # of ten cats and three dogs
    assert torch.equal(tested[0][0][0], tested[1][0][0])  # whichever the seed
    assert found[0].train_size == 10
    for path in (folder / "train" / "dog").glob("[12].png"):
        path.unlink()
    with pytest.raises(UserError, match="dog has one image; expected one to train on and one to"):
        batches(folder / "train")
