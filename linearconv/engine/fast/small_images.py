"""Convolutions of small images on a CPU, as one matrix product for each tap of the filter.

A library convolution also multiplies the zero padding: with a 3x3 filter that is 31 % of the work
on a 4x4 image and 56 % on 2x2. Here a tap multiplies only the pixels that it reads inside the image
(kn2row: Vasudevan, Anderson and Gregg 2017, "Parallel Multi Channel Convolution using General
Matrix Multiplication"), and the products are large enough for the matrix library to be fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from linearconv.engine.fast.rewriting import replaced
from linearconv.stand_in import is_overridden

LARGEST = 4
"""Largest height and width of a small image; at 8x8 both ways take the same time."""
PAIRS_PER_PIXEL = 2**12
"""Input times output channels per pixel (of at least 4) from which the products are faster;
measured at batch sizes 64 and 256 on a Xeon with 2 threads."""


def small_image_products(model: nn.Module) -> AbstractContextManager[None]:
    """Temporarily compute a model's convolutions this way where it pays off; up to rounding."""
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and _possible(m)]
    return replaced("_conv_forward", _conv_forward, convolutions)


def _possible(conv: nn.Conv2d) -> bool:
    """Whether a convolution can be computed this way, whatever the image."""
    return (
        (conv.stride, conv.dilation, conv.groups) == ((1, 1), (1, 1), 1)
        and conv.kernel_size != (1, 1)  # already one matrix product in the library
        and conv.padding_mode == "zeros"
        and isinstance(conv.padding, tuple)
        and not is_overridden(conv, "_conv_forward", nn.Conv2d)
    )


def _conv_forward(self: nn.Conv2d, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Replacement for the `_conv_forward` that `nn.Conv2d` and `LinearConv2d` call."""
    if not _pays_off(input, weight):
        return nn.Conv2d._conv_forward(self, input, weight, bias)
    output = _Products.apply(input, weight, self.padding)
    return output if bias is None else output + bias.view(-1, 1, 1)


def _pays_off(input: Tensor, weight: Tensor) -> bool:
    """Whether the products are faster; not used under autocast, as they have full precision."""
    features, channels = weight.shape[:2]
    *_, height, width = input.shape
    return (
        max(height, width) <= LARGEST
        and features * channels >= PAIRS_PER_PIXEL * max(4, height * width)
        and input.dim() == 4
        and input.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )


class _Products(torch.autograd.Function):
    """input (N, C, H, W), weight (F, C, KH, KW) -> (N, F, H', W') in channels_last."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, input: Tensor, weight: Tensor, padding: tuple[int, int]
    ) -> Tensor:
        inputs = _pixels(input)
        ctx.save_for_backward(inputs, weight)
        ctx.padding = padding
        height, width = (
            size + 2 * pad - kernel + 1
            for size, pad, kernel in zip(input.shape[2:], padding, weight.shape[2:], strict=True)
        )
        outputs = inputs.new_zeros(height, width, len(input), len(weight))
        for i, j, met, result in _taps(inputs, outputs, weight.shape[2:], padding):
            result.addmm_(met, weight[:, :, i, j].t())
        return _image(outputs)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, grad_output: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        inputs, weight = ctx.saved_tensors
        outputs = _pixels(grad_output)
        kernel = weight.shape[2:]
        grad_input = grad_weight = None
        if ctx.needs_input_grad[0]:
            grads = torch.zeros_like(inputs)
            for i, j, met, result in _taps(grads, outputs, kernel, ctx.padding):
                met.addmm_(result, weight[:, :, i, j])
            grad_input = _image(grads)
        if ctx.needs_input_grad[1]:
            # In channels_last, as the filters of a channels_last network.
            grad_weight = torch.zeros_like(weight, memory_format=torch.channels_last)
            for i, j, met, result in _taps(inputs, outputs, kernel, ctx.padding):
                grad_weight[:, :, i, j].addmm_(result.t(), met)
        return grad_input, grad_weight, None


def _pixels(image: Tensor) -> Tensor:
    """(N, C, H, W) -> (H, W, N, C), in which the pixels of a row are contiguous."""
    return image.permute(2, 3, 0, 1).contiguous()


def _image(pixels: Tensor) -> Tensor:
    """(H, W, N, C) -> (N, C, H, W) in channels_last."""
    return pixels.permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)


def _taps(
    inputs: Tensor, outputs: Tensor, kernel: torch.Size, padding: tuple[int, int]
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """The input and output pixels of each tap, without the padding.

    Yields:
        For each tap (i, j) of the kernel and each row of the image: i, j, the input pixels (M, C)
        that the tap reads and the output pixels (M, F) that it contributes to. Both are views.
    """
    heights, widths = zip(inputs.shape[:2], outputs.shape[:2], strict=True)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            down, right = i - padding[0], j - padding[1]
            columns = _met(right, *widths)
            for y in _met(down, *heights):
                met = inputs[y + down, columns.start + right : columns.stop + right]
                result = outputs[y, columns.start : columns.stop]
                yield i, j, met.flatten(0, 1), result.flatten(0, 1)


def _met(offset: int, inputs: int, outputs: int) -> range:
    """The output positions p whose input position, p + `offset`, is inside the image."""
    return range(max(0, -offset), max(0, -offset, min(outputs, inputs - offset)))
