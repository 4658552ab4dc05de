"""Evaluation with folded batch norms: the same network, up to rounding, whatever it is."""

import pytest
import torch
from torch import nn
from torch.nn.utils import weight_norm

from linearconv import LinearConv2d, set_execution
from linearconv.engine.fast.folding import FoldedNetwork
from linearconv.engine.fast.runtime import AcceleratedModel, Runtime
from models import Variant, build_model

CONV, LRR = Variant(), Variant(linear=True, regularized=True, rank=10)
NORMS = {
    ("base", CONV): 4,
    ("base", LRR): 4,
    ("vgg11", LRR): 8,
    ("allconv", LRR): 0,
    ("resnet18", LRR): 20,
    ("resnext29", LRR): 31,
    ("mobilenetv2", LRR): 57,
    ("squeezenet", LRR): 1,
    ("efficientnet", LRR): 49,
    ("vgg11_octconv", CONV): 0,
    ("vgg11_basis", CONV): 8,
}


def lived_in(model: nn.Module) -> nn.Module:
    """With statistics and weights of batch norms as after some training."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, std=0.3)
    return model.double().to(memory_format=torch.channels_last)


@pytest.mark.parametrize(("name", "variant"), NORMS, ids=lambda v: v if isinstance(v, str) else "")
def test_equals_the_unfolded_network(name, variant):
    torch.manual_seed(0)
    model = lived_in(build_model(name, variant, in_channels=3, classes=10))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    images = images.to(memory_format=torch.channels_last)
    for execution in ("generate", "factored"):
        set_execution(model, execution)
        folded = FoldedNetwork(model.train())
        assert model.training and folded.folded == NORMS[name, variant]
        model.eval()
        folded.refresh()
        with torch.no_grad():
            expected = model(images)
            torch.testing.assert_close(folded(images), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("execution", ["generate", "factored"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_follows_training_and_any_scale(rank, bias, execution, memory_format):
    """Also a batch norm whose weight is exactly zero, which no filter could be divided by."""
    torch.manual_seed(0)
    layer = LinearConv2d(3, 8, 3, rank=rank, bias=bias, execution=execution)
    model = lived_in(nn.Sequential(layer, nn.BatchNorm2d(8), nn.ReLU())).eval()
    folded = FoldedNetwork(model)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64).to(memory_format=memory_format)
    for _ in range(2):
        folded.refresh()
        with torch.no_grad():
            torch.testing.assert_close(folded(images), model(images), rtol=0, atol=1e-12)
            for parameter in model.parameters():
                parameter.add_(0.1)
            model[1].weight[:2] = 0
            model[1].running_mean.mul_(2)


def test_leaves_what_it_cannot_fold():
    conv, norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    class ReadTwice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = conv, norm

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) + y

    class WithForward(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    class ReadsWeight(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(x)) + self.conv.weight.mean()

    hooked = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    hooked[0].register_forward_hook(lambda *args: 3 * args[-1])
    normalised = nn.Sequential(weight_norm(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4))
    doubled = nn.Sequential(nn.Conv2d(4, 4, 1), Doubled(4))
    shared = nn.Sequential(conv, norm, conv, nn.BatchNorm2d(4))
    own = nn.Sequential(WithForward(4, 4, 1), nn.BatchNorm2d(4))
    plain = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False))
    images = torch.randn(2, 4, 3, 3)
    for model in (ReadTwice(), shared, own, plain, doubled, ReadsWeight(), hooked, normalised):
        model.eval()
        folded = FoldedNetwork(model)
        folded.refresh()
        assert folded.folded == 0
        assert torch.equal(folded(images), model(images))


class Whitened(nn.Module):
    """Divides by a running deviation that it keeps in a buffer, beside its layers."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.register_buffer("variance", torch.ones(4))

    def forward(self, x):
        x = self.norm(self.conv(x)).mean((2, 3))
        if self.training:
            self.variance.lerp_(x.detach().var(0), 0.5)
        return x / (self.variance + 1e-5).sqrt()


def test_follows_buffers_that_change_in_training():
    torch.manual_seed(0)
    model, images = Whitened(), torch.randn(8, 3, 6, 6)
    folded = FoldedNetwork(model)
    assert folded.folded == 1
    for _ in range(3):
        model.train()(images)
        model.eval()
        folded.refresh()
        with torch.no_grad():
            torch.testing.assert_close(folded(images), model(images))


def test_a_network_that_cannot_be_traced_is_evaluated_as_it_is(caplog):
    class Checked(nn.Sequential):
        def forward(self, x):
            if x.shape[-1] != 6:
                raise ValueError("images of 6x6 are expected")
            return super().forward(x)

    model = Checked(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    accelerated = AcceleratedModel(model, Runtime(fold_batch_norms=True))
    networks = [accelerated.evaluated() for _ in range(2)]
    assert networks == [model, model] and not model.training
    assert caplog.text.count("torch.fx cannot trace this network") == 1


class Standardised(nn.Conv2d):
    """Its filters have a mean of 0, whatever its weight is."""

    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight / weight.std(), bias)


class Frozen(nn.BatchNorm2d):
    """Uses the statistics of the batch in evaluation, too."""

    def train(self, mode=True):
        return super().train(True)


class Branches(nn.Sequential):
    def forward(self, x):
        return super().forward(x if torch.is_tensor(x) else 2 * x)


def test_networks_that_would_be_others_are_evaluated_as_they_are(caplog):
    torch.manual_seed(0)
    hooked = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    hooked.register_forward_hook(lambda module, args, output: 2 * output)
    models = {
        "standardised": nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4)),
        "frozen": nn.Sequential(nn.Conv2d(3, 4, 3), Frozen(4)),
        "branches": Branches(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
        "hooked": hooked,
    }
    images = torch.randn(8, 3, 8, 8)
    for name, model in models.items():
        caplog.clear()
        accelerated = AcceleratedModel(model.eval(), Runtime(fold_batch_norms=True))
        for _ in range(2):
            with torch.no_grad():
                found = accelerated.evaluated()(images)
                torch.testing.assert_close(found, model(images), msg=name)
        warnings = caplog.text.count("batch norms are not folded in evaluation, since")
        assert warnings == (name != "standardised"), (name, caplog.text)


def test_folding_goes_on_once_it_was_right(monkeypatch):
    """The check costs one batch."""
    torch.manual_seed(0)
    model = lived_in(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    accelerated = AcceleratedModel(model, Runtime(fold_batch_norms=True))
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = model.eval()(images)
        network = accelerated.evaluated()
        calls = []
        model.register_forward_pre_hook(lambda module, args: calls.append(module))
        for _ in range(3):
            torch.testing.assert_close(network(images), expected)
        assert len(calls) == 1
        torch.testing.assert_close(accelerated.evaluated()(images), expected)
        assert len(calls) == 1
