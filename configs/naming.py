"""What a run is called: its variant, its recipe, and what differs from them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from configs.compose import compose_raw, dataset_config, dataset_names, user_errors
from configs.groups import group_file, group_names
from configs.identity import Identity, identity_hash, resolved
from configs.schema import ModelConfig, RecipeConfig, TrainConfig, VariantConfig
from linearconv.errors import UserError, first_line

log = logging.getLogger(__name__)

DEFAULTS = {"pair": False, "until": None}
"""Of the keys of an identity's variant and loss that it has only where they are not the default."""

LONGEST = 110
"""Characters of a run_id: with what is put around it, a name of at most 143 bytes, the fewest that
common file systems take."""

CUSTOM = "custom"
"""The recipe of a run that differs from all presets."""

ABBREVIATIONS = {
    "rank": "r",
    "init": "",
    "epochs": "e",
    "batch_size": "b",
    "optimizer": "",
    "momentum": "m",
    "weight_decay": "wd",
    "schedule": "",
    "lr_milestones": "at",
    "label_smoothing": "ls",
    "val_fraction": "val",
    "strength": "lambda",
    "widths": "",
    "centered": "pearson",
    "limit_train": "train",
    "limit_test": "test",
    "precision": "",
}
"""How a run_id writes the keys whose own names are too long or not needed."""


def run_id(identity: Identity) -> str:
    """`<dataset>-<model>-<variant>[-a<alpha>][-<recipe>][-<differences>][-from-<hash8>]-s<seed>-<hash8>`.

    alpha is included unless it is 0.5, the recipe unless it is the paper's. The differences are the
    overridden values, e.g. `r4-lr0.003-train5000`: see `differences`; the first hash is that of the
    run with the trained network that it starts from. What is longer than `LONGEST`
    is cut before the seed; the hash tells such runs apart.
    """
    alpha, (recipe, _) = identity["variant"]["alpha"], nearest_recipe(identity)
    parts = [
        identity["dataset"]["name"],
        identity["model"]["name"],
        variant_name(identity["variant"]),
        "" if alpha in (None, 0.5) else f"a{alpha:g}",
        "" if recipe == "paper" else recipe,
        *(_word(key, value) for key, value in differences(identity).items()),
        f"from-{identity['baseline']}" if identity["baseline"] else "",
    ]
    end = f"-s{identity['seed']}-{identity_hash(identity)[:8]}"
    return "-".join(part for part in parts if part)[: LONGEST - len(end)].rstrip("-.") + end


def variant_name(variant: dict[str, Any]) -> str:
    """The name of the variant in configs/variant that does the same, else the most similar of the
    paper's: Conv, r, e, L, Lr or LRr.
    """
    if variant["linear"]:
        paper = "L" + ("R" if variant["rank"] else "") + ("r" if variant["regularized"] else "")
    else:
        letters = "e" * (variant["widths"] == "matched") + "r" * variant["regularized"]
        paper = letters or "Conv"
    for name in sorted(group_names("variant"), key=lambda name: (name != paper, name)):
        if not _unlike(variant, _variant_preset(name)):
            return name
    return paper


def recipe_name(identity: Identity) -> str:
    """The preset in configs/recipe that has these values, else "custom"."""
    name, unlike = nearest_recipe(identity)
    return CUSTOM if unlike else name


def differences(identity: Identity) -> dict[str, Any]:
    """What a run overrides: the keys whose values are not those of the variant and the recipe that
    its name has, the images it is limited to, and another precision than the default.
    """
    variant, dataset = identity["variant"], identity["dataset"]
    limits = {key: dataset[key] for key in ("limit_train", "limit_test")}
    others = {"precision": identity["precision"], **limits}
    return {
        **_unlike(variant, _variant_preset(variant_name(variant))),
        **nearest_recipe(identity)[1],
        **_unlike(others, {"precision": TrainConfig.precision, **dict.fromkeys(limits)}),
    }


def _word(key: str, value: Any) -> str:
    """A difference as it is written in a run_id; nothing for a value that does not apply."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return ABBREVIATIONS.get(key, key) if value else f"no_{ABBREVIATIONS.get(key, key)}"
    if isinstance(value, Mapping):  # augmentation, normalisation
        return key
    if isinstance(value, list):
        value = ".".join(map(str, value))
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{ABBREVIATIONS.get(key, key)}{text}"


def _unlike(actual: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the preset's keys where they differ; absent ones are the default."""
    whole = DEFAULTS | actual
    return {key: whole[key] for key in preset if whole[key] != preset[key]}


def nearest_recipe(identity: Identity) -> tuple[str, dict[str, Any]]:
    """The preset in configs/recipe with the fewest other values, and those of the run.

    Of several, the paper's or one with the paper's correlation loss: a run without the loss has all
    that differ in it alone, and must not change its name with each that somebody adds.
    """
    unlike = _unlike_recipe(identity, "paper")
    if not unlike:  # as most runs; composing a preset is slow
        return "paper", unlike
    loss = _recipe_preset("paper").get("regularizer")
    names = sorted(
        filter(_is_usable, group_names("recipe")),
        key=lambda name: (name != "paper", _recipe_preset(name).get("regularizer") != loss, name),
    )
    found = [(name, _unlike_recipe(identity, name)) for name in names]
    return min(found, key=lambda each: len(each[1]))


def _unlike_recipe(identity: Identity, preset_name: str) -> dict[str, Any]:
    """The values in which a run differs from a preset.

    A dataset without a config (dataset=custom) has no other augmentation to compare with, and a
    run without the correlation loss no other strength.
    """
    preset, dataset = _recipe_preset(preset_name), identity["dataset"]["name"]
    model, name = asdict(ModelConfig()), identity["model"]["name"]
    if name in group_names("model"):  # records may outlive their model
        model |= group_file("model", name)
    default = asdict(RecipeConfig())
    recipe = resolved(
        default | preset.get("recipe", {}), model, linear=identity["variant"]["linear"]
    )
    if dataset in dataset_names():
        usual = asdict(dataset_config(dataset))
        recipe |= {key: usual[key] for key in ("augmentation", "normalisation")}
    loss = identity["regularizer"]
    return {
        **_unlike(default | identity["recipe"], default | recipe),
        **(_unlike(loss, {"until": None} | preset.get("regularizer", {})) if loss else {}),
    }


@cache
def _variant_preset(name: str) -> dict[str, Any]:
    """What a variant in configs/variant does; nothing if there is none of this name."""
    if name not in group_names("variant"):
        return {}
    preset = asdict(VariantConfig()) | group_file("variant", name)
    return {key: preset[key] for key in preset if key not in ("name", "revision")}


@cache
def _is_usable(recipe: str) -> bool:
    """Whether a preset can be composed: one that is being written must not stop other runs."""
    try:
        with user_errors():
            OmegaConf.merge(OmegaConf.structured(RecipeConfig), _recipe_preset(recipe)["recipe"])
    except (UserError, KeyError) as error:
        reason = f"it has no key {error}" if isinstance(error, KeyError) else first_line(error)
        log.warning("configs/recipe/%s.yaml is left out: %s", recipe, reason)
        return False
    return True


@cache
def _recipe_preset(name: str) -> dict[str, Any]:
    return OmegaConf.to_container(compose_raw([], f"recipe/{name}"))
