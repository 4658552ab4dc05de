"""The layers that the authors released, computed from their definition in float64 NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from linearconv import LinearConv2d, load_released


def released_weight(state: dict[str, torch.Tensor], prefix: str) -> np.ndarray:
    """Secondary filters are (linear or column times row) weights times the flattened filters."""
    values = {k[len(prefix) :]: v.numpy() for k, v in state.items() if k.startswith(prefix)}
    filters = values["conv_weights"]
    if "linear_weights" in values:
        combination = values["linear_weights"] * values.get("mask", 1.0)
    else:
        combination = np.einsum("sr,rp->sp", values["column_weights"], values["row_weights"])
    secondary = np.einsum("sp,pcij->scij", combination, filters)
    return np.concatenate([filters, secondary])


@pytest.fixture
def state():
    random = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64)

    return {
        "0.conv_weights": draw(4, 3, 3, 3),
        "0.linear_weights": draw(6, 4),
        "0.bias": draw(10),
        "1.weight": draw(10),
        "2.conv_weights": draw(4, 10, 3, 3),
        "2.column_weights": draw(4, 2),
        "2.row_weights": draw(2, 4),
        "3.conv_weights": draw(4, 8, 3, 3),
        "3.linear_weights": draw(4, 4),
        "3.mask": (draw(4, 4) > 0).double(),
    }


def test_our_layers_compute_what_theirs_do(state):
    model = nn.Sequential(
        LinearConv2d(3, 10, 3, alpha=0.4),
        nn.BatchNorm2d(10, track_running_stats=False),
        LinearConv2d(10, 8, 3, rank=2, bias=False),
        LinearConv2d(8, 8, 3, bias=False),
    ).double()
    ours = load_released(state | {"1.bias": torch.zeros(10)})
    model.load_state_dict(ours)
    images = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    expected = images
    for name, module in model.named_children():
        if isinstance(module, LinearConv2d):
            weight = torch.from_numpy(released_weight(state, f"{name}."))
            expected = nn.functional.conv2d(expected, weight, state.get(f"{name}.bias"))
        else:
            expected = module(expected)
    torch.testing.assert_close(model(images), expected)


def test_a_single_layer(state):
    alone = {key[2:]: value for key, value in state.items() if key.startswith("0.")}
    assert sorted(load_released(alone)) == ["bias", "coefficients", "primary"]


def test_other_state_dicts_are_refused():
    with pytest.raises(ValueError, match="conv_weights, linear_weights"):
        load_released(nn.Conv2d(3, 4, 3).state_dict())
