"""Config validation, before any data is read or anything is computed."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from configs.groups import group_file, group_names
from configs.schema import EvalConfig, ModelConfig, RecipeConfig, TrainConfig
from data import DATA, SIZE
from data.official import DATASETS
from data.own import NAME, NAME_RULE
from linearconv.engine.device import check_cuda
from linearconv.engine.loop import SCHEDULES
from linearconv.engine.optimizer import OPTIMIZERS
from linearconv.engine.precision import PRECISIONS
from linearconv.errors import UserError, first_line
from linearconv.layer import EXECUTIONS, INITS
from models import Variant, architecture, check_variant

LOGGERS = ("tensorboard", "wandb")


def check(config: TrainConfig | EvalConfig) -> None:
    """Reject an invalid config.

    Raises:
        UserError: the message names the key, the expected value and the fix.
    """
    if isinstance(config, EvalConfig):
        _check_eval(config)
    else:
        _check_names(config)
        _check_numbers(config)
        _check_choices(config)
        _check_optimizer(config.recipe)
        _check_learning_rate(config)
        _check_schedule(config.recipe)
        _check_dataset(config)
        _check_variant(config)


def check_ready(config: TrainConfig | EvalConfig, *, device: bool = True) -> None:
    """Reject a valid config that cannot run on this machine.

    Args:
        config: checked by `check`.
        device: whether it is this machine's device that counts, and not that of a cluster's host.

    Raises:
        UserError: the device is not available; logger=wandb without wandb or a key; the baseline
            checkpoint is missing, or given for a network that it does not fit.
    """
    if device:
        _check_device_is_there(config.device)
    if isinstance(config, EvalConfig):
        return
    if config.logger == "wandb":
        problem = _wandb_problem()
        _require(problem is None, f"logger=wandb {problem}, or leave logger=tensorboard")
    name, path = config.model.name, config.baseline_checkpoint
    baseline = architecture(name).baseline
    if baseline is None and path is None:
        return
    widths = config.variant.widths
    share = Variant(widths=widths).width_factor
    _require(
        baseline is not None or share is None or share <= 1,
        f"baseline_checkpoint: a trained network has no filters for variant.widths={widths}",
    )
    baseline = baseline or name
    dataset = config.dataset.name
    if config.dataset.path is not None and config.dataset.own:
        dataset = f"custom dataset.path={config.dataset.path}"
    how = (
        f"train one with `python train.py model={baseline} variant=Conv "
        f"dataset={dataset}` and give baseline_checkpoint=checkpoints/<run_id>/"
        + (
            "best.pt"
            if architecture(name).baseline
            else "epoch-NNNN.pt, the last, or results/weights/<run_id>.safetensors"
        )
    )
    _require(path is not None, f"model={name} starts from a trained {baseline}: {how}")
    _require(Path(path).is_file(), f"baseline_checkpoint={path} not found: {how}")


@cache
def _wandb_problem() -> str | None:
    """What Weights & Biases lacks, asked once for all jobs; on a terminal it asks for the key."""
    package = find_spec("wandb")
    # Without an origin it is a folder wandb/ of the working directory, as the package leaves.
    if package is None or package.origin is None:
        return "needs the package wandb: pip install -e '.[train,wandb]'"
    import wandb

    try:
        wandb.login(verify=False)  # which would ask the server, for minutes where there is none
    except wandb.Error as error:
        return (
            f"needs a key ({first_line(error)}): run `wandb login`, set WANDB_API_KEY, or set "
            "WANDB_MODE=offline to keep the log here"
        )
    return None


def _check_names(config: TrainConfig) -> None:
    """Reject a copied YAML whose `name` was not changed: it would train something else."""
    for group in ("model", "variant", "dataset"):
        name = getattr(config, group).name
        others = [o for o in group_names(group) if group_file(group, o).get("name") == name != o]
        missing = group != "dataset" and name not in group_names(group)  # custom: the file's name
        _require(
            not missing and not others,
            f"configs/{group}/{others[0] if others else name}.yaml must have the name of its file, "
            f"got name: {name}",
        )


def _check_numbers(config: TrainConfig) -> None:
    recipe, regularizer, dataset = config.recipe, config.regularizer, config.dataset
    positive = {
        "recipe.epochs": recipe.epochs,
        "recipe.batch_size": recipe.batch_size,
        "recipe.lr": recipe.lr,
        "model.lr": config.model.lr,
        "model.sgd_lr": config.model.sgd_lr,
        "recipe.lr_decay_every": recipe.lr_decay_every,
        "recipe.lr_decay_factor": recipe.lr_decay_factor,
        "regularizer.every": regularizer.every,
        "regularizer.until": regularizer.until,
        "runtime.eval_batch_size": config.runtime.eval_batch_size,
        "runtime.threads": config.runtime.threads,
        "max_minutes": config.max_minutes,
        "image_every": config.image_every,
        "dataset.limit_train": dataset.limit_train,
        "dataset.limit_test": dataset.limit_test,
    }
    for key, value in positive.items():
        _require(
            value is None or (value > 0 and math.isfinite(value)),
            f"{key} must be above 0, got {value}",
        )
    _require(
        regularizer.strength > 0 and math.isfinite(regularizer.strength),
        f"regularizer.strength must be above 0, got {regularizer.strength}; to train "
        "without the correlation loss, use variant=L or variant=Conv",
    )
    for key in ("val_fraction", "momentum", "label_smoothing"):
        value = getattr(recipe, key)
        _require(0 <= value < 1, f"recipe.{key} must be at least 0 and below 1, got {value}")
    _require(
        recipe.weight_decay >= 0 and math.isfinite(recipe.weight_decay),
        f"recipe.weight_decay must be at least 0, got {recipe.weight_decay}",
    )
    _require(
        regularizer.until is None or regularizer.until < recipe.epochs,
        f"regularizer.until must be below recipe.epochs={recipe.epochs}, got {regularizer.until}",
    )
    _require(config.seed >= 0, f"seed must be at least 0, got {config.seed}")
    _require(
        0 < config.alpha < 1,
        f"alpha must be between 0 and 1 (exclusive), got {config.alpha}; it is the share of "
        "primary filters (for alpha=1, use variant=Conv)",
    )


def _check_dataset(config: TrainConfig) -> None:
    dataset, fraction = config.dataset, config.recipe.val_fraction
    for key, limit, size in (
        ("limit_train", dataset.limit_train, dataset.train_size),
        ("limit_test", dataset.limit_test, dataset.test_size),
    ):
        _require(
            limit is None or limit <= size,
            f"dataset.{key}={limit} is more than the {size} images of {dataset.name}",
        )
    _require(
        not dataset.own or NAME.fullmatch(dataset.name) is not None,
        f"dataset.name={dataset.name} {NAME_RULE}",
    )
    _require(
        not dataset.own or dataset.name not in DATASETS,
        f"dataset.name={dataset.name} is a published dataset: give yours another name, e.g. "
        f"dataset.name=my_{dataset.name}, or use dataset={dataset.name}",
    )
    images = dataset.limit_train or dataset.train_size
    kept, size = images - round(fraction * images), config.recipe.batch_size
    _require(
        kept % size != 1,
        f"recipe.batch_size={size} leaves a last batch of one image of the {kept} training images, "
        "which batch norms cannot normalise: change one of the two",
    )
    _require(
        fraction == 0 or 0 < round(fraction * images) < images,
        f"recipe.val_fraction={fraction} leaves no training or no validation images of {images}",
    )
    _require(dataset.channels > 0, f"dataset.channels must be above 0, got {dataset.channels}")
    for key, values in asdict(dataset.normalisation).items():
        _require(
            len(values) == dataset.channels,
            f"dataset.normalisation.{key} needs a value for each of dataset.channels="
            f"{dataset.channels}, got {values}",
        )
        _require(
            all(map(math.isfinite, values)) and (key == "mean" or min(values) > 0),
            f"dataset.normalisation.{key} must be {'finite' if key == 'mean' else 'above 0'}, got "
            f"{values}",
        )
    size, augmentation = dataset.image_size, dataset.augmentation
    _require(
        1 <= size <= SIZE and size % 2 == 0,
        f"dataset.image_size must be even and from 1 to {SIZE}, to which images are padded on all "
        f"sides, got {size}",
    )
    _require(
        augmentation.train_padding >= 0 and size + 2 * augmentation.train_padding >= 32,
        f"dataset.augmentation.train_padding={augmentation.train_padding} does not pad images of "
        f"dataset.image_size={size} pixels to 32",
    )
    _require(
        size + 2 * augmentation.test_padding == 32,
        f"dataset.augmentation.test_padding must be {(32 - size) // 2}, which pads images of "
        f"{size} pixels to 32, got {augmentation.test_padding}",
    )


def _check_choices(config: TrainConfig) -> None:
    _require_choice("precision", config.precision, PRECISIONS)
    _require_choice("runtime.execution", config.runtime.execution, EXECUTIONS)
    _require_choice("runtime.data", config.runtime.data, DATA)
    _require(
        not config.runtime.cuda_graphs
        or (config.runtime.data == "resident" and config.runtime.fused_optimizer),
        "runtime.cuda_graphs=true needs runtime.data=resident and runtime.fused_optimizer=true: a "
        "captured step builds its own batches and keeps its learning rate on the device",
    )
    _require(
        not (config.runtime.deterministic and config.runtime.cudnn_benchmark),
        "runtime.deterministic=true repeats the bits, which runtime.cudnn_benchmark=true does not: "
        "choose one",
    )
    _require(
        config.runtime.save_every_s >= 0,
        f"runtime.save_every_s must be at least 0, got {config.runtime.save_every_s}",
    )
    _require_choice("logger", config.logger, LOGGERS)
    _require_choice("recipe.optimizer", config.recipe.optimizer, OPTIMIZERS)
    _require_choice("recipe.schedule", config.recipe.schedule, SCHEDULES)
    check_device(config.device)


def _check_optimizer(recipe: RecipeConfig) -> None:
    for key in ("momentum", "nesterov", "weight_decay"):
        value, default = getattr(recipe, key), getattr(RecipeConfig, key)
        _require(
            recipe.optimizer == "sgd" or value == default,
            f"recipe.{key}={str(value).lower()} is only valid for recipe.optimizer=sgd, got "
            f"recipe.optimizer={recipe.optimizer}: change one of the two",
        )
    _require(
        recipe.momentum > 0 or not recipe.nesterov,
        "recipe.nesterov=true needs recipe.momentum above 0, e.g. recipe.momentum=0.9",
    )
    _require(
        recipe.weight_decay > 0 or not recipe.decay_coefficients,
        "recipe.decay_coefficients=true needs recipe.weight_decay above 0, e.g. "
        "recipe.optimizer=sgd recipe.weight_decay=5e-4",
    )


def _check_learning_rate(config: TrainConfig) -> None:
    """A learning rate of the model that was changed must be the one that is used."""
    recipe, model = config.recipe, config.model
    used = "sgd_lr" if recipe.optimizer == "sgd" else "lr"
    usual = asdict(ModelConfig()) | group_file("model", model.name)
    for key in ("lr", "sgd_lr"):
        value = getattr(model, key)
        _require(
            value == usual[key] or (key == used and recipe.lr is None),
            f"model.{key}={value} is not used with recipe.optimizer={recipe.optimizer}"
            f"{'' if recipe.lr is None else f' and recipe.lr={recipe.lr}'}: give recipe.lr=",
        )


def _check_schedule(recipe: RecipeConfig) -> None:
    milestones = recipe.lr_milestones
    if recipe.schedule != "multistep":
        _require(
            milestones is None,
            f"recipe.lr_milestones={milestones} is only valid for recipe.schedule=multistep, got "
            f"recipe.schedule={recipe.schedule}: change one of the two",
        )
        return
    _require(
        bool(milestones),
        "recipe.schedule=multistep needs recipe.lr_milestones, e.g. recipe.lr_milestones=[60,120]",
    )
    rising = sorted(set(milestones)) == milestones
    _require(
        rising and milestones[0] > 0 and milestones[-1] < recipe.epochs,
        f"recipe.lr_milestones must be rising epochs above 0 and below recipe.epochs="
        f"{recipe.epochs}, got {milestones}",
    )


def _check_variant(config: TrainConfig) -> None:
    variant = config.variant
    _check_widths(variant.widths)
    _require(
        not ((variant.linear or variant.pair) and variant.widths == "matched"),
        f"variant.widths=matched is only valid for variant=e, got variant={variant.name}",
    )
    _require(
        not (variant.pair and (variant.linear or variant.regularized)),
        f"variant.pair=true is only valid for variant=pair, got variant={variant.name}",
    )
    ranked = [name for name in group_names("variant") if group_file("variant", name).get("rank")]
    if variant.name in ranked:
        _require(
            variant.rank is not None and variant.rank > 0,
            f"variant.rank must be above 0, got {variant.rank}; for a full A, use variant=Lr",
        )
    else:
        _require(
            variant.rank is None,
            f"variant.rank={variant.rank} is only valid for variant={' or '.join(ranked)}, "
            f"got variant={variant.name}",
        )
    _require(
        variant.linear or variant.rank is None,
        f"variant {variant.name} has rank={variant.rank}, which needs linear: true",
    )
    if variant.linear:
        _require_choice("variant.init", variant.init, INITS)
    else:
        _require(
            variant.init is None,
            f"variant.init={variant.init} is only valid for variants L, Lr and LRr, "
            f"got variant={variant.name}",
        )
    check_variant(
        config.model.name,
        Variant(
            linear=variant.linear,
            regularized=variant.regularized,
            alpha=config.alpha,
            widths=variant.widths,
            pair=variant.pair,
        ),
    )


def _check_widths(widths: str) -> None:
    """One of the rules, or a factor in its shortest form, since a run is named by it."""
    try:
        factor = Variant(widths=widths).width_factor
    except ValueError:
        factor = -1.0
    _require(
        widths in ("model", "matched")
        or (factor > 0 and math.isfinite(factor) and widths == f"x{factor:g}" != "x1"),
        f"variant.widths must be model, matched or a factor such as x0.5, got {widths}",
    )


def _check_eval(config: EvalConfig) -> None:
    _require(
        bool(config.run) != bool(config.checkpoint),
        "give either run=<run_id> or checkpoint=<path>",
    )
    _require_choice("weights", config.weights, ("best", "last"))
    for key, value in (
        ("batch_size", config.batch_size),
        ("runtime.threads", config.runtime.threads),
    ):
        _require(value is None or value > 0, f"{key} must be above 0, got {value}")
    check_device(config.device)


def check_device(device: str) -> None:
    """Check the name of a device, not whether it is there.

    Raises:
        UserError: it is not one of those that are supported.
    """
    kind, _, index = device.partition(":")
    known = kind in ("auto", "cpu", "cuda") and (not index or (kind == "cuda" and index.isdigit()))
    mps = " (mps is not supported: it has no float64, in which the metrics are summed)"
    _require(
        known,
        f"device must be auto, cpu, cuda or cuda:N, got {device}{mps if kind == 'mps' else ''}",
    )


def _check_device_is_there(device: str) -> None:
    if device.startswith("cuda"):
        check_cuda(torch.device(device))


def _require_choice(key: str, value: object, choices: Collection[str]) -> None:
    _require(value in choices, f"{key} must be one of {', '.join(choices)}, got {value}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)
