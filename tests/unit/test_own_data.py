"""Datasets of a user's own: files and folders that are described, and mistakes in them."""

import os
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from configs import compose, dataset_config, dataset_names, identify, run_id
from configs.own_dataset import check_new_name
from data import DatasetFile, packed
from data.class_folders import class_files
from data.image_folder import read_folder
from data.own import describe, name_of
from data.packed import write_packed
from eval import dataset_of
from linearconv.errors import UserError

BASE = ["model=base", "variant=Lr", "dataset=custom"]


def own_arrays(size: int = 32, channels: tuple[int, ...] = (3,)) -> dict[str, np.ndarray]:
    """20 training and 6 test images of three classes, without names."""
    random = np.random.default_rng(0)
    return {
        "train_images": random.integers(0, 256, (20, size, size, *channels), dtype=np.uint8),
        "train_labels": np.arange(20, dtype=np.int32) % 3,
        "test_images": random.integers(0, 256, (6, size, size, *channels), dtype=np.uint8),
        "test_labels": np.arange(6, dtype=np.uint8) % 3,
    }


@pytest.fixture
def save(tmp_path):
    def save(name: str = "mine.npz", **changes) -> Path:
        arrays = own_arrays() | changes
        np.savez(tmp_path / name, **{k: v for k, v in arrays.items() if v is not None})
        return tmp_path / name

    return save


@pytest.mark.parametrize(
    ("size", "channels", "padding"), [(32, (3,), 0), (32, (1,), 0), (32, (), 0), (28, (), 2)]
)
def test_a_file_is_described_by_what_is_in_it(save, size, channels, padding):
    arrays = own_arrays(size, channels)
    path = save(**arrays)
    config = compose([*BASE, f"dataset.path={path}"]).dataset
    assert (config.name, config.classes, config.image_size) == ("mine", 3, size)
    assert (config.channels, config.train_size, config.test_size) == ((*channels, 1)[0], 20, 6)
    assert config.augmentation.test_padding == padding and not config.augmentation.flip
    pixels = arrays["train_images"].reshape(-1, config.channels) / 255
    np.testing.assert_allclose(config.normalisation.mean, pixels.mean(axis=0), atol=6e-6)
    np.testing.assert_allclose(config.normalisation.std, pixels.std(axis=0), atol=6e-6)
    file = DatasetFile(config, Path("anywhere"))
    dataset = file.load()
    assert file.path == path and dataset.digest == file.digest == config.digest
    assert dataset.train.labels.dtype == np.int64 and dataset.classes == ("0", "1", "2")


def test_a_published_dataset_is_described_as_its_config_does(digits_root, tmp_path):
    published, found = dataset_config("digits"), describe(digits_root / "digits.npz")
    for key in ("classes", "channels", "image_size", "train_size", "test_size", "digest"):
        assert getattr(found, key) == getattr(published, key)
    assert found.normalisation == published.normalisation


def test_the_identity_follows_the_images_not_the_file(save, caplog):
    def identity(path: Path, *overrides: str) -> dict:
        config = compose([*BASE, f"dataset.path={path}", "dataset.name=birds", *overrides])
        file = DatasetFile(config.dataset, Path("datasets"))
        file.load()
        return identify(config, digest=file.digest)

    first = identity(save())
    assert run_id(first).startswith("birds-base-Lr-s0-") and not caplog.text
    order = np.random.default_rng(1).permutation(20)
    shuffled = {k: own_arrays()[k][order] for k in ("train_images", "train_labels")}
    assert identity(save("other.npz", **shuffled)) == first
    changed = own_arrays()["test_images"] ^ 1
    assert identity(save("other.npz", test_images=changed)) != first


def test_names_come_from_the_file_and_can_be_given(save):
    names = {"My file-1": "my_file_1", "A.b": "a_b", "---": "custom", "2024": "my_2024"}
    names |= {"NaN": "my_nan", "nullable": "nullable"}
    assert {stem: name_of(Path(f"{stem}.npz")) for stem in names} == names
    path = save("cifar10.npz")
    with pytest.raises(UserError, match="cifar10 is a published dataset.*my_cifar10"):
        compose([*BASE, f"dataset.path={path}"])
    with pytest.raises(UserError, match="dataset.name=Two-parts must have lower-case letters"):
        compose([*BASE, f"dataset.path={path}", "dataset.name=Two-parts"])
    assert compose([*BASE, f"dataset.path={path}", "dataset.name=two"]).dataset.name == "two"
    for name in ("123", "1e3", "nan"):
        with pytest.raises(UserError, match="dataset.name=.* must .* begin with a letter"):
            compose([*BASE, f"dataset.path={path}", f"dataset.name={name}"])


def test_a_file_is_read_once(save, monkeypatch):
    """By all of description, checks and training, in every job; again only if it changed."""
    reads = []
    read = packed._read_arrays
    monkeypatch.setattr(packed, "_read_arrays", lambda *args: reads.append(args) or read(*args))
    path = save()
    for _ in range(3):
        config = compose([*BASE, f"dataset.path={path}"]).dataset
        DatasetFile(config, Path("datasets")).load()
    assert len(reads) == 1
    times = path.stat()
    save(test_images=own_arrays()["test_images"] ^ 1)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as on a coarse clock
    assert compose([*BASE, f"dataset.path={path}"]).dataset.digest != config.digest
    assert len(reads) == 2


IMAGES = own_arrays()["train_images"]
LABELS = np.arange(20) % 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test_labels": None}, ["lacks test_labels", "found train_images"]),
        ({"train_images": IMAGES / 255}, ["train_images has type float64", "uint8", "255 *"]),
        ({"train_images": IMAGES * np.nan}, ["train_images has type float64"]),
        ({"train_images": IMAGES[:, :, 0, 0]}, ["train_images has shape (20, 32)", "height"]),
        ({"train_images": IMAGES.transpose(0, 3, 1, 2)}, ["(20, 3, 32, 32)", "transpose"]),
        ({"train_images": IMAGES[:, :30]}, ["train_images has shape (20, 30, 32, 3)", "28x28"]),
        ({"train_images": IMAGES[..., :2]}, ["(20, 32, 32, 2)", "1 or 3"]),
        ({"train_images": IMAGES[..., :1]}, ["test_images are (32, 32, 3)", "same"]),
        ({"train_images": IMAGES * 0}, ["one value everywhere"]),
        ({"train_labels": LABELS[:9]}, ["train_labels", "(9,)", "(20,)"]),
        ({"train_labels": LABELS * 1.0}, ["train_labels has type float64", "integers"]),
        ({"train_labels": LABELS[:, None]}, ["train_labels", "(20, 1)"]),
        ({"train_labels": LABELS + 1}, ["(1, 2, 3), expected 0 to 2 without gaps", "renumber"]),
        ({"train_labels": 2 * LABELS}, ["(0, 2, 4), expected 0 to 2", "classes"]),
        ({"train_labels": LABELS - 1}, ["(-1, 0, 1), expected 0 to 2"]),
        ({"train_labels": LABELS * 0, "test_labels": LABELS[:6] * 0}, ["two classes or more"]),
        (
            {"train_labels": LABELS * 0, "classes": np.array(["a", "b", "c"])},
            ["train_labels are all the same", "two classes or more"],
        ),
        ({"test_labels": np.arange(6)}, ["test_labels contains labels from 0 to 5", "0 to 2"]),
        ({"test_images": IMAGES[:0], "test_labels": LABELS[:0]}, ["test_images", "at least one"]),
        ({"classes": np.array(["a", "b"])}, ["train_labels contains labels from 0 to 2", "0 to 1"]),
        ({"classes": np.array(["a", "b", "a"])}, ["classes must be names that differ"]),
        ({"classes": np.array(["a", None])}, ["Python objects"]),
        ({"digest": np.array("0" * 64)}, ["was changed after it was packed", "array digest"]),
    ],
)
def test_every_mistake_in_a_file_is_named(save, changes, words):
    path = save(**changes)
    with pytest.raises(UserError) as error:
        compose([*BASE, f"dataset.path={path}"])
    for word in (str(path), *words, "docs/datasets.md"):
        assert word in str(error.value)
    assert "full_key" not in str(error.value)


def test_a_path_that_is_no_file_of_ones_own(save, tmp_path):
    (tmp_path / "notes.npz").write_text("no archive")
    for path, words in (
        ("null", ["dataset.path=my.npz"]),
        (f"{tmp_path}/none.npz", ["none.npz not found"]),
        (str(tmp_path), ["is a folder", f"prepare_data.py --from-folder {tmp_path} --name"]),
        (f"{tmp_path}/notes.npz", ["notes.npz is truncated or damaged"]),
    ):
        with pytest.raises(UserError) as error:
            compose([*BASE, f"dataset.path={path}"])
        assert all(word in str(error.value) for word in words), str(error.value)
    config = compose([*BASE[:2], "dataset=cifar10", f"dataset.path={save()}"]).dataset
    with pytest.raises(UserError, match="for images of your own: dataset=custom"):
        DatasetFile(config, tmp_path).load()


def test_a_published_dataset_can_lie_anywhere(digits_root, tmp_path, caplog):
    path = tmp_path / "elsewhere.npz"
    path.write_bytes((digits_root / "digits.npz").read_bytes())
    config = compose([*BASE[:2], "dataset=digits", f"dataset.path={path}"])
    file = DatasetFile(config.dataset, tmp_path)
    file.load()
    assert file.path == path and not caplog.text
    assert identify(config, digest=file.digest) == identify(compose([*BASE[:2], "dataset=digits"]))


def test_an_own_dataset_whose_file_is_missing_or_another(save, tmp_path, caplog):
    spec = describe(save())
    spec.path = None
    with pytest.raises(UserError, match="mine.npz not found.*--from-folder DIR --name mine"):
        DatasetFile(spec, tmp_path / "none").load()
    assert not (tmp_path / "none").exists()
    write_packed(
        tmp_path / "mine.npz",
        own_arrays()
        | {"test_images": IMAGES[:6], "classes": np.array(["a", "b", "c"])}
        | {"test_labels": LABELS[:6], "train_labels": LABELS},
    )
    DatasetFile(spec, tmp_path).load()
    assert "is not the mine that its yaml describes" in caplog.text
    assert "--from-folder DIR --name mine --overwrite` writes both" in caplog.text


def test_a_run_is_evaluated_on_its_own_images_alone(save, tmp_path, monkeypatch):
    """Its dataset was packed anew, with other images in more classes, and so was its config."""
    old, new = save("old.npz"), save("birds.npz", train_labels=np.arange(20) % 4)
    identity = identify(compose([*BASE, f"dataset.path={old}", "dataset.name=birds"]))
    config = replace(describe(new), path=None)
    monkeypatch.setattr("eval.dataset_names", lambda: ["birds"])
    monkeypatch.setattr("eval.dataset_config", lambda name: config)
    for path in (None, str(new)):
        with pytest.raises(UserError, match="birds.npz has other images.*give that file as --it"):
            dataset_of(identity, tmp_path, path, option="--it")
    given = dataset_of(identity, tmp_path, str(old))
    assert (given.digest, given.classes) == (identity["dataset"]["digest"], 3)
    new.unlink()
    absent = dataset_of(identity, tmp_path)
    assert (absent.digest, absent.classes) == (given.digest, 3)
    with pytest.raises(UserError, match="birds.npz not found"):
        DatasetFile(absent, tmp_path).load()
    old.rename(new)
    assert DatasetFile(dataset_of(identity, tmp_path), tmp_path).load().digest == given.digest


def test_a_folder_that_may_be_a_typing_error_is_not_downloaded_into(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LINEARCONV_DATA", raising=False)
    monkeypatch.setattr("linearconv.engine.files.CHECKOUT", tmp_path)
    digits = dataset_config("digits")
    with pytest.raises(UserError, match=r"dataste, does not exist.*digits.npz is not present"):
        DatasetFile(digits, Path("dataste")).load()
    assert not list(tmp_path.iterdir())
    DatasetFile(digits, Path("datasets")).load()  # the default is made
    with pytest.raises(UserError, match=r"datasets/, where digits.npz is present"):
        DatasetFile(digits, Path("dataste")).load()
    (tmp_path / "dataste").mkdir()
    DatasetFile(digits, Path("dataste")).load()


def test_a_name_without_a_reader_says_what_to_add(tmp_path):
    digits = dataset_config("digits")
    digits.name = "kmnist"
    with pytest.raises(UserError, match=r"data/official.py does not know.*own: true"):
        DatasetFile(digits, tmp_path).load()


# ---- folders of images


def picture(path: Path, *, size=(32, 32), mode: str = "RGB", seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    image.convert(mode).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    for label, name in enumerate(("dog", "cat")):
        for i in range(10):
            picture(tmp_path / "photos" / name / f"{i}.png", seed=10 * label + i)
    return tmp_path / "photos"


def test_a_folder_becomes_a_dataset(folder):
    arrays, notes = read_folder(folder)
    assert arrays["classes"].tolist() == ["cat", "dog"]
    assert np.bincount(arrays["train_labels"]).tolist() == [8, 8]
    assert np.bincount(arrays["test_labels"]).tolist() == [2, 2]
    assert arrays["train_images"].shape == (16, 32, 32, 3) and len(notes) == 1
    pixels = np.asarray(Image.open(folder / "cat" / "3.png"))
    cats = np.concatenate([arrays[f"{s}_images"][arrays[f"{s}_labels"] == 0]
                           for s in ("train", "test")])  # fmt: skip
    assert sum(np.array_equal(pixels, cat) for cat in cats) == 1
    assert len(read_folder(folder, test_fraction=0.5)[0]["test_labels"]) == 10


def test_hidden_files_and_folders_are_left_out(folder):
    """Thumbnails and notebooks' checkpoints are copies, which would be in training and in test."""
    picture(folder / "cat" / ".thumbnails" / "3.png")
    picture(folder / "cat" / "more" / ".3.png")
    found = {name: len(files) for name, files in class_files(folder).items()}
    assert found == {"cat": 10, "dog": 10}


def test_what_systems_put_into_folders_is_left_out(folder):
    """As classes, in classes, and in training and test folders."""
    before = read_folder(folder)[0]
    for name in ("@eaDir", "#recycle", "@Recycle", ".@__thumb", "__MACOSX", "$RECYCLE.BIN"):
        for place in (folder, folder / "cat"):
            picture(place / name / "0.png", seed=1)
            picture(place / name / "deeper" / "1.png", seed=2)
    for name in ("Thumbs.db", "desktop.ini", "ehthumbs.db", "Icon\r"):
        (folder / name).write_bytes(b"no image")
        (folder / "dog" / name).write_bytes(b"no image")
    for key, value in read_folder(folder)[0].items():
        np.testing.assert_array_equal(value, before[key])
    for name in ("train", "val"):
        (folder / name).mkdir()
        for label in ("cat", "dog"):
            shutil.copytree(folder / label, folder / name / label)
        picture(folder / name / "@eaDir" / "0.png")
    assert len(read_folder(folder)[0]["train_labels"]) == 20


def test_the_same_picture_is_on_one_side(folder, caplog):
    """Whatever its file is called, and in whichever format it was saved."""
    for i in range(10):
        Image.open(folder / "cat" / f"{i}.png").save(folder / "cat" / f"again{i}.bmp")
    (folder / "dog" / "copy.png").write_bytes((folder / "dog" / "0.png").read_bytes())
    arrays, notes = read_folder(folder, test_fraction=0.5)
    train, test = (
        {image.tobytes() for image in arrays[f"{split}_images"]} for split in ("train", "test")
    )
    assert len(train) + len(test) == 20 and not train & test and not caplog.text
    assert "11 of 31 images are copies of others" in notes
    assert np.bincount(arrays["test_labels"])[0] == 10  # copies count
    for path in list((folder / "cat").iterdir()):
        path.write_bytes((folder / "dog" / "0.png").read_bytes())
    with pytest.raises(UserError, match=r"cat/ has one image \(20 times\)"):
        read_folder(folder)
    picture(folder / "cat" / "0.png", seed=7)  # no group is small enough for the share
    assert np.bincount(read_folder(folder, test_fraction=0.01)[0]["test_labels"])[0] == 1


def test_pictures_of_both_splits_are_named_once(folder, caplog):
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            shutil.copytree(folder / label, folder / split / label)
    for i, path in enumerate(sorted((folder / "test").rglob("*.png"))[:-4]):
        picture(path, seed=100 + i)
    Image.open(folder / "test" / "dog" / "9.png").save(folder / "test" / "dog" / "9.tif")
    (folder / "test" / "dog" / "9.png").unlink()
    read_folder(folder)
    (message,) = caplog.messages
    assert "4 of 20 test images are training images, too (test/dog/6.png = train/dog/6.png" in (
        message
    )
    assert message.endswith("--strict refuses them") and "..." in message
    with pytest.raises(UserError, match="4 of 20 test images .* or leave out --strict"):
        read_folder(folder, strict=True)


def test_test_images_of_a_file_that_are_training_images(save, caplog):
    images = own_arrays()["test_images"]
    images[4] = IMAGES[17]
    path = save(test_images=images)
    config = compose([*BASE, f"dataset.path={path}"]).dataset
    DatasetFile(config, Path("datasets")).load()
    (message,) = caplog.messages
    assert f"{path}: 1 of 6 test images are" in message
    assert "test_images[4] = train_images[17]" in message
    with pytest.raises(UserError, match=r"1 of 6 .* leave out dataset.strict=true"):
        DatasetFile(config, Path("datasets")).load(strict=True)
    first = compose([*BASE, f"dataset.path={path}"])
    strict = compose([*BASE, f"dataset.path={path}", "dataset.strict=true"])
    assert identify(first) == identify(strict)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pictures_are_shown_on_white(tmp_path, mode):
    """Their colours are black wherever they cannot be seen, in all pictures of a class."""
    shapes = []
    for i in range(4):
        for label in ("circle", "square"):
            alpha = np.zeros((32, 32), np.uint8)
            alpha[i : i + 8 * (1 + (label == "square"))] = 255
            shapes.append(alpha)
            image = Image.new("RGBA", (32, 32))
            image.putalpha(Image.fromarray(alpha))
            (tmp_path / label).mkdir(exist_ok=True)
            image.convert(mode).save(tmp_path / label / f"{i}.png")
    arrays, notes = read_folder(tmp_path)
    found = {i.tobytes() for s in ("train", "test") for i in arrays[f"{s}_images"]}
    assert found == {(255 - alpha).tobytes() for alpha in shapes}
    assert notes[-1] == "8 of 8 images are transparent: shown on white"


def test_names_of_classes_are_text_in_one_spelling(folder):
    """macOS stores an accent apart from its letter; other systems store any bytes."""
    for split in ("train", "test"):
        accent = {"train": "caf\u00e9", "test": "cafe\u0301"}[split]
        for i, name in enumerate((accent, os.fsdecode(b"caf\xe9"))):
            picture(folder / split / name / "0.png", seed=50 + 10 * i + len(split))
    arrays, _ = read_folder(folder)
    names = arrays["classes"].tolist()
    assert names == ["caf\\xe9", "caf\u00e9"]
    "".join(names).encode()
    for split in ("train", "test"):
        picture(folder / split / "cafe\u0301" / "1.png", seed=90 + len(split))
        picture(folder / split / "caf\u00e9" / "2.png", seed=95 + len(split))
    arrays, _ = read_folder(folder)
    assert np.bincount(arrays["train_labels"]).tolist() == [1, 3]


def test_linked_folders_and_files_are_read(folder, tmp_path):
    for i in range(3):
        picture(tmp_path / "elsewhere" / f"{i}.png", seed=100 + i)
    (folder / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "cat" / "more" / "up").symlink_to(folder / "cat")  # read once
    (folder / "dog" / "one.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    assert {name: len(files) for name, files in class_files(folder).items()} == {
        "cat": 13,
        "dog": 11,
    }
    (folder / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"1 of 25 files .*gone.png \(.*No such file"):
        read_folder(folder)


def test_colours_of_16_bits_are_refused(folder, tmp_path):
    """Pillow would keep the higher 8 bits of them: of 12-bit images, 16 levels."""
    pixels = np.full((32, 32, 3), 4095, ">u2")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    (folder / "cat" / "deep.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    (folder / "dog" / "deep.ppm").write_bytes(b"P6\n32 32\n65535\n" + pixels.tobytes())
    with pytest.raises(UserError) as error:
        read_folder(folder)
    for name in ("deep.png", "deep.ppm"):
        assert f"{name} (16 bits per channel, expected 8)" in str(error.value)
    (folder / "cat" / "deep.png").unlink()
    (folder / "dog" / "deep.ppm").write_bytes(b"P6\n32 32\n255\n" + bytes(32 * 32 * 3))
    read_folder(folder)


def test_whatever_a_damaged_file_makes_pillow_raise_names_the_file(folder, monkeypatch):
    def stumble(image):
        raise struct.error("required argument is not an integer")

    monkeypatch.setattr(ImageOps, "exif_transpose", stumble)
    with pytest.raises(UserError, match=r"20 of 20 files .*0.png \(required argument is not"):
        read_folder(folder)


def test_the_test_share_depends_on_the_images_alone(folder):
    def chosen() -> set[bytes]:
        return {image.tobytes() for image in read_folder(folder)[0]["test_images"]}

    before = chosen()
    for path in folder.glob("*/*.png"):
        path.rename(path.with_name(f"{9 - int(path.stem)}-renamed.png"))
    assert chosen() == before


@pytest.mark.parametrize("name", ["test", "val"])
def test_a_split_is_the_users(folder, name):
    for i, label in enumerate(("dog", "cat")):
        (folder / "train").mkdir(exist_ok=True)
        (folder / label).rename(folder / "train" / label)
        picture(folder / name / label / "a" / "deep.png", seed=96 + i)
        picture(folder / name / label / "0.png", seed=98 + i)
        (folder / name / label / ".DS_Store").write_text("hidden")
    arrays, notes = read_folder(folder)
    assert len(arrays["train_labels"]) == 20 and arrays["test_labels"].tolist() == [0, 0, 1, 1]
    assert notes == [f"test images: those in {name}/"]
    with pytest.raises(UserError, match="--test-fraction is not used"):
        read_folder(folder, test_fraction=0.1)
    picture(folder / name / "bird" / "0.png")
    with pytest.raises(UserError, match="has the classes cat, dog, but .* bird, cat, dog"):
        read_folder(folder)


def test_other_sizes_are_resized_and_cropped_at_the_centre(folder):
    picture(folder / "cat" / "wide.png", size=(128, 64), seed=51)
    picture(folder / "cat" / "small.png", size=(16, 16), seed=50)
    arrays, notes = read_folder(folder)
    assert "2 of 22 images were resized to 32x32 (bilinear, antialiased), 1 of them" in notes[1]
    images = np.concatenate([arrays["train_images"], arrays["test_images"]])
    wide = Image.open(folder / "cat" / "wide.png").resize((64, 32), Image.Resampling.BILINEAR)
    expected = np.asarray(wide.crop((16, 0, 48, 32)))
    assert sum(np.array_equal(image, expected) for image in images) == 1


@pytest.mark.parametrize("modes", [("L", "1", "L"), ("RGB", "L", "P"), ("L", "RGBA", "LA")])
def test_channels_follow_the_colours(tmp_path, modes):
    for i, mode in enumerate(modes):
        for name in ("a", "b"):
            picture(tmp_path / name / f"{i}.png", mode=mode, seed=i)
    arrays, _ = read_folder(tmp_path)
    assert arrays["train_images"].shape[-1] == (3 if {"RGB", "RGBA"} & set(modes) else 1)


def test_grey_images_saved_in_colour_have_one_channel(folder):
    for path in list(folder.glob("*/*.png")):
        Image.open(path).convert("L").convert("RGB").save(path)
    assert read_folder(folder)[0]["train_images"].shape[-1] == 1


def test_a_photo_is_turned_upright(folder):
    lying = np.zeros((32, 32, 3), np.uint8)
    lying[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: the first row becomes the last column
    Image.fromarray(lying).save(folder / "cat" / "photo.png", exif=exif)
    arrays, _ = read_folder(folder)
    images = np.concatenate([arrays["train_images"], arrays["test_images"]])
    assert any(np.array_equal(image, np.rot90(lying, -1)) for image in images)


def test_unreadable_files_are_counted_and_named(folder):
    """Those of all classes at once."""
    for i in range(7):
        (folder / ("cat", "dog")[i % 2] / f"bad{i}.jpg").write_bytes(b"no image")
    content = (folder / "cat" / "0.png").read_bytes()
    (folder / "cat" / "0.png").write_bytes(content[: len(content) // 2])
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(folder / "cat" / "1.png")
    with pytest.raises(UserError) as error:
        read_folder(folder)
    text = str(error.value)
    assert "9 of 27 files in" in text and "and 4 more" in text and "Mend or remove" in text
    assert "0.png (" in text and "1.png (mode I;16, expected 8 bits" in text
    assert text.count(".jpg") == 3


def test_folders_that_are_no_dataset(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "one" / "a" / "0.png")
    for path, words in (
        (tmp_path / "none", "none is not a folder"),
        (tmp_path / "empty", "has 0 folder"),
        (tmp_path / "one", "has 1 folder"),
        (folder / "cat", "has 0 folder"),
    ):
        with pytest.raises(UserError, match=words):
            read_folder(path)
    with pytest.raises(UserError, match="between 0 and 1"):
        read_folder(folder, test_fraction=1)
    (folder / "damaged").mkdir()
    (folder / "damaged" / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match="between 0 and 1"):  # before any image is read
        read_folder(folder, test_fraction=20)
    shutil.rmtree(folder / "damaged")
    (folder / "bird").mkdir()
    with pytest.raises(UserError, match="has no images in bird"):
        read_folder(folder)
    picture(folder / "bird" / "0.png")
    with pytest.raises(UserError, match="bird/ has one image"):
        read_folder(folder)
    picture(folder / "train" / "a" / "0.png")
    with pytest.raises(UserError, match="neither test/ nor val/"):
        read_folder(folder)


@pytest.mark.parametrize("splits", [("training", "testing"), ("Train", "Test")])
def test_splits_are_not_taken_for_classes(folder, splits):
    """However they are spelt; with folders of classes in them, or with images."""
    for split in splits:
        for name in ("cat", "dog"):
            shutil.copytree(folder / name, folder.parent / "splits" / split / name)
        shutil.copytree(folder / "cat", folder.parent / "flat" / split)
    words = {"splits": "only folders in them", "flat": "names of splits"}
    for name, reason in words.items():
        with pytest.raises(UserError, match=f"have {reason}.* to train/ and test/") as error:
            read_folder(folder.parent / name)
        assert ", ".join(sorted(splits)) in str(error.value)
    with pytest.raises(UserError, match="animals have only folders in them"):
        shutil.copytree(folder, folder / "animals")
        read_folder(folder)


def test_a_class_may_be_called_train(folder):
    picture(folder / "train" / "0.png", seed=77)
    picture(folder / "train" / "1.png", seed=78)
    assert read_folder(folder)[0]["classes"].tolist() == ["cat", "dog", "train"]


def test_names_of_new_datasets(tmp_path):
    for name in ("cifar10", "custom", "svhn"):
        with pytest.raises(UserError, match="dataset of the project"):
            check_new_name(name, tmp_path / "x.npz", overwrite=True)
    for name in ("A", "a-b", "../a", "", "123", "1e3", "_a", "null", "true", "inf", "nan"):
        with pytest.raises(UserError, match="lower-case letters, digits and underscores"):
            check_new_name(name, tmp_path / "x.npz", overwrite=True)
    unused = "no_such_dataset"
    check_new_name(unused, tmp_path / "x.npz", overwrite=False)
    (tmp_path / "x.npz").touch()
    with pytest.raises(UserError, match="x.npz exists: choose another --name, or .* --overwrite"):
        check_new_name(unused, tmp_path / "x.npz", overwrite=False)
    check_new_name(unused, tmp_path / "x.npz", overwrite=True)
    assert "custom" not in dataset_names()
