"""The Hydra config groups, and the code that composes and checks them."""

import configs.checkout  # noqa: F401  # first, since it may end the process
from configs.compose import compose, dataset_config, dataset_names
from configs.identity import identify
from configs.naming import run_id, variant_name
from configs.schema import EvalConfig, TrainConfig

__all__ = [
    "EvalConfig",
    "TrainConfig",
    "compose",
    "dataset_config",
    "dataset_names",
    "identify",
    "run_id",
    "variant_name",
]
