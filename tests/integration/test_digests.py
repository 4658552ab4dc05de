"""A file of results that was changed after it was written never passes for the original."""

from pathlib import Path

import numpy as np
import pytest
import torch

from configs.experiments import Cell, cell_runs
from linearconv.engine.artifacts import artifacts_path
from linearconv.engine.digests import value_sha256
from linearconv.engine.record import SCHEMA, file_digests, read_record, write_record
from linearconv.engine.weights import read_all_weights, weights_path, write_weights
from linearconv.errors import UserError
from scripts.evidence.artifacts import read_correct, read_filters
from scripts.evidence.results import RESULTS
from tests.records import add_artifacts, make_record, save_record

COUNTS = [50, pytest.param(200, marks=pytest.mark.long)]


@pytest.fixture
def finished(tmp_path) -> tuple[Path, dict]:
    """A run with its artifacts and weights: the results folder and the record."""
    (run,) = cell_runs(Cell("base", "Lr", "cifar10"))
    record = make_record(run, 80.0, 79.0)
    add_artifacts(tmp_path, record, correct={"last": np.arange(100) < 79})
    weights = {"run_id": run.run_id, "science": run.identity, "epoch": 3}
    weights["model"] = {"weight": torch.arange(64.0)}
    write_weights(weights_path(tmp_path, run.run_id), {"last": weights})
    files = artifacts_path(tmp_path, run.run_id), weights_path(tmp_path, run.run_id)
    record["files"] = file_digests(*files)
    return tmp_path, read_record(save_record(tmp_path, record))


def flips(path: Path, count: int, seed: int):
    """Leave the file with one flipped bit, `count` times; yields the bit's number."""
    content = path.read_bytes()
    for bit in np.random.default_rng(seed).integers(0, 8 * len(content), size=count):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(changed)
        yield bit
    path.write_bytes(content)


def test_a_flipped_bit_never_changes_what_a_record_says(finished):
    folder, record = finished
    path, found = folder / "runs" / f"{record['run_id']}.json", 0
    for _ in flips(path, 200, seed=0):
        try:
            assert read_record(path) == record
        except UserError as error:
            assert path.name in str(error) and "delete it" in str(error)
            found += 1
    assert found > 100 and read_record(path) == record


@pytest.mark.parametrize("count", COUNTS)
def test_a_flipped_bit_in_the_artifacts_is_found(finished, count):
    folder, record = finished
    name = record["run_id"]
    for bit in flips(artifacts_path(folder, name), count, seed=1):
        for read in (read_filters, lambda *which: read_correct(*which, "last")):
            with pytest.raises(UserError, match=rf"{name}\.npz was changed after"):
                pytest.fail(f"bit {bit}: {read(folder, name)}")
    assert read_correct(folder, name, "last").sum() == 79


@pytest.mark.parametrize("count", COUNTS)
def test_a_flipped_bit_in_the_weights_is_found(finished, count):
    folder, record = finished
    path = weights_path(folder, record["run_id"])
    for bit in flips(path, count, seed=2):
        with pytest.raises(UserError, match=rf"{path.name} was changed after"):
            pytest.fail(f"bit {bit}: {read_all_weights(path)}")
    assert read_all_weights(path)["last"]["model"]["weight"][7] == 7


def test_files_that_are_absent_are_no_error(finished):
    folder, record = finished
    artifacts_path(folder, record["run_id"]).unlink()
    assert read_filters(folder, record["run_id"]) is None


def test_a_records_digest_is_that_of_its_canonical_json(tmp_path):
    written = write_record(tmp_path / "x.json", {"schema": SCHEMA, "b": [0.1, None]})
    assert written["sha256"] == value_sha256({"b": [0.1, None], "schema": SCHEMA})
    again = write_record(tmp_path / "x.json", written | {"b": 1})
    assert read_record(tmp_path / "x.json") == again != written


def test_the_committed_records_are_sealed():
    paths = [*RESULTS.glob("runs/*.json"), *RESULTS.glob("studies/runs/*.json")]
    assert paths and all("sha256" in read_record(path) for path in paths)
