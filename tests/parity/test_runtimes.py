"""Every way of computing a run against the plainest one, in float64, step by step.

Real images (the digits), batches of 8 and a last one of 4, reduced widths, 52 steps in four epochs
across a drop of the learning rate, with the correlation loss at every tenth.
"""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from configs import dataset_config
from data import ReferenceBatches, ResidentBatches, load_dataset
from linearconv import LinearConv2d, set_execution
from linearconv.dropout import seed_dropout
from linearconv.engine.fast import small_images
from linearconv.engine.fast.capture import checked_capture
from linearconv.engine.fast.runtime import Runtime
from linearconv.engine.loop import Training, TrainSettings
from linearconv.engine.optimizer import OptimizerSettings, set_lr
from linearconv.engine.seeding import seeded
from linearconv.engine.step import EagerSteps, Regularizer
from models import Variant, architecture, widths
from scripts.bench.tape import tape

WIDTHS = {
    "base": (8, 8, 16, 16),
    "vgg11": (8, 8, 16, 16, 16, 16, 24, 24),
    "allconv": (8, 12),
    "resnet18": (8, 8, 12, 12),
    "squeezenet": (8, 4, 4, 4, 4),
    "efficientnet": (8,) * 9,
}
VARIANTS = {
    "Conv": Variant(),
    "r": Variant(regularized=True),
    "e": Variant(widths="matched"),
    "L": Variant(linear=True),
    "Lr": Variant(linear=True, regularized=True),
    "LRr": Variant(linear=True, regularized=True, rank=2),
}
CASES = [("base", variant) for variant in VARIANTS] + [
    (name, variant)
    for name in ("vgg11", "allconv", "grouped", "guarded")
    for variant in ("Conv", "Lr", "LRr")
]
CASES += [(name, "LRr") for name in ("resnet18", "squeezenet")]
MODERN_CASES = [("base", "Conv"), ("vgg11", "LRr"), ("grouped", "Lr")]
EPOCHS = 4
CPU = torch.device("cpu")
FAST = Runtime(
    channels_last=True,
    fused_optimizer=True,
    count_per_epoch=True,
    pool_before_relu=True,
    small_image_products=True,
)


@pytest.fixture(autouse=True)
def narrow_layers_gain(monkeypatch):
    """What gains in large layers alone is done at these widths too."""
    monkeypatch.setattr(small_images, "PAIRS_PER_PIXEL", 1)


@pytest.fixture(scope="module")
def digits(digits_root):
    spec = dataset_config("digits")
    return spec, load_dataset(spec, digits_root, limit_train=100, limit_test=10)


def grouped(conv) -> nn.Module:
    """A 1x1, a grouped, a depthwise and a strided 1x1 convolution, without bias as in ResNeXt."""
    layers = [
        (1, 16, {"kernel_size": 1}),
        (16, 16, {"kernel_size": 3, "padding": 1, "stride": 2, "groups": 2}),
        (16, 16, {"kernel_size": 3, "padding": 1, "stride": 2, "groups": 16}),
        (16, 16, {"kernel_size": 1, "stride": 2}),
    ]
    modules: list[nn.Module] = []
    for inputs, outputs, geometry in layers:
        modules += [
            conv(inputs, outputs, bias=False, **geometry),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(*modules, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16, 10))


def guarded(conv) -> nn.Module:
    """A strided 1x1 convolution of one channel, which a CPU must not train in channels_last."""
    return nn.Sequential(
        conv(1, 8, 1, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        conv(8, 8, 3, padding=1, groups=2),
        nn.AvgPool2d(16),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


def network(name: str, variant: str, dtype: torch.dtype) -> nn.Module:
    conv = VARIANTS[variant].conv
    with seeded("init", 0):
        if name in ("grouped", "guarded"):
            model = {"grouped": grouped, "guarded": guarded}[name](conv)
        else:
            build, used = architecture(name).build, WIDTHS[name]
            if variant == "e":
                used = widths.chain_widths(build, Variant(linear=True).conv, used)
            model = build(conv, in_channels=1, classes=10, widths=used)
    seed_dropout(model, 0)
    return model.to(dtype)


PLAIN = Runtime()
MODERN = {
    "lr": 1e-2,
    "optimizer": OptimizerSettings("sgd", momentum=0.9, nesterov=True, weight_decay=5e-4),
    "schedule": "cosine",
    "label_smoothing": 0.1,
}
RECIPES = pytest.mark.parametrize("recipe", [{}, MODERN], ids=["paper", "modern"])


def training(
    name, variant, speed=PLAIN, execution="generate", dtype=torch.float64, recipe=None
) -> Training:
    model = network(name, variant, dtype)
    set_execution(model, execution)
    regularizer = Regularizer(0.01, 10, False) if VARIANTS[variant].regularized else None
    settings = TrainSettings(EPOCHS, 1e-3, 2, 0.1, regularizer, "fp32")
    return Training(model, replace(settings, **(recipe or {})), speed)


def batches(way, digits, dtype=torch.float64):
    spec, dataset = digits
    return way(
        dataset,
        spec,
        batch_size=8,
        eval_batch_size=8,
        seed=0,
        device=torch.device("cpu"),
        dtype=dtype,
    )


def trajectory(run: Training, steps) -> list[float]:
    """The losses of a whole run."""
    losses = epochs(run, steps, range(EPOCHS))
    assert len(losses) == 52
    return losses


def epochs(run: Training, steps, numbers) -> list[float]:
    """The summed cross-entropy after each step of some epochs; each starts at zero."""
    run.model.train()
    losses = []
    with run.accelerated.rewritten():
        for epoch in numbers:
            set_lr(run.optimizer, run.settings.lr_at(epoch))
            run.step.sums.zero_()
            before = len(losses)
            for _ in steps.epoch(epoch):
                losses.append(run.step.sums[0].item())
            run.accelerated.epoch_trained(len(losses) - before)
    return losses


@pytest.fixture(scope="module")
def reference(digits):
    """The plainest way: the run, not to be changed, and its losses. Each is computed once."""
    known: dict[tuple, tuple[Training, list[float]]] = {}

    def run(name, variant, recipe) -> tuple[Training, list[float]]:
        key = name, variant, recipe is MODERN
        if key not in known:
            plain = training(name, variant, recipe=recipe)
            steps = EagerSteps(plain.step, batches(ReferenceBatches, digits))
            known[key] = plain, trajectory(plain, steps)
        return known[key]

    return run


def assert_same_end(a: Training, b: Training, tolerance: float) -> None:
    """Weights; not biases before a batch norm, which rounding alone moves, nor their means."""
    has_norms = any(isinstance(m, nn.BatchNorm2d) for m in a.model.modules())
    for name, mine in a.model.state_dict().items():
        if not (has_norms and re.fullmatch(r"conv\d\.bias|.*running_mean", name)):
            theirs = b.model.state_dict()[name]
            torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance, msg=name)


EACH_CASE = pytest.mark.parametrize(
    ("name", "variant", "recipe"),
    [
        *(pytest.param(*case, {}, id="-".join(case)) for case in CASES),
        pytest.param("efficientnet", "LRr", {}, id="efficientnet-LRr", marks=pytest.mark.long),
        *(pytest.param(*case, MODERN, id="-".join(case) + "-modern") for case in MODERN_CASES),
    ],
)


@EACH_CASE
def test_fast_and_reference_have_one_trajectory(name, variant, recipe, digits, reference):
    plain, expected = reference(name, variant, recipe)
    fast = training(name, variant, FAST, "factored", recipe=recipe)
    losses = trajectory(fast, EagerSteps(fast.step, batches(ResidentBatches, digits)))
    assert losses == pytest.approx(expected, rel=1e-9)
    assert_same_end(fast, plain, 1e-6)


SWITCHES = {
    "data": {"way": ResidentBatches},
    "execution": {"execution": "factored"},
    "channels_last": {"speed": Runtime(channels_last=True)},
    "fused_optimizer": {"speed": Runtime(fused_optimizer=True)},
    "count_per_epoch": {"speed": Runtime(count_per_epoch=True)},
    "pool_before_relu": {"speed": Runtime(pool_before_relu=True)},
    "small_image_products": {"speed": Runtime(small_image_products=True)},
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_each_switch_alone_keeps_the_trajectory(switch, digits, reference):
    plain, expected = reference("vgg11", "LRr", {})
    change = dict(SWITCHES[switch])
    way = change.pop("way", ReferenceBatches)
    other = training("vgg11", "LRr", **change)
    losses = trajectory(other, EagerSteps(other.step, batches(way, digits)))
    if switch in ("count_per_epoch", "pool_before_relu"):
        assert losses == expected  # bit for bit
    assert losses == pytest.approx(expected, rel=1e-9)
    assert_same_end(other, plain, 1e-6)


@EACH_CASE
def test_captured_steps_are_the_eager_ones(name, variant, recipe, digits):
    """Captured as a CUDA graph would, here by a tape: see scripts/bench/tape.py."""
    eager = training(name, variant, FAST, "factored", recipe=recipe)
    expected = trajectory(eager, EagerSteps(eager.step, batches(ResidentBatches, digits)))
    captured = training(name, variant, FAST, "factored", recipe=recipe)
    with captured.accelerated.rewritten():
        steps, note = checked_capture(captured.step, batches(ResidentBatches, digits), tape)
    assert note.startswith("captured (")
    assert trajectory(captured, steps) == pytest.approx(expected, rel=1e-12)
    assert_same_end(captured, eager, 1e-12)


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_the_first_step_agrees_in_single_precision(name, variant, digits):
    """With that in double precision. There both runtimes agree (above), so the rest is rounding:
    of batch norms in channels_last, which sum thousands of values one by one in each thread, and in
    VGG11-LRr, whose secondary filters start very small, of both runtimes alike. Rounding can also
    turn over one ReLU or maximum, which changes a batch's gradient by a per cent or two: in one of
    eight batches at least it does not.
    """
    assert any(_first_step_agrees(name, variant, digits, epoch) for epoch in range(8))


def _first_step_agrees(name, variant, digits, epoch: int) -> bool:
    """Whether the gradients of a step on an epoch's first batch agree; the losses must."""
    outcomes = []
    for speed, execution, way, dtype in (
        (PLAIN, "generate", ReferenceBatches, torch.float64),
        (PLAIN, "generate", ReferenceBatches, torch.float32),
        (FAST, "factored", ResidentBatches, torch.float32),
    ):
        run = training(name, variant, speed, execution, dtype)
        images, labels = next(batches(way, digits, dtype).train(epoch))
        run.model.train()
        with run.accelerated.rewritten():
            run.step(images, labels, regularize=run.settings.regularizer is not None)
        gradients = [p.grad.double().flatten() for p in run.model.parameters()]
        outcomes.append((run.step.sums[0].item(), torch.cat(gradients)))
    (exact_loss, exact), (loss, gradient), (fast_loss, fast_gradient) = outcomes
    assert loss == pytest.approx(exact_loss, rel=1e-6)
    assert fast_loss == pytest.approx(exact_loss, rel=1e-4)
    error, fast_error = ((g - exact).norm() / exact.norm() for g in (gradient, fast_gradient))
    assert fast_error < 0.1  # in each batch: more is not one value that was turned over
    return bool(fast_error < max(1e-3, 2 * error))


def test_half_precision_generates_and_regularizes_in_single(digits):
    """bf16 is autocast: weights, their generation and the correlation loss stay float32."""
    spec, dataset = digits
    run = training("vgg11", "LRr", FAST, "generate", torch.float32)
    layer = next(m for m in run.model.modules() if isinstance(m, LinearConv2d))
    step = replace_precision(run, "bf16")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.weight.dtype == torch.float32
        layer.execution = "factored"
        outputs = layer(torch.randn(2, 1, 8, 8).to(memory_format=torch.channels_last))
        assert outputs.dtype == torch.bfloat16
        layer.execution = "generate"
    full = training("vgg11", "LRr", FAST, "generate", torch.float32)
    images, labels = next(batches(ResidentBatches, digits, torch.float32).train(0))
    for one, run_ in ((step, run), (full.step, full)):
        run_.model.train()
        one(images, labels, regularize=True)
    half, single = step.sums[0].item(), full.step.sums[0].item()
    assert half != single and half == pytest.approx(single, rel=2e-2)
    assert all(p.grad.dtype == torch.float32 for p in run.model.parameters())


def replace_precision(run: Training, precision: str):
    run.settings = replace(run.settings, precision=precision)
    run.step.precision = precision
    return run.step


@RECIPES
def test_a_checkpoint_goes_on_under_another_runtime(recipe, digits, reference):
    """Reference for two epochs, fast for two: the layouts of the running means must follow."""
    plain, expected = reference("vgg11", "LRr", recipe)
    for first, second in ((PLAIN, FAST), (FAST, PLAIN)):
        state, losses = None, []
        for speed, numbers in ((first, (0, 1)), (second, (2, 3))):
            run = training("vgg11", "LRr", speed, recipe=recipe)
            if state is not None:
                run.load_state_dict(state)
            losses += epochs(run, EagerSteps(run.step, batches(ResidentBatches, digits)), numbers)
            state = run.state_dict()
        assert losses == pytest.approx(expected, rel=1e-9)
        assert_same_end(run, plain, 1e-6)
