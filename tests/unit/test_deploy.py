"""`deploy` keeps the faster form of each layer."""

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import benchmark

from linearconv import LinearConv2d, deploy
from linearconv.deploy import Time


class Network(nn.Module):
    """A layer that is used twice, a grouped one, and one that is never reached."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = LinearConv2d(8, 8, 3, padding=1)
        self.grouped = LinearConv2d(8, 8, 3, groups=2, execution="generate")
        self.last = LinearConv2d(8, 16, 3, rank=2)
        self.unused = LinearConv2d(8, 8, 1)

    def forward(self, images: torch.Tensor, scale: float) -> torch.Tensor:
        images = self.twice(torch.relu_(self.twice(images)))
        return self.last(input=self.grouped(images)) * scale


@pytest.fixture
def times(monkeypatch):
    """Sets what is measured: milliseconds by form, in the order of the measurements."""

    def measured(*results, spread=0.1):
        remaining = iter(results)

        def next_times(*_):
            return {form: Time(ms, spread) for form, ms in next(remaining).items()}

        monkeypatch.setattr(import_module("linearconv.deploy"), "_times", next_times)

    return measured


def test_each_layer_gets_the_faster_form_and_the_outputs_stay(times):
    torch.manual_seed(0)
    model, images = Network(), torch.randn(2, 8, 9, 9)
    expected = model(images, 2.0)
    times(
        {"fused": 2.0, "factored": 1.0},  # twice
        {"fused": 1.0, "factored": 2.0},  # last
        {"fused": 8.0, "mixed": 6.0},  # the network
    )
    report = deploy(model, (images, 2.0))
    deployed = report.model
    assert isinstance(deployed.twice, LinearConv2d) and deployed.twice.execution == "factored"
    assert {type(m) for m in (deployed.grouped, deployed.last, deployed.unused)} == {nn.Conv2d}
    assert not deployed.training and not any(p.requires_grad for p in deployed.parameters())
    torch.testing.assert_close(deployed(images, 2.0), expected)
    assert model.training and model.twice.execution == "auto" and model.twice.primary.requires_grad
    assert not model.twice._forward_pre_hooks and not deployed.twice._forward_pre_hooks

    assert [(row["name"], row["choice"]) for row in report.rows()] == [
        ("twice", "factored"),
        ("grouped", "fused"),
        ("last", "fused"),
        ("unused", "fused"),
    ]
    lines = [line.split() for line in str(report).splitlines()]
    assert lines[1] == ["twice", "2x8x9x9", "2.000", "0.100", "1.000", "0.100", "factored"]
    assert lines[2] == ["grouped", "2x8x9x9", "fused"]
    assert lines[4] == ["unused", "not", "reached", "fused"]
    assert lines[5] == ["the", "network", "8.000", "0.100", "6.000", "0.100", "mixed"]
    assert str(report).endswith("each layer in its choice takes 0.75 of the time of all fused")


@pytest.mark.parametrize(
    ("layers", "network", "words"),
    [
        ({"fused": 2.0, "factored": 1.9}, {"fused": 8.0}, "none is clearly faster factored"),
        ({"fused": 2.0, "factored": 1.0}, {"fused": 8.0, "mixed": 7.9}, "is not clearly less"),
        ({"fused": 2.0, "factored": 1.0}, {"fused": 8.0, "mixed": 9.0}, "takes 1.12 of the time"),
    ],
)
def test_what_is_not_faster_beyond_the_spread_is_fused(times, layers, network, words):
    model, images = LinearConv2d(8, 8, 3), torch.randn(2, 8, 9, 9)
    times(layers, network)
    report = deploy(model, images)
    assert type(report.model) is nn.Conv2d and not report.is_mixed
    assert words in str(report) and "all layers fused" in str(report)


def test_a_time_is_the_median_of_the_rounds_in_milliseconds(monkeypatch):
    class Timer:
        def __init__(self, statement, **kwargs):
            self.medians = iter((3e-3, 1e-3, 2e-3, 1e-3, 5e-3))

        def blocked_autorange(self, min_run_time):
            return SimpleNamespace(median=next(self.medians))

    monkeypatch.setattr(benchmark, "Timer", Timer)
    report = deploy(LinearConv2d(8, 8, 3), torch.randn(2, 8, 9, 9))
    assert report.layers[0].fused == report.layers[0].factored == Time(2.0, 2.0)


def test_measured_for_real():
    model, images = LinearConv2d(8, 8, 3), torch.randn(2, 8, 9, 9)
    report = deploy(model, images, seconds=1e-3)
    (layer,) = report.layers
    faster = "factored" if layer.factored.is_clearly_below(layer.fused) else "fused"
    assert layer.choice == faster and 0 < layer.fused.ms < 1000
    assert isinstance(report.model, LinearConv2d) == report.is_mixed
    torch.testing.assert_close(report.model(images), model(images))


class Centred(nn.Module):
    def forward(self, x):
        return x.sub_(0.5)


def test_the_caller_s_input_and_hooks_are_left_alone():
    layer = LinearConv2d(4, 8, 3)
    kept = []
    # As in CoordConv: the layer gets two channels more than it is called with.
    layer.register_forward_pre_hook(lambda _, args: F.pad(args[0], (0, 0, 0, 0, 0, 2)))
    layer.register_forward_hook(lambda *args: kept.append(args[-1]))
    images = torch.ones(1, 2, 8, 8)
    found = deploy(nn.Sequential(Centred(), layer), images, seconds=0.001)
    assert torch.equal(images, torch.ones(1, 2, 8, 8))
    passes = len(kept)
    assert torch.equal(found.model(images.clone()), kept[-1]) and len(kept) == passes + 1


def test_what_a_model_caches_can_be_used_afterwards():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.cache = LinearConv2d(2, 4, 1), None

        def forward(self, x):
            self.cache = torch.zeros(4) if self.cache is None else self.cache
            output = self.layer(x)
            self.cache.add_(output.detach().mean((0, 2, 3)))
            return output

    model = deploy(Caching(), torch.ones(1, 2, 3, 3), seconds=0.001).model
    model(torch.ones(1, 2, 3, 3))


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="no LinearConv2d"):
        deploy(nn.Conv2d(8, 8, 3), torch.randn(1, 8, 5, 5))
