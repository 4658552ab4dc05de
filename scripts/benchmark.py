"""How fast training and inference are: the usual loop against this project's, in one process.

    python scripts/benchmark.py --model vgg11 --variants Conv,Lr,LRr --rounds 5
    python scripts/benchmark.py --model base --write    # results/benchmarks/<device>-torch<v>.csv

`usual` is the loop that paper repositories have: torchvision transforms on PIL images, a
DataLoader with 2 workers, eager PyTorch, `.item()` at each step, generated weights. `fast` is
runtime=fast. An epoch is training and evaluation, five training images to one test image as in
CIFAR-10; the images are random, since no time depends on them. Rounds alternate between the cases
and every ratio is taken within a round, so that a busy moment of the machine slows both sides.
All figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs import TrainConfig, compose, science
from configs.cli import MISTAKE
from data import SIZE, Dataset, ResidentBatches
from data.packed import Split
from linearconv import fuse, model_correlation_loss, set_execution
from linearconv.complexity import count_macs
from linearconv.engine.device import device_name, keep_freed_memory, resolve_device
from linearconv.engine.files import atomic_write
from linearconv.engine.loop import Training, train_epoch
from linearconv.engine.precision import PRECISIONS, autocast, precision_flags
from linearconv.engine.tape import device_operations
from linearconv.errors import UserError
from train import initial_model, speed, train_settings

RESULTS = Path(__file__).resolve().parents[1] / "results" / "benchmarks"
BATCHES = (1, 256)
"""Batch sizes at which inference is timed."""


def main() -> int:
    """Measure what the arguments ask for; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vgg11")
    parser.add_argument("--variants", default="Conv,Lr,LRr", help="comma-separated; Conv first")
    parser.add_argument("--modes", default="usual,fast", help="usual, fast or both")
    parser.add_argument("--images", type=int, default=3200, help="training images in an epoch")
    parser.add_argument("--execution", default="auto", help="of LinearConv layers, in fast")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    add_common(parser)
    args = parser.parse_args()
    try:
        rows = measure(args)
        if args.write:
            print(f"wrote {write(rows)}", file=sys.stderr)
    except UserError as error:
        print(error, file=sys.stderr)
        return MISTAKE
    print(json.dumps(rows, indent=1) if args.format == "json" else text(rows))
    return 0


def add_common(parser: argparse.ArgumentParser, folder: str = "") -> None:
    """Add what every benchmark takes.

    Args:
        parser: the benchmark's own.
        folder: where in results/benchmarks/ `--write` saves.
    """
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=PRECISIONS, default="tf32")
    parser.add_argument("--device", default="auto")
    where = f"save under results/benchmarks/{folder}"
    parser.add_argument("--write", action="store_true", help=where)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each variant and mode.

    Raises:
        UserError: an argument makes no sense.
    """
    if args.rounds < 1 or args.images < 64:
        raise UserError("--rounds must be at least 1 and --images at least 64")
    if args.write and args.execution != "auto":
        raise UserError("--write keeps what runtime=fast does, which is --execution auto")
    modes = args.modes.split(",")
    if not set(modes) <= set(CASES):
        raise UserError(f"--modes takes {', '.join(CASES)}, got {args.modes}")
    device = resolve_device(args.device)
    configs = {
        variant: compose(
            [
                f"model={args.model}",
                f"variant={variant}",
                f"precision={args.precision}",
                f"runtime.execution={args.execution}",
            ]
        )
        for variant in args.variants.split(",")
    }
    dataset = random_images(next(iter(configs.values())), args.images)
    with precision_flags(args.precision):
        device_limit(args.precision, device)  # loads the libraries before the first case is timed
        cases = [
            CASES[mode](config, dataset, device) for config in configs.values() for mode in modes
        ]
        for _ in range(args.rounds):
            for case in cases:
                case.time_round()
        limit = device_limit(args.precision, device)
        return [case.row(cases, limit) for case in cases]


def random_images(config: TrainConfig, count: int) -> Dataset:
    """A dataset of random pixels in the shape of the config's: `count` images, and a fifth more."""
    spec, random = config.dataset, np.random.default_rng(0)
    shape = (spec.image_size, spec.image_size, spec.channels)

    def split(size: int) -> Split:
        labels = random.integers(0, spec.classes, size)
        return Split(random.integers(0, 256, (size, *shape), dtype=np.uint8), labels)

    names = tuple(map(str, range(spec.classes)))
    return Dataset(split(count), split(-(-count // 5)), names, digest="")


class Case(ABC):
    """One variant in one mode: built once, then timed in rounds.

    Attributes:
        steps_s: seconds of each round's training steps.
        epochs_s: seconds of each round's epoch, evaluation included.
    """

    mode: str
    note = "eager"
    """How the steps were carried out."""

    def __init__(self, config: TrainConfig, dataset: Dataset, device: torch.device) -> None:
        self.config, self.dataset, self.device = config, dataset, device
        self.steps_s: list[float] = []
        self.epochs_s: list[float] = []
        self.latency_ms: dict[str, list[float]] = {}
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        began = time.perf_counter()
        self.model = self.build()
        self.first_step()
        synchronise(device)
        self.first_step_s = time.perf_counter() - began
        self.epoch()  # warms everything up
        self.peak_mb = None  # a CPU keeps no account of it
        if device.type == "cuda":
            self.peak_mb = (torch.cuda.max_memory_allocated(device) - before) / 2**20

    @abstractmethod
    def build(self) -> nn.Module:
        """Everything that training needs; returns the network."""

    @abstractmethod
    def first_step(self) -> None:
        """Take one training step."""

    @abstractmethod
    def epoch(self) -> float:
        """Train and evaluate an epoch; returns the seconds of the training steps."""

    def operations(self) -> int | None:
        """Device operations of one step without the correlation loss, where they are counted."""
        return None

    @property
    def steps(self) -> int:
        """Training steps of an epoch."""
        return -(-len(self.dataset.train) // self.config.recipe.batch_size)

    def time_round(self) -> None:
        """Time an epoch, and inference before and after folding."""
        keep_freed_memory(self.keeps_memory)  # as training would have it in a process of its own
        if self.keeps_memory:
            self.first_step()  # takes up again the memory that the other cases' rounds gave back
            synchronise(self.device)
        began = time.perf_counter()
        self.steps_s.append(self.epoch())
        synchronise(self.device)
        self.epochs_s.append(time.perf_counter() - began)
        self.model.eval()
        for name, network in (("unfused", self.model), ("fused", fuse(self.model))):
            for size in BATCHES:
                milliseconds = latency_ms(network, self.images(size), self.config.precision)
                self.latency_ms.setdefault(f"{name}_b{size}", []).append(milliseconds)

    def images(self, size: int) -> Tensor:
        """A batch in the memory format of the mode."""
        return torch.randn(size, self.config.dataset.channels, SIZE, SIZE, device=self.device)

    def row(self, cases: list[Case], limit: float) -> dict[str, Any]:
        """All figures; ratios to the usual loop and to Conv in the same mode, if they ran."""
        usual = _find(cases, self.config.variant.name, "usual")
        conv = _find(cases, "Conv", self.mode)
        shape = (self.config.dataset.channels, SIZE, SIZE)
        batch = self.config.recipe.batch_size
        macs = count_macs(self.model, shape, execution=self.execution, batch_size=batch)
        step_s = statistics.median(self.steps_s) / self.steps
        return {
            "model": self.config.model.name,
            "variant": self.config.variant.name,
            "device": device_name(self.device),
            "mode": self.mode,
            "precision": self.config.precision,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "rounds": len(self.steps_s),
            "images_per_s": len(self.dataset.train) / statistics.median(self.epochs_s),
            "ms_per_step": 1e3 * step_s,
            "ratio_to_usual": usual and _ratio(usual.epochs_s, self.epochs_s),
            "step_over_conv": conv and _ratio(self.steps_s, conv.steps_s),
            # Backward takes twice the multiply-adds of forward.
            "fraction_of_limit": 3 * macs * batch / step_s / limit,
            "first_step_s": self.first_step_s,
            "peak_memory_mb": self.peak_mb,
            **{f"latency_ms_{k}": statistics.median(v) for k, v in self.latency_ms.items()},
            **{
                f"latency_over_conv_{k}": conv and _ratio(v, conv.latency_ms[k])
                for k, v in self.latency_ms.items()
            },
            "device_ops_per_step": self.operations(),
            "steps": self.note,
        }


class FastCase(Case):
    """runtime=fast, through the engine itself."""

    mode = "fast"

    @property
    def keeps_memory(self) -> bool:
        """Whether freed memory is kept between steps."""
        return self.config.runtime.keep_memory

    @property
    def execution(self) -> str:
        """How LinearConv layers compute."""
        return "generate" if self.config.runtime.execution == "generate" else "factored"

    def build(self) -> nn.Module:
        """See `Case`."""
        config, identity = self.config, science(self.config)
        self.batches = ResidentBatches(
            self.dataset,
            config.dataset,
            batch_size=config.recipe.batch_size,
            eval_batch_size=config.runtime.eval_batch_size,
            seed=config.seed,
            device=self.device,
        )
        model = initial_model(config, identity, None).to(self.device)
        self.training = Training(model, train_settings(config, identity), speed(config.runtime))
        self.chosen, self.note = self.training.steps(self.batches)
        return self.training.model

    def first_step(self) -> None:
        """See `Case`."""
        self.model.train()
        with self.training.rewritten():
            next(self.chosen.epoch(0))

    def epoch(self) -> float:
        """See `Case`."""
        clock = _StepClock(self.chosen, self.device)
        with self.training.rewritten():
            train_epoch(self.training, clock, self.batches, ())
        return clock.seconds

    def images(self, size: int) -> Tensor:
        """See `Case`."""
        return super().images(size).to(memory_format=torch.channels_last)

    def operations(self) -> int:
        """See `Case`."""
        size = self.config.recipe.batch_size
        self.model.train()
        self.batches.begin(0)
        return device_operations(
            lambda: self.training.step(*self.batches.next(size), regularize=False),
            list(self.model.parameters()),
        )


class _StepClock:
    """Steps that also tell how long an epoch of them took."""

    def __init__(self, steps: Any, device: torch.device) -> None:
        self._steps, self._device = steps, device

    def epoch(self, epoch: int) -> Iterator[None]:
        """See `linearconv.engine.stepping.Steps`."""
        began = time.perf_counter()
        yield from self._steps.epoch(epoch)
        synchronise(self._device)
        self.seconds = time.perf_counter() - began


class UsualCase(Case):
    """The loop that paper repositories have."""

    mode, execution, keeps_memory = "usual", "generate", False

    def build(self) -> nn.Module:
        """See `Case`."""
        self.train_loader, self.test_loader = (
            self._loader(split, train)
            for split, train in ((self.dataset.train, True), (self.dataset.test, False))
        )
        model = initial_model(self.config, science(self.config), None)
        set_execution(model, "generate")
        model = model.to(self.device)
        lr = self.config.recipe.lr or self.config.model.lr
        self.optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        return model

    def _loader(self, split: Split, train: bool) -> torch.utils.data.DataLoader:
        from torchvision import transforms

        spec = self.config.dataset
        steps: list[Callable[..., Any]] = [transforms.ToPILImage()]
        if train:
            steps.append(transforms.RandomCrop(SIZE, padding=spec.augmentation.train_padding))
            steps += [transforms.RandomHorizontalFlip()] * spec.augmentation.flip
        elif spec.augmentation.test_padding:
            steps.append(transforms.Pad(spec.augmentation.test_padding))
        steps.append(transforms.ToTensor())
        steps.append(transforms.Normalize(spec.normalisation.mean, spec.normalisation.std))
        return torch.utils.data.DataLoader(
            _Images(split, transforms.Compose(steps)),
            batch_size=self.config.recipe.batch_size if train else 256,
            shuffle=train,
            num_workers=2,
            persistent_workers=True,  # else a short epoch is little more than their start
        )

    def first_step(self) -> None:
        """See `Case`."""
        self.model.train()
        images, labels = next(iter(self.train_loader))
        self._step(0, images, labels)

    def epoch(self) -> float:
        """See `Case`."""
        began = time.perf_counter()
        self.model.train()
        for i, (images, labels) in enumerate(self.train_loader):
            self._step(i, images, labels)
        seconds = time.perf_counter() - began
        self.model.eval()
        correct = 0
        with torch.no_grad():
            for images, labels in self.test_loader:
                with autocast(self.config.precision, self.device):
                    logits = self.model(images.to(self.device))
                correct += (logits.argmax(dim=1).cpu() == labels).sum().item()
        return seconds

    def _step(self, i: int, images: Tensor, labels: Tensor) -> float:
        config = self.config
        with autocast(config.precision, self.device):
            logits = self.model(images.to(self.device))
            loss = F.cross_entropy(logits, labels.to(self.device))
        if (
            config.variant.regularized
            and i % config.regularizer.every == config.regularizer.every - 1
        ):
            loss = loss + config.regularizer.strength * model_correlation_loss(self.model)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


class _Images(torch.utils.data.Dataset):
    """A split as torchvision's datasets give it: an image, transformed, and its label."""

    def __init__(self, split: Split, transform: Callable[..., Tensor]) -> None:
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.split.images[index]), int(self.split.labels[index])


CASES: dict[str, type[Case]] = {"usual": UsualCase, "fast": FastCase}


def latency_ms(network: nn.Module, images: Tensor, precision: str) -> float:
    """Milliseconds of one forward pass, the median of some."""
    times = []
    with torch.no_grad(), autocast(precision, images.device):
        for i in range(4 if len(images) > 1 else 13):
            synchronise(images.device)
            began = time.perf_counter()
            network(images)
            synchronise(images.device)
            if i:  # the first one warms up
                times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def device_limit(precision: str, device: torch.device) -> float:
    """Multiply-adds per second of a large convolution in this precision: what the device can."""
    conv = nn.Conv2d(256, 256, 3, padding=1, bias=False, device=device)
    conv = conv.to(memory_format=torch.channels_last)
    images = torch.randn(32, 256, SIZE, SIZE, device=device)
    images = images.to(memory_format=torch.channels_last)
    calls = 20 if device.type == "cuda" else 2  # so many that launching them does not count
    macs = calls * 32 * SIZE**2 * 256 * 256 * 9
    repeated = nn.Sequential(*[conv] * calls)
    return macs / (latency_ms(repeated, images, precision) / 1e3)


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _find(cases: list[Case], variant: str, mode: str) -> Case | None:
    found = [c for c in cases if (c.config.variant.name, c.mode) == (variant, mode)]
    return found[0] if found else None


def _ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median of the ratios within each round."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def text(rows: list[dict[str, Any]]) -> str:
    """The main figures as a table."""
    first = rows[0]
    lines = [
        f"{first['model']} on {first['device']}, torch {first['torch']}, {first['precision']}, "
        f"{first['threads']} threads, {first['rounds']} rounds",
        f"{'variant':<8}{'mode':<7}{'images/s':>10}{'ms/step':>9}{'/usual':>8}{'/Conv':>7}"
        f"{'of limit':>10}{'ops':>6}{'latency, ms: b1':>17}{'fused':>8}{'b256':>9}{'fused':>8}",
    ]
    for row in rows:
        ratios = (
            f"{row[key]:.2f}" if row[key] else "-" for key in ("ratio_to_usual", "step_over_conv")
        )
        lines.append(
            "{:<8}{:<7}{:>10.0f}{:>9.1f}{:>8}{:>7}{:>10.2f}{:>6}{:>17.2f}{:>8.2f}{:>9.1f}{:>8.1f}".format(
                row["variant"],
                row["mode"],
                row["images_per_s"],
                row["ms_per_step"],
                *ratios,
                row["fraction_of_limit"],
                row["device_ops_per_step"] or "-",
                row["latency_ms_unfused_b1"],
                row["latency_ms_fused_b1"],
                row["latency_ms_unfused_b256"],
                row["latency_ms_fused_b256"],
            )
        )
    return "\n".join(lines)


KEYS = ("model", "variant", "mode", "precision")
"""What tells the rows of a file apart."""


def write(
    rows: list[dict[str, Any]], folder: Path | None = None, keys: Sequence[str] = KEYS
) -> Path:
    """Save rows in the device's file in a folder, in the place of older ones with the same keys."""
    words = re.sub(r"[^a-z0-9]+", "-", rows[0]["device"].lower()).strip("-")
    name = f"{words}-torch{torch.__version__.partition('+')[0]}.csv"
    path = (folder or RESULTS) / name

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in keys)

    kept: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            kept = list(csv.DictReader(file))
    replaced = {key(row) for row in rows}
    merged = sorted([r for r in kept if key(r) not in replaced] + rounded(rows), key=key)
    with atomic_write(path) as file:
        lines = [list(rows[0]), *([row.get(name, "") for name in rows[0]] for row in merged)]
        writer = csv.writer(_Encoded(file), lineterminator="\n")
        writer.writerows(lines)
    return path


def rounded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with four significant digits."""
    return [{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]


class _Encoded:
    """Lets csv write into a file of bytes."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, line: str) -> None:
        self._file.write(line.encode())


if __name__ == "__main__":
    sys.exit(main())
