"""The two training loops to compare: the usual one and this project's."""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs import TrainConfig, identify
from data import SIZE, Dataset, ResidentBatches
from data.packed import Split
from linearconv import fuse, model_correlation_loss, set_execution
from linearconv.complexity import count_macs
from linearconv.engine.device import cudnn_heuristics, device_name
from linearconv.engine.fast.memory import keep_freed_memory
from linearconv.engine.loop import Training, train_epoch
from linearconv.engine.precision import autocast, effective_precision
from linearconv.engine.step import Steps
from scripts.bench.tape import device_operations
from scripts.bench.timing import latency_ms, median_ratio, synchronise
from train import eval_batch_size, initial_model, train_settings

BATCHES = (1, 256)
"""Batch sizes at which inference is timed."""


def random_images(config: TrainConfig, count: int) -> Dataset:
    """Random images in the config's shape: `count` for training, a fifth as many for testing."""
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
    """How the steps were executed."""

    def __init__(self, config: TrainConfig, dataset: Dataset, device: torch.device) -> None:
        self.config, self.dataset, self.device = config, dataset, device
        self.steps_s: list[float] = []
        self.epochs_s: list[float] = []
        self.latency_ms: dict[str, list[float]] = {}
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        keep_freed_memory(self.keeps_memory)  # the case built before may have left it otherwise
        began = time.perf_counter()
        self.model = self.build()
        self.first_step()
        synchronise(device)
        self.first_step_s = time.perf_counter() - began
        self.epoch()  # warm-up
        self.peak_mb = None  # not measured on a CPU
        if device.type == "cuda":
            self.peak_mb = (torch.cuda.max_memory_allocated(device) - before) / 2**20

    @abstractmethod
    def build(self) -> nn.Module:
        """Set up everything that training needs; returns the network."""

    @abstractmethod
    def first_step(self) -> None:
        """Take one training step."""

    @abstractmethod
    def epoch(self) -> float:
        """Train and evaluate an epoch; returns the seconds of the training steps."""

    def operations(self) -> int | None:
        """Device operations of one step without the correlation loss; None if not counted."""
        return None

    @property
    def steps(self) -> int:
        """Training steps of an epoch."""
        return -(-len(self.dataset.train) // self.config.recipe.batch_size)

    def time_round(self) -> None:
        """Time an epoch, and inference before and after fusing."""
        keep_freed_memory(self.keeps_memory)  # as in training in its own process
        if self.keeps_memory:
            self.first_step()  # reallocates the memory that other cases have freed
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
        """All figures, with ratios to the usual loop and to Conv in the same mode if those ran."""
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
            "precision": effective_precision(self.config.precision, self.device),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "cudnn_heuristics": cudnn_heuristics(self.device),
            "rounds": len(self.steps_s),
            "images": len(self.dataset.train),
            "images_per_s": len(self.dataset.train) / statistics.median(self.epochs_s),
            "ms_per_step": 1e3 * step_s,
            "ratio_to_usual": usual and median_ratio(usual.epochs_s, self.epochs_s),
            "step_over_conv": conv and median_ratio(self.steps_s, conv.steps_s),
            # Backward takes twice the multiply-adds of forward.
            "fraction_of_limit": 3 * macs * batch / step_s / limit,
            "first_step_s": self.first_step_s,
            "peak_memory_mb": self.peak_mb,
            **{f"latency_ms_{k}": statistics.median(v) for k, v in self.latency_ms.items()},
            **{
                f"latency_over_conv_{k}": conv and median_ratio(v, conv.latency_ms[k])
                for k, v in self.latency_ms.items()
            },
            "device_ops_per_step": self.operations(),
            "steps": self.note,
        }


class FastCase(Case):
    """runtime=fast, run by the engine itself."""

    mode = "fast"

    @property
    def keeps_memory(self) -> bool:
        """Whether freed memory is kept between steps."""
        return self.config.runtime.keep_memory

    @property
    def execution(self) -> str:
        """The execution of LinearConv layers."""
        return "generate" if self.config.runtime.execution == "generate" else "factored"

    def build(self) -> nn.Module:
        """See `Case`."""
        config, identity = self.config, identify(self.config)
        self.batches = ResidentBatches(
            self.dataset,
            config.dataset,
            batch_size=config.recipe.batch_size,
            eval_batch_size=eval_batch_size(config, self.device),
            seed=config.seed,
            device=self.device,
        )
        model = initial_model(config, identity).to(self.device)
        self.training = Training(model, train_settings(config, identity), config.runtime)
        accelerated = self.training.accelerated
        with accelerated.rewritten():
            self.chosen, notes = accelerated.steps(self.training.step, self.batches)
            self.note = notes["steps"]
        return self.training.model

    def first_step(self) -> None:
        """See `Case`."""
        self.model.train()
        with self.training.accelerated.rewritten():
            next(self.chosen.epoch(0))

    def steps_alone(self) -> int:
        """Take the training steps of an epoch; returns their number."""
        self.model.train()
        with self.training.accelerated.rewritten():
            return sum(1 for _ in self.chosen.epoch(0))

    def epoch(self) -> float:
        """See `Case`."""
        clock = _StepClock(self.chosen, self.device)
        with self.training.accelerated.rewritten():
            train_epoch(self.training, clock, self.batches, ())
        return clock.seconds

    def images(self, size: int) -> Tensor:
        """See `Case`."""
        return super().images(size).to(memory_format=torch.channels_last)

    def operations(self, *, regularize: bool = False) -> int:
        """See `Case`; with `regularize`, of a step that has the correlation loss."""
        size = self.config.recipe.batch_size
        self.model.train()
        self.batches.begin(0)
        with self.training.accelerated.rewritten():
            return device_operations(
                lambda: self.training.step(*self.batches.next(size), regularize=regularize),
                list(self.model.parameters()),
            )


class _StepClock:
    """Steps that also time each epoch."""

    def __init__(self, steps: Steps, device: torch.device) -> None:
        self._steps, self._device = steps, device

    def epoch(self, epoch: int) -> Iterator[None]:
        """See `linearconv.engine.step.Steps`."""
        began = time.perf_counter()
        yield from self._steps.epoch(epoch)
        synchronise(self._device)
        self.seconds = time.perf_counter() - began


class UsualCase(Case):
    """A typical research loop; see `scripts/benchmark.py`."""

    mode, execution, keeps_memory = "usual", "generate", False

    def build(self) -> nn.Module:
        """See `Case`."""
        self.train_loader, self.test_loader = (
            self._loader(split, train)
            for split, train in ((self.dataset.train, True), (self.dataset.test, False))
        )
        model = initial_model(self.config, identify(self.config))
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
            persistent_workers=True,  # otherwise worker start-up dominates short epochs
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
    """A split as a torchvision dataset: transformed images and their labels."""

    def __init__(self, split: Split, transform: Callable[..., Tensor]) -> None:
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.split.images[index]), int(self.split.labels[index])


CASES: dict[str, type[Case]] = {"usual": UsualCase, "fast": FastCase}


def _find(cases: list[Case], variant: str, mode: str) -> Case | None:
    found = [c for c in cases if (c.config.variant.name, c.mode) == (variant, mode)]
    return found[0] if found else None
