"""The options of compress.py, and which of their values are possible."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from configs.checks import check_device
from data import default_root
from linearconv.engine.files import check_output_folder
from linearconv.engine.precision import PRECISIONS
from linearconv.errors import UserError

IMAGE_SIZE, WORKERS = 224, 2
"""Defaults for a folder."""

LEAST = {
    "image_size": 8,
    "train_images": 2,
    "epochs": 0,
    "finetune_epochs": 1,
    "batch_size": 2,
    "rank": 1,
    "threads": 1,
    "workers": 0,
}
"""The least value of each whole number."""


def parse(description: str) -> argparse.Namespace:
    """The options, checked.

    Raises:
        UserError: as in `check`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_data_options(parser)
    _add_conversion_options(parser)
    _add_training_options(parser)
    args = parser.parse_args()
    check(args)
    return args


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    """The network and its images."""
    option = parser.add_argument
    option(
        "--model",
        default="torchvision:resnet18",
        metavar="LIBRARY:NAME",
        help="torchvision:NAME, timm:NAME or a model of this project (default: %(default)s)",
    )
    option("--pretrained", action="store_true", help="start from the library's weights")
    option(
        "--data",
        default="cifar10",
        help="a dataset, or a folder with train/<class>/ and test/<class>/ (or val/), or with "
        "<class>/ alone, of which a fifth is for testing; a folder that is called like a dataset "
        "is ./NAME; default: %(default)s",
    )
    option(
        "--data-root",
        type=Path,
        default=default_root(),
        help="folder of datasets (default: $LINEARCONV_DATA, else datasets)",
    )
    option(
        "--strict",
        action="store_true",
        help="refuse test images that are training images, too, instead of warning",
    )
    option("--image-size", type=int, help=f"of the images of a folder ({IMAGE_SIZE})")
    option(
        "--train-images",
        type=int,
        default=8000,
        help="use only so many, of a folder, too (%(default)s)",
    )
    option("--workers", type=int, help=f"processes that read a folder ({WORKERS})")


def _add_conversion_options(parser: argparse.ArgumentParser) -> None:
    """What the network is converted to."""
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--budget",
        type=float,
        default=0.6,
        help="share of the parameters to keep; layers and shares are chosen (%(default)s)",
    )
    size.add_argument("--alpha", type=float, help="instead: share of stored filters in every layer")
    option = parser.add_argument
    option("--rank", type=int, help="of the coefficients (LRr); default: full")
    option(
        "--skip",
        nargs="*",
        default=[],
        metavar="NAME",
        help="modules, or patterns, whose convolutions stay",
    )
    option(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="write the folded, the factored and the fastest network here, for "
        "linearconv.load_converted",
    )


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    """How the networks are trained, and on what."""
    option = parser.add_argument
    option("--epochs", type=int, default=5, help="of the plain network (%(default)s)")
    option("--finetune-epochs", type=int, default=3, help="of the converted one (%(default)s)")
    option("--lr", type=float, default=1e-3, help="learning rate of Adam (%(default)s)")
    option("--finetune-lr", type=float, default=3e-4, help="in fine-tuning (%(default)s)")
    option("--batch-size", type=int, default=64)
    option(
        "--distill",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fine-tune towards the plain network's outputs, else towards the labels (yes)",
    )
    option(
        "--strength",
        type=float,
        default=1e-2,
        help="of the correlation loss, which is added to every 10th batch, or to the last one of "
        "shorter epochs (%(default)s)",
    )
    option("--seed", type=int, default=0)
    option("--precision", default="tf32", choices=sorted(PRECISIONS))
    option("--threads", type=int, help="CPU threads; default: torch's")
    option("--device", default="auto")


def check(args: argparse.Namespace) -> None:
    """Reject impossible values before any data is read.

    Raises:
        UserError: the message names the option and what was expected.
    """
    for name, least in LEAST.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"{option_of(name)} must be at least {least}, got {value}")
    for name in ("lr", "finetune_lr"):
        if not 0 < getattr(args, name) < math.inf:
            raise UserError(f"{option_of(name)} must be above 0, got {getattr(args, name)}")
    if not 0 <= args.strength < math.inf:
        raise UserError(f"--strength must be at least 0, got {args.strength}")
    for name in ("alpha", "budget"):
        if getattr(args, name) is not None and not 0 < getattr(args, name) < 1:
            raise UserError(
                f"--{name} must be between 0 and 1 (exclusive), got {getattr(args, name)}"
            )
    if args.rank is not None and args.alpha is None:
        raise UserError("--rank goes with --alpha: a budget chooses full coefficients")
    check_device(args.device)
    if args.out is not None:
        check_output_folder("--out", args.out)


def option_of(name: str) -> str:
    """The option that sets an attribute."""
    return f"--{name.replace('_', '-')}"
