"""Section 3.3: its formulas against real layers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linearconv import LinearConv2d, correlation_loss, theory
from linearconv.regularizer import correlation_matrix

LAYERS = st.fixed_dictionaries(
    {
        "f": st.integers(1, 12).map(lambda k: 4 * k),
        "h": st.integers(1, 3),
        "w": st.integers(1, 3),
        "c": st.integers(1, 6),
    }
)
ALPHAS = st.sampled_from([0.25, 0.5, 0.75])


def layer(f, h, w, c, alpha, **kwargs) -> LinearConv2d:
    return LinearConv2d(c, f, (h, w), alpha=alpha, bias=False, dtype=torch.float64, **kwargs)


def parameters(f, h, w, c, alpha) -> float:
    """p^LC = alpha f h w c + alpha (1 - alpha) f^2; with alpha = 1, p^C = f h w c."""
    return alpha * f * h * w * c + alpha * (1 - alpha) * f**2


@settings(max_examples=60, deadline=None)
@given(LAYERS, ALPHAS)
def test_parameters_are_those_of_real_layers(shape, alpha):
    linear = sum(p.numel() for p in layer(**shape, alpha=alpha).parameters())
    assert parameters(**shape, alpha=alpha) == linear
    conv = torch.nn.Conv2d(shape["c"], shape["f"], (shape["h"], shape["w"]), bias=False)
    assert parameters(**shape, alpha=1) == conv.weight.numel()
    reduces = alpha * shape["f"] <= shape["h"] * shape["w"] * shape["c"]  # condition (2)
    assert reduces == (linear <= conv.weight.numel())


@settings(max_examples=60, deadline=None)
@given(LAYERS, ALPHAS, st.integers(0, 2**31))
def test_rank_of_a_real_layer_never_exceeds_the_bounds(shape, alpha, seed):
    torch.manual_seed(seed)
    module = layer(**shape, alpha=alpha)
    primary, size = module.primary.shape[0], shape["h"] * shape["w"] * shape["c"]
    flat = module.weight.detach().flatten(1)
    span = min(size, primary)  # Eq. (4): random filters are independent
    assert torch.linalg.matrix_rank(flat[:primary]) == span
    assert torch.linalg.matrix_rank(flat) <= span <= min(size, shape["f"])
    bound = min(size, primary, shape["f"] - primary)  # Eq. (5)
    assert torch.linalg.matrix_rank(flat[primary:]) <= bound


@settings(max_examples=30, deadline=None)
@given(LAYERS, st.integers(0, 2**31))
def test_rank_reduced_layers_span_less(shape, seed):
    torch.manual_seed(seed)
    rank = shape["f"] // 4
    module = layer(**shape, alpha=0.5, rank=rank)
    secondary = module.weight.detach()[shape["f"] // 2 :].flatten(1)
    assert torch.linalg.matrix_rank(secondary) <= rank


def test_the_smallest_alpha_has_the_fewest_parameters_under_condition_2():
    alphas = (0.875, 0.125, 0.5, 0.25, 0.75)
    for shape in ((512, 3, 3, 512), (64, 1, 1, 1)):  # Eq. (3); concave, so at an end all the same
        assert min(alphas, key=lambda alpha: parameters(*shape, alpha)) == 0.125  # noqa: B023


def test_minimising_the_correlation_loss_alone_makes_the_filters_orthogonal():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(8, 2, 3, 3, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    start = correlation_loss(weight).item()
    for _ in range(1200):
        optimizer.zero_grad()
        correlation_loss(weight).backward()
        optimizer.step()
        schedule.step()
    assert correlation_loss(weight).item() < 1e-2 * start
    off_diagonal = correlation_matrix(weight) - torch.eye(8, dtype=torch.float64)
    assert off_diagonal.abs().max().item() < 0.02


@pytest.mark.parametrize(("filters", "size"), [(8, 18), (18, 18), (32, 27), (64, 9)])
def test_no_filters_are_below_the_bound_of_the_loss(filters, size):
    bound = theory.correlation_loss_bound(filters, size)
    assert (
        bound
        == {(8, 18): 0, (18, 18): 0, (32, 27): 10, (64, 9): pytest.approx(391.1, abs=0.1)}[
            filters, size
        ]
    )
    torch.manual_seed(0)
    for scale in (1.0, 100.0):
        assert correlation_loss(scale * torch.randn(filters, size)).item() > bound


@pytest.mark.parametrize(("filters", "size"), [(5, 4), (6, 4), (8, 6)])
def test_more_filters_than_dimensions_end_as_duplicates(filters, size):
    """Minimised alone, the loss leaves n - d pairs of equal filters, not an even spread."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(filters, size, dtype=torch.float64))
    optimizer = torch.optim.Adam([weight], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        optimizer.zero_grad()
        correlation_loss(weight).backward()
        optimizer.step()
        schedule.step()
    off_diagonal = correlation_matrix(weight).abs() - torch.eye(filters, dtype=torch.float64)
    assert (off_diagonal > 0.999).sum().item() == 2 * (filters - size)
    loss = correlation_loss(weight).item()
    assert loss == pytest.approx(2 * (filters - size), abs=1e-3)
    assert loss == pytest.approx(theory.correlation_loss_bound(filters, size), abs=1e-3)


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_copies_of_a_basis_attain_the_bound(copies):
    weight = torch.eye(9, dtype=torch.float64).repeat(copies, 1)
    bound = theory.correlation_loss_bound(9 * copies, 9)
    assert correlation_loss(weight).item() == pytest.approx(bound)
