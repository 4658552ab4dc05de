"""Which learning rate each model trains best with, on validation images."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from configs import compose
from configs.experiments import Cell, all_cells
from models import architecture
from scripts.evidence.figures.base import SINGLE, Figure, seeds
from scripts.evidence.formats import markdown_grid
from scripts.evidence.printed import DATASETS, MODELS
from scripts.evidence.results import Record, records_of, trained_on
from scripts.evidence.text import Grid, mean_text

RATES = (1e-3, 1e-4)
"""The learning rates of the paper (section 4.2), which does not say which model has which."""

SETTING = ("recipe=short", "recipe.val_fraction=0.1")
"""How the rates are compared, over 30 epochs; the test images take no part."""

THIRD = ("recipe.epochs=10", "recipe.lr_decay_every=4")
"""Added to `SETTING` where that takes too long: a third of the epochs. Such runs decide for a model
that lacks one of those with `SETTING`."""

DATASET = "cifar10"

MARGIN = 1.5
"""Points by which the better rate must lead: twice the standard error of the difference of two
accuracies of 85 % on 5,000 images is 1.4."""


@dataclass(frozen=True)
class Choice:
    """The learning rate of one model.

    Attributes:
        model: a registered model; its plain network (Conv) decides for all variants.
        configured: the rate in configs/model/<model>.yaml.
        epochs: of the runs.
        runs: the records by rate, for those of `RATES` that have any.
    """

    model: str
    configured: float
    epochs: int
    runs: dict[float, list[Record]]

    @property
    def accuracies(self) -> dict[float, list[float]]:
        """By rate, the validation accuracies (percent) after the last epoch, one for each seed."""
        return {rate: [r["val_acc_last"] for r in found] for rate, found in self.runs.items()}

    @property
    def missing(self) -> bool:
        """Whether a rate has not been run."""
        return set(self.runs) != set(RATES)

    @property
    def verdict(self) -> str:
        """Whether the configured rate is the better one, by at least `MARGIN`."""
        if self.missing:
            return "open"
        means = {rate: statistics.fmean(found) for rate, found in self.accuracies.items()}
        if max(means.values()) - min(means.values()) < MARGIN:
            return "undecided"
        best = max(means, key=means.__getitem__)
        return "as configured" if best == self.configured else "differs from the config"


def command(models: Sequence[str]) -> str:
    """The command that trains the models with each rate."""
    rates = ",".join(f"{rate:g}" for rate in RATES)
    return (
        f"python train.py -m model={','.join(models)} variant=Conv dataset={DATASET} "
        f"{' '.join(SETTING)} recipe.lr={rates} results_dir=results/learning_rates"
    )


def choices(records: Sequence[Record]) -> list[Choice]:
    """The choice for each model of the tables that starts from no other.

    Args:
        records: any records; only those of `command` count, or else those with `THIRD`.
    """
    models = [
        cell.model
        for cell in all_cells()
        if cell == Cell(cell.model, "Conv", DATASET) and architecture(cell.model).baseline is None
    ]
    found = []
    for model in dict.fromkeys(models):
        whole, third = (_choice(records, model, more) for more in ((), THIRD))
        found.append(third if whole.missing and not third.missing else whole)
    return found


def _choice(records: Sequence[Record], model: str, more: tuple[str, ...]) -> Choice:
    config = compose([f"model={model}", "variant=Conv", f"dataset={DATASET}", *SETTING, *more])
    at = {rate: replace(config, recipe=replace(config.recipe, lr=rate)) for rate in RATES}
    runs = {rate: records_of(records, each) for rate, each in at.items()}
    runs = {rate: matching for rate, matching in runs.items() if matching}
    return Choice(model, config.model.lr, config.recipe.epochs, runs)


def choices_grid(found: Sequence[Choice]) -> Grid:
    """A row for each model."""
    header = ["Model", "epochs", *(f"lr {rate:g}: validation accuracy, %" for rate in RATES)]
    body = []
    for choice in found:
        accuracies = [mean_text(choice.accuracies.get(rate, [])) for rate in RATES]
        epochs = str(choice.epochs) if choice.runs else "-"
        row = [MODELS[choice.model], epochs, *accuracies, f"{choice.configured:g}", choice.verdict]
        body.append(row)
    return Grid([*header, "configured", "verdict"], body)


def markdown(found: Sequence[Choice]) -> str:
    """The page."""
    return "\n".join(
        [
            "# Learning rates",
            "",
            "The paper trains with 1e-3 or 1e-4 and does not say which network has which. Here the "
            "rates are compared at 30 epochs on a tenth of the training images, held out; the test "
            "images take no part. Where that takes too long, a third of the epochs decides "
            f"meanwhile, with the decays in proportion (add `{' '.join(THIRD)}`). The plain "
            "network (Conv) decides for all variants, so that none is tuned more than another; the "
            f"last epoch counts, not the best. The better rate must lead by {MARGIN:g} points, or "
            "the choice is undecided. A short recipe favours the higher rate, so this says little "
            "of the lower one at 250 epochs.",
            "",
            *markdown_grid(choices_grid(found)),
            "",
            "Devices and versions: `choices.csv`. Curves (dotted: training): `curves.svg` and "
            "`data/curves.csv`."
            if any(choice.runs for choice in found)
            else "No run yet; devices, versions and curves appear here with the first.",
            "",
            "```bash",
            command([choice.model for choice in found]),
            "python scripts/report.py learning_rates",
            "```",
            "",
        ]
    )


def choice_lines(found: Sequence[Choice]) -> list[dict[str, Any]]:
    """A line for each run: what the page's means are of."""
    return [
        {
            "model": choice.model,
            "epochs": choice.epochs,
            "lr": f"{rate:g}",
            "seed": record["science"]["seed"],
            "val_acc_last": record["val_acc_last"],
            "run_id": record["run_id"],
            **trained_on(record),
        }
        for choice in found
        for rate, records in choice.runs.items()
        for record in records
    ]


def curves_figure(found: Sequence[Choice]) -> Figure:
    """The validation accuracy over the epochs, a panel for each model that has runs."""
    shown = [choice for choice in found if choice.runs]
    lines = [
        {"run_id": record["run_id"], "model": choice.model, "lr": f"{rate:g}"}
        | {name: entry[name] for name in ("epoch", "val_acc", "train_acc")}
        for choice in shown
        for rate, records in choice.runs.items()
        for record in records
        for entry in record["curve"]
    ]
    return Figure(
        "curves",
        f"Plain networks on {DATASETS[DATASET]}, a tenth of the training images held out",
        "Validation accuracy (dotted: training accuracy) with each learning rate.",
        lines,
        [choice.model for choice in found if not choice.runs],
        lambda width: _draw(shown, width),
    )


STYLES = {1e-3: ("#0072B2", "s"), 1e-4: ("#D55E00", "^")}
"""Colour and marker of each rate."""


def _draw(shown: Sequence[Choice], width: float) -> Canvas:
    columns = 1 if width == SINGLE else min(2, len(shown))
    rows = -(-len(shown) // columns)
    canvas = Canvas(figsize=(width, 0.3 + 2.4 * rows))
    panels = canvas.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(shown) :]:
        axes.axis("off")
    for axes, choice in zip(panels, shown, strict=False):
        for rate, records in choice.runs.items():
            color, marker = STYLES[rate]
            for i, record in enumerate(records):
                epochs = [entry["epoch"] for entry in record["curve"]]
                label = f"lr {rate:g} ({seeds([len(records)])})" if i == 0 else None
                style = {"color": color, "lw": 1}
                for name, own in (
                    ("val_acc", {"marker": marker, "ms": 3, "markevery": 5, "label": label}),
                    ("train_acc", {"linestyle": ":", "alpha": 0.8}),
                ):
                    axes.plot(epochs, [entry[name] for entry in record["curve"]], **style, **own)
        axes.set_title(MODELS[choice.model])
        axes.set_xlabel("Epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#dddddd", linewidth=0.5)
        axes.legend(loc="lower right")
    panels[0].set_ylabel("Accuracy (%)")
    return canvas
