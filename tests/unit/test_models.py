"""The architectures as variants: parameters, widths, and alphas they cannot be built with."""

import logging
import sys

import pytest
import torch
from torch import nn

from linearconv import LinearConv2d, RegularizedConv2d
from linearconv.complexity import count_parameters
from linearconv.engine.seeding import seeded
from linearconv.errors import UserError
from models import Variant, architecture, build_model, model_names, registry
from models.from_trained import start_from
from models.pruning import pruned
from models.registry import widths_of
from models.vgg11_basis import BasisConv2d, decompose
from models.vgg11_octconv import OctaveConv

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
        ("allconv", CONV, 1_369_738),
        ("allconv", L, 739_450),
        ("resnet18", CONV, 11_173_962),
        ("resnet18", L, 6_029_546),
        ("resnext29", L, 6_475_498),
        ("mobilenetv2", CONV, 2_296_922),
        ("mobilenetv2", L, 3_923_434),
        ("squeezenet", CONV, 729_226),
        ("vgg11_octconv", CONV, 9_233_802),
        ("vgg11_basis", CONV, 1_994_506),
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


NO_E = ("mobilenetv2", "efficientnet")  # their -Lr has more parameters than Conv
CONV_ALONE = ("vgg11_octconv", "vgg11_basis")
VARIANTS = {"Conv": CONV, "r": R, "e": E, "L": L, "LRr": LRR}
POSSIBLE = [
    (name, variant)
    for name in model_names()
    for variant in VARIANTS
    if not (variant == "e" and name in NO_E) and not (variant != "Conv" and name in CONV_ALONE)
]


@pytest.mark.parametrize(("name", "variant"), POSSIBLE)
@pytest.mark.parametrize(("in_channels", "classes"), [(3, 10), (1, 100)])
def test_forward_shape(name, variant, in_channels, classes):
    with torch.device("meta"):
        model = build_model(name, VARIANTS[variant], in_channels=in_channels, classes=classes)
    images = torch.empty(2, in_channels, 32, 32, device="meta")
    assert model(images).shape == (2, classes)


@pytest.mark.parametrize("name", ["allconv", "resnet18", "resnext29", "squeezenet"])
def test_uniform_e_comes_within_2_percent_and_keeps_groups(name):
    with torch.device("meta"):
        narrow, linear = (build_model(name, v, in_channels=3, classes=10) for v in (E, L))
    assert count_parameters(narrow) == pytest.approx(count_parameters(linear), rel=0.02)
    full, widths = architecture(name).widths, widths_of(name, E)
    factors = [w / f for w, f in zip(widths, full, strict=True)]
    assert max(factors) - min(factors) < 0.15 and max(factors) < 1
    assert all(w % architecture(name).multiple_of == 0 for w in widths)


def test_half_as_wide_has_a_quarter_of_the_parameters():
    half, whole = Variant(widths="x0.5"), Variant()
    assert widths_of("base", half) == [16, 32, 64, 128]
    few, many = (
        count_parameters(build_model("vgg11", v, in_channels=3, classes=10)) for v in (half, whole)
    )
    assert few == pytest.approx(many / 4, rel=0.01)
    assert widths_of("base", Variant(widths="x0.75")) == [24, 48, 96, 192]


def test_a_pair_computes_what_linearconv_does():
    """With the primary filters first, and then [I, A]^T; it has P^2 parameters more a layer."""
    linear, pair = (
        build_model("base", variant, in_channels=3, classes=10).eval()
        for variant in (L, Variant(pair=True))
    )
    names = {"primary": "0.weight", "coefficients": "1.weight", "bias": "1.bias"}
    state = {}
    for name, value in linear.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if kind == "coefficients":
            value = torch.cat([torch.eye(len(value)), value], dim=1).t()[:, :, None, None]
        state[f"{layer}.{names[kind] if layer.startswith('conv') else kind}"] = value
    pair.load_state_dict(state)
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(pair(images), linear(images), rtol=1e-4, atol=1e-4)
    more = sum(layer.primary.shape[0] ** 2 for layer in linear if isinstance(layer, LinearConv2d))
    assert count_parameters(pair) == count_parameters(linear) + more == 249_178


@pytest.mark.parametrize("name", NO_E)
def test_e_is_refused_where_lr_has_more_parameters(name):
    with pytest.raises(UserError, match="no variant=e.*no fewer than Conv"):
        build_model(name, E, in_channels=3, classes=10)


@pytest.mark.parametrize("name", CONV_ALONE)
@pytest.mark.parametrize("variant", ["r", "e", "L", "LRr"])
def test_comparison_systems_are_conv_alone(name, variant):
    with pytest.raises(UserError, match="only as variant=Conv:"):
        build_model(name, VARIANTS[variant], in_channels=3, classes=10)


@pytest.mark.parametrize("variant", [R, L])
def test_a_model_that_never_calls_conv_is_conv_alone(variant, monkeypatch):
    """Its runs would have the variant's name, and be those of the plain network."""

    def plain(conv, *, in_channels, classes):
        return nn.Conv2d(in_channels, classes, 32)

    monkeypatch.setattr(registry, "_MODELS", {})
    registry.register("plain")(plain)
    build_model("plain", Variant(), in_channels=3, classes=10)
    with pytest.raises(UserError, match="never calls `conv`"):
        build_model("plain", variant, in_channels=3, classes=10)


def test_what_the_paper_leaves_plain():
    allconv = build_model("allconv", L, in_channels=3, classes=10)
    assert type(allconv.class_conv) is nn.Conv2d and isinstance(allconv.conv8, LinearConv2d)
    squeezenet = build_model("squeezenet", LRR, in_channels=3, classes=10)
    linear = [n for n, m in squeezenet.named_modules() if isinstance(m, LinearConv2d)]
    assert "conv1" in linear and "fire8.expand3" in linear
    assert not any(n.startswith(("fire9", "class_conv")) for n in linear)


def test_octave_conv_is_its_four_paths():
    torch.manual_seed(0)
    octave = OctaveConv(nn.Conv2d, (4, 6), (8, 2)).double()
    high, low = torch.randn(2, 4, 8, 8).double(), torch.randn(2, 6, 4, 4).double()

    def path(conv, x):
        padded = torch.nn.functional.pad(x, [1] * 4)
        windows = padded.unfold(2, 3, 1).unfold(3, 3, 1)  # (N, C, H, W, 3, 3)
        return torch.einsum("nchwij,ocij->nohw", windows, conv.weight) + conv.bias.view(-1, 1, 1)

    pooled = high.view(2, 4, 4, 2, 4, 2).mean(dim=(3, 5))
    enlarged = path(octave.low_to_high, low).repeat_interleave(2, 2).repeat_interleave(2, 3)
    found_high, found_low = octave((high, low))
    torch.testing.assert_close(found_high, path(octave.high_to_high, high) + enlarged)
    expected_low = path(octave.high_to_low, pooled) + path(octave.low_to_low, low)
    torch.testing.assert_close(found_low, expected_low)


@pytest.mark.parametrize(("filters", "pieces"), [(32, 4), (128, 1)])
def test_a_complete_basis_equals_the_dense_convolution(filters, pieces):
    torch.manual_seed(0)
    dense = nn.Conv2d(128 * pieces, filters, 3, padding=1).double()
    basis = BasisConv2d(pieces).double()
    combination = nn.Conv2d(128 * pieces, filters, 1).double()
    decompose(dense, basis, combination)
    images = torch.randn(2, 128 * pieces, 5, 5).double()
    torch.testing.assert_close(combination(basis(images)), dense(images), rtol=0, atol=1e-10)


def test_a_truncated_basis_is_the_best_of_its_size():
    torch.manual_seed(0)
    dense, basis = nn.Conv2d(256, 256, 3, padding=1), BasisConv2d(2)
    combination = nn.Conv2d(256, 256, 1)
    decompose(dense, basis, combination)
    split = dense.weight.detach().double().reshape(512, 1152)
    coefficients = combination.weight.detach().double().reshape(512, 128)
    approximation = coefficients @ basis.weight.detach().double().reshape(128, 1152)
    singular = torch.linalg.svdvals(split)
    expected = singular[128:].square().sum().sqrt()
    torch.testing.assert_close((split - approximation).norm(), expected, rtol=1e-4, atol=0)


def test_basis_network_starts_from_its_baseline():
    baseline = build_model("vgg11", CONV, in_channels=3, classes=10)
    model = build_model("vgg11_basis", CONV, in_channels=3, classes=10)
    model.start_from(baseline)
    for name in ("conv1", "bn2", "bn8", "fc"):
        theirs = baseline.get_submodule(name).state_dict()
        mine = model.get_submodule(name).state_dict()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert torch.equal(model.conv5.bias, baseline.conv5.bias)


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
    assert "rank 10 is reduced" in caplog.text and "conv1 (4), conv2 (8)" in caplog.text


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
    with pytest.raises(UserError, match="allconv, base"):
        build_model("resnet", CONV, in_channels=3, classes=10)


@pytest.mark.parametrize(
    ("variant", "sums"),
    [
        (CONV, [5.316798, -0.422875, 12.623157, 0.257890, -8.654369]),
        (LRR, [0.121711, 2.941443, -0.501831, 1.628705, -0.844446, 16.762307, -1.793744, 0.237008]),
    ],
    ids=["Conv", "LRr"],
)
def test_pinned_initial_weights(variant, sums):
    """A run_id means these: what draws otherwise needs another revision of the model."""
    with seeded("init", 0):
        model = build_model("base", variant, in_channels=3, classes=10)
    drawn = [p for name, p in model.named_parameters() if not name.startswith("bn")]
    found = [p.double().sum().item() for p in drawn[: len(sums)]]
    assert found == pytest.approx(sums, abs=2e-6)


def test_variant_from_identity_ignores_what_does_not_apply():
    identity = {
        "revision": 1,
        "linear": False,
        "regularized": True,
        "alpha": None,
        "rank": None,
        "init": None,
        "widths": "model",
    }
    assert Variant.from_identity(identity) == R


@pytest.mark.parametrize(
    ("name", "widths"),
    [("base", "x0.7"), ("base", "matched"), ("resnet18", "x0.6"), ("mobilenetv2", "x0.75")],
)
def test_a_network_with_fewer_filters_starts_from_a_trained_one(name, widths):
    shape = {"in_channels": 3, "classes": 10}
    torch.manual_seed(0)
    variant = Variant(widths=widths)
    trained, model = (build_model(name, v, **shape) for v in (Variant(), variant))
    first = next(m for m in trained.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        first.weight[::2] *= 1e-3  # which are the first to go
    start_from(model, trained, name, variant, torch.randn(2, 3, 32, 32))
    kept = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).weight
    assert all((first.weight == each).flatten(1).all(dim=1).any() for each in kept)
    large = kept.flatten(1).norm(dim=1) > first.weight.flatten(1).norm(dim=1).median()
    assert large.sum() == min(len(kept), len(first.weight) // 2)


def test_without_torch_pruning_that_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    network = build_model("base", Variant(), in_channels=3, classes=10)
    with pytest.raises(ValueError, match="pip install torch-pruning"):
        pruned(network, torch.randn(2, 3, 32, 32), 0.5)


@pytest.mark.parametrize("variant", [Variant(linear=True), Variant(pair=True), Variant()])
@pytest.mark.parametrize("channels", [3, 1])  # of one channel: 16 filters of 9 values
def test_a_network_starts_from_a_trained_one(variant, channels):
    """Filters that are combinations of half of them are kept, so the outputs are equal."""
    shape = {"in_channels": channels, "classes": 10}
    torch.manual_seed(0)
    trained, model = (build_model("base", v, **shape) for v in (Variant(), variant))
    images = torch.randn(64, channels, 32, 32)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if name.startswith("conv") and name.endswith("weight"):
                half = len(parameter) // 2
                parameter[half:] = parameter[:half].flip(0) + parameter[:half]
        trained(images)  # moves the statistics of the batch norms
        start_from(model, trained, "base", variant, images)
        expected, found = (network.eval()(images) for network in (trained, model))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
