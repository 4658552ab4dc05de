"""Adding to the project what its documentation says can be added, in a copy of it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs/extending.md").read_text()


def shown(path: str) -> str:
    """The content that docs/extending.md shows for a new file."""
    (content,) = re.findall(rf"`{re.escape(path)}`:\n\n```\w+\n(.*?)^```", PAGE, flags=re.M | re.S)
    return content


def write(checkout: Path, *paths: str) -> None:
    for path in paths:
        (checkout / path).write_text(shown(path))


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
        (record,) = (checkout / "results/trials/runs").glob(f"{name}-*.json")
        return json.loads(record.read_text())["science"]

    return run


def test_a_model_is_a_file_and_a_yaml(checkout, train):
    write(checkout, "models/narrow.py", "configs/model/narrow.yaml")
    identity = train("digits-narrow-Lr", "model=narrow", "variant=Lr")
    assert identity["model"]["name"] == "narrow"


def test_a_faulty_file_leaves_the_other_models(checkout):
    (checkout / "models" / "wide.py").write_text("def wide(:\n")
    command = [sys.executable, "train.py", "--cfg", "job", "variant=Lr"]
    good, bad = (
        subprocess.run([*command, f"model={name}"], cwd=checkout, capture_output=True, text=True)
        for name in ("base", "wide")
    )
    assert good.returncode == 0 and "name: base" in good.stdout
    assert "models/wide.py is left out: SyntaxError: " in good.stderr
    assert bad.returncode == 2 and "wide" in bad.stderr and "Traceback" not in bad.stderr


def test_a_model_that_changed_says_that_it_needs_a_revision(checkout, train, digits_root):
    write(checkout, "models/narrow.py", "configs/model/narrow.yaml")
    train("digits-narrow-Lr", "model=narrow", "variant=Lr")
    file = checkout / "models" / "narrow.py"
    file.write_text(file.read_text().replace("(16, 32)", "(16, 64)"))
    (run,) = (path.stem for path in (checkout / "results/trials/runs").iterdir())
    shutil.copy(REPOSITORY / "eval.py", checkout)
    command = [sys.executable, "eval.py", f"run={run}", f"dataset.root={digits_root}"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 2 and "raise `revision` in its yaml" in done.stderr


def test_a_variant_that_gets_a_name_keeps_its_runs(checkout, train):
    first = train("digits-base-LRr", "model=base", "variant=LRr", "variant.rank=4")
    write(checkout, "configs/variant/LRr4.yaml")
    again = train("digits-base-LRr", "model=base", "variant=LRr4")  # the only record
    assert again == first and len(list((checkout / "results/trials/runs").iterdir())) == 1


def test_a_variant_is_a_yaml(checkout, train):
    write(checkout, "configs/variant/LRr4.yaml")
    identity = train("digits-base-LRr4", "model=base", "variant=LRr4")
    assert identity["variant"]["rank"] == 4
    train("digits-base-LRr", "model=base", "variant=LRr")  # keeps its name


def test_a_recipe_is_a_yaml(checkout):
    write(checkout, "configs/recipe/hundred.yaml")
    done = subprocess.run(
        [sys.executable, "train.py", "model=base", "variant=Lr", "recipe=hundred", "--cfg", "job"],
        cwd=checkout, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "epochs: 100" in done.stdout and "lr_decay_every: 40" in done.stdout
    assert "batch_size: 64" in done.stdout
