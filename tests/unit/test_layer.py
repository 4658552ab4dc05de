"""LinearConv2d as a module: arguments, parameters, and what users do with torch modules."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

from linearconv import LinearConv2d, correlation_loss, fuse, set_execution

EXECUTIONS = ("generate", "factored")


def layer(**kwargs) -> LinearConv2d:
    return LinearConv2d(6, 8, 3, padding=1, **({"dtype": torch.float64} | kwargs))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 6, 7, 7, dtype=torch.float64)


def test_parameters_have_the_documented_names_and_shapes():
    full = dict(LinearConv2d(6, 8, (3, 5), alpha=0.25, groups=2).named_parameters())
    assert {n: tuple(p.shape) for n, p in full.items()} == {
        "bias": (8,),
        "primary": (2, 3, 3, 5),
        "coefficients": (2, 6),
    }
    reduced = dict(LinearConv2d(6, 8, 3, bias=False, rank=3).named_parameters())
    assert {n: tuple(p.shape) for n, p in reduced.items()} == {
        "primary": (4, 6, 3, 3),
        "coefficients1": (4, 3),
        "coefficients2": (3, 4),
    }


def test_weight_is_primary_then_combinations_of_it():
    module = layer(rank=2)
    weight = module.weight
    assert weight.shape == (8, 6, 3, 3)
    assert torch.equal(weight[:4], module.primary)
    coefficients = (module.coefficients1 @ module.coefficients2).detach().numpy()
    flat = module.primary.detach().numpy().reshape(4, -1)
    torch.testing.assert_close(weight[4:].flatten(1), torch.from_numpy(coefficients.T @ flat))


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"alpha": 0.3}, "nearest valid: 0.25 and 0.375"),
        ({"alpha": 0.0}, "between 0 and 1"),
        ({"alpha": 1.0}, "between 0 and 1"),
        ({"alpha": float("nan")}, "between 0 and 1"),
        ({"rank": 5}, "between 1 and 4"),
        ({"rank": 0}, "between 1 and 4"),
        ({"rank": 2.5}, "whole number between 1 and 4"),
        ({"alpha": 0.75, "rank": 3}, "between 1 and 2"),
        ({"execution": "fused"}, "execution must be one of auto, generate, factored"),
        ({"init": "xavier"}, "init must be one of released, variance_preserving"),
        ({"execution": "factored", "groups": 2}, "needs groups=1"),
    ],
)
def test_wrong_arguments_are_named(kwargs, words):
    with pytest.raises(ValueError, match=words):
        layer(**kwargs)


def test_one_filter_cannot_be_split():
    with pytest.raises(ValueError, match="at least two filters"):
        LinearConv2d(3, 1, 3)


def test_every_alpha_of_table_2_is_accepted():
    for alpha in (0.125, 0.25, 0.5, 0.75, 0.875):
        assert LinearConv2d(3, 64, 3, alpha=alpha).primary.shape[0] == alpha * 64


def test_auto_depends_on_the_shape_alone():
    # S D - P S = 64 F at 132 channels, and with a rank S D - (P + S) R.
    assert LinearConv2d(132, 8, 1).resolved_execution == "factored"
    assert LinearConv2d(131, 8, 1).resolved_execution == "generate"
    assert LinearConv2d(132, 8, 1, groups=2).resolved_execution == "generate"
    assert LinearConv2d(130, 8, 1, rank=1).resolved_execution == "factored"
    assert LinearConv2d(129, 8, 1, rank=1).resolved_execution == "generate"


def test_set_execution_leaves_grouped_layers_generating():
    model = nn.Sequential(LinearConv2d(4, 8, 3), LinearConv2d(8, 8, 3, groups=2))
    set_execution(model, "factored")
    assert [m.resolved_execution for m in model] == ["factored", "generate"]
    with pytest.raises(ValueError, match="execution must be one of"):
        set_execution(model, "fast")


def test_released_initialisation():
    torch.manual_seed(0)
    module = LinearConv2d(64, 512, 3, rank=10)
    bound = (6 / (64 * 9 + 256 * 9)) ** 0.5  # Xavier, fan-out from the primary filters
    assert 0.98 * bound < module.primary.abs().max() <= bound
    for name in ("coefficients1", "coefficients2", "bias"):
        assert 0.09 < getattr(module, name).abs().max() <= 0.1


@pytest.mark.parametrize("rank", [None, 10])
def test_variance_preserving_initialisation_gives_every_filter_conv2d_variance(rank):
    torch.manual_seed(0)
    module = LinearConv2d(64, 512, 3, rank=rank, init="variance_preserving")
    expected = nn.Conv2d(64, 512, 3).weight.var()
    torch.testing.assert_close(module.primary.var(), expected, rtol=0.02, atol=0)
    torch.testing.assert_close(module.weight[256:].var(), expected, rtol=0.1, atol=0)
    bound = (64 * 9) ** -0.5  # of nn.Conv2d's bias
    assert 0.98 * bound < module.bias.abs().max() <= bound


def test_writing_to_weight_has_no_effect(images):
    module = layer()
    before = module(images)
    nn.init.kaiming_normal_(module.weight)
    assert torch.equal(module(images), before)
    with pytest.raises(AttributeError):
        module.weight = torch.zeros(8, 6, 3, 3)
    with pytest.raises(KeyError):
        module.weight = nn.Parameter(torch.zeros(8, 6, 3, 3))


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_gradcheck(execution, rank):
    module = LinearConv2d(2, 4, 2, rank=rank, execution=execution, dtype=torch.float64)
    images = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters()]

    def output(images, *parameters):
        values = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(module, values, (images,))

    assert torch.autograd.gradcheck(output, (images, *module.parameters()))


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_compile_in_one_graph(images, execution):
    module = layer(rank=3, execution=execution)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), module(images))


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("rank", [None, 3])
def test_export(images, execution, rank):
    module = layer(rank=rank, execution=execution).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(module, (images,), dynamic_shapes=({0: batch},))
    other = torch.randn(5, 6, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(exported.module()(other), module(other))


@pytest.mark.parametrize("rank", [None, 2])
def test_copies_compute_the_same_and_are_independent(images, rank):
    module = layer(rank=rank)
    expected = module(images)
    restored = LinearConv2d(6, 8, 3, padding=1, rank=rank, dtype=torch.float64)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    restored.load_state_dict(torch.load(buffer, weights_only=True))
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), restored]
    with torch.no_grad():
        module.primary.zero_()
    for other in copies:
        assert torch.equal(other(images), expected)


def test_fuse_is_a_plain_conv2d_with_the_same_outputs(images):
    for kwargs in ({}, {"rank": 2}, {"groups": 2}, {"bias": False}, {"padding_mode": "reflect"}):
        module = layer(**kwargs).eval()
        fused = module.fuse()
        assert type(fused) is nn.Conv2d and not fused.training
        torch.testing.assert_close(fused(images), module(images), rtol=0, atol=1e-14)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_fused_weight_is_stored_in_the_layer_s_order(order):
    for out_channels in (2, 8):  # of 2, one is primary
        layer = LinearConv2d(3, out_channels, 3).to(memory_format=order)
        assert layer.fuse().weight.is_contiguous(memory_format=order)


def test_fuse_draws_no_random_number():
    module = LinearConv2d(6, 8, 3)
    state = torch.get_rng_state()
    module.fuse()
    assert torch.equal(torch.get_rng_state(), state)


def test_fuse_model_keeps_the_original_and_shared_layers(images):
    shared = LinearConv2d(6, 6, 3, padding=1, dtype=torch.float64)
    nested = nn.ModuleDict({"a": nn.Sequential(shared), "b": shared})
    model = nn.Sequential(nested["a"], nested["b"], shared, layer())
    expected = model(images)
    fused = fuse(model)
    assert not any(isinstance(m, LinearConv2d) for m in fused.modules())
    assert fused[0][0] is fused[1] is fused[2]
    torch.testing.assert_close(fused(images), expected, rtol=0, atol=1e-13)
    assert isinstance(model[3], LinearConv2d)
    assert type(fuse(shared)) is nn.Conv2d


def test_from_conv2d_recovers_a_layer(images):
    for kwargs in ({}, {"rank": 2}, {"alpha": 0.75}, {"groups": 2, "alpha": 0.25}):
        module = layer(**kwargs)
        fused = module.fuse()
        choice = {key: kwargs[key] for key in ("alpha", "rank") if key in kwargs}
        again = LinearConv2d.from_conv2d(fused, **choice)
        torch.testing.assert_close(again(images), fused(images), rtol=0, atol=1e-10)


def test_from_conv2d_is_the_best_fit_of_its_rank():
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 16, 3, dtype=torch.float64)
    errors = [
        (LinearConv2d.from_conv2d(conv, rank=rank).weight - conv.weight).norm().item()
        for rank in (1, 2, 4, 8)
    ]
    full = (LinearConv2d.from_conv2d(conv).weight - conv.weight).norm().item()
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == pytest.approx(full)  # a rank that restricts nothing
    # No others come closer: the gradient of the squared error vanishes there.
    fit = LinearConv2d.from_conv2d(conv)
    (fit.weight - conv.weight.detach()).square().sum().backward()
    assert max(p.grad.abs().max() for p in (fit.primary, fit.coefficients)) < 1e-12


@pytest.mark.parametrize("kwargs", [{}, {"rank": 2}, {"groups": 2}])
def test_fx_traces_the_default_execution(images, kwargs):
    """And so torchvision's feature extractor, the fusing and the quantising by torch.fx."""
    for module in (layer(**kwargs), LinearConv2d(6, 8, 5, dtype=torch.float64, **kwargs)):
        torch.testing.assert_close(torch.fx.symbolic_trace(module)(images), module(images))


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("execution", ["generate", "factored"])
def test_an_ensemble_by_vmap(images, rank, execution):
    members = [layer(rank=rank, execution=execution) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(members)
    skeleton = copy.deepcopy(members[0]).to("meta")
    for given in (images, images.to(memory_format=torch.channels_last)):
        outputs = torch.func.vmap(
            lambda p, b, given=given: torch.func.functional_call(skeleton, (p, b), (given,))
        )(parameters, buffers)
        expected = torch.stack([member(given) for member in members])
        torch.testing.assert_close(outputs, expected)
    losses = torch.func.vmap(correlation_loss)(parameters["primary"])
    expected = torch.stack([correlation_loss(member.primary) for member in members])
    torch.testing.assert_close(losses, expected)


def test_unbatched_input_as_conv2d_takes_it(images):
    for execution in EXECUTIONS:
        module = layer(execution=execution)
        torch.testing.assert_close(module(images[0]), module(images)[0], rtol=0, atol=1e-14)


def test_autocast_generates_the_weight_in_full_precision():
    module = LinearConv2d(6, 8, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module.weight.dtype == torch.float32
        for execution in EXECUTIONS:
            module.execution = execution
            assert module(torch.randn(1, 6, 5, 5)).dtype == torch.bfloat16


def test_channels_last_is_kept():
    module = LinearConv2d(6, 8, 3).to(memory_format=torch.channels_last)
    images = torch.randn(2, 6, 7, 7).to(memory_format=torch.channels_last)
    for execution in EXECUTIONS:
        module.execution = execution
        assert module(images).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "arguments",
    [{"in_channels": 6, "kernel_size": 1}, {"in_channels": 1}, {"in_channels": 8, "groups": 8}],
    ids=["1x1", "one channel", "depthwise"],
)
def test_row_major_is_kept_where_filters_are_stored_alike_in_both_formats(arguments):
    arguments = {"kernel_size": 3, "out_channels": 8} | arguments
    conv = nn.Conv2d(**arguments)
    images = torch.randn(2, arguments["in_channels"], 7, 7)
    for module in (LinearConv2d(**arguments), LinearConv2d.from_conv2d(conv)):
        assert module.primary.stride() == conv.weight[:4].stride()
        for execution in EXECUTIONS if conv.groups == 1 else ("generate",):
            module.execution = execution
            assert module(images).stride() == conv(images).stride()
        assert module.fuse()(images).stride() == conv(images).stride()


def test_channels_last_is_kept_by_1x1_filters():
    module = LinearConv2d(6, 8, 1).to(memory_format=torch.channels_last)
    images = torch.randn(2, 6, 7, 7).to(memory_format=torch.channels_last)
    for execution in EXECUTIONS:
        module.execution = execution
        assert (
            module(images).stride()
            == images[:, :1]
            .expand(2, 8, 7, 7)
            .contiguous(memory_format=torch.channels_last)
            .stride()
        )


def test_meta_device(images):
    for execution in EXECUTIONS:
        module = layer(execution=execution, device="meta")
        assert module(images.to("meta")).shape == (2, 8, 7, 7)


def test_repr_names_what_was_chosen():
    text = repr(LinearConv2d(60, 8, 3, alpha=0.25, rank=2))
    assert "alpha=0.25, rank=2, factored" in text


def test_no_warning_on_construction():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LinearConv2d(6, 8, 3, rank=2)


@pytest.mark.parametrize("rank", [None, 2])
def test_generated_weights_have_their_gradients_in_full_precision(rank):
    """With backward() within autocast, too."""
    layer = LinearConv2d(3, 8, 3, rank=rank, execution="generate")
    target = torch.randn_like(layer.weight)

    def gradients():
        return torch.autograd.grad((layer.weight * target).sum(), [layer.primary, *layer.factors])

    expected = gradients()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("how", ["plain", "weight_norm", "own"])
def test_fusing_keeps_what_is_trained(how, trained):
    """A parametrised layer is trained if its parameters are; a frozen one stays frozen."""
    layer = LinearConv2d(3, 8, 3)
    if how == "weight_norm":
        nn.utils.parametrizations.weight_norm(layer, "primary")
    elif how == "own":
        nn.utils.parametrize.register_parametrization(layer, "primary", nn.Tanh())
    layer.requires_grad_(trained)
    images = torch.randn(2, 3, 8, 8)
    outputs = layer(images)
    fused = layer.fuse()
    assert {p.requires_grad for p in fused.parameters()} == {trained}
    torch.testing.assert_close(fused(images), outputs, rtol=1e-4, atol=1e-5)
