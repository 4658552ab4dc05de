"""What training each network costs, by the speeds in results/benchmarks."""

from __future__ import annotations

from pathlib import Path

from configs import dataset_config
from configs.experiments import table_cells
from linearconv.engine.reporting import in_words
from scripts.evidence.claims_text import epochs_of
from scripts.evidence.formats import markdown_grid
from scripts.evidence.printed import MODELS
from scripts.evidence.speeds import measured
from scripts.evidence.text import NOTHING, Grid

DATASET = "cifar10"
TABLES = (3, 4, 5)
"""Those with all networks; Table 3 has the variants in their order."""
PRECISIONS = ("fp32", "tf32")
"""The tables' on a CPU and elsewhere; of a device that has both, tf32 counts."""


def costs_grid(folder: Path, epochs: int) -> Grid:
    """A row for each network of the tables, with seconds an epoch and the time of a run.

    Args:
        folder: the results.
        epochs: of a run.
    """
    rows = measured(folder, "images_per_s", "fast")
    rows = rows[rows["precision"].isin(PRECISIONS)]
    rows = rows[rows["precision"] == rows.groupby("device")["precision"].transform("max")]
    images = dataset_config(DATASET).train_size
    seconds = {
        (row.device, row.model, row.variant): images / row.value for row in rows.itertuples()
    }
    devices = sorted({device for device, *_ in seconds})
    networks = dict.fromkeys(
        (cell.model, cell.variant) for table in TABLES for cell in table_cells(table)
    )
    body = []
    order = list(dict.fromkeys([*MODELS, *(model for model, _ in networks)]))
    for model, variant in sorted(networks, key=lambda each: order.index(each[0])):
        cells = [f"{MODELS[model]}-{variant}"]
        for device in devices:
            epoch = seconds.get((device, model, variant))
            if epoch is None:
                cells += [NOTHING, NOTHING]
            else:
                digits = ".3g" if epoch < 100 else ".0f"
                cells += [f"{epoch:{digits}}", in_words(epochs * epoch)]
        body.append(cells)
    header = ["Network"]
    for device in devices:
        header += [f"{device}: seconds an epoch", f"{device}: {epochs} epochs"]
    return Grid(header, body)


def markdown(folder: Path, recipe: str) -> str:
    """The page."""
    parts = [
        "# What a run costs",
        "",
        "CIFAR-10 (CIFAR-100 is as large), `runtime=fast`, one run on the device. An epoch with "
        "its evaluation is computed from images a second, measured on few random images "
        f"(`results/benchmarks`), and {epochs_of(recipe)} epochs (`recipe={recipe}`) from that; "
        f"{NOTHING}: not measured, or on another day than Conv. How long finished runs took, with "
        "what ran beside them, is in their records (`timing`).",
        "",
        *markdown_grid(costs_grid(folder, epochs_of(recipe))),
        "",
    ]
    return "\n".join(parts)
