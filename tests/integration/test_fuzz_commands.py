"""Random command lines: each does its work or is refused with a message, never with a traceback.

A few in the fast tier, the full counts in the long one (docs/reliability.md).
"""

import random

import pytest

import scripts.evidence.results  # noqa: F401  # before a test moves the checkout
from tests.conftest import REPOSITORY

NUMBERS = ["0", "-1", "1", "2", "7", "1.5", "nan", "inf", "1e30", "100000", "abc", "null", "''"]
SETTINGS = {
    "model": ["base", "vgg11", "resnet19", "vgg11_basis", "squeezenet"],
    "variant": ["Conv", "r", "e", "L", "Lr", "LRr", "lr", "X"],
    "dataset": ["digits", "mnist2", "custom"],
    "recipe": ["paper", "short", "released", "modern", "long"],
    "runtime": ["fast", "reference", "slow"],
    "precision": ["tf32", "fp32", "bf16", "fp16"],
    "device": ["auto", "cpu", "cuda", "cuda:9", "mps", "tpu"],
    "variant.init": ["released", "variance_preserving", "kaiming", "null"],
    "variant.widths": ["model", "matched", "wide"],
    "variant.linear": ["true", "false", "2"],
    "variant.regularized": ["true", "false", "maybe"],
    "recipe.optimizer": ["adam", "sgd", "sgdd"],
    "recipe.nesterov": ["true", "false", "x"],
    "recipe.decay_coefficients": ["true", "false"],
    "recipe.schedule": ["step", "multistep", "cosine", "linear"],
    "recipe.lr_milestones": ["null", "[]", "[3]", "[2,1]", "[0.5]", "7"],
    "logger": ["tensorboard", "csv"],
    "regularizer.centered": ["true", "false", "3"],
    "runtime.execution": ["auto", "generate", "factored", "fused"],
    "runtime.data": ["resident", "per_sample", "disk"],
    "runtime.cuda_graphs": ["true", "false"],
    "runtime.channels_last": ["true", "false", "1.5"],
    "dataset.augmentation.flip": ["true", "false", "x"],
    "dataset.normalisation.mean": ["[0.5]", "[]", "[0.1,0.2]", "[nan]", "[a]", "3"],
    "dataset.normalisation.std": ["[0.5]", "[0]", "[-1]", "[1e-30]", "[inf]", "[a]"],
    "resume": ["true", "false", "never"],
    "overwrite": ["true", "false"],
    "baseline_checkpoint": ["null", "nowhere.pt"],
    "dataset.path": ["null", "nowhere.npz"],
    "dataset.root": ["nowhere"],
    "+recipe.warmup": ["5"],
    "recipe.epoch": ["3"],
    "varient": ["Lr"],
    **dict.fromkeys(
        [
            "alpha",
            "seed",
            "variant.rank",
            "recipe.epochs",
            "recipe.batch_size",
            "recipe.lr",
            "recipe.lr_decay_every",
            "recipe.lr_decay_factor",
            "recipe.val_fraction",
            "recipe.momentum",
            "recipe.weight_decay",
            "recipe.label_smoothing",
            "regularizer.strength",
            "regularizer.every",
            "runtime.eval_batch_size",
            "runtime.threads",
            "runtime.save_every_s",
            "max_minutes",
            "image_every",
            "dataset.limit_train",
            "dataset.limit_test",
            "dataset.classes",
            "dataset.channels",
            "dataset.image_size",
            "dataset.train_size",
            "dataset.augmentation.train_padding",
            "dataset.augmentation.test_padding",
            "model.lr",
        ],
        NUMBERS,
    ),
}
DEAR = {"recipe.epochs": {"1e30", "100000"}, "runtime.threads": {"100000"}}
"""Valid values that would take long."""


def train_randomly(cli, places, seeds: range) -> list[int]:
    """Run train.py with a few random overrides for each seed; returns the exit codes."""
    codes, wrong = [], []
    for seed in seeds:
        draw = random.Random(seed)
        chosen = {
            key: draw.choice(SETTINGS[key])
            for key in draw.sample(list(SETTINGS), draw.randint(1, 3))
        }
        for key, values in DEAR.items():
            if chosen.get(key) in values:
                chosen[key] = "1"
        fixed = {
            "model": "base",
            "variant": draw.choice(["Conv", "L", "LRr"]),
            "recipe.epochs": "1",
            "recipe.batch_size": "4",
            "dataset.limit_train": "7",
            "dataset.limit_test": "4",
            "runtime.threads": "1",
        }
        overrides = [f"{key}={value}" for key, value in {**fixed, **chosen}.items()]
        given = [p for p in places if p.partition("=")[0] not in chosen]
        outcome = cli("train", *given, *overrides)
        said = outcome.err + outcome.out
        keys = [*chosen, *fixed]
        names = {name for key in keys for name in (key.strip("+"), key.rpartition(".")[2])}
        named = outcome.code != 2 or any(name in outcome.err for name in names)
        if outcome.code not in (0, 1, 2, 75) or "Traceback" in said or not named:
            wrong.append((seed, overrides, outcome.code, said))
        codes.append(outcome.code)
    assert not wrong, "\n".join(map(str, wrong))
    return codes


def test_random_configs_train_or_are_refused(cli, places):
    codes = train_randomly(cli, places, range(12))
    assert {0, 2} <= set(codes)


@pytest.mark.long
def test_many_random_configs(cli, places):
    codes = train_randomly(cli, places, range(1000, 1500))
    assert codes.count(0) > 50 and codes.count(2) > 150


WORDS = [
    "0",
    "-1",
    "3",
    "1e9",
    "nan",
    "base",
    "vgg11",
    "X",
    "cifar10",
    "digits",
    "nowhere",
    "",
    ".",
]
OPTIONS = {
    "report": ["tables", "studies", "nothing", "--recipe", "--metric", "--results-dir", "--frame"],
    "compare": ["--results-dir", "--against", "--metric", "--csv", "--figure", "model=base", "x"],
    "count": ["--format", "model=base", "variant=Lr", "variant=X", "alpha=2"],
    "verify": ["--results-dir", "--data-root", "--device", "cifar10-base-Lr-s0-00000000"],
    "redundancy": ["--results-dir", "--device", "cifar10-base-Conv-s0-2b22fbec"],
    "prepare_data": ["--root", "--offline", "--from-folder", "--from-npz", "--name", "digits",
                     "--test-fraction", "--flip"],
    "reproduce": ["--table", "--model", "--variant", "--dataset", "--seeds", "--recipe", "--status",
                  "--slots", "--max-minutes", "--device", "--slurm-minutes", "recipe.lr=1", "x=1"],
    "export": ["--format", "--form", "--weights", "--int8", "--out", "--checkpoint-dir",
               "--data-root", "cifar10-base-Lr-s0-00000000"],
    "benchmark": ["--model", "--variants", "--modes", "--format", "--precision", "--device",
                  "runtime.execution=x", "alpha=2"],
    "benchmark layers": ["--model", "--variant", "--batch-size", "--precision", "--device"],
    "benchmark slots": ["--model", "--variant", "--slots", "--precision", "--device"],
    "compress": ["--model", "--data", "--image-size", "--lr", "--batch-size", "--alpha", "--rank",
                 "--strength", "--skip", "--out", "--seed", "--precision", "--workers", "--device"],
}  # fmt: skip
FIXED = {
    "reproduce": ["--dry-run"],
    "benchmark": ["--images", "0", "--rounds", "1"],
    "benchmark layers": ["--rounds", "0"],
    "benchmark slots": ["--rounds", "0", "--images", "0"],
    "compress": ["--epochs", "0", "--finetune-epochs", "0", "--data-root", "nowhere"],
    "verify": ["--data-root", "nowhere"],
    "redundancy": ["--data-root", "nowhere"],
}
"""Given last, so that no command line trains, measures for long or downloads a dataset."""
DEFAULTS = {"reproduce": ["--table", "3", "--model", "base"]}
"""Given first, so that not every command line lacks what is required."""


def call_randomly(script, folder, name: str, seeds: range) -> None:
    called = []
    for seed in seeds:
        draw = random.Random(f"{name}-{seed}")
        line = list(DEFAULTS.get(name, []))
        for option in draw.sample(OPTIONS[name], draw.randint(0, min(3, len(OPTIONS[name])))):
            line.append(option)
            if option.startswith("--") and draw.random() < 0.9:
                line.append(draw.choice(WORDS))
        if name in ("report", "redundancy") and "--results-dir" not in line:
            line += ["--results-dir", str(folder)]
        if line in called:
            continue
        called.append(line)
        done = script(*name.split(), *line, *FIXED.get(name, []))
        assert done.code in (0, 1, 2, 75), (name, line, done.err)
        assert done.code == 0 or done.out + done.err, (name, line)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working directory without anything, but for the few results of a folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("linearconv.engine.files.CHECKOUT", tmp_path)  # and its default folders
    monkeypatch.delenv("LINEARCONV_DATA", raising=False)
    (tmp_path / "results/runs").mkdir(parents=True)
    return tmp_path / "results"


@pytest.mark.parametrize("name", OPTIONS)
def test_random_command_lines_of_scripts(script, elsewhere, name):
    call_randomly(script, elsewhere, name, range(8))


@pytest.mark.long
@pytest.mark.parametrize("name", OPTIONS)
def test_many_random_command_lines_of_scripts(script, elsewhere, name):
    call_randomly(script, elsewhere, name, range(1000, 1200))


def test_every_script_is_called():
    scripts = {path.stem for path in (REPOSITORY / "scripts").glob("*.py")}
    assert scripts - set(OPTIONS) == {"__init__", "command"}
