"""Adding to the project what its documentation says can be added, in a copy of it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.evidence.artifacts import read_filters
from tests.conftest import REPOSITORY

QUICK = ("recipe.epochs=1", "dataset.limit_train=64")
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
    """A copy of what trains, since a user would edit it, and train.py writes into it."""
    for room in ("configs", "data", "linearconv", "models"):
        shutil.copytree(REPOSITORY / room, tmp_path / room)
    shutil.copy(REPOSITORY / "train.py", tmp_path)
    (tmp_path / "configs/variant/LRr4.yaml").unlink(missing_ok=True)  # of somebody who has tried it
    return tmp_path


@pytest.fixture
def train(checkout, digits_root):
    """Trains an epoch in the checkout; returns the identity in the record."""

    def run(name: str, *overrides: str) -> dict:
        command = [sys.executable, "train.py", "dataset=digits", f"dataset.root={digits_root}"]
        command += [*QUICK, *overrides]
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        (record,) = (checkout / "results/trials/runs").glob(f"{name}-*.json")
        return json.loads(record.read_text())["science"]

    return run


def test_a_model_may_have_no_widths_and_then_no_variant_e(checkout, train):
    write(checkout, "models/narrow.py", "configs/model/narrow.yaml")
    file = checkout / "models" / "narrow.py"
    fixed = file.read_text().replace(", widths: Sequence[int] = (16, 32)", "")
    file.write_text(fixed.replace("first, second = widths", "first, second = 16, 32"))
    train("digits-narrow-Lr", "model=narrow", "variant=Lr")
    command = [sys.executable, "train.py", "model=narrow", "variant=e", "dataset=digits"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert (
        done.returncode == 2 and "no variant=e: its function in narrow.py takes no" in done.stderr
    )


AWKWARD = """
from torch import nn
from models.registry import register

class Awkward(nn.Module):
    def __init__(self, conv, in_channels, classes):
        super().__init__()
        self.patches = conv(in_channels, 768, 4, stride=4)  # no layer has 512 filters or less
        self.first = self.second = nn.Linear(768, 768, bias=False)  # tied weights
        self.pool = nn.MaxPool2d((8, 8))
        self.classes = nn.Linear(768, classes)

    def forward(self, x):
        if x.shape[-1] != 32:
            raise ValueError("images of 32x32 are expected")
        x = self.pool(input=self.patches(input=x)).flatten(1)
        return self.classes(self.second(self.first(x).relu()))

@register("awkward")
def awkward(conv, *, in_channels, classes):
    return Awkward(conv, in_channels, classes)
"""


def test_a_model_may_be_any_python(checkout, train, digits_root):
    """Ways to write a network that counting, tracing, the figures' arrays and the weights met."""
    (checkout / "models/awkward.py").write_text(AWKWARD)
    yaml = (REPOSITORY / "configs/model/base.yaml").read_text().replace("base", "awkward")
    (checkout / "configs/model/awkward.yaml").write_text(yaml)
    train("digits-awkward-Conv", "model=awkward", "variant=Conv")
    shutil.copy(REPOSITORY / "eval.py", checkout)
    (record,) = (checkout / "results/trials/runs").glob("*.json")
    shutil.rmtree(checkout / "checkpoints")  # the published weights are left
    command = [sys.executable, "eval.py", f"run={record.stem}", f"dataset.root={digits_root}"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_filters(checkout / "results/trials", record.stem) is None


def test_a_copied_yaml_that_keeps_its_name_is_refused(checkout):
    shutil.copy(checkout / "configs/model/base.yaml", checkout / "configs/model/wide.yaml")
    command = [sys.executable, "train.py", "model=wide", "variant=Lr", "dataset=digits"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 2 and "configs/model/wide.yaml must have the name" in done.stderr
    (checkout / "configs/model/wide.yaml").unlink()
    shutil.copy(checkout / "configs/dataset/mnist.yaml", checkout / "configs/dataset/kmnist.yaml")
    command = [sys.executable, "train.py", "model=base", "variant=Lr", "dataset=kmnist"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 2 and "configs/dataset/kmnist.yaml must have the name" in done.stderr


def test_a_yaml_that_cannot_be_parsed_is_named_with_its_line(checkout):
    (checkout / "configs/variant/LRr4.yaml").write_text("name: LRr4\nlinear: [true\n")
    command = [sys.executable, "train.py", "model=base", "variant=LRr4", "dataset=digits"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "configs/variant/LRr4.yaml, line 3: " in done.stderr


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ("classes)", "7)", "(2, 10), one number for each class of dataset=digits; got"),
        ("BatchNorm2d(second)", "BatchNorm2d(first)", "RuntimeError: running_mean"),
    ],
    ids=["outputs", "widths"],
)
def test_a_model_that_gives_no_classes_is_named_before_training(
    checkout, digits_root, right, wrong, words
):
    write(checkout, "models/narrow.py", "configs/model/narrow.yaml")
    file = checkout / "models" / "narrow.py"
    assert right in file.read_text()
    file.write_text(file.read_text().replace(right, wrong))
    command = [sys.executable, "train.py", "model=narrow", "variant=Conv", "dataset=digits"]
    command += [f"dataset.root={digits_root}", *QUICK]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "model=narrow (narrow.py): 2 images of 1x32x32 must give" in done.stderr
    assert words in done.stderr


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


def test_a_model_is_a_file_and_a_yaml_and_needs_a_revision_when_it_changes(
    checkout, train, digits_root
):
    write(checkout, "models/narrow.py", "configs/model/narrow.yaml")
    learned = ("model=narrow", "variant=Lr", "recipe.batch_size=16", "dataset.limit_train=640")
    assert train("digits-narrow-Lr", *learned)["model"]["name"] == "narrow"
    (run,) = (path.stem for path in (checkout / "results/trials/runs").iterdir())
    shutil.copy(REPOSITORY / "eval.py", checkout)
    file, yaml = checkout / "models" / "narrow.py", checkout / "configs/model/narrow.yaml"
    first = file.read_text()

    def call(*command):
        command = [sys.executable, *command, f"dataset.root={digits_root}"]
        return subprocess.run(command, cwd=checkout, capture_output=True, text=True)

    file.write_text(first.replace("classes),\n", "classes),\n        nn.Softmin(dim=1),\n"))
    again = call("train.py", "dataset=digits", *QUICK, *learned)
    assert "is already finished" in again.stdout and "narrow.py has changed since" in again.stdout
    yaml.write_text(yaml.read_text().replace("revision: 1", "revision: 2"))
    other = call("eval.py", f"run={run}")
    assert "trained with revision 1 of narrow, this is revision 2" in other.stderr
    assert "recorded test accuracy" in other.stdout and "the model's code" in other.stdout
    file.write_text(first.replace("(16, 32)", "(16, 64)"))
    unlike = call("eval.py", f"run={run}")
    assert unlike.returncode == 2 and "raise `revision` in its yaml" in unlike.stderr


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


def test_a_recipe_that_is_being_written_leaves_the_others(checkout, train):
    (checkout / "configs/recipe/half.yaml").write_text("recipe:\n  epochs: [3\n")
    (checkout / "configs/recipe/bare.yaml").write_text("epochs: 3\n")  # lacks its package
    (checkout / "configs/recipe/.#short.yaml").symlink_to("nowhere")  # as an editor's lock
    (checkout / "configs/variant/._Lr.yaml").write_bytes(b"\0\5")  # as macOS leaves them
    train("digits-base-Lr", "model=base", "variant=Lr")


def test_a_recipe_is_a_yaml(checkout):
    write(checkout, "configs/recipe/hundred.yaml")
    done = subprocess.run(
        [sys.executable, "train.py", "model=base", "variant=Lr", "recipe=hundred", "--cfg", "job"],
        cwd=checkout, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "epochs: 100" in done.stdout and "lr_decay_every: 40" in done.stdout
    assert "batch_size: 64" in done.stdout


@pytest.mark.long
def test_the_examples_pass_the_checks_of_the_project(tmp_path):
    """Applied to a copy of all files, as by somebody who goes on from them."""
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        if not name.startswith("results/") and (REPOSITORY / name).exists():  # which is data
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, tmp_path / name)
    (tmp_path / "results").symlink_to(REPOSITORY / "results")
    examples = re.findall(r"`((?:models|configs)/[\w/.]+)`:$", PAGE, flags=re.M)
    assert len(examples) >= 4
    write(tmp_path, *examples)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    tests = [f"tests/unit/test_{name}.py" for name in ("models", "identity", "checks")]
    for command in (
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["pytest", "-q", *tests, "tests/integration/test_extending.py"],
    ):
        command = [sys.executable, "-m", *command]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
