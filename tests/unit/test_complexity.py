"""Operation counts: exact ones against torch's own counter, the paper's against its tables."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.flop_counter import FlopCounterMode

from linearconv import LinearConv2d, fuse, set_execution
from linearconv.complexity import (
    count_macs,
    count_macs_by_phase,
    count_parameters,
    layer_table,
    paper_flops,
)
from models import Variant, build_model, model_names

VARIANTS = {
    "Conv": Variant(),
    "e": Variant(widths="matched"),
    "Lr": Variant(linear=True),
    "LRr": Variant(linear=True, rank=10),
}


def build(name: str, variant: str) -> nn.Module:
    return build_model(name, VARIANTS[variant], in_channels=3, classes=10)


@pytest.mark.parametrize(
    ("name", "variant", "operations"),
    [
        ("base", "Conv", 17_070_070),
        ("base", "e", 10_084_118),
        ("base", "Lr", 59_947_078),
        ("base", "LRr", 24_614_392),
        ("vgg11", "Conv", 170_568_694),
        ("vgg11", "e", 93_246_988),
        ("vgg11", "Lr", 2_397_909_142),
        ("vgg11", "LRr", 350_112_520),
    ],
)
def test_paper_flops(name, variant, operations):
    assert paper_flops(build(name, variant), (3, 32, 32)) == operations


@pytest.mark.parametrize(
    ("alpha", "billions"), [(0.125, 1.139), (0.25, 1.838), (0.75, 1.842), (0.875, 1.146)]
)
def test_paper_flops_of_table_2(alpha, billions):
    model = build_model("vgg11", Variant(linear=True, alpha=alpha), in_channels=3, classes=10)
    assert round(paper_flops(model, (3, 32, 32)) / 1e9, 3) == billions


def torch_macs(model: nn.Module, batch_size: int) -> float:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        device = next(model.parameters()).device
        model.eval()(torch.zeros(batch_size, 3, 32, 32, device=device))
    return counter.get_total_flops() / 2 / batch_size


COMPARISONS = ("vgg11_octconv", "vgg11_basis")


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        (name, variant)
        for name in model_names()
        for variant in (["Conv"] if name in COMPARISONS else ["Conv", "Lr", "LRr"])
    ],
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_exact_macs_are_torchs(name, variant, batch_size):
    with torch.device("meta"):
        model = build(name, variant)
    for execution in ("generate", "factored"):
        set_execution(model, execution)
        mine = count_macs(model, (3, 32, 32), execution=execution, batch_size=batch_size)
        assert mine == pytest.approx(torch_macs(model, batch_size), rel=1e-12)
    fused = count_macs(model, (3, 32, 32), execution="fused")
    assert fused == torch_macs(fuse(model), 1)


def test_grouped_layers_generate_when_factored_is_asked_for():
    model = nn.Sequential(LinearConv2d(4, 8, 3, groups=2, bias=False))
    assert count_macs(model, (4, 8, 8), execution="factored") == 8 * 9 * 2 * 36 + 16 * 9 * 2


def test_counting_leaves_the_model_as_it_was():
    model = build("base", "Lr").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_macs(model, (3, 32, 32), execution="fused")
    paper_flops(model, (3, 32, 32))
    assert model.training and model.bn1.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_layer_table_adds_up():
    model = build("vgg11", "LRr")
    layers = layer_table(model, (3, 32, 32), batch_size=64)
    assert sum(layer["params"] for layer in layers) == count_parameters(model)
    for execution in ("generate", "factored"):
        total = count_macs(model, (3, 32, 32), execution=execution, batch_size=64)
        assert sum(layer[f"macs_{execution}"] for layer in layers) == pytest.approx(total)


def test_frozen_parameters_do_not_count():
    layer = LinearConv2d(3, 8, 3)
    layer.bias.requires_grad_(False)
    assert count_parameters(layer) == 4 * 27 + 16


def test_unknown_execution():
    with pytest.raises(ValueError, match="generate, factored, fused"):
        count_macs(nn.Conv2d(3, 3, 1), (3, 4, 4), execution="auto")


def test_all_executions_come_from_one_pass():
    model = nn.Sequential(LinearConv2d(4, 8, 3, rank=2), LinearConv2d(8, 4, 1))
    both = {"train": ("generate", "factored"), "inference": ("fused", "factored")}
    assert count_macs_by_phase(model, (4, 8, 8), batch_size=64) == {
        phase: {
            execution: count_macs(
                model,
                (4, 8, 8),
                execution=execution,
                batch_size=64 if phase == "train" else 1,
            )
            for execution in executions
        }
        for phase, executions in both.items()
    }


def test_a_window_of_two_numbers_counts_as_its_product():
    def operations(pool: nn.Module) -> int:
        return paper_flops(nn.Sequential(nn.Conv2d(3, 4, 1), pool), (3, 8, 8))

    convolution = operations(nn.Identity())
    assert operations(nn.MaxPool2d((2, 4))) == convolution + 8 * 4 * 4 * 2
    assert operations(nn.AvgPool2d((2, 4))) == convolution + 9 * 4 * 4 * 2


class Normed(nn.Conv2d):
    """A convolution that has its norm inside, as detection libraries do."""

    def __init__(self, *args):
        super().__init__(*args)
        self.norm = nn.BatchNorm2d(self.out_channels)

    def forward(self, x):
        return self.norm(super().forward(x))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(3, 1, kdim=8, vdim=8, batch_first=True)

    def forward(self, x):
        pixels = x.flatten(2).transpose(1, 2)
        wide = torch.cat([pixels, pixels, pixels[..., :2]], -1)[:, ::2]
        return self.attention(pixels, wide, value=wide, need_weights=False)[0]


class Pixels(nn.Module):
    def forward(self, x):
        return x.flatten(2)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 3, stride=2, groups=2)),
        nn.Sequential(Pixels(), nn.Conv1d(3, 8, 3)),
        weight_norm(nn.Conv2d(3, 8, 3)),
        weight_norm(LinearConv2d(3, 8, 3, execution="factored"), "primary"),
        Normed(3, 8, 3),
    ],
    ids=["transposed", "1d", "parametrized", "parametrized linearconv", "normed"],
)
def test_every_convolution_counts(model):
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, 12, 12))
    found = count_macs(model, (3, 12, 12), execution="factored")
    assert 2 * found == counter.get_total_flops()


def test_the_projections_of_attention_count():
    query, key = 144 * 3, 72 * 8
    expected = 3 * (query + 2 * key + query)
    assert count_macs(Attention(), (3, 12, 12), execution="fused") == expected


def test_a_table_of_shared_layers_and_of_outputs_that_are_no_tensor():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.lstm, self.empty = nn.Conv2d(3, 3, 1), nn.LSTM(3, 4), NoInput()

        def forward(self, x):
            x = self.conv(self.conv(x)) + self.empty()
            return self.lstm(x.flatten(2)[0].t())[0]

    class NoInput(nn.Module):
        def forward(self):
            return 1

    rows = layer_table(Model(), (3, 4, 4), batch_size=1)
    assert [(row["name"], row["params"]) for row in rows] == [
        ("conv", 12),
        ("conv", 0),
        ("lstm", count_parameters(nn.LSTM(3, 4))),
    ]
    assert rows[-1]["output"] is None
    rows = layer_table(Normed(3, 8, 3), (3, 4, 4), batch_size=1)  # the norm first
    assert [row["params"] for row in rows] == [16, 3 * 8 * 9 + 8]


def test_layers_called_with_keywords_count():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = LinearConv2d(3, 8, 3), nn.ReLU()

        def forward(self, x):
            return self.relu(input=self.conv(input=x))

    model = Keywords()
    plain = nn.Sequential(model.conv, model.relu)
    assert paper_flops(model, (3, 8, 8)) == paper_flops(plain, (3, 8, 8))
    counts = [count_macs(each, (3, 8, 8), execution="factored") for each in (model, plain)]
    assert counts[0] == counts[1] > 0
