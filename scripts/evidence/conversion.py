"""What conversion keeps of a trained network, for docs/your_network.md."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from configs.experiments import Cell
from linearconv.errors import UserError
from scripts.evidence.formats import markdown_grid
from scripts.evidence.results import Results, read_redundancy
from scripts.evidence.studies import Outcome
from scripts.evidence.text import Grid, mean_text

STUDY = "compress or train"
"""The study of configs/studies.yaml whose networks are fine-tuned or trained from scratch."""

NETWORK = Cell("base", "Conv", "cifar10")
"""The trained network whose conversions are shown."""

BY_ALPHA = {
    "`warm_start=True`": ("linear", "weights"),
    "on images": ("linear", "images"),
}
BY_BUDGET = {
    "LinearConv": ("linear", "images"),
    "low-rank pair": ("pair", "images"),
    "fewer filters": ("pruned", ""),
}
"""The columns of the two tables, by the `form` and what it was `fitted_to` of their networks."""


def conversion_blocks(results: Results, found: Sequence[Outcome]) -> dict[str, str]:
    """The blocks, by name.

    Args:
        results: of the paper's recipe, with the rows of scripts/redundancy.py.
        found: the studies.

    Raises:
        UserError: the network was not measured, or there is no such study.
    """
    measured = read_redundancy(results.folder)
    runs = [record["run_id"] for record in results.records(NETWORK).values()]
    rows = measured[measured.run_id.isin(runs)]
    if rows.empty:
        raise UserError(
            f"{results.folder}/redundancy.csv lacks Base-Conv: run scripts/redundancy.py"
        )
    study = next((outcome for outcome in found if outcome.study.name == STUDY), None)
    if study is None:
        raise UserError(f"configs/studies.yaml has no study {STUDY!r}, of docs/your_network.md")
    return {
        "by alpha": "\n".join([*markdown_grid(_alpha_grid(rows)), "", _conditions(rows)]),
        "by budget": "\n".join(markdown_grid(_budget_grid(rows))),
        "fine-tuned": "\n".join(markdown_grid(_tuned_grid(study))),
    }


def _alpha_grid(rows: pd.DataFrame) -> Grid:
    """Of half or three quarters of the filters, everywhere or in one layer."""
    sizes = rows[(rows.form == "linear") & (rows.fitted_to == "weights")]
    body = []
    for size in sizes[["alpha", "layer"]].drop_duplicates().itertuples():
        same = rows[(rows.alpha == size.alpha) & (rows.layer == size.layer)]
        same = same[same.form == "linear"]
        where = f", `{size.layer}` alone" if size.layer else ""
        cells = [_accuracies(same, *column) for column in BY_ALPHA.values()]
        body.append([f"`alpha={size.alpha:g}`{where}", f"{same.parameters.iloc[0]:,.0f}", *cells])
    return Grid(["", "parameters", *BY_ALPHA], body)


def _budget_grid(rows: pd.DataFrame) -> Grid:
    """Of networks for a share of the parameters."""
    body = []
    for budget in sorted(rows.budget.dropna().unique()):
        same = rows[rows.budget == budget]
        cells = [_accuracies(same, *column, size=True) for column in BY_BUDGET.values()]
        body.append([f"{budget:g}", *cells])
    return Grid(["share of the parameters", *BY_BUDGET], body)


def _accuracies(rows: pd.DataFrame, form: str, fitted_to: str, *, size: bool = False) -> str:
    """The mean test accuracy, and with `size` how many parameters the network has."""
    rows = rows[(rows.form == form) & (rows.fitted_to == fitted_to)]
    text = mean_text(list(rows.accuracy))
    return f"{text}, {rows.parameters.mean():,.0f}" if size and len(rows) else text


def _conditions(rows: pd.DataFrame) -> str:
    """What was converted, and where."""
    whole = rows[rows.form == ""]
    where = (rows.device + ", torch " + rows.torch).unique()
    return (
        f"(Test accuracy in %, of the network itself {mean_text(list(whole.accuracy))} with "
        f"{whole.parameters.iloc[0]:,.0f} parameters; {'; '.join(where)}.)"
    )


def _tuned_grid(outcome: Outcome) -> Grid:
    """The last accuracies of the study's networks."""
    body = []
    for arm in outcome.study.arms:
        runs = outcome.runs[arm.name]
        epochs = str(runs[0]["science"]["recipe"]["epochs"]) if runs else ""
        size = f"{runs[0]['params']:,}" if runs else ""
        accuracy = mean_text(outcome.accuracies(arm.name, "last"), spread=True)
        body.append([arm.name, size, epochs, accuracy])
    return Grid(["", "parameters", "epochs", "test accuracy (%)"], body)
