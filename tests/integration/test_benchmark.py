"""The modes of benchmark.py, on little data."""

import csv
import json
import re
import subprocess
import sys

import pytest
import torch

from configs import compose
from linearconv.engine.checkpoint import Checkpoints
from linearconv.engine.fast.runtime import AcceleratedModel
from linearconv.engine.loop import Training, fit
from scripts.bench.cases import FastCase, UsualCase, random_images
from scripts.bench.certify import bars
from scripts.bench.rows import write
from scripts.bench.tape import tape
from scripts.bench.timing import median_ratio
from tests.conftest import REPOSITORY, Outcome

# In one worker, which measures once.
pytestmark = pytest.mark.xdist_group("benchmark")

TINY = ("--model", "base", "--images", "128", "--rounds", "1")


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPOSITORY / "scripts" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def measured(script) -> Outcome:
    done = script("benchmark", *TINY, "--variants", "Conv,LRr", "--format", "json", "--profile")
    assert done.code == 0, done.err
    return done


@pytest.fixture(scope="module")
def rows(measured) -> list[dict]:
    return json.loads(measured.out)


def test_every_case_is_measured(rows):
    assert [(row["variant"], row["mode"]) for row in rows] == [
        ("Conv", "usual"),
        ("Conv", "fast"),
        ("LRr", "usual"),
        ("LRr", "fast"),
    ]
    for row in rows:
        assert row["model"] == "base" and row["precision"] == "fp32" and row["rounds"] == 1
        for key in ("images_per_s", "ms_per_step", "ratio_to_usual", "step_over_conv"):
            assert row[key] > 0
        for key in ("unfused_b1", "fused_b1", "unfused_b256", "fused_b256"):
            assert row[f"latency_ms_{key}"] > 0
        assert row["fraction_of_limit"] > 0
    assert all(r["ratio_to_usual"] == 1 for r in rows if r["mode"] == "usual")
    assert all(r["step_over_conv"] == 1 for r in rows if r["variant"] == "Conv")


def test_ratios_are_speeds_to_usual_and_times_to_conv():
    config = compose(["model=base", "variant=Conv", "recipe.batch_size=4"])
    dataset, device = random_images(config, 4), torch.device("cpu")
    lrr = compose(["model=base", "variant=LRr", "recipe.batch_size=4"])
    cases = [case(c, dataset, device) for c in (config, lrr) for case in (UsualCase, FastCase)]
    for case, seconds in zip(cases, (4.0, 2.0, 6.0, 1.0), strict=True):
        case.steps_s = case.epochs_s = [seconds]
        case.latency_ms = {
            f"{form}_b{size}": [10 * seconds] for form in ("unfused", "fused") for size in (1, 256)
        }
    found = [case.row(cases, 1e9) for case in cases]
    assert [row["ratio_to_usual"] for row in found] == [1.0, 2.0, 1.0, 6.0]
    assert [row["step_over_conv"] for row in found] == [1.0, 1.0, 1.5, 0.5]
    assert [row["latency_over_conv_fused_b256"] for row in found] == [1.0, 1.0, 1.5, 0.5]
    assert [row["ms_per_step"] for row in found] == [4000.0, 2000.0, 6000.0, 1000.0]


def test_a_ratio_is_the_median_of_those_within_the_rounds():
    assert median_ratio([2.0, 30.0, 4.0], [1.0, 10.0, 1.0]) == 3.0


def test_a_step_stays_below_the_bar_of_device_operations(rows):
    """What a GPU pays for at small batches, data and metrics included."""
    counts = {r["variant"]: r["device_ops_per_step"] for r in rows if r["mode"] == "fast"}
    assert 40 < counts["Conv"] < counts["LRr"] < 100


@pytest.mark.parametrize(("variant", "plain", "with_loss"), [("Lr", 122, 271), ("LRr", 146, 295)])
def test_the_device_operations_of_vgg11(variant, plain, with_loss):
    """About those in docs/gpu.md; another torch may differ by some."""
    few = ("recipe.batch_size=4", "runtime.small_image_products=false")
    config = compose(["model=vgg11", f"variant={variant}", *few])
    case = FastCase(config, random_images(config, 4), torch.device("cpu"))
    assert plain - 10 <= case.operations() <= plain + 4
    assert with_loss - 20 <= case.operations(regularize=True) <= with_loss + 4


def test_the_benchmark_runs_the_operations_that_training_runs(monkeypatch, tmp_path):
    """What is captured: both take their steps from `AcceleratedModel` inside `rewritten()`."""
    recorded = []

    class Recorded:
        def __init__(self, step, batches):
            self.step, self.batches = step, batches

        def epoch(self, epoch):
            self.batches.begin(epoch)
            for i, size in enumerate(self.batches.sizes):
                regularize = self.step.regularizes(epoch, i)
                taken = tape(lambda: self.step(*self.batches.next(size), regularize=regularize))  # noqa: B023
                recorded.append([operation.name for operation in taken.operations])
                yield

    monkeypatch.setattr(
        AcceleratedModel,
        "steps",
        lambda self, step, batches, **_: (Recorded(step, batches), {"steps": "taped"}),
    )
    config = compose(["model=base", "variant=LRr", "recipe.batch_size=4", "recipe.epochs=1"])
    case = FastCase(config, random_images(config, 4), torch.device("cpu"))
    (of_benchmark, *_), recorded[:] = list(recorded), []
    training = Training(case.training.model, case.training.settings, config.runtime)
    fit(
        training,
        case.batches,
        Checkpoints(tmp_path),
        header={"run_id": "a", "science": {}},
        start={},
    )
    of_training = recorded[0]
    assert len(of_training) > 40 and of_benchmark == of_training


def test_layers_are_timed_in_both_executions(script):
    done = script("benchmark", "layers", "--model", "base", "--rounds", "1", "--batch-size", "4")
    assert done.code == 0, done.err
    title, header, *layers, last = done.out.splitlines()
    assert title.startswith("base-LRr on ") and header.split()[0] == "layer"
    chosen = {line.split()[0]: line.split()[6] for line in layers}
    assert chosen == {"conv1": "generate"} | dict.fromkeys(("conv2", "conv3", "conv4"), "factored")
    assert "of 4 choices are slower" in last
    done = script("benchmark", "layers", "--model", "base", "--rounds", "0")
    assert done.code == 2 and "--rounds" in done.err


def test_slots_are_measured_together(script):
    done = run("benchmark.py", "slots", *TINY, "--slots", "1,2")
    assert done.returncode == 0, done.stderr
    title, one, two = done.stdout.splitlines()
    assert title.startswith("base-Conv on ")
    assert one.startswith("1 at once") and one.endswith("x1.00")
    assert two.startswith("2 at once") and float(two.partition(", x")[2]) > 0
    for arguments, words in ((["--slots", "0"], "--slots must be"), (["--model", "x"], "base")):
        done = script("benchmark", "slots", *arguments)
        assert done.code == 2 and words in done.err


def test_the_profile_names_what_takes_the_time(measured):
    assert "LRr\na step: " in measured.err and "convolution" in measured.err


def test_mistakes_are_one_message(script):
    for arguments, words in (
        (("--modes", "slow"), "--modes must be from usual, fast"),
        (("--rounds", "0"), "--rounds must be at least 1"),
        (("--images", "100", "recipe.batch_size=128"), "--images at least a batch, 128"),
        (("recipe=modern",), "the usual loop trains with Adam"),
        (("runtime.execution=generate", "--write"), "--write takes no overrides, got runtime"),
        (("--images", "192", "--write"), "--write takes --images in multiples of 640"),
        (("--model", "lenet"), "lenet"),
    ):
        done = script("benchmark", *arguments)
        assert done.code == 2 and words in done.err and "Traceback" not in done.err


def test_written_rows_replace_older_ones_of_the_same_kind(rows, tmp_path):
    write(rows[:2], tmp_path)
    changed = [dict(rows[1], ms_per_step=123.456), rows[2]]
    path = write(changed, tmp_path)
    assert path.name.endswith(f"-torch{torch.__version__.partition('+')[0]}.csv")
    with path.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [(r["variant"], r["mode"]) for r in written] == [
        ("Conv", "fast"),
        ("Conv", "usual"),
        ("LRr", "usual"),
    ]
    assert written[0]["ms_per_step"] == "123.5"
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"]) for row in written)
    assert all(re.match(r"[0-9a-f]{12}|unknown", row["commit"]) for row in written)


@pytest.mark.parametrize(("change", "met"), [(1.0, True), (1.001, False)])
def test_the_bars_of_a_gpu(change, met):
    """Each at its bar, or a thousandth worse; the steps captured, or not."""
    step = {"Conv": 1.0, "L": 1.0, "Lr": 1.03 * change, "LRr": 64e3 / 60e3 * change}
    row = {"ratio_to_usual": 10 / change, "step_over_conv": 0.8 * change,
           "latency_over_conv_fused_b1": 1.03 * change, "device_ops_per_step": 155 * change,
           "latency_over_conv_fused_b256": 1.03 * change,
           "steps": "captured (a graph)" if met else "eager: no graph"}  # fmt: skip
    networks = {variant: row | {"ms_per_step": ms} for variant, ms in step.items()}
    fast = dict.fromkeys(("base", "vgg11", "resnet18"), networks)
    bar = {"Lr": 1.15, "LRr": 1.05}
    generated = {variant: {"step_over_conv": change * most} for variant, most in bar.items()}
    found = list(bars(fast, generated))
    assert len(found) == 14 and {ok for *_, ok in found} == {met}


def test_certify_needs_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = run("benchmark.py", "certify")
    assert done.returncode == 2 and "needs a CUDA device" in done.stderr
