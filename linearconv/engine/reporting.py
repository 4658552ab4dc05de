"""Observers of a run: terminal and TensorBoard."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from linearconv.engine.artifacts import filter_artifacts, unpack_symmetric

Entry = dict[str, Any]


class Observer:
    """Is notified of a run's progress; `entry` is the epoch's dict in the record's curve."""

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
        """Epoch `epoch` of `epochs`, counted from 1, with `steps` batches, starts."""

    def step_done(self) -> None:
        """One training step has been launched."""

    def epoch_finished(self, entry: Entry, images_per_s: float, model: nn.Module) -> None:
        """The epoch has been trained and evaluated."""

    def close(self) -> None:
        """The run has ended, finished or not."""


def in_words(seconds: float) -> str:
    """A duration in its two largest units: "45 s", "12 min", "3 h 20 min", "2 d 5 h"."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def describe(entry: Entry, epochs: int, images_per_s: float) -> str:
    """One log line for a finished epoch."""
    correlation = entry["correlation_loss"]
    parts = [
        f"epoch {entry['epoch']}/{epochs}",
        f"loss {entry['train_loss']:.4f}",
        "" if correlation is None else f"correlation {correlation:.1f}",
        f"lr {entry['lr']:.0e}",
        f"val {entry['val_acc']:.2f} %" if "val_acc" in entry else "",
        f"test {entry['test_acc']:.2f} %",
        f"{images_per_s:.0f} images/s",
    ]
    return "  ".join(part for part in parts if part)


class Lines(Observer):
    """One line per epoch, for log files."""

    def __init__(self) -> None:
        self._epochs = 0

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
        """Remember the number of epochs."""
        self._epochs = epochs

    def epoch_finished(self, entry: Entry, images_per_s: float, model: nn.Module) -> None:
        """Print the line."""
        print(describe(entry, self._epochs, images_per_s), flush=True)


class ProgressBar(Observer):
    """A live bar of the whole run, below one line per epoch.

    The time elapsed is this process's; what is left is estimated from its last batches.
    """

    def __init__(self) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("run"),
            BarColumn(),
            TextColumn("{task.percentage:.1f} %  {task.description}"),
            TimeElapsedColumn(),
            TextColumn("elapsed, left"),
            TimeRemainingColumn(),
        )
        self._task: Any = None
        self._epochs = 0

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
        """Start the bar at the first epoch of this process; show the current epoch."""
        self._epochs = epochs
        if self._task is None:
            self._progress.start()
            done = (epoch - 1) * steps
            self._task = self._progress.add_task("", total=epochs * steps, completed=done)
        self._progress.update(self._task, description=f"epoch {epoch}/{epochs}")

    def step_done(self) -> None:
        """Advance the bar."""
        self._progress.advance(self._task)

    def epoch_finished(self, entry: Entry, images_per_s: float, model: nn.Module) -> None:
        """Print the epoch's line above the bar."""
        self._progress.console.print(describe(entry, self._epochs, images_per_s), highlight=False)

    def close(self) -> None:
        """Stop the bar and restore the terminal."""
        self._progress.stop()


def console() -> Observer:
    """A progress bar on a terminal, one line per epoch elsewhere."""
    return ProgressBar() if sys.stdout.isatty() else Lines()


class TensorBoard(Observer):
    """Writes the curve as scalars, and filters and correlations as images.

    Args:
        folder: the run's log folder.
        first_epoch: the first epoch that this process trains; entries that a killed process
            logged for it or later epochs are hidden.
        images_every: epochs between two sets of images.
    """

    def __init__(self, folder: Path, *, first_epoch: int, images_every: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder, purge_step=first_epoch)
        self._images_every = images_every

    def epoch_finished(self, entry: Entry, images_per_s: float, model: nn.Module) -> None:
        """Log one point of every curve and, every `images_every` epochs, the images."""
        epoch = entry["epoch"]
        for key, value in entry.items():
            if key != "epoch" and value is not None:
                self._writer.add_scalar(key, value, epoch)
        self._writer.add_scalar("images_per_s", images_per_s, epoch)
        if epoch == 1 or epoch % self._images_every == 0:
            self._add_images(epoch, model)
        self._writer.flush()

    def _add_images(self, epoch: int, model: nn.Module) -> None:
        arrays = filter_artifacts(model)
        if not len(arrays["layers"]):
            return
        primary = arrays["filters"][: arrays["primary"][0]].astype("float32")
        if not np.isfinite(primary).all():
            return  # training stops at the next loss, which will say so
        low, high = primary.min(), primary.max()
        primary = (primary - low) / max(high - low, 1e-12)
        primary = np.pad(primary, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=1)  # a grid
        if primary.shape[1] != 3:
            primary = primary[:, :1]
        self._writer.add_images(f"primary_filters/{arrays['layers'][0]}", primary, epoch)
        for i, layer in enumerate(arrays["layers"]):
            matrix = unpack_symmetric(arrays[f"correlations_{i}"]).astype("float32")
            matrix = abs(matrix).clip(0, 1)
            self._writer.add_image(f"correlation/{layer}", matrix, epoch, dataformats="HW")

    def close(self) -> None:
        """Flush the log."""
        self._writer.close()


def log_hyperparameters(folder: Path, identity: Mapping[str, Any], record: Entry) -> None:
    """Add a finished run to TensorBoard's table of hyperparameters, with its accuracies.

    Args:
        folder: the run's log folder.
        identity: nested plain values; None and empty ones are left out.
        record: the keys with `_acc_` in them are its accuracies.
    """
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    accuracies = {key: value for key, value in record.items() if "_acc_" in key}
    with SummaryWriter(folder) as writer:
        # Not SummaryWriter.add_hparams, which would show the run as two.
        for summary in hparams(dict(_flat(identity)), accuracies):
            writer.file_writer.add_summary(summary)
        for key, value in accuracies.items():
            # Not at step 0, which no later start of the run would hide.
            writer.add_scalar(key, value, record["curve"][-1]["epoch"])


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested values, with dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield prefix + key, value if isinstance(value, bool | int | float | str) else str(value)
