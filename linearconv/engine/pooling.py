"""Max pooling before what it follows, which then works on a quarter of the values if it is 2x2.

The largest of some values stays the largest under any function that rises, so a ReLU can come
after pooling (the same numbers, bit for bit: where the largest value is not positive, no gradient
passes in either order), and so can a batch norm (up to rounding; only where outputs tie that come
of different inputs, as with a weight of exactly zero, may that weight's gradient be another of its
subgradients).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from linearconv.engine.rewriting import replaced

LARGE = 2**20
"""Number of values in a batch from which on pooling before a batch norm pays: it saves passes over
memory, but takes more small operations (measured on a Xeon with 2 threads)."""


@contextmanager
def pooling_before_relu(model: nn.Module) -> Iterator[None]:
    """Within it, a chain's modules ReLU, MaxPool2d are called in the other order."""
    chains = _chains(model)
    written = [chain._modules for chain in chains]
    for chain in chains:
        chain._modules = _reordered(chain._modules)
    try:
        yield
    finally:
        for chain, modules in zip(chains, written, strict=True):
            chain._modules = modules


def _reordered(modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """A chain's modules by name, each pair of ReLU and pooling exchanged."""
    names = list(modules)
    for i, (first, second) in enumerate(pairwise(list(modules))):
        relu, pool = modules[first], modules[second]
        if isinstance(relu, nn.ReLU) and isinstance(pool, nn.MaxPool2d) and not pool.return_indices:
            names[i], names[i + 1] = second, first
    return {name: modules[name] for name in names}


def pooling_before_norm(model: nn.Module) -> AbstractContextManager[None]:
    """Within it, BatchNorm2d followed by MaxPool2d in a chain is one operation, training on a CPU.

    All values enter the statistics; those that pooling drops are not normalised, and their zero
    gradients are not read.
    """
    return replaced("forward", _chain_forward, _chains(model))


def _chains(model: nn.Module) -> list[nn.Sequential]:
    return [module for module in model.modules() if type(module) is nn.Sequential]


def _chain_forward(chain: nn.Sequential, input: Tensor) -> Tensor:
    """A chain's modules one after the other, but batch norm and pooling at once if that gains."""
    if not chain.training:
        return nn.Sequential.forward(chain, input)
    pooled = False
    for module, following in pairwise([*chain, None]):
        if pooled:  # together with the batch norm before it
            pooled = False
            continue
        pooled = _one_step(module, following) and _gains(input, module)
        if pooled:
            module.num_batches_tracked.add_(1)
            input = _PooledNorm.apply(input, module.weight, module.bias, module, following)
        else:
            input = module(input)
    return input


def _one_step(norm: nn.Module, pool: nn.Module | None) -> bool:
    """Whether two modules are a usual batch norm and the pooling of its outputs."""
    return (
        type(norm) is nn.BatchNorm2d
        and type(pool) is nn.MaxPool2d
        and not pool.return_indices
        and norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
    )


def _gains(input: Tensor, norm: nn.BatchNorm2d) -> bool:
    """Whether it is faster; what does not fit is left to the library and its messages."""
    return (
        input.device.type == "cpu"
        and input.dim() == 4
        and input.shape[1] == norm.num_features
        and input.numel() >= LARGE
        and input.dtype in (torch.float32, torch.float64)
        and input.dtype == norm.weight.dtype
    )


class _PooledNorm(torch.autograd.Function):
    """input (N, C, H, W), weight and bias (C,) -> (N, C, H', W'), normalised and pooled.

    Of the M = N H W values x of a channel with mean m and variance v, let x' = (x - m) / d with
    d = sqrt(v + eps). Where pooling chooses x, y = weight x' + bias; and (Ioffe and Szegedy 2015)
    dx = (weight / d) (dy - (sum(dy) + x' sum(dy x')) / M), dy being the sum of the gradients of the
    outputs for which x was chosen, and zero elsewhere, so that both sums run over what was chosen.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        norm: nn.BatchNorm2d,
        pool: nn.MaxPool2d,
    ) -> Tensor:
        running = norm.running_mean, norm.running_var
        mean, variance = torch.batch_norm_update_stats(input, *running, norm.momentum)
        inverse = (variance + norm.eps).rsqrt_()
        scale = weight * inverse
        ctx.window = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
        falls = weight < 0  # then the largest output is that of the smallest input
        sign = _channels(torch.where(falls, -1.0, 1.0).to(input.dtype)) if falls.any() else None
        rising = input if sign is None else input * sign
        chosen, indices = F.max_pool2d(rising, *ctx.window, return_indices=True)
        if sign is not None:
            chosen.mul_(sign)
        chosen.sub_(_channels(mean))
        ctx.save_for_backward(input, chosen, indices, mean, inverse, scale)
        return torch.addcmul(_channels(bias), chosen, _channels(scale))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, chosen, indices, mean, inverse, scale = ctx.saved_tensors
        of_bias = grad_output.sum((0, 2, 3))
        of_weight = (grad_output * chosen).sum((0, 2, 3)).mul_(inverse)
        values = input.numel() // input.shape[1]
        # dx = unpooled(scale dy) + slope x + offset
        slope = (scale * inverse).mul_(of_weight).div_(-values)
        offset = (scale * of_bias).div_(-values).addcmul_(slope, mean, value=-1)
        of_input = torch.ops.aten.max_pool2d_with_indices_backward(
            grad_output * _channels(scale), input, *ctx.window, indices
        )
        of_input.addcmul_(input, _channels(slope)).add_(_channels(offset))
        return of_input, of_weight, of_bias, None, None


def _channels(values: Tensor) -> Tensor:
    """(C,) -> (C, 1, 1), to be spread over (N, C, H, W)."""
    return values[:, None, None]
