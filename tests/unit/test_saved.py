"""Converted networks in files."""

import copy

import pytest
import torch
from torch import nn

from linearconv import LinearConv2d, convert, deploy, fuse, load_converted, save_converted


def network() -> nn.Sequential:
    torch.manual_seed(0)
    shared = nn.Conv2d(12, 12, 3, padding=1, bias=False)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), shared, nn.ReLU(), shared
    ).eval()


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.25, "min_reduction": False},
        {"alpha": {"0": 0.5, "2": 0.25}, "rank": 3, "min_reduction": False},
        {"alpha": {"2": 0.75}, "warm_start": torch.randn(20, 3, 8, 8)},
        {"skip": "*"},
    ],
)
def test_the_loaded_network_gives_the_same(options, tmp_path):
    images, plain = torch.randn(2, 3, 8, 8), network()
    report = convert(copy.deepcopy(plain), **options)
    save_converted(report.model, tmp_path / "converted.pt")
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    loaded = load_converted(plain, tmp_path / "converted.pt").eval()
    with torch.no_grad():
        assert torch.equal(loaded(images), report.model(images))
    kinds = [[type(module) for module in model.modules()] for model in (loaded, report.model)]
    assert kinds[0] == kinds[1]


def test_layers_of_two_ranks_and_their_executions(tmp_path):
    images, model = torch.randn(2, 3, 8, 8), network()
    convert(model, alpha={"0": 0.5}, rank=2, min_reduction=False)
    convert(model, alpha={"2": 0.5}, rank=4)
    fast = deploy(model, images).model
    first, second = (model[i] for i in (0, 2))
    second.execution = "factored"
    for each in (model, fast, fuse(model)):
        save_converted(each, tmp_path / "converted.pt")
        loaded = load_converted(network(), tmp_path / "converted.pt").eval()
        executions = [
            [layer.execution for layer in one.modules() if isinstance(layer, LinearConv2d)]
            for one in (loaded, each)
        ]
        assert executions[0] == executions[1]
        torch.testing.assert_close(loaded(images), model(images), rtol=1e-4, atol=1e-5)


def test_a_bare_convolution(tmp_path):
    converted = convert(nn.Conv2d(4, 8, 3)).model
    save_converted(converted, tmp_path / "layer.pt")
    loaded = load_converted(nn.Conv2d(4, 8, 3), tmp_path / "layer.pt")
    assert torch.equal(loaded.weight, converted.weight)


def test_other_files_and_networks_are_refused(tmp_path):
    torch.save(network().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="weights.pt was not written by linearconv.save_converted"):
        load_converted(network(), tmp_path / "weights.pt")
    save_converted(convert(network()).model, tmp_path / "converted.pt")
    with pytest.raises(ValueError, match="alpha names 2; the convolutions are 0"):
        load_converted(nn.Sequential(nn.Conv2d(3, 12, 3)), tmp_path / "converted.pt")
