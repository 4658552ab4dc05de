"""train.py and eval.py as a user calls them, on real handwritten digits."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from filelock import FileLock

import eval as eval_module
from configs.checks import _wandb_problem
from configs.schema import EvalConfig, EvalDatasetConfig
from linearconv import fuse
from linearconv.engine import loop
from scripts.evidence import results
from tests.conftest import REPOSITORY
from tests.records import records, without_provenance

LRR = ("model=base", "variant=LRr")


def test_a_run_leaves_record_checkpoints_log_and_artifacts(cli, small, tmp_path):
    outcome = cli("train", *LRR, *small)
    assert outcome.code == 0, outcome.err
    (record,) = records(tmp_path)
    run_id = record["run_id"]
    assert run_id.startswith("digits-base-LRr-e3-b16-train192-test64-s0-")
    for epoch in (1, 2, 3):
        assert f"epoch {epoch}/3" in outcome.out
    assert f"best test accuracy {record['test_acc_best']:.2f} %" in outcome.out
    for place in ("results/runs", "checkpoints", "logs"):
        assert str(tmp_path / place) in outcome.out
    names = sorted(p.name for p in (tmp_path / "checkpoints" / run_id).iterdir())
    assert names == ["best.pt", "epoch-0002.pt", "epoch-0003.pt", "lock"]
    arrays = np.load(tmp_path / "results/artifacts" / f"{run_id}.npz", allow_pickle=False)
    assert arrays["filters"].shape == (32, 1, 3, 3) and arrays["primary"][0] == 16
    start = record["provenance"][0]
    assert (start["first_epoch"], start["last_epoch"]) == (1, 3)
    assert start["overrides"][:2] == list(LRR) and start["runtime"]["name"] == "fast"
    assert str(tmp_path) not in json.dumps(start)  # a record tells nothing of the machine's folders
    assert "log_dir=logs" in start["overrides"]
    assert record["science"]["seed"] == 0 and len(record["curve"]) == 3


def tensorboard(folder: Path):
    """What TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(folder))
    log.Reload()
    return log


def test_tensorboard_log_holds_curves_and_images(cli, small, tmp_path):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    assert cli("train", *LRR, *small).code == 0
    (record,) = records(tmp_path)
    log = tensorboard(tmp_path / "logs" / record["run_id"])
    scalars = {"train_loss", "correlation_loss", "lr", "train_acc", "test_acc", "images_per_s"}
    assert scalars <= set(log.Tags()["scalars"])
    logged = [event.value for event in log.Scalars("test_acc")]
    assert logged == pytest.approx([entry["test_acc"] for entry in record["curve"]])
    assert "correlation/conv1" in log.Tags()["images"]
    assert any(tag.startswith("primary_filters/conv1") for tag in log.Tags()["images"])
    (final,) = log.Scalars("test_acc_last")
    assert final.value == pytest.approx(record["test_acc_last"])
    data = log.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hyperparameters = HParamsPluginData.FromString(data).session_start_info.hparams
    assert hyperparameters["variant.rank"].number_value == 10
    assert hyperparameters["model.name"].string_value == "base"


def test_wandb_is_open_while_tensorboard_logs(cli, places, tmp_path, monkeypatch):
    """A stand-in for the package notes what it is told, and which logs there are meanwhile."""
    told = []

    @contextmanager
    def init(**arguments):
        folder = tmp_path / "logs" / arguments["name"]
        told.append((arguments, list(folder.glob("events*"))))
        yield
        told.append(list(folder.glob("events*")))

    wandb = ModuleType("wandb")
    wandb.__spec__, wandb.init = ModuleSpec("wandb", None, origin="here"), init
    wandb.login, wandb.Error = lambda verify: True, OSError
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    _wandb_problem.cache_clear()
    outcome = cli("train", "-m", *LRR, *places, *TINY, "logger=wandb", "recipe=modern",
                  "recipe.epochs=1", "seed=0,1")  # fmt: skip
    assert outcome.code == 0, outcome.err
    (first, none), some, (second, none_again), some_again = told
    assert not none and not none_again and some and some_again
    assert {first["name"], second["name"]} == {r["run_id"] for r in records(tmp_path)}
    assert first["sync_tensorboard"] is True and first["config"]["recipe"]["optimizer"] == "sgd"
    assert first["id"] != second["id"] and first["resume"] == "allow"


def test_a_run_that_is_continued_is_one_run_for_wandb(cli, small, monkeypatch):
    ids = []
    wandb = ModuleType("wandb")
    wandb.__spec__ = ModuleSpec("wandb", None, origin="here")
    wandb.init = lambda **arguments: ids.append(arguments["id"]) or nullcontext()
    wandb.login, wandb.Error = lambda verify: True, OSError
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    _wandb_problem.cache_clear()
    run = ("train", *LRR, *small, "logger=wandb")
    interrupt_in_epoch(monkeypatch, 1, KeyboardInterrupt)
    assert cli(*run).code == 130 and cli(*run).code == 0
    time.sleep(1.1)  # starts are told apart by the second
    interrupt_in_epoch(monkeypatch, 1, KeyboardInterrupt)
    assert cli(*run, "overwrite=true").code == 130 and cli(*run, "overwrite=true").code == 0
    first, second, third, fourth = ids
    assert first == second != third == fourth and len(first) <= 128


def test_the_same_command_twice_says_finished_and_needs_no_data(cli, places, tmp_path):
    overrides = [*LRR, *places, "recipe=demo", "recipe.epochs=1"]
    assert cli("train", *overrides).code == 0
    (path,) = (tmp_path / "results/runs").glob("*.json")
    before = path.read_bytes()
    again = cli("train", *overrides, f"dataset.root={tmp_path}/nowhere")
    assert again.code == 0 and "already finished" in again.out
    assert path.read_bytes() == before and not (tmp_path / "nowhere").exists()
    start = json.loads(before)["provenance"][-1]
    assert f"of a run on {start['device']}, started on {start['started'][:10]}" in again.out
    files = {"record", "weights", "checkpoints", "TensorBoard"}
    assert {line.split()[0] for line in again.out.splitlines()} >= files
    # As with a committed record: what is not here is not listed.
    for gone in ("checkpoints", "logs"):
        shutil.rmtree(tmp_path / gone)
    listed = {line.split()[0] for line in cli("train", *overrides).out.splitlines()}
    assert listed & files == {"record", "weights"}


def interrupt_in_epoch(monkeypatch, epoch: int, error: type[BaseException]) -> None:
    """Make the given epoch (from 0) break off in its middle, once."""
    original = loop.train_epoch

    def train_epoch(training, steps, batches, observers):
        if training.epoch == epoch:
            monkeypatch.setattr(loop, "train_epoch", original)
            for i, (images, labels) in enumerate(batches.train(epoch)):
                training.step(images, labels, regularize=False)
                if i == 3:
                    raise error
        return original(training, steps, batches, observers)

    monkeypatch.setattr(loop, "train_epoch", train_epoch)


def test_an_interrupted_run_ends_as_an_uninterrupted_one(cli, small, tmp_path, monkeypatch):
    cli("train", *LRR, *small)
    (whole,) = records(tmp_path)
    elsewhere = [f"{kind}_dir={tmp_path}/b/{kind}" for kind in ("results", "checkpoint", "log")]
    interrupt_in_epoch(monkeypatch, 1, KeyboardInterrupt)
    first = cli("train", *LRR, *small, *elsewhere)
    assert first.code == 130 and "interrupted" in first.err
    assert not list((tmp_path / "b/results/runs").iterdir())
    second = cli("train", *LRR, *small, *elsewhere)
    assert second.code == 0 and "epoch 1/3" not in second.out and "epoch 2/3" in second.out
    parts = json.loads(next((tmp_path / "b/results/runs").glob("*.json")).read_text())
    assert without_provenance(parts) == without_provenance(whole)
    assert [(s["first_epoch"], s["last_epoch"]) for s in parts["provenance"]] == [(1, 1), (2, 3)]
    log = tensorboard(tmp_path / "b/log" / parts["run_id"])
    assert [event.step for event in log.Scalars("test_acc")] == [1, 2, 3]


def test_resume_false_starts_over(cli, small, tmp_path, monkeypatch):
    interrupt_in_epoch(monkeypatch, 2, KeyboardInterrupt)
    cli("train", *LRR, *small)
    outcome = cli("train", *LRR, *small, "resume=false")
    assert outcome.code == 0 and "epoch 1/3" in outcome.out
    (record,) = records(tmp_path)
    assert len(record["provenance"]) == 1


def test_overwrite_keeps_the_old_record_until_the_new_is_complete(
    cli, small, tmp_path, monkeypatch
):
    cli("train", *LRR, *small)
    (old,) = records(tmp_path)
    folder = tmp_path / "checkpoints" / old["run_id"]
    weights = (folder / "best.pt").read_bytes()
    interrupt_in_epoch(monkeypatch, 1, KeyboardInterrupt)
    assert cli("train", *LRR, *small, "overwrite=true").code == 130
    assert records(tmp_path) == [old] and (folder / "best.pt").read_bytes() == weights
    outcome = cli("train", *LRR, *small, "overwrite=true")
    assert outcome.code == 0 and "epoch 1/3" not in outcome.out  # goes on where it stopped
    (new,) = records(tmp_path)
    assert without_provenance(new) == without_provenance(old)
    assert new["provenance"][0]["started"] >= old["provenance"][0]["started"]
    assert new != old and not (folder / "overwrite").exists()
    log = tensorboard(tmp_path / "logs" / new["run_id"])
    for key in ("test_acc_best", "test_acc_last"):
        assert [event.step for event in log.Scalars(key)] == [3]  # once, at the last epoch


@pytest.mark.parametrize("entry", ["train", "eval"])
def test_a_kill_right_after_an_overwritten_record_leaves_its_checkpoints(
    cli, small, tmp_path, monkeypatch, entry
):
    run = ("train", *LRR, *small)
    assert cli(*run).code == 0
    (old,) = records(tmp_path)
    folder = tmp_path / "checkpoints" / old["run_id"]
    before = (folder / "best.pt").read_bytes()

    def killed(self, folder):
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr("linearconv.engine.checkpoint.Checkpoints.move_to", killed)
        assert cli(*run, "overwrite=true").code == 137
    (new,) = records(tmp_path)
    assert new != old and (folder / "best.pt").read_bytes() == before
    again = (folder / "overwrite" / "best.pt").read_bytes()
    evaluation = ("eval", f"run={old['run_id']}", *small[1:4])  # where things are
    command = run if entry == "train" else evaluation
    assert cli(*command).code == 0
    assert (folder / "best.pt").read_bytes() == again and not (folder / "overwrite").exists()


def test_damaged_checkpoints_of_an_overwrite_stop_nothing_else(cli, small, tmp_path, monkeypatch):
    run = ("train", *LRR, *small)
    assert cli(*run).code == 0
    interrupt_in_epoch(monkeypatch, 1, KeyboardInterrupt)
    assert cli(*run, "overwrite=true").code == 130
    for path in (tmp_path / "checkpoints").glob("*/overwrite/epoch-*.pt"):
        path.write_bytes(b"damaged")
    assert "already finished" in cli(*run).out
    assert "resume=false starts the run over" in cli(*run, "overwrite=true").err
    assert cli(*run, "overwrite=true", "resume=false").code == 0


def test_a_rank_that_saves_nothing_is_named(cli, small, caplog):
    for rank, said in ((10, False), (16, True)):
        caplog.clear()
        assert cli("train", *LRR, *small, "recipe.epochs=1", f"variant.rank={rank}").code == 0
        assert ("variant.rank=16 saves nothing in conv1" in caplog.text) is said


def test_defaults_lie_in_the_checkout_wherever_a_command_is_called(
    cli, small, tmp_path, monkeypatch
):
    """What is given counts from the working directory."""
    checkout, here = tmp_path / "checkout", tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr("linearconv.engine.files.CHECKOUT", checkout)
    data = [each for each in small if not each.startswith(("results", "checkpoint", "log"))]
    outcome = cli("train", *LRR, *data, "recipe.epochs=1", "log_dir=mine")
    assert outcome.code == 0, outcome.err
    (record,) = (checkout / "results/trials/runs").glob("*.json")
    assert f"record: {record}" in outcome.out and (checkout / "checkpoints" / record.stem).is_dir()
    assert [path.name for path in here.iterdir()] == ["mine"]
    assert cli("eval", f"run={record.stem}", data[1]).code == 0
    monkeypatch.chdir(checkout)
    again = cli("train", *LRR, *data, "recipe.epochs=1", f"log_dir={here}/mine")
    assert "already finished" in again.out and "record: " not in again.out
    assert "record      results/trials/runs" in again.out


def test_a_failed_run_exits_1_with_a_traceback_and_no_record(cli, small, tmp_path, monkeypatch):
    interrupt_in_epoch(monkeypatch, 1, ZeroDivisionError)
    outcome = cli("train", *LRR, *small)
    assert outcome.code == 1 and "ZeroDivisionError" in outcome.err
    assert records(tmp_path) == []
    assert cli("train", *LRR, *small).code == 0


def test_max_minutes_stops_in_time_and_the_next_call_goes_on(cli, small, tmp_path):
    stopped = cli("train", *LRR, *small, "max_minutes=1e-9")
    assert stopped.code == 75 and "run the same command" in stopped.err
    assert records(tmp_path) == []
    assert cli("train", *LRR, *small).code == 0


def test_a_locked_run_says_whose_it_is(cli, small, tmp_path):
    cli("train", *LRR, *small, "max_minutes=1e-9")
    (path,) = (tmp_path / "checkpoints").glob("*/lock")
    with FileLock(path):
        owner = {"host": "gpu7", "pid": 4711}
        path.with_name("lock-owner.json").write_text(json.dumps(owner))
        outcome = cli("train", *LRR, *small)
        sweep = cli("train", "-m", "model=base", "variant=LRr,Conv", *small)
    assert outcome.code == 75 and "is being trained by process 4711 on gpu7" in outcome.err
    assert sweep.code == 75 and "1 of 2 runs did not finish" in sweep.err
    assert "exit code 75: model=base variant=LRr" in sweep.err
    (record,) = records(tmp_path)  # the sweep went on
    assert "-base-Conv-" in record["run_id"]


@pytest.mark.parametrize("variant", ["Conv", "r", "e", "L", "Lr", "LRr"])
def test_every_variant_trains(cli, small, tmp_path, variant):
    outcome = cli("train", "model=base", f"variant={variant}", *small, "recipe.epochs=1")
    assert outcome.code == 0, outcome.err
    (record,) = records(tmp_path)
    assert f"-base-{variant}-e1-" in record["run_id"]
    correlation = record["curve"][0]["correlation_loss"]
    assert (correlation is None) == (variant in ("Conv", "e"))


TINY = ("recipe.epochs=1", "recipe.batch_size=4", "dataset.limit_train=7", "dataset.limit_test=4")
OTHERS = ("allconv", "resnet18", "resnext29", "mobilenetv2", "squeezenet", "efficientnet", "vgg11")


@pytest.mark.parametrize("model", OTHERS)
@pytest.mark.parametrize("variant", ["Conv", "Lr", "LRr"])
def test_every_model_takes_a_step(cli, places, tmp_path, model, variant):
    outcome = cli("train", f"model={model}", f"variant={variant}", *places, *TINY,
                  "runtime.execution=auto", "regularizer.every=1")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert len(records(tmp_path)) == 1


def test_comparison_systems_train_and_basis_needs_its_baseline(cli, places, tmp_path):
    assert cli("train", "model=vgg11_octconv", "variant=Conv", *places, *TINY).code == 0
    basis = ("train", "model=vgg11_basis", "variant=Conv", *places, *TINY)
    outcome = cli(*basis)
    assert outcome.code == 2 and "model=vgg11 variant=Conv" in outcome.err
    outcome = cli(*basis, f"baseline_checkpoint={tmp_path}/none.pt")
    assert outcome.code == 2 and "none.pt not found" in outcome.err
    assert cli("train", "model=vgg11", "variant=Conv", *places, *TINY).code == 0
    (baseline,) = (tmp_path / "checkpoints").glob("*-vgg11-Conv-*")
    (other,) = (tmp_path / "checkpoints").glob("*-vgg11_octconv-*")
    outcome = cli(*basis, f"baseline_checkpoint={other}/best.pt")
    assert outcome.code == 2 and "vgg11-Conv trained on digits" in outcome.err
    outcome = cli(*basis, f"baseline_checkpoint={baseline}/best.pt")
    assert outcome.code == 0, outcome.err
    (record,) = [r for r in records(tmp_path) if "basis" in r["run_id"]]
    assert record["science"]["baseline"] == baseline.name.rpartition("-")[2]
    outcome = cli("train", *LRR, *places, *TINY, f"baseline_checkpoint={baseline}/best.pt")
    assert outcome.code == 2 and "finished base-Conv trained on digits" in outcome.err
    outcome = cli(*basis, f"baseline_checkpoint={baseline}/best.pt", "dataset.classes=11")
    assert outcome.code == 2 and "(classes 10 instead of 11): train a baseline" in outcome.err


def test_a_run_starts_from_a_trained_network(cli, small, tmp_path, caplog):
    """From published weights or the last checkpoint, but no other; its record says from which."""
    base = ("train", "model=base", *small, "recipe.epochs=2")
    assert cli(*base, "variant=Conv").code == 0
    (trained,) = records(tmp_path)
    name = trained["run_id"]
    published = tmp_path / "results" / "weights" / f"{name}.safetensors"
    last = sorted((tmp_path / "checkpoints" / name).glob("epoch-*.pt"))[-1]
    for variant, weights in (("Conv", published), ("L", published), ("pair", last), ("r", last)):
        outcome = cli(*base, f"variant={variant}", f"baseline_checkpoint={weights}")
        assert outcome.code == 0, outcome.err
    found = [record for record in records(tmp_path) if record["science"]["baseline"]]
    assert {record["science"]["baseline"] for record in found} == {name.rpartition("-")[2]}
    assert all(f"-from-{name[-8:]}-s0-" in record["run_id"] for record in found)
    for record in found:  # goes on where the trained network was
        assert record["curve"][0]["train_loss"] < trained["curve"][0]["train_loss"]
    earlier = last.with_name("epoch-0001.pt")
    for wrong, said in ((earlier, "epoch 1"), (tmp_path / "none.pt", "not found")):
        outcome = cli(*base, "variant=L", f"baseline_checkpoint={wrong}")
        assert outcome.code == 2 and said in outcome.err
    wider = cli(*base, "variant=Conv", "variant.widths=x2", f"baseline_checkpoint={published}")
    assert wider.code == 2 and "no filters for variant.widths=x2" in wider.err
    for other, said in (("recipe.val_fraction=0.25", "val_fraction 0.0 instead of 0.25"),
                        ("dataset.limit_train=100", "limit_train 192 instead of 100")):  # fmt: skip
        outcome = cli(*base, "variant=L", other, f"baseline_checkpoint={published}")
        assert outcome.code == 2 and said in outcome.err
    for narrower in (["variant=e"], ["variant=L", "variant.widths=x0.75"]):
        outcome = cli(*base, *narrower, f"baseline_checkpoint={published}")
        assert outcome.code == 0, outcome.err
    scratch = ("train", "model=base", "variant=Conv", *small)
    assert cli(*scratch, "recipe=finetune").code == 0
    assert "the network starts untrained" in caplog.text


def test_runs_whose_hashes_begin_alike_are_told_apart(cli, small, tmp_path, monkeypatch):
    monkeypatch.setattr("configs.naming.identity_hash", lambda identity: "0" * 64)
    base = ("train", "model=base", "variant=Conv", *small, "recipe.epochs=1")
    assert cli(*base).code == 0
    assert cli(*base, "seed=1").code == 0  # has a name of its own
    assert len(records(tmp_path)) == 2
    finished = cli(*base, "recipe.lr=0.002")
    assert finished.code == 2 and "is of another run" in finished.err
    for record in (tmp_path / "results" / "runs").glob("*.json"):
        record.unlink()
    resumed = cli(*base, "recipe.lr=0.002")
    assert resumed.code == 2 and "is of another run" in resumed.err
    assert not records(tmp_path)


def test_a_model_that_has_changed_is_named_when_its_run_goes_on(
    cli, small, tmp_path, monkeypatch, caplog
):
    run = ("train", "model=base", "variant=Conv", *small)
    assert cli(*run).code == 0
    (folder,) = (tmp_path / "checkpoints").iterdir()
    (path,) = (tmp_path / "results" / "runs").glob("*.json")
    first = json.loads(path.read_text())
    path.unlink()
    assert cli(*run).code == 0 and "has changed" not in caplog.text
    # Its results were written again: not by a process that has trained any of it.
    assert json.loads(path.read_text()) == first
    path.unlink()
    monkeypatch.setattr("train.model_sha256", lambda config: "0" * 64)
    assert cli(*run).code == 0 and "model's file has changed since epoch 3" in caplog.text
    assert "base.py has changed since" in cli(*run).out
    (folder / "overwrite").mkdir()
    shutil.copy(folder / "epoch-0003.pt", folder / "overwrite")  # of the older model
    (folder / "overwrite" / ".nfs01").touch()
    again = cli(*run, "overwrite=true")
    assert again.code == 0 and "epoch 1/3" in again.out
    assert [start["model_sha256"] for start in records(tmp_path)[0]["provenance"]] == ["0" * 64]
    assert "has changed" not in cli(*run).out


def test_published_data_is_evaluated_only_if_it_is_what_was_trained_on(
    cli, small, digits_root, tmp_path
):
    assert cli("train", "model=base", "variant=Conv", *small, "recipe.epochs=1").code == 0
    (record,) = records(tmp_path)
    arrays = dict(np.load(digits_root / "digits.npz"))
    arrays["test_images"] = 255 - arrays["test_images"]
    del arrays["digest"]
    (tmp_path / "other").mkdir()
    np.savez(tmp_path / "other" / "digits.npz", **arrays)
    outcome = cli(
        "eval", f"run={record['run_id']}", f"checkpoint_dir={tmp_path}/checkpoints",
        f"results_dir={tmp_path}/results", f"dataset.root={tmp_path}/other",
    )  # fmt: skip
    assert outcome.code == 2 and "differs from the published digits" in outcome.err
    assert "The run was trained on images with the digest" in outcome.err


@pytest.mark.parametrize("override", ["precision=bf16", "precision=fp32", "runtime.execution=auto",
                                      "runtime.threads=1", "regularizer.centered=true",
                                      "recipe.val_fraction=0.25", "alpha=0.25"])  # fmt: skip
def test_switches_train(cli, small, tmp_path, override):
    outcome = cli("train", *LRR, *small, "recipe.epochs=1", override)
    assert outcome.code == 0, outcome.err
    (record,) = records(tmp_path)
    assert ("val_acc_best" in record) == override.startswith("recipe.val")


def test_multirun_over_alpha(cli, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = cli("train", "-m", "model=base", "variant=Lr", "alpha=0.25,0.5", *small,
                  "recipe.epochs=1")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert sorted(r["science"]["variant"]["alpha"] for r in records(tmp_path)) == [0.25, 0.5]
    header, *rows = outcome.out.splitlines()[-3:]
    assert header.split() == ["alpha", "test_acc_last", "run"]
    by_run = {record["run_id"]: record["test_acc_last"] for record in records(tmp_path)}
    for row, alpha in zip(rows, ("0.25", "0.5"), strict=True):
        found, accuracy, run_id = row.split()
        assert found == alpha and accuracy == f"{by_run[run_id]:.2f}"
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"results", "checkpoints", "logs"}  # nothing of Hydra's own


def test_a_run_that_fills_no_cell_goes_to_the_trials(cli, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("linearconv.engine.files.CHECKOUT", tmp_path)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(results, "TRIALS", tmp_path / "results/trials")
    (tmp_path / "results" / "runs").mkdir(parents=True)
    default = [each for each in small if not each.startswith("results_dir")]
    outcome = cli("train", "model=base", "variant=L", *default, "recipe.epochs=1")
    assert outcome.code == 0, outcome.err
    (path,) = (tmp_path / "results" / "trials" / "runs").glob("*.json")
    assert "results/trials/runs" in outcome.out
    record = json.loads(path.read_text())
    assert list(results.load_runs().run_id) == [record["run_id"]]
    shutil.rmtree(tmp_path / "checkpoints")
    outcome = cli("eval", f"run={record['run_id']}", default[1])
    assert outcome.code == 0 and "results/trials/weights" in outcome.out


def test_multirun_checks_every_job_before_the_first_trains(cli, small, tmp_path):
    outcome = cli("train", "-m", "model=base", "variant=Conv,Lr", "alpha=0.5,0.3", *small)
    assert outcome.code == 2 and "layer 'conv1'" in outcome.err
    assert "variant=Lr alpha=0.3" in outcome.err and "variant=Conv" not in outcome.err
    assert "Traceback" not in outcome.err and not (tmp_path / "checkpoints").exists()
    outcome = cli("train", "-m", "model=base", "variant=Lr", "seed=0,x", *small)
    assert outcome.code == 2 and "seed=x" in outcome.err
    assert not (tmp_path / "checkpoints").exists()


def test_multirun_expands_globs_and_help_lists_choices(cli, small, tmp_path):
    outcome = cli("train", "-m", "model=base", "variant=glob(L*)", *small, "recipe.epochs=1")
    assert outcome.code == 0, outcome.err
    assert len(records(tmp_path)) == 3
    outcome = cli("train", "--help")
    assert outcome.code == 0 and "LRr" in outcome.out and "vgg11" in outcome.out
    assert "alpha=0.5 " in outcome.out and "Attributes" not in outcome.out


def test_multirun_goes_on_after_a_failure_and_lists_it(cli, small, tmp_path, monkeypatch):
    interrupt_in_epoch(monkeypatch, 0, ZeroDivisionError)
    outcome = cli("train", "-m", "model=base", "variant=Conv,r", *small, "recipe.epochs=1")
    assert outcome.code == 1
    assert "1 of 2 runs did not finish" in outcome.err and "variant=Conv" in outcome.err
    assert [r["science"]["variant"]["regularized"] for r in records(tmp_path)] == [True]


def test_mistakes_exit_2_with_one_message(cli, small):
    for override, word in (
        ("alpha=0.3", "conv1"),
        ("variant=XX", "LRr"),
        ("recipe.x=1", "unknown key: recipe.x"),
        ("recipe.epoch=1", "unknown key: recipe.epoch; did you mean recipe.epochs?"),
        ("+varient=Lr", "unknown key: varient; did you mean variant?"),
        ("lr=1", "unknown key: lr; did you mean model.lr or recipe.lr?"),
        ("quick", "expected KEY=VALUE, got quick"),
        ("variant=lr", "did you mean Lr?"),
        ("model=bse", "model=bse: expected one of allconv, base,"),
        (
            "--epochs=1",
            "unknown option: --epochs=1, expected KEY=VALUE; did you mean recipe.epochs?",
        ),
        ("--max-minutes=4", "did you mean max_minutes=4?"),
    ):
        outcome = cli("train", *LRR, *small, override)
        assert outcome.code == 2 and word in outcome.err
        assert "Traceback" not in outcome.err and outcome.out == ""


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [(["--model", "base"], "model=base"), (["--seed", "model=base"], "seed=..."),
     (["--seed"], "seed=..."), (["--model=base"], "model=base")],
)  # fmt: skip
def test_an_option_of_other_programs_is_answered_with_the_key(cli, arguments, meant):
    outcome = cli("train", *arguments)
    assert outcome.code == 2 and f"expected KEY=VALUE; did you mean {meant}?" in outcome.err


@pytest.mark.parametrize("path", ["train.py", "eval.py", "scripts/reproduce.py"])
def test_help_where_signals_are_missing(path):
    """As on Windows."""
    names = ("SIGPIPE", "SIGHUP", "SIGKILL")
    code = (
        f"import runpy, signal, sys; [delattr(signal, name) for name in {names}]; "
        f"sys.argv = ['{path}', '--help']; runpy.run_path('{path}', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "usage: " in done.stdout, done.stderr


def test_other_data_gets_an_identity_of_its_own(cli, small, tmp_path, digits_root, caplog):
    cli("train", *LRR, *small, "recipe.epochs=1")
    arrays = dict(np.load(digits_root / "digits.npz", allow_pickle=False))
    arrays["train_images"][0, 0, 0, 0] ^= 1
    del arrays["digest"]  # packed elsewhere, without one
    (tmp_path / "other").mkdir()
    np.savez((tmp_path / "other/digits.npz").open("wb"), **arrays)
    outcome = cli("train", *LRR, *small, "recipe.epochs=1", f"dataset.root={tmp_path}/other")
    assert outcome.code == 0 and "gets its own identity" in caplog.text
    digests = {record["science"]["dataset"]["digest"] for record in records(tmp_path)}
    assert len(records(tmp_path)) == len(digests) == 2


def test_eval_prints_accuracy_unfused_and_fused(cli, small, tmp_path, digits_root):
    trained = cli("train", *LRR, *small)
    assert trained.code == 0, trained.out + trained.err
    (record,) = records(tmp_path)
    common = [f"checkpoint_dir={tmp_path}/checkpoints", f"dataset.root={digits_root}"]
    for weights, key in (("best", "test_acc_best"), ("last", "test_acc_last")):
        outcome = cli("eval", f"run={record['run_id']}", f"weights={weights}", *common)
        assert outcome.code == 0, outcome.err
        assert outcome.out.count(f"test accuracy {record[key]:.2f} %") == 2
        difference = float(outcome.out.split("largest logit difference")[1])
        assert 0 <= difference < 1e-4
    path = tmp_path / "checkpoints" / record["run_id"] / "best.pt"
    assert cli("eval", f"checkpoint={path}", *common, "runtime.threads=1").code == 0
    assert torch.get_num_threads() == 1


def test_eval_evaluates_the_fused_network(trained, digits_root, monkeypatch, capsys):
    """With other weights in the fused network, its accuracy and its logits are others."""

    def broken(model):
        fused = fuse(model)
        fused.fc.bias.data[3] += 1000
        return fused

    monkeypatch.setattr(eval_module, "fuse", broken)
    (record,) = records(trained)
    eval_module.main(
        EvalConfig(
            run=record["run_id"],
            checkpoint_dir=str(trained / "checkpoints"),
            dataset=EvalDatasetConfig(root=str(digits_root)),
        ),
        [],
    )
    out = capsys.readouterr().out
    unfused, fused = re.findall(r"test accuracy (\S+) %", out)
    assert float(unfused) == pytest.approx(record["test_acc_best"], abs=0.005)
    assert fused != unfused
    assert float(out.split("largest logit difference")[1]) == pytest.approx(1000, rel=1e-3)


def test_eval_mistakes(cli, tmp_path):
    (tmp_path / "cifar10-base-Lr-s0-12345678").mkdir()
    for arguments, message in (
        (["run=unknown"], "run unknown has no best weights."),
        (["run=unknown", "weights=last"], "run unknown has no last weights."),
        (["checkpoint=no.pt"], "no.pt"),
        ([], "give either run=<run_id> or checkpoint=<path>"),
        (["run="], "give either run=<run_id> or checkpoint=<path>"),
        (["some-run"], "expected KEY=VALUE, got some-run; did you mean run=some-run?"),
        (["run=cifar10-base-Lr-s0-1234567"], "did you mean cifar10-base-Lr-s0-12345678?"),
    ):
        outcome = cli("eval", *arguments, f"checkpoint_dir={tmp_path}")
        assert outcome.code == 2 and message in outcome.err and "Traceback" not in outcome.err
    (tmp_path / "bad.pt").write_bytes(b"no checkpoint")
    outcome = cli("eval", f"checkpoint={tmp_path}/bad.pt")
    assert outcome.code == 2 and "bad.pt is damaged" in outcome.err


@pytest.mark.parametrize(
    ("entry", "key", "value"),
    [
        ("eval", "checkpoint", "epoch=1.pt"),
        ("train", "results_dir", "out/lr=1e-3"),
        ("train", "dataset.path", "a=b/c=d.npz"),
        ("train", "dataset.path", "größe.npz"),
        ("train", "log_dir", "a(1)"),
    ],
)
def test_special_characters_in_a_path_must_be_quoted(cli, entry, key, value):
    outcome = cli(entry, f"{key}={value}")
    assert outcome.code == 2
    assert f"{key}: the value {value} contains characters that only quoted" in outcome.err
    assert f"""'{key}="{value}"'""" in outcome.err and "mismatched" not in outcome.err


def test_a_quoted_path_may_contain_an_equals_sign(cli):
    outcome = cli("eval", 'checkpoint="epoch=1.pt"')
    assert outcome.code == 2 and "checkpoint epoch=1.pt not found" in outcome.err


def start(*overrides: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "train.py"), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in a shell's background inherits an ignored SIGINT; a user's Ctrl-C does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(tmp_path: Path, name: str, process: subprocess.Popen) -> None:
    """Until a checkpoint is there, and a little longer: into the next epoch."""
    deadline = time.time() + 120
    while not list((tmp_path / "checkpoints").glob(f"*/{name}")):
        assert process.poll() is None and time.time() < deadline, process.communicate()
        time.sleep(0.02)
    time.sleep(0.05)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_signals_keep_the_last_checkpoint_and_say_how_to_continue(small, tmp_path, kind):
    process = start(*LRR, *small, "recipe.epochs=500")
    wait_for(tmp_path, "epoch-0001.pt", process)
    process.send_signal(kind)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    stopped = re.search(
        r"stopped in epoch (\d+): the same command continues after epoch (\d+)", err
    )
    assert stopped and int(stopped[1]) == int(stopped[2]) + 1 and "Traceback" not in err
    assert list((tmp_path / "checkpoints").glob(f"*/epoch-{int(stopped[2]):04d}.pt"))


def test_finished_epochs_are_saved_on_ctrl_c_though_no_save_was_due(small, tmp_path):
    process = start(*LRR, *small, "runtime.save_every_s=3600", "recipe.epochs=500")
    for line in process.stdout:
        if line.startswith("epoch 3/"):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    saved = int(re.search(r"continues after epoch (\d+)", err)[1])
    assert saved >= 3 and list((tmp_path / "checkpoints").glob(f"*/epoch-{saved:04d}.pt"))


@pytest.mark.long
def test_killed_again_and_again_ends_as_an_uninterrupted_run(cli, small, tmp_path):
    # The plain runtime: its epochs last long enough to be killed at a chosen one.
    overrides = [*LRR, *small, "runtime=reference", "recipe.epochs=8"]
    assert cli("train", *overrides).code == 0
    (whole,) = records(tmp_path)
    elsewhere = [
        f"results_dir={tmp_path}/b/results",
        f"checkpoint_dir={tmp_path}/b/checkpoints",
        f"log_dir={tmp_path}/b/logs",
    ]
    for attempt, name in enumerate(
        ("epoch-0000.pt", "epoch-0002.pt", "epoch-0004.pt", "epoch-0006.pt")
    ):
        process = start(*overrides, *elsewhere)
        wait_for(tmp_path / "b", name, process)
        time.sleep(0.03 * attempt)
        process.kill()
        process.communicate()
    assert cli("train", *overrides, *elsewhere).code == 0
    parts = json.loads(next((tmp_path / "b/results/runs").glob("*.json")).read_text())
    assert without_provenance(parts) == without_provenance(whole)
    assert len(parts["provenance"]) == 5
    assert not list((tmp_path / "b").rglob("*.part"))
