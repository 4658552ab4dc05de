"""The paper's architectures, one file each; `build_model` is the door to them."""

from models import base, vgg11
from models.registry import Variant, build_model, check_variant, model_names, register

__all__ = [
    "Variant",
    "base",
    "build_model",
    "check_variant",
    "model_names",
    "register",
    "vgg11",
]
