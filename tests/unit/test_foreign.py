"""Networks of other libraries by their names."""

import pytest
import torch
import torchvision

from linearconv.errors import UserError
from models.foreign import (
    IMAGENET,
    any_network,
    check_network,
    published_normalisation,
    with_classes,
)


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5"])
def test_the_last_layer_is_replaced(name):
    """Of SqueezeNet it is a convolution."""
    network = with_classes(torchvision.models.get_model(name), 5)
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_normalisation_is_that_of_the_published_weights():
    pytest.importorskip("timm")
    imagenet = tuple(map(list, IMAGENET))
    assert published_normalisation("timm:resnet18") == imagenet
    assert published_normalisation("torchvision:resnet18") == imagenet
    assert published_normalisation("base") == imagenet
    assert published_normalisation("timm:inception_v3.tv_in1k") == ([0.5] * 3, [0.5] * 3)


def test_tags_of_weights_are_checked():
    pytest.importorskip("timm")
    check_network("timm:resnet18.a1_in1k", pretrained=True)
    with pytest.raises(UserError, match="did you mean one of resnet18.a3_in1k"):
        check_network("timm:resnet18.a4_in1k", pretrained=True)


def test_weights_that_cannot_be_fetched(monkeypatch, tmp_path):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # no one listens
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match="cannot be built with its published weights.*URLError"):
        any_network("torchvision:squeezenet1_1", in_channels=3, classes=2, pretrained=True)
