"""The scripts, called as a user calls them."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from configs.experiments import CELLS, all_cells, cells_by_key, key_of
from scripts.command import exit_with
from scripts.count import counted
from scripts.evidence.counts import FILE
from scripts.evidence.results import recipes
from tests.conftest import REPOSITORY


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPOSITORY / "scripts" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def rows(script) -> list[dict]:
    done = script("count", "--format", "json")
    assert done.code == 0, done.err
    return json.loads(done.out)


KEYS = {
    "table",
    "model",
    "variant",
    "alpha",
    "params",
    "params_paper_m",
    "params_match",
    "flops_paper_convention",
    "flops_paper_b",
    "flops_match",
    "quirks",
    "macs_train_generate",
    "macs_train_factored",
    "macs_inference_fused",
    "macs_inference_factored",
}


def test_every_row_of_the_paper_is_counted(rows):
    with (REPOSITORY / "results/paper/tables.csv").open() as file:
        paper = list(csv.DictReader(file))
    assert len(rows) == len(paper) == 40
    for row, printed in zip(rows, paper, strict=True):
        assert set(row) >= KEYS
        assert (row["table"], row["model"], row["variant"]) == (
            int(printed["table"]),
            printed["model"],
            printed["variant"],
        )


def test_every_cell_agrees_but_the_truncated_one(rows):
    wrong = [
        (row["model"], row["variant"], kind)
        for row in rows
        for kind in ("params", "flops")
        if not row[f"{kind}_match"]
    ]
    assert wrong == [("mobilenetv2", "LRr", "flops")]


def test_how_many_cells_are_independent(rows):
    """As README and docs/counting.md say: of one network once, and without the fitted ones."""
    networks = {(row["params"], row["flops_paper_convention"]): row for row in rows}
    fitted = {("base", "e"), ("vgg11", "e"), ("squeezenet", "Conv"), ("squeezenet", "LRr")}
    defined = [r for r in networks.values() if (r["model"], r["variant"]) not in fitted]
    assert (len(networks), len(defined)) == (28, 24)
    assert sum(row[f"{kind}_match"] for row in defined for kind in ("params", "flops")) == 47


GOLDEN = {  # exact parameters and operations of Table 4 and 5, quirks included in the operations
    ("base", "Lr"): (227_418, 59_947_078),
    ("vgg11", "LRr"): (4_649_770, 350_112_520),
    ("allconv", "Conv"): (1_369_738, 314_621_952),
    ("allconv", "Lr"): (739_450, 439_833_840),
    ("allconv", "LRr"): (698_938, 343_982_370),
    ("resnet18", "Conv"): (11_173_962, 557_885_430),
    ("resnet18", "Lr"): (6_029_546, 3_073_858_710),
    ("resnet18", "LRr"): (5_642_346, 775_180_424),
    ("resnext29", "Conv"): (9_128_778, 1_423_790_070),
    ("resnext29", "Lr"): (6_475_498, 5_088_515_990),
    ("resnext29", "LRr"): (4_708_202, 1_691_363_192),
    ("mobilenetv2", "Conv"): (2_296_922, 98_067_446),
    ("mobilenetv2", "Lr"): (3_923_434, 16_398_385_606),
    ("mobilenetv2", "LRr"): (1_347_786, 931_840_024),
    ("squeezenet", "Conv"): (729_226, 68_981_810),
    ("squeezenet", "LRr"): (491_002, 79_163_860),
    ("vgg11_octconv", "Conv"): (9_233_802, 77_160_694),
    ("vgg11_basis", "Conv"): (1_994_506, 100_518_902),
}


@pytest.mark.parametrize("key", GOLDEN, ids="-".join)
def test_exact_counts(rows, key):
    found = [r for r in rows if (r["model"], r["variant"]) == key and r["alpha"] in (None, 0.5)]
    assert found
    for row in found:
        assert (row["params"], row["flops_paper_convention"]) == GOLDEN[key]


def test_quirks_are_named_only_where_a_cell_needs_one(rows):
    for row in rows:
        quirky = row["flops_paper_convention"] != row["flops_without_quirks"]
        assert bool(row["quirks"]) == quirky


def test_training_macs_share_the_building_of_the_weights(rows):
    row = next(
        r for r in rows if (r["model"], r["variant"]) == ("vgg11", "Lr") and r["alpha"] == 0.5
    )
    conv = row["macs_inference_fused"]
    assert conv < row["macs_train_generate"] < 1.12 * conv
    assert row["macs_train_factored"] == row["macs_inference_factored"] < 0.56 * conv


def test_summary_of_one_network_fits_100_columns(script):
    done = script("count", "model=mobilenetv2", "variant=LRr", "dataset=mnist")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= 100
    assert "blocks.0.conv2" in done.out and "16 + 16" in done.out
    assert any(line.startswith("total") and "1,347,498" in line for line in lines)


def test_script_mistakes(script):
    done = script("count", "model=base", "variant=XX")
    assert done.code == 2 and "LRr" in done.err
    done = script("prepare_data", "imagenet")
    assert done.code == 2 and "cifar10" in done.err


def test_data_packs_and_describes(tmp_path, script):
    for _ in range(2):
        done = run("prepare_data.py", "digits", "--root", str(tmp_path))
        assert done.returncode == 0 and "(as published)" in done.stdout, done.stderr
    done = script("prepare_data", "svhn", "--offline", "--root", tmp_path)
    assert done.code == 2 and "svhn.npz is missing" in done.err


HELP_OF_EACH = """
import runpy, sys

for path in sys.argv[1:]:  # in one process, which imports torch once
    sys.argv = [path, "--help"]
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        print(end)
"""


def test_every_script_starts_from_any_folder(tmp_path):
    scripts = sorted((REPOSITORY / "scripts").glob("[a-z]*.py"))
    assert len(scripts) >= 10
    paths = [str(path) for path in scripts if path.name != "command.py"]  # what all share
    command = [sys.executable, "-c", HELP_OF_EACH, *paths]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and not done.stderr, done.stderr
    for path in paths:
        assert f"usage: {Path(path).name}" in done.stdout
    assert done.stdout.splitlines().count("0") == len(paths)


def test_a_script_of_another_checkout_is_refused(tmp_path):
    """It would silently use the code and the results of the one that is installed."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "linearconv").mkdir()
    script = shutil.copy(REPOSITORY / "scripts/count.py", tmp_path / "scripts")
    command = [sys.executable, script, "model=base", "variant=Conv"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert f"pip install -e {tmp_path}`, or set PYTHONPATH={tmp_path}" in done.stderr


@pytest.mark.parametrize("reader", ["true", "head -n 1"])
@pytest.mark.parametrize("command", ["scripts/count.py", "train.py --help"])
def test_a_reader_that_has_gone_is_no_error(command, reader):
    shell = f"{sys.executable} {command} | {reader}"
    done = subprocess.run(shell, shell=True, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("command", "words"),
    [("train.py", "torchvision, hydra, filelock not found"), ("scripts/count.py", "hydra")],
)
def test_without_its_packages_a_command_says_how_to_install_them(command, words, tmp_path):
    """As after `pip install .`, which brings torch alone."""
    (tmp_path / "torch.py").write_text("get_num_threads = int")
    arguments = [sys.executable, "-S", str(REPOSITORY / command)]
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert "make setup" in done.stderr and "Traceback" not in done.stderr


def test_a_script_outside_an_environment_says_how_to_install_the_project(tmp_path):
    arguments = [sys.executable, "-S", str(REPOSITORY / "scripts/compare.py")]
    done = subprocess.run(arguments, env={}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "No module named 'scripts': run `make setup`" in done.stderr
    for entry in ("train.py", "eval.py"):
        arguments = [sys.executable, "-S", str(REPOSITORY / entry)]
        done = subprocess.run(arguments, env={}, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("torch, torchvision, hydra, ")


def test_only_the_pipe_of_the_output_may_break(capfd):
    def broken() -> int:
        raise BrokenPipeError("of a worker")

    with pytest.raises(BrokenPipeError, match="of a worker"):
        exit_with(broken)


def test_the_committed_counts_are_those_of_the_networks():
    """`python scripts/count.py --write` renews them."""
    written = pd.read_csv(FILE, dtype=str, keep_default_na=False).to_dict("records")
    assert written == [{k: str(v) for k, v in line.items()} for line in counted()]


@pytest.mark.parametrize(
    "recipe",
    [name if name == "paper" else pytest.param(name, marks=pytest.mark.long) for name in recipes()],
)
def test_the_committed_keys_are_those_of_the_cells(recipe):
    """`python scripts/count.py --write` renews them."""
    keys = {key_of(cell, recipe): cell for cell in all_cells()}
    assert len(keys) == len(all_cells())
    with CELLS.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["recipe"] == recipe]
    assert [row["cell_key"] for row in rows] == list(keys)
    assert cells_by_key(recipe) == keys
