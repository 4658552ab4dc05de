"""The identity of a run: what it computes, as a plain dict. `configs.naming` names it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from configs.schema import RecipeConfig, RegularizerConfig, TrainConfig, VariantConfig
from linearconv.engine.digests import value_sha256
from models import Variant

SCIENCE_VERSION = 1
"""Bumped when shared code changes what runs compute, which invalidates all older records."""

ADDED_LATER = (
    "pair",
    "until",
    "momentum",
    "nesterov",
    "weight_decay",
    "decay_coefficients",
    "schedule",
    "lr_milestones",
    "label_smoothing",
)
"""Keys that an identity has only where they are not the default, so that the records that were
written before there were such keys keep their identity, and with it their cells."""

Identity = dict[str, Any]
"""What a run computes, as plain values; stored in records under the key `science`."""


def identity_hash(identity: Identity) -> str:
    """sha256 of an identity: two runs with the same hash compute the same thing."""
    return value_sha256(identity)


def cell_key(identity: Identity) -> str:
    """Hash of an identity without its seed and baseline: equal for the runs of one cell."""
    return value_sha256({k: v for k, v in identity.items() if k not in ("seed", "baseline")})[:16]


def identify(
    config: TrainConfig, *, digest: str | None = None, baseline: str | None = None
) -> Identity:
    """Everything that determines what a run computes; None where it does not apply.

    Not included: runtime, device, paths, resuming, logging.

    Args:
        config: composed and checked.
        digest: what identifies the data in use (`DatasetFile.digest`); None: the published one.
        baseline: run_id of the trained network that the model starts from, if any. The hash at its
            end counts; the words before it may change (`linearconv.engine.run.name_in_use`).
    """
    dataset, variant = config.dataset, config.variant
    uses_alpha = Variant(variant.linear, pair=variant.pair, widths=variant.widths).uses_alpha
    return {
        "science_version": SCIENCE_VERSION,
        "dataset": {
            "name": dataset.name,
            "revision": dataset.revision,
            "digest": digest or dataset.published,
            "classes": dataset.classes,
            "limit_train": _limit(dataset.limit_train, dataset.train_size),
            "limit_test": _limit(dataset.limit_test, dataset.test_size),
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
            **_added(variant, VariantConfig()),
        },
        "regularizer": _regularizer(config.regularizer) if variant.regularized else None,
        "recipe": resolved(asdict(config.recipe), asdict(config.model), linear=variant.linear)
        | {
            "augmentation": asdict(dataset.augmentation),
            "normalisation": asdict(dataset.normalisation),
        },
        "precision": config.precision,
        "seed": config.seed,
        "baseline": baseline and baseline.rpartition("-")[2],
    }


def _regularizer(config: RegularizerConfig) -> dict[str, Any]:
    kept = {key: value for key, value in asdict(config).items() if key not in ADDED_LATER}
    return kept | _added(config, RegularizerConfig())


def _added(config: Any, default: Any) -> dict[str, Any]:
    """The values of `ADDED_LATER` that are not the default."""
    values, usual = asdict(config), asdict(default)
    return {k: v for k, v in values.items() if k in ADDED_LATER and v != usual[k]}


def _limit(images: int | None, size: int) -> int | None:
    """A limit to some images; None if it is none."""
    return None if images == size else images


def resolved(recipe: dict[str, Any], model: dict[str, Any], *, linear: bool) -> dict[str, Any]:
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
