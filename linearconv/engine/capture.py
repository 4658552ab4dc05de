"""Capturing the training step, and seeing that the captured one computes the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from linearconv.engine.step import TrainStep
from linearconv.engine.stepping import (
    CapturableBatches,
    CapturedSteps,
    EagerSteps,
    Kind,
    Replay,
    Steps,
)

log = logging.getLogger(__name__)

Capture = Callable[[Replay], Replay]
"""From a step to what repeats it, always in the same memory: `CudaGraphs()`, or `tape.tape`."""

ROUNDS = 2
"""Rounds over all kinds of step in the check; the learning rate changes in between."""


class CudaGraphs:
    """Captures steps as CUDA graphs, which share their memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Replay) -> Replay:
        """Capture, without computing anything; returns the graph's replay."""
        graph = torch.cuda.CUDAGraph()
        # Other threads (heartbeat, logging) may go on meanwhile. The outer context puts the stream
        # back even where ending a failed capture raises, after which torch would not.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            step()
        return graph.replay


@dataclass(frozen=True)
class Difference:
    """How far two ways of computing the same steps ended apart, relatively.

    Attributes:
        loss: of the summed losses.
        gradient: of Adam's running means of the gradients, as a norm.
        update: of the weights, to the norm of how far they went.
    """

    loss: float
    gradient: float
    update: float

    @property
    def beyond_rounding(self) -> bool:
        """Whether rounding cannot explain it (NaN included).

        Rounding reaches the weights enlarged: Adam scales every gradient to about 1, also those
        that are nothing but rounding (of a bias before a batch norm).
        """
        return not (self.loss < 1e-3 and self.gradient < 1e-2 and self.update < 0.2)

    def __str__(self) -> str:
        return f"loss {self.loss:.1e}, gradient {self.gradient:.1e}, update {self.update:.1e}"


def checked_capture(
    step: TrainStep, batches: CapturableBatches, capture: Capture
) -> tuple[Steps, str]:
    """Captured steps that have been seen to compute what the eager ones do, else eager ones.

    Steps of every kind are taken eagerly and by replay from the present state, and compared;
    afterwards everything is as before.

    Returns:
        The steps, and what to say of them in the run's provenance.
    """
    kinds = [(size, step.regularizes(i)) for i, size in enumerate(batches.sizes)]
    eager = {kind: _whole_step(step, batches, kind) for kind in dict.fromkeys(kinds)}
    state = _State(step, batches)
    try:
        with _side_stream(step.sums.device):
            # The optimiser and libraries set themselves up in their first steps, which a capture
            # could not hold.
            _trial(eager, step, batches)
        state.restore()
        batches.begin(0)
        replays = {kind: capture(run) for kind, run in eager.items()}
        outcomes = []
        for runs in (replays, eager):
            state.restore()
            _trial(runs, step, batches)
            outcomes.append(state.outcome())
        difference = state.difference(*outcomes)
    except RuntimeError as error:
        return EagerSteps(step, batches), _fall_back(f"the step could not be captured: {error}")
    finally:
        state.restore()
    if difference.beyond_rounding:
        return EagerSteps(step, batches), _fall_back(
            f"captured steps did not compute what eager ones do ({difference})"
        )
    return CapturedSteps(batches, kinds, replays), f"captured ({difference} from eager steps)"


def _fall_back(why: str) -> str:
    log.warning("training by eager steps, which is slower: %s", why)
    return f"eager: {why}"


def _whole_step(step: TrainStep, batches: CapturableBatches, kind: Kind) -> Replay:
    size, regularize = kind
    return lambda: step(*batches.next(size), regularize=regularize)


def _trial(runs: dict[Kind, Replay], step: TrainStep, batches: CapturableBatches) -> None:
    """A few steps of each kind, over which data and learning rate change."""
    for trial_epoch in range(ROUNDS):
        batches.begin(trial_epoch)
        for rate in _learning_rates(step):
            rate.mul_(0.5)
        for run in runs.values():
            run()


@contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """Steps before a capture run on a stream of their own, as CUDA graphs ask."""
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
    return [group["lr"] for group in step.optimizer.param_groups]


class _State:
    """All tensors that steps change, as they were when this was made."""

    def __init__(self, step: TrainStep, batches: CapturableBatches) -> None:
        self._step, self._batches = step, batches
        self._saved = {id(tensor): tensor.detach().clone() for tensor in self._tensors()}

    def _tensors(self) -> list[Tensor]:
        step, model = self._step, self._step.model
        made = [t for state in step.optimizer.state.values() for t in state.values()]
        kept = [*model.parameters(), *model.buffers(), *_learning_rates(step), step.sums]
        return [*kept, *self._batches.state, *made]

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back, in place; what the optimiser has made since was zero before."""
        for tensor in self._tensors():
            saved = self._saved.get(id(tensor))
            tensor.zero_() if saved is None else tensor.copy_(saved)

    def outcome(self) -> tuple[list[Tensor], ...]:
        """Copies of the sums, of Adam's means of the gradients, and of the weights."""
        model, states = self._step.model, self._step.optimizer.state
        means = [states[p]["exp_avg"] for p in model.parameters() if p in states]
        return tuple(
            [t.detach().clone() for t in tensors]
            for tensors in ([self._step.sums], means, list(model.parameters()))
        )

    def difference(
        self, ours: tuple[list[Tensor], ...], eager: tuple[list[Tensor], ...]
    ) -> Difference:
        """Between two outcomes."""
        start = [self._saved[id(p)] for p in self._step.model.parameters()]
        loss, gradient, update = (_distance(a, b) for a, b in zip(ours, eager, strict=True))
        sizes = _norm(eager[0]), _norm(eager[1]), _distance(eager[2], start)
        return Difference(
            *(
                difference / size if size else difference
                for difference, size in zip((loss, gradient, update), sizes, strict=True)
            )
        )


def _norm(tensors: Sequence[Tensor]) -> float:
    return torch.stack([t.double().norm() for t in tensors]).norm().item()


def _distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return _norm([x - y for x, y in zip(a, b, strict=True)])
