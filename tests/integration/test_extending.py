"""Adding to the project what its documentation says can be added, in a copy of it."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

MODEL = '''
from torch import nn

from models.registry import register


@register("tiny")
def tiny(conv, *, in_channels, classes, widths=(4, 8)):
    """Two convolutions. (N, C, 32, 32) -> (N, classes)."""
    first, second = widths
    return nn.Sequential(
        conv(in_channels, first, 3, stride=4),
        nn.ReLU(),
        conv(first, second, 3, stride=4),
        nn.Flatten(),
        nn.Linear(second * 4, classes),
    )
'''


@pytest.fixture
def checkout(tmp_path):
    """A copy of what a user would edit; the rest is the project's own."""
    for room in ("models", "configs"):
        shutil.copytree(REPOSITORY / room, tmp_path / room)
    shutil.copy(REPOSITORY / "train.py", tmp_path)
    return tmp_path


@pytest.fixture
def train(checkout, digits_root):
    """Trains an epoch in the checkout; returns the identity in the record."""

    def run(name: str, *overrides: str) -> dict:
        command = [sys.executable, "train.py", "dataset=digits", f"dataset.root={digits_root}"]
        command += ["recipe.epochs=1", "dataset.limit_train=64", *overrides]
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        (record,) = (checkout / "results/runs").glob(f"{name}-*.json")
        return json.loads(record.read_text())["science"]

    return run


def test_a_model_is_a_file_and_a_yaml(checkout, train):
    (checkout / "models/tiny.py").write_text(MODEL)
    (checkout / "configs/model/tiny.yaml").write_text("name: tiny\nrevision: 1\nlr: 1.0e-3\n")
    identity = train("digits-tiny-Lr", "model=tiny", "variant=Lr")
    assert identity["model"]["name"] == "tiny"


def test_a_variant_is_a_yaml(checkout, train):
    yaml = (checkout / "configs/variant/LRr.yaml").read_text()
    yaml = yaml.replace("name: LRr", "name: LRr4").replace("rank: 10", "rank: 4")
    (checkout / "configs/variant/LRr4.yaml").write_text(yaml)
    identity = train("digits-base-LRr4", "model=base", "variant=LRr4")
    assert identity["variant"]["rank"] == 4
    train("digits-base-LRr", "model=base", "variant=LRr")  # keeps its name
