"""Files that would run code or write elsewhere when they are opened: nothing of it happens."""

import hashlib
import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from configs import compose
from data import DatasetFile
from data.official import pack
from data.packed import read_file
from linearconv.engine.artifacts import artifacts_path
from linearconv.engine.checkpoint import load
from linearconv.engine.record import read_record
from linearconv.engine.weights import read_all_weights
from linearconv.errors import UserError
from scripts.evidence.artifacts import read_filters
from train import read_baseline


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def evil(tmp_path) -> Path:
    return tmp_path / "evil"


def as_pickle(path: Path, evil: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(evil)))


def as_torch(path: Path, evil: Path) -> None:
    """A zip as torch writes it, intact but for what its pickle does."""
    torch.save({"run_id": "x", "science": {}, "epoch": 1, "model": Payload(evil)}, path)


def as_zip(path: Path, evil: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(evil), protocol=2))
        archive.writestr("archive/version", "3\n")


def as_arrays(path: Path, evil: Path) -> None:
    """An .npz in which every array that is read is of objects."""
    names = ("train_images", "train_labels", "test_images", "test_labels", "layers", "filters")
    objects = np.array([Payload(evil)], dtype=object)
    with path.open("wb") as file:
        np.savez(file, **dict.fromkeys(names, objects))


def baseline(path: Path):
    overrides = ["model=vgg11_basis", "variant=Conv", "dataset=digits"]
    config = compose([*overrides, f"baseline_checkpoint={path}"])
    return read_baseline(config, DatasetFile(config.dataset, path.parent))


WRITERS = {writer.__name__: writer for writer in (as_pickle, as_torch, as_zip, as_arrays)}
READERS = {
    "checkpoint.pt": load,
    "baseline.pt": baseline,
    "packed.npz": read_file,
    "artifacts/artifacts.npz": lambda path: read_filters(path.parent.parent, path.stem),
    "record.json": read_record,
    "weights.safetensors": read_all_weights,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_the_payload_works_where_nothing_stops_it(tmp_path, evil, writer):
    """Else the test below would show nothing."""
    path = tmp_path / "file"
    WRITERS[writer](path, evil)
    if writer == "as_arrays":
        np.load(path, allow_pickle=True)["layers"]
    elif writer == "as_pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert evil.exists()


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", READERS)
def test_no_code_in_a_file_is_run(tmp_path, evil, name, writer):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    WRITERS[writer](path, evil)
    with pytest.raises(UserError, match=path.name):
        READERS[name](path)
    assert not evil.exists()


def test_the_artifacts_above_are_where_a_run_leaves_them(tmp_path):
    assert artifacts_path(tmp_path, "artifacts") == tmp_path / "artifacts/artifacts.npz"


def test_no_code_in_official_files_is_run(tmp_path, evil):
    """CIFAR's batches are pickles, and torchvision once kept MNIST as such."""
    from torchvision.datasets import CIFAR10

    batches = tmp_path / "raw" / "cifar10" / CIFAR10.base_folder
    batches.mkdir(parents=True)
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]:
        as_pickle(batches / name, evil)
    processed = tmp_path / "raw" / "mnist" / "MNIST" / "processed"
    processed.mkdir(parents=True)
    for name in ("training.pt", "test.pt"):
        as_torch(processed / name, evil)
    for name in ("cifar10", "mnist"):
        with pytest.raises(UserError, match=rf"{name}\.npz is missing"):
            pack(name, tmp_path, download=False)
    assert not evil.exists()


def member(name: str, *, link: str = "") -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    if link:
        info.type, info.linkname = tarfile.SYMTYPE, link
        return info, io.BytesIO()
    info.size = 4
    return info, io.BytesIO(b"evil")


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="needs Python 3.11.4")
@pytest.mark.parametrize("how", ["above", "absolute", "link"])
def test_an_archive_writes_nothing_outside_its_folder(tmp_path, monkeypatch, how):
    """Even if it had the official MD5."""
    from torchvision.datasets import CIFAR10

    outside = tmp_path / "outside"
    outside.mkdir()
    members = {
        "above": [member("../../../outside/evil")],
        "absolute": [member(str(outside / "evil"))],
        "link": [member("link", link=str(outside)), member("link/evil")],
    }[how]
    root = tmp_path / "datasets"
    root.mkdir()
    archive = root / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        for info, content in members:
            tar.addfile(info, content)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    before = tarfile.TarFile.extraction_filter
    with pytest.raises(UserError, match=r"cifar10\.npz is missing"):
        pack("cifar10", root, download=False)
    assert list(outside.iterdir()) == []
    assert tarfile.TarFile.extraction_filter is before
