"""Measure which execution of the LinearConv layers trains a network fastest on its device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from linearconv.engine.fast.capture import (
    CapturableBatches,
    Capture,
    CapturedSteps,
    TrainingState,
    checked_capture,
)
from linearconv.engine.step import Steps, TrainStep
from linearconv.layer import EXECUTIONS, LinearConv2d

ROUNDS = 3
STEPS = 50
"""Steps of one timing; with the paper's recipe, five of them have the correlation loss."""


def captured_steps(
    step: TrainStep,
    batches: CapturableBatches,
    new_capture: Callable[[], Capture],
    *,
    execution: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Steps, dict[str, Any]]:
    """Captured steps (see `checked_capture`) with the fastest execution of the "auto" layers.

    All layers with execution "auto" and one group are given the same execution; "auto" itself
    stands for the rule of shape (see `LinearConv2d`). Afterwards the training state is restored.

    Args:
        step: the training step.
        batches: the data.
        new_capture: returns a capture with a memory pool of its own.
        execution: what was measured when the run was first started. A resumed run must repeat it
            to be bit-identical, since executions differ by rounding.
        clock: returns seconds; replaced in tests.

    Returns:
        The steps, and notes on them for the run's provenance: "steps" (see `checked_capture`) and,
        where there was a choice, "execution" and "ms_per_step" with each execution, or why it
        could not be captured (None if `execution` was given).
    """
    layers = [
        module
        for module in step.model.modules()
        if isinstance(module, LinearConv2d) and module.execution == "auto" and module.groups == 1
    ]
    if execution is not None and layers:
        _set_execution(layers, execution)
        steps, note = checked_capture(step, batches, new_capture())
        return steps, {"steps": note, "execution": execution, "ms_per_step": None}
    attempts = {
        name: checked_capture(step, batches, new_capture()) for name in _distinct_executions(layers)
    }
    captured = {
        name: steps for name, (steps, _) in attempts.items() if isinstance(steps, CapturedSteps)
    }
    seconds = {}
    if len(captured) > 1 and len(batches.sizes) > 1:
        seconds = _seconds_per_step(step, batches, captured, clock)
    fastest = min(seconds, key=seconds.__getitem__) if seconds else next(iter(captured), "auto")
    _set_execution(layers, fastest)
    steps, note = attempts[fastest]
    if len(attempts) == 1:
        return steps, {"steps": note}
    ms = {name: round(1e3 * value, 4) for name, value in seconds.items()}
    failed = {name: why for name, (_, why) in attempts.items() if name not in captured}
    return steps, {"steps": note, "execution": fastest, "ms_per_step": ms | failed}


def _set_execution(layers: Sequence[LinearConv2d], execution: str) -> None:
    for layer in layers:
        layer.execution = execution


def _distinct_executions(layers: Sequence[LinearConv2d]) -> Iterator[str]:
    """Set and yield each execution that computes any layer in another way than the ones before."""
    seen = set()
    for execution in EXECUTIONS:
        _set_execution(layers, execution)
        resolved = tuple(layer.resolved_execution for layer in layers)
        if resolved not in seen:
            seen.add(resolved)
            yield execution


def _seconds_per_step(
    step: TrainStep,
    batches: CapturableBatches,
    captured: dict[str, CapturedSteps],
    clock: Callable[[], float],
) -> dict[str, float]:
    """The least seconds of a step in `ROUNDS` timings of up to `STEPS` steps.

    The first step of an epoch, before which its random choices are drawn, is not timed.
    """
    state = TrainingState(step, batches)
    count = min(STEPS, len(batches.sizes) - 1)
    seconds: dict[str, list[float]] = {execution: [] for execution in captured}
    for _ in range(ROUNDS):
        for execution, steps in captured.items():
            state.restore()
            epoch = steps.epoch(0)
            next(epoch)
            step.sums.tolist()  # waits for the device
            began = clock()
            for _ in islice(epoch, count):
                pass
            step.sums.tolist()
            seconds[execution].append((clock() - began) / count)
    state.restore()
    return {execution: min(found) for execution, found in seconds.items()}
