"""The correlation loss against an independent float64 NumPy computation."""

import numpy as np
import pytest
import torch
from torch import nn

from linearconv import (
    LinearConv2d,
    RegularizedConv2d,
    correlation_loss,
    model_correlation_loss,
)


def numpy_loss(weight: np.ndarray, centered: bool) -> float:
    """Algorithm 1, entry by entry; NumPy's own Pearson correlation where centred."""
    flat = weight.reshape(len(weight), -1)
    if centered:
        return float(np.abs(np.corrcoef(flat) - np.eye(len(flat))).sum())
    total = 0.0
    for i, a in enumerate(flat):
        for j, b in enumerate(flat):
            cosine = np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b))
            total += abs(cosine - (i == j))
    return total


def numpy_gradient(weight: np.ndarray, centered: bool) -> np.ndarray:
    """Gradient by the chain rule, written out.

    L = sum_ij |c_ij - d_ij|, c_ij = u_i . u_j, u_i = v_i / |v_i|. By u_i: 2 sum_j sign(c_ij) u_j
    over j != i (the diagonal is constant), then the projection orthogonal to u_i, over |v_i|.
    """
    flat = weight.reshape(len(weight), -1)
    if centered:
        flat = flat - flat.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    unit = flat / norms
    signs = np.sign(unit @ unit.T)
    np.fill_diagonal(signs, 0)
    by_unit = 2 * signs @ unit
    by_flat = (by_unit - (by_unit * unit).sum(axis=1, keepdims=True) * unit) / norms
    if centered:
        by_flat = by_flat - by_flat.mean(axis=1, keepdims=True)
    return by_flat.reshape(weight.shape)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (16, 2, 1, 1), (1, 4, 3, 3), (7, 6, 5, 3)])
def test_value_and_gradient(shape, centered):
    values = np.random.default_rng(0).normal(size=shape)
    weight = torch.tensor(values, requires_grad=True)
    loss = correlation_loss(weight, centered=centered)
    loss.backward()
    if shape == (1, 4, 3, 3) and centered:
        assert loss.item() == pytest.approx(0, abs=1e-12)  # np.corrcoef of one row is a scalar
    else:
        assert loss.item() == pytest.approx(numpy_loss(values, centered), abs=1e-10)
    np.testing.assert_allclose(weight.grad, numpy_gradient(values, centered), atol=1e-10)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_filter_is_finite(dtype, centered):
    weight = torch.randn(4, 3, 3, 3, dtype=dtype)
    weight[1] = 0
    weight.requires_grad_()
    loss = correlation_loss(weight, centered=centered)
    (1e5 * loss).backward()  # as a scaler of gradients would
    others = torch.cat([weight[:1], weight[2:]]).detach()
    torch.testing.assert_close(loss, correlation_loss(others, centered=centered) + 1)
    assert weight.grad.isfinite().all()
    assert weight.grad[1].abs().max() == 0


def test_constant_filter_is_finite_when_centered():
    weight = torch.ones(3, 1, 1, 1, requires_grad=True)  # the released code gives NaN here
    loss = correlation_loss(weight, centered=True)
    loss.backward()
    assert loss.item() == 3 and weight.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e-8, 1e-12, 1e-16])
def test_tiny_filters_keep_their_correlation(scale):
    weight = torch.randn(4, 3, 3, 3)
    tiny = (weight * scale).requires_grad_()
    loss = correlation_loss(tiny)
    loss.backward()
    torch.testing.assert_close(loss, correlation_loss(weight))
    expected = numpy_gradient(weight.double().numpy(), False)
    np.testing.assert_allclose(tiny.grad.double() * scale, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 0.05, 30])
def test_half_precision_neither_overflows_nor_vanishes(scale):
    torch.manual_seed(0)
    weight = (scale * torch.randn(16, 3, 3, 3)).half().requires_grad_()
    loss = correlation_loss(weight)
    expected = correlation_loss(weight.detach().double())
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=0)
    loss.backward()
    assert weight.grad.dtype is torch.float16 and weight.grad.abs().max() > 0


def test_scale_of_a_filter_does_not_matter():
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    scaled = weight * torch.tensor([1e-3, 1.0, 5.0, 1e4], dtype=torch.float64).view(-1, 1, 1, 1)
    torch.testing.assert_close(correlation_loss(scaled), correlation_loss(weight))


def test_model_sums_over_the_layers_that_take_part():
    linear, marked, plain = LinearConv2d(3, 8, 3), RegularizedConv2d(8, 4, 3), nn.Conv2d(4, 4, 3)
    model = nn.Sequential(linear, marked, plain)
    expected = correlation_loss(linear.primary) + correlation_loss(marked.weight)
    torch.testing.assert_close(model_correlation_loss(model), expected)
    model_correlation_loss(model).backward()
    assert linear.coefficients.grad is None and plain.weight.grad is None
    assert linear.primary.grad is not None and marked.weight.grad is not None


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(ValueError, match="no layer of this model"):
        model_correlation_loss(nn.Conv2d(3, 4, 3))


def test_autocast_does_not_round_the_loss():
    weight = torch.randn(8, 3, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = correlation_loss(weight)
    assert inside.dtype == torch.float32 and torch.equal(inside, correlation_loss(weight))


@pytest.mark.parametrize("centered", [False, True])
def test_the_closed_gradient_is_that_of_the_formula_and_differentiable(centered):
    """Function transforms use the formula; backward and double backward the closed gradient."""
    weight = torch.randn(5, 2, 3, 3, dtype=torch.float64)

    def loss(w):
        return correlation_loss(w, centered=centered)

    by_formula = torch.func.grad(loss)(weight)
    leaf = weight.clone().requires_grad_()
    (closed,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    torch.testing.assert_close(closed.detach(), by_formula, rtol=1e-12, atol=1e-13)
    assert torch.autograd.gradcheck(loss, leaf)
    assert torch.autograd.gradgradcheck(loss, leaf)
    last = nn.Conv2d(2, 5, 3).double()  # as a part of a larger graph
    (2 * loss(last.weight * 3)).backward()
    expected = torch.func.grad(lambda w: 2 * loss(w * 3))(last.weight.detach())
    torch.testing.assert_close(last.weight.grad, expected, rtol=1e-12, atol=1e-13)


def test_flat_filters_are_refused():
    """As FSDP1 leaves them, whose layers have one flat parameter."""
    with pytest.raises(ValueError, match="fully_shard"):
        correlation_loss(torch.randn(64))


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", [0.003, 1.0])
def test_backward_within_autocast_is_in_full_precision(centered, dtype, norm):
    """As outside of it: of small filters the inverse norms overflow in half precision."""
    weight = torch.randn(8, 3, 3, 3, dtype=torch.float32)
    weight = (norm * weight / weight.flatten(1).norm(dim=1)[:, None, None, None]).requires_grad_()
    (expected,) = torch.autograd.grad(correlation_loss(weight, centered=centered), weight)
    with torch.autocast("cpu", dtype=dtype):
        (found,) = torch.autograd.grad(correlation_loss(weight, centered=centered), weight)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_double_backward_within_autocast_is_finite():
    weight = (0.003 * torch.nn.functional.normalize(torch.randn(4, 9))).requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        loss = correlation_loss(weight)
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        (second,) = torch.autograd.grad((gradient * weight.detach().roll(1, 0)).sum(), weight)
    assert gradient.isfinite().all() and second.isfinite().all()
