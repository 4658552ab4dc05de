"""Networks of other projects: converted, trained a step and fused to equal outputs."""

import pytest
import timm
import torch
import torchvision
from timm.utils.model import reparameterize_model
from torch import nn

from linearconv import LinearConv2d, convert, fuse, model_correlation_loss

QUICK = ["torchvision:resnet18", "torchvision:mobilenet_v3_small", "timm:ghostnet_050"]
TORCHVISION = (
    *("alexnet", "vgg11_bn", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "inception_v3"),
    *("googlenet", "mobilenet_v2", "mnasnet0_5", "shufflenet_v2_x0_5", "squeezenet1_1"),
    *("efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf", "convnext_tiny", "vit_b_16"),
    "maxvit_t",
)
TIMM = (
    *("resnetv2_50", "convnextv2_atto", "efficientvit_b0", "repvgg_a0", "mobileone_s0"),
    *("fastvit_t8", "hrnet_w18_small", "res2net50_14w_8s", "dla34", "regnetx_002"),
    *("tf_efficientnet_lite0", "coat_tiny", "edgenext_xx_small", "poolformer_s12", "xception41"),
    "vit_tiny_patch16_224",
)
ALL = [f"torchvision:{name}" for name in TORCHVISION] + [f"timm:{name}" for name in TIMM]


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The network, without zeros in its weights that would hide its layers, and two images."""
    torch.manual_seed(0)
    library, name = name.split(":")
    if library == "timm":
        model = timm.create_model(name)
    else:
        slow = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(name, **slow)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
            elif (parameter == parameter.flatten()[0]).all():  # the small scales of ConvNeXt
                parameter.fill_(1.0)
    size = {"inception_v3": 299}.get(name, 224)
    # In float64, since deep networks amplify rounding errors beyond any tolerance.
    return model.double(), torch.randn(2, 3, size, size, dtype=torch.float64)


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)  # for dropout and stochastic depth
    output = model(images)
    return output if isinstance(output, torch.Tensor) else output[0]


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.long) for name in ALL)]
)
def test_convert_train_fuse(name):
    model, images = build(name)
    report = convert(model)
    assert any(layer.skipped is None for layer in report.layers)
    after = sum(layer.parameters_after for layer in report.layers)
    found = sum(p.numel() for m in model.modules() if is_conv(m) for p in m.parameters(False))
    assert after == found
    (logits(model, images).square().mean() + 0.01 * model_correlation_loss(model)).backward()
    used = [m for m in model.modules() if isinstance(m, LinearConv2d)]
    assert all(torch.isfinite(layer.primary.grad).all() for layer in used)
    for training in (True, False):
        model.train(training)
        fused = fuse(model)
        assert not any(isinstance(m, LinearConv2d) for m in fused.modules())
        with torch.no_grad():
            expected, output = logits(model, images), logits(fused, images)
        assert expected.std() > 0
        assert (output - expected).norm() < 1e-9 * expected.norm()


def is_conv(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd)


@pytest.mark.parametrize("name", ["mobileone_s0", "repvgg_a0"])
def test_timms_own_reparameterisation_fuses_too(name):
    model, images = build(f"timm:{name}")
    convert(model, skip="stages.*.conv_kxk.*")  # timm reads the weights of these itself
    model.eval()
    deployed = reparameterize_model(model)
    with torch.no_grad():
        assert (deployed(images) - model(images)).norm() < 1e-9 * model(images).norm()
