"""The tape freezes what a CUDA graph does; the check before training finds what goes wrong."""

import re
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from linearconv import LinearConv2d
from linearconv.engine.fast.capture import CapturedSteps, CudaGraphs, Difference, checked_capture
from linearconv.engine.optimizer import ADAM, OptimizerSettings, build_optimizer
from linearconv.engine.step import EagerSteps, Regularizer, TrainStep
from scripts.bench.tape import HostWait, device_operations, tape
from tests.toy import ToyBatches

OPTIMIZERS = {
    "adam": ADAM,
    "sgd": OptimizerSettings("sgd"),
    "momentum": OptimizerSettings("sgd", momentum=0.9, nesterov=True, weight_decay=0.1),
}
EACH_OPTIMIZER = pytest.mark.parametrize("settings", OPTIMIZERS.values(), ids=OPTIMIZERS)


def toy_step(step_class=TrainStep, settings=ADAM) -> TrainStep:
    torch.manual_seed(0)
    model = nn.Sequential(
        LinearConv2d(2, 4, 3, rank=2),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 2),
    )
    model = model.double().to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, 1e-2, settings, fused=True)
    return step_class(model, optimizer, Regularizer(0.5, 3, False), "fp32")


def snapshot(step: TrainStep) -> list[torch.Tensor]:
    moments = [t for state in step.optimizer.state.values() for t in state.values()]
    return [t.clone() for t in (*step.model.state_dict().values(), step.sums, *moments)]


@EACH_OPTIMIZER
def test_the_check_leaves_everything_as_it_was(settings):
    step, batches = toy_step(settings=settings), ToyBatches()
    for _ in EagerSteps(step, batches).epoch(0):  # a resumed run: the optimiser has a state
        pass
    before = snapshot(step)
    steps, note = checked_capture(step, batches, tape)
    assert isinstance(steps, CapturedSteps)
    same = ", ".join(f"{what} 0.0e+00" for what in ("loss", "gradient", "update", "buffers"))
    assert note == f"captured ({same} from eager steps)"
    for a, b in zip(before, snapshot(step), strict=True):
        assert torch.equal(a, b)


def test_a_model_with_torchs_dropout_trains_eagerly():
    step = toy_step()
    step.model.insert(0, nn.Dropout(0.5))
    steps, note = checked_capture(step, ToyBatches(), tape)
    assert isinstance(steps, EagerSteps) and "CounterDropout" in note
    step.model[0].p = 0.0
    assert isinstance(checked_capture(step, ToyBatches(), tape)[0], CapturedSteps)


class Average(nn.Module):
    """Passes on its input, and keeps an average of it in another tensor at each call."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones((), dtype=torch.float64))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        return x


def test_a_model_that_replaces_its_buffers_trains_eagerly():
    """Replays would go on with the tensor that the buffer was when they were captured."""
    step = toy_step()
    step.model.insert(0, Average())
    mean = step.model[0].mean
    steps, note = checked_capture(step, ToyBatches(), tape)
    assert isinstance(steps, EagerSteps) and note.endswith("instead of changing them: 0.mean")
    assert step.model[0].mean is mean and mean == 1


class Calls(Average):
    """Adds to a buffer a number that Python counts, which a replay does not."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        self.mean.add_(float(self.calls))
        return x


def test_buffers_that_a_replay_changes_otherwise_are_noticed():
    step = toy_step()
    step.model.insert(0, Calls())
    steps, note = checked_capture(step, ToyBatches(), tape)
    assert isinstance(steps, EagerSteps) and "did not compute what eager ones do" in note
    assert re.search(r"update 0\.0e\+00, buffers [1-9]", note) and step.model[0].mean == 1


@EACH_OPTIMIZER
def test_a_fresh_optimizer_is_as_new_after_the_check(settings):
    checked, new = toy_step(settings=settings), toy_step(settings=settings)
    steps, _ = checked_capture(checked, ToyBatches(), tape)
    for state in checked.optimizer.state.values():
        assert all(not t.any() for t in state.values())
    for one in (steps.epoch(0), EagerSteps(new, ToyBatches()).epoch(0)):
        for _ in one:
            pass
    for a, b in zip(snapshot(checked), snapshot(new), strict=True):
        assert torch.equal(a, b)


def test_captured_steps_leave_the_loss_out_when_it_has_ended():
    """The first epoch has it and the second does not, as eager steps."""
    steps = [toy_step() for _ in range(2)]
    for step in steps:
        step.regularizer = replace(step.regularizer, every=1, until=1)
    captured, _ = checked_capture(steps[0], ToyBatches(), tape)
    assert isinstance(captured, CapturedSteps)
    for run in (captured, EagerSteps(steps[1], ToyBatches())):
        for epoch in range(2):
            for _ in run.epoch(epoch):
                pass
    for a, b in zip(snapshot(steps[0]), snapshot(steps[1]), strict=True):
        assert torch.equal(a, b)


class HostCounter(TrainStep):
    """Scales the loss by a number that Python counts: a graph would repeat the first one."""

    count = 0

    def __call__(self, images, labels, *, regularize):
        self.count += 1
        super().__call__(images * self.count, labels, regularize=regularize)


class Forgetful(TrainStep):
    """Leaves the correlation loss out once it is captured."""

    def __call__(self, images, labels, *, regularize):
        recording = _get_current_dispatch_mode() is not None
        super().__call__(images, labels, regularize=regularize and not recording)


class HostRead(TrainStep):
    """Waits for the device at each step."""

    def __call__(self, images, labels, *, regularize):
        super().__call__(images, labels, regularize=regularize)
        self.last = self.sums[0].item()


@EACH_OPTIMIZER
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (HostCounter, "did not compute what eager ones do"),
        (Forgetful, "did not compute what eager ones do"),
        (HostRead, "could not be captured: .*wait for the device"),
    ],
)
def test_a_planted_fault_is_found_and_training_goes_on_eagerly(fault, words, settings):
    step, batches = toy_step(fault, settings), ToyBatches()
    steps, note = checked_capture(step, batches, tape)
    assert isinstance(steps, EagerSteps) and note.startswith("eager: ")
    assert re.search(words, note)


class FakeCuda:
    """Stands in for torch.cuda's and the allocator's part in capturing, and notes the calls."""

    def __init__(self, monkeypatch, *, end_fails: bool) -> None:
        self.calls, self.end_fails, self.pools = [], end_fails, iter("pqrs")
        for name, stand_in in {
            "graph_pool_handle": lambda: next(self.pools),
            "Stream": lambda device: f"stream on {device}",
            "CUDAGraph": lambda: SimpleNamespace(replay=None),
            "current_stream": lambda device=None: "current",
            "current_device": lambda: 0,
            "stream": lambda stream: nullcontext(),
            "graph": self.graph,
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            monkeypatch.setattr(torch._C, name, self.note(name), raising=False)
        monkeypatch.delattr(torch._C, "_cuda_endAllocateCurrentStreamToPool", raising=False)

    def note(self, name):
        return lambda *arguments: self.calls.append((name, *arguments))

    @contextmanager
    def graph(self, graph, *, pool, stream, capture_error_mode):
        self.calls.append(("capture", pool, stream))
        try:
            yield
        finally:
            if self.end_fails:
                raise RuntimeError("CUDA error: capture was invalidated\nsearch for ...")


def test_a_failed_capture_leaves_nothing_behind(monkeypatch):
    """The next job of the same process can capture; its stream is on its own device."""
    cuda = FakeCuda(monkeypatch, end_fails=True)
    failing = CudaGraphs(torch.device("cuda", 1))
    with pytest.raises(RuntimeError):
        failing(lambda: None)
    released = [("_cuda_endAllocateToPool", 1, "p"), ("_cuda_releasePool", 1, "p")]
    assert cuda.calls == [("capture", "p", "stream on cuda:1"), *released]
    cuda.end_fails = False
    CudaGraphs(torch.device("cuda"))(lambda: None)
    assert cuda.calls[3:] == [("capture", "q", "stream on cuda")]


def test_what_cannot_be_released_hides_nothing(monkeypatch):
    cuda = FakeCuda(monkeypatch, end_fails=True)

    def refuse(*arguments):
        raise RuntimeError("internal assertion")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", refuse, raising=False)
    with pytest.raises(RuntimeError, match="invalidated"):
        CudaGraphs(torch.device("cuda"))(lambda: None)
    assert len(cuda.calls) == 1  # the graph itself releases its pool, and twice would abort


def test_a_step_that_fails_in_a_capture_that_ends_is_reported(monkeypatch):
    FakeCuda(monkeypatch, end_fails=False)

    def fail():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nMore") from KeyError("k")

    with pytest.raises(RuntimeError, match="^OutOfMemoryError: CUDA out of memory.$"):
        CudaGraphs(torch.device("cuda"))(fail)


def test_the_reason_is_the_steps_own_error_and_not_that_of_the_end(monkeypatch):
    FakeCuda(monkeypatch, end_fails=True)
    step, batches = toy_step(HostRead), ToyBatches()

    def capture(run):
        return CudaGraphs(torch.device("cuda"))(lambda: tape(run))

    steps, note = checked_capture(step, batches, capture)
    assert isinstance(steps, EagerSteps)
    assert re.fullmatch(
        "eager: the step could not be captured: HostWait: .* would make the host wait for the "
        "device",
        note,
    )


@EACH_OPTIMIZER
def test_a_frozen_learning_rate_is_found(settings):
    """A rate kept as a Python number would be captured as it was."""
    step, batches = toy_step(settings=settings), ToyBatches()

    def frozen(run):
        recorded = tape(run)
        for operation in recorded.operations:
            if operation.name in ("_fused_adam_", "_fused_sgd_"):
                operation.kwargs["lr"] = operation.kwargs["lr"].clone()
        return recorded

    steps, note = checked_capture(step, batches, frozen)
    assert isinstance(steps, EagerSteps) and "did not compute" in note


def test_stale_batches_are_found():
    step, batches = toy_step(), ToyBatches()
    batches.next = lambda size: (batches.images[:size], batches.labels[:size])
    steps, _ = checked_capture(step, batches, tape)
    assert isinstance(steps, CapturedSteps)  # eager steps see the same images
    fresh = ToyBatches()
    position = []

    def by_python(size):
        position.append(size)
        start = sum(position[:-1]) % 24
        return fresh.images[start : start + size], fresh.labels[start : start + size]

    fresh.next = by_python
    steps, note = checked_capture(toy_step(), fresh, tape)
    assert isinstance(steps, EagerSteps) and "did not compute" in note


def test_a_difference_that_is_no_number_is_beyond_rounding():
    nan = float("nan")
    assert not Difference(1e-6, 1e-4, 0.05, 0.05).beyond_rounding
    for found in ((1e-2, 0, 0, 0), (0, 0.1, 0, 0), (0, 0, 0.5, 0), (0, 0, 0, 0.5), (nan, 0, 0, 0),
                  (0, 0, 0, nan)):  # fmt: skip
        assert Difference(*found).beyond_rounding


def test_a_tape_repeats_in_the_same_memory():
    x, w = torch.randn(3, 4), torch.randn(4, 2)
    held = []
    replay = tape(lambda: held.append((x @ w).relu().t()))
    x.copy_(torch.randn(3, 4))
    replay()
    assert torch.equal(held[0], (x @ w).relu().t())


def test_a_tape_keeps_numbers_and_branches():
    scale, x, total = [2.0], torch.ones(3), torch.zeros(3)
    replay = tape(lambda: total.add_(x * scale[0]))
    scale[0] = 5.0
    replay()
    assert total.tolist() == [4.0, 4.0, 4.0]


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.masked_select(x, x > 0),
        lambda x: bool((x > 0).any()),
        lambda x: torch.equal(x, x),
    ],
)
def test_waiting_for_the_device_is_refused(wait):
    x = torch.randn(5)
    with pytest.raises(HostWait, match="would make the host wait"):
        tape(lambda: wait(x))


def test_operations_are_counted_without_views_allocations_and_recording():
    weight = nn.Parameter(torch.randn(4, 4))
    x = torch.randn(2, 4)

    def step():
        weight.grad = None
        F.relu(x @ weight.t()).sum().backward()

    # mm, relu; then ones_like, (expand), threshold_backward, mm. sum is the sixth.
    assert device_operations(step, [weight]) == 6
    eager = toy_step()
    assert "clone" in {o.name for o in tape(lambda: eager(*take(), regularize=False)).operations}


def take():
    batches = ToyBatches()
    batches.begin(0)
    return batches.next(4)
