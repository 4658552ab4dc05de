"""Evaluate a run's weights, unfused and fused: python eval.py run=<run_id>."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import configs.checkout  # noqa: F401  # says which packages are missing, torch among them

# isort: split
import torch
from torch import nn

from configs import EvalConfig, dataset_config, dataset_names
from configs.cli import run_main
from configs.experiments import results_dirs
from configs.groups import group_file, group_names
from configs.identity import Identity
from data import SIZE, Augmentation, DatasetFile, DatasetSpec, Normalisation, ResidentBatches
from data.own import describe
from data.packed import packed_path
from linearconv import fuse
from linearconv.engine.checkpoint import Checkpoints, load, load_weights
from linearconv.engine.device import resolve_device
from linearconv.engine.lock import RunLocked
from linearconv.engine.precision import autocast, precision_flags
from linearconv.engine.record import read_record
from linearconv.engine.run import RunPaths, settle
from linearconv.engine.step import evaluate
from linearconv.engine.weights import MAX_PARAMETERS, read_weights, weights_path
from linearconv.errors import UserError, did_you_mean
from models import Variant, build_model

log = logging.getLogger(__name__)

FILE_OPTION = "dataset.path=<file>.npz"
"""How eval.py is given the file of a dataset, for error messages."""


def main(config: EvalConfig, overrides: list[str]) -> None:
    """Print the test accuracy, unfused and fused, and the largest difference of their logits."""
    path, checkpoint = read_checkpoint(config)
    identity, device = checkpoint["science"], resolve_device(config.device)
    if config.runtime.threads is not None:
        torch.set_num_threads(config.runtime.threads)
    batches = test_batches(
        identity,
        Path(config.dataset.root),
        path=config.dataset.path,
        batch_size=config.batch_size,
        device=device,
    )
    model = trained_model(checkpoint, batches.spec).to(device)
    fused = fuse(model)
    precision = identity["precision"]
    with precision_flags(precision):
        print(f"{checkpoint['run_id']} after epoch {checkpoint['epoch']} ({path})", flush=True)
        for name, network in (("unfused", model), ("fused", fused)):
            result = evaluate(network, batches.test(), precision)
            print(f"{name:8} test accuracy {result.accuracy:.2f} %  loss {result.loss:.4f}")
            if network is model:
                compare_with_record(checkpoint, result.accuracy, results_dirs(config.results_dir))
        with autocast(precision, device):
            difference = largest_logit_difference(model, fused, batches)
    print(f"largest logit difference {difference:.2e}")


def compare_with_record(
    checkpoint: dict[str, Any], percent: float, results: Sequence[Path]
) -> None:
    """Say so if the run's record has another accuracy than these weights reach now."""
    for path in (folder / "runs" / f"{checkpoint['run_id']}.json" for folder in results):
        if not path.exists():
            continue
        epoch, curve = checkpoint["epoch"], read_record(path)["curve"]
        recorded = curve[epoch - 1]["test_acc"] if epoch <= len(curve) else percent
        if abs(percent - recorded) >= 0.005:
            print(
                f"recorded test accuracy {recorded:.2f} % ({path}): rounding on another device "
                "turns over single images; more than that means that the model's code, the images "
                "or the weights have changed since the run"
            )


def read_checkpoint(config: EvalConfig) -> tuple[Path, dict[str, Any]]:
    """The file to evaluate and its content: the named one, else the run's."""
    if config.checkpoint is not None:
        path = Path(config.checkpoint)
        published = path.suffix == ".safetensors"
        return path, read_weights(path, config.weights) if published else load(path)
    return find_checkpoint(
        config.run,
        config.weights,
        Path(config.checkpoint_dir),
        results_dirs(config.results_dir),
    )


def find_checkpoint(
    run: str, weights: str, checkpoint_dir: Path, results: Sequence[Path]
) -> tuple[Path, dict[str, Any]]:
    """A run's best or last checkpoint or, without any, its published weights.

    Raises:
        UserError: there is neither; the message says what to do.
    """
    for folder in results:
        with suppress(RunLocked, UserError, OSError):  # what is here can be read all the same
            settle(RunPaths(run, folder, checkpoint_dir, log_dir=Path()))
    checkpoints = Checkpoints(checkpoint_dir / run)
    found = [checkpoints.best] if weights == "best" else checkpoints.epochs()[-1:]
    for path in found:
        if path.exists():
            return path, load(path)
    published = [weights_path(folder, run) for folder in results]
    for path in published:
        if path.exists():
            return path, read_weights(path, weights)
    known = {path.name for path in checkpoint_dir.glob("*/")}
    known |= {path.stem for each in published for path in each.parent.glob("*.safetensors")}
    near = did_you_mean(Path(run).name, known) or "."
    raise UserError(
        f"run {run} has no {weights} weights{near} There is neither a checkpoint in "
        f"{checkpoints.folder}/ nor {' or '.join(map(str, published))}. Train the run first "
        f"(overwrite=true, if it has a record); networks with more than {MAX_PARAMETERS:,} "
        "parameters publish no weights"
    )


def check_revision(model: dict[str, Any]) -> None:
    """Warn if a model is another one now than the one that was trained."""
    known = model["name"] in group_names("model")
    revision = group_file("model", model["name"])["revision"] if known else model["revision"]
    if revision != model["revision"]:
        log.warning(
            "the run was trained with revision %s of %s, this is revision %s, which computes "
            "something else: use the code that trained it",
            model["revision"],
            model["name"],
            revision,
        )


def trained_model(checkpoint: dict[str, Any], spec: DatasetSpec) -> nn.Module:
    """The network of a checkpoint, in evaluation mode, on the CPU.

    Raises:
        UserError: the model has other parameters now than when it was trained.
    """
    identity = checkpoint["science"]
    check_revision(identity["model"])
    model = build_model(
        identity["model"]["name"],
        Variant.from_identity(identity["variant"]),
        in_channels=spec.channels,
        classes=spec.classes,
    )
    load_weights(model, checkpoint)
    return model.eval()


def test_batches(
    identity: Identity,
    root: Path,
    *,
    batch_size: int,
    device: torch.device,
    path: str | None = None,
    option: str = FILE_OPTION,
    plain_train: int = 1,
) -> ResidentBatches:
    """The test images that a run was evaluated on; see `dataset_of`.

    The batches have no training images, but the first `plain_train` of them as `val()`, that is,
    without augmentation.
    """
    spec = dataset_of(identity, root, path, option=option)
    file, trained_on = DatasetFile(spec, root), identity["dataset"]["digest"]
    if file.digest != trained_on:
        raise UserError(
            f"{file.unknown}. The run was trained on images with the digest {trained_on}: give the "
            f"file with them as {option}"
        )
    limit = identity["dataset"]["limit_test"]
    data = file.load(limit_train=plain_train, limit_test=limit, val_fraction=1.0, option=None)
    return ResidentBatches(
        data,
        spec,
        batch_size=batch_size,
        eval_batch_size=batch_size,
        seed=identity["seed"],
        device=device,
    )


def dataset_of(
    identity: Identity, root: Path, path: str | None = None, *, option: str = FILE_OPTION
) -> DatasetSpec:
    """The dataset of a run, with all that the identity says of it.

    Args:
        identity: the run's.
        root: the folder of packed datasets.
        path: the dataset's file; None: the one in `root`.
        option: how the caller is given a file, for error messages.

    Raises:
        UserError: it was a file of the user's own, which is not given, or another one is.
    """
    recipe, dataset = identity["recipe"], identity["dataset"]
    augmentation = Augmentation(**recipe["augmentation"])
    return replace(
        _described(dataset, root, path, option),
        classes=dataset["classes"],
        channels=len(recipe["normalisation"]["mean"]),
        image_size=SIZE - 2 * augmentation.test_padding,
        augmentation=augmentation,
        normalisation=Normalisation(**recipe["normalisation"]),
    )


def _described(dataset: dict[str, Any], root: Path, path: str | None, option: str) -> DatasetSpec:
    """The description of the dataset in an identity: its config, or that of the user's file."""
    name, digest = dataset["name"], dataset["digest"]
    config = dataset_config(name) if name in dataset_names() else None
    if config is not None and not config.own:
        if digest != config.published:  # a run on data of its own
            config = replace(config, digest=digest, official_md5={})
        return replace(config, path=path)
    if config is None and path is None:
        raise UserError(
            f"the run was trained on a file of your own, named {name}: give it as {option}"
        )
    file = packed_path(name, root.expanduser()) if path is None else Path(path)
    if path is None and not file.exists():
        return replace(config, digest=digest)  # loading it says how to get it
    found = describe(file, name)  # not the config, which may be that of a newer file
    if found.digest != digest:
        raise UserError(
            f"{file} has other images or labels than the file that the run was trained on (sha256 "
            f"{found.digest}, expected {digest}): give that file as {option}"
        )
    return found


@torch.no_grad()
def largest_logit_difference(a: nn.Module, b: nn.Module, batches: ResidentBatches) -> float:
    """Largest absolute difference between two networks' logits over the test images."""
    return max((a(images) - b(images)).abs().max().item() for images, _ in batches.test())


if __name__ == "__main__":
    run_main("eval", main)
