"""The identity of a run (what it computes, as a plain dict), and the run_id derived from it."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from configs.compose import compose_raw, dataset_names
from configs.groups import group_file, group_names
from configs.schema import ModelConfig, RecipeConfig, TrainConfig, VariantConfig
from linearconv.engine.digests import value_sha256

SCIENCE_VERSION = 1
"""Bumped when shared code changes what runs compute, which invalidates all older records."""

ADDED_LATER = (
    "momentum",
    "nesterov",
    "weight_decay",
    "decay_coefficients",
    "schedule",
    "lr_milestones",
    "label_smoothing",
)
"""Keys of the recipe that an identity has only where they are not the default, so that the records
that were written before there were such keys keep their identity, and with it their cells."""

Identity = dict[str, Any]
"""What a run computes, as plain values; stored in records under the key `science`."""


def identity_hash(identity: Identity) -> str:
    """sha256 of an identity: two runs with the same hash compute the same thing."""
    return value_sha256(identity)


def identify(
    config: TrainConfig, *, digest: str | None = None, baseline: str | None = None
) -> Identity:
    """Everything that determines what a run computes; None where it does not apply.

    Not included: runtime, device, paths, resuming, logging.

    Args:
        config: composed and checked.
        digest: what identifies the data in use (`DatasetFile.digest`); None: the published one.
        baseline: run_id of the trained network that the model starts from, if any.
    """
    dataset, variant = config.dataset, config.variant
    uses_alpha = variant.linear or variant.widths == "matched"
    return {
        "science_version": SCIENCE_VERSION,
        "dataset": {
            "name": dataset.name,
            "revision": dataset.revision,
            "digest": digest or dataset.published,
            "classes": dataset.classes,
            "limit_train": dataset.limit_train,
            "limit_test": dataset.limit_test,
        },
        "model": {"name": config.model.name, "revision": config.model.revision},
        "variant": {
            "revision": variant.revision,
            "linear": variant.linear,
            "regularized": variant.regularized,
            "alpha": config.alpha if uses_alpha else None,
            "rank": variant.rank,
            "init": variant.init,
            "widths": variant.widths,
        },
        "regularizer": asdict(config.regularizer) if variant.regularized else None,
        "recipe": _resolved(asdict(config.recipe), asdict(config.model), linear=variant.linear)
        | {
            "augmentation": asdict(dataset.augmentation),
            "normalisation": asdict(dataset.normalisation),
        },
        "precision": config.precision,
        "seed": config.seed,
        "baseline": baseline,
    }


def _resolved(recipe: dict[str, Any], model: dict[str, Any], *, linear: bool) -> dict[str, Any]:
    """A recipe as an identity has it: the values that a model is trained with.

    Args:
        recipe: all values of a `RecipeConfig`.
        model: all values of a `ModelConfig`.
        linear: whether the model has LinearConv layers.
    """
    default, values = asdict(RecipeConfig()), dict(recipe)
    if recipe["lr"] is None:
        values["lr"] = model["sgd_lr" if recipe["optimizer"] == "sgd" else "lr"]
    if recipe["schedule"] != "step":
        values["lr_decay_every"] = None
    if recipe["schedule"] == "cosine":
        values["lr_decay_factor"] = None
    if not linear:
        values["decay_coefficients"] = default["decay_coefficients"]
    return {
        key: value
        for key, value in values.items()
        if key not in ADDED_LATER or value != default[key]
    }


def run_id(identity: Identity) -> str:
    """`<dataset>-<model>-<variant>[-a<alpha>][-<recipe>]-s<seed>-<hash8>`.

    alpha is included unless it is 0.5, the recipe unless it is the paper's.
    """
    alpha, recipe = identity["variant"]["alpha"], recipe_name(identity)
    parts = [
        identity["dataset"]["name"],
        identity["model"]["name"],
        variant_name(identity["variant"]),
        "" if alpha in (None, 0.5) else f"a{alpha:g}",
        "" if recipe == "paper" else recipe,
        f"s{identity['seed']}",
        identity_hash(identity)[:8],
    ]
    return "-".join(part for part in parts if part)


def variant_name(variant: dict[str, Any]) -> str:
    """The name of the variant in configs/variant that does the same, else the most similar of the
    paper's: Conv, r, e, L, Lr or LRr.
    """
    if variant["linear"]:
        paper = "L" + ("R" if variant["rank"] else "") + ("r" if variant["regularized"] else "")
    else:
        letters = ("e" if variant["widths"] == "matched" else "") + "r" * variant["regularized"]
        paper = letters or "Conv"
    for name in sorted(group_names("variant"), key=lambda name: (name != paper, name)):
        if all(variant[key] == value for key, value in _variant_preset(name).items()):
            return name
    return paper


def recipe_name(identity: Identity) -> str:
    """The preset in configs/recipe that has these values, else "custom".

    A dataset without a config (dataset=custom) has no other augmentation to compare with.
    """
    actual, dataset = identity["recipe"], identity["dataset"]["name"]
    usual = group_file("dataset", dataset) if dataset in dataset_names() else actual
    model = asdict(ModelConfig()) | group_file("model", identity["model"]["name"])
    for name in _preset_names():
        preset = _preset(name)
        values = asdict(RecipeConfig()) | preset["recipe"]
        recipe = _resolved(values, model, linear=identity["variant"]["linear"])
        recipe |= {key: usual[key] for key in ("augmentation", "normalisation")}
        regularizers = (None, preset["regularizer"])
        if actual == recipe and identity["regularizer"] in regularizers:
            return name
    return "custom"


def _preset_names() -> list[str]:
    """The paper's recipe first: it is the most likely match, and composing a preset is slow."""
    return sorted(group_names("recipe"), key=lambda name: (name != "paper", name))


@cache
def _variant_preset(name: str) -> dict[str, Any]:
    """What a variant in configs/variant does."""
    preset = asdict(VariantConfig()) | group_file("variant", name)
    return {key: preset[key] for key in ("linear", "regularized", "rank", "init", "widths")}


@cache
def _preset(name: str) -> dict[str, Any]:
    return OmegaConf.to_container(compose_raw([], f"recipe/{name}"))
