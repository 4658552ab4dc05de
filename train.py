"""Train one network, or several in a multirun: python train.py model=vgg11 variant=LRr."""

from __future__ import annotations

import time

STARTED = time.monotonic()
"""Start of the process, before the slow imports: max_minutes counts from here, for all jobs of a
multirun."""

import logging
import math
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from traceback import extract_tb
from typing import Any

import configs.checkout  # noqa: F401  # says which packages are missing, torch among them

# isort: split
import torch

from configs import TrainConfig, identify, run_id, variant_name
from configs.cli import FAILED, OUT_OF_TIME, Score, Unfinished, run_main
from configs.experiments import results_dir
from configs.identity import Identity
from configs.naming import differences, nearest_recipe
from configs.schema import PATH_KEYS
from data import DATA, SIZE, WARM_START_IMAGES, Batches, DatasetFile, first_images
from linearconv import LinearConv2d, set_execution
from linearconv.dropout import seed_dropout
from linearconv.engine.checkpoint import load, load_weights
from linearconv.engine.device import resolve_device
from linearconv.engine.digests import file_sha256, value_sha256
from linearconv.engine.lock import RunLocked
from linearconv.engine.loop import NonFiniteLoss, TrainSettings
from linearconv.engine.optimizer import OptimizerSettings
from linearconv.engine.provenance import portable, provenance
from linearconv.engine.run import (
    MODEL_FILE,
    Restart,
    RunPaths,
    RunSpec,
    execute,
    name_in_use,
    other_run,
    settle,
)
from linearconv.engine.seeding import seeded
from linearconv.engine.step import Regularizer
from linearconv.engine.weights import read_weights
from linearconv.errors import UserError, first_line
from linearconv.replacements import saved_by_rank
from models import Variant, architecture, build_model
from models.from_trained import start_from

log = logging.getLogger(__name__)

DEFAULT_THREADS = torch.get_num_threads()


def train(config: TrainConfig, overrides: list[str]) -> Score:
    """Train one config and write its record; see `configs.cli.Job`."""
    file = DatasetFile(config.dataset, Path(config.dataset.root))
    baseline = read_baseline(config, file)
    identity = identify(config, digest=file.digest, baseline=baseline and baseline["run_id"])
    results = results_dir(config, identity)
    checkpoints, logs = Path(config.checkpoint_dir), Path(config.log_dir)
    name = name_in_use(run_id(identity), results, checkpoints)
    paths = RunPaths(name, results, checkpoints, logs)
    record = paths.finished()
    if record is not None and not config.overwrite:
        with suppress(RunLocked, UserError, OSError):  # what is here is of its record all the same
            settle(paths)
    if record is not None and record["science"] != identity:
        raise UserError(other_run(paths.record))
    if record is not None and not config.overwrite:
        last = record["provenance"][-1]
        print(
            f"{paths.run_id} is already finished: what follows is its record, of a run on "
            f"{last['device']}, started on {last['started'][:10]}; overwrite=true trains it here"
        )
        now = model_sha256(config)
        starts = record["provenance"]
        if any(start.get(MODEL_FILE, now) != now for start in starts):  # absent in older records
            print(
                f"{architecture(config.model.name).file.name} has changed since: raise the model's "
                "revision, unless it computes the same"
            )
    else:
        try:
            record = run(config, identity, paths, file, baseline, overrides)
        except (RunLocked, NonFiniteLoss, torch.cuda.OutOfMemoryError, OSError) as error:
            raise unfinished(paths.run_id, config, error) from None
        if record is None:
            message = "stopped by max_minutes: run the same command with resume=true to continue"
            raise Unfinished(OUT_OF_TIME, message)
    print(summary(record, paths))
    return score(record)


def model_sha256(config: TrainConfig) -> str:
    """Of the file with the model; it is not part of the identity, since comments are in it."""
    return file_sha256(architecture(config.model.name).file)


def unfinished(run_id: str, config: TrainConfig, error: Exception) -> Unfinished:
    """Why a run has ended, and what to do."""
    if isinstance(error, RunLocked):
        message = f"{run_id} is being trained by {error}: run the same command again"
        return Unfinished(OUT_OF_TIME, message)
    if isinstance(error, BrokenPipeError):
        advice = "nobody reads the output any more; the same command continues"
    elif isinstance(error, NonFiniteLoss):
        advice = "the epochs before it are kept, but to go on would fail again: try a lower lr"
    elif isinstance(error, torch.cuda.OutOfMemoryError):
        return Unfinished(FAILED, out_of_memory(config, error))
    else:  # a full disk, a folder that is gone or read-only
        advice = (
            "what was written before is intact: make room or restore the folder, and the same "
            "command continues"
        )
    return Unfinished(FAILED, f"{run_id} stopped: {error}; {advice}")


def score(record: dict[str, Any]) -> Score:
    """What a sweeper maximises: not the best test accuracy, which would select on the test set.

    With validation images, their accuracy in the epoch whose weights are kept as the best; without,
    the test accuracy of the last epoch.
    """
    key = "val_acc_best" if "val_acc_best" in record else "test_acc_last"
    return Score(record[key], key, record["run_id"])


def out_of_memory(config: TrainConfig, error: torch.cuda.OutOfMemoryError) -> str:
    """What to do about too little GPU memory, in one line."""
    device = torch.device("cuda")
    return (
        f"out of memory on device={config.device} with batches of {config.recipe.batch_size} "
        f"images: {first_line(error)} Free memory on the device, use fewer --slots "
        f"or a smaller runtime.eval_batch_size (now {eval_batch_size(config, device)}; results "
        "change by rounding alone), and run the same command again"
    )


def read_baseline(config: TrainConfig, file: DatasetFile) -> dict[str, Any] | None:
    """The checkpoint of the trained network that the model starts from, or None.

    The identity names the run alone, so that it must be clear which of its weights are meant: those
    of the last epoch or, for the comparison system Basis, which is as it was, the best ones.
    """
    if config.baseline_checkpoint is None:
        return None
    path, system = Path(config.baseline_checkpoint), architecture(config.model.name).baseline
    weights = "best" if system else "last"
    checkpoint = read_weights(path, weights) if path.suffix == ".safetensors" else load(path)
    expected = (system or config.model.name, Variant(), config.dataset.name)
    found = checkpoint["science"]
    variant = Variant.from_identity(found["variant"])
    actual = found["model"]["name"], variant, found["dataset"]["name"]
    last = checkpoint["epoch"] == found["recipe"]["epochs"]
    if actual != expected or not (last if weights == "last" else "optimizer" not in checkpoint):
        raise UserError(
            f"baseline_checkpoint={config.baseline_checkpoint} must contain the {weights} weights "
            f"of a finished {expected[0]}-Conv trained on {expected[2]}, got "
            f"{checkpoint['run_id']}, epoch {checkpoint['epoch']}"
        )
    theirs, ours = (
        science["dataset"] | {"val_fraction": science["recipe"]["val_fraction"]}
        for science in (found, identify(config, digest=file.digest))
    )
    # Its training images must not be test or validation images of this run.
    unlike = [key for key in ours if theirs.get(key) != ours[key]]
    if unlike:
        named = "; ".join(f"{key} {theirs.get(key)} instead of {ours[key]}" for key in unlike)
        raise UserError(
            f"baseline_checkpoint={config.baseline_checkpoint} was trained on other images "
            f"({named}): train a baseline on those of this run"
        )
    return checkpoint


def run(
    config: TrainConfig,
    identity: Identity,
    paths: RunPaths,
    file: DatasetFile,
    baseline: dict[str, Any] | None,
    overrides: list[str],
) -> dict[str, Any] | None:
    """Set up and run the training; returns the record, or None if out of time."""
    device = resolve_device(config.device)
    torch.set_num_threads(config.runtime.threads or DEFAULT_THREADS)
    batches = training_batches(config, file, device)
    print(f"{paths.run_id} on {device}", flush=True)
    if paths.record.is_absolute():  # not below the working directory, as in the checkout
        print(f"record: {paths.record}", flush=True)
    if baseline is None and nearest_recipe(identity)[0] == "finetune":
        log.warning("recipe=finetune without a baseline_checkpoint: the network starts untrained")
    if identity["regularizer"] and config.regularizer.every > len(batches.sizes):
        log.warning(
            "the correlation loss is never added: it is due in every %dth step of an epoch, and an "
            "epoch has %d; regularizer.every=%d adds it once an epoch",
            config.regularizer.every,
            len(batches.sizes),
            len(batches.sizes),
        )

    def build() -> torch.nn.Module:
        model = initial_model(config, identity, baseline, batches)
        check_outputs(model, config)
        if "rank" in differences(identity):  # not the paper's
            warn_of_rank(model, config.variant.rank)
        return model.to(device)

    spec = RunSpec(
        paths,
        identity,
        build,
        batches,
        train_settings(config, identity),
        config.runtime,
        input_shape=(config.dataset.channels, SIZE, SIZE),
    )
    start = provenance(
        device,
        overrides=[portable_override(override) for override in overrides],
        runtime=asdict(config.runtime) | {"eval_batch_size": eval_batch_size(config, device)},
        dataset_path=portable(file.path),
        **{MODEL_FILE: model_sha256(config)},
    )
    return execute(
        spec,
        Restart(config.resume, config.overwrite),
        start=start,
        image_every=config.image_every,
        deadline=STARTED + 60 * (config.max_minutes or math.inf),
        mirror=partial(weights_and_biases, config, identity, paths),
    )


def weights_and_biases(
    config: TrainConfig, identity: Identity, paths: RunPaths, first_start: dict[str, Any]
) -> AbstractContextManager:
    """With logger=wandb, what is written to TensorBoard meanwhile also goes to Weights & Biases.

    A run that is continued is continued there, too: its name and its first start are its id.
    """
    if config.logger != "wandb":
        return nullcontext()
    import wandb  # an optional dependency

    return wandb.init(
        sync_tensorboard=True,
        id=value_sha256([paths.run_id, first_start["started"]])[:32],
        resume="allow",
        name=paths.run_id,
        config=identity,
        dir=paths.log_dir,
    )


def training_batches(config: TrainConfig, file: DatasetFile, device: torch.device) -> Batches:
    """The training and test batches of a run."""
    dataset = file.load(
        limit_train=config.dataset.limit_train,
        limit_test=config.dataset.limit_test,
        val_fraction=config.recipe.val_fraction,
        strict=config.dataset.strict,
    )
    return DATA[config.runtime.data](
        dataset,
        config.dataset,
        batch_size=config.recipe.batch_size,
        eval_batch_size=eval_batch_size(config, device),
        seed=config.seed,
        device=device,
    )


def eval_batch_size(config: TrainConfig, device: torch.device) -> int:
    """Images per evaluation batch; by default so many that a device is busy."""
    return config.runtime.eval_batch_size or (512 if device.type == "cuda" else 256)


def portable_override(override: str) -> str:
    """`key=value` for the record, with paths made `portable`."""
    key, _, value = override.partition("=")
    unquoted = value.strip("'\"")
    is_path = key.lstrip("+") in PATH_KEYS and unquoted
    return f"{key}={portable(unquoted)}" if is_path else override


def initial_model(
    config: TrainConfig,
    identity: Identity,
    baseline: dict[str, Any] | None = None,
    batches: Batches | None = None,
) -> torch.nn.Module:
    """The network with the run's initial weights, on the CPU; `batches` are for a baseline."""
    name, variant = config.model.name, Variant.from_identity(identity["variant"])
    shape = {"in_channels": config.dataset.channels, "classes": config.dataset.classes}
    with seeded("init", config.seed):
        model = build_model(name, variant, **shape)
    if baseline is not None:
        system = architecture(name).baseline
        trained = build_model(system or name, Variant(), **shape)
        load_weights(trained, baseline)
        if system:
            model.start_from(trained)
        else:
            images = first_images(batches.train(0), WARM_START_IMAGES).cpu()
            start_from(model, trained, name, variant, images)
    seed_dropout(model, config.seed)
    set_execution(model, config.runtime.execution)
    return model


def warn_of_rank(model: torch.nn.Module, rank: int) -> None:
    """Name the layers whose coefficients are not fewer with the rank that was chosen."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LinearConv2d) and m.rank}
    useless = [name for name, layer in layers.items() if saved_by_rank(layer) <= 0]
    if useless:
        log.warning("variant.rank=%d saves nothing in %s", rank, ", ".join(useless))


def check_outputs(model: torch.nn.Module, config: TrainConfig) -> None:
    """Check that the network turns images into one output for each class.

    Raises:
        UserError: it does not; the message names the model's file.
    """
    file = architecture(config.model.name).file
    expected = (2, config.dataset.classes)
    try:
        with torch.no_grad():
            output = model.eval()(torch.zeros(2, config.dataset.channels, SIZE, SIZE))
        if output.shape == expected:
            return
        found = f"an output of shape {tuple(output.shape)}"
    except Exception as error:  # whatever a model of one's own may raise
        lines = [f.lineno for f in extract_tb(error.__traceback__) if f.filename == str(file)]
        where = f" in line {lines[-1]}" if lines else ""
        found = f"{type(error).__name__}{where}: {first_line(error)}"
    raise UserError(
        f"model={config.model.name} ({file.name}): 2 images of {config.dataset.channels}x{SIZE}x"
        f"{SIZE} must give an output of shape {expected}, one number for each class of "
        f"dataset={config.dataset.name}; got {found}"
    )


def train_settings(config: TrainConfig, identity: Identity) -> TrainSettings:
    """The engine's settings for a config."""
    recipe, regularizer = config.recipe, identity["regularizer"]
    return TrainSettings(
        epochs=recipe.epochs,
        lr=identity["recipe"]["lr"],
        lr_decay_every=recipe.lr_decay_every,
        lr_decay_factor=recipe.lr_decay_factor,
        regularizer=Regularizer(**regularizer) if regularizer else None,
        precision=config.precision,
        optimizer=OptimizerSettings(
            name=recipe.optimizer,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
            decay_coefficients=recipe.decay_coefficients,
        ),
        schedule=recipe.schedule,
        lr_milestones=tuple(recipe.lr_milestones or ()),
        label_smoothing=recipe.label_smoothing,
        seed=config.seed,
    )


def summary(record: dict[str, Any], paths: RunPaths) -> str:
    """The results of a run and the paths of its files, as far as they are here."""
    name = record["science"]
    validated = "val_acc_best" in record
    parts = [
        f"{name['model']['name']}-{variant_name(name['variant'])} on {name['dataset']['name']}",
        *([f"validation accuracy {record['val_acc_best']:.2f} %"] if validated else []),
        f"best test accuracy {record['test_acc_best']:.2f} % (epoch {record['best_epoch']})",
        f"last {record['test_acc_last']:.2f} %",
        f"{record['params'] / 1e6:.2f} M parameters",
        f"{record['timing']['seconds']:.0f} s",
    ]
    places = {
        "record": paths.record,
        "weights": paths.weights,
        "checkpoints": paths.checkpoints,
        "TensorBoard": paths.log,
    }
    files = [
        f"{what:<11} {path}{'/' * path.is_dir()}" for what, path in places.items() if path.exists()
    ]
    return "\n".join([" | ".join(parts), *files])


if __name__ == "__main__":
    run_main("train", train)
