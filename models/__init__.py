"""The architectures, one file each: every module in this folder is imported, and so registered."""

import importlib
import logging
import pkgutil

from linearconv.errors import first_line
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
    try:
        importlib.import_module(f"{__name__}.{_module.name}")
    except Exception as _error:  # a file in the making must not stop the other models
        logging.getLogger(__name__).warning(
            "models/%s.py is left out: %s: %s",
            _module.name,
            type(_error).__name__,
            first_line(_error),
        )
