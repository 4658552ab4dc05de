"""The studies of configs/studies.yaml: a few networks each, some compared with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import OmegaConf

from configs import compose
from configs.groups import CONFIG_DIR
from linearconv.errors import UserError
from scripts.evidence.claims_text import epochs_of
from scripts.evidence.formats import markdown_grid
from scripts.evidence.judging import ENOUGH
from scripts.evidence.results import METRICS, Record, records_of, test_accuracy, trained_on
from scripts.evidence.statistics import Noise, difference, pooled_noise
from scripts.evidence.text import Grid, mean_text

SETTING = "model=base dataset=cifar10"
"""Of studies that name no other."""
VALIDATION = "val_acc_last"
"""The metric of studies whose choice must not be made on test images."""
SEEDS = (0, 1, 2)
"""What `Arm.command` trains; all seeds that there are count."""


@dataclass(frozen=True)
class Arm:
    """One network of a study.

    Attributes:
        name: in short.
        recipe: that it is trained with.
        run: the other overrides for train.py, with those of the study's setting.
        against: name of the arm that it is compared with; empty for none.
    """

    name: str
    recipe: str
    run: tuple[str, ...]
    against: str = ""

    @property
    def overrides(self) -> tuple[str, ...]:
        """For train.py, without the seed."""
        return (f"recipe={self.recipe}", *self.run)

    @property
    def command(self) -> str:
        """The command that trains it; runs of the paper's recipe go to the tables' records."""
        seeds = ",".join(map(str, SEEDS))
        where = () if self.recipe == "paper" else ("results_dir=results/studies",)
        return " ".join(("python train.py -m", *self.overrides, f"seed={seeds}", *where))


@dataclass(frozen=True)
class Study:
    """One question.

    Attributes:
        name: in short.
        question: why it is asked.
        recipe: that the arms are trained with, if they name no other.
        arms: what is trained.
        setting: overrides of all arms.
        metric: what is compared: settled, or `VALIDATION`.
    """

    name: str
    question: str
    recipe: str
    arms: list[Arm]
    setting: str = SETTING
    metric: str = METRICS[0]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The accuracies that are shown."""
        return (VALIDATION,) if self.metric == VALIDATION else METRICS


def read_studies() -> list[Study]:
    """The studies of configs/studies.yaml.

    Raises:
        UserError: a key that no study has, one that is missing, or an arm against none of them.
    """
    entries = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "studies.yaml"))
    studies = []
    for entry in entries:
        try:
            studies.append(_study(**entry))
        except TypeError as error:
            raise UserError(f"configs/studies.yaml: {entry.get('name')}: {error}") from None
    return studies


def _study(
    *,
    name: str,
    question: str,
    arms: list[dict[str, str]],
    recipe: str = "medium",
    setting: str = SETTING,
    metric: str = METRICS[0],
) -> Study:
    if metric not in (METRICS[0], VALIDATION):
        known = f"expected {METRICS[0]} or {VALIDATION}"
        raise UserError(f"configs/studies.yaml: {name}: metric {metric!r}; {known}")
    found = [_arm(**{"recipe": recipe, "setting": setting} | arm) for arm in arms]
    names = {arm.name for arm in found}
    for arm in found:
        for word in arm.run:
            if word.startswith("baseline_checkpoint=") and not word.endswith(".safetensors"):
                raise UserError(
                    f"configs/studies.yaml: {name}: {word}; expected published weights, "
                    "results/weights/<run_id>.safetensors, whose name is that of their run"
                )
        if arm.against and arm.against not in names:
            raise UserError(
                f"configs/studies.yaml: {name}: {arm.name} is against {arm.against!r}; expected "
                f"one of {', '.join(sorted(names))}"
            )
    return Study(name, question, recipe, found, setting, metric)


def _arm(*, name: str, recipe: str, setting: str, run: str, against: str = "") -> Arm:
    return Arm(name, recipe, (*setting.split(), *run.split()), against)


@dataclass(frozen=True)
class Outcome:
    """A study with the records of each arm by its name, sorted by seed."""

    study: Study
    runs: dict[str, list[Record]]

    def accuracies(self, arm: str, metric: str) -> list[float]:
        """One for each seed, in percent."""
        runs = self.runs[arm]
        if metric == VALIDATION:
            return [record[VALIDATION] for record in runs]
        return [test_accuracy(record, metric) for record in runs]

    @property
    def missing(self) -> list[str]:
        """The commands of the arms that lack seeds."""
        arms = self.study.arms
        return [arm.command for arm in arms if len(self.runs[arm.name]) < len(SEEDS)]


def outcomes(studies: Sequence[Study], records: Sequence[Record]) -> list[Outcome]:
    """What the records say of each study.

    Args:
        studies: see `read_studies`.
        records: of the studies and of the tables.
    """
    arms = {arm.overrides for study in studies for arm in study.arms}
    found = {overrides: records_of(records, compose(list(overrides))) for overrides in arms}
    return [
        Outcome(study, {arm.name: found[arm.overrides] for arm in study.arms}) for study in studies
    ]


def noise_of(found: Sequence[Outcome], recipe: str, metric: str) -> Noise | None:
    """That of one run: one for all networks of the studies with a recipe and metric."""
    groups = {
        arm.overrides: outcome.accuracies(arm.name, metric)
        for outcome in found
        if outcome.study.metric == metric
        for arm in outcome.study.arms
        if arm.recipe == recipe
    }
    return pooled_noise(groups.values())


def study_grid(outcome: Outcome, noises: Mapping[str, Noise | None]) -> Grid:
    """A row for each arm.

    Args:
        outcome: the study.
        noises: of the study's metric, by recipe.
    """
    study = outcome.study
    header = ["Network", "Parameters", *(f"{metric} (%)" for metric in study.metrics)]
    header += [f"Difference of {study.metric} (points)"]
    body = []
    for arm in study.arms:
        runs = outcome.runs[arm.name]
        row = [arm.name, f"{runs[0]['params']:,}" if runs else ""]
        row += [mean_text(outcome.accuracies(arm.name, metric)) for metric in study.metrics]
        apart = arm.against and _difference(outcome, arm, noises[arm.recipe])
        body.append([*row, apart and f"from {arm.against}: {apart}"])
    return Grid(header, body)


def _difference(outcome: Outcome, arm: Arm, noise: Noise | None) -> str:
    metric = outcome.study.metric
    ours, theirs = (outcome.accuracies(name, metric) for name in (arm.name, arm.against))
    (against,) = (other for other in outcome.study.arms if other.name == arm.against)
    if against.recipe != arm.recipe:  # unequal variances, so each side's own counts
        known = min(len(ours), len(theirs)) > 1
        noise = replace(pooled_noise([ours, theirs]), bartlett=0.0) if known else None
    return str(difference(ours, theirs, noise)) if ours and theirs else "not run"


def run_lines(found: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A line for each run of the studies."""
    return [
        {
            "study": outcome.study.name,
            "arm": arm.name,
            "recipe": arm.recipe,
            "seed": record["science"]["seed"],
            **{metric: f"{test_accuracy(record, metric):.4f}" for metric in METRICS},
            VALIDATION: record.get(VALIDATION, ""),
            "run_id": record["run_id"],
            **trained_on(record),
        }
        for outcome in found
        for arm in outcome.study.arms
        for record in outcome.runs[arm.name]
    ]


def missing(found: Sequence[Outcome]) -> list[str]:
    """The commands of the arms that lack seeds, each once."""
    return list(dict.fromkeys(command for outcome in found for command in outcome.missing))


def markdown(found: Sequence[Outcome]) -> str:
    """The page."""
    parts = [
        "# Studies",
        "",
        "Questions that the paper's tables do not answer. Differences are of the settled accuracy "
        "(the mean of the last fifth of the epochs), if nothing else is said, in points, with the "
        "95 % interval that the spread of all networks with the same recipe over their seeds gives "
        "(between two recipes: Welch's, of the two networks alone); with fewer than "
        f"{ENOUGH} seeds on a side they decide nothing. Each run, with device and version, is in "
        "`studies.csv`.",
        "",
    ]
    for outcome in found:
        study = outcome.study
        used = dict.fromkeys(arm.recipe for arm in study.arms)
        noises = {recipe: noise_of(found, recipe, study.metric) for recipe in used}
        noise = noises.get(study.recipe)
        parts += [f"## {study.name[0].upper()}{study.name[1:]}", "", study.question, ""]
        said = f"`{study.setting} recipe={study.recipe}`, {epochs_of(study.recipe)} epochs."
        if not any(outcome.runs.values()):
            parts += [f"{said} Not run yet.", ""]
            continue
        if noise is not None:
            said += f" Noise of a run: {noise.sigma:.2f} points ({noise.freedom} df)."
        parts += [said, "", *markdown_grid(study_grid(outcome, noises)), ""]
    commands = missing(found)
    if commands:
        parts += ["## To train what is missing", "", "```bash", *commands, "```", ""]
    return "\n".join(parts)
