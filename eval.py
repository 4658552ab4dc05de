"""Evaluate a checkpoint, unfused and fused: python eval.py run=<run_id>."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from configs import EvalConfig, dataset_config
from configs.cli import run_main
from configs.identity import Identity
from data import Augmentation, Normalisation, ResidentBatches, load_dataset
from linearconv import fuse
from linearconv.engine.checkpoint import Checkpoints, load
from linearconv.engine.device import resolve_device
from linearconv.engine.precision import autocast, precision_flags
from linearconv.engine.step import evaluate
from linearconv.errors import UserError
from models import Variant, build_model


def main(config: EvalConfig, overrides: list[str]) -> int:
    """Print the test accuracy, unfused and fused, and the largest difference of their logits."""
    path = checkpoint_path(config)
    checkpoint = load(path)
    identity, device = checkpoint["science"], resolve_device(config.device)
    batches = test_batches(identity, config, device)
    spec = batches.spec
    model = build_model(
        identity["model"]["name"],
        Variant.from_identity(identity["variant"]),
        in_channels=spec.channels,
        classes=spec.classes,
    )
    model.load_state_dict(checkpoint["model"])
    model = model.to(device).eval()
    fused = fuse(model)
    precision = identity["precision"]
    with precision_flags(precision):
        print(f"{checkpoint['run_id']} after epoch {checkpoint['epoch']} ({path})")
        for name, network in (("unfused", model), ("fused", fused)):
            result = evaluate(network, batches.test(), precision)
            print(f"{name:8} test accuracy {result.accuracy:.2f} %  loss {result.loss:.4f}")
        with autocast(precision, device):
            difference = largest_logit_difference(model, fused, batches)
    print(f"largest logit difference {difference:.2e}")
    return 0


def checkpoint_path(config: EvalConfig) -> Path:
    """The checkpoint file to evaluate."""
    if config.checkpoint is not None:
        return Path(config.checkpoint)
    checkpoints = Checkpoints(Path(config.checkpoint_dir) / config.run)
    if config.weights == "best":
        return checkpoints.best
    epochs = checkpoints.epochs()
    if not epochs:
        raise UserError(f"no checkpoint found in {checkpoints.folder}/: train the run first")
    return epochs[-1]


def test_batches(identity: Identity, config: EvalConfig, device: torch.device) -> ResidentBatches:
    """The test images that the run was evaluated on."""
    recipe, dataset = identity["recipe"], identity["dataset"]
    spec = replace(
        dataset_config(dataset["name"]),
        augmentation=Augmentation(**recipe["augmentation"]),
        normalisation=Normalisation(**recipe["normalisation"]),
        digest=dataset["digest"],
    )
    data = load_dataset(
        spec, Path(config.dataset.root), limit_train=1, limit_test=dataset["limit_test"]
    )
    return ResidentBatches(
        data,
        spec,
        batch_size=config.batch_size,
        eval_batch_size=config.batch_size,
        seed=identity["seed"],
        device=device,
    )


@torch.no_grad()
def largest_logit_difference(a: nn.Module, b: nn.Module, batches: ResidentBatches) -> float:
    """Largest absolute difference between two networks' logits over the test images."""
    return max((a(images) - b(images)).abs().max().item() for images, _ in batches.test())


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_main("eval", main)
