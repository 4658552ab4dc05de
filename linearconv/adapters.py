"""Subclasses of torch.nn.Conv2d that pad their input and then are what torch.nn.Conv2d is.

`convert` takes those that are registered here: timm's `Conv2dSame`, the `Conv2dStaticSamePadding`
of the EfficientNet packages, and others by one line,

    adapters.register(MyConv2d, lambda conv, images: F.pad(images, conv.my_padding))
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from linearconv.layer import LinearConv2d
from linearconv.stand_in import conv_arguments

Pad = Callable[[nn.Conv2d, Tensor], Tensor]
"""(convolution, its input) -> what is convolved, without further padding."""


class Padding(nn.Module):
    """The padding of a convolution that has been replaced.

    Args:
        conv: the convolution.
        pad: its padding.
    """

    def __init__(self, conv: nn.Conv2d, pad: Pad) -> None:
        super().__init__()
        for name, module in conv.named_children():  # a padding that is a module
            setattr(self, name, module)
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self._pad = pad

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H + ..., W + ...)."""
        return self._pad(self, images)


class PaddedConv2d(nn.Conv2d):
    """A convolution behind a `Padding`; its state dict is that of the class it stands for."""

    def forward(self, input: Tensor) -> Tensor:
        """The convolution of the padded input."""
        return super().forward(self.pad(input))


class PaddedLinearConv2d(LinearConv2d):
    """A LinearConv2d behind a `Padding`."""

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output for the padded input."""
        return super().forward(self.pad(input))

    def fuse(self) -> nn.Conv2d:
        """As `LinearConv2d.fuse`; the result pads, too."""
        fused = super().fuse()
        fused.__class__, fused.pad = PaddedConv2d, self.pad
        return fused


def register(kind: type[nn.Conv2d] | str, pad: Pad) -> None:
    """Let `convert` take the convolutions of a class.

    Args:
        kind: the class, or its module and name; subclasses are not meant.
        pad: a function at the top of a module (so that models can be pickled) that gets the
            convolution, or what has its kernel_size, stride, dilation and modules, and its input,
            and returns what is convolved.
    """
    _pads[kind if isinstance(kind, str) else _name(kind)] = pad


def padding_of(conv: nn.Module) -> Pad | None:
    """The registered padding of a convolution's class, or None."""
    return _pads.get(_name(type(conv)))


def unpadded(conv: nn.Conv2d) -> nn.Conv2d:
    """A torch.nn.Conv2d with a convolution's parameters that expects its input padded."""
    inputs, outputs, kernel_size, stride, _, dilation, groups, bias, _ = conv_arguments(conv)
    shape = {"stride": stride, "dilation": dilation, "groups": groups, "bias": bias}
    plain = nn.Conv2d(inputs, outputs, kernel_size, **shape, device="meta")
    plain.weight, plain.bias = conv.weight, conv.bias
    return plain.train(conv.training)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _pad_same(conv: nn.Conv2d, images: Tensor) -> Tensor:
    """As many zeros as give ceil(size / stride) outputs, an odd one at the end (TensorFlow)."""
    zeros: list[int] = []
    for axis in (-1, -2):  # the last one first, as F.pad expects
        size, kernel = images.shape[axis], conv.kernel_size[axis]
        stride, dilation = conv.stride[axis], conv.dilation[axis]
        missing = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        zeros += [missing // 2, missing - missing // 2]
    return F.pad(images, zeros)


def _pad_by_module(conv: nn.Conv2d, images: Tensor) -> Tensor:
    return conv.static_padding(images)


_pads: dict[str, Pad] = {
    "timm.layers.conv2d_same.Conv2dSame": _pad_same,
    "efficientnet_lite_pytorch.utils.Conv2dStaticSamePadding": _pad_by_module,
    "efficientnet_pytorch.utils.Conv2dStaticSamePadding": _pad_by_module,
}
