"""Memory layout of tensors, and reuse of freed memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from torch import Tensor, nn

ONEDNN_BLOCK = 16
"""Input channels that oneDNN's 1x1 kernels handle at once: 8 with AVX2, 16 with AVX-512."""


def unsafe_channels_last(model: nn.Module) -> list[str]:
    """Names of the convolutions that cannot be trained in channels_last on a CPU.

    For 1x1 filters with a stride and fewer input channels than a block, oneDNN's kernel for the
    gradient of the weights writes past its workspace (uxlfoundation/oneDNN, issue 6035): training
    then hangs or computes a wrong gradient.
    """
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels // module.groups < ONEDNN_BLOCK
    ]


@contextmanager
def row_major_images(model: nn.Module) -> Iterator[None]:
    """Temporarily convert a model's input images to row-major layout."""
    handle = model.register_forward_pre_hook(lambda module, inputs: tuple(map(_row_major, inputs)))
    try:
        yield
    finally:
        handle.remove()


def _row_major(images: Tensor) -> Tensor:
    # The view also resets the strides of dimensions of size 1, from which torch infers the layout.
    return images.contiguous().flatten().view(images.shape)


def keep_freed_memory(keep: bool = True) -> None:
    """Let the C library keep freed memory for the next step instead of returning it.

    Otherwise, on a CPU, activations of a few MB are returned to the system within each training
    step and their pages are faulted in again in the next. Has no effect if the C library is not
    glibc; does not affect results.

    Args:
        keep: False restores the thresholds to which glibc adapts for large blocks.
    """
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # M_TRIM_THRESHOLD, ... of malloc.h
    mib = 2**20
    if keep:
        options = {mmap_max: 0, trim_threshold: 2**31 - 1}
    else:
        options = {mmap_max: 65536, mmap_threshold: 32 * mib, trim_threshold: 64 * mib}
    with suppress(OSError, AttributeError, TypeError):  # no such C library
        libc = ctypes.CDLL(None)
        for option, value in options.items():
            libc.mallopt(option, value)
