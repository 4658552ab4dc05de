"""A network on its way from plain to folded: trained, converted, fine-tuned, measured."""

from __future__ import annotations

import argparse
import copy

import torch
from torch import nn

from linearconv import convert, deploy, fuse, model_correlation_loss, set_execution
from linearconv.complexity import count_macs
from linearconv.engine.fast.speed import Speed
from linearconv.engine.files import atomic_write
from linearconv.engine.loop import (
    Batches,
    NonFiniteLoss,
    Training,
    TrainSettings,
    train_epoch,
)
from linearconv.engine.precision import autocast, precision_flags
from linearconv.engine.step import EagerSteps, Regularizer, evaluate
from linearconv.errors import UserError, first_line
from scripts.bench.timing import latency_ms
from scripts.compression.rows import Row, comparison

SPEED = Speed(channels_last=True, fused_optimizer=True, small_image_products=True, keep_memory=True)
REGULARIZED_EVERY = 10
"""The correlation loss is added to every 10th batch, as in the paper."""


class Compression:
    """A network on its way from plain to folded.

    Args:
        args: the options.
        network: to be compressed, on its device.
        batches: the data.
        classes: number of classes.

    Raises:
        UserError: the network cannot be compressed so; nothing has been trained.
    """

    def __init__(
        self, args: argparse.Namespace, network: nn.Module, batches: Batches, classes: int
    ) -> None:
        self.args, self.network, self.batches, self.classes = args, network, batches, classes
        self.images = next(iter(batches.test()))[0][: args.batch_size]
        self.conversion = {"alpha": args.alpha, "rank": args.rank, "skip": args.skip}
        self.rows: list[Row] = []
        self.check()

    def run(self) -> None:
        """All steps.

        Raises:
            UserError: a training diverged.
        """
        args = self.args
        self.train("plain", self.network, args.epochs, args.lr)
        further = copy.deepcopy(self.network)
        self.note(f"plain, {args.epochs} epochs", self.network)
        conversion = convert(self.network, **self.conversion, warm_start=True)
        print(f"\n{conversion}\n")
        self.note("converted", conversion.model)
        self.compare(conversion.model, further)

    def check(self) -> None:
        """Convert and try a copy, since a mistake should be found before training."""
        name = self.args.model
        if 1 in self.batches.sizes:
            raise UserError(
                f"--batch-size {self.args.batch_size}: the last batch of the "
                f"{self.batches.train_size} training images would have one image, which batch "
                "norms cannot be trained on; choose another --batch-size or --train-images"
            )
        try:
            trial = convert(self.network, **self.conversion, inplace=False)
        except ValueError as error:
            raise UserError(f"{name} cannot be converted: {error}") from None
        if all(layer.skipped for layer in trial.layers):
            raise UserError(f"no convolution of {name} can be converted:\n{trial}")
        height, width = self.images.shape[2:]
        try:
            self.try_out(trial.model)
        except Exception as error:  # whatever a foreign network raises
            cause = f"{type(error).__name__}: {first_line(error)}".removesuffix(": ")
            raise UserError(
                f"{name} cannot be trained on images of {height}x{width} pixels: {cause}; choose "
                "another --model or, for a folder, another --image-size"
            ) from error

    def try_out(self, network: nn.Module) -> None:
        """All that is done with a network, once, on two images; changes its batch statistics."""
        images = self.images[[0, -1]]
        with autocast(self.args.precision, images.device):
            output = network.train()(images)
        if not isinstance(output, torch.Tensor) or output.shape != (2, self.classes):
            found = tuple(getattr(output, "shape", ())) or type(output).__name__
            raise TypeError(f"its output for two images is {found}, not {(2, self.classes)}")
        output.float().sum().backward()
        count_macs(network, tuple(images.shape[1:]), execution="factored")

    def compare(self, converted: nn.Module, plain: nn.Module) -> None:
        """Train both for as many epochs and measure them in all forms."""
        epochs, lr = self.args.finetune_epochs, self.args.finetune_lr
        every = min(REGULARIZED_EVERY, len(self.batches.sizes))  # or short epochs would have none
        regularizer = Regularizer(self.args.strength, every, centered=False)
        before = model_correlation_loss(converted).item()
        self.train("plain, further", plain, epochs, lr)
        self.train("converted", converted, epochs, lr, regularizer)
        self.save(converted)
        after = model_correlation_loss(converted).item()
        print(f"correlation loss {before:.1f} before fine-tuning, {after:.1f} after")
        self.note(f"plain, {epochs} more epochs", plain, timed=True)
        name = f"converted, {epochs} epochs of fine-tuning"
        set_execution(converted, "factored")
        self.note(f"{name}, factored", converted, timed=True)
        self.note("  the same, folded", fuse(converted), timed=True)
        precision = self.args.precision
        with precision_flags(precision), autocast(precision, self.images.device):
            deployment = deploy(converted, self.images, seconds=0.02)
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
                try:
                    entry = train_epoch(training, steps, self.batches, ())
                except NonFiniteLoss as error:
                    raise UserError(
                        f"{name}: {error}, with a learning rate of {lr:g}; choose a smaller --lr, "
                        "--finetune-lr or --strength"
                    ) from None
                training.curve.append(entry)
                print(
                    f"{name}: epoch {epoch + 1}/{epochs}  loss {entry['train_loss']:.4f}  "
                    f"test {entry['test_acc']:.2f} %",
                    flush=True,
                )

    def save(self, converted: nn.Module) -> None:
        """Write the folded weights, before the measurements, so that these cannot lose them."""
        if self.args.out is not None:
            with atomic_write(self.args.out) as file:
                torch.save(fuse(converted.eval()).cpu().state_dict(), file)
            print(f"weights of the folded network: {self.args.out}", flush=True)

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
        return comparison(self.rows, len(self.images))
