"""A network on its way from plain to folded: trained, converted, fine-tuned, measured."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import WARM_START_IMAGES, first_images
from linearconv import (
    convert,
    deploy,
    fuse,
    model_correlation_loss,
    save_converted,
    set_execution,
)
from linearconv.complexity import count_macs
from linearconv.convert import Conversion
from linearconv.engine.fast.runtime import Runtime
from linearconv.engine.files import atomic_write
from linearconv.engine.loop import (
    Batches,
    NonFiniteLoss,
    Training,
    TrainSettings,
    train_epoch,
)
from linearconv.engine.precision import autocast, precision_flags
from linearconv.engine.step import EagerSteps, Regularizer, TrainStep, evaluate
from linearconv.errors import UserError, first_line
from models.pruning import pruned_to
from scripts.bench.timing import latency_ms
from scripts.compression.rows import PEERS, Row, comparison, verdict

RUNTIME = Runtime(
    channels_last=True, fused_optimizer=True, small_image_products=True, keep_memory=True
)
LITTLE = 0.2
"""Share of the parameters that half the filters in every layer save at least, where it pays."""
REGULARIZED_EVERY = 10
"""The correlation loss is added to every 10th batch, as in the paper."""


class DistillationStep(TrainStep):
    """Trains towards the outputs of another network instead of the labels.

    Args:
        step: what it is made of.
        teacher: the other network, in evaluation mode.
    """

    def __init__(self, step: TrainStep, teacher: nn.Module) -> None:
        super().__init__(step.model, step.optimizer, step.regularizer, step.precision)
        self._teacher = teacher

    def cross_entropy(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy with the teacher's distribution (Hinton and others, 2015)."""
        with torch.no_grad():
            target = self._teacher(images).softmax(dim=1)
        return F.cross_entropy(logits, target)


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
        size = {"budget": args.budget} if args.alpha is None else {"alpha": args.alpha}
        self.conversion = size | {"rank": args.rank, "skip": args.skip}
        self.rows: list[Row] = []
        self.check()

    def run(self) -> None:
        """All steps.

        Raises:
            UserError: a training diverged.
        """
        args = self.args
        self.train("plain", self.network, args.epochs, args.lr)
        self.note(f"plain, {args.epochs} epochs", self.network)
        images = first_images(self.batches.train(0), WARM_START_IMAGES)
        converted = convert(self.network, **self.conversion, warm_start=images, inplace=False)
        if converted.plan is not None:
            print(f"\n{converted.plan}")
        print(f"\n{converted}\n")
        self.note("converted", converted.model)
        peers = self.peers(parameters_of(converted.model), images)
        for name, network in peers.items():
            self.note(name, network)
        self.compare(converted.model, peers)

    def peers(self, parameters: int, images: Tensor) -> dict[str, nn.Module]:
        """What else has at most as many parameters, by its name."""
        budget = parameters / parameters_of(self.network)
        options = {"budget": budget, "skip": self.args.skip, "warm_start": images}

        def low_rank() -> nn.Module:
            return convert(self.network, form="pair", **options, inplace=False).model

        def fewer() -> nn.Module:
            return pruned_to(self.network, self.images, parameters)

        found = {}
        for name, make in zip(PEERS, (low_rank, fewer), strict=True):
            try:
                found[name] = make()
            except ValueError as error:
                print(f"no {name} network to compare with: {error}")
        return found

    def check(self) -> None:
        """Convert and try a copy, since a mistake should be found before training."""
        name = self.args.model
        if 1 in self.batches.sizes:
            raise UserError(
                f"--batch-size {self.args.batch_size}: the last batch of the "
                f"{self.batches.train_size} training images would have one image, which batch "
                "norms cannot be trained on; choose another --batch-size or --train-images"
            )
        trial = self.trial()
        height, width = self.images.shape[2:]
        try:
            self.try_out(trial.model)
        except Exception as error:  # whatever a foreign network raises
            cause = f"{type(error).__name__}: {first_line(error)}".removesuffix(": ")
            raise UserError(
                f"{name} cannot be trained on images of {height}x{width} pixels: {cause}; choose "
                "another --model or, for a folder, another --image-size"
            ) from error

    def trial(self) -> Conversion:
        """A conversion of the untrained network, by what can be converted alone."""
        name = self.args.model
        options = {"alpha": self.args.alpha or 0.5, "rank": self.args.rank, "skip": self.args.skip}
        try:
            trial = convert(self.network, **options, inplace=False)
        except ValueError as error:
            raise UserError(f"{name} cannot be converted: {error}") from None
        if all(layer.skipped for layer in trial.layers):
            raise UserError(f"no convolution of {name} can be converted:\n{trial}")
        half = convert(self.network, inplace=False).model
        saved = 1 - parameters_of(half) / parameters_of(self.network)
        if saved < LITTLE:
            print(
                f"little to gain here: half the filters in every layer save {100 * saved:.0f} % of "
                f"the parameters of {name}, as in networks of depthwise and 1x1 convolutions"
            )
        return trial

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

    def compare(self, converted: nn.Module, peers: dict[str, nn.Module]) -> None:
        """Train all for as many epochs, and measure them."""
        epochs, lr = self.args.finetune_epochs, self.args.finetune_lr
        every = min(REGULARIZED_EVERY, len(self.batches.sizes))  # or short epochs would have none
        regularizer = Regularizer(self.args.strength, every, centered=False)
        before = model_correlation_loss(converted).item()
        self.train("plain, further", self.network, epochs, lr)
        teacher = self.network.eval() if self.args.distill else None
        self.train("converted", converted, epochs, lr, regularizer, teacher)
        set_execution(converted, "factored")
        self.save("folded", fuse(converted.eval()))
        self.save("factored", converted)
        for name, network in peers.items():
            self.train(name, network, epochs, lr, None, teacher)
        after = model_correlation_loss(converted).item()
        print(f"correlation loss {before:.1f} before fine-tuning, {after:.1f} after")
        self.note(f"plain, {epochs} more epochs", self.network, timed=True)
        name = f"converted, {epochs} epochs of fine-tuning"
        self.note(f"{name}, factored", converted, timed=True)
        self.note("  the same, folded", fuse(converted), timed=True)
        precision = self.args.precision
        with precision_flags(precision), autocast(precision, self.images.device):
            deployment = deploy(converted, self.images)
        self.save("fastest", deployment.model)
        self.note("  the same, each layer as is fastest", deployment.model, timed=True)
        for name, network in peers.items():
            self.note(f"{name}, {epochs} epochs of fine-tuning", network, timed=True)

    def train(
        self,
        name: str,
        network: nn.Module,
        epochs: int,
        lr: float,
        regularizer: Regularizer | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        """Train a network in place, with a line for each epoch; with a teacher towards that."""
        settings = TrainSettings(
            epochs, lr, epochs, 1.0, regularizer, self.args.precision, schedule="cosine"
        )
        training = Training(network, settings, RUNTIME)
        if teacher is not None:
            training.step = DistillationStep(training.step, teacher)
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

    def save(self, name: str, network: nn.Module) -> None:
        """Write a network with --out, as soon as it is there: measurements must not lose it."""
        if self.args.out is None:
            return
        self.args.out.mkdir(parents=True, exist_ok=True)
        path = self.args.out / f"{name}.pt"
        with atomic_write(path) as file:
            save_converted(network, file)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB", flush=True)

    def note(self, name: str, network: nn.Module, *, timed: bool = False) -> None:
        """Add a network to the comparison."""
        network.eval()
        precision = self.args.precision
        with precision_flags(precision):
            accuracy = evaluate(network, self.batches.test(), precision).accuracy
            latency = latency_ms(network, self.images, precision) if timed else None
        macs = count_macs(network, tuple(self.images.shape[1:]), execution="factored")
        self.rows.append(Row(name, parameters_of(network), macs, accuracy, latency))

    def table(self) -> str:
        """The comparison, and what it says if it is complete."""
        return "\n".join([comparison(self.rows, len(self.images)), *verdict(self.rows)])


def parameters_of(network: nn.Module) -> int:
    """The number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())
