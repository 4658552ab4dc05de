"""generate == factored == an independent computation, in float64 to 1e-12, gradients included."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from linearconv import LinearConv2d

TOLERANCE = {"rtol": 0, "atol": 1e-12}
GEOMETRIES = [
    {"stride": stride, "padding": padding, "dilation": dilation}
    for stride, padding, dilation in itertools.product((1, 2, (2, 1)), (0, 1, (2, 0)), (1, 2))
] + [{"padding": "same"}, {"padding": "valid", "stride": 2}]
MODES = ("zeros", "reflect", "replicate", "circular")


def results(module: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Output, and gradients of a scalar of it by the input and all parameters."""
    images = images.detach().requires_grad_()
    module.zero_grad()
    output = module(images)
    output.square().sum().backward()
    return [output.detach(), images.grad, *(p.grad.clone() for p in module.parameters())]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_factored_equals_generate(mode, rank, bias):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    for geometry in GEOMETRIES:
        module = LinearConv2d(
            3, 8, 3, bias=bias, padding_mode=mode, rank=rank, dtype=torch.float64, **geometry
        )
        module.execution = "generate"
        generated = results(module, images)
        module.execution = "factored"
        for a, b in zip(generated, results(module, images), strict=True):
            torch.testing.assert_close(a, b, **TOLERANCE)


class Combination(nn.Module):
    """The layer as a torch parametrization of Conv2d's weight: the oracle."""

    def __init__(self, layer: LinearConv2d) -> None:
        super().__init__()
        self.register_parameter("coefficients", nn.Parameter(layer.coefficients.detach().clone()))

    def forward(self, primary: torch.Tensor) -> torch.Tensor:
        secondary = torch.einsum("ps,pchw->schw", self.coefficients, primary)
        return torch.cat([primary, secondary])

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight[: self.coefficients.shape[0]]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_equals_a_parametrized_conv2d(groups):
    torch.manual_seed(0)
    layer = LinearConv2d(
        4, 8, 3, padding=1, groups=groups, dtype=torch.float64, execution="generate"
    )
    oracle = nn.Conv2d(4, 8, 3, padding=1, groups=groups, dtype=torch.float64)
    with torch.no_grad():
        oracle.weight.copy_(layer.weight)
        oracle.bias.copy_(layer.bias)
    parametrize.register_parametrization(oracle, "weight", Combination(layer), unsafe=True)
    images = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    results(layer, images), results(oracle, images)
    torch.testing.assert_close(layer(images), oracle(images), **TOLERANCE)
    weight = oracle.parametrizations.weight
    for mine, theirs in (
        (layer.bias, oracle.bias),
        (layer.primary, weight.original),
        (layer.coefficients, weight[0].coefficients),
    ):
        torch.testing.assert_close(mine.grad, theirs.grad, **TOLERANCE)


@pytest.mark.parametrize("rank", [None, 2])
def test_equals_algorithm_2_by_loops(rank):
    """Each secondary filter summed up one primary filter at a time, then one convolution."""
    torch.manual_seed(0)
    layer = LinearConv2d(3, 8, 3, alpha=0.75, rank=rank, dtype=torch.float64)
    a = layer.coefficients if rank is None else layer.coefficients1 @ layer.coefficients2
    filters = list(layer.primary)
    for s in range(2):
        filters.append(sum(a[p, s] * layer.primary[p] for p in range(6)))
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    expected = F.conv2d(images, torch.stack(filters), layer.bias)
    torch.testing.assert_close(layer(images), expected, **TOLERANCE)
