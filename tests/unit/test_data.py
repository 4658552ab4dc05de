"""Packed files, canonical order, official readers, and everything that can be wrong with data."""

import gzip
import hashlib
import logging
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from configs import compose, dataset_config, identify
from data import DatasetFile, DatasetSpec, load_dataset
from data.official import pack
from data.packed import DIGEST, KEYS, read_packed, write_packed
from data.spec import Augmentation, Normalisation
from eval import test_batches as batches_of_a_run
from linearconv.errors import UserError

DATASETS = ("cifar10", "cifar100", "svhn", "mnist", "fashion_mnist", "digits")


def spec(**changes) -> DatasetSpec:
    facts = {
        "name": "toy",
        "revision": 1,
        "classes": 3,
        "channels": 3,
        "image_size": 8,
        "train_size": 6,
        "test_size": 4,
        "normalisation": Normalisation([0.5] * 3, [0.5] * 3),
        "augmentation": Augmentation(),
    }
    return DatasetSpec(**(facts | changes))


def toy_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "train_images": random.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8),
        "train_labels": np.array([0, 1, 2, 0, 1, 2]),
        "test_images": random.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8),
        "test_labels": np.array([0, 1, 2, 0]),
        "classes": np.array(["a", "b", "c"]),
    }


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    write_packed(tmp_path / "toy.npz", toy_arrays())
    return tmp_path


def test_any_sample_order_loads_as_the_same_dataset(toy, tmp_path):
    first = read_packed(spec(), toy)
    arrays = toy_arrays()
    for split, size in (("train", 6), ("test", 4)):
        order = np.random.default_rng(1).permutation(size)
        for kind in ("images", "labels"):
            arrays[f"{split}_{kind}"] = arrays[f"{split}_{kind}"][order]
    write_packed(tmp_path / "other" / "toy.npz", arrays)
    second = read_packed(spec(), tmp_path / "other")
    assert first.digest == second.digest
    assert np.array_equal(first.train.images, second.train.images)
    assert np.array_equal(first.train.labels, second.train.labels)


def test_equal_images_are_ordered_by_label(tmp_path):
    digests = []
    for labels in ([2, 0, 1, 1, 0, 2], [0, 2, 1, 2, 1, 0]):
        arrays = toy_arrays() | {"train_labels": np.array(labels)}
        arrays["train_images"] = np.zeros_like(arrays["train_images"])
        write_packed(tmp_path / "toy.npz", arrays)
        dataset = read_packed(spec(), tmp_path)
        assert dataset.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
        digests.append(dataset.digest)
    assert digests[0] == digests[1]


def test_digest_is_the_documented_one(toy):
    """sha256 over train then test, sorted by (sha256 of the image, label): bytes and label."""
    arrays, digest = toy_arrays(), hashlib.sha256()
    for split in ("train", "test"):
        samples = zip(arrays[f"{split}_images"], arrays[f"{split}_labels"], strict=True)
        ordered = sorted(samples, key=lambda s: (hashlib.sha256(s[0].tobytes()).digest(), s[1]))
        for image, label in ordered:
            digest.update(image.tobytes() + int(label).to_bytes(8, "little"))
    assert read_packed(spec(), toy).digest == digest.hexdigest()


def test_a_changed_pixel_or_label_changes_the_digest(toy, tmp_path):
    digests = {read_packed(spec(), toy).digest}
    for key, index in (("train_images", (0, 0, 0, 0)), ("test_labels", 3)):
        arrays = toy_arrays()
        arrays[key][index] = (arrays[key][index] + 1) % 3
        write_packed(tmp_path / "changed" / "toy.npz", arrays)
        digests.add(read_packed(spec(), tmp_path / "changed").digest)
    assert len(digests) == 3


def test_limits_and_hold_out_take_the_ends_in_canonical_order(toy):
    whole = read_packed(spec(), toy)
    part = load_dataset(spec(), toy, limit_train=4, limit_test=2, val_fraction=0.25)
    assert np.array_equal(part.train.images, whole.train.images[:3])
    assert np.array_equal(part.val.images, whole.train.images[3:4])
    assert np.array_equal(part.test.labels, whole.test.labels[:2])
    assert part.digest == whole.digest


def test_other_data_than_published_is_said(toy, caplog):
    caplog.set_level(logging.WARNING)
    load_dataset(spec(digest="0" * 64), toy)
    assert "gets its own identity" in caplog.text
    caplog.clear()
    load_dataset(spec(digest=read_packed(spec(), toy).digest), toy)
    assert not caplog.text


def test_the_digest_is_known_before_the_images_are_loaded(toy, monkeypatch):
    digest = read_packed(spec(), toy).digest
    monkeypatch.setattr("data.dataset_file.read_packed", None)
    assert DatasetFile(spec(), toy).digest == digest
    assert DatasetFile(spec(digest="0" * 64), toy).digest == digest  # of what is at hand


def test_without_a_file_the_published_digest_counts(tmp_path):
    assert DatasetFile(spec(digest="0" * 64), tmp_path).digest == "0" * 64


def test_a_file_packed_without_a_digest_is_read_once(toy, monkeypatch):
    np.savez((toy / "toy.npz").open("wb"), **toy_arrays())
    calls = []

    def read(*arguments):
        calls.append(arguments)
        return read_packed(*arguments)

    monkeypatch.setattr("data.dataset_file.read_packed", read)
    file = DatasetFile(spec(), toy)
    assert file.digest == file.load().digest and len(calls) == 1


def test_a_file_that_was_changed_after_packing_is_refused(toy):
    digest = read_packed(spec(), toy).digest
    np.savez((toy / "toy.npz").open("wb"), **toy_arrays(1), **{DIGEST: np.array(digest)})
    assert DatasetFile(spec(), toy).digest == digest
    expect_error(toy, "was changed after it was packed")


def test_a_file_that_was_replaced_meanwhile_is_refused(toy):
    file = DatasetFile(spec(), toy)
    assert file.digest
    write_packed(toy / "toy.npz", toy_arrays(1))
    with pytest.raises(UserError, match="under its own identity"):
        file.load()


def expect_error(root: Path, *words: str, **changes) -> None:
    with pytest.raises(UserError) as error:
        read_packed(spec(**changes), root)
    message = str(error.value)
    for word in (str(root / "toy.npz"), "scripts/prepare_data.py toy", "copy toy.npz", *words):
        assert word in message, message


def test_missing_file(tmp_path):
    expect_error(tmp_path, "not found")


def test_truncated_file(toy):
    path = toy / "toy.npz"
    content = path.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        expect_error(toy, "truncated or damaged")


def test_flipped_bit(toy):
    path = toy / "toy.npz"
    with zipfile.ZipFile(path) as file:
        start = file.getinfo("train_images.npy").header_offset
    content = bytearray(path.read_bytes())
    content[start + 400] ^= 1
    path.write_bytes(content)
    expect_error(toy, "truncated or damaged", "CRC")


def test_not_a_zip_at_all(toy):
    (toy / "toy.npz").write_text("<html>not found</html>")
    expect_error(toy, "truncated or damaged")
    np.save((toy / "toy.npz").open("wb"), np.zeros(3))
    expect_error(toy, "truncated or damaged")


def test_missing_array(toy):
    arrays = toy_arrays()
    del arrays["test_labels"]
    np.savez((toy / "toy.npz").open("wb"), **arrays)
    expect_error(toy, "lacks test_labels")


@pytest.mark.parametrize(
    "changes", [{"train_size": 7}, {"image_size": 9}, {"channels": 1}, {"test_size": 3}]
)
def test_wrong_shape_or_count(toy, changes):
    expect_error(toy, "has shape", "expected", **changes)


def test_wrong_type(toy):
    arrays = toy_arrays()
    write_packed(toy / "toy.npz", arrays | {"test_images": arrays["test_images"] / 255})
    expect_error(toy, "test_images", "float64", "uint8")


def test_wrong_label(toy):
    arrays = toy_arrays()
    arrays["train_labels"][0] = 3
    write_packed(toy / "toy.npz", arrays)
    expect_error(toy, "labels from 0 to 3", "expected 0 to 2")


def test_a_failed_write_leaves_no_file(tmp_path):
    class Unwritable:
        def __array__(self, *args, **kwargs):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_packed(tmp_path / "toy.npz", toy_arrays() | {"classes": Unwritable()})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", DATASETS)
def test_configs_are_complete(name):
    config = dataset_config(name)
    assert config.name == name
    assert len(config.normalisation.mean) == len(config.normalisation.std) == config.channels
    # Every training crop has a choice of positions, every test image comes out at 32 pixels.
    assert config.image_size + 2 * config.augmentation.train_padding > 32
    assert config.image_size + 2 * config.augmentation.test_padding == 32


def test_unknown_dataset_lists_the_choices():
    with pytest.raises(UserError, match="unknown dataset 'imagenet'") as error:
        dataset_config("imagenet")
    assert all(name in str(error.value) for name in DATASETS)


@pytest.mark.parametrize("name", [n for n in DATASETS if n != "svhn"])
def test_real_data_is_as_published_and_normalised_by_its_own_statistics(
    name, real_dataset, digits_root
):
    config = dataset_config(name)
    dataset = load_dataset(config, digits_root) if name == "digits" else real_dataset(name)
    assert dataset.digest == config.digest
    assert len(dataset.classes) == config.classes
    pixels = dataset.train.images.reshape(-1, config.channels) / 255
    np.testing.assert_allclose(pixels.mean(axis=0), config.normalisation.mean, atol=6e-6)
    np.testing.assert_allclose(pixels.std(axis=0), config.normalisation.std, atol=6e-6)


def test_digits_are_scaled_and_split_by_class(digits_root):
    from sklearn.datasets import load_digits

    dataset = load_dataset(dataset_config("digits"), digits_root)
    originals = {
        np.rint(image * 255 / 16).astype(np.uint8).tobytes() for image in load_digits().images
    }
    small = dataset.test.images[:, ::4, ::4, 0]
    assert np.array_equal(small.repeat(4, 1).repeat(4, 2), dataset.test.images[..., 0])
    assert all(image.tobytes() in originals for image in small)
    assert set(np.bincount(dataset.test.labels)) <= {34, 35, 36}


def svhn_files(raw: Path, monkeypatch) -> np.ndarray:
    """Small files in the official .mat format, and torchvision told of their checksums."""
    from torchvision.datasets import SVHN

    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    entries = {}
    for split, count in (("train", 5), ("test", 3)):
        path = raw / f"{split}_32x32.mat"
        labels = np.array([[10], [1], [2], [10], [9]], dtype=np.uint8)[:count]  # 10 means "0"
        scipy.io.savemat(path, {"X": images[:count].transpose(1, 2, 3, 0), "y": labels})
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        entries[split] = ["http://unreachable.invalid/", path.name, md5]
    monkeypatch.setattr(SVHN, "split_list", entries)
    return images


def test_official_files_stand_for_a_digest_that_nobody_knows(tmp_path, monkeypatch, caplog):
    """The identity is known without the data, and is that of the file packed from them."""
    svhn_files(tmp_path / "raw" / "svhn", monkeypatch)
    names = ("train_32x32.mat", "test_32x32.mat")
    md5 = {
        name: hashlib.md5((tmp_path / "raw" / "svhn" / name).read_bytes()).hexdigest()
        for name in names
    }
    config = dataset_config("svhn")
    config.train_size, config.test_size, config.official_md5 = 5, 3, md5
    expected = f"md5:test_32x32.mat={md5[names[1]]},train_32x32.mat={md5[names[0]]}"
    assert DatasetFile(config, tmp_path).digest == expected  # before anything is packed
    caplog.set_level(logging.WARNING)
    dataset = DatasetFile(config, tmp_path).load()
    assert (tmp_path / "svhn.npz").exists() and not caplog.text
    assert DatasetFile(config, tmp_path).digest == dataset.official == expected
    pinned = replace(config, digest=dataset.digest)
    assert DatasetFile(pinned, tmp_path).digest == expected  # pinning it later changes nothing

    # The same images, packed from elsewhere, are the published ones only by a pinned digest.
    arrays = dict(np.load(tmp_path / "svhn.npz"))
    write_packed(tmp_path / "svhn.npz", {key: arrays[key] for key in KEYS})
    assert DatasetFile(pinned, tmp_path).digest == expected
    assert DatasetFile(config, tmp_path).digest == dataset.digest
    DatasetFile(config, tmp_path).load()
    assert "gets its own identity" in caplog.text


def test_evaluating_a_run_leaves_its_data_as_training_would(tmp_path, monkeypatch):
    """With the official files verified, although the run's identity says what it was trained on."""
    svhn_files(tmp_path / "raw" / "svhn", monkeypatch)
    config = dataset_config("svhn")
    config.train_size, config.test_size = 5, 3
    config.official_md5 = {
        path.name: hashlib.md5(path.read_bytes()).hexdigest()
        for path in (tmp_path / "raw" / "svhn").glob("*.mat")
    }
    monkeypatch.setattr("eval.dataset_config", lambda name: config)
    identity = identify(compose(["model=base", "variant=Conv", "dataset=svhn"]))
    identity["dataset"]["digest"] = config.published
    batches_of_a_run(identity, tmp_path, batch_size=2, device=torch.device("cpu"))
    assert read_packed(config, tmp_path).official == config.published
    assert DatasetFile(config, tmp_path).digest == config.published


def test_other_official_files_are_refused(tmp_path, monkeypatch):
    svhn_files(tmp_path / "raw" / "svhn", monkeypatch)
    with pytest.raises(UserError, match="train_32x32.mat has MD5 .*, the official file 0000"):
        pack("svhn", tmp_path, download=False, official_md5={"train_32x32.mat": "0000"})
    assert not (tmp_path / "svhn.npz").exists()


def test_the_identity_of_svhn_is_known_without_the_data():
    """By the MD5s that torchvision knows; its runs are refused no more."""
    from torchvision.datasets import SVHN

    config = dataset_config("svhn")
    known = {entry[1]: entry[2] for entry in SVHN.split_list.values()}
    assert config.official_md5 == {name: known[name] for name in config.official_md5}
    identity = identify(compose(["model=base", "variant=Lr", "dataset=svhn"]))
    assert identity["dataset"]["digest"] == config.published


def gzipped_mnist(folder: Path, monkeypatch) -> None:
    """The four official archives, with one training and two test images of zeros and ones."""
    from torchvision.datasets import MNIST

    folder.mkdir(parents=True, exist_ok=True)
    resources = []
    for split, count in (("train", 1), ("t10k", 2)):
        images, labels = np.full((count, 28, 28), count, np.uint8), np.arange(count, dtype=np.uint8)
        for name, array, magic in (("images-idx3", images, 2051), ("labels-idx1", labels, 2049)):
            head = np.array([magic, *array.shape], dtype=">i4").tobytes()
            path = folder / f"{split}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(head + array.tobytes(), mtime=0))
            resources.append((path.name, hashlib.md5(path.read_bytes()).hexdigest()))
    monkeypatch.setattr(MNIST, "resources", resources)
    monkeypatch.setattr(MNIST, "mirrors", ["http://unreachable.invalid/"])


@pytest.mark.parametrize("place", ["", "raw/mnist", "raw/mnist/MNIST/raw", "MNIST/raw"])
@pytest.mark.parametrize("download", [True, False])
def test_archives_at_hand_are_read_without_a_network(tmp_path, monkeypatch, place, download):
    gzipped_mnist(tmp_path / place, monkeypatch)
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", None)  # would be called
    pack("mnist", tmp_path, download=download)
    with np.load(tmp_path / "mnist.npz") as arrays:
        assert arrays["train_images"].max() == 1 and len(arrays["test_labels"]) == 2


def test_a_folder_unpacked_by_torchvision_is_read(tmp_path, monkeypatch):
    """One that is used as dataset.root, although its archives are gone."""
    gzipped_mnist(tmp_path / "MNIST" / "raw", monkeypatch)
    for path in (tmp_path / "MNIST" / "raw").glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    pack("mnist", tmp_path, download=False)
    assert (tmp_path / "mnist.npz").exists()


def test_missing_official_files_are_named_with_their_folders(tmp_path, monkeypatch):
    gzipped_mnist(tmp_path, monkeypatch)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    with pytest.raises(UserError) as error:
        pack("mnist", tmp_path, download=False)
    for words in (f"{tmp_path}/raw/mnist", f"in {tmp_path}/", "t10k-labels", "train-labels", "MD5"):
        assert words in str(error.value)
    assert "train-images" not in str(error.value)


def test_the_home_folder_is_known_by_its_sign(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    pack("digits", Path("~/data"))
    assert (
        DatasetFile(dataset_config("digits"), Path("~/data")).path == tmp_path / "data/digits.npz"
    )
    assert len(load_dataset(dataset_config("digits"), Path("~/data")).classes) == 10


def test_svhn_reader(tmp_path, monkeypatch):
    images = svhn_files(tmp_path / "raw" / "svhn", monkeypatch)
    pack("svhn", tmp_path, download=False)
    config = dataset_config("svhn")
    config.train_size, config.test_size = 5, 3
    dataset = read_packed(config, tmp_path)
    assert sorted(dataset.train.labels) == [0, 0, 1, 2, 9]
    by_bytes = {
        image.tobytes(): label for image, label in zip(images, [0, 1, 2, 0, 9], strict=True)
    }
    for image, label in zip(dataset.train.images, dataset.train.labels, strict=True):
        assert by_bytes[image.tobytes()] == label
    assert dataset.classes == tuple("0123456789")


def test_damaged_official_file_is_refused(tmp_path, monkeypatch):
    raw = tmp_path / "raw" / "svhn"
    svhn_files(raw, monkeypatch)
    (raw / "train_32x32.mat").write_bytes(b"damaged")
    with pytest.raises(UserError, match="could not be read from .*raw/svhn"):
        pack("svhn", tmp_path, download=False)
    assert not (tmp_path / "svhn.npz").exists()


def test_cifar_reader(tmp_path, monkeypatch):
    """The official layout: a folder of pickled batches, here with 2 images each."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "raw" / "cifar10" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    rows = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [3, 4]}))
    names = [f"class {i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    pack("cifar10", tmp_path, download=False)
    config = dataset_config("cifar10")
    config.train_size, config.test_size = 10, 2
    dataset = read_packed(config, tmp_path)
    assert dataset.classes == tuple(names)
    expected = {row.reshape(3, 32, 32).transpose(1, 2, 0).tobytes() for row in rows}
    assert {image.tobytes() for image in dataset.test.images} == expected


def test_unreachable_download_names_file_folder_and_ways(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    def refuse(self):
        raise OSError("Name or service not known")

    monkeypatch.setattr(CIFAR10, "download", refuse)
    with pytest.raises(UserError) as error:
        load_dataset(dataset_config("cifar10"), tmp_path)
    for word in (
        "cifar10.npz is missing",
        "raw/cifar10",
        "Name or service not known",
        "scripts/prepare_data.py cifar10",
        "copy cifar10.npz",
    ):
        assert word in str(error.value)


def test_training_modules_do_not_import_torchvision():
    import subprocess
    import sys

    code = (
        "import sys, train; print(*(m for m in ('torchvision', 'tensorboard', 'pandas', "
        "'matplotlib', 'sklearn', 'scipy') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
