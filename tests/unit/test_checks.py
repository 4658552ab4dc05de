"""Every mistake in a command gets one message that names it, before anything is computed."""

import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from configs import checks, compose
from configs.checks import check_ready
from configs.groups import CONFIG_DIR
from linearconv.errors import UserError

BASE = ["model=base", "variant=Lr"]
SGD = [*BASE, "recipe.optimizer=sgd"]
MULTISTEP = [*BASE, "recipe.schedule=multistep"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["variant=Lr"], ["You must specify 'model'", "base", "vgg11"]),
        (["model=base"], ["You must specify 'variant'", "Conv", "LRr"]),
        (["model=base", "variant=XX"], ["variant=XX: expected one of", "Conv", "LRr"]),
        (["model=resnet", "variant=Lr"], ["model=resnet: expected one of", "base", "vgg11"]),
        ([*BASE, "dataset=imagenet"], ["dataset=imagenet: expected one of", "cifar10", "svhn"]),
        ([*BASE, "recipe=long"], ["recipe=long: expected one of", "paper", "short"]),
        ([*BASE, "runtime=turbo"], ["runtime=turbo: expected one of", "reference"]),
        ([*BASE, "epochs=3"], ["epochs"]),
        ([*BASE, "+recipe.foo=3"], ["unknown key: recipe.foo"]),
        ([*BASE, "~recipe.epochs"], ["~recipe.epochs: expected a value", "recipe.epochs=..."]),
        ([*BASE, "~regularizer"], ["~regularizer: expected a value"]),
        ([*BASE, "results_dir=2024_11_27"], ["read as 20241127: write results_dir=./2024_11_27"]),
        ([*BASE, "checkpoint_dir=1.50"], ["read as 1.5: write checkpoint_dir=./1.50"]),
        ([*BASE, "dataset.root=true"], ["read as True"]),
        ([*BASE, "log_dir='~no-body/x'"], ["log_dir=~no-body/x: there is no such user"]),
        ([*BASE, "model.sgd_lr=0.5"], ["model.sgd_lr=0.5 is not used with recipe.optimizer=adam"]),
        ([*SGD, "model.lr=0.3"], ["model.lr=0.3 is not used with recipe.optimizer=sgd"]),
        ([*BASE, "model.lr=0.3", "recipe.lr=0.1"], ["model.lr=0.3 is not used", "recipe.lr=0.1"]),
        ([*BASE, "dataset.image_size=31"], ["dataset.image_size must be even", "got 31"]),
        ([*BASE, "dataset.channels=0"], ["dataset.channels must be above 0"]),
        ([*BASE, "recipe.epochs=abc"], ["recipe.epochs=abc: expected a whole number"]),
        ([*BASE, "recipe.epochs=2.5"], ["recipe.epochs=2.5: expected a whole number"]),
        ([*BASE, "alpha=half"], ["alpha=half: expected a number, got half"]),
        ([*BASE, "resume=maybe"], ["resume=maybe: expected true or false"]),
        ([*BASE, "alpha"], ["alpha"]),
        ([*BASE, "alpha=0.3"], ["layer 'conv1'", "32 filters", "0.28125 and 0.3125"]),
        ([*BASE, "alpha=0"], ["between 0 and 1"]),
        ([*BASE, "alpha=1"], ["between 0 and 1", "variant=Conv"]),
        ([*BASE, "alpha=nan"], ["between 0 and 1"]),
        (["model=base", "variant=e", "alpha=0.3"], ["layer 'conv1'"]),
        ([*BASE, "variant.rank=4"], ["variant.rank=4", "variant=LRr", "variant=Lr"]),
        (["model=base", "variant=LRr", "variant.rank=0"], ["variant.rank", "above 0"]),
        (["model=base", "variant=LRr", "variant.rank=null"], ["variant.rank", "variant=Lr"]),
        ([*BASE, "variant.init=xavier"], ["variant.init", "released, variance_preserving"]),
        (
            ["model=base", "variant=Conv", "variant.init=released"],
            ["variant.init", "L, Lr and LRr"],
        ),
        ([*BASE, "precision=fp8"], ["precision", "tf32, fp32, bf16", "fp8"]),
        ([*BASE, "device=gpu"], ["device", "auto, cpu, cuda or cuda:N", "gpu"]),
        ([*BASE, "device=cpu:1"], ["device", "cpu:1"]),
        ([*BASE, "device=mps"], ["device", "mps is not supported", "float64"]),
        ([*BASE, "runtime.execution=fused"], ["runtime.execution", "auto, generate, factored"]),
        ([*BASE, "recipe.epochs=0"], ["recipe.epochs", "above 0"]),
        ([*BASE, "recipe.batch_size=-1"], ["recipe.batch_size", "above 0"]),
        ([*BASE, "recipe.lr=0"], ["recipe.lr", "above 0"]),
        ([*BASE, "recipe.lr=inf"], ["recipe.lr", "above 0"]),
        ([*BASE, "recipe.optimizer=adamw"], ["recipe.optimizer", "adam, sgd", "adamw"]),
        ([*BASE, "recipe.momentum=0.9"], ["recipe.momentum=0.9", "recipe.optimizer=sgd"]),
        ([*BASE, "recipe.nesterov=true"], ["recipe.nesterov=true is only", "recipe.optimizer=sgd"]),
        ([*BASE, "recipe.weight_decay=5e-4"], ["recipe.weight_decay", "recipe.optimizer=sgd"]),
        ([*SGD, "recipe.nesterov=true"], ["recipe.nesterov=true needs recipe.momentum"]),
        ([*SGD, "recipe.decay_coefficients=true"], ["needs recipe.weight_decay above 0"]),
        ([*SGD, "recipe.momentum=1"], ["recipe.momentum", "below 1"]),
        ([*SGD, "recipe.weight_decay=-1"], ["recipe.weight_decay", "at least 0"]),
        ([*SGD, "recipe.weight_decay=inf"], ["recipe.weight_decay", "at least 0"]),
        ([*SGD, "model.sgd_lr=0"], ["model.sgd_lr", "above 0"]),
        ([*BASE, "recipe.label_smoothing=1"], ["recipe.label_smoothing", "below 1"]),
        ([*BASE, "recipe.label_smoothing=nan"], ["recipe.label_smoothing", "below 1"]),
        ([*BASE, "recipe.schedule=linear"], ["recipe.schedule", "step, multistep, cosine"]),
        ([*BASE, "recipe.lr_milestones=[3]"], ["recipe.lr_milestones=[3]", "schedule=multistep"]),
        ([*MULTISTEP], ["recipe.schedule=multistep needs recipe.lr_milestones"]),
        ([*MULTISTEP, "recipe.lr_milestones=[]"], ["needs recipe.lr_milestones"]),
        ([*MULTISTEP, "recipe.lr_milestones=[9,3]"], ["recipe.lr_milestones", "rising", "[9, 3]"]),
        ([*MULTISTEP, "recipe.lr_milestones=[3,3]"], ["rising", "[3, 3]"]),
        ([*MULTISTEP, "recipe.lr_milestones=[0,3]"], ["above 0", "[0, 3]"]),
        ([*MULTISTEP, "recipe.lr_milestones=[3,250]"], ["below recipe.epochs=250", "[3, 250]"]),
        (
            [*MULTISTEP, "recipe.lr_milestones=[a]"],
            ["=[a]: expected a whole number, got a"],
        ),
        ([*BASE, "recipe.lr_milestones=3"], ["lr_milestones=3: expected a list such as [1,2]"]),
        ([*BASE, "recipe.epochs=null"], ["recipe.epochs=null: expected a value"]),
        (["model=base", "variant=[Lr]"], ["variant=[Lr]: expected one of Conv, L"]),
        ([*BASE, "logger=csv"], ["logger", "tensorboard, wandb", "csv"]),
        ([*BASE, "recipe.val_fraction=1"], ["recipe.val_fraction", "below 1"]),
        ([*BASE, "regularizer.strength=0"], ["regularizer.strength", "variant=L"]),
        ([*BASE, "regularizer.every=0"], ["regularizer.every", "above 0"]),
        ([*BASE, "seed=-1"], ["seed", "at least 0"]),
        ([*BASE, "dataset.limit_train=0"], ["dataset.limit_train", "above 0"]),
        ([*BASE, "max_minutes=0"], ["max_minutes", "above 0"]),
        ([*BASE, "recipe.val_fraction=0.99999"], ["recipe.val_fraction", "no training"]),
        ([*BASE, "recipe.val_fraction=1e-9"], ["recipe.val_fraction", "no validation"]),
        ([*BASE, "dataset.limit_train=50001"], ["limit_train=50001", "50000"]),
        ([*BASE, "variant.widths=matched"], ["variant.widths=matched", "variant=e"]),
        ([*BASE, "variant.widths=x1"], ["variant.widths", "x0.5", "got x1"]),
        ([*BASE, "variant.widths=x0.50"], ["variant.widths", "got x0.50"]),
        ([*BASE, "variant.widths=half"], ["variant.widths", "model, matched", "got half"]),
        ([*BASE, "variant.widths=x0.3"], ["does not split the 19 filters of layer 'conv2'"]),
        ([*BASE, "variant.pair=true"], ["variant.pair=true", "variant=pair"]),
        ([*BASE, "regularizer.until=250"], ["regularizer.until", "below recipe.epochs=250"]),
        ([*BASE, "regularizer.until=0"], ["regularizer.until", "above 0"]),
        ([*BASE, "dataset.normalisation.std=[1]"], ["normalisation.std", "dataset.channels=3"]),
        ([*BASE, "dataset=mnist", "dataset.augmentation.train_padding=1"], ["train_padding=1"]),
        ([*BASE, "dataset=mnist", "dataset.augmentation.test_padding=0"], ["must be 2"]),
        ([*BASE, "dataset.image_size=64"], ["dataset.image_size", "from 1 to 32"]),
        (["model=vgg11_octconv", "variant=Lr"], ["only as variant=Conv:"]),
        (["model=vgg11_basis", "variant=r"], ["only as variant=Conv:"]),
        (["model=resnext29", "variant=pair"], ["no variant=pair", "groups of layer"]),
        (["model=mobilenetv2", "variant=e"], ["no variant=e", "3,923,434", "2,296,922"]),
    ],
)
def test_train_mistakes(overrides, words):
    with pytest.raises(UserError) as error:
        compose(overrides)
    for word in words:
        assert word in str(error.value)
    assert "object_type" not in str(error.value)  # nothing of the libraries' internals
    assert "To append" not in str(error.value)  # nothing would read what was added


@pytest.mark.parametrize(
    ("path", "content", "words"),
    [
        ("model/own.yaml", "name: own\nlr: abc\n", "model.lr: expected a number, got abc"),
        ("model/own.yaml", "name: own\nlrr: 1\n", "model.lrr: there is no such key"),
        ("model/own.yaml", "- own\n", "expected lines of key: value"),
        ("recipe/own.yaml", "epochs: three\n", "recipe.epochs: expected a whole number"),
        ("recipe/own.yaml", "defaults:\n- papre\n", "Could not load 'recipe/papre'"),
        ("dataset/own.yaml", "name: own\nclasses: ten\n", "dataset.classes: expected a whole"),
    ],
)
def test_mistakes_in_a_file_of_ones_own_name_it(path, content, words, tmp_path, monkeypatch):
    shutil.copytree(CONFIG_DIR, tmp_path / "configs")
    (tmp_path / "configs" / path).write_text(content)
    for module in ("configs.compose", "configs.groups"):
        monkeypatch.setattr(sys.modules[module], "CONFIG_DIR", tmp_path / "configs")
    group = path.partition("/")[0]
    with pytest.raises(UserError) as error:
        compose([*("model=base", "variant=Lr")[group == "model" :], f"{group}=own"])
    assert str(error.value).startswith(f"configs/{path}: {words}")


def test_a_device_must_be_there_where_it_is_to_train_alone():
    config = compose([*BASE, "device=cuda:99"])  # on a cluster's login node, say
    with pytest.raises(UserError, match=r"cuda:99 is not available: torch can use \d+ CUDA device"):
        check_ready(config)


def test_the_key_of_wandb_is_asked_for_once_before_the_first_job(monkeypatch):
    calls = []

    class Wandb(ModuleType):
        Error = type("Error", (Exception,), {})

        def login(self, **options):
            calls.append(options)
            raise self.Error("No API key configured.\nMore.")

    wandb = Wandb("wandb")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(checks, "find_spec", lambda name: ModuleSpec(name, None, origin="here"))
    checks._wandb_problem.cache_clear()
    for seed in range(3):
        with pytest.raises(UserError, match=r"key \(No API key configured.\): run `wandb login`"):
            check_ready(compose([*BASE, "logger=wandb", f"seed={seed}"]))
    assert len(calls) == 1
    checks._wandb_problem.cache_clear()


@pytest.mark.parametrize("found", [None, ModuleSpec("wandb", None)], ids=["none", "a folder"])
def test_wandb_must_be_installed_where_it_is_to_log(found, monkeypatch):
    monkeypatch.setattr(checks, "find_spec", {"wandb": found}.get)
    checks._wandb_problem.cache_clear()
    check_ready(compose(BASE))
    with pytest.raises(UserError, match=r"logger=wandb needs the package wandb: pip install"):
        check_ready(compose([*BASE, "logger=wandb"]))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], ["run=<run_id> or checkpoint=<path>"]),
        (["run=a", "checkpoint=b"], ["either run=<run_id> or checkpoint=<path>"]),
        (["run=a", "weights=final"], ["weights", "best, last"]),
        (["run=a", "batch_size=0"], ["batch_size"]),
        (["run=a", "device=tpu"], ["device"]),
    ],
)
def test_eval_mistakes(overrides, words):
    with pytest.raises(UserError) as error:
        compose(overrides, "eval")
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "dataset", ["cifar10", "cifar100", "svhn", "mnist", "fashion_mnist", "digits"]
)
def test_every_dataset_composes(dataset):
    config = compose(["model=base", "variant=LRr", f"dataset={dataset}"])
    assert (config.model.name, config.variant.name) == ("base", "LRr")
    assert config.dataset.name == dataset


def test_defaults_are_the_papers():
    config = compose(["model=vgg11", "variant=LRr"])
    assert config.dataset.name == "cifar10" and config.seed == 0 and config.alpha == 0.5
    assert (config.recipe.epochs, config.recipe.batch_size) == (250, 64)
    assert (config.recipe.lr_decay_every, config.recipe.lr_decay_factor) == (100, 0.1)
    assert (config.regularizer.strength, config.regularizer.every) == (0.01, 10)
    assert config.variant.rank == 10 and config.model.lr in (1e-3, 1e-4)


def test_a_model_s_own_rate_may_be_changed_where_it_is_used():
    assert compose([*BASE, "model.lr=0.3"]).model.lr == 0.3
    assert compose([*SGD, "model.sgd_lr=0.5"]).model.sgd_lr == 0.5


def test_paths_are_taken_as_they_are_written():
    config = compose([*BASE, "results_dir='~/runs'", "checkpoint_dir=./2024_11", "log_dir='1.50'"])
    assert config.results_dir == str(Path.home() / "runs")
    assert (config.checkpoint_dir, config.log_dir) == ("./2024_11", "1.50")
    config = compose(["checkpoint='~/best.pt'", "dataset.root='~/data'"], "eval")
    assert config.checkpoint == str(Path.home() / "best.pt")
    assert config.dataset.root == str(Path.home() / "data")


def test_the_data_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("LINEARCONV_DATA", "/elsewhere")
    assert compose(BASE).dataset.root == "/elsewhere"
    monkeypatch.setenv("LINEARCONV_DATA", "")
    assert compose(BASE).dataset.root == "datasets"
    monkeypatch.delenv("LINEARCONV_DATA")
    assert compose(BASE).dataset.root == "datasets"
