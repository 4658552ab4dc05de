"""scripts/compress.py on real images: a packed dataset, and a folder with a foreign network."""

import re

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from models import Variant, build_model


@pytest.fixture(scope="module")
def compress(script):
    few = ("--threads", "1", "--epochs", "1", "--finetune-epochs", "1")
    return lambda *options: script("compress", *few, *options)


def rows(output: str) -> dict[str, list[str]]:
    """The cells of the comparison by the network's name."""
    table = output[output.index("network ") :].splitlines()[1:7]
    cells = [re.split(r"  +", line.strip()) for line in table]
    return {name: values for name, *values in cells}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 digits of two classes, as PNG files of 24x24 pixels."""
    root = tmp_path_factory.mktemp("images")
    digits = load_digits()
    for label in (0, 1):
        images = digits.images[digits.target == label][:40]
        for i, image in enumerate(images):
            path = root / ("test" if i % 2 else "train") / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((16 * image).clip(0, 255).astype("uint8")).resize((24, 24)).save(path)
    return root


def test_a_model_of_this_project(compress, digits_root, tmp_path):
    out = tmp_path / "folded.pt"
    done = compress(
        "--model", "base", "--data", "digits", "--data-root", digits_root,
        "--train-images", "200", "--out", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    found = rows(done.out)
    plain = found["plain, 1 epochs"]
    assert plain[0] == "399,050"
    assert found["converted"][0] == "227,018"
    assert float(found["converted"][1]) < 0.6 * float(plain[1])
    assert found["the same, folded"][:2] == plain[:2]
    tuned = found["converted, 1 epochs of fine-tuning, factored"]
    assert tuned[2] == found["the same, folded"][2]
    network = build_model("base", Variant(), in_channels=1, classes=10)
    network.load_state_dict(torch.load(out, weights_only=True))


def test_a_foreign_network_on_a_folder(compress, folder, tmp_path):
    timm = pytest.importorskip("timm")
    out = tmp_path / "folded.pt"
    done = compress(
        "--model", "timm:test_resnet", "--data", folder, "--image-size", "32",
        "--rank", "4", "--skip", "conv1.0", "--workers", "0", "--batch-size", "16", "--out", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "skipped: as requested" in done.out
    assert "40 training images" in done.out
    timm.create_model("test_resnet", num_classes=2).load_state_dict(
        torch.load(out, weights_only=True)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "torchvision:resnet19"], "did you mean one of resnet18"),
        (["--model", "keras:resnet18"], "expected torchvision:NAME, timm:NAME"),
        (["--model", "basse"], "did you mean one of base"),
        (["--model", "base", "--pretrained"], "no pretrained weights of base"),
        (["--data", "cifar11"], "unknown dataset 'cifar11'"),
        (["--epochs", "-1"], "--epochs must be at least 0"),
        (["--model", "base", "--skip", "convx"], "convx"),
        (["--model", "base", "--alpha", "1.5"], "alpha must be between 0 and 1"),
        (["--model", "base", "--skip", "conv*"], "no convolution of base can be converted"),
    ],
)  # fmt: skip
def test_mistakes(compress, digits_root, options, message):
    data = ["--data", "digits", "--data-root", digits_root, "--train-images", "64"]
    done = compress(*data, *options)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_folder_without_splits(compress, folder):
    done = compress("--data", folder / "train")
    assert done.code == 2
    assert "has no folder train" in done.err
