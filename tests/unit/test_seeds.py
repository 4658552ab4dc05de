"""Whatever is random in a run follows its seed: each part by itself."""

from pathlib import Path

import pytest
import torch

from configs import compose, identify
from data import DatasetFile
from linearconv.dropout import CounterDropout
from train import initial_model, train_settings, training_batches

CPU = torch.device("cpu")


def config(seed: int, model: str = "base"):
    return compose([f"model={model}", "variant=LRr", "dataset=digits", f"seed={seed}"])


def network(seed: int, model: str) -> torch.nn.Module:
    chosen = config(seed, model)
    return initial_model(chosen, identify(chosen))


def test_initial_weights():
    first, again, other = (network(seed, "base").conv1.primary for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_keys_of_dropout():
    first, again, other = (
        [m.key for m in network(seed, "allconv").modules() if isinstance(m, CounterDropout)]
        for seed in (3, 3, 4)
    )
    assert first == again and not set(first) & set(other) and len(first) == 3


def test_order_of_the_images(digits_root: Path):
    first, again, other = (
        next(iter(training_batches(chosen, DatasetFile(chosen.dataset, digits_root), CPU).train(0)))
        for chosen in (config(3), config(3), config(4))
    )
    assert all(map(torch.equal, first, again)) and not torch.equal(first[1], other[1])


@pytest.mark.parametrize("seed", [0, 3])
def test_what_a_model_draws_from_torch(seed):
    chosen = config(seed)
    assert train_settings(chosen, identify(chosen)).seed == seed
