"""The Hydra groups, and the code that reads them: overrides in, checked configs out."""

from configs.compose import compose, dataset_config
from configs.schema import EvalConfig, TrainConfig
from configs.science import run_id, science, variant_name

__all__ = [
    "EvalConfig",
    "TrainConfig",
    "compose",
    "dataset_config",
    "run_id",
    "science",
    "variant_name",
]
