"""`execution=auto` on CUDA: the fastest execution is measured once for a run, on stand-ins here."""

import itertools
import os
from functools import partial

import pytest
import torch
from torch import nn

from configs import dataset_config
from data import DATA, load_dataset
from linearconv import LinearConv2d, set_execution
from linearconv.engine.checkpoint import Checkpoints
from linearconv.engine.fast import runtime as runtime_module
from linearconv.engine.fast.capture import CapturedSteps
from linearconv.engine.fast.execution import captured_steps
from linearconv.engine.fast.runtime import AcceleratedModel, Runtime
from linearconv.engine.loop import Training, TrainSettings, fit
from linearconv.engine.optimizer import build_optimizer
from linearconv.engine.record import weights_sha256
from linearconv.engine.seeding import seeded
from linearconv.engine.step import EagerSteps, Regularizer, TrainStep
from models import Variant, build_model
from scripts.bench.tape import HostWait, tape
from tests.toy import ToyBatches

LR = Variant(linear=True, regularized=True)


def new_step(execution="auto") -> TrainStep:
    """By its shape, the first layer generates its weight and the second is factored."""
    torch.manual_seed(0)
    model = nn.Sequential(
        LinearConv2d(2, 8, 1),
        nn.ReLU(),
        LinearConv2d(8, 16, 5, padding=2),
        LinearConv2d(16, 16, 3, groups=2),
        nn.Flatten(),
        nn.Linear(16 * 16, 2),
    ).double()
    set_execution(model, execution)
    return TrainStep(
        model, build_optimizer(model, 1e-2, fused=True), Regularizer(0.5, 3, False), "fp32"
    )


def executions(step: TrainStep) -> list[str]:
    return [m.execution for m in step.model if isinstance(m, LinearConv2d)]


def clock_of(*seconds):
    """A clock by which the timings take these seconds, in turn, over and over."""
    ticks = itertools.chain.from_iterable((0.0, s) for s in itertools.cycle(seconds))
    return lambda: next(ticks)


@pytest.mark.parametrize("fastest", ["auto", "generate", "factored"])
def test_the_fastest_execution_is_set_and_trains_as_eager_steps_do(fastest):
    seconds = {name: 2.0 - (name == fastest) for name in ("auto", "generate", "factored")}
    step, batches = new_step(), ToyBatches()
    before = [t.clone() for t in step.model.state_dict().values()]
    steps, notes = captured_steps(step, batches, lambda: tape, clock=clock_of(*seconds.values()))
    assert isinstance(steps, CapturedSteps) and notes["steps"].startswith("captured")
    assert notes["execution"] == fastest
    # An epoch has 8 steps; the first is not timed.
    assert notes["ms_per_step"] == {name: round(1e3 * s / 7, 4) for name, s in seconds.items()}
    assert executions(step) == [fastest, fastest, "auto"]
    for a, b in zip(before, step.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)

    eager = new_step()
    for layer in eager.model[0], eager.model[2]:
        layer.execution = fastest
    for run in (steps, EagerSteps(eager, ToyBatches())):
        for _ in run.epoch(3):
            pass
    for a, b in zip(step.model.parameters(), eager.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_least_of_the_rounds_counts():
    step = new_step()
    clock = clock_of(3.0, 2.0, 2.5, 1.0, 2.0, 2.5, 3.0, 2.0, 2.5)  # three rounds of the three
    _, notes = captured_steps(step, ToyBatches(), lambda: tape, clock=clock)
    assert notes["execution"] == "auto"
    assert notes["ms_per_step"] == {"auto": 142.8571, "generate": 285.7143, "factored": 357.1429}


def never():
    raise AssertionError("nothing is to be timed")


def test_a_resumed_run_repeats_the_choice():
    step = new_step()
    _, notes = captured_steps(step, ToyBatches(), lambda: tape, execution="factored", clock=never)
    assert executions(step) == ["factored", "factored", "auto"]
    assert notes["execution"] == "factored" and notes["ms_per_step"] is None


@pytest.mark.parametrize("execution", ["generate", "factored"])
def test_a_requested_execution_is_not_measured(execution):
    step = new_step(execution)
    before = executions(step)
    _, notes = captured_steps(step, ToyBatches(), lambda: tape, clock=never)
    assert executions(step) == before and list(notes) == ["steps"]
    _, notes = captured_steps(step, ToyBatches(), lambda: tape, execution="auto", clock=never)
    assert executions(step) == before and list(notes) == ["steps"]


def test_an_execution_that_cannot_be_captured_is_left_out():
    captures = iter([tape, refuse, refuse])
    step = new_step()
    steps, notes = captured_steps(step, ToyBatches(), lambda: next(captures), clock=never)
    assert isinstance(steps, CapturedSteps) and executions(step) == ["auto"] * 3
    assert notes["execution"] == "auto"  # a resumed run must not choose anew
    assert list(notes["ms_per_step"]) == ["generate", "factored"]
    assert all("could not be captured" in why for why in notes["ms_per_step"].values())


def test_if_none_can_be_captured_the_rule_of_shape_stays():
    step = new_step()
    steps, notes = captured_steps(step, ToyBatches(), lambda: refuse, clock=never)
    assert isinstance(steps, EagerSteps) and executions(step) == ["auto"] * 3
    assert "could not be captured: no" in notes["steps"]


def refuse(step):
    raise HostWait("no")


@pytest.fixture
def like_cuda(monkeypatch):
    """`Runtime(cuda_graphs=True)` on a CPU, with tapes; returns a function that sets the clock."""
    not_on_cpu = property(lambda self: False, lambda self, value: None)
    monkeypatch.setattr(AcceleratedModel, "_on_cpu", not_on_cpu, raising=False)
    monkeypatch.setattr(runtime_module, "CudaGraphs", lambda device: tape)

    def set_clock(clock):
        monkeypatch.setattr(runtime_module, "captured_steps", partial(captured_steps, clock=clock))

    return set_clock


def test_a_resumed_run_is_bit_identical_whatever_it_would_measure(tmp_path, like_cuda, digits_root):
    spec = dataset_config("digits")
    batches = DATA["resident"](
        load_dataset(spec, digits_root, limit_train=40, limit_test=10),
        spec,
        batch_size=8,
        eval_batch_size=10,
        seed=0,
        device=torch.device("cpu"),
    )
    settings = TrainSettings(3, 1e-3, 2, 0.1, Regularizer(0.01, 10, False))

    def train(name, until):
        with seeded("init", 0):
            model = build_model("base", LR, in_channels=1, classes=10)
        training = Training(model, settings, Runtime(cuda_graphs=True, fused_optimizer=True))
        checkpoints, ticks = Checkpoints(tmp_path / name), itertools.count()
        state = checkpoints.load_last()
        if state is not None:
            training.load_state_dict(state)
        header = {"run_id": name, "science": {}}
        deadline = 2 * (until - training.epoch)
        fit(
            training,
            batches,
            checkpoints,
            header=header,
            start={},
            deadline=deadline,
            clock=lambda: next(ticks),
        )
        return training

    generate_wins, factored_wins = clock_of(3, 1, 2), clock_of(3, 2, 1)
    like_cuda(generate_wins)
    whole = train("whole", 3)
    train("parts", 1)
    like_cuda(factored_wins)
    other, parts = train("other", 3), train("parts", 3)
    assert [start["execution"] for start in parts.starts] == ["generate", "generate"]
    assert weights_sha256(parts.model) == weights_sha256(whole.model)
    assert weights_sha256(other.model) != weights_sha256(whole.model)


def test_cudnn_measures_its_algorithms_only_within_a_run_and_only_if_asked():
    for asked in (True, False):
        model = AcceleratedModel(nn.Conv2d(1, 1, 1), Runtime(cudnn_benchmark=asked))
        with model.rewritten():
            assert torch.backends.cudnn.benchmark is asked
        assert not torch.backends.cudnn.benchmark


def test_cublas_is_made_deterministic_before_anything_is_computed(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is restored
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    AcceleratedModel(nn.Conv2d(1, 1, 1), Runtime())
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    AcceleratedModel(nn.Conv2d(1, 1, 1), Runtime(deterministic=True))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_deterministic_algorithms_are_asked_of_torch_only_within_a_run():
    for asked in (True, False):
        model = AcceleratedModel(nn.Conv2d(1, 1, 1), Runtime(deterministic=asked))
        with model.rewritten():
            assert torch.are_deterministic_algorithms_enabled() is asked
            assert torch.utils.deterministic.fill_uninitialized_memory is not asked
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.utils.deterministic.fill_uninitialized_memory
