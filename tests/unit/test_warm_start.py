"""A layer fitted to a trained convolution."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from linearconv import LinearConv2d
from linearconv.layer import EXECUTIONS
from linearconv.warm_start import fit_filters
from tests.unit.test_convert import Standardised


def combined(shape, primary, rank, *, scattered, seed=0, dtype=torch.float32) -> nn.Conv2d:
    """A convolution (F, C, K) whose last F - P filters are combinations, then shuffled or not."""
    random = torch.Generator().manual_seed(seed)
    filters, channels, kernel = shape
    stored = torch.randn(primary, channels * kernel**2, generator=random, dtype=torch.float64)
    coefficients = torch.randn(
        primary, rank or filters - primary, generator=random, dtype=torch.float64
    )
    if rank is not None:
        thin = torch.randn(rank, filters - primary, generator=random, dtype=torch.float64)
        coefficients = coefficients @ thin
    weight = torch.cat([stored, coefficients.t() @ stored])
    if scattered:
        weight = weight[torch.randperm(filters, generator=random)]
    conv = nn.Conv2d(channels, filters, kernel, dtype=dtype)
    with torch.no_grad():
        conv.weight.copy_(weight.view_as(conv.weight))
    return conv


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize(
    ("filters", "primary", "rank"),
    [
        (16, 8, None),
        (64, 32, None),
        (64, 16, None),
        (16, 8, 2),
        (64, 32, 10),
        (64, 48, 5),
        (256, 128, 10),
    ],
)
def test_combinations_are_recovered(filters, primary, rank, scattered, seed):
    conv = combined((filters, 16, 3), primary, rank, scattered=scattered, seed=seed)
    layer = LinearConv2d.from_conv2d(conv, alpha=primary / filters, rank=rank)
    if not scattered:
        assert layer.permutation is None
    images = torch.randn(2, 16, 8, 8)
    expected = conv(images)
    for execution in EXECUTIONS:
        layer.execution = execution
        for memory_format in (torch.contiguous_format, torch.channels_last):
            output = layer(images.to(memory_format=memory_format))
            assert (output - expected).norm() < 1e-5 * expected.norm()
    assert (layer.fuse()(images) - expected).norm() < 1e-5 * expected.norm()


def test_the_fit_is_the_truncated_svd_and_no_subset_of_the_filters_is_better():
    """Eckart and Young; against every set of primary filters that are kept as they are."""
    torch.manual_seed(0)
    for _ in range(10):
        filters = torch.randn(8, 12, dtype=torch.float64) * torch.rand(8, 1)
        fit = fit_filters(filters, 4, None)
        singular = np.linalg.svd(filters.numpy(), compute_uv=False)
        best = np.sqrt((singular[4:] ** 2).sum() / (singular**2).sum())
        assert fit.error == pytest.approx(best)
        for subset in itertools.combinations(range(8), 4):
            stored = filters[list(subset)]
            others = filters[[k for k in range(8) if k not in subset]]
            solution = torch.linalg.lstsq(stored.t(), others.t()).solution
            missed = (others.t() - stored.t() @ solution).norm() / filters.norm()
            assert fit.error <= missed + 1e-12
        assert fit.amplification < 10


def test_primary_filters_from_anywhere_where_the_first_do_not_span():
    conv = combined((16, 4, 3), 8, None, scattered=False)
    with torch.no_grad():
        conv.weight.copy_(conv.weight[[0, 8, 1, 9, 10, 11, 12, 13, 14, 15, 2, 3, 4, 5, 6, 7]])
        conv.weight[1] = 2 * conv.weight[0]
    layer = LinearConv2d.from_conv2d(conv)
    assert layer.permutation is not None
    torch.testing.assert_close(layer.weight, conv.weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [None, 3])
def test_the_error_is_that_of_the_layers_weight(rank):
    conv = nn.Conv2d(4, 12, 3, dtype=torch.float64)
    layer = LinearConv2d.from_conv2d(conv, rank=rank)
    missed = (layer.weight - conv.weight).norm() / conv.weight.norm()
    assert fit_filters(conv.weight, 6, rank).error == pytest.approx(missed.item())


def test_fewer_dimensions_than_filters_and_equal_or_zero_filters():
    for weight in (torch.randn(16, 1, 3, 3), torch.ones(16, 4, 3, 3), torch.zeros(16, 4, 3, 3)):
        for rank in (None, 8):
            assert fit_filters(weight, 10, rank if weight.std() == 0 else None).error < 1e-6


def test_a_depthwise_layer_with_more_primary_filters_than_dimensions_is_exact():
    conv = nn.Conv2d(8, 16, 3, groups=8, dtype=torch.float64)
    layer = LinearConv2d.from_conv2d(conv, alpha=0.75)
    images = torch.randn(1, 8, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(images), conv(images))


@pytest.mark.parametrize("rank", [None, 4])
def test_a_permuted_layer_learns_as_its_weight_does(rank):
    """Gradients of both executions agree, those of the bias in the order of the outputs."""
    conv = combined((16, 4, 3), 8, rank, scattered=True, dtype=torch.float64)
    images = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    target = torch.randn(2, 16, 4, 4, dtype=torch.float64)
    found = []
    for execution in ("generate", "factored"):
        layer = LinearConv2d.from_conv2d(conv, rank=rank, execution=execution)
        (layer(images) * target).sum().backward()
        found.append([p.grad for p in layer.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(layer.bias.grad, target.sum((0, 2, 3)))


@pytest.mark.parametrize("rank", [None, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dead", [1e-6, 1e-4])
def test_filters_that_are_nearly_dead_carry_nothing(rank, dtype, dead):
    """Coefficients of 1e5 on them fit the weight, until the optimiser takes its first step."""
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 64, 3, bias=False)
    with torch.no_grad():
        basis = torch.randn(24, 64 * 9)
        weight = torch.randn(64, 24) @ basis + 0.1 * torch.randn(64, 64 * 9)
        weight[:12] *= dead
        conv.weight.copy_(0.02 * weight.view_as(conv.weight))
    layer = LinearConv2d.from_conv2d(conv.to(dtype), rank=rank)
    exact = LinearConv2d.from_conv2d(conv.double(), rank=rank)
    assert all(factor.abs().max() < 200 for factor in layer.factors)
    errors = [
        (each.weight.double() - conv.weight).norm() / conv.weight.norm() for each in (layer, exact)
    ]
    assert errors[0] < 1.2 * errors[1] + 0.01


def test_a_weight_that_is_not_what_the_attributes_say_is_refused():
    for change in (lambda w: w[:4], lambda w: w.sum(1, keepdim=True), lambda w: F.pad(w, (1,) * 4)):
        conv = nn.Conv2d(3, 8, 3)
        conv.weight = nn.Parameter(change(conv.weight.detach()))
        with pytest.raises(ValueError, match="its weight was replaced: its shape is"):
            LinearConv2d.from_conv2d(conv)


def test_padding_is_what_the_convolution_pads():
    conv = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
    conv.padding = (2, 2)  # which such a convolution does not read
    images = torch.randn(1, 8, 8, 8)
    layer = LinearConv2d.from_conv2d(conv)
    assert conv(images).shape == layer(images).shape == layer.fuse()(images).shape


def test_what_computes_something_else_is_refused():
    with pytest.raises(ValueError, match="Standardised has a forward of its own"):
        LinearConv2d.from_conv2d(Standardised(4, 8, 3))
    conv = nn.Conv2d(4, 8, 3)
    conv.forward = lambda input: input
    with pytest.raises(ValueError, match="forward of its own"):
        LinearConv2d.from_conv2d(conv)
    with pytest.raises(ValueError, match="on the meta device"):
        LinearConv2d.from_conv2d(nn.Conv2d(4, 8, 3, device="meta"))


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_complex_weights_are_refused():
    with pytest.raises(ValueError, match="dtype must be real"):
        LinearConv2d(4, 8, 3, dtype=torch.complex64)
    with pytest.raises(ValueError, match="dtype must be real"):
        LinearConv2d.from_conv2d(nn.Conv2d(4, 8, 3).to(torch.complex64))


def test_the_convolution_and_its_layer_live_on_independently():
    conv = nn.Conv2d(4, 8, 3)
    layer = LinearConv2d.from_conv2d(conv)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    assert conv.weight.any() and conv.bias.any()
    layer.register_forward_hook(lambda *_: None)
    assert not conv._forward_hooks
