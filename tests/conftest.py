"""Shared fixtures: where data lies, and the entry points called as a user calls them."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from configs import dataset_config
from data import Dataset, load_dataset
from data.official import pack

REPOSITORY = Path(__file__).resolve().parents[1]

# Commands that tests start use this checkout, too, where the environment has another one installed.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])
)

# Parallel workers share the cores.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give long tests more time than pyproject.toml gives the others."""
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Puts back the number of threads that a test has set."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packed digits, real images that need no network."""
    root = tmp_path_factory.mktemp("datasets")
    pack("digits", root)
    return root


@pytest.fixture(scope="session")
def real_dataset() -> Callable[[str], Dataset]:
    """Loads a real dataset by name, or skips the test where its packed file is not at hand."""
    root = Path(os.environ.get("LINEARCONV_DATA", REPOSITORY / "datasets"))

    def load(name: str) -> Dataset:
        if not (root / f"{name}.npz").exists():
            pytest.skip(f"{root / name}.npz not found (python scripts/prepare_data.py {name})")
        return load_dataset(dataset_config(name), root)

    return load


class Outcome(NamedTuple):
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def places(tmp_path: Path, digits_root: Path) -> list[str]:
    """Overrides that keep a run inside the test's folder, on the digits."""
    return [
        "dataset=digits",
        f"dataset.root={digits_root}",
        f"results_dir={tmp_path}/results",
        f"checkpoint_dir={tmp_path}/checkpoints",
        f"log_dir={tmp_path}/logs",
    ]


@pytest.fixture
def small(places: list[str]) -> list[str]:
    """`places`, and so little data that an epoch of 12 steps takes a second."""
    return [
        *places,
        "recipe.batch_size=16",
        "dataset.limit_train=192",
        "dataset.limit_test=64",
        "recipe.epochs=3",
        "runtime.save_every_s=0",
    ]


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Outcome]]:
    """Runs train.py or eval.py in this process, which spares seconds of imports each time."""
    import eval as eval_entry
    import train as train_entry
    from configs.cli import run_main

    entries = {"train": train_entry.train, "eval": eval_entry.main}
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # run_main sets it; this puts it back
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.INFO)

    def run(name: str, *arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGPIPE)}
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as stop:
                run_main(name, entries[name])
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        captured = capsys.readouterr()
        return Outcome(stop.value.code, captured.out, captured.err)

    yield run
    root.setLevel(level)
