"""What a run computes, as a plain dict, and the run_id that follows from it alone."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from configs.compose import CONFIG_DIR, compose_raw
from configs.schema import TrainConfig
from linearconv.engine.record import identity_hash

SCIENCE_VERSION = 1
"""Bumped when the meaning of the common code changes, which voids all older records."""

Science = dict[str, Any]


def science(
    config: TrainConfig, *, digest: str | None = None, baseline: str | None = None
) -> Science:
    """Everything that decides what a run computes; null where it does not apply.

    Not in it: runtime, device, paths, resuming, logging.

    Args:
        config: composed and checked.
        digest: of the data at hand; None for the published data's, pinned in the config.
        baseline: run_id of the trained network that the model starts from, if it does.
    """
    dataset, variant, recipe = config.dataset, config.variant, asdict(config.recipe)
    uses_alpha = variant.linear or variant.widths == "matched"
    recipe["lr"] = config.model.lr if config.recipe.lr is None else config.recipe.lr
    return {
        "science_version": SCIENCE_VERSION,
        "dataset": {
            "name": dataset.name,
            "revision": dataset.revision,
            "digest": digest or dataset.digest,
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
        "recipe": recipe
        | {
            "augmentation": asdict(dataset.augmentation),
            "normalisation": asdict(dataset.normalisation),
        },
        "precision": config.precision,
        "seed": config.seed,
        "baseline": baseline,
    }


def run_id(science: Science) -> str:
    """`<dataset>-<model>-<variant>[-a<alpha>][-<recipe>]-s<seed>-<hash8>`.

    The alpha is named if it is not 0.5, the recipe if it is not the paper's.
    """
    alpha, recipe = science["variant"]["alpha"], recipe_name(science)
    parts = [
        science["dataset"]["name"],
        science["model"]["name"],
        variant_name(science["variant"]),
        "" if alpha in (None, 0.5) else f"a{alpha:g}",
        "" if recipe == "paper" else recipe,
        f"s{science['seed']}",
        identity_hash(science)[:8],
    ]
    return "-".join(part for part in parts if part)


def variant_name(variant: dict[str, Any]) -> str:
    """The paper's name of what a variant does: Conv, r, e, L, Lr or LRr."""
    if variant["linear"]:
        return "L" + ("R" if variant["rank"] else "") + ("r" if variant["regularized"] else "")
    letters = ("e" if variant["widths"] == "matched" else "") + "r" * variant["regularized"]
    return letters or "Conv"


def recipe_name(science: Science) -> str:
    """The preset in configs/recipe that the recipe's values equal, else "custom"."""
    for name in _preset_names():
        preset = _preset(name)
        recipe = dict(preset["recipe"])
        if recipe["lr"] is None:
            recipe["lr"] = _group_file("model", science["model"]["name"])["lr"]
        dataset = _group_file("dataset", science["dataset"]["name"])
        recipe |= {key: dataset[key] for key in ("augmentation", "normalisation")}
        if science["recipe"] == recipe and science["regularizer"] in (None, preset["regularizer"]):
            return name
    return "custom"


def _preset_names() -> list[str]:
    """The paper's recipe first: it is the likeliest, and composing one takes a while."""
    names = [path.stem for path in Path(CONFIG_DIR, "recipe").glob("*.yaml")]
    return sorted(names, key=lambda name: (name != "paper", name))


@cache
def _preset(name: str) -> dict[str, Any]:
    return OmegaConf.to_container(compose_raw([], f"recipe/{name}"))


@cache
def _group_file(group: str, name: str) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / group / f"{name}.yaml"))
