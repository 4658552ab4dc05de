"""Evaluate all published weights and compare them with the records, image by image.

    python scripts/verify.py                        # every file in results/weights/
    python scripts/verify.py cifar10-base-Lr-short-s2-5e582159

For each run: the network is built from the identity in its record, the digest of the last weights
must be the recorded one, and the test images that the best and the last weights classify correctly
must be as many as recorded and, if the run's artifacts have them, the same ones. Another device
rounds differently, so an image may turn over whose two highest logits are almost equal; the line
says how many did. Not checked are runs whose dataset is not here, and those with dataset=custom,
whose file is nowhere recorded. Exit code 1 if a run is not reproduced, or none could be checked.
"""

from __future__ import annotations

try:
    from scripts.command import exit_with
except ModuleNotFoundError as missing:
    raise SystemExit(f"{missing}: run `make setup`, or pip install -e '.[train]'") from None

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs import dataset_names
from configs.cli import FAILED, MISTAKE
from data import ResidentBatches, default_root
from eval import test_batches, trained_model
from linearconv.engine.device import resolve_device
from linearconv.engine.digests import canonical_json
from linearconv.engine.precision import autocast, precision_flags
from linearconv.engine.record import read_record, weights_sha256
from linearconv.engine.weights import published_runs, read_all_weights, weights_path
from linearconv.errors import UserError
from scripts.evidence.artifacts import read_correct
from scripts.evidence.results import RESULTS

TIES = {"fp32": 1e-3, "tf32": 0.05, "bf16": 0.5}
"""By precision, the largest difference between two logits that rounding can turn over; tf32 is fp32
where neither the run nor the check is on a GPU."""


class Mismatch(Exception):
    """Weights that are not those of the record, or do not reproduce it."""


class Unchecked(Exception):
    """A run that cannot be checked on this machine."""


@dataclass(frozen=True)
class Predictions:
    """A network's predictions for N test images.

    Attributes:
        correct: (N,) bool, whether each image is classified correctly.
        tied: (N,) bool, whether rounding could turn that over.
    """

    correct: np.ndarray
    tied: np.ndarray


def main() -> int:
    """Verify and print one line for each set of weights; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="*", help="run_ids; default: all that have weights")
    parser.add_argument("--results-dir", type=Path, default=RESULTS)
    parser.add_argument(
        "--data-root",
        type=Path,
        default=default_root(),
        help="folder of datasets (default: $LINEARCONV_DATA, else datasets)",
    )
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    if not args.results_dir.is_dir():
        print(f"--results-dir {args.results_dir}: there is no such folder", file=sys.stderr)
        return MISTAKE
    runs = args.run or published_runs(args.results_dir)
    if not runs:
        print(f"no weights in {args.results_dir}/weights/: nothing to verify")
        return 0
    try:
        sets = TestSets(args.data_root, resolve_device(args.device))
    except UserError as error:
        print(error, file=sys.stderr)
        return MISTAKE
    failed, unchecked = [], []
    for run in runs:
        try:
            for line in verify(run, args.results_dir, sets):
                print(line, flush=True)
        except Unchecked as reason:
            print(f"{run}: not checked: {reason}", flush=True)
            unchecked.append(run)
        except (Mismatch, UserError, OSError) as error:
            print(f"{run}: FAILED: {error}", flush=True)
            failed.append(run)
    checked = len(runs) - len(unchecked)
    print(
        f"{checked - len(failed)} of {checked} runs are reproduced by their weights"
        + (f", {len(unchecked)} not checked" if unchecked else "")
    )
    return FAILED if failed or not checked else 0


class TestSets:
    """The test images that runs were evaluated on, each loaded once.

    Args:
        root: the folder of packed datasets.
        device: of the images.
    """

    __test__ = False  # not a test of pytest's

    def __init__(self, root: Path, device: torch.device) -> None:
        self.root, self.device = root, device
        self._loaded: dict[str, ResidentBatches] = {}

    def of(self, identity: dict[str, Any]) -> ResidentBatches:
        """The test images of a run."""
        recipe = {key: identity["recipe"][key] for key in ("augmentation", "normalisation")}
        key = canonical_json([identity["dataset"], recipe])
        if key not in self._loaded:
            self._loaded[key] = test_batches(
                identity,
                self.root,
                batch_size=250,
                device=self.device,
                option=f"{self.root}/{identity['dataset']['name']}.npz",
            )
        return self._loaded[key]


def verify(run_id: str, folder: Path, sets: TestSets) -> Iterator[str]:
    """Compare a run's weights with its record; yields one line for each set of weights.

    Raises:
        Mismatch: they differ.
        Unchecked: the run's dataset is not among the packed ones.
        UserError: a file of the run is missing or damaged.
    """
    record = read_record(folder / "runs" / f"{run_id}.json")
    weights = read_all_weights(weights_path(folder, run_id))
    if "last" not in weights:
        raise Mismatch("the file does not contain the last weights")
    for name, checkpoint in weights.items():
        try:
            _check_facts(record, name, checkpoint)
            if record["science"]["dataset"]["name"] not in dataset_names():
                raise Unchecked("dataset=custom needs its file; eval.py takes it as dataset.path")
            try:
                spec = sets.of(record["science"]).spec
            except UserError as error:  # a dataset that is not here, or another one of its name
                raise Unchecked(str(error)) from None
            model = trained_model(checkpoint, spec)
            if name == "last" and weights_sha256(model) != record["final_weights_sha256"]:
                raise Mismatch("the digest of the last weights is not the recorded one")
            recorded = record["curve"][checkpoint["epoch"] - 1]["test_acc"]
        except (RuntimeError, KeyError, IndexError, TypeError) as error:
            raise Mismatch(f"record and {name} weights do not fit: {error!r}") from None
        found = predict(model, sets, record)
        note = compare(found, recorded, read_correct(folder, run_id, name))
        yield f"{run_id} {name}, epoch {checkpoint['epoch']}: {recorded:.2f} % {note}"
    if "best" not in weights:
        yield f"{run_id} best: not published"


def _check_facts(record: dict[str, Any], name: str, checkpoint: dict[str, Any]) -> None:
    """Compare what a file of weights says of itself with the record."""
    selected = record.get("val_acc_best_epoch", record["best_epoch"])
    expected = {
        "run_id": record["run_id"],
        "science": record["science"],
        "epoch": {"best": selected, "last": len(record["curve"])}[name],
    }
    wrong = [key for key, value in expected.items() if checkpoint[key] != value]
    if wrong:
        raise Mismatch(f"the {name} weights are of another run: {', '.join(wrong)} differ")


@torch.no_grad()
def predict(model: torch.nn.Module, sets: TestSets, record: dict[str, Any]) -> Predictions:
    """The predictions of a record's network, in evaluation mode, for its test images."""
    precision = record["science"]["precision"]
    kinds = {start["device_kind"] for start in record["provenance"]}
    on_gpu = sets.device.type == "cuda" or "cuda" in kinds
    tie = TIES["fp32" if precision == "tf32" and not on_gpu else precision]
    model, correct, tied = model.to(sets.device), [], []
    with precision_flags(precision):
        for images, labels in sets.of(record["science"]).test():
            with autocast(precision, images.device):
                logits = model(images).float()
            right = logits.gather(1, labels[:, None])[:, 0]
            others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
            correct.append(logits.argmax(dim=1) == labels)
            tied.append((right - others).abs() <= tie)
    return Predictions(torch.cat(correct).cpu().numpy(), torch.cat(tied).cpu().numpy())


def compare(found: Predictions, recorded: float, images: np.ndarray | None) -> str:
    """Compare predictions with the recorded accuracy (percent) and, if known, images (N,) bool.

    Returns:
        What agrees.

    Raises:
        Mismatch: they differ by more than rounding.
    """
    total, count = len(found.correct), int(found.correct.sum())
    expected = round(recorded * total / 100)
    if images is None:
        lost = int((found.correct & found.tied).sum())
        gained = int((~found.correct & found.tied).sum())
        if not count - lost <= expected <= count + gained:
            raise Mismatch(f"{count} of {total} images are correct, recorded are {expected}")
        return "as recorded" if count == expected else f"recorded, {100 * count / total:.2f} % here"
    if len(images) != total or images.sum() != expected:
        raise Mismatch(
            f"the artifacts have {images.sum()} of {len(images)} images correct, the record has "
            f"{expected} of {total}"
        )
    turned = found.correct != images
    if (turned & ~found.tied).any():
        raise Mismatch(
            f"{turned.sum()} images are classified otherwise than recorded, "
            f"{(turned & ~found.tied).sum()} of them not near a tie"
        )
    if turned.any():
        return f"as recorded, but for {turned.sum()} of {total} images, near a tie"
    return f"as recorded, on each of {total} images"


if __name__ == "__main__":
    exit_with(main)
