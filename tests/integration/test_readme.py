"""What the README shows works as written."""

import re
import shlex
import subprocess

import pytest

from configs import compose, run_id, science
from configs.cli import _jobs
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
COMMANDS = re.findall(r"^python (?:train|eval)\.py .*$", README, flags=re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_compose(command):
    _, entry, *arguments = shlex.split(command, comments=True)
    overrides = [a for a in arguments if a != "-m"]
    for job in _jobs(overrides):
        compose(job, entry.removesuffix(".py"))


def test_the_named_run_is_the_one_of_the_first_command():
    first = shlex.split(COMMANDS[0], comments=True)[2:]
    assert f"run={run_id(science(compose(first)))}" in README


def test_every_make_target_that_is_named_exists():
    listed = subprocess.run(
        ["make", "-C", str(REPOSITORY)], capture_output=True, text=True, check=True
    ).stdout
    for target in ("setup", "demo", "test", "test-all", "test-oldest", "lint", "clean"):
        assert re.search(rf"^  make {target} +\S", listed, flags=re.MULTILINE), listed
    for target in re.findall(r"^make ([a-z-]+)", README, flags=re.MULTILINE):
        assert f"make {target}" in listed
