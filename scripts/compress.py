"""Compress a network with LinearConv, and show what it costs and saves.

    python scripts/compress.py    # torchvision's ResNet-18 on 8,000 images of CIFAR-10
    python scripts/compress.py --model timm:resnet18 --pretrained --data FOLDER --image-size 128

The network is trained as it is, its convolutions are converted with a warm start on training
images, the result is fine-tuned with the correlation loss towards the outputs of the plain network,
trained on for as long, and folded.
For comparison the low-rank pair of the same size, and the network with as many fewer filters, are
fine-tuned likewise. Accuracies are those of the last epoch: no epoch is selected.
"""

from __future__ import annotations

try:
    from scripts.command import exit_with
except ModuleNotFoundError as missing:
    raise SystemExit(f"{missing}: run `make setup`, or pip install -e '.[train]'") from None

import argparse
import logging
import sys
from pathlib import Path

import torch

from configs import dataset_config, dataset_names
from configs.cli import FAILED, INTERRUPTED, MISTAKE
from data import ResidentBatches, load_dataset
from data.folder_batches import FolderBatches
from data.spec import Normalisation
from linearconv.engine.device import device_name, resolve_device
from linearconv.engine.loop import Batches
from linearconv.engine.seeding import derive_seed, seeded
from linearconv.errors import UserError
from models.foreign import any_network, check_network, published_normalisation
from scripts.compression.compression import Compression
from scripts.compression.options import IMAGE_SIZE, WORKERS, option_of, parse

EVAL_BATCH = 256


def main() -> int:
    """Compress a network and print the comparison; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        compress(parse(__doc__))
    except UserError as error:
        print(error, file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:  # a full disk, a folder that is gone
        print(f"stopped: {error}", file=sys.stderr)
        return FAILED
    return 0


def compress(args: argparse.Namespace) -> None:
    """Compress a network and print the comparison.

    Raises:
        UserError: something is impossible or went wrong; nearly always before any training.
    """
    check_network(args.model, pretrained=args.pretrained)
    device = resolve_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(derive_seed("compress", args.seed))  # dropout in foreign networks
    batches, classes = load_batches(args, device)
    channels = next(batches.test())[0].shape[1]
    with seeded("init", args.seed):
        network = any_network(
            args.model, in_channels=channels, classes=classes, pretrained=args.pretrained
        )
    compression = Compression(args, network.to(device), batches, classes)
    try:
        compression.run()
    finally:  # what has been trained and measured is shown, whatever stops the rest
        if compression.rows:
            print(f"\n{compression.table()}\n{conditions(args, batches, device)}", flush=True)


def load_batches(args: argparse.Namespace, device: torch.device) -> tuple[Batches, int]:
    """The data, and its number of classes.

    A dataset goes before a folder of its name in the working directory.

    Raises:
        UserError: there is no such data, or an option does not apply to it.
    """
    sizes = {"batch_size": args.batch_size, "eval_batch_size": EVAL_BATCH}
    if args.data in dataset_names():
        for name in ("image_size", "workers"):
            if getattr(args, name) is not None:
                raise UserError(f"{option_of(name)} applies to a folder, --data is {args.data}")
        spec = dataset_config(args.data)
        limit = min(args.train_images, spec.train_size)
        dataset = load_dataset(
            spec, args.data_root, limit_train=limit, strict=args.strict, option="--strict"
        )
        return ResidentBatches(dataset, spec, seed=args.seed, device=device, **sizes), spec.classes
    if not Path(args.data).is_dir():
        raise UserError(
            f"--data {args.data}: there is no such folder; expected one, or a dataset: "
            f"{', '.join(dataset_names())}"
        )
    batches = FolderBatches(
        Path(args.data),
        size=args.image_size or IMAGE_SIZE,
        normalisation=Normalisation(*published_normalisation(args.model)),
        limit=args.train_images,
        seed=args.seed,
        workers=WORKERS if args.workers is None else args.workers,
        device=device,
        strict=args.strict,
        **sizes,
    )
    return batches, batches.classes


def conditions(args: argparse.Namespace, batches: Batches, device: torch.device) -> str:
    """What the figures depend on."""
    return (
        f"{args.model} on {args.data}, {batches.train_size:,} training images, seed {args.seed} "
        f"(n = 1), {device_name(device)}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )


if __name__ == "__main__":
    exit_with(main)
