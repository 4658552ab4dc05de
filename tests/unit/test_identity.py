"""Which keys make another run, and what the run is called."""

import json
import re

import pytest

from configs import compose, identify, naming, run_id
from configs.identity import identity_hash
from configs.naming import LONGEST, differences, recipe_name, variant_name
from linearconv.engine.digests import canonical_json
from linearconv.errors import UserError
from tests.conftest import REPOSITORY

LRR = ["model=vgg11", "variant=LRr"]


def identity(*overrides: str, base: list[str] = LRR) -> str:
    return run_id(identify(compose([*base, *overrides])))


CHANGING = [
    "dataset=cifar100",
    "model=base",
    "variant=Lr",
    "alpha=0.25",
    "seed=1",
    "precision=fp32",
    "variant.rank=9",
    "variant.init=variance_preserving",
    "recipe=short",
    "recipe.epochs=3",
    "recipe.batch_size=50",
    "recipe.lr=3e-4",
    "recipe.lr_decay_every=99",
    "recipe.lr_decay_factor=0.2",
    "recipe.val_fraction=0.1",
    "recipe.optimizer=sgd",
    "recipe=modern",
    "recipe.label_smoothing=0.1",
    "recipe.schedule=cosine",
    "recipe.schedule=multistep recipe.lr_milestones=[3]",
    "recipe.schedule=multistep recipe.lr_milestones=[4]",
    "recipe=modern recipe.momentum=0.8",
    "recipe=modern recipe.nesterov=false",
    "recipe=modern recipe.weight_decay=1e-4",
    "recipe=modern recipe.decay_coefficients=true",
    "regularizer.strength=0.1",
    "regularizer.every=1",
    "regularizer.centered=true",
    "regularizer.until=100",
    "variant=pair",
    "variant.widths=x0.5",
    "variant=Conv variant.widths=x0.5",
    "dataset.limit_train=100",
    "dataset.limit_test=100",
    "dataset.digest=0000",
    "dataset.classes=20",
    "dataset.revision=2",
    "dataset.augmentation.flip=false",
    "dataset.augmentation.train_padding=2",
    "dataset.normalisation.std=[0.2,0.2,0.2]",
    "model.revision=2",
    "variant.revision=2",
    "recipe.optimizer=sgd model.sgd_lr=0.5",
]
KEEPING = [
    "runtime=reference",
    "runtime.execution=factored",
    "runtime.channels_last=false",
    "runtime.fold_batch_norms=false",
    "runtime.count_per_epoch=false",
    "runtime.cudnn_benchmark=true",
    "runtime.deterministic=true",
    "runtime.pool_before_relu=false",
    "runtime.small_image_products=false",
    "runtime.keep_memory=false",
    "runtime.save_every_s=3",
    "runtime.cuda_graphs=false",
    "runtime.eval_batch_size=17",
    "runtime.threads=1",
    "device=cpu",
    "resume=false",
    "overwrite=true",
    "max_minutes=5",
    "image_every=3",
    "logger=wandb",
    "results_dir=a",
    "checkpoint_dir=b",
    "log_dir=c",
    "dataset.root=d",
    "dataset.strict=true",
    "recipe.lr=1e-3",  # the model's own learning rate, written out
    "alpha=0.50",
    "recipe=paper",
    "recipe.momentum=0.0",  # the values of keys that older records lack
    "recipe.nesterov=false",
    "recipe.weight_decay=0",
    "recipe.decay_coefficients=false",
    "recipe.schedule=step",
    "recipe.lr_milestones=null",
    "recipe.label_smoothing=0",
    "regularizer.until=null",
    "variant.widths=model",
]


def test_keys_that_change_the_identity():
    names = [identity(), *(identity(*overrides.split()) for overrides in CHANGING)]
    assert len({name.rsplit("-", 1)[1] for name in names}) == len(CHANGING) + 1


@pytest.mark.parametrize("override", KEEPING)
def test_keys_that_do_not(override):
    assert identity(override) == identity()


def test_switches_that_captured_steps_need():
    for override in ("runtime.data=per_sample", "runtime.fused_optimizer=false"):
        with pytest.raises(UserError, match="runtime.cuda_graphs=true needs"):
            compose([*LRR, override])
        assert identity(override, "runtime.cuda_graphs=false") == identity()


def test_every_key_of_the_schema_is_in_one_of_the_lists():
    """A key added later must be placed knowingly."""
    from dataclasses import fields, is_dataclass

    def leaves(value: object, prefix: str = "") -> list[str]:
        names = []
        for f in fields(value):
            child = getattr(value, f.name)
            name = prefix + f.name
            names += leaves(child, name + ".") if is_dataclass(child) else [name]
        return names

    overrides = [one for several in CHANGING + KEEPING for one in several.split()]
    tested = {override.partition("=")[0] for override in overrides}
    described = {  # decided by the choice of a group, which is in the lists
        "model.name",
        "model.lr",
        "variant.name",
        "variant.linear",
        "variant.regularized",
        "variant.pair",
        "runtime.name",
        "runtime.data",  # these two in a test of their own: cuda_graphs needs them
        "runtime.fused_optimizer",
        "dataset.name",
        "dataset.official_md5",
        "dataset.own",
        "dataset.path",  # where the file is, not what is in it
        "dataset.channels",
        "dataset.image_size",
        "dataset.train_size",
        "dataset.test_size",
        "dataset.normalisation.mean",
        "dataset.augmentation.test_padding",
        "baseline_checkpoint",
    }
    tested.discard("runtime")
    assert set(leaves(compose(LRR))) == (tested | described) - {
        "dataset",
        "model",
        "variant",
        "recipe",
    }


def test_what_does_not_apply_does_not_count():
    conv = ["model=vgg11", "variant=Conv"]
    for override in ("alpha=0.25", "regularizer.strength=0.5", "regularizer.every=3"):
        assert identity(override, base=conv) == identity(base=conv)
    assert identity("regularizer.strength=0.5", base=["model=base", "variant=L"]) == identity(
        base=["model=base", "variant=L"]
    )
    spared = ["recipe=modern", "recipe.decay_coefficients=true"]  # there are no coefficients
    assert identity(*spared, base=conv) == identity("recipe=modern", base=conv)
    cosine, multistep = ["recipe=modern"], ["recipe.schedule=multistep", "recipe.lr_milestones=[9]"]
    assert identity("recipe.lr_decay_every=3", *cosine) == identity(*cosine)
    assert identity("recipe.lr_decay_factor=0.3", *cosine) == identity(*cosine)
    assert identity("recipe.lr_decay_every=3", *multistep) == identity(*multistep)
    assert identity("recipe.lr_decay_factor=0.3", *multistep) != identity(*multistep)
    matched = ["model=vgg11", "variant=e"]  # its widths follow from alpha
    assert identity("alpha=0.25", base=matched) != identity(base=matched)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "cifar10-vgg11-LRr-s0"),
        (["alpha=0.125"], "cifar10-vgg11-LRr-a0.125-s0"),
        (["recipe=short", "seed=3"], "cifar10-vgg11-LRr-short-s3"),
        (["recipe.epochs=30", "recipe.lr_decay_every=12"], "cifar10-vgg11-LRr-short-s0"),
        (["recipe=released"], "cifar10-vgg11-LRr-released-s0"),
        (["recipe=released", "variant=Conv"], "cifar10-vgg11-Conv-released-s0"),
        (["recipe.epochs=251"], "cifar10-vgg11-LRr-e251-s0"),
        (["recipe=short", "recipe.epochs=31"], "cifar10-vgg11-LRr-short-e31-s0"),
        (["regularizer.every=9"], "cifar10-vgg11-LRr-every9-s0"),
        (
            ["recipe=released", "regularizer.centered=false"],
            "cifar10-vgg11-LRr-released-no_pearson-s0",
        ),
        (["recipe=short", "regularizer.centered=true"], "cifar10-vgg11-LRr-short-pearson-s0"),
        (["dataset.augmentation.flip=false"], "cifar10-vgg11-LRr-augmentation-s0"),
        (["recipe.lr=1e-4"], "cifar10-vgg11-LRr-lr0.0001-s0"),
        (["model.lr=3e-5"], "cifar10-vgg11-LRr-lr3e-05-s0"),
        (["recipe.val_fraction=0.1"], "cifar10-vgg11-LRr-val0.1-s0"),
        (
            ["variant.rank=7", "recipe=short", "recipe.lr=3e-3"],
            "cifar10-vgg11-LRr-short-r7-lr0.003-s0",
        ),
        (["variant.init=variance_preserving"], "cifar10-vgg11-LRr-variance_preserving-s0"),
        (["dataset.limit_train=5000", "precision=bf16"], "cifar10-vgg11-LRr-bf16-train5000-s0"),
        (["recipe=modern"], "cifar10-vgg11-LRr-modern-s0"),
        (["recipe=modern", "variant=Conv"], "cifar10-vgg11-Conv-modern-s0"),
        (["recipe=modern", "model=allconv"], "cifar10-allconv-LRr-modern-s0"),
        (["recipe=modern", "recipe.weight_decay=0"], "cifar10-vgg11-LRr-modern-wd0-s0"),
        (["dataset=svhn", "model=base", "variant=e"], "svhn-base-e-s0"),
        (["variant=Conv", "alpha=0.25", "regularizer.every=9"], "cifar10-vgg11-Conv-s0"),
        (["variant=e", "alpha=0.25"], "cifar10-vgg11-e-a0.25-s0"),
        (["dataset=digits", "recipe=demo"], "digits-vgg11-LRr-demo-s0"),
    ],
)
def test_names(overrides, name):
    found = identity(*overrides)
    assert re.fullmatch(re.escape(name) + "-[0-9a-f]{8}", found), found


@pytest.mark.parametrize("name", ["Conv", "r", "e", "L", "Lr", "LRr"])
def test_variants_are_named_by_what_they_resolve_to(name):
    config = compose(["model=base", f"variant={name}"])
    assert variant_name(identify(config)["variant"]) == name
    without = compose(["model=base", "variant=Lr", "variant.regularized=false"])
    assert variant_name(identify(without)["variant"]) == "L"


def test_everything_that_changes_the_recipe_is_in_the_name():
    plain = identify(compose(LRR))
    for key, value in plain["recipe"].items():
        changed = plain | {"recipe": plain["recipe"] | {key: f"not {value}"}}
        assert list(differences(changed)) == [key] and recipe_name(changed) == "custom"
        assert run_id(changed).rsplit("-s0-")[0] != run_id(plain).rsplit("-s0-")[0]


def test_a_tie_goes_to_the_paper_and_the_nearest_recipe_is_named():
    assert identity("recipe.epochs=29", "recipe.lr_decay_every=12").split("-")[3:5] == [
        "short",
        "e29",
    ]
    assert "-e12-s0-" in identity("recipe.epochs=12")  # demo has other decays, too


def test_a_recipe_that_differs_in_the_loss_alone_names_only_runs_with_the_loss(monkeypatch):
    """Somebody's own, whose name sorts before that of the project's."""
    names, preset = naming.group_names, naming._recipe_preset

    def with_gentle(name):
        if name != "gentle":
            return preset(name)
        short = preset("short")
        return short | {"regularizer": short["regularizer"] | {"strength": 1e-3}}

    short, conv = ["model=base", "recipe=short"], "variant=Conv"
    before = run_id(identify(compose([*short, conv])))
    monkeypatch.setattr(naming, "_recipe_preset", with_gentle)
    monkeypatch.setattr(
        naming, "group_names", lambda group: [*names(group), *["gentle"] * (group == "recipe")]
    )
    assert run_id(identify(compose([*short, conv]))) == before
    gentle = identify(compose([*short, "variant=Lr", "regularizer.strength=1e-3"]))
    assert "-gentle-s0-" in run_id(gentle)


def test_a_recipe_that_says_little_breaks_no_names(monkeypatch):
    preset = naming._recipe_preset
    monkeypatch.setattr(
        naming, "_recipe_preset", lambda name: {} if name == "demo" else preset(name)
    )
    assert "-short-s0-" in run_id(identify(compose(["model=base", "variant=Lr", "recipe=short"])))


def test_of_a_baseline_the_hash_counts():
    config = compose(["model=vgg11_basis", "variant=Conv"])
    words = ("cifar10-vgg11-Conv-short-s0-ca5caa0e", "cifar10-vgg11-Plain-s0-ca5caa0e")
    assert [identify(config, baseline=name)["baseline"] for name in words] == ["ca5caa0e"] * 2


def test_a_limit_to_all_images_is_none():
    limited = ["dataset.limit_train=50000", "dataset.limit_test=10000"]
    assert identify(compose([*LRR, *limited])) == identify(compose(LRR))


def test_name_and_hash_come_from_the_identity_alone():
    computed = identify(compose(LRR))
    again = {key: computed[key] for key in reversed(computed)}
    assert run_id(again) == run_id(computed)
    assert recipe_name(computed) == "paper"


def test_the_digest_of_the_data_at_hand_counts():
    config = compose(LRR)
    pinned = config.dataset.digest
    assert run_id(identify(config, digest=pinned)) == run_id(identify(config))
    assert run_id(identify(config, digest="f" * 64)) != run_id(identify(config))


def test_pinned_identities():
    """Committed records are found by these; a change here voids them all."""
    assert identity_hash({"b": 1, "a": [None, 0.1]}) == identity_hash({"a": [None, 0.1], "b": 1})
    assert canonical_json({"b": 1, "a": [None, 0.1]}) == '{"a":[null,0.1],"b":1}'
    assert identity() == PINNED["LRr"]
    assert identity(base=["model=base", "variant=Conv", "recipe=short"]) == PINNED["Conv"]


def test_committed_records_are_found_by_the_commands_that_wrote_them():
    paths = set((REPOSITORY / "results").glob("**/runs/*.json"))
    paths -= set((REPOSITORY / "results/trials").glob("runs/*"))  # not committed: anybody's runs
    assert len(paths) > 20
    for path in paths:
        record = json.loads(path.read_text())
        overrides = record["provenance"][0]["overrides"]
        config = compose([o for o in overrides if not o.startswith("runtime.")])
        baseline = record["science"]["baseline"] and f"baseline-{record['science']['baseline']}"
        assert identify(config, baseline=baseline) == record["science"], path


def test_the_learning_rate_is_the_models_own_for_the_optimizer():
    for overrides, lr in (
        (["model=allconv", "recipe=modern"], 0.01),
        (["model=resnet18", "recipe=modern"], 0.1),
        (["model=resnet18", "recipe.optimizer=sgd"], 0.1),
        (["model=resnet18", "recipe=modern", "recipe.lr=0.3"], 0.3),
        (["model=allconv"], 1e-4),
    ):
        assert identify(compose(["variant=Lr", *overrides]))["recipe"]["lr"] == lr


def test_no_nan_in_an_identity():
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("nan")})


def test_a_config_is_refused_before_it_is_hashed():
    with pytest.raises(UserError, match="variant.rank=10 is only valid for variant=LRr"):
        identity("variant=Lr", "variant.rank=10")


PINNED = {
    "LRr": "cifar10-vgg11-LRr-s0-49d4f554",
    "Conv": "cifar10-base-Conv-short-s0-30ed4ded",
}


def test_names_have_a_bound_and_keep_the_hash():
    overrides = ["recipe.lr_milestones=[" + ",".join(map(str, range(1, 60))) + "]"]
    overrides += ["recipe.schedule=multistep", "recipe.optimizer=sgd", "recipe.momentum=0.123456"]
    names = [identity(*overrides), identity(*overrides, "recipe.label_smoothing=0.1")]
    assert len(set(names)) == 2 and {len(name) for name in names} <= set(range(100, LONGEST + 1))
    for name in names:
        assert name.startswith("cifar10-vgg11-LRr-") and name.split("-")[-2] == "s0"
