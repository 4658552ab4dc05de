"""Capture training steps to replay them, and check that a replay computes the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from linearconv.engine.step import EagerSteps, Steps, TrainBatches, TrainStep
from linearconv.errors import first_line

Replay = Callable[[], None]
"""Runs one step, including slicing its batch."""

Kind = tuple[int, bool]
"""Images in the batch, and whether the correlation loss is added.

An epoch has few kinds of step: with and without the loss, and the short last batch.
"""

Capture = Callable[[Replay], Replay]
"""Turns a step into its replay, which always uses the same memory: `CudaGraphs()`, `tape.tape`."""

GRADIENT_MEANS = ("exp_avg", "momentum_buffer")
"""Names that Adam and SGD give to their running means of the gradients."""

ROUNDS = 2
"""Rounds over all kinds of step in the check; the learning rate changes in between."""


class CapturableBatches(TrainBatches, Protocol):
    """Batches sliced by operations that can be captured with the step."""

    state: list[Tensor]

    def begin(self, epoch: int) -> None:
        """Store the random choices of an epoch for `next`."""

    def next(self, size: int) -> tuple[Tensor, Tensor]:
        """The next `size` images and labels of the epoch."""


class CapturedSteps:
    """Replays steps; each kind was captured once, including slicing its batch.

    Args:
        step: knows which steps have the correlation loss.
        batches: the data.
        replays: the replay of each kind.
    """

    def __init__(
        self, step: TrainStep, batches: CapturableBatches, replays: dict[Kind, Replay]
    ) -> None:
        self._step, self._batches, self._replays = step, batches, replays

    def epoch(self, epoch: int) -> Iterator[None]:
        """Train an epoch, counted from 0: one step each time the iterator is advanced."""
        self._batches.begin(epoch)
        for kind in _kinds(self._step, self._batches, epoch):
            self._replays[kind]()
            yield


def _kinds(step: TrainStep, batches: CapturableBatches, epoch: int) -> list[Kind]:
    """The kind of each step of an epoch, counted from 0."""
    return [(size, step.regularizes(epoch, i)) for i, size in enumerate(batches.sizes)]


class CudaGraphs:
    """Captures steps as CUDA graphs that share one memory pool.

    Args:
        device: the current CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        # torch's default would be one stream for all captures of the process, on whichever device
        # came first.
        self._stream = torch.cuda.Stream(device)

    def __call__(self, step: Replay) -> Replay:
        """Capture a step without running it; returns the graph's replay.

        Raises:
            RuntimeError: the step cannot be captured; a later capture may succeed.
        """
        graph = torch.cuda.CUDAGraph()
        failure: Exception | None = None
        try:
            # Other threads (heartbeat, logging) may continue meanwhile. The outer context restores
            # the stream even if ending a failed capture raises, which torch.cuda.graph does not.
            with (
                torch.cuda.stream(torch.cuda.current_stream(self._device)),
                torch.cuda.graph(
                    graph,
                    pool=self._pool,
                    stream=self._stream,
                    capture_error_mode="thread_local",
                ),
            ):
                try:
                    step()
                except Exception as error:
                    failure = error
                    raise
        except RuntimeError as error:
            FAILED_GRAPHS.append(graph)
            self._release_pool()
            # Ending a failed capture raises an error of its own, which hides the step's.
            cause = failure or error
            raise RuntimeError(f"{type(cause).__name__}: {first_line(cause)}") from None
        return graph.replay

    def _release_pool(self) -> None:
        """Undo what a capture that failed at its end leaves behind in torch's allocator.

        Otherwise all allocations of the process go on into the pool, the allocator no longer frees
        cached memory before it reports that there is none, and the next capture fails.
        """
        index = self._device.index
        index = torch.cuda.current_device() if index is None else index
        # The first is the name in torch 2.6, the second the one since.
        names = ("_cuda_endAllocateCurrentStreamToPool", "_cuda_endAllocateToPool")
        end = next(getattr(torch._C, name) for name in names if hasattr(torch._C, name))
        # If the capture ended normally, this raises, and the graph releases the pool itself.
        with suppress(RuntimeError):
            end(index, self._pool)
            torch._C._cuda_releasePool(index, self._pool)


FAILED_GRAPHS: list[torch.cuda.CUDAGraph] = []
"""Graphs whose capture failed; kept, since torch's allocators may still refer to them."""


@dataclass(frozen=True)
class Difference:
    """Relative difference between two ways of computing the same steps.

    Attributes:
        loss: of the summed losses.
        gradient: of the optimiser's running means of the gradients, in norm.
        update: of the change of the weights, in norm.
        buffers: of the change of the buffers (running statistics), in norm.
    """

    loss: float
    gradient: float
    update: float
    buffers: float

    @property
    def beyond_rounding(self) -> bool:
        """Whether the difference is too large for rounding, or NaN.

        Rounding errors are amplified in the weights: Adam scales every gradient to about 1, even
        those that are only rounding error (of a bias before a batch norm).
        """
        return not (
            self.loss < 1e-3 and self.gradient < 1e-2 and self.update < 0.2 and self.buffers < 0.2
        )

    def __str__(self) -> str:
        return (
            f"loss {self.loss:.1e}, gradient {self.gradient:.1e}, update {self.update:.1e}, "
            f"buffers {self.buffers:.1e}"
        )


def checked_capture(
    step: TrainStep, batches: CapturableBatches, capture: Capture
) -> tuple[Steps, str]:
    """Captured steps, if a check shows that they compute what eager ones do, else eager steps.

    Steps of every kind run eagerly and by replay from the current state and are compared;
    afterwards the state is restored.

    Returns:
        The steps, and a note on them for the run's provenance.
    """
    if any(isinstance(m, _DropoutNd) and m.p > 0 for m in step.model.modules()):
        # Its generator is no tensor: it cannot be restored, and the trials would not be compared
        # with the same masks.
        why = (
            "eager: torch's dropout is in the model (linearconv.dropout.CounterDropout is captured)"
        )
        return EagerSteps(step, batches), why
    kinds = dict.fromkeys(_kinds(step, batches, 0))
    if step.regularizer is not None and step.regularizer.until is not None:
        kinds |= dict.fromkeys((size, False) for size, _ in kinds)  # of the epochs without it
    eager = {kind: _whole_step(step, batches, kind) for kind in kinds}
    state = TrainingState(step, batches)
    try:
        with _side_stream(step.sums.device):
            # The optimiser and libraries initialise in their first steps, which cannot be
            # captured.
            _trial(eager, step, batches)
        if moved := state.moved_buffers():
            # A replay would go on reading and writing the tensors that there were.
            why = f"eager: a step replaces buffers instead of changing them: {', '.join(moved)}"
            return EagerSteps(step, batches), why
        state.restore()
        batches.begin(0)
        replays = {kind: capture(run) for kind, run in eager.items()}
        outcomes = []
        for runs in (replays, eager):
            state.restore()
            _trial(runs, step, batches)
            outcomes.append(state.outcome())
        difference = _difference(*outcomes)
    except RuntimeError as error:
        why = f"eager: the step could not be captured: {first_line(error)}"
        return EagerSteps(step, batches), why
    finally:
        state.restore()
    if difference.beyond_rounding:
        why = f"eager: captured steps did not compute what eager ones do ({difference})"
        return EagerSteps(step, batches), why
    return CapturedSteps(step, batches, replays), f"captured ({difference} from eager steps)"


def _whole_step(step: TrainStep, batches: CapturableBatches, kind: Kind) -> Replay:
    size, regularize = kind
    return lambda: step(*batches.next(size), regularize=regularize)


def _trial(runs: dict[Kind, Replay], step: TrainStep, batches: CapturableBatches) -> None:
    """Run a few steps of each kind with changing data and learning rate."""
    for trial_epoch in range(ROUNDS):
        batches.begin(trial_epoch)
        for rate in _learning_rates(step):
            rate.mul_(0.5)
        for run in runs.values():
            run()


@contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """Temporarily use a side stream, as CUDA graphs require for steps before a capture."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        torch.cuda.current_stream(device).wait_stream(stream)


def _learning_rates(step: TrainStep) -> list[Tensor]:
    return list({group["lr"] for group in step.optimizer.param_groups})  # groups may share theirs


class TrainingState:
    """A snapshot of all tensors that steps change."""

    def __init__(self, step: TrainStep, batches: CapturableBatches) -> None:
        self._step, self._batches = step, batches
        self._buffers = [
            (name, module, key, module._buffers[key])
            for name, module in step.model.named_modules()
            for key in module._buffers
        ]
        self._saved = {id(tensor): tensor.detach().clone() for tensor in self._tensors()}

    def _tensors(self) -> list[Tensor]:
        step, model = self._step, self._step.model
        made = [t for state in step.optimizer.state.values() for t in state.values()]
        kept = [*model.parameters(), *model.buffers(), *_learning_rates(step), step.sums]
        return [*kept, *self._batches.state, *made]

    @torch.no_grad()
    def restore(self) -> None:
        """Restore all tensors in place; optimiser state created since the snapshot becomes 0.

        With zeros, the next step is that of a new optimiser: torch's SGD copies the first gradient
        into its momentum, and without dampening adds it with the same weight of 1.
        """
        for _, module, key, tensor in self._buffers:
            module._buffers[key] = tensor
        for tensor in self._tensors():
            saved = self._saved.get(id(tensor))
            tensor.zero_() if saved is None else tensor.copy_(saved)

    def moved_buffers(self) -> list[str]:
        """The names of the buffers that have been replaced by other tensors since the snapshot."""
        return [
            f"{name}.{key}".removeprefix(".")
            for name, module, key, tensor in self._buffers
            if module._buffers.get(key) is not tensor
        ]

    def outcome(self) -> tuple[list[Tensor], ...]:
        """Copies of the sums and of the running means of the gradients, and what has changed.

        That is, of the weights and of the buffers.
        """
        model = self._step.model
        changes = [p.detach() - self._saved[id(p)] for p in model.parameters()]
        statistics = [b.double() - self._saved[id(b)].double() for b in model.buffers()]
        means = [
            state[name].clone()
            for state in self._step.optimizer.state.values()
            for name in GRADIENT_MEANS
            if name in state
        ]
        # Without momentum SGD keeps none, but then the weights change by the gradients.
        return [self._step.sums.clone()], means or changes, changes, statistics


def _difference(ours: tuple[list[Tensor], ...], eager: tuple[list[Tensor], ...]) -> Difference:
    """The difference between two outcomes."""
    return Difference(*map(_relative_distance, ours, eager))


def _relative_distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Norm of a - b relative to that of b, unless b is 0."""
    distance, size = _norm([x - y for x, y in zip(a, b, strict=True)]), _norm(b)
    return distance / size if size else distance


def _norm(tensors: Sequence[Tensor]) -> float:
    norms = [t.double().norm() for t in tensors]
    return torch.stack(norms).norm().item() if norms else 0.0
