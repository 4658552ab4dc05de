"""`convert` and `fuse` on networks that are not ours."""

import copy
import io
import pickle

import onnxruntime
import pytest
import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, prune

from linearconv import (
    LinearConv2d,
    RegularizedConv2d,
    convert,
    correlation_loss,
    deploy,
    fuse,
    model_correlation_loss,
    set_execution,
)


class Standardised(nn.Conv2d):
    """As timm's StdConv2d: the convolution is not with its weight."""

    def forward(self, input):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(input, weight, self.bias)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding="same", padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=4, bias=False),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 16, 5, padding=4, dilation=2, groups=16),
        nn.Conv2d(16, 9, 1),
        nn.ConvTranspose2d(9, 4, 2),
        nn.Conv2d(4, 12, 1, bias=False),
        Standardised(12, 8, 3),
        RegularizedConv2d(8, 8, 3),
    )


@pytest.fixture
def images():
    return torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def layer_named(report, name):
    return next(layer for layer in report.layers if layer.name == name)


def test_what_is_converted_and_why_not(images):
    model = network()
    report = convert(model)
    assert report.model is model
    kinds = {name: type(module).__name__ for name, module in model.named_children()}
    assert [name for name, kind in kinds.items() if kind == "LinearConv2d"] == ["0", "2", "4", "9"]
    reasons = {layer.name: layer.skipped for layer in report.layers if layer.skipped}
    assert "does not split 9 filters" in reasons["5"]
    assert reasons["6"] == "ConvTranspose2d is not a torch.nn.Conv2d"
    assert reasons["7"] == "12 parameters more"
    assert reasons["8"] == "is a subclass, Standardised, whose output may be something else"
    for name, module in model.named_children():
        if isinstance(module, nn.Conv2d):
            count = sum(p.numel() for p in module.parameters())
            assert layer_named(report, name).parameters_after == count
    model(images).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_converting_twice_changes_nothing():
    model = network()
    convert(model)
    modules = list(model.modules())
    again = convert(model)
    assert list(model.modules()) == modules
    assert {layer.skipped for layer in again.layers} >= {"is a LinearConv2d"}
    assert all(layer.skipped for layer in again.layers)


def test_the_report_says_where_the_weights_come_from():
    fitted = convert(nn.Conv2d(16, 16, 3), warm_start=True)
    assert str(fitted).endswith("weights of the converted layers: fitted to those they replace")
    assert "weights of" not in str(convert(nn.Sequential(nn.Linear(2, 2))))


def test_the_initialisation_can_be_chosen():
    torch.manual_seed(0)
    layers = [
        convert(nn.Conv2d(64, 64, 3), rank=4, init=init).model
        for init in ("released", "variance_preserving")
    ]
    secondary = [layer.weight[32:].std() for layer in layers]
    assert 5 * secondary[0] < secondary[1]
    model = nn.Sequential(nn.Conv2d(4, 4, 3))
    with pytest.raises(ValueError, match="init must be one of released, variance_preserving"):
        convert(model, init="kaiming")
    assert type(model[0]) is nn.Conv2d


def test_the_report_is_a_table_and_rows():
    report = convert(nn.Sequential(nn.Conv2d(16, 16, 3), nn.Conv2d(3, 5, 1)), rank=100)
    lines = str(report).splitlines()
    assert lines[0].split() == ["layer", "weight", "before", "after"]
    assert lines[1].split()[:6] == ["0", "16x16x3x3", "2,320", "1,296", "rank", "8"]
    assert lines[1].endswith("(the full coefficients are no more)")  # 64, of two factors 128
    same = convert(nn.Conv2d(3, 16, 3), rank=4)  # 8 * 8 = (8 + 8) * 4
    assert same.layers[0].saved_by_rank == 0 and "are no more" in str(same)
    assert "skipped: alpha=0.5 does not split 5 filters" in lines[2]
    assert lines[3].startswith("1 of 2 converted") and lines[3].endswith("% fewer parameters")
    assert lines[4].startswith("weights of the converted layers: new, those they replace are lost")
    first, second = report.rows()
    assert (first["rank"], first["shape"], first["skipped"]) == (8, (16, 16, 3, 3), None)
    assert second["parameters_after"] == second["parameters_before"] == 20


def test_everything_else_is_kept():
    conv = nn.Conv2d(8, 16, 3, dtype=torch.float64).to(memory_format=torch.channels_last)
    conv.weight.requires_grad_(False)
    model, seen = nn.Sequential(conv, nn.ReLU()).eval(), []
    handle = conv.register_forward_hook(lambda *_: seen.append(1))
    convert(model, warm_start=True)
    layer = model[0]
    assert isinstance(layer, LinearConv2d) and not layer.training
    assert layer.primary.dtype == torch.float64
    assert layer.primary.is_contiguous(memory_format=torch.channels_last)
    trainable = {name for name, p in layer.named_parameters() if p.requires_grad}
    assert trainable == {"bias"}
    model(torch.randn(1, 8, 5, 5, dtype=torch.float64))
    handle.remove()
    model(torch.randn(1, 8, 5, 5, dtype=torch.float64))
    assert seen == [1]


def test_all_kinds_of_hooks_are_kept():
    seen = []
    conv = nn.Conv2d(8, 16, 3)
    conv.register_forward_pre_hook(lambda *_: seen.append("before"), with_kwargs=True)
    conv.register_full_backward_hook(lambda *_: seen.append("backward"))
    report = convert(nn.Sequential(conv))
    for model in (report.model, fuse(report.model)):
        seen.clear()
        model(torch.randn(1, 8, 5, 5, requires_grad=True)).sum().backward()
        assert seen == ["before", "backward"]


def test_a_shared_convolution_stays_shared():
    conv = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.ModuleDict({"a": nn.Sequential(conv), "b": conv})
    report = convert(model)
    assert model["a"][0] is model["b"] and isinstance(model["b"], LinearConv2d)
    assert [layer.name for layer in report.layers] == ["a.0"]
    assert convert(nn.ModuleDict({"a": conv, "b": conv}), skip="b").layers[0].skipped


def test_a_copy_and_a_bare_convolution():
    model = network()
    report = convert(model, inplace=False)
    assert report.model is not model and type(model[0]) is nn.Conv2d
    assert isinstance(report.model[0], LinearConv2d)
    assert isinstance(convert(nn.Conv2d(8, 8, 3)).model, LinearConv2d)


@pytest.mark.parametrize("skip", ["0", ["0", "4"], "[04]", "stem", ("stem.*",)])
def test_skip_takes_names_and_patterns(skip):
    model = nn.Sequential(*network())
    model.add_module("stem", nn.Sequential(nn.Conv2d(8, 8, 3)))
    report = convert(model, skip=skip)
    skipped = {layer.name for layer in report.layers if layer.skipped == "as requested"}
    names = [skip] if isinstance(skip, str) else skip
    expected = {"[04]": {"0", "4"}, "stem": {"stem.0"}, "stem.*": {"stem.0"}}
    assert skipped == set().union(*(expected.get(name, {name}) for name in names))


def test_more_parameters_only_if_asked_for():
    conv = nn.Conv2d(4, 64, 1)
    assert convert(nn.Sequential(conv)).layers[0].skipped == "896 parameters more"
    assert convert(nn.Sequential(nn.Conv2d(8, 16, 1))).layers[0].skipped == "as many parameters"
    report = convert(nn.Sequential(conv), min_reduction=False)
    assert report.layers[0].parameters_after > report.layers[0].parameters_before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"alpha": 1.0}, "alpha must be between 0 and 1"),
        ({"rank": 0}, "rank must be a whole number"),
        ({"rank": 2.5}, "rank must be a whole number"),
        ({"skip": ""}, "skip='' matches no module"),
        ({"skip": "stem"}, "skip='stem' matches no module; convolutions: 0, 2, 4"),
    ],
)
def test_mistakes_are_named_before_anything_is_changed(arguments, words):
    model = network()
    with pytest.raises(ValueError, match=words):
        convert(model, **arguments)
    assert type(model[0]) is nn.Conv2d


def test_a_weight_that_is_not_finite_changes_nothing():
    model = network()
    with torch.no_grad():
        model[4].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        convert(model, warm_start=True)
    assert type(model[0]) is nn.Conv2d


def test_lazy_convolutions_are_refused():
    with pytest.raises(ValueError, match="'0' has no shape yet"):
        convert(nn.Sequential(nn.LazyConv2d(8, 3)))


def test_pruned_and_normed_convolutions_are_left_alone():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    prune.l1_unstructured(model[0], "weight", 0.5)
    parametrizations.weight_norm(model[1], "weight")
    reasons = [layer.skipped for layer in convert(model).layers]
    assert reasons[2] is None
    assert "parameters, buffers or modules of its own" in reasons[0]
    assert "of its own" in reasons[1]
    prune.remove(model[0], "weight")
    prune.l1_unstructured(model[0], "bias", 0.5)
    assert "of its own" in convert(model).layers[0].skipped


@pytest.mark.parametrize("warm_start", [False, True])
def test_alpha_is_the_share_of_primary_filters(warm_start):
    (layer,) = convert(nn.Sequential(nn.Conv2d(3, 16, 3)), alpha=0.25, warm_start=warm_start).model
    assert layer.primary.shape == (4, 3, 3, 3) and layer.coefficients.numel() == 4 * 12


def test_the_error_of_a_warm_start_is_relative_to_the_weight():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3)
    weight = conv.weight.detach().clone().mul_(7)
    conv.weight.data.copy_(weight)
    report = convert(nn.Sequential(conv), warm_start=True)
    missed = report.model[0].weight.detach() - weight
    assert report.layers[0].error == pytest.approx((missed.norm() / weight.norm()).item())
    assert 0.1 < report.layers[0].error < 1
    assert convert(nn.Sequential(nn.Conv2d(8, 8, 3))).layers[0].error is None


@pytest.mark.parametrize("by", ["parameter", "data"])
def test_tied_weights_stay_tied(by):
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    if by == "parameter":
        model[1].weight = model[0].weight
    else:
        model[1].weight.data = model[0].weight.data
    first, second = convert(model).layers
    assert first.skipped == "shares parameters with 1"
    assert second.skipped == "shares parameters with 0"
    assert model[1].weight.data_ptr() == model[0].weight.data_ptr()


def test_weights_without_data_are_not_taken_as_tied():
    with torch.device("meta"):  # where all addresses are zero
        apart = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    assert all(layer.skipped is None for layer in convert(apart).layers)


def test_parameters_without_memory_are_left_alone():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.LazyLinear(3))
    model.table = nn.Parameter(torch.eye(3).to_sparse())
    assert convert(model).layers[0].skipped is None


def test_a_traced_part_is_left_as_it_is():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), torch.jit.trace(nn.ReLU(), torch.ones(1)))
    convert(model)
    assert type(fuse(model)[0]) is nn.Conv2d


@pytest.mark.parametrize("trainable", [True, False])
def test_fuse_keeps_requires_grad(trainable):
    layer = LinearConv2d(3, 8, 3).requires_grad_(trainable)
    assert all(p.requires_grad == trainable for p in layer.fuse().parameters())


@pytest.mark.parametrize("wrap", [torch.compile, checkpoint_wrapper])
def test_a_wrapped_layer_counts_once_in_the_loss(wrap):
    layer = LinearConv2d(8, 8, 3)
    model = nn.Sequential(wrap(layer))
    assert model_correlation_loss(model).item() == pytest.approx(
        correlation_loss(layer.primary).item()
    )


def in_place(layer):
    layer.compile(backend="eager")
    return layer


@pytest.mark.parametrize("compiled", [torch.compile, in_place])
def test_a_compiled_layer_is_refused_and_the_cure_named(compiled):
    for change, layer in ((fuse, LinearConv2d(8, 8, 3)), (convert, nn.Conv2d(8, 8, 3))):
        with pytest.raises(ValueError, match=r"layer '0.*compile the result"):
            change(nn.Sequential(compiled(layer)))


def test_a_network_that_was_compiled_as_a_whole_runs_the_new_layers():
    model = torch.compile(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), backend="eager")
    images = torch.randn(1, 3, 5, 5)
    before = model(images)
    convert(model)
    after = model(images)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(fuse(model)(images), after)


def test_a_checkpointed_layer_is_fused():
    model = nn.Sequential(checkpoint_wrapper(LinearConv2d(3, 8, 3)))
    images = torch.randn(1, 3, 5, 5)
    fused = fuse(model)
    assert not any(isinstance(m, LinearConv2d) for m in fused.modules())
    torch.testing.assert_close(fused(images), model(images))


def test_pruned_coefficients_are_refused_and_the_cure_named():
    layer = LinearConv2d(8, 8, 3)
    prune.l1_unstructured(layer, "coefficients", 0.5)
    images = torch.randn(1, 8, 5, 5)
    expected = layer(images)
    with pytest.raises(ValueError, match=r"prune.remove\(layer, 'coefficients'\)"):
        fuse(nn.Sequential(layer))
    prune.remove(layer, "coefficients")
    torch.testing.assert_close(fuse(layer)(images), expected)


def test_parametrised_filters_are_fused():
    layer = LinearConv2d(8, 8, 3)
    parametrizations.spectral_norm(layer, "primary")
    layer.eval()
    images = torch.randn(1, 8, 5, 5)
    fused = fuse(nn.Sequential(layer))
    assert type(fused[0]) is nn.Conv2d
    torch.testing.assert_close(fused(images), layer(images))


def test_a_fused_network_can_be_scripted(images):
    model = network().eval()
    convert(model)
    fused = fuse(model)
    torch.testing.assert_close(torch.jit.script(fused)(images), fused(images))


def test_fuse_keeps_hooks():
    seen = []
    layer = LinearConv2d(8, 8, 3)
    layer.register_forward_hook(lambda *_: seen.append(1))
    fuse(nn.Sequential(layer))(torch.randn(1, 8, 5, 5))
    fused = layer.fuse()
    fused.register_forward_hook(lambda *_: seen.append(2))
    layer(torch.randn(1, 8, 5, 5))
    assert seen == [1, 1]


def test_batch_norms_fold_into_a_fused_network(images):
    model = network().eval()
    convert(model, warm_start=True)
    expected = model(images)
    fused = fuse(model)
    folded = torch.ao.quantization.fuse_modules(fused, [["2", "3"]])
    torch.testing.assert_close(folded(images), expected, rtol=1e-5, atol=1e-5)


def test_a_converted_model_copies_pickles_and_reloads(images):
    model = network()
    with torch.no_grad():  # the last half spans best, so that outputs are permuted
        model[0].weight[:8] *= 1e-3
    convert(model, warm_start=True)
    assert sorted(model[0].permutation.tolist()) == list(range(16))
    model.eval()
    expected = model(images)
    fresh = network().eval()
    convert(fresh)
    fresh.load_state_dict(model.state_dict())
    for other in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(images), expected, rtol=0, atol=0)
    unpermuted = network().eval()
    convert(unpermuted)
    model.load_state_dict(unpermuted.state_dict())
    torch.testing.assert_close(model(images), unpermuted(images), rtol=0, atol=0)


def permuted() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(3, 16, 3))
    with torch.no_grad():
        model[0].weight[:8] *= 1e-3
    convert(model, warm_start=True)
    assert model[0].permutation is not None
    return model


def test_loading_parameters_alone_keeps_the_order_of_outputs(images):
    model = permuted()
    expected, parameters = model(images), dict(model.named_parameters())
    assert not model.load_state_dict(parameters, strict=False).unexpected_keys
    assert torch.equal(model(images), expected)
    with pytest.raises(RuntimeError, match="primary_outputs"):
        model.load_state_dict(parameters)
    filtered = model.state_dict()  # which keeps its metadata
    del filtered["0.primary_outputs"]
    with pytest.raises(RuntimeError, match="primary_outputs"):
        model.load_state_dict(filtered)
    model.load_state_dict(filtered, strict=False)
    assert torch.equal(model(images), expected)


def test_an_older_state_dict_does_not_say_whether_the_outputs_are_permuted(images):
    model, plain = permuted(), nn.Sequential(LinearConv2d(3, 16, 3))
    state = plain.state_dict()
    del state._metadata["0"]["permuted"]
    model.load_state_dict(state)
    assert torch.equal(model(images), plain(images))


@pytest.mark.parametrize("execution", ["generate", "factored"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_older_onnx_exporter_writes_the_order_of_outputs(images, execution):
    model = permuted().eval()
    set_execution(model, execution)
    file = io.BytesIO()
    torch.onnx.export(model, (images,), file, dynamo=False)
    session = onnxruntime.InferenceSession(file.getvalue())
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(images), rtol=1e-4, atol=1e-5)


def test_a_pruned_layer_loads_another_order_of_outputs(images):
    model, plain = permuted(), nn.Sequential(LinearConv2d(3, 16, 3))
    for each in (model, plain):
        prune.random_unstructured(each[0], "primary", 0.5)
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model(images), plain(images))


def test_what_computes_something_else_is_not_fused():
    class Doubled(LinearConv2d):
        def forward(self, input):
            return 2 * super().forward(input)

    class Padded(LinearConv2d):
        def _conv_forward(self, input, weight, bias):
            return super()._conv_forward(input.relu(), weight, bias)

    patched = LinearConv2d(3, 8, 3)
    patched.forward = lambda input: input
    for layer, method in (Doubled(3, 8, 3), "forward"), (Padded(3, 8, 3), "_conv_forward"):
        with pytest.raises(ValueError, match=rf"layer '0' has a {method} of its own"):
            fuse(nn.Sequential(layer))
    with pytest.raises(ValueError, match="layer '0' has a forward of its own"):
        deploy(nn.Sequential(patched), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("decay", [0.9, 0.9999])
def test_an_average_of_models_keeps_the_order_of_outputs(images, decay):
    model = nn.Sequential(nn.Conv2d(3, 64, 5))
    with torch.no_grad():
        model[0].weight[::2] *= 1e-3
    convert(model, warm_start=True)
    assert model[0].permutation is not None
    averages = [ModelEmaV2(model, decay), ModelEmaV3(model, decay)]
    swa = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    for _ in range(5):
        for average in averages:
            average.update(model)
        swa.update_parameters(model)
    for average in (*averages, swa):
        torch.testing.assert_close(average.module(images), model(images), rtol=1e-4, atol=1e-4)


def test_scripting_an_unfused_network_says_to_fuse_it():
    with pytest.raises(RuntimeError, match=r"script linearconv.fuse\(model\)"):
        torch.jit.script(nn.Sequential(LinearConv2d(3, 8, 3)))


def test_a_permuted_layer_stays_channels_last():
    conv = nn.Conv2d(3, 16, 3).to(memory_format=torch.channels_last)
    with torch.no_grad():
        conv.weight[:8] *= 1e-3
    layer = LinearConv2d.from_conv2d(conv)
    assert layer.permutation is not None
    images = torch.randn(2, 3, 7, 7).to(memory_format=torch.channels_last)
    outputs = [layer.weight, layer.fuse().weight]
    for execution in ("generate", "factored"):
        layer.execution = execution
        outputs.append(layer(images))
    assert all(o.is_contiguous(memory_format=torch.channels_last) for o in outputs)
