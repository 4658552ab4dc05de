"""Published weights against the records, on a real run of the real entry point."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from linearconv.engine.artifacts import artifacts_path, correct_artifacts, write_artifacts
from linearconv.engine.checkpoint import load, save
from linearconv.engine.record import file_digests, write_record
from linearconv.engine.weights import read_all_weights, read_weights, weights_path, write_weights
from linearconv.errors import UserError
from scripts.evidence.artifacts import read_correct
from scripts.verify import Mismatch, Predictions, compare

BASE = ("model=base", "variant=Conv")


@pytest.fixture
def results(trained, tmp_path) -> Path:
    """A copy of the run's results, for a test to damage."""
    return Path(shutil.copytree(trained / "results", tmp_path / "results"))


def run_id(results: Path) -> str:
    return next((results / "runs").glob("*.json")).stem


def reseal(results: Path, **changes: Any) -> None:
    """Let the record name the files as they are now, so that only their content tells."""
    path = results / "runs" / f"{run_id(results)}.json"
    files = artifacts_path(results, path.stem), weights_path(results, path.stem)
    record = json.loads(path.read_text())
    write_record(path, record | {"files": file_digests(*files)} | changes)


def change_weights(results: Path, name: str) -> None:
    """Replace the classifier's weights by others."""
    path = weights_path(results, run_id(results))
    weights = read_all_weights(path)
    key = [key for key in weights[name]["model"] if key.endswith("weight")][-1]
    weights[name]["model"][key] = torch.flip(weights[name]["model"][key], (0,))
    write_weights(path, weights)
    reseal(results)


def test_published_weights_reproduce_the_record(script, results, digits_root):
    outcome = script("verify", "--results-dir", results, "--data-root", digits_root)
    assert outcome.code == 0, outcome.out + outcome.err
    assert outcome.out.count("as recorded, on each of 64 images") == 2
    assert "1 of 1 runs are reproduced by their weights" in outcome.out


def test_a_missing_dataset_is_no_fault_of_the_weights(script, results, tmp_path):
    outcome = script("verify", "--results-dir", results, "--data-root", tmp_path / "none")
    assert outcome.code == 1 and "FAILED" not in outcome.out
    assert f"{run_id(results)}: not checked: the folder of datasets, {tmp_path}/none" in outcome.out
    assert "0 of 0 runs are reproduced by their weights, 1 not checked" in outcome.out


def test_published_weights_are_those_of_the_checkpoints(trained):
    results = trained / "results"
    folder = trained / "checkpoints" / run_id(results)
    for name, file in (("best", "best.pt"), ("last", "epoch-0002.pt")):
        found = read_weights(weights_path(results, run_id(results)), name)
        checkpoint = torch.load(folder / file, weights_only=True)
        assert {key: found[key] for key in ("run_id", "science", "epoch")} == {
            key: checkpoint[key] for key in ("run_id", "science", "epoch")
        }
        assert found["model"].keys() == checkpoint["model"].keys()
        for key, tensor in checkpoint["model"].items():
            assert torch.equal(found["model"][key], tensor), key


def test_the_artifacts_have_as_many_correct_images_as_the_record(trained):
    results = trained / "results"
    record = json.loads((results / "runs" / f"{run_id(results)}.json").read_text())
    for name, recorded in (("best", "test_acc_best"), ("last", "test_acc_last")):
        correct = read_correct(results, run_id(results), name)
        assert len(correct) == 64 and 100 * correct.mean() == record[recorded]


def test_other_weights_than_the_recorded_ones_are_found(script, results, digits_root):
    change_weights(results, "last")
    outcome = script("verify", "--results-dir", results, "--data-root", digits_root)
    assert outcome.code == 1 and "digest of the last weights" in outcome.out
    assert "0 of 1 runs" in outcome.out


def test_weights_with_other_predictions_are_found(script, results, digits_root):
    change_weights(results, "best")
    outcome = script("verify", "--results-dir", results, "--data-root", digits_root)
    assert outcome.code == 1 and "images are classified otherwise than recorded" in outcome.out


def test_weights_of_another_run_are_found(script, results, digits_root):
    record = json.loads((results / "runs" / f"{run_id(results)}.json").read_text())
    reseal(results, science=record["science"] | {"seed": 1})
    outcome = script("verify", "--results-dir", results, "--data-root", digits_root)
    assert outcome.code == 1 and "of another run: science differ" in outcome.out


def test_last_weights_are_not_taken_for_the_best(script, results, digits_root):
    path = weights_path(results, run_id(results))
    weights = read_all_weights(path)
    record = json.loads((results / "runs" / f"{run_id(results)}.json").read_text())
    other = weights["best"] | {"epoch": 3 - record["best_epoch"]}
    write_weights(path, weights | {"best": other})
    reseal(results)
    outcome = script("verify", "--results-dir", results, "--data-root", digits_root)
    assert outcome.code == 1 and "epoch differ" in outcome.out


@pytest.mark.parametrize(
    ("kept", "code", "words"),
    [(["last"], 0, "best: not published"), (["best"], 1, "does not contain the last weights")],
)
def test_weights_that_are_absent_are_said(script, results, digits_root, kept, code, words):
    path = weights_path(results, run_id(results))
    weights = read_all_weights(path)
    write_weights(path, {name: weights[name] for name in kept})
    reseal(results)
    outcome = script("verify", "--results-dir", results, "--data-root", digits_root)
    assert outcome.code == code and words in outcome.out


def test_without_images_the_accuracies_are_compared(script, results, digits_root):
    artifacts_path(results, run_id(results)).unlink()
    outcome = script("verify", "--results-dir", results, "--data-root", digits_root)
    assert outcome.code == 0 and outcome.out.count("% as recorded\n") == 2


def test_artifacts_that_contradict_the_record_are_found(script, results, digits_root):
    path = artifacts_path(results, run_id(results))
    arrays = dict(np.load(path))
    images = read_correct(results, run_id(results), "best")
    images[0] ^= True
    write_artifacts(path, arrays | correct_artifacts({"best": images}))
    reseal(results)
    outcome = script("verify", "--results-dir", results, "--data-root", digits_root)
    assert outcome.code == 1 and "the artifacts have" in outcome.out


@pytest.mark.parametrize("content", [b"", b"nothing like it", b"\xff" * 64])
def test_damaged_weights_are_named(script, results, digits_root, content):
    weights_path(results, run_id(results)).write_bytes(content)
    reseal(results)
    outcome = script("verify", "--results-dir", results, "--data-root", digits_root)
    assert outcome.code == 1 and "safetensors is damaged" in outcome.out


@pytest.mark.parametrize("kind", ["weights", "artifacts", "record"])
def test_a_file_that_was_changed_is_found(script, cli, results, digits_root, tmp_path, kind):
    name = run_id(results)
    weights, artifacts = weights_path(results, name), artifacts_path(results, name)
    record = results / "runs" / f"{name}.json"
    path = {"weights": weights, "artifacts": artifacts, "record": record}[kind]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    outcome = script("verify", "--results-dir", results, "--data-root", digits_root)
    assert outcome.code == 1 and str(path) in outcome.out and "delete it" in outcome.out
    if kind == "weights":
        for where in ([f"run={name}", f"results_dir={results}"], [f"checkpoint={weights}"]):
            where += [f"dataset.root={digits_root}", f"checkpoint_dir={tmp_path}/none"]
            found = cli("eval", *where)
            assert found.code == 2 and "was changed after it was written" in found.err


def test_a_folder_that_is_not_there_is_a_mistake(script, tmp_path):
    done = script("verify", f"--results-dir={tmp_path}/resluts")
    assert done.code == 2 and "resluts" in done.err


def test_a_folder_without_weights_is_named(script, tmp_path):
    outcome = script("verify", "--results-dir", tmp_path)
    assert outcome.code == 0 and "nothing to verify" in outcome.out
    named = script("verify", "none", "--results-dir", tmp_path)
    assert named.code == 1 and "none: FAILED" in named.out


def test_eval_finds_the_published_weights_where_there_is_no_checkpoint(
    cli, trained, digits_root, tmp_path
):
    results = trained / "results"
    where = [f"run={run_id(results)}", f"dataset.root={digits_root}", f"results_dir={results}"]
    with_checkpoints = [*where, f"checkpoint_dir={trained}/checkpoints"]
    without = [*where, f"checkpoint_dir={tmp_path}"]
    for weights in ("best", "last"):
        outcomes = [
            cli("eval", *args, f"weights={weights}") for args in (with_checkpoints, without)
        ]
        assert [outcome.code for outcome in outcomes] == [0, 0]
        first, second = (outcome.out.splitlines() for outcome in outcomes)
        assert "checkpoints" in first[0] and "safetensors" in second[0]
        assert first[1:] == second[1:]
    missing = cli("eval", "run=none", f"checkpoint_dir={tmp_path}", f"results_dir={tmp_path}")
    assert missing.code == 2 and "has no best weights" in missing.err


def test_a_run_whose_best_weights_are_damaged_still_gets_its_record(cli, small, tmp_path):
    """Only the last ones are published then; nothing finished is lost."""
    assert cli("train", *BASE, *small).code == 0
    (record,) = (tmp_path / "results" / "runs").glob("*.json")
    before = json.loads(record.read_text())
    record.unlink()
    (tmp_path / "checkpoints" / record.stem / "best.pt").write_bytes(b"damaged")
    again = cli("train", *BASE, *small)
    assert again.code == 0, again.err
    assert json.loads(record.read_text())["test_acc_last"] == before["test_acc_last"]
    assert set(read_all_weights(weights_path(tmp_path / "results", record.stem))) == {"last"}
    assert read_correct(tmp_path / "results", record.stem, "best") is None
    with pytest.raises(UserError, match="does not contain the best weights"):
        read_weights(weights_path(tmp_path / "results", record.stem), "best")


def test_an_overwritten_run_without_best_weights_still_gets_its_record(cli, small, tmp_path):
    """Its rerun was finished, but for the record, when the best weights were lost."""
    command = ("train", *BASE, *small)
    assert cli(*command).code == 0
    (record,) = (tmp_path / "results" / "runs").glob("*.json")
    folder = tmp_path / "checkpoints" / record.stem
    state = load(folder / "epoch-0003.pt")
    state["starts"][0]["started"] = "later"
    save(folder / "overwrite" / "epoch-0003.pt", state)
    assert cli(*command, "overwrite=true").code == 0
    assert not (folder / "overwrite").exists() and (folder / "epoch-0003.pt").exists()
    assert set(read_all_weights(weights_path(tmp_path / "results", record.stem))) == {"last"}


def test_with_validation_images_the_selected_weights_are_published(
    cli, small, script, tmp_path, digits_root
):
    assert cli("train", *BASE, *small, "recipe.val_fraction=0.2").code == 0
    results = tmp_path / "results"
    record = json.loads(next((results / "runs").glob("*.json")).read_text())
    best = read_weights(weights_path(results, record["run_id"]), "best")
    assert best["epoch"] == record["val_acc_best_epoch"]
    outcome = script("verify", "--results-dir", results, "--data-root", digits_root)
    assert outcome.code == 0, outcome.out
    assert f"best, epoch {best['epoch']}: {record['test_acc_at_val_acc_best']:.2f} %" in outcome.out


def test_large_networks_publish_no_weights(cli, small, tmp_path):
    assert cli("train", "model=vgg11", "variant=LRr", *small, "recipe.epochs=1").code == 0
    assert not list((tmp_path / "results" / "weights").iterdir())
    (artifacts,) = (tmp_path / "results" / "artifacts").iterdir()
    with np.load(artifacts) as arrays:
        assert len(arrays["correlations_1"]) == 512 * 511 // 2  # Figure 3's 512-wide layers
        assert arrays["coefficients_1"].shape == (256, 256)


def test_only_images_near_a_tie_may_turn_over():
    images, tied = np.array([True, True, False, False]), np.array([False, True, False, True])
    assert compare(Predictions(images, tied), 50.0, images) == "as recorded, on each of 4 images"
    turned = np.array([True, False, False, True])
    found = compare(Predictions(turned, tied), 50.0, images)
    assert found == "as recorded, but for 2 of 4 images, near a tie"
    with pytest.raises(Mismatch, match="2 images .* 2 of them not near a tie"):
        compare(Predictions(~images ^ tied, tied), 50.0, images)
    with pytest.raises(Mismatch, match="recorded are 3"):
        compare(Predictions(images, np.zeros(4, dtype=bool)), 75.0, None)
    assert compare(Predictions(images, tied), 75.0, None) == "recorded, 50.00 % here"
    with pytest.raises(Mismatch, match="recorded are 4"):  # only one of the wrong ones is a tie
        compare(Predictions(images, tied), 100.0, None)
