"""Training and evaluating on images of one's own, by the commands that docs/datasets.md shows."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from data.own import describe
from scripts.prepare_data import class_counts
from tests.conftest import REPOSITORY, Outcome

QUICK = ["model=base", "variant=Lr", "recipe.epochs=1", "recipe.batch_size=16"]


def stripes(label: int, seed: int, size: int = 32) -> np.ndarray:
    """Noise with rows (label 0) or columns (label 1) that are bright."""
    image = np.random.default_rng(seed).integers(0, 120, (size, size, 3), dtype=np.uint8)
    (image[:, ::4] if label else image[::4])[...] = 255
    return image


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of the project, since the commands write into it."""
    for room in ("configs", "data", "linearconv", "models", "scripts"):
        shutil.copytree(REPOSITORY / room, tmp_path / room)
    for entry in ("train.py", "eval.py"):
        shutil.copy(REPOSITORY / entry, tmp_path)
    for label, name in enumerate(("rows", "columns")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            image = Image.fromarray(stripes(label, 2 * i + label, size=40))
            image.save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path


def test_a_folder_is_packed_trained_on_and_evaluated(checkout):
    def call(*command: str) -> subprocess.CompletedProcess:
        paths = os.pathsep.join([str(checkout), str(REPOSITORY)])
        environment = os.environ | {"PYTHONPATH": paths}
        environment.pop("LINEARCONV_DATA", None)
        return subprocess.run(
            [sys.executable, *command],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )

    pack = ["scripts/prepare_data.py", "--from-folder", "photos", "--name", "stripes"]
    packed = call(*pack)
    assert packed.returncode == 0, packed.stderr
    assert "32 training and 8 test images (32x32x3), 2 classes" in packed.stdout
    assert "40 of 40 images were resized" in packed.stdout
    assert (checkout / "configs/dataset/stripes.yaml").exists()
    again = call(*pack)
    assert again.returncode == 2 and "--overwrite" in again.stderr

    trained = call("train.py", "dataset=stripes", *QUICK)
    assert trained.returncode == 0, trained.stderr
    assert "identity" not in trained.stderr  # these are the images that the yaml describes
    (path,) = (checkout / "results/trials/runs").glob("stripes-base-Lr-*.json")
    record = json.loads(path.read_text())
    evaluated = call("eval.py", f"run={record['run_id']}")
    assert evaluated.returncode == 0, evaluated.stderr
    assert evaluated.stdout.count(f"test accuracy {record['test_acc_best']:.2f} %") == 2


@pytest.fixture
def pack(script, tmp_path, monkeypatch):
    """Packs images of two classes in this process, outside the checkout; returns the outcome."""
    monkeypatch.setattr("configs.own_dataset.CONFIG_DIR", tmp_path / "configs")

    def call(*images: np.ndarray, options: tuple[str, ...] = ()) -> Outcome:
        shutil.rmtree(tmp_path / "photos", ignore_errors=True)
        for i, image in enumerate(images):
            path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        return script("prepare_data", f"--root={tmp_path}", f"--from-folder={tmp_path}/photos",
                      "--name=letters", *options)  # fmt: skip

    return call


def test_unusable_images_replace_nothing(pack, tmp_path):
    packed = pack(*(stripes(i % 2, i) for i in range(6)))
    assert packed.code == 0, packed.err
    assert "\nclasses (training + test images): a 2 + 1, b 2 + 1\n" in packed.out
    files = [tmp_path / "letters.npz", tmp_path / "configs" / "dataset" / "letters.yaml"]
    before = [file.read_bytes() for file in files]
    without_red = [np.full((32, 32, 3), (0, i, i), np.uint8) for i in range(4)]
    refused = pack(*without_red, options=("--overwrite",))
    assert refused.code == 2 and f"{tmp_path}/photos: train_images have a channel" in refused.err
    assert [file.read_bytes() for file in files] == before
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "configs", "letters.npz"}
    assert pack(*(stripes(i % 2, i) for i in range(8)), options=("--overwrite",)).code == 0
    assert files[0].read_bytes() != before[0] and files[1].read_bytes() != before[1]


def test_nothing_is_packed_that_cannot_be_described(pack, tmp_path):
    (tmp_path / "configs").write_text("a file, where a folder is needed")
    packed = pack(*(stripes(i % 2, i) for i in range(6)))
    assert packed.code == 2 and str(tmp_path / "configs") in packed.err
    assert not list(tmp_path.glob("*.npz"))


def test_only_the_first_of_many_classes_are_counted():
    labels = np.repeat(np.arange(12), 2)
    arrays = {"classes": np.array(list("abcdefghijkl")), "train_labels": labels,
              "test_labels": np.arange(11)}  # fmt: skip
    counts = class_counts(arrays)
    assert counts.startswith("a 2 + 1, b 2 + 1, ") and counts.endswith("j 2 + 1, and 2 more")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits", "--flip"], "--flip belongs to --from-folder and --from-npz"),
        (["digits", "--no-flip"], "--flip belongs to --from-folder and --from-npz"),
        (["digits", "--overwrite"], "--overwrite belongs to --from-folder and --from-npz"),
        (["--from-folder=.", "--name=a", "--offline"], "--offline belongs to datasets that"),
        (["--from-npz=a.npz", "--name=a", "--test-fraction=0.5"], "belongs to --from-folder"),
        (["--from-folder=."], "--name NAME belongs to"),
        (["digits", "--root={file}"], "a.txt is a file, expected a folder"),
        (["digits", "--root={file}/b"], "a.txt is a file, expected a folder"),
        (["--from-folder=.", "--name=a", "--root={file}"], "a.txt is a file, expected a folder"),
    ],
)
def test_options_that_would_do_nothing_are_refused(script, tmp_path, arguments, words):
    (tmp_path / "a.txt").touch()
    root = [] if "--root" in arguments[-1] else [f"--root={tmp_path}"]
    given = [argument.format(file=tmp_path / "a.txt") for argument in arguments]
    done = script("prepare_data", *given, *root)
    assert done.code == 2 and words in done.err and "Traceback" not in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.fixture
def own_file(tmp_path) -> Path:
    """Grey images (N, 32, 32) with int32 labels and no names."""
    arrays = {}
    for split, size in (("train", 48), ("test", 16)):
        labels = np.arange(size, dtype=np.int32) % 2
        images = [stripes(label, i + 1000 * (split == "test")) for i, label in enumerate(labels)]
        arrays |= {f"{split}_images": np.stack(images)[..., 0], f"{split}_labels": labels}
    np.savez(tmp_path / "My stripes.npz", **arrays)
    return tmp_path / "My stripes.npz"


@pytest.fixture
def own(places, own_file) -> list[str]:
    elsewhere = [place for place in places if not place.startswith("dataset")]
    return ["dataset=custom", f"dataset.path='{own_file}'", *elsewhere]


def test_a_file_is_trained_on_and_evaluated(cli, script, own, own_file, tmp_path, caplog):
    trained = cli("train", *own, *QUICK)
    assert trained.code == 0, trained.err
    assert "identity" not in caplog.text
    (path,) = (tmp_path / "results/runs").glob("my_stripes-base-Lr-*.json")
    record = json.loads(path.read_text())
    assert record["science"]["dataset"]["classes"] == 2
    assert len(record["science"]["recipe"]["normalisation"]["mean"]) == 1
    assert str(tmp_path) not in json.dumps(record["provenance"])
    assert "already finished" in cli("train", *own, *QUICK).out

    evaluate = ["eval", f"run={record['run_id']}", f"checkpoint_dir={tmp_path}/checkpoints"]
    evaluated = cli(*evaluate, f"dataset.path='{own_file}'")
    assert evaluated.code == 0, evaluated.err
    assert evaluated.out.count(f"test accuracy {record['test_acc_best']:.2f} %") == 2
    without = cli(*evaluate)
    assert without.code == 2 and "named my_stripes: give it as dataset.path" in without.err
    arrays = dict(np.load(own_file))
    np.savez(tmp_path / "other.npz", **arrays | {"test_images": arrays["test_images"] ^ 1})
    other = cli(*evaluate, f"dataset.path={tmp_path}/other.npz")
    assert other.code == 2 and "has other images or labels than the file" in other.err

    verified = script("verify", "--results-dir", tmp_path / "results")
    assert verified.code == 1, verified.out  # nothing was verified
    assert f"{record['run_id']}: not checked: dataset=custom needs its file" in verified.out
    assert "0 of 0 runs are reproduced by their weights, 1 not checked" in verified.out
    export = ["export", record["run_id"], f"--results-dir={tmp_path}/results",
              "--format=safetensors", f"--out={tmp_path}/network.safetensors"]  # fmt: skip
    without = script(*export)
    assert without.code == 2 and "give it as --data-path <file>.npz" in without.err
    other = script(*export, f"--data-path={tmp_path}/other.npz")
    assert other.code == 2 and "has other images or labels than the file" in other.err
    assert not (tmp_path / "network.safetensors").exists()
    exported = script(*export, "--data-path", own_file)
    assert exported.code == 0 and "on 16 test images" in exported.out, exported.err


def test_a_packed_file_is_the_same_data_as_the_file(script, own_file, tmp_path, monkeypatch):
    """And described alike, but for mirroring, if that is asked for."""
    monkeypatch.setattr("configs.own_dataset.CONFIG_DIR", tmp_path / "configs")
    for name, flip in (("rows", []), ("mirrored", ["--flip"])):
        done = script("prepare_data", f"--root={tmp_path}", f"--from-npz={own_file}",
                      f"--name={name}", *flip)  # fmt: skip
        assert done.code == 0, done.err
        described = OmegaConf.load(tmp_path / f"configs/dataset/{name}.yaml")
        expected = asdict(describe(own_file, name))
        expected["augmentation"]["flip"] = bool(flip)
        assert {key: described[key] for key in expected if key in described} == {
            key: value for key, value in expected.items() if key in described
        }
        assert described.digest == describe(tmp_path / f"{name}.npz").digest == expected["digest"]


def test_a_multirun_over_a_file(cli, own, tmp_path):
    outcome = cli("train", "-m", *own, *QUICK, "dataset.name=lines", "seed=0,1")
    assert outcome.code == 0, outcome.err
    assert len(list((tmp_path / "results/runs").glob("lines-base-Lr-e*-s[01]-*.json"))) == 2
    outcome = cli("train", "-m", *own, *QUICK, f"dataset.path={tmp_path}/none.npz", "seed=0,1")
    assert outcome.code == 2 and outcome.err.count("none.npz not found") == 2
    assert outcome.err.startswith("nothing was started") and "Traceback" not in outcome.err


def test_mistakes_exit_2_and_the_config_can_be_shown(cli, own, own_file, tmp_path):
    outcome = cli("train", *own, *QUICK, f"dataset.path={tmp_path}")
    assert outcome.code == 2 and "prepare_data.py --from-folder" in outcome.err
    assert "Traceback" not in outcome.err
    outcome = cli("train", "dataset=custom", *QUICK)
    assert outcome.code == 2 and "dataset=custom needs" in outcome.err
    assert "path: null" in cli("train", "dataset=custom", *QUICK, "--cfg", "job").out
    shown = cli("train", *own, *QUICK, "--cfg", "job", "--resolve")
    assert shown.code == 0 and "name: my_stripes" in shown.out and "train_size: 48" in shown.out
    absent = ["dataset=custom", f"dataset.path={tmp_path}/none.npz", *QUICK]
    shown = cli("train", *absent, "--cfg", "job", "--resolve")
    assert shown.code == 2 and "none.npz not found" in shown.err
