"""Parameters and operations of a network, counted in two ways that are never mixed.

`count_macs` counts exact multiply-adds of convolutions, linear layers and weight generation, for
each way of executing a LinearConv layer. `paper_flops` counts as the paper does, with the tool
its authors used (thop 0.0.22), whose conventions are not those of exact counting; it serves the
comparison with the paper alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from linearconv.layer import LinearConv2d

MAC_EXECUTIONS = ("generate", "factored", "fused")


def count_parameters(model: nn.Module) -> int:
    """Number of learnable values; running statistics of batch norms are none."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_macs(
    model: nn.Module, input_shape: tuple[int, int, int], *, execution: str, batch_size: int = 1
) -> float:
    """Exact multiply-adds of one image's forward pass through all convolutions and linear layers.

    Args:
        model: any module; it is run once on zeros, in evaluation mode.
        input_shape: (C, H, W).
        execution: "generate" (weights are built once a batch), "factored" (outputs are combined
            in every layer with one group, the others generate) or "fused" (weights are at hand).
        batch_size: images that share one building of the weights.

    Returns:
        MACs per image; a whole number unless the batch size does not divide the building.
    """
    if execution not in MAC_EXECUTIONS:
        raise ValueError(f"execution must be one of {', '.join(MAC_EXECUTIONS)}, got {execution!r}")

    def macs(module: nn.Module, input: Tensor, output: Tensor) -> float:
        if isinstance(module, LinearConv2d):
            return _linearconv_macs(module, output, execution, batch_size)
        if isinstance(module, nn.Conv2d):
            return _convolution_macs(module, output)
        if isinstance(module, nn.Linear):
            return output.numel() * module.in_features
        return 0

    total = _sum_over_leaves(model, input_shape, macs)
    return int(total) if total == int(total) else total


def paper_flops(model: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Operations of one image's training forward pass as the paper counts them ("FLOPs").

    A multiply-add is one operation in a convolution and two in a linear layer and in the weight
    combination; a convolution's bias counts once per input channel; the combination of a grouped
    layer is counted with all its input channels. Only modules count, functions do not.
    """
    return int(_sum_over_leaves(model, input_shape, _paper_operations))


def _sum_over_leaves(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    count: Callable[[nn.Module, Tensor, Tensor], float],
) -> float:
    """Sum `count(module, input, output)` over the calls of leaf modules for one image."""
    total = 0.0

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += count(module, inputs[0], output)

    handles = [m.register_forward_hook(hook) for m in model.modules() if not any(m.children())]
    example = next(model.parameters())
    try:
        with torch.no_grad(), _evaluating(model):
            model(torch.zeros(1, *input_shape, device=example.device, dtype=example.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return total


@contextmanager
def _evaluating(model: nn.Module):
    """Evaluation mode inside, each module's own mode again afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _convolution_macs(conv: nn.Conv2d, output: Tensor, filters: int | None = None) -> int:
    """Multiply-adds of a convolution with so many filters (default: all) for one output map."""
    filters = conv.out_channels if filters is None else filters
    per_position = math.prod(conv.kernel_size) * conv.in_channels // conv.groups
    return filters * per_position * math.prod(output.shape[-2:])


def _linearconv_macs(layer: LinearConv2d, output: Tensor, execution: str, batch_size: int) -> float:
    if execution == "fused":
        return _convolution_macs(layer, output)
    primary, *weight_shape = layer.primary.shape
    # Multiply-adds that combine one value of every primary filter, or of every primary output.
    combination = sum(
        p.numel() for name, p in layer.named_parameters() if name.startswith("coefficients")
    )
    if execution == "factored" and layer.groups == 1:
        positions = math.prod(output.shape[-2:])
        return _convolution_macs(layer, output, primary) + combination * positions
    return _convolution_macs(layer, output) + combination * math.prod(weight_shape) / batch_size


def _paper_operations(module: nn.Module, input: Tensor, output: Tensor) -> float:
    """Operations of one leaf module for one image, by the rules of thop 0.0.22."""
    if isinstance(module, nn.Conv2d):
        bias = module.bias is not None
        per_output = (math.prod(module.kernel_size) + bias) * module.in_channels // module.groups
        operations = output.numel() * per_output
        if isinstance(module, LinearConv2d):
            operations += _paper_combination(module)
        return operations
    if isinstance(module, nn.BatchNorm2d):
        return 4 * input.numel()
    if isinstance(module, nn.ReLU):
        return input.numel()
    if isinstance(module, nn.MaxPool2d):
        return module.kernel_size * output.numel()
    if isinstance(module, nn.Linear):
        return (2 * module.in_features - 1) * output.numel()
    return 0


def _paper_combination(layer: LinearConv2d) -> int:
    """Operations that generate the secondary filters, counted with all C input channels."""
    primary, secondary = layer.primary.shape[0], layer.out_channels - layer.primary.shape[0]
    size = layer.in_channels * math.prod(layer.kernel_size)
    if layer.rank is None:
        return (2 * primary - 1) * secondary * size
    first = (2 * primary - 1) * layer.rank * size
    return first + (2 * layer.rank - 1) * secondary * size
