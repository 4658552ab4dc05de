"""SGD, the schedules and label smoothing against their definitions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from configs import compose, identify
from linearconv import LinearConv2d
from linearconv.engine.fast.runtime import Runtime
from linearconv.engine.loop import Training, TrainSettings
from linearconv.engine.optimizer import OptimizerSettings, build_optimizer
from linearconv.engine.step import EagerSteps, TrainStep, evaluate
from tests.toy import ToyBatches
from train import train_settings


def toy_model(rank: int | None = 2) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        LinearConv2d(2, 4, 3, rank=rank),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 2),
    )
    return model.double()


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize(
    "settings",
    [
        OptimizerSettings("sgd"),
        OptimizerSettings("sgd", weight_decay=0.1),
        OptimizerSettings("sgd", momentum=0.9, weight_decay=0.1),
        OptimizerSettings("sgd", momentum=0.9, nesterov=True, weight_decay=0.1),
        OptimizerSettings("sgd", momentum=0.9, weight_decay=0.1, decay_coefficients=True),
    ],
)
@pytest.mark.parametrize("rank", [None, 2])
def test_sgd_is_the_textbooks(rank, settings, fused):
    """16 steps, written out in NumPy but for the gradients."""
    model = toy_model(rank)
    optimizer = build_optimizer(model, 0.05, settings, fused=fused)
    weights = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    velocities = {name: np.zeros_like(weight) for name, weight in weights.items()}
    for epoch in range(2):
        for images, labels in ToyBatches().train(epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            for name, parameter in model.named_parameters():
                gradient = parameter.grad.numpy().copy()
                if settings.decay_coefficients or "coefficients" not in name:
                    gradient += settings.weight_decay * weights[name]
                velocities[name] = settings.momentum * velocities[name] + gradient
                ahead = settings.momentum * velocities[name]
                update = gradient + ahead if settings.nesterov else velocities[name]
                weights[name] -= 0.05 * update
            optimizer.step()
            for name, parameter in model.named_parameters():
                np.testing.assert_allclose(parameter.detach(), weights[name], rtol=0, atol=1e-13)


def test_weight_decay_spares_the_coefficients_alone():
    model = toy_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    decayed = OptimizerSettings("sgd", weight_decay=0.5)
    optimizer = build_optimizer(model, 0.1, decayed, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = 1.0 if "coefficients" in name else 0.95
        torch.testing.assert_close(parameter.detach(), kept * before[name])


@pytest.mark.parametrize("speed", [Runtime(), Runtime(channels_last=True, fused_optimizer=True)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_resumed_run_repeats_the_bits(speed, momentum):
    optimizer = OptimizerSettings("sgd", momentum=momentum, weight_decay=0.1)
    settings = TrainSettings(4, 0.05, 2, 0.1, None, optimizer=optimizer)

    def trained(run: Training, epochs: range) -> Training:
        for epoch in epochs:
            for _ in EagerSteps(run.step, ToyBatches()).epoch(epoch):
                pass
        return run

    whole = trained(Training(toy_model(), settings, speed), range(4))
    parts = Training(toy_model(), settings, speed)
    parts.load_state_dict(trained(Training(toy_model(), settings, speed), range(2)).state_dict())
    trained(parts, range(2, 4))
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(a, b)


SCHEDULES = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.2),
    "multistep": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 7], 0.2),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_those_of_torch(name):
    settings = TrainSettings(10, 0.3, 3, 0.2, None, schedule=name, lr_milestones=(2, 7))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = SCHEDULES[name](optimizer)
    for epoch in range(10):
        assert settings.lr_at(epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_labels_are_smoothed_in_training_alone():
    """Of the target distribution a share is uniform; evaluation is by the labels themselves."""
    images, labels = next(ToyBatches().train(0))
    for share in (0.0, 0.3):
        model = toy_model()
        step = TrainStep(
            model, build_optimizer(model, 0.1, fused=False), None, "fp32", label_smoothing=share
        )
        log_p = F.log_softmax(model(images), dim=1)
        target = (1 - share) * F.one_hot(labels, 2) + share / 2
        step(images, labels, regularize=False)
        assert step.sums[0].item() == pytest.approx(-(target * log_p).sum().item())
        model.eval()
        evaluated = evaluate(model, [(images, labels)], "fp32")
        assert evaluated.loss == pytest.approx(F.cross_entropy(model(images), labels).item())


def test_a_config_arrives_in_the_optimizer_and_the_step():
    config = compose(["model=base", "variant=Lr", "recipe=modern", "recipe.label_smoothing=0.2"])
    settings = train_settings(config, identify(config))
    run = Training(toy_model(), settings)
    decayed, spared = run.optimizer.param_groups
    for group, weight_decay in ((decayed, 5e-4), (spared, 0.0)):
        assert (group["lr"], group["momentum"], group["nesterov"]) == (0.01, 0.9, True)
        assert group["weight_decay"] == weight_decay
    assert run.step.label_smoothing == 0.2
    assert settings.schedule == "cosine" and settings.lr_at(100) == pytest.approx(0.005)
    milestones = ["recipe.schedule=multistep", "recipe.lr_milestones=[60,120]"]
    config = compose(["model=base", "variant=Lr", *milestones, "recipe.optimizer=sgd"])
    settings = train_settings(config, identify(config))
    assert [settings.lr_at(epoch) for epoch in (59, 60, 120)] == pytest.approx([1e-2, 1e-3, 1e-4])
