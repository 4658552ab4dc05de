"""generate == factored == an independent computation, in float64 to 1e-12, gradients included."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize

from linearconv import LinearConv2d
from linearconv.combine import append_combinations

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


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_channels_last_equals_contiguous(rank, bias):
    """The lean way of combining, which channels-last memory allows, against the plain one."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    for geometry in GEOMETRIES:
        module = LinearConv2d(
            3, 8, 3, alpha=0.25, bias=bias, rank=rank, dtype=torch.float64, **geometry
        )
        plain = results(module, images)
        module = module.to(memory_format=torch.channels_last)
        for execution in ("generate", "factored"):
            module.execution = execution
            lean = results(module, images.to(memory_format=torch.channels_last))
            assert lean[0].is_contiguous(memory_format=torch.channels_last)
            for a, b in zip(plain, lean, strict=True):
                torch.testing.assert_close(a, b, **TOLERANCE)


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("factors", [[(4, 3)], [(4, 2), (2, 3)]])
@pytest.mark.parametrize("bias", [True, False])
def test_appended_combinations_are_the_formula_to_the_second_derivative(layout, factors, bias):
    torch.manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    stored = draw(5, 4) if layout == "rows" else draw(4, 5)
    matrices, offset = [draw(*shape) for shape in factors], draw(7) if bias else None

    def joined(stored, *rest):
        columns = stored if layout == "rows" else stored.t()
        used = rest[: len(matrices)]
        return append_combinations(columns, tuple(used), rest[-1] if bias else None)

    inputs = (stored, *matrices, *([offset] if bias else []))
    columns = stored if layout == "rows" else stored.t()
    expected = torch.cat(
        [columns, columns @ torch.linalg.multi_dot([*matrices, torch.eye(3).double()])], 1
    )
    result = joined(*inputs)
    torch.testing.assert_close(result, expected + (offset if bias else 0), **TOLERANCE)
    assert result.t().is_contiguous() == (layout == "columns")
    assert torch.autograd.gradcheck(joined, inputs)
    assert torch.autograd.gradgradcheck(joined, inputs)


@pytest.mark.parametrize("execution", ["generate", "factored"])
@pytest.mark.parametrize("rank", [None, 2])
def test_function_transforms_tracers_and_compilers_see_through(execution, rank):
    torch.manual_seed(0)
    layer = LinearConv2d(3, 8, 3, rank=rank, execution=execution).to(
        memory_format=torch.channels_last
    )
    images = torch.randn(4, 3, 6, 6).to(memory_format=torch.channels_last)
    parameters = dict(layer.named_parameters())

    def loss(parameters, image):
        return torch.func.functional_call(layer, parameters, image[None]).square().sum()

    per_image = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, images)
    for name, summed in torch.func.grad(
        lambda p: torch.func.functional_call(layer, p, images).square().sum()
    )(parameters).items():
        torch.testing.assert_close(per_image[name].sum(0), summed, rtol=1e-4, atol=1e-4)
    _, tangent = torch.func.jvp(layer, (images,), (torch.ones_like(images),))
    difference = layer(images + 1) - layer(images)  # the layer is affine in its input
    torch.testing.assert_close(tangent, difference, rtol=1e-4, atol=1e-5)
    expected = layer(images)
    for seen in (
        torch.fx.symbolic_trace(layer),
        torch.export.export(layer, (images,)).module(),
        torch.compile(layer, backend="aot_eager", fullgraph=True),
        make_fx(layer)(images),
    ):
        torch.testing.assert_close(seen(images), expected)


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
