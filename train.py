"""Train one network, or each of a multirun: python train.py model=vgg11 variant=LRr."""

from __future__ import annotations

import time

STARTED = time.monotonic()
"""When the process started (the imports take seconds): max_minutes counts from here, for all jobs
of a multirun."""

import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from configs import TrainConfig, run_id, science, variant_name
from configs.cli import OUT_OF_TIME, run_main
from configs.schema import RuntimeConfig
from data import DATA, SIZE, Dataset, load_dataset
from data.packed import packed_path
from linearconv import set_execution
from linearconv.dropout import seed_dropout
from linearconv.engine.checkpoint import Locked, load
from linearconv.engine.device import keep_freed_memory, resolve_device
from linearconv.engine.loop import Speed, TrainSettings
from linearconv.engine.provenance import portable, provenance
from linearconv.engine.run import Places, Restart, execute
from linearconv.engine.seeding import seeded
from linearconv.engine.step import Regularizer
from linearconv.errors import UserError
from models import Variant, architecture, build_model

DEFAULT_THREADS = torch.get_num_threads()
PATHS = ("results_dir", "checkpoint_dir", "log_dir", "dataset.root", "baseline_checkpoint")
"""Keys whose values are paths, which may be quoted."""


def train(config: TrainConfig, overrides: list[str]) -> int:
    """Run one config to its record; returns the exit code (see `configs.cli`)."""
    # A finished run says so even where its data is not at hand; else the data comes first, since
    # the run's identity depends on what is really in the file.
    baseline = read_baseline(config)
    baseline_id = None if baseline is None else baseline["run_id"]
    identity = science(config, baseline=baseline_id)
    has_data = packed_path(config.dataset.name, Path(config.dataset.root)).exists()
    if has_data or config.overwrite or not places_of(config, identity).record.exists():
        dataset = load_dataset(
            config.dataset,
            Path(config.dataset.root),
            limit_train=config.dataset.limit_train,
            limit_test=config.dataset.limit_test,
            val_fraction=config.recipe.val_fraction,
        )
        identity = science(config, digest=dataset.digest, baseline=baseline_id)
    places = places_of(config, identity)
    record = places.finished()
    if record is not None and not config.overwrite:
        print(f"{places.run_id} is already finished (overwrite=true runs it again)")
    else:
        try:
            record = run(config, identity, places, dataset, baseline, overrides)
        except Locked as holder:
            print(f"{places.run_id} is being worked on by {holder}")
            return 0
        if record is None:
            print("stopped by max_minutes: with resume=true the same command continues")
            return OUT_OF_TIME
    print(summary(record, places))
    return 0


def read_baseline(config: TrainConfig) -> dict[str, Any] | None:
    """The checkpoint of the trained network that the model starts from, if it starts from one."""
    if config.baseline_checkpoint is None:
        return None
    checkpoint = load(Path(config.baseline_checkpoint))
    expected = (architecture(config.model.name).baseline, "Conv", config.dataset.name)
    found = checkpoint["science"]
    actual = found["model"]["name"], variant_name(found["variant"]), found["dataset"]["name"]
    if actual != expected or "optimizer" in checkpoint:
        raise UserError(
            f"baseline_checkpoint={config.baseline_checkpoint} does not hold the best weights "
            f"(best.pt) of a {expected[0]}-Conv trained on {expected[2]}: it is of "
            f"{checkpoint['run_id']}, epoch {checkpoint['epoch']}"
        )
    return checkpoint


def places_of(config: TrainConfig, identity: dict[str, Any]) -> Places:
    """Where the files of the run with this science config lie."""
    folders = (config.results_dir, config.checkpoint_dir, config.log_dir)
    return Places(run_id(identity), *map(Path, folders))


def run(
    config: TrainConfig,
    identity: dict[str, Any],
    places: Places,
    dataset: Dataset,
    baseline: dict[str, Any] | None,
    overrides: list[str],
) -> dict[str, Any] | None:
    """Build what the engine needs and let it train; returns the record, None if out of time."""
    device, spec = resolve_device(config.device), config.dataset
    torch.set_num_threads(config.runtime.threads or DEFAULT_THREADS)
    if config.runtime.keep_memory:
        keep_freed_memory()
    print(f"{places.run_id} on {device}", flush=True)
    return execute(
        places,
        identity,
        lambda: initial_model(config, identity, baseline).to(device),
        DATA[config.runtime.data](
            dataset,
            spec,
            batch_size=config.recipe.batch_size,
            eval_batch_size=config.runtime.eval_batch_size,
            seed=config.seed,
            device=device,
        ),
        train_settings(config, identity),
        speed(config.runtime),
        start=provenance(
            device,
            overrides=[portable_override(override) for override in overrides],
            runtime=asdict(config.runtime),
            dataset_path=portable(packed_path(spec.name, Path(spec.root))),
        ),
        input_shape=(spec.channels, SIZE, SIZE),
        restart=Restart(config.resume, config.overwrite),
        image_every=config.image_every,
        deadline=STARTED + 60 * (config.max_minutes or math.inf),
    )


def portable_override(override: str) -> str:
    """`key=value` as the record keeps it: see `portable`."""
    key, _, value = override.partition("=")
    unquoted = value.strip("'\"")
    return f"{key}={portable(unquoted)}" if key in PATHS and unquoted else override


def initial_model(
    config: TrainConfig, identity: dict[str, Any], baseline: dict[str, Any] | None
) -> torch.nn.Module:
    """The network with the run's initial weights, on the CPU."""
    shape = {"in_channels": config.dataset.channels, "classes": config.dataset.classes}
    with seeded("init", config.seed):
        model = build_model(config.model.name, Variant.from_science(identity["variant"]), **shape)
    if baseline is not None:
        trained = build_model(baseline["science"]["model"]["name"], Variant(), **shape)
        trained.load_state_dict(baseline["model"])
        model.start_from(trained)
    seed_dropout(model, config.seed)
    set_execution(model, config.runtime.execution)
    return model


def train_settings(config: TrainConfig, identity: dict[str, Any]) -> TrainSettings:
    """What the engine trains."""
    recipe, regularizer = config.recipe, identity["regularizer"]
    return TrainSettings(
        epochs=recipe.epochs,
        lr=identity["recipe"]["lr"],
        lr_decay_every=recipe.lr_decay_every,
        lr_decay_factor=recipe.lr_decay_factor,
        regularizer=Regularizer(**regularizer) if regularizer else None,
        precision=config.precision,
    )


def speed(runtime: RuntimeConfig) -> Speed:
    """How the engine computes it."""
    return Speed(
        channels_last=runtime.channels_last,
        fused_adam=runtime.fused_adam,
        capture=runtime.cuda_graphs,
        fold_batch_norms=runtime.fold_batch_norms,
        pool_before_relu=runtime.pool_before_relu,
        pool_before_norm=runtime.pool_before_norm,
        small_image_products=runtime.small_image_products,
        save_every_s=runtime.save_every_s,
    )


def summary(record: dict[str, Any], places: Places) -> str:
    """The result row, and where everything of the run lies."""
    name = record["science"]
    parts = [
        f"{name['model']['name']}-{variant_name(name['variant'])} on {name['dataset']['name']}",
        f"best test accuracy {record['test_acc_best']:.2f} % (epoch {record['best_epoch']})",
        f"last {record['test_acc_last']:.2f} %",
        f"{record['params'] / 1e6:.2f} M parameters",
        f"{record['timing']['seconds']:.0f} s",
    ]
    return "\n".join(
        [
            " | ".join(parts),
            f"record      {places.record}",
            f"checkpoints {places.checkpoints}/",
            f"TensorBoard {places.log}/",
        ]
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_main("train", train)
