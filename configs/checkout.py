"""That a command has what it needs, of its own checkout: checked when imported."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


NEEDED = ("torch", "torchvision", "hydra", "filelock")
"""Packages without which nothing of the checkout runs; `pip install .` brings torch alone."""


def _check_packages() -> None:
    """Exit if packages are missing."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        print(
            f"{', '.join(missing)} not found: run `make setup` and use .venv/bin/python, or "
            f"{sys.executable} -m pip install -e '.[train]' in {ROOT}",
            file=sys.stderr,
        )
        sys.exit(2)


def _check_checkout() -> None:
    """Exit if a script of another checkout has imported this one, which is installed.

    It would use this one's configs and models, and write into this one's results, without a word.
    """
    script = Path(sys.argv[0]).resolve()
    other = script.parents[1] if len(script.parts) > 2 else script
    if script.parent.name == "scripts" and (other / "linearconv").is_dir() and other != ROOT:
        print(
            f"{script} would use the code and the results of {ROOT}, which is installed in this "
            f"environment: run `pip install -e {other}`, or set PYTHONPATH={other}",
            file=sys.stderr,
        )
        sys.exit(2)


_check_packages()
_check_checkout()
