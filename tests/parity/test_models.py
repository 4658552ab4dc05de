"""The networks against their definitions, written out with functions of their weights."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import Variant, build_model
from tests.unit.test_folding import lived_in


class Weights:
    """A network's weights by name, and what its layers compute in evaluation."""

    def __init__(self, model: nn.Module) -> None:
        self.values = model.state_dict()

    def conv(self, name: str, x: Tensor, **kwargs) -> Tensor:
        bias = self.values.get(f"{name}.bias")
        return F.conv2d(x, self.values[f"{name}.weight"], bias, **kwargs)

    def norm(self, name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            self.values[f"{name}.{key}"].view(-1, 1, 1)
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.values[f"{name}.weight"].t() + self.values[f"{name}.bias"]

    def shortcut(self, name: str, x: Tensor, stride: int) -> Tensor:
        """The input or, where the shape changes, its 1x1 convolution and batch norm."""
        if f"{name}.0.weight" not in self.values:
            return x
        return self.norm(f"{name}.1", self.conv(f"{name}.0", x, stride=stride))


def chain(w: Weights, x: Tensor, pooled: tuple[int, ...], depth: int) -> Tensor:
    for i in range(1, depth + 1):
        x = w.norm(f"bn{i}", w.conv(f"conv{i}", x, padding=1)).relu()
        x = F.max_pool2d(x, 2) if i in pooled else x
    return w.linear("fc", x.flatten(1))


def base(w: Weights, x: Tensor) -> Tensor:
    return chain(w, x, (1, 2, 3, 4), 4)


def vgg11(w: Weights, x: Tensor) -> Tensor:
    return chain(w, x, (1, 2, 4, 6, 8), 8)


def allconv(w: Weights, x: Tensor) -> Tensor:
    for i in range(1, 9):
        stride, padding = (2 if i in (3, 6) else 1), (0 if i == 8 else 1)
        x = w.conv(f"conv{i}", x, stride=stride, padding=padding).relu()
    return w.conv("class_conv", x).relu().mean(dim=(2, 3))


def resnet18(w: Weights, x: Tensor) -> Tensor:
    x = w.norm("stem.1", w.conv("stem.0", x, padding=1)).relu()
    for i in range(8):
        name, stride = f"blocks.{i}", 2 if i in (2, 4, 6) else 1
        y = w.norm(f"{name}.bn1", w.conv(f"{name}.conv1", x, stride=stride, padding=1)).relu()
        y = w.norm(f"{name}.bn2", w.conv(f"{name}.conv2", y, padding=1))
        x = (y + w.shortcut(f"{name}.shortcut", x, stride)).relu()
    return w.linear("fc", x.mean(dim=(2, 3)))


def resnext29(w: Weights, x: Tensor) -> Tensor:
    x = w.norm("stem.1", w.conv("stem.0", x)).relu()
    for i in range(9):
        name, stride = f"blocks.{i}", 2 if i in (3, 6) else 1
        y = w.norm(f"{name}.bn1", w.conv(f"{name}.conv1", x)).relu()
        y = w.conv(f"{name}.conv2", y, stride=stride, padding=1, groups=2)
        y = w.conv(f"{name}.conv3", w.norm(f"{name}.bn2", y).relu())
        x = (w.norm(f"{name}.bn3", y) + w.shortcut(f"{name}.shortcut", x, stride)).relu()
    return w.linear("fc", x.mean(dim=(2, 3)))


def mobilenetv2(w: Weights, x: Tensor) -> Tensor:
    x = w.norm("bn1", w.conv("conv1", x, padding=1)).relu()
    for i in range(17):
        name, stride = f"blocks.{i}", 2 if i in (3, 6, 13) else 1
        y = w.norm(f"{name}.bn1", w.conv(f"{name}.conv1", x)).relu()
        y = w.conv(f"{name}.conv2", y, stride=stride, padding=1, groups=y.shape[1])
        y = w.conv(f"{name}.conv3", w.norm(f"{name}.bn2", y).relu())
        y = w.norm(f"{name}.bn3", y)
        x = y if stride == 2 else y + w.shortcut(f"{name}.shortcut", x, 1)
    x = w.norm("bn2", w.conv("conv2", x)).relu()
    return w.linear("fc", x.mean(dim=(2, 3)))


def squeezenet(w: Weights, x: Tensor) -> Tensor:
    x = F.max_pool2d(w.norm("bn1", w.conv("conv1", x, padding=1)).relu(), 2)
    for i in range(2, 10):
        squeezed = w.conv(f"fire{i}.squeeze", x).relu()
        wide = w.conv(f"fire{i}.expand3", squeezed, padding=1)
        x = torch.cat([w.conv(f"fire{i}.expand1", squeezed), wide], dim=1).relu()
        x = F.max_pool2d(x, 2) if i in (4, 8) else x
    return w.conv("class_conv", x).mean(dim=(2, 3))


@pytest.mark.parametrize(
    "written_out", [base, vgg11, allconv, resnet18, resnext29, mobilenetv2, squeezenet]
)
def test_a_network_computes_what_is_written_out(written_out: Callable[[Weights, Tensor], Tensor]):
    torch.manual_seed(0)
    model = build_model(written_out.__name__, Variant(), in_channels=3, classes=10)
    model = lived_in(model).eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        found, expected = model(images), written_out(Weights(model), images)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected)
