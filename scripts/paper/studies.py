"""The studies of configs/studies.yaml: variants with and without some overrides, at 30 epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from configs import compose
from configs.groups import CONFIG_DIR
from linearconv.errors import UserError
from scripts.paper.printed import MODELS
from scripts.paper.results import METRICS, Record, records_of, test_accuracy, trained_on
from scripts.paper.statistics import difference, pooled_noise
from scripts.paper.text import Grid, mean_text

SETTING = ("model=base", "dataset=cifar10", "recipe=short")
SEEDS = (0, 1)
"""What `command` trains; all seeds that there are count."""


@dataclass(frozen=True)
class Study:
    """One question.

    Attributes:
        name: in short.
        question: why it is asked.
        variants: that are trained with the overrides.
        overrides: of the recipe or the variant.
    """

    name: str
    question: str
    variants: list[str]
    overrides: list[str]

    @property
    def command(self) -> str:
        """The command that trains its runs."""
        return (
            f"python train.py -m {' '.join(SETTING)} variant={','.join(self.variants)} "
            f"{' '.join(self.overrides)} seed={','.join(map(str, SEEDS))} "
            "results_dir=results/studies"
        )


@dataclass(frozen=True)
class Outcome:
    """One variant of a study.

    Attributes:
        study: the study.
        variant: the variant.
        runs: the records with the overrides, by seed.
        plain: those without.
        conv: of Conv, to compare `runs` with: with the overrides if the study trains it.
        plain_conv: of Conv, without.
    """

    study: Study
    variant: str
    runs: list[Record]
    plain: list[Record]
    conv: list[Record]
    plain_conv: list[Record]


def read_studies() -> list[Study]:
    """The studies of configs/studies.yaml.

    Raises:
        UserError: a key that no study has, or one that is missing.
    """
    studies = []
    for entry in OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "studies.yaml")):
        try:
            studies.append(Study(**entry))
        except TypeError as error:
            raise UserError(f"configs/studies.yaml: {entry.get('name')}: {error}") from None
    return studies


def outcomes(studies: Sequence[Study], records: Sequence[Record]) -> list[Outcome]:
    """What the records say about each variant of each study.

    Args:
        studies: see `read_studies`.
        records: of the studies and of the tables.
    """

    def found(variant: str, overrides: Sequence[str] = ()) -> list[Record]:
        return records_of(records, compose([*SETTING, f"variant={variant}", *overrides]))

    return [
        Outcome(
            study,
            variant,
            found(variant, study.overrides),
            found(variant),
            found("Conv", study.overrides if "Conv" in study.variants else ()),
            found("Conv"),
        )
        for study in studies
        for variant in study.variants
    ]


def outcomes_grid(found: Sequence[Outcome], metric: str) -> Grid:
    """A row for each variant of each study; differences in points with Welch's 95 % interval."""
    header = ["Study", "Network", "With it (%)", "Without (%)", "Difference"]
    header += ["Against Conv with it", "Against Conv without"]
    body = []
    for outcome in found:
        runs, plain, conv, plain_conv = (
            [test_accuracy(record, metric) for record in records]
            for records in (outcome.runs, outcome.plain, outcome.conv, outcome.plain_conv)
        )
        noise = pooled_noise([runs, plain, conv, plain_conv])
        against = [_text(runs, conv, noise), _text(plain, plain_conv, noise)]
        body.append(
            [
                outcome.study.name,
                f"{MODELS['base']}-{outcome.variant}",
                mean_text(runs),
                mean_text(plain),
                _text(runs, plain, noise),
                *(against if outcome.variant != "Conv" else ["", ""]),
            ]
        )
    return Grid(header, body)


def _text(ours, theirs, noise) -> str:
    return str(difference(ours, theirs, noise)) if ours and theirs else ""


def run_lines(found: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A line for each run of the studies."""
    return [
        {
            "study": outcome.study.name,
            "variant": outcome.variant,
            "seed": record["science"]["seed"],
            **{metric: test_accuracy(record, metric) for metric in METRICS},
            "run_id": record["run_id"],
            **trained_on(record),
        }
        for outcome in found
        for record in outcome.runs
    ]
