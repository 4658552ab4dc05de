"""The types of every key that a user can set, and the checks on their values."""

from __future__ import annotations

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from data.spec import DatasetSpec


@dataclass
class DatasetConfig(DatasetSpec):
    """A dataset, where it lies and how much of it to use.

    Attributes:
        root: the folder of packed datasets; the environment variable LINEARCONV_DATA moves it.
        limit_train: train on the first so many images alone; for trying things out.
        limit_test: test on the first so many images alone.
    """

    root: str = "${oc.env:LINEARCONV_DATA,datasets}"
    limit_train: int | None = None
    limit_test: int | None = None


@dataclass
class ModelConfig:
    """An architecture.

    Attributes:
        name: a registered model.
        revision: bumped when the model's meaning changes, which voids its older records.
        lr: its learning rate where the recipe gives none.
    """

    name: str = MISSING
    revision: int = MISSING
    lr: float = MISSING


@dataclass
class VariantConfig:
    """What takes the place of the convolutions; see `models.Variant`.

    Attributes:
        name: the variant chosen; what it does is in the other fields.
        revision: bumped when the variant's meaning changes, which voids its older records.
        linear: LinearConv layers instead of plain convolutions.
        regularized: with the correlation loss.
        rank: rank of A = A1 A2; null for a full A.
        init: initialisation of LinearConv layers: released, variance_preserving.
        widths: model (the architecture's) or matched (the -Lr model's parameters).
    """

    name: str = MISSING
    revision: int = MISSING
    linear: bool = False
    regularized: bool = False
    rank: int | None = None
    init: str | None = None
    widths: str = "model"


@dataclass
class RecipeConfig:
    """How it is trained; configs/recipe/paper.yaml says what each value means."""

    epochs: int = MISSING
    batch_size: int = MISSING
    optimizer: str = MISSING
    lr: float | None = None
    lr_decay_every: int = MISSING
    lr_decay_factor: float = MISSING
    val_fraction: float = 0.0


@dataclass
class RegularizerConfig:
    """The correlation loss; configs/recipe/paper.yaml says what each value means."""

    strength: float = MISSING
    every: int = MISSING
    centered: bool = False


@dataclass
class RuntimeConfig:
    """How fast it is computed, not what; configs/runtime/*.yaml say what each value means."""

    name: str = MISSING
    data: str = MISSING
    execution: str = MISSING
    channels_last: bool = MISSING
    fused_adam: bool = MISSING
    cuda_graphs: bool = MISSING
    fold_batch_norms: bool = MISSING
    pool_before_relu: bool = MISSING
    pool_before_norm: bool = MISSING
    small_image_products: bool = MISSING
    keep_memory: bool = MISSING
    save_every_s: float = MISSING
    eval_batch_size: int = MISSING
    threads: int | None = None


@dataclass
class TrainConfig:
    """Everything that train.py takes.

    Attributes:
        alpha: share of primary filters in LinearConv layers.
        seed: of the initial weights and of the data's order, crops and flips.
        precision: tf32 (convolutions may use TF32), fp32 or bf16 (autocast).
        device: auto, cpu, cuda or cuda:N.
        resume: continue an interrupted run from its last checkpoint; false starts it over.
        overwrite: run a finished run again; its record is replaced when the new one is complete.
            Interrupted, this too is continued by the same command.
        baseline_checkpoint: best.pt of the trained network that a model starts from (vgg11_basis).
        max_minutes: stop at an epoch's end before the process has run so long; null: no limit.
        image_every: epochs between two sets of images in the TensorBoard log.
        results_dir: where the record goes: <results_dir>/runs/<run_id>.json.
        checkpoint_dir: where the checkpoints go: <checkpoint_dir>/<run_id>/.
        log_dir: where the TensorBoard log goes: <log_dir>/<run_id>/.
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
    results_dir: str = "results"
    checkpoint_dir: str = "checkpoints"
    log_dir: str = "logs"


@dataclass
class EvalDatasetConfig:
    """Where the dataset lies; which one it is, the checkpoint says."""

    root: str = "${oc.env:LINEARCONV_DATA,datasets}"


@dataclass
class EvalConfig:
    """Everything that eval.py takes.

    Attributes:
        run: a run_id, looked up in checkpoint_dir.
        checkpoint: instead of run, the path of a checkpoint.
        weights: best (by the run's selection) or last; of a run.
        device: auto, cpu, cuda or cuda:N.
        batch_size: images in a batch.
        checkpoint_dir: where the runs' checkpoints lie.
        dataset.root: where the dataset lies; datasets, or LINEARCONV_DATA, by default.
    """

    run: str | None = None
    checkpoint: str | None = None
    weights: str = "best"
    device: str = "auto"
    batch_size: int = 256
    checkpoint_dir: str = "checkpoints"
    dataset: EvalDatasetConfig = field(default_factory=EvalDatasetConfig)


def register_schemas() -> None:
    """Make the schemas known to Hydra; train.yaml and eval.yaml name them."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="eval_schema", node=EvalConfig)
