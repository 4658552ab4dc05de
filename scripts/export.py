"""Write a run's network to a file for other programs, and check the file.

    python scripts/export.py cifar10-base-Lr-short-s2-5e582159 --format onnx
    python scripts/export.py cifar10-base-Lr-short-s2-5e582159 --format onnx --int8 --overwrite
    python scripts/export.py cifar10-base-Lr-short-s2-5e582159 --format safetensors --form factored

The weights are those that eval.py evaluates: a checkpoint or, without any, the published ones. With
--form folded (the default) every layer is a plain convolution; factored keeps the primary filters
and their coefficients, and combines outputs. Before the file gets its name, it is loaded again and
its logits for test images (random ones, if the dataset's file is missing) are compared with those
of the network in torch, unfused. docs/deployment.md shows how to use the files.
"""

from __future__ import annotations

try:
    from scripts.command import exit_with
except ModuleNotFoundError as missing:
    raise SystemExit(f"{missing}: run `make setup`, or pip install -e '.[train]'") from None

import argparse
import copy
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.cli import FAILED, MISTAKE
from configs.experiments import results_dirs
from configs.identity import Identity
from data import SIZE, DatasetFile, DatasetSpec, ResidentBatches, default_root
from eval import dataset_of, find_checkpoint, test_batches, trained_model
from linearconv import LinearConv2d, fuse, set_execution
from linearconv.engine.files import atomic_write, in_checkout
from linearconv.errors import UserError
from models import Variant
from scripts.deployment.formats import FORMATS, About, Format, check_packages
from scripts.deployment.images import random_batches
from scripts.deployment.int8 import CALIBRATION, quantise

IMAGES = 256
"""Images that logits are compared on, in batches of 1, of 7 and of all."""
TOLERANCE = 1e-4
"""Largest difference between two logits, relative to the largest logit."""

TEST_IMAGES = "test images"
FILE_OPTION = "--data-path <file>.npz"
"""How this script is given the file of a dataset, for error messages."""


class Disagreement(Exception):
    """An exported file that computes something else than the network it was made of."""


def main() -> int:
    """Export one run and print one line for each file; returns the exit code."""
    args = _arguments()
    try:
        export(args)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return MISTAKE
    except Disagreement as error:
        print(error, file=sys.stderr)
        return FAILED
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run_id")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--form", choices=("folded", "factored"), default="folded")
    parser.add_argument("--weights", choices=("best", "last"), default="best")
    parser.add_argument(
        "--int8",
        action="store_true",
        help="also an ONNX file with 8-bit weights and activations; prints both accuracies",
    )
    parser.add_argument(
        "--out", type=Path, help="the file (default: exports/<run_id>-<form> and a suffix)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.add_argument(
        "--results-dir", type=Path, help="a results folder (default: results, results/trials)"
    )
    parser.add_argument("--checkpoint-dir", type=Path, default=in_checkout("checkpoints"))
    parser.add_argument(
        "--data-root",
        type=Path,
        default=default_root(),
        help="folder of datasets (default: $LINEARCONV_DATA, else datasets)",
    )
    parser.add_argument("--data-path", help="the .npz of a run with dataset=custom")
    return parser.parse_args()


def export(args: argparse.Namespace) -> None:
    """Write and check the files that the arguments ask for.

    Raises:
        UserError: what is asked for is impossible; nothing was written.
        Disagreement: a file is wrong; it was not kept.
    """
    chosen = FORMATS[args.format]
    path = args.out or Path("exports") / f"{args.run}-{args.form}{chosen.suffix}"
    paths = [path, *([path.with_name(f"{path.stem}-int8{path.suffix}")] if args.int8 else [])]
    _check_request(args, paths)
    _, checkpoint = find_checkpoint(
        args.run, args.weights, args.checkpoint_dir, results_dirs(args.results_dir)
    )
    spec = dataset_of(checkpoint["science"], args.data_root, args.data_path, option=FILE_OPTION)
    batches, kind = check_batches(args, checkpoint["science"], spec)
    class_names = list(batches.dataset.classes) if kind == TEST_IMAGES else None
    model = trained_model(checkpoint, spec)
    network, about = in_form(model, args.form, checkpoint, spec)
    about["weights"] = args.weights
    about["class_names"] = class_names
    _make_folder(path)
    images = next(batches.test())[0].contiguous()  # from channels last, which an export would keep
    difference = write_checked(path, chosen, network, about, model, images)
    print(
        f"{path}: {args.format}, {args.form}, {path.stat().st_size:,} bytes, largest logit "
        f"difference {difference:.1e} on {len(images)} {kind}"
    )
    if args.int8:
        print(quantise(*paths, batches))


def _check_request(args: argparse.Namespace, paths: list[Path]) -> None:
    """Check everything that can be checked before the network is built."""
    if args.int8 and args.format != "onnx":
        raise UserError(f"--int8 needs --format onnx, got {args.format}")
    if args.format == "onnx":
        check_packages("onnx", "onnxscript", "onnxruntime")
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path} is a folder; --out is the name of the file")
        if path.exists() and not args.overwrite:
            raise UserError(f"{path} exists; --overwrite replaces it, --out names another file")


def check_batches(
    args: argparse.Namespace, identity: Identity, spec: DatasetSpec
) -> tuple[ResidentBatches, str]:
    """The run's test images, and what they are.

    If the dataset's file is missing, they are random ones; with --int8, which needs training
    images as well, as `val()`, it is downloaded.
    """
    root, size = args.data_root, {"batch_size": IMAGES, "device": torch.device("cpu")}
    if args.int8 or DatasetFile(spec, root).path.exists():
        where = {"path": args.data_path, "option": FILE_OPTION}
        return test_batches(identity, root, **size, **where, plain_train=CALIBRATION), TEST_IMAGES
    kind = f"random images, since {spec.name}.npz is not in {root}"
    return random_batches(spec, count=IMAGES), kind


def _make_folder(path: Path) -> None:
    """Make the folder of a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}; --out names another file") from None


def in_form(
    model: nn.Module, form: str, checkpoint: dict[str, Any], spec: DatasetSpec
) -> tuple[nn.Module, About]:
    """The network to export, and what to say of it.

    Returns:
        The network; and, in plain values, all that `models.build_model` needs to build it and that
        is needed to make its inputs.
    """
    variant = Variant.from_identity(checkpoint["science"]["variant"])
    if form == "folded":
        network = fuse(model)
        variant = replace(variant, linear=False, regularized=False, rank=None)
    elif any(isinstance(module, LinearConv2d) for module in model.modules()):
        network = copy.deepcopy(model)
        set_execution(network, "factored")
    else:
        raise UserError(
            f"{checkpoint['run_id']} has no LinearConv layers that could be factored; use "
            "--form folded"
        )
    return network.requires_grad_(False), {
        "run_id": checkpoint["run_id"],
        "epoch": checkpoint["epoch"],
        "form": form,
        "model": checkpoint["science"]["model"]["name"],
        "variant": asdict(variant),
        "dataset": spec.name,
        "classes": spec.classes,
        "channels": spec.channels,
        "size": SIZE,
        "padding": spec.augmentation.test_padding,
        "mean": list(spec.normalisation.mean),
        "std": list(spec.normalisation.std),
        "input": "float32 (N, channels, size, size): pad the pixels with `padding` zeros on each "
        "side, divide by 255, subtract `mean`, divide by `std`, per channel",
    }


def write_checked(
    path: Path, chosen: Format, network: nn.Module, about: About, model: nn.Module, images: Tensor
) -> float:
    """Write a file that computes what `model` does; returns the largest difference of the logits.

    Raises:
        Disagreement: it does not; there is no file then.
    """
    with atomic_write(path) as file:
        example = images[[0, -1]]  # two, as torch.export takes a batch of one for a constant
        file.write(chosen.content(network, example, about))
        file.flush()
        logits, found = chosen.read(Path(file.name))
        if found != about:
            raise Disagreement(f"{path} was not written: its metadata differ from what was given")
        return check_logits(path, logits, model, images)


@torch.no_grad()
def check_logits(path: Path, logits: Any, model: nn.Module, images: Tensor) -> float:
    """The largest difference of two networks' logits, in batches of several sizes."""
    expected = model(images)
    differences = [
        (logits(images[:count]) - expected[:count]).abs().max() for count in (1, 7, len(images))
    ]
    difference, largest = torch.stack(differences).max(), expected.abs().max()
    if not difference <= TOLERANCE * largest:  # also if one is not a number
        raise Disagreement(
            f"{path} was not written: its logits differ by {difference:.1e} from those in torch, "
            f"of at most {largest:.1e}; allowed is {TOLERANCE:g} of that"
        )
    return difference.item()


if __name__ == "__main__":
    exit_with(main)
