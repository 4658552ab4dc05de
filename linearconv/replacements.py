"""The layers that `convert` puts in the place of convolutions: new, fitted, or low-rank pairs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from linearconv.adapters import Pad, PaddedLinearConv2d, Padding, padding_of, unpadded
from linearconv.layer import LinearConv2d, split_filters
from linearconv.responses import fit_on_images
from linearconv.stand_in import conv_arguments
from linearconv.warm_start import Responses, fit_filters


def saved_by_rank(layer: nn.Module | None) -> int | None:
    """The coefficients that a layer's rank saves, which may be none or less; None without one."""
    if getattr(layer, "rank", None) is None:
        return None
    first, second = layer.factors
    return len(first) * second.shape[1] - first.numel() - second.numel()


def rank_of(conv: nn.Conv2d, alpha: float, rank: int | None) -> int | None:
    """The rank that a layer in place of the convolution can have."""
    return None if rank is None else min(rank, *split_filters(conv.out_channels, alpha))


def fitted(
    model: nn.Module,
    alphas: Mapping[nn.Conv2d, float],
    rank: int | None,
    form: str,
    images: Tensor | None,
    kept: dict[_ConvNd, float],
) -> dict[nn.Conv2d, nn.Module]:
    """The layers fitted to convolutions; the share of the output that each keeps goes to `kept`."""

    def fit(conv: nn.Conv2d, responses: Responses | None = None) -> nn.Module:
        primary, _ = split_filters(conv.out_channels, alphas[conv])
        own = rank_of(conv, alphas[conv], rank)
        found = fit_filters(conv.weight, primary, own, bias=conv.bias, responses=responses)
        kept[conv] = 1 - found.error**2
        kind, pad, plain = _kind(conv)
        layer = kind.from_conv2d(plain, alpha=alphas[conv], rank=own, fit=found)
        if form == "pair":
            pair = _pair(layer)
            return pair if pad is None else pair.insert(0, Padding(conv, pad))
        if pad is not None:
            layer.pad = Padding(conv, pad)
        return layer

    layers: dict[nn.Conv2d, nn.Module] = {}
    if images is not None:
        makers = {conv: partial(fit, conv) for conv in alphas if conv.groups == 1}
        layers = fit_on_images(model, makers, images)
    return {conv: layers.get(conv) or fit(conv) for conv in alphas}


@torch.no_grad()
def _pair(layer: LinearConv2d) -> nn.Sequential:
    """The pair of a convolution with P filters and a 1x1 convolution that computes the same."""
    primary = len(layer.primary)
    left, values, right = torch.linalg.svd(layer.weight.double().flatten(1), full_matrices=False)
    rank = min(primary, len(values))  # filters with fewer than P values have a lower one
    scale = values[:rank].sqrt()  # of both alike
    options = {"device": layer.primary.device, "dtype": layer.primary.dtype}
    inputs, outputs, *shape, padding_mode = conv_arguments(layer)
    *shape, has_bias = shape
    spatial = nn.Conv2d(inputs, primary, *shape, False, padding_mode, **options)
    combining = nn.Conv2d(primary, outputs, 1, bias=has_bias, **options)
    spatial.weight.zero_().flatten(1)[:rank] = scale[:, None] * right[:rank]
    combining.weight.zero_().flatten(1)[:, :rank] = left[:, :rank] * scale
    if has_bias:
        combining.bias.copy_(layer.bias)
    return nn.Sequential(spatial, combining).train(layer.training)


def initialised(conv: nn.Conv2d, alpha: float, rank: int | None, init: str) -> LinearConv2d:
    """The new layer in place of a convolution."""
    kind, pad, plain = _kind(conv)
    layer = kind(
        *conv_arguments(plain),
        alpha=alpha,
        rank=rank_of(conv, alpha, rank),
        init=init,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    layer.stored_as(conv)
    if pad is not None:
        layer.pad = Padding(conv, pad)
    return layer


def _kind(conv: nn.Conv2d) -> tuple[type[LinearConv2d], Pad | None, nn.Conv2d]:
    """The class of the layer in place of a convolution, its padding, and the plain convolution."""
    pad = padding_of(conv)
    return (LinearConv2d, None, conv) if pad is None else (PaddedLinearConv2d, pad, unpadded(conv))


def relative_error(layer: nn.Module, conv: nn.Conv2d) -> float:
    """The norm of what a layer misses of a convolution's weight, relative to its norm."""
    weight = conv.weight.detach().double()
    if isinstance(layer, nn.Sequential):
        spatial, combining = (part.weight.detach().double().flatten(1) for part in layer[-2:])
        found = (combining @ spatial).view_as(weight)
    else:
        found = layer.weight.detach().double()
    missed = (found - weight).norm()
    return (missed / weight.norm().clamp_min(1e-300)).item()
