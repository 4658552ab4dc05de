"""The architectures as variants: parameters, widths, and alphas they cannot be built with."""

import logging

import pytest
import torch
from torch import nn

from linearconv import LinearConv2d, RegularizedConv2d
from linearconv.complexity import count_parameters
from linearconv.errors import UserError
from models import Variant, build_model, model_names

CONV, R, E = Variant(), Variant(regularized=True), Variant(widths="matched")
L, LRR = Variant(linear=True), Variant(linear=True, regularized=True, rank=10)


@pytest.mark.parametrize(
    ("name", "variant", "parameters"),
    [
        ("base", CONV, 399_626),
        ("base", R, 399_626),
        ("base", E, 223_759),
        ("base", L, 227_418),
        ("base", LRR, 210_458),
        ("vgg11", CONV, 9_231_114),
        ("vgg11", R, 9_231_114),
        ("vgg11", E, 4_928_308),
        ("vgg11", L, 4_922_282),
        ("vgg11", LRR, 4_649_770),
    ],
)
def test_parameters(name, variant, parameters):
    model = build_model(name, variant, in_channels=3, classes=10)
    assert count_parameters(model) == parameters


@pytest.mark.parametrize(
    ("alpha", "millions"), [(0.125, 1.30), (0.25, 2.54), (0.5, 4.92), (0.75, 7.15), (0.875, 8.21)]
)
def test_parameters_of_table_2(alpha, millions):
    model = build_model("vgg11", Variant(linear=True, alpha=alpha), in_channels=3, classes=10)
    assert round(count_parameters(model) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("in_channels", "classes", "parameters"), [(3, 100, 9_277_284), (1, 10, 9_229_962)]
)
def test_other_inputs_and_classes(in_channels, classes, parameters):
    model = build_model("vgg11", CONV, in_channels=in_channels, classes=classes)
    assert count_parameters(model) == parameters


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize("variant", [CONV, R, E, L, LRR], ids=["Conv", "r", "e", "L", "LRr"])
@pytest.mark.parametrize(("in_channels", "classes"), [(3, 10), (1, 100)])
def test_forward_shape(name, variant, in_channels, classes):
    model = build_model(name, variant, in_channels=in_channels, classes=classes)
    assert model(torch.randn(2, in_channels, 32, 32)).shape == (2, classes)


def test_variants_are_made_of_their_layers():
    kinds = {CONV: nn.Conv2d, R: RegularizedConv2d, E: nn.Conv2d, LRR: LinearConv2d}
    for variant, kind in kinds.items():
        model = build_model("base", variant, in_channels=3, classes=10)
        convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        assert len(convs) == 4 and all(type(m) is kind for m in convs)


def test_a_rank_above_the_layer_is_cut_and_said(caplog):
    caplog.set_level(logging.INFO)
    model = build_model(
        "base", Variant(linear=True, alpha=0.125, rank=10), in_channels=3, classes=10
    )
    assert [model.conv1.rank, model.conv2.rank, model.conv3.rank] == [4, 8, 10]
    assert "rank 10 is cut" in caplog.text and "conv1, conv2" in caplog.text


@pytest.mark.parametrize("widths", ["model", "matched"])
def test_alpha_that_does_not_split_a_layer(widths):
    variant = Variant(linear=widths == "model", alpha=0.3, widths=widths)
    with pytest.raises(UserError) as error:
        build_model("base", variant, in_channels=3, classes=10)
    assert "layer 'conv1'" in str(error.value)
    assert "nearest valid: 0.28125 and 0.3125" in str(error.value)


def test_nearest_alphas_hold_for_all_layers():
    for alpha in (0.28125, 0.3125):
        build_model("base", Variant(linear=True, alpha=alpha), in_channels=3, classes=10)


def test_unknown_model_lists_the_choices():
    with pytest.raises(UserError, match="base, vgg11"):
        build_model("resnet", CONV, in_channels=3, classes=10)


def test_variant_from_science_ignores_what_does_not_apply():
    science = {
        "revision": 1,
        "linear": False,
        "regularized": True,
        "alpha": None,
        "rank": None,
        "init": None,
        "widths": "model",
    }
    assert Variant.from_science(science) == R
