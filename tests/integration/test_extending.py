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


def test_a_model_is_a_file_and_a_yaml(checkout, digits_root):
    (checkout / "models/tiny.py").write_text(MODEL)
    (checkout / "configs/model/tiny.yaml").write_text("name: tiny\nrevision: 1\nlr: 1.0e-3\n")
    command = [sys.executable, "train.py", "model=tiny", "variant=Lr", "dataset=digits"]
    command += [f"dataset.root={digits_root}", "recipe.epochs=1", "dataset.limit_train=64"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (record,) = (checkout / "results/runs").glob("digits-tiny-Lr-*.json")
    assert json.loads(record.read_text())["science"]["model"]["name"] == "tiny"
