"""Batch norms count their batches once an epoch, instead of each of them in every step.

The count (`num_batches_tracked`) is part of the weights and changes no output. It is the same if
each norm that is in training mode is called once in a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linearconv.engine.fast.rewriting import replaced


def batches_uncounted(model: nn.Module) -> AbstractContextManager[None]:
    """Temporarily leave the counting to `count_batches`."""
    return replaced("forward", _forward, _norms(model))


@torch.no_grad()
def count_batches(model: nn.Module, batches: int) -> None:
    """Add a number of batches to the count of every norm that `batches_uncounted` changes."""
    for norm in _norms(model):
        if norm.training:
            norm.num_batches_tracked.add_(batches)


def _norms(model: nn.Module) -> Iterator[nn.BatchNorm2d]:
    """The batch norms whose running means do not depend on the count."""
    for module in model.modules():
        if (
            type(module) is nn.BatchNorm2d
            and module.track_running_stats
            and module.momentum
            and getattr(module.forward, "__func__", None) in (nn.BatchNorm2d.forward, _forward)
        ):
            yield module


def _forward(self: nn.BatchNorm2d, input: Tensor) -> Tensor:
    """`nn.BatchNorm2d.forward` without the count."""
    return F.batch_norm(
        input,
        self.running_mean,
        self.running_var,
        self.weight,
        self.bias,
        self.training,
        self.momentum,
        self.eps,
    )
