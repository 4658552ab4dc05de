"""The architectures, one file each: every module in this folder is imported, and so registered."""

import importlib
import pkgutil

from models.registry import architecture, build_model, check_variant, model_names, register
from models.variants import Variant

__all__ = [
    "Variant",
    "architecture",
    "build_model",
    "check_variant",
    "model_names",
    "register",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
