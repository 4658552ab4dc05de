"""scripts/compress.py on real images: a packed dataset, and a folder with a foreign network."""

import re

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from configs import dataset_config
from data import ResidentBatches, load_dataset
from linearconv import load_converted
from linearconv.engine.step import TrainStep, evaluate
from models import Variant, build_model
from scripts.compression import compression


@pytest.fixture(scope="module")
def compress(script):
    few = ("--threads", "1", "--epochs", "1", "--finetune-epochs", "1")
    return lambda *options: script("compress", *few, *options)


def rows(output: str) -> dict[str, list[str]]:
    """The cells of the comparison by the network's name."""
    table = output[output.index("\nnetwork ") :].splitlines()[2:12]
    cells = [re.split(r"  +", line.strip()) for line in table]
    return {name: values for name, *values in cells}


def losses(output: str) -> tuple[str, ...]:
    """The correlation loss before and after fine-tuning."""
    found = re.search(r"correlation loss (\S+) before fine-tuning, (\S+) after", output)
    return found.groups()


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
    out = tmp_path / "folder" / "networks"
    done = compress(
        "--model", "base", "--data", "digits", "--data-root", digits_root,
        "--train-images", "200", "--out", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    found = rows(done.out)
    plain = found["plain, 1 epochs"]
    assert plain[0] == "399,050"
    assert 0.55 < int(found["converted"][0].replace(",", "")) / 399_050 <= 0.6
    assert "weights of the converted layers: fitted to those they replace" in done.out
    assert "the whole network" in done.out and float(found["converted"][1]) < float(plain[1])
    pair = found["low-rank pair, 1 epochs of fine-tuning"]
    assert pair[0] == found["low-rank pair"][0] <= found["converted"][0]
    fewer = found["pruned, 1 epochs of fine-tuning"]
    assert fewer[0] == found["pruned"][0] <= found["converted"][0]
    sentence = next(line for line in done.out.splitlines() if line.startswith("saves "))
    points = r"-?\d+\.\d"
    assert re.match(rf"saves 4\d % of the parameters for {points} points of accuracy; ", sentence)
    for peer in ("low-rank pair", "pruned"):
        assert re.search(rf"; {peer}: 4\d % for {points}", sentence)
    assert found["the same, folded"][:2] == plain[:2]
    tuned = found["converted, 1 epochs of fine-tuning, factored"]
    assert tuned[2] == found["the same, folded"][2]
    before, after = losses(done.out)
    assert after != before
    spec = dataset_config("digits")
    batches = ResidentBatches(load_dataset(spec, digits_root), spec, batch_size=100,
                              eval_batch_size=100, seed=0, device=torch.device("cpu"))  # fmt: skip
    for name in ("folded", "factored", "fastest"):
        plain = build_model("base", Variant(), in_channels=1, classes=10)
        network = load_converted(plain, out / f"{name}.pt").eval()
        accuracy = evaluate(network, batches.test(), "fp32").accuracy
        assert f"{accuracy:.2f}" == found["the same, folded"][2]
        count = sum(parameter.numel() for parameter in network.parameters())
        shown = {"fastest": "the same, each layer as is fastest", "folded": "the same, folded"}
        assert f"{count:,}" == found.get(shown.get(name), tuned)[0]
        size = (out / f"{name}.pt").stat().st_size
        assert f"{out / name}.pt: {size / 1e6:.1f} MB" in done.out


def test_a_foreign_network_on_a_folder(compress, folder, tmp_path):
    timm = pytest.importorskip("timm")
    out = tmp_path
    done = compress(
        "--model", "timm:test_resnet", "--data", folder, "--image-size", "32",
        "--alpha", "0.5", "--rank", "4", "--no-distill", "--skip", "conv1.0", "--workers", "0",
        "--batch-size", "16", "--out", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "skipped: as requested" in done.out
    assert "40 training images" in done.out
    load_converted(timm.create_model("test_resnet", num_classes=2), out / "factored.pt")


@pytest.fixture
def interrupted(monkeypatch):
    """Ctrl-C in the first measurement after fine-tuning."""

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(compression, "latency_ms", interrupt)


@pytest.mark.usefixtures("interrupted")
def test_the_correlation_loss_counts_in_short_epochs(compress, digits_root):
    """Of two batches."""
    few = (
        "--model", "base", "--data", "digits", "--data-root", digits_root, "--train-images", "32",
        "--batch-size", "16", "--epochs", "0",
    )  # fmt: skip
    weak, strong = (losses(compress(*few, "--strength", s).out) for s in ("0", "1000"))
    assert strong[0] == weak[0]
    assert float(strong[1]) < float(weak[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "torchvision:resnet19"], "did you mean one of resnet18"),
        (["--model", "keras:resnet18"], "expected torchvision:NAME, timm:NAME"),
        (["--model", "basse"], "did you mean one of base"),
        (["--model", "basse", "--data", "cifar11"], "no network basse"),
        (["--model", "base", "--pretrained"], "no pretrained weights of base"),
        (["--data", "cifar11"], "--data cifar11: there is no such folder; expected one, or a data"),
        (["--epochs", "-1"], "--epochs must be at least 0"),
        (["--threads", "-1"], "--threads must be at least 1"),
        (["--workers", "-1"], "--workers must be at least 0"),
        (["--rank", "0"], "--rank must be at least 1"),
        (["--lr", "-1"], "--lr must be above 0"),
        (["--finetune-lr", "nan"], "--finetune-lr must be above 0"),
        (["--strength", "-1"], "--strength must be at least 0"),
        (["--device", "gpu"], "device must be auto, cpu, cuda or cuda:N, got gpu"),
        (["--out", __file__], "is a file; expected the name of a folder"),
        (["--out", f"{__file__}/networks"], "test_compress.py is a file; expected"),
        (["--model", "base", "--skip", "convx"], "convx"),
        (["--model", "base", "--alpha", "1.5"], "alpha must be between 0 and 1"),
        (["--model", "base", "--budget", "1"], "--budget must be between 0 and 1 (exclusive), got"),
        (["--model", "base", "--rank", "3"], "--rank goes with --alpha"),
        (["--model", "base", "--skip", "conv*"], "no convolution of base can be converted"),
        (["--model", "base", "--train-images", "65"], "last batch of the 65 training images"),
        (["--image-size", "64"], "--image-size applies to a folder, --data is digits"),
        (["--workers", "1"], "--workers applies to a folder"),
        (["--model", "base", "--lr", "1e30"], "nan in epoch 1, with a learning rate of 1e+30"),
    ],
)  # fmt: skip
def test_mistakes(compress, digits_root, options, message):
    data = ["--data", "digits", "--data-root", digits_root, "--train-images", "64"]
    refused(compress(*data, *options), message)


def refused(done, message: str) -> None:
    """That a command ended with this message, as a user's mistake."""
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        ("base", "64", "base cannot be trained on images of 64x64 pixels: RuntimeError: "),
        ("torchvision:googlenet", "32", "its output for two images is GoogLeNetOutputs, not (2"),
        ("timm:vit_tiny_patch16_224", "32", "on images of 32x32 pixels: AssertionError: "),
    ],
)  # fmt: skip
def test_networks_that_cannot_be_trained_on_the_images(compress, folder, model, size, message):
    done = compress("--model", model, "--data", folder, "--image-size", size, "--workers", "0")
    refused(done, message)
    assert "epoch" not in done.out


@pytest.mark.usefixtures("interrupted")
def test_a_folder_without_splits_and_a_network_that_hardly_gains(compress, folder):
    """A fifth of the images is for testing; MobileNets have little that can be combined."""
    pytest.importorskip("timm")
    done = compress(
        "--model", "timm:mobilenetv3_small_050", "--data", folder / "train", "--image-size", "32",
        "--alpha", "0.5", "--epochs", "0", "--batch-size", "8", "--workers", "0",
    )  # fmt: skip
    assert done.code == 130, done.err
    assert "32 training images" in done.out
    assert re.search("little to gain here: half the filters in every layer save 9 %", done.out)


def test_a_dataset_goes_before_a_folder_of_its_name(compress, digits_root, tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    places = ("--model", "base", "--data-root", digits_root, "--skip", "conv*")
    refused(compress(*places, "--data", "digits"), "no convolution of base can be converted")
    refused(compress(*places, "--data", "./digits"), "digits has 0 folder(s)")


@pytest.mark.usefixtures("interrupted")
def test_the_weights_are_there_before_the_measurements(compress, digits_root, tmp_path):
    """So that they outlive an interruption, which ends with a line."""
    done = compress(
        "--model", "base", "--data", "digits", "--data-root", digits_root, "--train-images", "32",
        "--epochs", "0", "--out", tmp_path,
    )  # fmt: skip
    assert (done.code, done.err) == (130, "interrupted\n")
    for name in ("folded", "factored"):
        load_converted(build_model("base", Variant(), in_channels=1, classes=10),
                       tmp_path / f"{name}.pt")  # fmt: skip
    assert done.out.count("plain, 0 epochs") == 1  # what was measured before


def test_a_full_disk_ends_with_what_was_measured(compress, digits_root, tmp_path, monkeypatch):
    def full(path):
        raise OSError("No space left on device")

    monkeypatch.setattr(compression, "atomic_write", full)
    done = compress(
        "--model", "base", "--data", "digits", "--data-root", digits_root, "--train-images", "32",
        "--epochs", "0", "--out", tmp_path / "folded.pt",
    )  # fmt: skip
    assert (done.code, done.err) == (1, "stopped: No space left on device\n")
    assert "plain, 0 epochs" in done.out and "converted" in done.out


def test_distillation_goes_towards_the_other_network(digits_root):
    torch.manual_seed(0)
    teacher, student = (build_model("base", Variant(), in_channels=1, classes=10) for _ in range(2))
    images, labels = torch.randn(64, 1, 32, 32), torch.zeros(64, dtype=torch.int64)
    optimizer = torch.optim.Adam(student.parameters())
    step = compression.DistillationStep(TrainStep(student, optimizer, None, "fp32"), teacher.eval())
    with torch.no_grad():
        target = teacher(images).softmax(1)

    def distance() -> float:
        with torch.no_grad():
            return (student.train()(images).softmax(1) - target).abs().sum(1).mean().item()

    before = distance()
    for _ in range(30):
        step(images, labels, regularize=False)
    assert distance() < 0.5 * before
