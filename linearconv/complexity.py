"""Parameters and operations of a network, counted by two conventions that are never mixed.

`count_macs` counts exact multiply-adds of convolutions, linear layers and weight generation, for
each execution of a LinearConv layer. `paper_flops` counts as the paper and the tool its authors
used (thop 0.0.22), whose conventions differ from exact counting; it is only for comparison with
the paper. Both also accept models on the meta device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from linearconv.layer import LinearConv2d

MAC_EXECUTIONS = ("generate", "factored", "fused")


def count_parameters(model: nn.Module) -> int:
    """Number of learnable parameters, without running statistics of batch norms."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_macs(
    model: nn.Module, input_shape: tuple[int, int, int], *, execution: str, batch_size: int = 1
) -> float:
    """Exact multiply-adds of one image's forward pass through all convolutions and linear layers.

    Those of attention (`torch.nn.MultiheadAttention`) are its projections; products of two
    activations, as attention weights with values, are not counted, nor are recurrent layers.

    Args:
        model: any module; it is run once on zeros, in evaluation mode.
        input_shape: (C, H, W).
        execution: "generate" (weights are generated once per batch), "factored" (layers with one
            group combine outputs, the others generate) or "fused" (weights are precomputed).
        batch_size: images that share one generation of the weights.

    Returns:
        MACs per image; fractional if the batch size does not divide the MACs of the generation.
    """
    if execution not in MAC_EXECUTIONS:
        raise ValueError(f"execution must be one of {', '.join(MAC_EXECUTIONS)}, got {execution!r}")
    return _total_macs(_calls(model, input_shape), execution, batch_size)


def count_macs_by_phase(
    model: nn.Module, input_shape: tuple[int, int, int], *, batch_size: int
) -> dict[str, dict[str, float]]:
    """`count_macs` of training and of inference in every execution, from one forward pass.

    Args:
        model: see `count_macs`.
        input_shape: (C, H, W).
        batch_size: images in a training batch.

    Returns:
        {"train": {"generate", "factored"}, "inference": {"fused", "factored"}}.
    """
    calls = _calls(model, input_shape)
    return {
        "train": {e: _total_macs(calls, e, batch_size) for e in ("generate", "factored")},
        "inference": {e: _total_macs(calls, e, 1) for e in ("fused", "factored")},
    }


def layer_table(
    model: nn.Module, input_shape: tuple[int, int, int], *, batch_size: int
) -> list[dict[str, Any]]:
    """One dict for each layer with parameters or MACs, in the order of the forward pass.

    Args:
        model: any module; it is run once on zeros, in evaluation mode.
        input_shape: (C, H, W).
        batch_size: images that share one generation of the weights.

    Returns:
        `name`, `kind` (class), `output` (its shape without the batch; None if it is no tensor),
        `params` (each in the first row that it is in), and the MACs per training image
        `macs_generate` and `macs_factored`.
    """
    rows: list[dict[str, Any]] = []
    seen: set[nn.Parameter] = set()
    for name, module, inputs, output in _calls(model, input_shape):
        macs = {
            f"macs_{execution}": _whole(_module_macs(module, inputs, output, execution, batch_size))
            for execution in ("generate", "factored")
        }
        shape = list(output.shape[1:]) if isinstance(output, Tensor) else None
        row = {"name": name, "kind": type(module).__name__, "output": shape}
        new = {p for p in module.parameters() if p.requires_grad} - seen
        seen |= new
        row |= {"params": sum(p.numel() for p in new), **macs}
        if row["params"] or row["macs_generate"]:
            rows.append(row)
    return rows


def paper_flops(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    all_input_channels: bool = False,
    rank: int | None = None,
) -> int:
    """Operations of one image's training forward pass as the paper counts them ("FLOPs").

    A multiply-add is one operation in a convolution and two in a linear layer and in the weight
    combination; a convolution's bias counts once per input channel. Only modules are counted, not
    functions.

    Args:
        model: any module; it is run once on zeros, in evaluation mode.
        input_shape: (C, H, W).
        all_input_channels: count the combination of a grouped layer as if its filters had all C
            input channels, as the authors did (`scripts/evidence/quirks.py`).
        rank: count combinations with this rank instead of each layer's own.
    """
    total = 0
    for _, module, inputs, output in _calls(model, input_shape):
        total += _module_operations(module, inputs, output)
        if isinstance(module, LinearConv2d):
            channels = module.in_channels if all_input_channels else module.primary.shape[1]
            total += _combination_operations(module, channels, rank or module.rank)
    return total


Call = tuple[str, nn.Module, tuple[Any, ...], Any]
"""(name, module, inputs, output) of one call of a module, of one image."""

COUNTED = (_ConvNd, nn.Linear, nn.MultiheadAttention)
"""Modules that are counted whatever other modules they have in them (a norm, parametrizations)."""


def _calls(model: nn.Module, input_shape: tuple[int, int, int]) -> list[Call]:
    """The calls of leaf modules and of `COUNTED` ones in a forward pass of one all-zero image."""
    calls: list[Call] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            calls.append((name, module, (*args, *kwargs.values()), output))

        return hook

    leaves = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, COUNTED) or not any(True for _ in module.children())
    ]
    handles = [
        module.register_forward_hook(watch(name), with_kwargs=True) for name, module in leaves
    ]
    example = next(model.parameters())
    try:
        with torch.no_grad(), _evaluating(model):
            model(torch.zeros(1, *input_shape, device=example.device, dtype=example.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return calls


@contextmanager
def _evaluating(model: nn.Module):
    """Temporarily put a model into evaluation mode; restores the mode of each module."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _total_macs(calls: list[Call], execution: str, batch_size: int) -> float:
    return _whole(sum(_module_macs(*call[1:], execution, batch_size) for call in calls))


def _whole(value: float) -> float:
    """`value` as an int if it is a whole number."""
    return int(value) if value == int(value) else value


def _module_macs(
    module: nn.Module, inputs: tuple[Any, ...], output: Any, execution: str, batch_size: int
) -> float:
    """Multiply-adds of one module for one image."""
    if isinstance(module, LinearConv2d):
        return _linearconv_macs(module, output, execution, batch_size)
    if isinstance(module, _ConvNd):
        return _convolution_macs(module, inputs, output)
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    if isinstance(module, nn.MultiheadAttention):
        query, key, value, *_ = inputs
        # Each is projected to the embedding's width, and so are the attended values at the end.
        return module.embed_dim * sum(each.numel() for each in (query, key, value, query))
    return 0


def _convolution_macs(conv: _ConvNd, inputs: tuple[Any, ...], output: Tensor) -> int:
    """Multiply-adds of a convolution with all its filters, for one image."""
    if conv.transposed:  # each input value meets the filters of its group
        return inputs[0].numel() * math.prod(conv.kernel_size) * conv.out_channels // conv.groups
    return output.numel() * math.prod(conv.kernel_size) * conv.in_channels // conv.groups


def _linearconv_macs(layer: LinearConv2d, output: Tensor, execution: str, batch_size: int) -> float:
    convolution = _convolution_macs(layer, (), output)
    if execution == "fused":
        return convolution
    primary, *weight_shape = layer.primary.shape
    # Multiply-adds that combine one value of each primary filter, or of each primary output.
    combination = sum(factor.numel() for factor in layer.factors)
    if execution == "factored" and layer.groups == 1:
        positions = output.numel() // layer.out_channels
        return convolution * primary // layer.out_channels + combination * positions
    return convolution + combination * math.prod(weight_shape) / batch_size


def _module_operations(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int:
    """Operations of one leaf module for one image by the rules of thop 0.0.22."""
    if isinstance(module, nn.Conv2d):
        has_bias = module.bias is not None
        per_output = (math.prod(module.kernel_size) + has_bias) * module.in_channels
        return output.numel() * per_output // module.groups
    if isinstance(module, nn.BatchNorm2d):
        return 4 * inputs[0].numel()
    if isinstance(module, nn.ReLU):
        return inputs[0].numel()
    if isinstance(module, nn.MaxPool2d):
        return _as_thop(module.kernel_size) * output.numel()
    if isinstance(module, nn.AvgPool2d):
        return (_as_thop(module.kernel_size) + 1) * output.numel()
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return (math.prod(inputs[0].shape[-2:]) + 1) * output.numel()
    if isinstance(module, nn.Linear):
        return (2 * module.in_features - 1) * output.numel()
    return 0


def _as_thop(size: int | tuple[int, int]) -> int:
    """The size of a pooling window: thop takes that of a square one, an int, for the whole."""
    return math.prod(size) if isinstance(size, tuple) else size


def _combination_operations(layer: LinearConv2d, channels: int, rank: int | None) -> int:
    """Operations that generate the secondary filters, each of `channels` input channels."""
    primary, secondary = layer.primary.shape[0], layer.out_channels - layer.primary.shape[0]
    size = channels * math.prod(layer.kernel_size)
    if rank is None:
        return (2 * primary - 1) * secondary * size
    return (2 * primary - 1) * rank * size + (2 * rank - 1) * secondary * size
