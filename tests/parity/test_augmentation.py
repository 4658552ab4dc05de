"""Batches against torchvision: pad, crop, flip, to float, normalise, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms import functional as vision

from configs import dataset_config
from data import DATA, ReferenceBatches, ResidentBatches, load_dataset
from data.packed import Dataset, Split
from data.plan import EpochPlan
from data.resident import _Pixels
from data.spec import Normalisation
from scripts.bench.tape import tape

CPU = torch.device("cpu")


def torchvision_image(pixels, spec, padding: int, top: int, left: int, flip: bool) -> torch.Tensor:
    image = vision.to_pil_image(torch.from_numpy(pixels).permute(2, 0, 1))
    image = vision.crop(vision.pad(image, padding), top, left, 32, 32)
    if flip:
        image = vision.hflip(image)
    return vision.normalize(
        vision.to_tensor(image), spec.normalisation.mean, spec.normalisation.std
    )


def check_against_torchvision(dataset, spec, way) -> None:
    dataset = dataset.limited(200, 70)
    batches = DATA[way](dataset, spec, batch_size=64, eval_batch_size=32, seed=3, device=CPU)
    augmentation = spec.augmentation
    offsets = spec.image_size + 2 * augmentation.train_padding - 31
    plan = EpochPlan.draw(3, 5, size=200, offsets=offsets, flip=augmentation.flip)
    images, labels = (torch.cat(part) for part in zip(*batches.train(5), strict=True))
    for i, index in enumerate(plan.order.tolist()):
        expected = torchvision_image(
            dataset.train.images[index],
            spec,
            augmentation.train_padding,
            int(plan.top[i]),
            int(plan.left[i]),
            bool(plan.flip[i]),
        )
        assert torch.equal(images[i], expected)
    assert torch.equal(labels, torch.from_numpy(dataset.train.labels)[plan.order])
    tests, _ = (torch.cat(part) for part in zip(*batches.test(), strict=True))
    for i, pixels in enumerate(dataset.test.images):
        expected = torchvision_image(pixels, spec, augmentation.test_padding, 0, 0, False)
        assert torch.equal(tests[i], expected)


@pytest.mark.parametrize("way", DATA)
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist"])
def test_real_images(name, way, real_dataset):
    check_against_torchvision(real_dataset(name), dataset_config(name), way)


@pytest.mark.parametrize("way", DATA)
def test_digits(way, digits_root):
    spec = dataset_config("digits")
    check_against_torchvision(load_dataset(spec, digits_root), spec, way)


def random_dataset(spec) -> Dataset:
    """Random pixels in the dataset's shape: corners, flips and every value occur."""
    random = np.random.default_rng(0)
    shape = (spec.image_size, spec.image_size, spec.channels)

    def split(count: int) -> Split:
        images = random.integers(0, 256, (count, *shape), dtype=np.uint8)
        return Split(images, random.integers(0, 10, count))

    return Dataset(split(300), split(80), tuple("0123456789"), "", split(30))


@pytest.mark.parametrize("way", DATA)
@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_random_images_in_colour(name, way):
    spec = dataset_config(name)
    check_against_torchvision(random_dataset(spec), spec, way)


@pytest.mark.parametrize("name", ["svhn", "fashion_mnist"])
def test_both_ways_agree_on_any_images(name):
    spec = dataset_config(name)
    dataset = random_dataset(spec)
    settings = {"batch_size": 64, "eval_batch_size": 32, "seed": 1, "device": CPU}
    for dtype in (torch.float32, torch.float64):
        ways = [way(dataset, spec, dtype=dtype, **settings) for way in DATA.values()]
        passes = [lambda b: b.train(0), lambda b: b.train(7), lambda b: b.test(), lambda b: b.val()]
        for one_pass in passes:
            for (a, x), (b, y) in zip(*(one_pass(batches) for batches in ways), strict=True):
                assert torch.equal(a, b) and torch.equal(x, y) and a.dtype == dtype


def test_captured_cutting_follows_the_epoch(digits_root):
    """`next` reads tensors at fixed places: its replay cuts batch after batch, epoch by epoch."""
    spec = dataset_config("digits")
    dataset = load_dataset(spec, digits_root, limit_train=50, limit_test=10)
    settings = {"batch_size": 20, "eval_batch_size": 10, "seed": 0, "device": CPU}
    batches, oracle = (
        way(dataset, spec, **settings) for way in (ResidentBatches, ReferenceBatches)
    )
    taken = []
    cut = tape(lambda: taken.append(batches.next(20)))
    for epoch in (3, 4):
        batches.begin(epoch)
        for images, labels in list(oracle.train(epoch))[:2]:
            cut()
            assert torch.equal(taken[0][0], images) and torch.equal(taken[0][1], labels)


@pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="torch 2.6 asks the driver for fake CUDA tensors"
)
def test_nothing_of_a_batch_is_left_on_the_cpu_or_read_by_the_host(digits_root):
    spec = dataset_config("digits")
    dataset = load_dataset(spec, digits_root, limit_train=50, limit_test=10)
    with FakeTensorMode(allow_non_fake_inputs=True):
        batches = ResidentBatches(
            dataset, spec, batch_size=20, eval_batch_size=10, seed=0, device=torch.device("cuda")
        )
        for images, labels in [*batches.train(0), *batches.test()]:
            assert images.device.type == labels.device.type == "cuda"
            assert images.shape[1:] == (1, 32, 32) and len(images) == len(labels)
            assert images.is_contiguous(memory_format=torch.channels_last)


def test_sizes_of_batches(digits_root):
    spec = dataset_config("digits")
    dataset = load_dataset(spec, digits_root, limit_train=100, limit_test=10, val_fraction=0.1)
    batches = ReferenceBatches(
        dataset, spec, batch_size=32, eval_batch_size=7, seed=0, device=CPU, dtype=torch.float64
    )
    assert (batches.train_size, batches.sizes) == (90, [32, 32, 26])
    sizes = [len(labels) for _, labels in batches.train(0)]
    assert sizes == [32, 32, 26]  # the last, shorter batch is kept
    assert [len(labels) for _, labels in batches.test()] == [7, 3]
    assert [len(labels) for _, labels in batches.val()] == [7, 3]
    images, labels = next(batches.train(0))
    assert images.shape == (32, 1, 32, 32) and images.dtype == torch.float64
    assert labels.dtype == torch.int64


def test_plan_covers_every_sample_and_choice():
    plan = EpochPlan.draw(0, 0, size=5000, offsets=9, flip=True)
    assert np.array_equal(np.sort(plan.order), np.arange(5000))
    for offset in (plan.top, plan.left):
        assert torch.bincount(offset).tolist() == pytest.approx([5000 / 9] * 9, rel=0.2)
    assert plan.flip.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert not torch.equal(plan.top, plan.left)


def test_plan_depends_on_seed_and_epoch_alone():
    draw = {"size": 50, "offsets": 9, "flip": True}
    first = EpochPlan.draw(0, 0, **draw)
    torch.rand(10)
    again = EpochPlan.draw(0, 0, **draw)
    assert torch.equal(first.order, again.order) and torch.equal(first.flip, again.flip)
    for seed, epoch in ((0, 1), (1, 0)):
        assert not torch.equal(first.order, EpochPlan.draw(seed, epoch, **draw).order)
    plain = EpochPlan.draw(0, 0, **draw | {"flip": False})
    assert not plain.flip.any() and torch.equal(plain.top, first.top)


PINNED = {
    "order": [2, 1, 5, 9, 6, 7, 0, 8, 3, 4],
    "top": [8, 6, 5, 0, 6, 1, 7, 1, 6, 1],
    "left": [6, 4, 6, 3, 8, 1, 8, 5, 3, 0],
    "flip": [0, 1, 0, 0, 1, 0, 1, 0, 1, 1],
}


def test_plan_is_pinned():
    """The images of all committed records depend on these draws."""
    plan = EpochPlan.draw(0, 0, size=10, offsets=9, flip=True)
    assert {name: getattr(plan, name).int().tolist() for name in PINNED} == PINNED


def test_more_pixels_than_32_bits_can_address():
    """As many images as ImageNet in 32x32 has, in next to no memory: all are one pixel."""
    spec = replace(dataset_config("cifar10"), channels=1, normalisation=Normalisation([0.5], [0.5]))
    few = Split(np.zeros((8, 32, 32, 1), np.uint8), np.zeros(8, np.int64))
    dataset = Dataset(few, few, tuple("0123456789"), "", None)
    batches = ResidentBatches(
        dataset, spec, batch_size=4, eval_batch_size=4, seed=0, device=torch.device("cpu")
    )
    count = 1_281_167
    white = torch.full((1, 1), 255, dtype=torch.uint8).expand(count * 32 * 32 + 1, 1)
    pixels = _Pixels(white, torch.zeros(1, dtype=torch.int64).expand(count))
    corner = torch.tensor([0, 8])  # crops that reach beyond the first and the last pixel
    plan = EpochPlan(torch.tensor([0, count - 1]), corner, corner, torch.tensor([False, True]))
    images, _ = batches._gather(pixels, batches._addresses_of(pixels, plan, padding=4))
    assert torch.equal(images, torch.ones(2, 1, 32, 32))  # here padding is white, too
