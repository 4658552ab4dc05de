"""The paper's architectures, one file each; `build_model` is the door to them."""

from models import (
    allconv,
    base,
    efficientnet,
    mobilenetv2,
    resnet18,
    resnext29,
    squeezenet,
    vgg11,
    vgg11_basis,
    vgg11_octconv,
)
from models.registry import architecture, build_model, check_variant, model_names, register
from models.variants import Variant

__all__ = [
    "Variant",
    "allconv",
    "architecture",
    "base",
    "efficientnet",
    "build_model",
    "check_variant",
    "mobilenetv2",
    "model_names",
    "register",
    "resnet18",
    "resnext29",
    "squeezenet",
    "vgg11",
    "vgg11_basis",
    "vgg11_octconv",
]
