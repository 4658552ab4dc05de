"""Seeding, steps, the loop, checkpoints and records, on a network of a few weights."""

import contextlib
import errno
import io
import json
import logging
import re
import signal
import subprocess
import sys
import threading
from functools import partial, partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from configs.cli import _Stderr
from configs.naming import LONGEST
from linearconv import LinearConv2d, correlation_loss
from linearconv.engine import checkpoint as checkpoints_module
from linearconv.engine import loop
from linearconv.engine import provenance as provenance_module
from linearconv.engine.artifacts import (
    correct_artifacts,
    filter_artifacts,
    pack_symmetric,
    unpack_correct,
    unpack_symmetric,
)
from linearconv.engine.checkpoint import Checkpoints, load
from linearconv.engine.digests import value_sha256
from linearconv.engine.fast.runtime import Runtime
from linearconv.engine.loop import NonFiniteLoss, Training, TrainSettings, fit
from linearconv.engine.precision import precision_flags
from linearconv.engine.provenance import git_state, portable, provenance
from linearconv.engine.record import (
    build_record,
    network_counts,
    read_record,
    weights_sha256,
    write_record,
)
from linearconv.engine.reporting import Observer, ProgressBar
from linearconv.engine.run import RunPaths
from linearconv.engine.seeding import derive_seed, generator, seeded
from linearconv.engine.step import Regularizer, TrainStep, evaluate
from linearconv.errors import UserError
from train import portable_override

HEADER = {"run_id": "toy", "science": {"a": 1}}


class ToyBatches:
    """Two-class images of (2, 4, 4); 23 batches of 4 and a last one of 3."""

    def __init__(self, val: bool = False) -> None:
        random = torch.Generator().manual_seed(0)
        self.images = torch.randn(95, 2, 4, 4, dtype=torch.float64, generator=random)
        self.labels = (self.images.mean(dim=(1, 2, 3)) > 0).long()
        self.train_size, self.sizes = 95, [4] * 23 + [3]
        self.has_val = val

    def train(self, epoch):
        order = torch.randperm(95, generator=generator("toy", epoch))
        yield from zip(self.images[order].split(4), self.labels[order].split(4), strict=True)

    def test(self):
        yield from zip(self.images.split(10), self.labels.split(10), strict=True)

    def val(self):
        """With wrong labels, so that the best epoch is another one than by the test images."""
        return iter([(self.images[:7], 1 - self.labels[:7])]) if self.has_val else None


def toy_model() -> nn.Module:
    with seeded("toy-init", 0):
        return nn.Sequential(
            LinearConv2d(2, 4, 3, rank=2, dtype=torch.float64),
            nn.BatchNorm2d(4, dtype=torch.float64),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16, 2, dtype=torch.float64),
        )


def toy_settings(**changes) -> TrainSettings:
    values = {
        "epochs": 4,
        "lr": 1e-2,
        "lr_decay_every": 2,
        "lr_decay_factor": 0.1,
        "regularizer": Regularizer(0.01, 10, False),
    }
    return TrainSettings(**(values | changes))


def train(folder: Path, *, batches=None, **kwargs) -> tuple[Training, bool]:
    """Go on with what lies in the folder, as a run does."""
    settings = kwargs.pop("settings", toy_settings())
    speed = kwargs.pop("speed", None)
    training, checkpoints = Training(toy_model(), settings, speed), Checkpoints(folder)
    state = checkpoints.load_last()
    if state is not None:
        training.load_state_dict(state)
    start = {"host": "here"}
    done = fit(training, batches or ToyBatches(), checkpoints, header=HEADER, start=start, **kwargs)
    return training, done


def test_seeds_are_the_documented_ones():
    assert derive_seed("init", 0) == 15771649763199978958
    assert derive_seed("epoch-plan", 1, 2) != derive_seed("epoch-plan", 12)
    with seeded("init", 0):
        inside = torch.rand(3)
    assert torch.equal(inside, torch.rand(3, generator=generator("init", 0)))


def test_seeding_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    with seeded("init", 0):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)


def test_training_equals_a_loop_written_out(tmp_path):
    """50 steps of Adam with the decay and the loss on steps 9 and 19 of each epoch."""
    training, done = train(tmp_path)
    assert done and training.epoch == 4
    model, batches = toy_model(), ToyBatches()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for epoch in range(4):
        for group in optimizer.param_groups:
            group["lr"] = [1e-2, 1e-2, 1e-3, 1e-3][epoch]
        total = 0.0
        for i, (images, labels) in enumerate(batches.train(epoch)):
            loss = F.cross_entropy(model(images), labels)
            total += loss.item() * len(labels)
            if i in (9, 19):
                loss = loss + 0.01 * correlation_loss(model[0].primary)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(total / 95)
    assert [e["train_loss"] for e in training.curve] == pytest.approx(losses, rel=1e-9)
    for mine, theirs in zip(training.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_regularizer_applies_to_every_tenth_step():
    regularizer = Regularizer(0.01, 10, False)
    assert [i for i in range(32) if regularizer.applies(5, i)] == [9, 19, 29]
    assert all(Regularizer(0.01, 1, False).applies(0, i) for i in range(3))


def test_regularizer_ends_after_its_last_epoch():
    regularizer = Regularizer(0.01, 10, False, until=2)
    assert [epoch for epoch in range(5) if regularizer.applies(epoch, 9)] == [0, 1]


def test_a_regularized_step_adds_lambda_times_the_loss():
    gradients = []
    images, labels = next(ToyBatches().train(0))
    for regularize in (False, True):
        model = toy_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        step = TrainStep(model, optimizer, Regularizer(0.3, 10, True), "fp32")
        step(images, labels, regularize=regularize)
        gradients.append(model[0].primary.grad)
    weight = toy_model()[0].primary
    correlation_loss(weight, centered=True).backward()
    torch.testing.assert_close(gradients[1] - gradients[0], 0.3 * weight.grad)


def test_the_curves_loss_is_algorithm_1_whatever_is_trained_on(tmp_path):
    settings = toy_settings(epochs=1, regularizer=Regularizer(0.3, 10, centered=True))
    training, _ = train(tmp_path, settings=settings)
    expected = correlation_loss(training.model[0].primary).item()
    assert training.curve[0]["correlation_loss"] == pytest.approx(expected)


def test_metrics_of_an_epoch(tmp_path):
    training, _ = train(tmp_path, settings=toy_settings(epochs=1, lr=1e-30))
    entry, batches = training.curve[0], ToyBatches()
    model = toy_model()
    model.train()
    logits = [(model(x), y) for x, y in batches.train(0)]
    loss = sum(F.cross_entropy(z, y, reduction="sum").item() for z, y in logits) / 95
    correct = sum((z.argmax(1) == y).sum().item() for z, y in logits)
    assert entry["train_loss"] == pytest.approx(loss)
    assert entry["train_acc"] == pytest.approx(100 * correct / 95)
    assert entry["lr"] == 1e-30 and entry["epoch"] == 1
    assert entry["correlation_loss"] == pytest.approx(correlation_loss(model[0].primary).item())
    model.eval()
    z = model(batches.images)
    assert entry["test_loss"] == pytest.approx(F.cross_entropy(z, batches.labels).item())
    expected = 100 * (z.argmax(1) == batches.labels).double().mean().item()
    assert entry["test_acc"] == pytest.approx(expected)


def test_evaluation_needs_an_image_and_keeps_the_mode():
    model = toy_model().train()
    evaluate(model, ToyBatches().test(), "fp32")
    assert model.training
    with pytest.raises(ValueError, match="no images to evaluate"):
        evaluate(model, iter(()), "fp32")


def test_precision_flags_are_set_and_put_back():
    conv, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = conv.allow_tf32, matmul.allow_tf32, conv.deterministic, conv.benchmark
    for precision, expected in (("tf32", True), ("fp32", False), ("bf16", False)):
        with precision_flags(precision):
            assert (conv.allow_tf32, matmul.allow_tf32) == (expected, False)
            assert (conv.deterministic, conv.benchmark) == (True, False)
    assert (conv.allow_tf32, matmul.allow_tf32, conv.deterministic, conv.benchmark) == before


def test_evaluation_has_the_precision_of_training(tmp_path, monkeypatch):
    evaluated = []

    def spy(network, batches, precision):
        evaluated.append(precision)
        return evaluate(network, batches, precision)

    monkeypatch.setattr(loop, "evaluate", spy)
    settings = toy_settings(epochs=1, precision="bf16")
    train(tmp_path, settings=settings, batches=ToyBatches(val=True))
    assert evaluated == ["bf16", "bf16"]


def test_checkpoints_are_kept_before_the_first_and_after_each_epoch(tmp_path):
    train(tmp_path, settings=toy_settings(epochs=1))
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == [
        "best.pt",
        "epoch-0000.pt",
        "epoch-0001.pt",
    ]
    train(tmp_path, settings=toy_settings(epochs=4))
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == [
        "best.pt",
        "epoch-0003.pt",
        "epoch-0004.pt",
    ]
    state = load(tmp_path / "epoch-0004.pt")
    assert state["epoch"] == 4 and len(state["curve"]) == 4 and state["run_id"] == "toy"
    assert {"model", "optimizer", "curve", "science", "test_acc_best"} <= set(state)


def interrupted(folder: Path, epoch: int, speed: Runtime | None = None) -> None:
    """Train until the middle of an epoch, as Ctrl-C ends it."""

    class Stop:
        steps = 0

        def epoch_started(self, *args): ...
        def epoch_finished(self, *args): ...
        def close(self): ...

        def step_done(self):
            self.steps += 1
            if self.steps == 24 * epoch + 7:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(folder, observers=[Stop()], speed=speed)


@pytest.mark.parametrize("epoch", [1, 3])
def test_finished_epochs_survive_an_interrupt_though_no_save_was_due(tmp_path, epoch):
    whole, _ = train(tmp_path / "whole")
    interrupted(tmp_path / "parts", epoch, Runtime(save_every_s=3600.0))
    assert Checkpoints(tmp_path / "parts").load_last()["epoch"] == epoch
    parts, _ = train(tmp_path / "parts")
    assert parts.curve == whole.curve
    assert weights_sha256(parts.model) == weights_sha256(whole.model)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_the_epoch_is_saved_and_reported(tmp_path, number):
    """A KeyboardInterrupt within TensorBoard's queue could make closing it wait forever."""

    def interrupt(signum, frame):  # as configs.cli handles SIGTERM
        raise KeyboardInterrupt

    seen = []

    class Signalled:
        def epoch_started(self, *args): ...
        def step_done(self): ...
        def close(self): ...

        def epoch_finished(self, entry, *args):
            signal.raise_signal(number)
            signal.raise_signal(number)  # an impatient user
            seen.append(entry["epoch"])

    before = signal.signal(number, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, observers=[Signalled(), Signalled()])
        assert signal.getsignal(number) is interrupt
    finally:
        signal.signal(number, before)
    assert seen == [1, 1] and (tmp_path / "epoch-0001.pt").exists()


def test_outside_the_main_thread_signals_are_left_alone(tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(train(tmp_path)[1]))
    thread.start()
    thread.join()
    assert done == [True]


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_an_interrupted_run_goes_on_bit_identically(tmp_path, epoch):
    whole, _ = train(tmp_path / "whole")
    interrupted(tmp_path / "parts", epoch)
    parts, done = train(tmp_path / "parts")
    assert done and parts.curve == whole.curve
    assert weights_sha256(parts.model) == weights_sha256(whole.model)
    assert [s["first_epoch"] for s in parts.starts] == ([1, epoch + 1])
    assert parts.starts[-1]["last_epoch"] == 4
    best = [load(tmp_path / name / "best.pt") for name in ("whole", "parts")]
    assert best[0]["epoch"] == best[1]["epoch"]
    assert all(torch.equal(best[0]["model"][k], v) for k, v in best[1]["model"].items())


def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog):
    whole, _ = train(tmp_path / "whole")
    train(tmp_path / "parts", settings=toy_settings(epochs=3))
    last = tmp_path / "parts" / "epoch-0003.pt"
    last.write_bytes(last.read_bytes()[:1000])
    again, _ = train(tmp_path / "parts")
    assert again.starts[-1]["first_epoch"] == 3
    assert weights_sha256(again.model) == weights_sha256(whole.model)
    assert "epoch-0003.pt is damaged" in caplog.text


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("checkpoint")
    train(folder, settings=toy_settings(epochs=1))
    return (folder / "epoch-0001.pt").read_bytes()


def test_a_flipped_bit_never_changes_what_is_loaded(tmp_path, checkpoint):
    """torch itself does not verify the checksums that it writes."""
    path = tmp_path / "epoch-0001.pt"
    path.write_bytes(checkpoint)
    expected = load(path)["model"]
    random, found = np.random.default_rng(0), 0
    for bit in random.integers(0, 8 * len(checkpoint), size=200):
        content = bytearray(checkpoint)
        content[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(content)
        try:
            state = load(path)["model"]
        except UserError:
            found += 1
            continue
        for name, tensor in expected.items():  # in padding, between two entries
            assert torch.equal(state[name], tensor)
    assert found > 50


def test_copies_that_other_programs_leave_are_no_checkpoints(tmp_path, checkpoint):
    for name in ("epoch-0001.pt", "epoch-0002 (conflicted copy).pt", "epoch-.pt"):
        (tmp_path / name).write_bytes(checkpoint)
    assert [path.name for path in Checkpoints(tmp_path).epochs()] == ["epoch-0001.pt"]


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_damaged(tmp_path, checkpoint, share):
    path = tmp_path / "epoch-0001.pt"
    path.write_bytes(checkpoint[: int(share * len(checkpoint))])
    with pytest.raises(UserError, match="is damaged"):
        load(path)


def test_checkpoints_that_are_all_damaged_are_not_silently_replaced(tmp_path):
    train(tmp_path, settings=toy_settings(epochs=3))
    for path in tmp_path.glob("epoch-*.pt"):
        path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="resume=false starts the run over"):
        train(tmp_path)
    assert len(list(tmp_path.glob("epoch-*.pt"))) == 2


def test_a_failed_write_leaves_the_older_checkpoints(tmp_path, monkeypatch):
    train(tmp_path, settings=toy_settings(epochs=2))
    before = sorted(tmp_path.iterdir())

    def disk_full(state, file):
        file.write(b"some bytes")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints_module.torch, "save", disk_full)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_the_deadline_starts_no_epoch_that_would_not_fit(tmp_path):
    times = iter([0, 10, 10, 40, 40, 65, 65, 75])  # epochs of 10, 30, 25 and 10 seconds
    training, done = train(tmp_path, deadline=94, clock=lambda: next(times))
    assert not done and training.epoch == 3  # 65 + 30 > 94
    # The next process counts its own epochs alone: slow ones elsewhere do not stall it.
    times = iter([100, 101])
    training, done = train(tmp_path, deadline=110, clock=lambda: next(times))
    assert done and training.epoch == 4


def test_an_epoch_in_which_the_process_was_paused_stops_no_run_that_would_fit(tmp_path):
    times = iter([0, 10, 10, 1010, 1010, 1020, 1020, 1030])  # SIGSTOP for 990 s in the second
    _, done = train(tmp_path, deadline=1100, clock=lambda: next(times))
    assert done


def test_every_start_is_kept_even_without_an_epoch(tmp_path):
    for _ in range(3):
        assert not train(tmp_path, deadline=-1.0)[1]
    training, _ = train(tmp_path)
    assert [s["last_epoch"] for s in training.starts] == [None, None, None, 4]


@pytest.mark.parametrize("split", ["test", "val"])
def test_an_evaluation_that_is_not_finite_stops_the_run_at_once(tmp_path, split):
    class Poisoned(ToyBatches):
        def poisoned(self):
            return iter([(self.images * float("nan"), self.labels)])

    batches = Poisoned(val=True)
    setattr(batches, split, batches.poisoned)
    with pytest.raises(NonFiniteLoss, match=f"{split}_loss became nan in epoch 1"):
        train(tmp_path, batches=batches)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_kept(tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"the loss became nan in step \d+ of epoch 1"):
        batches = ToyBatches()
        batches.images[0] = float("nan")
        train(tmp_path, batches=batches)
    assert [p.name for p in tmp_path.glob("epoch-*.pt")] == ["epoch-0000.pt"]


def test_checkpoints_are_ordered_by_number(tmp_path):
    for epoch in (9999, 10000):
        Checkpoints(tmp_path).save(epoch, {"epoch": epoch})
    assert [p.name for p in Checkpoints(tmp_path).epochs()] == ["epoch-9999.pt", "epoch-10000.pt"]


def test_a_foreign_file_is_no_checkpoint(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match="not a checkpoint of a run"):
        load(tmp_path / "foreign.pt")


def test_best_weights_are_those_of_the_first_best_epoch(tmp_path):
    training, _ = train(tmp_path)
    accuracies = [entry["test_acc"] for entry in training.curve]
    assert load(tmp_path / "best.pt")["epoch"] == 1 + int(np.argmax(accuracies))
    assert training.best("test_acc")["epoch"] == 1 + int(np.argmax(accuracies))


def toy_record(training: Training) -> dict:
    counts = network_counts(training.model, (2, 4, 4), batch_size=4)
    return build_record("toy", {"a": 1}, training, counts=counts, images_per_epoch=95)


def test_record_holds_what_the_design_names(tmp_path):
    training, _ = train(tmp_path)
    record = toy_record(training)
    path = tmp_path / "runs" / "toy.json"
    written = write_record(path, record)
    assert read_record(path) == json.loads(path.read_text()) == written
    assert written.pop("sha256") == value_sha256(record) and written == record
    assert set(record) == {
        "schema",
        "run_id",
        "science",
        "test_acc_best",
        "best_epoch",
        "test_acc_last",
        "curve",
        "params",
        "macs_train",
        "macs_inference",
        "flops_paper_convention",
        "final_weights_sha256",
        "provenance",
        "timing",
    }
    assert record["test_acc_best"] == max(e["test_acc"] for e in record["curve"])
    assert record["test_acc_last"] == record["curve"][-1]["test_acc"]
    assert record["params"] == 2 * 18 + 2 * 2 + 2 * 2 + 4 + 8 + 34
    assert record["macs_inference"]["fused"] == 4 * 18 * 4 + 32
    assert record["macs_train"]["generate"] == 4 * 18 * 4 + 32 + 8 * 18 / 4
    assert record["macs_train"]["factored"] == 2 * 18 * 4 + 8 * 4 + 32
    assert record["timing"]["seconds"] == sum(record["timing"]["seconds_per_epoch"])


def test_record_with_validation_images(tmp_path):
    training, _ = train(tmp_path, batches=ToyBatches(val=True))
    record = toy_record(training)
    accuracies = [entry["val_acc"] for entry in training.curve]
    epoch = 1 + int(np.argmax(accuracies))
    assert epoch != record["best_epoch"]
    assert record["val_acc_best"] == max(accuracies)
    assert record["val_acc_best_epoch"] == epoch
    assert record["test_acc_at_val_acc_best"] == training.curve[epoch - 1]["test_acc"]
    assert load(tmp_path / "best.pt")["epoch"] == epoch  # selected without the test images


def test_damaged_records_are_named(tmp_path):
    path = tmp_path / "toy.json"
    with pytest.raises(UserError, match="toy.json not found"):
        read_record(path)
    for content in ("{", "[]", '{"schema": 99}'):
        path.write_text(content)
        with pytest.raises(UserError, match="toy.json is not "):
            read_record(path)


def test_weights_hash_sees_names_values_and_buffers():
    model = toy_model()
    hashes = {weights_sha256(model)}
    model[1].running_mean += 1
    hashes.add(weights_sha256(model))
    hashes.add(weights_sha256(nn.ModuleDict({"a": model})))
    assert len(hashes) == 3
    assert weights_sha256(toy_model()) in hashes


def test_provenance_says_where_and_with_what():
    entry = provenance(torch.device("cpu"), overrides=["model=base"])
    assert entry["overrides"] == ["model=base"] and entry["device_kind"] == "cpu"
    assert entry["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert entry["threads"] == torch.get_num_threads()
    json.dumps(entry)


def test_results_do_not_make_a_checkout_dirty(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance_module, "CHECKOUT", tmp_path)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "a"], check=True)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/record.json").touch()
    assert len(git_state()["git_commit"]) == 40 and git_state()["git_dirty"] is False
    (tmp_path / "train.py").touch()
    assert git_state()["git_dirty"] is True


@pytest.mark.parametrize(
    ("override", "kept"),
    [
        ("results_dir={here}/out", "results_dir=out"),
        ("results_dir={here}/../secret/out", "results_dir=out"),
        ("dataset.root='/home/me/my data'", "dataset.root=my data"),
        ("log_dir=../../me/logs", "log_dir=logs"),
        ("checkpoint_dir=ck/a", "checkpoint_dir=ck/a"),
        ("baseline_checkpoint=null", "baseline_checkpoint=null"),
        ("++results_dir=/home/me/secret/out", "++results_dir=out"),
        ("model=base", "model=base"),
        ("+note=https://host/a", "+note=https://host/a"),
    ],
)
def test_records_do_not_tell_what_lies_above(override, kept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert portable_override(override.format(here=tmp_path)) == kept
    assert portable(tmp_path / "datasets" / "x.npz") == "datasets/x.npz"


def test_artifacts_hold_first_filters_and_correlations():
    model = nn.Sequential(LinearConv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 513, 1))
    arrays = filter_artifacts(model)
    assert arrays["layers"].tolist() == ["0", "1"] and arrays["primary"].tolist() == [4, 16]
    assert arrays["filters"].shape == (8, 3, 3, 3) and arrays["filters"].dtype == np.float16
    weight = model[0].weight.detach().numpy().reshape(8, -1)
    unit = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    found = unpack_symmetric(arrays["correlations_0"])
    np.testing.assert_allclose(found, unit @ unit.T, atol=1e-3)
    assert arrays["correlations_1"].shape == (16 * 15 // 2,)


@pytest.mark.parametrize("rank", [None, 2])
def test_artifacts_generate_the_secondary_filters_from_the_primary_ones(rank):
    layer = LinearConv2d(3, 8, 3, alpha=0.5, rank=rank, init="variance_preserving")
    arrays = filter_artifacts(nn.Sequential(layer))
    filters = arrays["filters"].reshape(8, -1).astype(float)
    generated = arrays["coefficients_0"].astype(float).T @ filters[:4]
    np.testing.assert_allclose(generated, filters[4:], atol=2e-3)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_symmetric_matrices_survive_packing(size):
    matrix = np.random.default_rng(size).normal(size=(size, size))
    matrix = matrix + matrix.T
    np.fill_diagonal(matrix, 1)
    np.testing.assert_array_equal(unpack_symmetric(pack_symmetric(matrix)), matrix)


def test_a_number_of_entries_that_no_matrix_has_is_rejected():
    with pytest.raises(ValueError, match="4 is not the number"):
        unpack_symmetric(np.zeros(4))


@pytest.mark.parametrize("count", [1, 8, 10_001])
def test_correct_images_survive_packing(count):
    random = np.random.default_rng(count)
    correct = {name: random.random(count) < 0.8 for name in ("best", "last")}
    arrays = correct_artifacts(correct)
    for name, images in correct.items():
        np.testing.assert_array_equal(unpack_correct(arrays, name), images)
    assert unpack_correct({}, "best") is None


def test_checkpoints_are_not_written_more_often_than_asked(tmp_path, monkeypatch):
    """An hour between two: only the start and the end are written, with the best weights."""
    saved = []
    original = Checkpoints.save

    def save(self, epoch, state):
        saved.append(epoch)
        original(self, epoch, state)

    monkeypatch.setattr(Checkpoints, "save", save)
    ends = []
    for folder, every in (("each", 0.0), ("rare", 3600.0)):
        saved.clear()
        training = Training(toy_model(), toy_settings(), Runtime(save_every_s=every))
        fit(training, ToyBatches(), Checkpoints(tmp_path / folder), header=HEADER, start={})
        ends.append(weights_sha256(training.model))
        assert saved == ([0, 1, 2, 3, 4] if every == 0 else [0, 4])
    assert ends[0] == ends[1]
    each, rare = (load(tmp_path / folder / "best.pt") for folder in ("each", "rare"))
    assert each["epoch"] == rare["epoch"]
    assert all(torch.equal(each["model"][k], v) for k, v in rare["model"].items())


def test_a_time_limit_writes_what_was_not_yet_written(tmp_path):
    ticks = iter(range(100))
    training = Training(toy_model(), toy_settings(), Runtime(save_every_s=3600.0))
    checkpoints = Checkpoints(tmp_path)
    clock = lambda: next(ticks)  # noqa: E731
    done = fit(
        training, ToyBatches(), checkpoints, header=HEADER, start={}, deadline=4, clock=clock
    )
    assert not done and 0 < training.epoch < 4
    assert checkpoints.load_last()["epoch"] == training.epoch


def test_a_full_disk_of_the_log_loses_no_epoch(tmp_path):
    class Full(Observer):
        def epoch_finished(self, entry, images_per_s, model):
            if entry["epoch"] == 3:
                raise OSError("No space left on device")

    training = Training(toy_model(), toy_settings(), Runtime(save_every_s=3600.0))
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        fit(training, ToyBatches(), checkpoints, header=HEADER, start={}, observers=[Full()])
    assert checkpoints.load_last()["epoch"] == 3


def test_torchs_dropout_draws_the_same_after_resuming_and_by_the_seed(tmp_path, monkeypatch):
    original = toy_model

    def dropping() -> nn.Module:
        model = original()
        model.insert(4, nn.Dropout(0.5))
        return model

    monkeypatch.setattr(sys.modules[__name__], "toy_model", dropping)
    ends = []
    for folder, seed, limits in (("a", 0, [4]), ("b", 0, [2, 4]), ("c", 1, [4])):
        for epochs in limits:
            torch.rand(epochs)  # whatever else the process draws
            settings = toy_settings(epochs=epochs, lr_decay_every=9, seed=seed)
            training, _ = train(tmp_path / folder, settings=settings)
        ends.append(weights_sha256(training.model))
    assert ends[0] == ends[1] != ends[2]


def test_torchs_dropout_draws_anew_in_each_epoch(tmp_path):
    drawn = []

    class Drawing(Observer):
        def step_done(self):
            drawn.append(torch.rand(1).item())

    train(tmp_path, observers=[Drawing()])
    assert len(set(drawn)) == len(drawn) == 4 * 24


def test_a_failure_of_the_device_is_raised_though_nothing_can_be_saved_after_it(
    tmp_path, monkeypatch, caplog
):
    training = Training(toy_model(), toy_settings(), Runtime(save_every_s=3600.0))
    original, calls = loop.train_epoch, []

    def fail(*args):
        raise RuntimeError("CUDA error: second")

    def train_epoch(*args):
        calls.append(args)
        if len(calls) == 3:
            monkeypatch.setattr(loop, "save", fail)
            raise RuntimeError("CUDA error: first")
        return original(*args)

    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    with pytest.raises(RuntimeError, match="first"):
        fit(training, ToyBatches(), Checkpoints(tmp_path), header=HEADER, start={})
    assert "the epochs since the last checkpoint are lost: CUDA error: second" in caplog.text


def test_a_full_disk_is_named_when_a_checkpoint_is_written(tmp_path, monkeypatch):
    """torch itself reports an inner failure that follows from it."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    monkeypatch.setattr(
        checkpoints_module, "atomic_write", lambda path: full.open("wb", buffering=0)
    )
    with pytest.raises(OSError, match="No space left on device"):
        checkpoints_module.save(tmp_path / "x.pt", {"weights": torch.zeros(10**6)})


def test_a_bar_shows_the_run_and_lines_stand_above_it(monkeypatch):
    """With the time that is left, which counts the epochs of this process alone."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", out)
    console = Console(file=out, force_terminal=True, width=100)
    monkeypatch.setattr("rich.progress.get_console", lambda: console)
    handler, bar = _Stderr(), ProgressBar()
    bar.epoch_started(3, 10, 5)  # resumed
    for _ in range(5):
        bar.step_done()
    bar._progress.refresh()
    handler.emit(logging.makeLogRecord({"msg": "a message"}))
    bar.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "30.0 %  epoch 3/10" in text and "elapsed, left" in text
    assert any(line.strip() == "a message" for line in text.splitlines())


@pytest.mark.parametrize("longest", [143, 255])
def test_names_that_are_too_long_are_refused_before_training(tmp_path, monkeypatch, longest):
    """Also on file systems that take fewer characters than most."""
    touch = Path.touch

    def limited(path, *args, **kwargs):
        if len(path.name.encode()) > longest:
            raise OSError(errno.ENAMETOOLONG, "File name too long", str(path))
        touch(path, *args, **kwargs)

    monkeypatch.setattr(Path, "touch", limited)
    places = [tmp_path / name for name in "abc"]
    RunPaths("x" * LONGEST, *places).create()
    with pytest.raises(UserError, match=r"x.safetensors cannot be written to: File name too long"):
        RunPaths("x" * (longest - 20), *places).create()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("allowed", range(8))
def test_a_move_that_is_killed_anywhere_can_be_repeated(tmp_path, monkeypatch, allowed):
    source, target = Checkpoints(tmp_path / "b" / "overwrite"), Checkpoints(tmp_path / "b")
    for checkpoints, epochs in ((source, (2, 3)), (target, (4, 5))):
        for epoch in epochs:
            checkpoints.save(epoch, {"epoch": epoch})
        checkpoints_module.save(checkpoints.best, {"epoch": epochs[0]})
    expected = {path.name: path.read_bytes() for path in source.folder.iterdir()}
    done = []

    def killed(original, path, *args, **kwargs):
        if len(done) == allowed:
            raise SystemExit
        done.append(path)
        return original(path, *args, **kwargs)

    with monkeypatch.context() as patch, contextlib.suppress(SystemExit):
        for name in ("replace", "unlink"):
            patch.setattr(Path, name, partialmethod(partial(killed, getattr(Path, name))))
        source.move_to(target.folder)
    if source.epochs():
        source.move_to(target.folder)
    assert {path.name: path.read_bytes() for path in target.folder.glob("*.pt")} == expected
