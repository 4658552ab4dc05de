"""Switches for faster ways to compute the same numbers, and the model that applies them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from linearconv.engine.fast.batch_counts import batches_uncounted, count_batches
from linearconv.engine.fast.capture import CapturedSteps, CudaGraphs
from linearconv.engine.fast.execution import captured_steps
from linearconv.engine.fast.folding import FoldedNetwork
from linearconv.engine.fast.memory import (
    keep_freed_memory,
    row_major_images,
    unsafe_channels_last,
)
from linearconv.engine.fast.pooling import pooling_before_relu
from linearconv.engine.fast.small_images import small_image_products
from linearconv.engine.step import EagerSteps, Steps, TrainBatches, TrainStep
from linearconv.errors import first_line

log = logging.getLogger(__name__)

FOLDING_ROUNDING = 0.05
"""Relative difference of logits up to which it counts as rounding, in bfloat16, too."""


@dataclass
class Runtime:
    """How training is computed; no switch changes results beyond rounding.

    `configs/runtime/fast.yaml` documents the effect of each on results; all are off by default.

    Attributes:
        channels_last: memory format of the filters, which activations follow.
        fused_optimizer: one operation updates all parameters that are updated alike.
        cuda_graphs: on CUDA, whole steps are captured and replayed, and layers of execution "auto"
            take the execution that is measured to be the fastest.
        cudnn_benchmark: on CUDA, cuDNN chooses its algorithms by measuring them.
        deterministic: only algorithms of torch that repeat their bits; others raise an error.
        fold_batch_norms: evaluation folds batch norms into the convolutions before them.
        count_per_epoch: batch norms count their batches once an epoch.
        pool_before_relu: max pooling runs before the ReLU that it follows in an nn.Sequential.
        small_image_products: on a CPU, convolutions of small images are matrix products.
        keep_memory: on a CPU, freed memory is kept between steps.
        save_every_s: least seconds between two checkpoints, at epoch boundaries; 0: each epoch.
    """

    channels_last: bool = False
    fused_optimizer: bool = False
    cuda_graphs: bool = False
    cudnn_benchmark: bool = False
    deterministic: bool = False
    fold_batch_norms: bool = False
    count_per_epoch: bool = False
    pool_before_relu: bool = False
    small_image_products: bool = False
    keep_memory: bool = False
    save_every_s: float = 0.0


class AcceleratedModel:
    """A model that is trained and evaluated as a `Runtime` specifies.

    Args:
        model: on its device; its memory format may be changed in place.
        runtime: the switches.

    Attributes:
        model: the model.
    """

    def __init__(self, model: nn.Module, runtime: Runtime) -> None:
        self.model, self._runtime, self._folding_checked = model, runtime, False
        self._on_cpu = next(model.parameters()).device.type == "cpu"
        if runtime.deterministic:
            # cuBLAS reads it when it is used first, and torch refuses to go on without it.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if runtime.keep_memory and self._on_cpu:
            keep_freed_memory()  # for the whole process, from now on
        self._row_major = unsafe_channels_last(model) if self._on_cpu else []
        if self._row_major and runtime.channels_last:
            log.warning(
                "channels_last is off for this network: on a CPU it gives wrong gradients for 1x1 "
                "convolutions with a stride and few input channels (oneDNN issue 6035): %s",
                ", ".join(self._row_major),
            )
        elif runtime.channels_last:
            model.to(memory_format=torch.channels_last)

    @contextmanager
    def rewritten(self) -> Iterator[None]:
        """Temporarily compute the model as `runtime` specifies."""
        with ExitStack() as rewrites:
            if self._runtime.cudnn_benchmark:
                rewrites.enter_context(_cudnn_benchmark())
            if self._runtime.deterministic:
                rewrites.enter_context(_deterministic_algorithms())
            if self._row_major:
                rewrites.enter_context(row_major_images(self.model))
            if self._runtime.count_per_epoch:
                rewrites.enter_context(batches_uncounted(self.model))
            if self._runtime.pool_before_relu:
                rewrites.enter_context(pooling_before_relu(self.model))
            # Their outputs are in channels_last.
            if self._runtime.small_image_products and not self._row_major:
                rewrites.enter_context(small_image_products(self.model))
            yield

    def steps(
        self, step: TrainStep, batches: TrainBatches, *, execution: str | None = None
    ) -> tuple[Steps, dict[str, Any]]:
        """The steps of the epochs, and notes on them for the provenance.

        Call it inside `rewritten()`, so that the rewritten model is captured. With `cuda_graphs`,
        the batches must be `CapturableBatches`.

        Args:
            step: the training step.
            batches: the data.
            execution: the measured execution in the notes of the run's earlier starts, if any.
        """
        self.model.train()  # a captured step stays in the mode in which it was captured
        if self._runtime.cuda_graphs and not self._on_cpu:
            device = step.sums.device
            steps, notes = captured_steps(
                step, batches, lambda: CudaGraphs(device), execution=execution
            )
            if not isinstance(steps, CapturedSteps):
                log.warning("falling back to slower steps: %s", notes["steps"])
            return steps, notes
        note = "eager"
        if self._row_major:
            note += f", row-major because of {', '.join(self._row_major)}"
        return EagerSteps(step, batches), {"steps": note}

    def epoch_trained(self, steps: int) -> None:
        """Make up for what the rewritten model leaves out in steps; call it after each epoch."""
        if self._runtime.count_per_epoch:
            count_batches(self.model, steps)

    def evaluated(self) -> Callable[[Tensor], Tensor]:
        """The network in evaluation mode with its current weights; valid until they change."""
        self.model.eval()
        if not self._runtime.fold_batch_norms or self._folded is None:
            return self.model
        self._folded.refresh()
        return self._folded if self._folding_checked else self._checked_folded

    @cached_property
    def _folded(self) -> FoldedNetwork | None:
        """None if torch.fx cannot trace the model, whose forward may be any Python."""
        try:
            return FoldedNetwork(self.model)
        except Exception as error:
            self._give_up_folding(f"torch.fx cannot trace this network: {first_line(error)}")
            return None

    def _checked_folded(self, images: Tensor) -> Tensor:
        """The logits of the folded network, if they are the model's up to rounding.

        Tracing follows one path through the model's Python, and cannot see all that it does.
        """
        if self._folding_checked:
            return self._folded(images)
        logits = self.model(images)
        if self._folded is None:
            return logits
        folded = self._folded(images)
        difference = ((folded - logits).double().norm() / logits.double().norm()).item()
        if logits.isfinite().all() and not difference <= FOLDING_ROUNDING:
            self._give_up_folding(f"that would change its logits by {difference:.1g} of their norm")
            self._folded = None
            return logits
        self._folding_checked = True
        return folded

    def _give_up_folding(self, why: str) -> None:
        log.warning("batch norms are not folded in evaluation, since %s", why)


@contextmanager
def _deterministic_algorithms() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # By default every new tensor is filled, for programs that read what they have not written.
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill


@contextmanager
def _cudnn_benchmark() -> Iterator[None]:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
