"""Layers fitted to what convolutions give on images, against the optimum in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from linearconv import LinearConv2d, convert
from linearconv.responses import as_images, fit_on_images, measure
from linearconv.warm_start import fit_filters


def correlated(count: int = 12, channels: int = 3, size: int = 10, seed: int = 0) -> torch.Tensor:
    """Images whose pixels and channels depend on each other, with a mean."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(count, channels, size, size, generator=random, dtype=torch.float64)
    smooth = F.avg_pool2d(images, 3, stride=1, padding=1)
    mixing = torch.randn(channels, channels, generator=random, dtype=torch.float64)
    return torch.einsum("nchw,dc->ndhw", smooth, mixing) + 0.5


def conv_of(filters: int = 16, channels: int = 3, seed: int = 0, **options) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(channels, filters, 3, dtype=torch.float64, **options)


def mean_square(difference: torch.Tensor, scale=None) -> float:
    scale = torch.ones(difference.shape[1]) if scale is None else scale
    return (difference * scale.view(-1, 1, 1)).square().sum().item()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_error_of_the_outputs_is_the_least_of_rank_p(bias, weighted):
    """Computed as for any low-rank layer: the SVD of W C^(1/2), with the inputs' covariance C."""
    conv, images = conv_of(bias=bias), correlated()
    norm = nn.BatchNorm2d(16).double() if weighted else None
    if weighted:
        norm.weight.data.uniform_(0.1, 3)
        norm.running_var.uniform_(0.5, 2)
    plain = conv._conv_forward(images, conv.weight, None)
    responses = measure(plain, conv.bias, norm)
    fit = fit_filters(conv.weight, 6, None, bias=conv.bias, responses=responses)
    layer = LinearConv2d.from_conv2d(conv, alpha=6 / 16, fit=fit)
    scale = (
        (norm.weight.abs() / (norm.running_var + norm.eps).sqrt()).detach() if weighted else None
    )
    found = mean_square(layer(images) - conv(images), scale)

    patches = F.unfold(images, 3).transpose(0, 1).flatten(1).numpy()
    if bias:  # which takes up the error of the mean
        patches = patches - patches.mean(axis=1, keepdims=True)
    weight = conv.weight.detach().flatten(1).numpy()
    weight = weight if scale is None else weight * scale.numpy()[:, None]
    values, vectors = np.linalg.eigh(patches @ patches.T)
    singular = np.linalg.svd(weight @ vectors * np.sqrt(values.clip(0)), compute_uv=False)
    assert found == pytest.approx((singular[6:] ** 2).sum(), rel=1e-6)
    assert fit.error**2 == pytest.approx((singular[6:] ** 2).sum() / (singular**2).sum(), rel=1e-6)
    if bias:
        torch.testing.assert_close(layer(images).mean((0, 2, 3)), conv(images).mean((0, 2, 3)))


@pytest.mark.parametrize("bias", [True, False])
def test_a_rank_is_fitted_to_the_outputs_and_keeps_their_mean(bias):
    conv, images = conv_of(bias=bias), correlated()
    plain = conv._conv_forward(images, conv.weight, None)
    errors = []
    for responses in (measure(plain, conv.bias), None):
        fit = fit_filters(conv.weight, 8, 3, bias=conv.bias, responses=responses)
        layer = LinearConv2d.from_conv2d(conv, rank=3, fit=fit)
        errors.append(mean_square(layer(images) - conv(images)))
        torch.testing.assert_close(
            layer.primary, conv.weight[fit.primary], rtol=0, atol=0
        )  # trained filters, unchanged
    assert errors[0] < 0.7 * errors[1]


class Net(nn.Module):
    """Two convolutions with batch norms, one of them used twice, and one that nothing reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv_of(16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16).double()
        self.twice = conv_of(16, 16, 1, padding=1)
        self.unused = conv_of(16, 16, 2)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        return self.twice(self.twice(x).relu())


def test_each_layer_is_fitted_to_what_reaches_it_from_those_before():
    model, images = Net().eval(), correlated()
    with torch.no_grad():
        report = convert(model, warm_start=images, inplace=False)
        own = report.model
        received = own.norm(own.first(images)).relu()
        plain = model.twice._conv_forward(received, model.twice.weight, None)
        fit = fit_filters(
            model.twice.weight, 8, None, bias=model.twice.bias,
            responses=measure(plain, model.twice.bias, None, model.twice.weight),
        )  # fmt: skip
        torch.testing.assert_close(own.twice.primary, fit.filters)
        torch.testing.assert_close(own.twice.bias, fit.bias)
    first, twice, unused = report.layers
    assert twice.kept == pytest.approx(1 - fit.error**2)
    assert unused.kept == pytest.approx(1 - fit_filters(model.unused.weight, 8, None).error ** 2)
    assert f"{100 * first.kept:.1f} % of the output kept" in str(report)
    assert not any(module._forward_hooks for module in own.modules())


def test_a_network_keeps_its_mode_and_its_statistics():
    model = Net().train()
    model.norm.eval()
    before = model.norm.running_mean.clone()
    convert(model, warm_start=[correlated(4), (correlated(4, seed=1), torch.zeros(4))])
    assert model.training and not model.norm.training and model.first.training
    assert torch.equal(model.norm.running_mean, before)


def test_batch_norms_are_recalibrated_on_request():
    model, images = Net().eval(), correlated()
    convert(model, warm_start=images, recalibrate=True)
    with torch.no_grad():
        outputs = model.first(images)
    torch.testing.assert_close(model.norm.running_mean, outputs.mean((0, 2, 3)))
    torch.testing.assert_close(model.norm.running_var, outputs.var((0, 2, 3)))
    assert model.norm.momentum == 0.1 and not model.norm.training
    with pytest.raises(ValueError, match="recalibrate=True needs images"):
        convert(Net(), recalibrate=True)


def test_outputs_are_weighted_by_the_batch_norm_that_gets_them():
    seen = {}

    def maker(responses):
        seen["scale"] = responses.scale
        return model.first

    model = Net().eval()
    model.norm.weight.data.uniform_(0.5, 2)
    fit_on_images(model, {model.first: maker}, correlated())
    expected = model.norm.weight.abs() / (model.norm.running_var + model.norm.eps).sqrt()
    torch.testing.assert_close(seen["scale"], expected.detach())


def test_grouped_layers_are_fitted_to_their_weights():
    conv = nn.Conv2d(8, 16, 3, groups=4, dtype=torch.float64)
    report = convert(nn.Sequential(conv), warm_start=correlated(channels=8), inplace=False)
    expected = fit_filters(conv.weight, 8, None)
    assert report.layers[0].kept == pytest.approx(1 - expected.error**2)


def test_moments_are_those_of_all_parts(monkeypatch):
    plain = correlated(7, 4)
    whole = measure(plain, torch.ones(4))
    monkeypatch.setattr("linearconv.responses.CHUNK", 1)
    parts = measure(plain, torch.ones(4))
    values = plain.transpose(0, 1).flatten(1).numpy()
    np.testing.assert_allclose(whole.moments, np.cov(values, bias=True), rtol=1e-10)
    np.testing.assert_allclose(parts.moments, whole.moments, rtol=1e-10)
    np.testing.assert_allclose(whole.mean, values.mean(axis=1) + 1)


def test_few_outputs_are_drawn_towards_inputs_without_correlations():
    conv, images = conv_of(), correlated(2, size=4)
    plain = conv._conv_forward(images, conv.weight, None)
    alone, drawn = (measure(plain, conv.bias, None, w).moments for w in (None, conv.weight))
    rows = conv.weight.detach().flatten(1)
    white = rows @ rows.t()
    white *= alone.trace() / white.trace()
    outputs = 2 * 2 * 2  # images, height, width
    expected = (outputs * alone + 16 * white) / (outputs + 16)
    torch.testing.assert_close(drawn, expected)
    assert torch.linalg.matrix_rank(alone) < 16 == torch.linalg.matrix_rank(drawn)


def test_what_are_no_images_is_refused():
    for images, words in (([], "an empty iterable"), (torch.zeros(0, 3, 8, 8), r"\(0, 3, 8, 8\)")):
        with pytest.raises(ValueError, match=words):
            as_images(images)
