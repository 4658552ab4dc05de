"""What the README and the pages in docs/ show works as written."""

import re
import shlex
import subprocess
from contextlib import chdir
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from configs import compose, identify, run_id
from configs.cli import _jobs
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
TEXTS = {
    path.name: path.read_text()
    for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
}


OF_ONES_OWN = {"dataset=birds", "dataset.path=my.npz"}
"""Arguments that need files which a page tells the reader to write."""


def shown(pattern: str) -> list[str]:
    """The commands in blocks of the shell, continued lines joined."""
    blocks = re.findall(r"^```bash\n(.*?)^```", "\n".join(TEXTS.values()), flags=re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in dict.fromkeys(lines) if re.match(pattern, line)]


README_COMMANDS = [c for c in shown(r"python (train|eval)\.py ") if c in README]


COMPOSABLE = [
    command
    for command in shown(r"python (train|eval)\.py ")
    if not set(shlex.split(command, comments=True)) & OF_ONES_OWN
]


@pytest.mark.parametrize("command", COMPOSABLE)
def test_commands_compose(command):
    _, entry, *arguments = shlex.split(command, comments=True)
    # Without the keys of Hydra's plugins, which are not installed here.
    overrides = [a for a in arguments if a != "-m" and not a.startswith(("hydra/", "hydra."))]
    for job in _jobs(overrides):
        compose(job, entry.removesuffix(".py"))


@pytest.mark.parametrize("command", shown(r"python scripts/"))
def test_scripts_have_the_options_that_are_shown(command, script):
    _, path, *arguments = shlex.split(command, comments=True)
    known = script(Path(path).stem, "--help").out
    options = [a.partition("=")[0] for a in arguments if a.startswith("-")]
    assert [o for o in options if not re.search(rf"{o}(?![\w-])", known)] == []


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    folder = REPOSITORY if page == "README.md" else REPOSITORY / "docs"
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", TEXTS[page]):
        assert (folder / target).exists(), target


@pytest.mark.parametrize("page", TEXTS)
def test_named_files_exist(page):
    """Paths in backquotes that begin with a room; those that the reader is to write apart."""
    rooms = r"(?:configs|linearconv|models|data|scripts|tests|docs)"
    for path in re.findall(rf"`({rooms}/[\w./-]+)`", TEXTS[page]):
        new = any(word in path for word in ("narrow", "LRr4", "hundred", "birds", "kmnist"))
        assert new or (REPOSITORY / path).exists(), path


def test_the_readme_fits_a_few_screens():
    """Lines that people write: generated blocks grow with the results."""
    written = re.sub(r"<!-- (\w+) -->.*?<!-- end of \1 -->", "", README, flags=re.S)
    assert written.count("\n") < 170


PAGES = {
    page: blocks
    for page, text in TEXTS.items()
    if (blocks := re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S))
}


@cache
def typed(page: str) -> dict[str, Any]:
    """Everything defined after the blocks of a page, one after the other as a reader types them."""
    namespace: dict[str, Any] = {}
    with TemporaryDirectory() as folder, chdir(folder):
        for code in PAGES[page]:
            exec(compile(code, page, "exec"), namespace)
    return namespace


@pytest.mark.xdist_group("pages")  # so that no page runs twice
@pytest.mark.parametrize("page", PAGES)
def test_python_runs(page):
    assert typed(page)


@pytest.mark.xdist_group("pages")
def test_thop_counts_as_documented():
    """The entry in docs/your_network.md, against the plain network."""
    namespace = typed("your_network.md")
    profile, images = namespace["profile"], namespace["images"]
    macs, _ = profile(namespace["plain"], inputs=(images,), verbose=False)
    assert namespace["macs"] == macs
    counted = sum(p.numel() for p in namespace["model"].parameters())
    assert namespace["parameters"] == counted


def test_the_named_runs_are_those_of_the_commands():
    """eval.py is shown with the runs of two commands: the paper's recipe, and make demo."""
    makefile = (REPOSITORY / "Makefile").read_text()
    demo = re.search(r"train\.py (.*recipe=demo)", makefile)
    for command in (README_COMMANDS[1].partition("#")[0].partition("train.py")[2], demo[1]):
        assert f"run={run_id(identify(compose(shlex.split(command))))}" in README


def test_every_make_target_that_is_named_exists():
    listed = subprocess.run(
        ["make", "-C", str(REPOSITORY)], capture_output=True, text=True, check=True
    ).stdout
    for target in ("setup", "demo", "test", "test-all", "test-oldest", "lint", "clean"):
        assert re.search(rf"^  make {target} +\S", listed, flags=re.MULTILINE), listed
    for target in re.findall(r"^make ([a-z-]+)", README, flags=re.MULTILINE):
        assert f"make {target}" in listed
