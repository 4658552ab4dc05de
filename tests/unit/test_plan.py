"""Layers and shares chosen for a budget, and the low-rank pair that they are compared with."""

import itertools
import math

import pytest
import torch
from torch import nn

from linearconv import LinearConv2d, convert
from linearconv.plan import _hull, _Option, _options, plan
from linearconv.responses import as_images, fit_on_images, measure_all
from tests.unit.test_responses import correlated


class Net(nn.Module):
    """Three convolutions of different sizes, a grouped one and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3)
        self.second = nn.Conv2d(16, 32, 3)
        self.grouped = nn.Conv2d(32, 32, 3, groups=4)
        self.third = nn.Conv2d(32, 16, 3, bias=False)
        self.classes = nn.Linear(16, 4)
        self.double().eval()

    def forward(self, x):
        x = self.second(self.first(x).relu()).relu()
        return self.classes(self.third(self.grouped(x).relu()).mean((2, 3)))


def images() -> torch.Tensor:
    return correlated(size=12)


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("form", ["linear", "pair"])
@pytest.mark.parametrize("budget", [0.5, 0.8])
def test_a_network_is_converted_within_its_budget(form, budget):
    model = Net()
    report = convert(model, budget=budget, warm_start=images(), form=form, inplace=False)
    assert budget - 0.1 < size(report.model) / size(model) <= budget
    kind = LinearConv2d if form == "linear" else nn.Sequential
    for name, alpha in report.plan.items():
        layer = report.model.get_submodule(name)
        assert isinstance(layer, kind)
        stored = layer.primary if form == "linear" else layer[0].weight
        assert len(stored) == alpha * getattr(model, name).out_channels
    assert type(report.model.grouped) is nn.Conv2d and "grouped" not in report.plan
    assert f"{size(report.model):,}" in str(report.plan)


def test_what_the_plan_keeps_is_the_most_for_its_cost():
    """Against all combinations of the layers' options, at every budget that is used up."""
    model = Net()
    free = {model.first: "first", model.second: "second", model.third: "third"}
    measured = measure_all(model, free, as_images(images()))
    options = [
        list(_options(conv, responses, positions, "parameters", "linear"))
        for conv, (responses, positions) in measured.items()
    ]
    fixed = size(model) - sum(each[0].cost for each in options)
    for budget in (0.9, 0.7, 0.5):
        found = plan(model, images(), budget, free)
        cost = fixed + sum(layer.after for layer in found.layers)
        loss = -sum(math.log(layer.kept) for layer in found.layers)
        best = min(
            sum(each.loss for each in chosen)
            for chosen in itertools.product(*options)
            if fixed + sum(each.cost for each in chosen) <= cost
        )
        assert loss == pytest.approx(best, abs=1e-9)


def test_the_hull_leaves_out_what_no_budget_wants():
    costs = [(None, 10, 0.0), (0.9, 9, 1.0), (0.8, 8, 1.2), (0.5, 5, 1.5), (0.3, 3, 9.0)]
    hull = _hull(_Option(*each) for each in costs)
    assert [option.alpha for option in hull] == [None, 0.5, 0.3]


def test_a_plan_can_be_edited_and_applied():
    model = Net()
    found = convert(model, budget=0.6, warm_start=images(), inplace=False).plan
    found["second"] = 0.75
    del found["third"]
    report = convert(model, alpha=found, warm_start=images(), inplace=False)
    assert report.model.second.alpha == 0.75 and type(report.model.third) is nn.Conv2d
    reasons = {layer.name: layer.skipped for layer in report.layers}
    assert reasons["third"] == "not named by alpha" and report.plan is None


def test_multiply_adds_can_be_the_budget():
    model = Net()
    report = convert(model, budget=0.5, cost="macs", warm_start=images(), inplace=False)
    positions = {"first": 100, "second": 64, "third": 16}
    before = sum(getattr(model, name).weight.numel() * n for name, n in positions.items())
    after = sum(layer.after for layer in report.plan.layers)
    assert report.plan.whole == before and 0.3 < after / before <= 0.5


@pytest.mark.parametrize("bias", [True, False])
def test_a_pair_computes_what_a_layer_of_the_same_rank_does(bias):
    torch.manual_seed(1)
    conv = nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=bias, dtype=torch.float64)
    models = [
        convert(nn.Sequential(conv), warm_start=images(), form=form, inplace=False)
        for form in ("linear", "pair")
    ]
    linear, pair = (each.model for each in models)
    torch.testing.assert_close(pair(images()), linear(images()))
    assert size(pair) - size(linear) == 6 * 6  # P^2 coefficients of the identity
    first, second = models
    assert first.layers[0].error == pytest.approx(second.layers[0].error)


def test_impossible_plans_are_refused():
    model = Net()
    for options, words in (
        ({"budget": 1.5}, "between 0 and 1"),
        ({"budget": 0.05}, "cannot be reached"),
        ({"budget": 0.5, "cost": "time"}, "cost must be one of parameters, macs"),
        ({"form": "tucker"}, "form must be one of linear, pair"),
        ({"form": "pair", "rank": 3}, "a pair has no rank"),
        ({"budget": 0.5, "rank": 3}, "chooses full coefficients, without a rank"),
        ({"alpha": {"nowhere": 0.5}}, "alpha names nowhere; the convolutions are first, second"),
    ):
        with pytest.raises(ValueError, match=words):
            convert(model, warm_start=images(), **options)
    with pytest.raises(ValueError, match="a budget needs images"):
        convert(model, budget=0.5, warm_start=True)
    assert type(model.first) is nn.Conv2d
    assert fit_on_images(model, {}, images()) == {}
