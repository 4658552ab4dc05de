"""Every config key, with its type and default."""

from __future__ import annotations

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from data.spec import DatasetSpec
from linearconv.engine.fast.runtime import Runtime

PATH_KEYS = (
    "results_dir",
    "checkpoint_dir",
    "log_dir",
    "checkpoint",
    "dataset.root",
    "dataset.path",
    "baseline_checkpoint",
)
"""Keys whose values are paths, which may be quoted."""


@dataclass
class DatasetConfig(DatasetSpec):
    """A dataset, the folder of its file and how much of it to use.

    Attributes:
        root: the folder of packed datasets; default: $LINEARCONV_DATA, else datasets.
        limit_train: train on the first N images only; for quick tests.
        limit_test: test on the first N images only.
        strict: of images of your own: refuse test images that are training images, too, instead of
            warning.
    """

    root: str = "${oc.env:LINEARCONV_DATA,${checkout:datasets}}"
    limit_train: int | None = None
    limit_test: int | None = None
    strict: bool = False


@dataclass
class ModelConfig:
    """An architecture.

    Attributes:
        name: a registered model.
        revision: bumped when the model changes, which invalidates its older records.
        lr: its learning rate with Adam if the recipe sets none.
        sgd_lr: the same with SGD.
    """

    name: str = MISSING
    revision: int = MISSING
    lr: float = MISSING
    sgd_lr: float = 0.01


@dataclass
class VariantConfig:
    """What replaces the convolutions; see `models.Variant`.

    Attributes:
        name: name of the variant; the other fields define it.
        revision: bumped when the variant changes, which invalidates its older records.
        linear: LinearConv layers instead of plain convolutions.
        regularized: with the correlation loss.
        rank: rank of A = A1 A2; null for a full A.
        init: initialisation of LinearConv layers: released, variance_preserving.
        widths: model (the architecture's), x0.5 and the like (all of them times that), matched
            (narrower, with the parameters of Lr, as variant e).
        pair: in each layer P filters, then a 1x1 convolution onto all F.
    """

    name: str = MISSING
    revision: int = MISSING
    linear: bool = False
    regularized: bool = False
    rank: int | None = None
    init: str | None = None
    widths: str = "model"
    pair: bool = False


@dataclass
class RecipeConfig:
    """The training recipe; configs/recipe/paper.yaml documents the values without a comment.

    Attributes:
        optimizer: adam or sgd.
        momentum: of sgd.
        nesterov: of sgd: Nesterov's momentum instead of the classical one.
        weight_decay: of sgd: this multiple of a weight is added to its gradient.
        decay_coefficients: the weight decay is also of the coefficients of LinearConv layers.
        schedule: step (a decay every lr_decay_every epochs), multistep (one at each of
            lr_milestones) or cosine (from lr towards 0, without lr_decay_factor).
        lr_milestones: the epochs after which the schedule multistep decays the learning rate.
        label_smoothing: share of the training labels that is spread evenly over all classes.
    """

    epochs: int = MISSING
    batch_size: int = MISSING
    optimizer: str = MISSING
    lr: float | None = None
    lr_decay_every: int = MISSING
    lr_decay_factor: float = MISSING
    val_fraction: float = 0.0
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_coefficients: bool = False
    schedule: str = "step"
    lr_milestones: list[int] | None = None
    label_smoothing: float = 0.0


@dataclass
class RegularizerConfig:
    """The correlation loss; configs/recipe/paper.yaml documents the values without a comment.

    Attributes:
        until: add it in the first epochs only, as many as this; null: in all.
    """

    strength: float = MISSING
    every: int = MISSING
    centered: bool = False
    until: int | None = None


@dataclass
class RuntimeConfig(Runtime):
    """How training is executed, not what it computes; configs/runtime/fast.yaml has the details.

    Attributes:
        name: name of the preset.
        data: how batches are built; see `data.DATA`.
        execution: how LinearConv layers compute; see `linearconv.LinearConv2d`.
        eval_batch_size: images per evaluation batch; null: 256 on a CPU, 512 on CUDA.
        threads: CPU threads; null: torch's default.
    """

    name: str = MISSING
    data: str = MISSING
    execution: str = MISSING
    eval_batch_size: int | None = None
    threads: int | None = None


@dataclass
class TrainConfig:
    """The config of train.py.

    Attributes:
        alpha: share of primary filters in LinearConv layers.
        seed: seeds the initial weights and the order, crops and flips of the data.
        precision: tf32 (convolutions may use TF32), fp32 or bf16 (autocast).
        device: auto, cpu, cuda or cuda:N.
        resume: continue an interrupted run from its last checkpoint; false starts over.
        overwrite: rerun a finished run; its record is replaced when the rerun is complete. An
            interrupted rerun is continued by the same command.
        baseline_checkpoint: checkpoint or published weights of the trained network that a run
            starts from. For vgg11_basis: the best ones. For all other models: the last ones of the
            same model with variant=Conv, whose convolutions are converted on 512 training images.
        max_minutes: stop at an epoch end, before the process has run this long; null: no limit.
        image_every: epochs between image summaries in the TensorBoard log.
        logger: tensorboard, or wandb: Weights & Biases too, which copies the TensorBoard log.
        results_dir: the record is <results_dir>/runs/<run_id>.json; default: results for a run of
            the tables with a recipe of configs/recipe unchanged, results/trials for any other.
        checkpoint_dir: the checkpoints are in <checkpoint_dir>/<run_id>/.
        log_dir: the TensorBoard log is in <log_dir>/<run_id>/.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    variant: VariantConfig = field(default_factory=VariantConfig)
    dataset: DatasetConfig = MISSING
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    regularizer: RegularizerConfig = field(default_factory=RegularizerConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    alpha: float = 0.5
    seed: int = 0
    precision: str = "tf32"
    device: str = "auto"
    resume: bool = True
    overwrite: bool = False
    baseline_checkpoint: str | None = None
    max_minutes: float | None = None
    image_every: int = 10
    logger: str = "tensorboard"
    results_dir: str | None = None
    checkpoint_dir: str = "${checkout:checkpoints}"
    log_dir: str = "${checkout:logs}"


@dataclass
class EvalDatasetConfig:
    """Where the dataset is; the checkpoint determines which dataset it is."""

    root: str = "${oc.env:LINEARCONV_DATA,${checkout:datasets}}"
    path: str | None = None


@dataclass
class EvalRuntimeConfig:
    """How the network is executed."""

    threads: int | None = None


@dataclass
class EvalConfig:
    """The config of eval.py.

    Attributes:
        run: a run_id, looked up in checkpoint_dir and then in results_dir.
        checkpoint: path of a checkpoint or of published weights, instead of run.
        weights: best (as selected in training) or last; a checkpoint has only one of them.
        device: auto, cpu, cuda or cuda:N.
        batch_size: images per batch.
        runtime.threads: CPU threads; default: torch's.
        checkpoint_dir: the checkpoints of a run are in <checkpoint_dir>/<run_id>/.
        results_dir: published weights are in <results_dir>/weights/<run_id>.safetensors; default:
            results, then results/trials.
        dataset.root: the folder of packed datasets; default: $LINEARCONV_DATA, else datasets.
        dataset.path: the dataset's file, if it is not <name>.npz in that folder.
    """

    run: str | None = None
    checkpoint: str | None = None
    weights: str = "best"
    device: str = "auto"
    batch_size: int = 256
    checkpoint_dir: str = "${checkout:checkpoints}"
    results_dir: str | None = None
    runtime: EvalRuntimeConfig = field(default_factory=EvalRuntimeConfig)
    dataset: EvalDatasetConfig = field(default_factory=EvalDatasetConfig)


def register_schemas() -> None:
    """Register the schemas that train.yaml and eval.yaml use."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="eval_schema", node=EvalConfig)
