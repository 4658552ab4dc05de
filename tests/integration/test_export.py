"""Exported files against the networks they are made of, through the real entry point."""

import dataclasses
import json
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from configs import compose, dataset_config, identify, run_id
from eval import dataset_of, find_checkpoint, trained_model
from eval import test_batches as batches_of
from linearconv.engine.weights import weights_path, write_weights
from models import Variant, build_model
from scripts.deployment.formats import FORMATS


@pytest.fixture
def run(trained) -> str:
    return next((trained / "results" / "runs").glob("*.json")).stem


@pytest.fixture
def where(trained, digits_root) -> list[str]:
    return [f"--results-dir={trained}/results", f"--checkpoint-dir={trained}/checkpoints",
            f"--data-root={digits_root}"]  # fmt: skip


def published(folder: Path, *overrides: str) -> str:
    """Publish the initial weights of a run, with batch norms as they might be later."""
    identity = identify(compose(list(overrides)))
    spec, name = dataset_of(identity, folder), run_id(identity)
    torch.manual_seed(0)
    variant = Variant.from_identity(identity["variant"])
    model = build_model(
        identity["model"]["name"], variant, in_channels=spec.channels, classes=spec.classes
    )
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
    checkpoint = {"run_id": name, "science": identity, "epoch": 1, "model": model.state_dict()}
    write_weights(weights_path(folder, name), {"best": checkpoint})
    return name


def loaded(kind: str, path: Path):
    """The logits, the metadata and the shapes of the tensors, read as another program would."""
    if kind == "onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        about = session.get_modelmeta().custom_metadata_map["linearconv"]
        shapes = {t.name: tuple(t.dims) for t in onnx.load(path).graph.initializer}
        return (
            lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0]),
            about,
            shapes,
        )
    if kind == "torch_export":
        extra = {"linearconv.json": ""}
        with path.open("rb") as file:
            program = torch.export.load(file, extra_files=extra)
        tensors = {**program.state_dict, **program.constants}
        shapes = {name: tuple(t.shape) for name, t in tensors.items()}
        return program.module(), extra["linearconv.json"], shapes
    network, about = FORMATS[kind].read(path)
    return network, json.dumps(about), {n: tuple(t.shape) for n, t in load_file(path).items()}


def plain_shapes(model: str, *, channels: int) -> dict[str, tuple[int, ...]]:
    plain = build_model(model, Variant(), in_channels=channels, classes=10)
    return {name: tuple(tensor.shape) for name, tensor in plain.state_dict().items()}


@pytest.mark.parametrize("form", ["folded", "factored"])
@pytest.mark.parametrize("kind", FORMATS)
@torch.no_grad()
def test_a_file_computes_what_the_run_does(
    script, trained, run, where, tmp_path, real_digits, kind, form
):
    path = tmp_path / "new" / f"network{FORMATS[kind].suffix}"
    weights = "last" if form == "factored" else "best"
    done = script(
        "export", run, "--format", kind, "--form", form, "--weights", weights, "--out", path, *where
    )
    assert done.code == 0, done.err
    line = f"{path}: {kind}, {form}, {path.stat().st_size:,} bytes, largest logit difference "
    assert done.out.startswith(line) and done.out.endswith("on 64 test images\n")
    assert list(path.parent.iterdir()) == [path]

    logits, about, shapes = loaded(kind, path)
    _, checkpoint = find_checkpoint(run, weights, trained / "checkpoints", [trained / "results"])
    model = trained_model(checkpoint, dataset_config("digits"))
    for images in real_digits.split([3, 1, 13]):
        torch.testing.assert_close(logits(images), model(images), rtol=1e-4, atol=1e-4)
    about = json.loads(about)
    assert (about["run_id"], about["form"], about["weights"]) == (run, form, weights)
    assert about["class_names"] == list("0123456789")
    assert about["mean"] == checkpoint["science"]["recipe"]["normalisation"]["mean"]
    if form == "folded":
        assert_plain(kind, shapes, plain_shapes("base", channels=1))
    elif kind != "onnx":  # which names computed tensors anew
        assert any("coefficients" in name for name in shapes)


def assert_plain(kind: str, shapes: dict, plain: dict) -> None:
    """No coefficients are left, and the tensors are those of the plain network."""
    assert not [name for name in shapes if "coefficients" in name or "primary" in name]
    if kind == "onnx":  # batch norms are folded into the biases, which other names may have
        filters, expected = (
            sorted(shape for shape in found.values() if len(shape) == 4)
            for found in (shapes, plain)
        )
        assert filters == expected
    else:
        assert shapes == plain


@pytest.fixture(scope="module")
def real_digits(digits_root) -> torch.Tensor:
    """17 training images, which the script does not check with."""
    identity = identify(compose(["model=base", "variant=Conv", "dataset=digits"]))
    size = {"batch_size": 17, "device": torch.device("cpu")}
    images, _ = next(batches_of(identity, digits_root, **size, plain_train=17).val())
    return images


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("folded", "safetensors"),
        pytest.param("factored", "torch_export", marks=pytest.mark.long),
    ],
)
@torch.no_grad()
def test_depthwise_layers_are_exported(script, tmp_path, monkeypatch, form, kind):
    """They cannot be factored, and generate their filters in the exported network."""
    monkeypatch.setattr("scripts.export.IMAGES", 8)
    name = published(tmp_path, "model=mobilenetv2", "variant=LRr", "dataset=cifar100")
    path, where = tmp_path / "network", [f"--results-dir={tmp_path}"]
    where += [f"--data-root={tmp_path}", f"--checkpoint-dir={tmp_path}"]
    done = script("export", name, "--format", kind, "--form", form, "--out", path, *where)
    assert done.code == 0, done.err
    assert "8 random images, since cifar100.npz is not in" in done.out
    logits, _, shapes = loaded(kind, path)
    assert any("coefficients" in tensor for tensor in shapes) is (form == "factored")
    assert logits(torch.randn(5, 3, 32, 32)).shape == (5, 100)


def test_a_plain_network_is_folded_alone(script, tmp_path):
    name = published(tmp_path, "model=base", "variant=Conv", "dataset=mnist")
    request = [name, "--format=safetensors", f"--results-dir={tmp_path}", f"--data-root={tmp_path}"]
    request += [f"--checkpoint-dir={tmp_path}", f"--out={tmp_path}/network.safetensors"]
    assert script("export", *request).code == 0
    _, about, shapes = loaded("safetensors", tmp_path / "network.safetensors")
    assert json.loads(about)["padding"] == 2 and shapes == plain_shapes("base", channels=1)
    done = script("export", *request, "--form=factored", "--overwrite")
    assert done.code == 2 and "no LinearConv layers" in done.err


def test_int8_is_measured_beside_fp32(script, trained, run, where, tmp_path):
    path, small = tmp_path / "network.onnx", tmp_path / "network-int8.onnx"
    done = script("export", run, "--format=onnx", "--int8", "--weights=last", "--out", path, *where)
    assert done.code == 0, done.err
    record = json.loads((trained / "results" / "runs" / f"{run}.json").read_text())
    assert f"fp32 {record['test_acc_last']:.2f} %, int8 " in done.out
    assert "on 64 test images" in done.out and "on 1,000 training images" in done.out
    assert small.stat().st_size < path.stat().st_size / 3
    types = {t.data_type for t in onnx.load(small).graph.initializer if len(t.dims) == 4}
    assert types == {onnx.TensorProto.INT8}
    about = onnxruntime.InferenceSession(small).get_modelmeta().custom_metadata_map["linearconv"]
    assert json.loads(about)["run_id"] == run


def test_a_wrong_file_is_not_kept(script, run, where, tmp_path, monkeypatch):
    right = FORMATS["safetensors"]

    def wrong(network, example, about):
        network.fc.weight.mul_(1.01)
        return right.content(network, example, about)

    changed = dataclasses.replace(right, content=wrong)
    monkeypatch.setitem(FORMATS, "safetensors", changed)
    path = tmp_path / "network.safetensors"
    path.write_bytes(b"an older one")
    request = ["export", run, "--format=safetensors", "--out", path, *where]
    done = script(*request, "--overwrite")
    assert done.code == 1 and "logits differ by" in done.err and "nan" not in done.err
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"an older one"


def test_logits_that_are_no_numbers_are_refused(script, tmp_path):
    name = published(tmp_path, "model=base", "variant=Lr", "dataset=digits")
    weights = weights_path(tmp_path, name)
    checkpoint = find_checkpoint(name, "best", tmp_path, [tmp_path])[1]
    checkpoint["model"]["fc.bias"].fill_(torch.nan)
    write_weights(weights, {"best": checkpoint})
    done = script("export", name, "--format=safetensors", f"--results-dir={tmp_path}",
                  f"--data-root={tmp_path}", f"--out={tmp_path}/a.safetensors")  # fmt: skip
    assert done.code == 1 and "differ by nan" in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none"], "run none has no best weights."),
        (["--int8"], "--int8 needs --format onnx"),
        (["--out=."], "is a folder"),
        (["--out={tmp}/here"], "--overwrite replaces it"),
        (["--out={tmp}/here/network"], "cannot be written"),
    ],
)
def test_mistakes_are_named(script, run, where, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").write_bytes(b"a file")
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    if given[0].startswith("--"):
        given = [run, *given]
    done = script("export", *given, "--format=safetensors", *where)
    assert done.code == 2 and words in done.err and len(done.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_nothing_is_written_without_the_images_that_int8_needs(script, tmp_path):
    name = published(tmp_path, "model=base", "variant=Lr", "dataset=cifar10")
    out = tmp_path / "exports" / "network.onnx"
    done = script("export", name, "--format=onnx", "--int8", f"--results-dir={tmp_path}",
                  f"--checkpoint-dir={tmp_path}", f"--data-root={tmp_path}/none",
                  f"--out={out}")  # fmt: skip
    assert done.code == 2 and "none, does not exist, so nothing was downloaded" in done.err
    assert not out.parent.exists()


def test_missing_packages_are_named(script, run, where, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    out = f"--out={tmp_path}/network.onnx"
    done = script("export", run, "--format=onnx", out, *where)
    assert done.code == 2 and "onnxscript" in done.err and "pip install -e '.[export]'" in done.err
    assert not list(tmp_path.iterdir())
