"""Weights of the layers that the paper's authors released (github.com/kkahatapitiya/LinearConv)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

NAMES = {
    "conv_weights": "primary",
    "linear_weights": "coefficients",
    "row_weights": "coefficients1",
    "column_weights": "coefficients2",
}
"""Parameters of their layers and of LinearConv2d; all but the first are transposed."""


def load_released(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the released layers as one of LinearConv2d layers with the same names.

    Their `linear_weights` (S, P) are A transposed, their `column_weights` (S, R) and
    `row_weights` (R, P) are A2 and A1. The `mask` (S, P) of their sparse layers is multiplied into
    the coefficients. What belongs to other modules is passed on unchanged.

    Args:
        state_dict: of a network with layers of theirs, or of one such layer.

    Raises:
        ValueError: it holds no parameter of such a layer.
    """
    converted = {}
    for key, tensor in state_dict.items():
        prefix, dot, name = key.rpartition(".")
        weights = state_dict.get(f"{prefix}{dot}linear_weights")
        if name == "mask" and weights is not None:
            continue
        mask = state_dict.get(f"{prefix}{dot}mask") if name == "linear_weights" else None
        if mask is not None:
            tensor = tensor * mask
        if name in NAMES and name != "conv_weights":
            tensor = tensor.t().contiguous()
        converted[f"{prefix}{dot}{NAMES.get(name, name)}"] = tensor
    if converted.keys() == state_dict.keys():
        raise ValueError(
            f"no parameter is named {', '.join(NAMES)}: not a state dict of the released layers"
        )
    return converted
