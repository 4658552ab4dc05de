"""Compress a network with LinearConv, and show what it costs and saves.

    python scripts/compress.py    # torchvision's ResNet-18 on 8,000 images of CIFAR-10
    python scripts/compress.py --model timm:resnet18 --pretrained --data FOLDER --image-size 128

The network is trained as it is, its convolutions are converted with a warm start, the result is
fine-tuned with the correlation loss and folded. For comparison the plain network is trained for the
same number of further epochs. Accuracies are those of the last epoch: no epoch is selected.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from configs import dataset_config
from configs.cli import MISTAKE
from data import ResidentBatches, load_dataset
from data.folder_batches import FolderBatches
from data.spec import Normalisation
from linearconv import convert, deploy, fuse, model_correlation_loss, set_execution
from linearconv.complexity import count_macs
from linearconv.engine.device import device_name, resolve_device
from linearconv.engine.fast.speed import Speed
from linearconv.engine.files import atomic_write
from linearconv.engine.loop import Batches, Training, TrainSettings, train_epoch
from linearconv.engine.precision import PRECISIONS, precision_flags
from linearconv.engine.seeding import seeded
from linearconv.engine.step import EagerSteps, Regularizer, evaluate
from linearconv.errors import UserError
from linearconv.table import aligned
from models.foreign import any_network, check_network, published_normalisation
from scripts.bench.timing import latency_ms

SPEED = Speed(channels_last=True, fused_adam=True, small_image_products=True, keep_memory=True)
EVAL_BATCH = 256


@dataclass(frozen=True)
class Row:
    """One network of the comparison.

    Attributes:
        name: what was done.
        parameters: number of stored parameters.
        macs: multiply-adds for one image, as the network is executed.
        accuracy: percentage of the test images.
        latency: median milliseconds of a batch; None if not timed.
    """

    name: str
    parameters: int
    macs: float
    accuracy: float
    latency: float | None = None

    def cells(self) -> tuple[str, ...]:
        """For the table."""
        latency = "" if self.latency is None else f"{self.latency:.1f}"
        counts = (f"{self.parameters:,}", f"{self.macs / 1e6:,.1f}")
        return (self.name, *counts, f"{self.accuracy:.2f}", latency)


class Compression:
    """A network on its way from plain to folded.

    Args:
        args: the options.
        network: to be compressed, on its device.
        batches: the data.
    """

    def __init__(self, args: argparse.Namespace, network: nn.Module, batches: Batches) -> None:
        self.args, self.network, self.batches = args, network, batches
        self.images = next(iter(batches.test()))[0][: args.batch_size]
        self.conversion = {"alpha": args.alpha, "rank": args.rank, "skip": args.skip}
        self.rows: list[Row] = []

    def run(self) -> nn.Module:
        """All steps; returns the folded network.

        Raises:
            UserError: the network cannot be converted so; nothing has been trained.
        """
        args = self.args
        self.check()
        self.train("plain", self.network, args.epochs, args.lr)
        further = copy.deepcopy(self.network)
        self.note(f"plain, {args.epochs} epochs", self.network)
        conversion = convert(self.network, **self.conversion, warm_start=True)
        print(f"\n{conversion}\n")
        self.note("converted", conversion.model)
        self.compare(conversion.model, further)
        return fuse(conversion.model.eval())

    def check(self) -> None:
        """Convert a copy, since a mistake should be found before training."""
        try:
            trial = convert(self.network, **self.conversion, inplace=False)
        except ValueError as error:
            raise UserError(f"{self.args.model} cannot be converted: {error}") from None
        if all(layer.skipped for layer in trial.layers):
            raise UserError(f"no convolution of {self.args.model} can be converted:\n{trial}")

    def compare(self, converted: nn.Module, plain: nn.Module) -> None:
        """Train both for as many epochs and measure them in all forms."""
        epochs, lr = self.args.finetune_epochs, self.args.finetune_lr
        regularizer = Regularizer(self.args.strength, every=10, centered=False)
        before = model_correlation_loss(converted).item()
        self.train("plain, further", plain, epochs, lr)
        self.train("converted", converted, epochs, lr, regularizer)
        after = model_correlation_loss(converted).item()
        print(f"correlation loss {before:.1f} before fine-tuning, {after:.1f} after")
        self.note(f"plain, {epochs} more epochs", plain, timed=True)
        name = f"converted, {epochs} epochs of fine-tuning"
        set_execution(converted, "factored")
        self.note(f"{name}, factored", converted, timed=True)
        deployment = deploy(converted, self.images, seconds=0.02)
        self.note("  the same, folded", fuse(converted), timed=True)
        self.note("  the same, each layer as is fastest", deployment.model, timed=True)

    def train(
        self,
        name: str,
        network: nn.Module,
        epochs: int,
        lr: float,
        regularizer: Regularizer | None = None,
    ) -> None:
        """Train a network in place, at a constant learning rate, with a line for each epoch."""
        settings = TrainSettings(epochs, lr, epochs, 1.0, regularizer, self.args.precision)
        training = Training(network, settings, SPEED)
        with precision_flags(settings.precision), training.accelerated.rewritten():
            steps = EagerSteps(training.step, self.batches)
            for epoch in range(epochs):
                entry = train_epoch(training, steps, self.batches, ())
                training.curve.append(entry)
                print(
                    f"{name}: epoch {epoch + 1}/{epochs}  loss {entry['train_loss']:.4f}  "
                    f"test {entry['test_acc']:.2f} %",
                    flush=True,
                )

    def note(self, name: str, network: nn.Module, *, timed: bool = False) -> None:
        """Add a network to the comparison."""
        network.eval()
        precision = self.args.precision
        with precision_flags(precision):
            accuracy = evaluate(network, self.batches.test(), precision).accuracy
            latency = latency_ms(network, self.images, precision) if timed else None
        macs = count_macs(network, tuple(self.images.shape[1:]), execution="factored")
        parameters = sum(p.numel() for p in network.parameters())
        self.rows.append(Row(name, parameters, macs, accuracy, latency))

    def table(self) -> str:
        """The comparison."""
        size = len(self.images)
        header = ("network", "parameters", "MMACs", "accuracy, %", f"ms for {size} images")
        return aligned([header, *(row.cells() for row in self.rows)], left=(0,))


def main() -> int:
    """Compress a network and print the comparison; returns the exit code."""
    args = parse()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        check(args)
        check_network(args.model, pretrained=args.pretrained)
        device = resolve_device(args.device)
        if args.threads:
            torch.set_num_threads(args.threads)
        torch.manual_seed(args.seed)  # dropout in foreign networks
        batches, classes = load_batches(args, device)
        channels = next(batches.test())[0].shape[1]
        with seeded("init", args.seed):
            network = any_network(
                args.model, in_channels=channels, classes=classes, pretrained=args.pretrained
            )
        compression = Compression(args, network.to(device), batches)
        folded = compression.run()
        print(f"\n{compression.table()}\n{conditions(args, batches, device)}")
        if args.out:
            with atomic_write(args.out) as file:
                torch.save(folded.cpu().state_dict(), file)
            print(f"weights of the folded network: {args.out}")
    except UserError as error:
        print(error, file=sys.stderr)
        return MISTAKE
    return 0


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
        help="a dataset, or a folder with train/<class>/ and test/<class>/ (or val/); "
        "default: %(default)s",
    )
    option("--image-size", type=int, default=224, help="of the images of a folder (%(default)s)")
    option("--train-images", type=int, default=8000, help="use only so many (%(default)s)")
    option("--epochs", type=int, default=5, help="of the plain network (%(default)s)")
    option("--finetune-epochs", type=int, default=3, help="of the converted one (%(default)s)")
    option("--lr", type=float, default=1e-3, help="learning rate of Adam (%(default)s)")
    option("--finetune-lr", type=float, default=3e-4, help="in fine-tuning (%(default)s)")
    option("--batch-size", type=int, default=64)
    option("--alpha", type=float, default=0.5, help="share of stored filters (%(default)s)")
    option("--rank", type=int, help="of the coefficients (LRr); default: full")
    option("--strength", type=float, default=1e-2, help="of the correlation loss (%(default)s)")
    option(
        "--skip",
        nargs="*",
        default=[],
        metavar="NAME",
        help="modules, or patterns, whose convolutions stay",
    )
    option("--out", type=Path, help="write the state dict of the folded network here")
    option("--seed", type=int, default=0)
    option("--precision", default="tf32", choices=sorted(PRECISIONS))
    option("--threads", type=int, help="CPU threads; default: torch's")
    option("--workers", type=int, default=2, help="processes that read a folder (%(default)s)")
    option("--device", default="auto")
    option(
        "--data-root",
        type=Path,
        default=os.environ.get("LINEARCONV_DATA", "datasets"),
        help="folder of datasets (default: $LINEARCONV_DATA, else datasets)",
    )
    return parser.parse_args()


def check(args: argparse.Namespace) -> None:
    """Reject invalid options before any data is read.

    Raises:
        UserError: the message names the option and what was expected.
    """
    least = {"epochs": 0, "finetune_epochs": 1, "batch_size": 2, "train_images": 1, "image_size": 8}
    for name, value in least.items():
        if getattr(args, name) < value:
            option = name.replace("_", "-")
            raise UserError(f"--{option} must be at least {value}, got {getattr(args, name)}")
    if args.out and not args.out.parent.is_dir():
        raise UserError(f"--out: there is no folder {args.out.parent}")


def load_batches(args: argparse.Namespace, device: torch.device) -> tuple[Batches, int]:
    """The data, and its number of classes.

    Raises:
        UserError: there is no such data.
    """
    if Path(args.data).is_dir():
        batches = FolderBatches(
            Path(args.data),
            size=args.image_size,
            normalisation=Normalisation(*published_normalisation(args.model)),
            batch_size=args.batch_size,
            eval_batch_size=EVAL_BATCH,
            limit=args.train_images,
            seed=args.seed,
            workers=args.workers,
            device=device,
        )
        return batches, batches.classes
    spec = dataset_config(args.data)
    limit = min(args.train_images, spec.train_size)
    dataset = load_dataset(spec, args.data_root, limit_train=limit)
    sizes = {"batch_size": args.batch_size, "eval_batch_size": EVAL_BATCH}
    return ResidentBatches(dataset, spec, seed=args.seed, device=device, **sizes), spec.classes


def conditions(args: argparse.Namespace, batches: Batches, device: torch.device) -> str:
    """What the figures depend on."""
    return (
        f"{args.model} on {args.data}, {batches.train_size:,} training images, seed {args.seed} "
        f"(n = 1), {device_name(device)}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )


if __name__ == "__main__":
    sys.exit(main())
