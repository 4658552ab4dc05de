"""What docs/your_network.md says of other tools, where they are installed."""

import copy
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
import torchvision

from linearconv import convert, fuse


@pytest.fixture(scope="module")
def networks():
    """A network and what it was converted to, in evaluation mode."""
    torch.manual_seed(0)
    plain = torchvision.models.resnet18(num_classes=10).eval()
    return plain, convert(copy.deepcopy(plain)).model.eval()


IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_torchinfo_counts_the_fused_network(networks):
    torchinfo = pytest.importorskip("torchinfo")
    plain, converted = networks
    fused, expected, factored = (
        torchinfo.summary(network, input_data=IMAGES, verbose=0)
        for network in (fuse(converted), plain, converted)
    )
    assert fused.total_mult_adds == expected.total_mult_adds
    assert fused.total_params == expected.total_params
    # It counts the parameters of the converted one, but hardly any of its multiply-adds.
    assert factored.total_params == sum(p.numel() for p in converted.parameters())
    assert factored.total_mult_adds < expected.total_mult_adds / 10


OPENVINO = """
import openvino, torch, torchvision
from linearconv import convert, fuse
torch.manual_seed(0)
model = convert(torchvision.models.resnet18(num_classes=10)).model.eval()
images = torch.randn(2, 3, 64, 64)
with torch.no_grad():
    expected = model(images)
for network in (model, fuse(model)):
    converted = openvino.convert_model(network, example_input=images)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    (found,) = openvino.Core().compile_model(converted, "CPU", settings)(images.numpy()).to_tuple()
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
"""


def test_openvino_gives_the_same_logits_in_float32():
    """In a process of its own: one that has loaded OpenVINO may crash when it forks later."""
    if find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    done = subprocess.run([sys.executable, "-c", OPENVINO], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_transformers_reads_the_fused_network(tmp_path):
    """The plain class reads a converted one, too, but without its convolutions."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=4
    )
    model = convert(transformers.ResNetForImageClassification(config)).model.eval()
    fuse(model).save_pretrained(tmp_path / "fused")
    model.save_pretrained(tmp_path / "converted")
    again, wrong = (
        transformers.ResNetForImageClassification.from_pretrained(tmp_path / name).eval()
        for name in ("fused", "converted")
    )
    with torch.no_grad():
        expected, found, lost = (network(IMAGES).logits for network in (model, again, wrong))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(lost, expected, atol=1e-3)
