"""Networks of any records, each with all its seeds, against one variant of the same setting."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from configs.naming import differences, variant_name
from linearconv.engine.digests import canonical_json
from linearconv.errors import UserError, did_you_mean
from models import architecture, model_names
from scripts.evidence.figures.base import Figure, seeds
from scripts.evidence.figures.curves import draw_mean
from scripts.evidence.results import Record, runs_frame, test_accuracy
from scripts.evidence.statistics import Noise, difference, pooled_noise
from scripts.evidence.text import Grid, mean_text

VALIDATION = "val"
"""The best accuracy on validation images, of runs with `recipe.val_fraction`."""

ALIKE = ("variant", "regularizer", "baseline", "seed")
"""The keys of an identity in which a network may differ from the one that it is compared with."""


@dataclass(frozen=True)
class Network:
    """The runs that differ in the seed alone.

    Attributes:
        name: their run_id without seed and hash.
        variant: its name.
        setting: what it has in common with other variants: dataset, model, recipe, precision.
        differs: whether it overrides something of its variant or recipe.
        records: sorted by seed.
    """

    name: str
    variant: str
    setting: str
    differs: bool
    records: list[Record]

    def accuracies(self, metric: str) -> list[float]:
        """In percent, one for each seed.

        Raises:
            UserError: a record does not have it.
        """
        if metric != VALIDATION:
            return [test_accuracy(record, metric) for record in self.records]
        if any("val_acc_best" not in record for record in self.records):
            raise UserError(f"{self.name} has no accuracy {metric!r}: expected another --metric")
        return [record["val_acc_best"] for record in self.records]


def chosen(records: Sequence[Record], wanted: Sequence[str]) -> list[Record]:
    """The records with all of these values in their row of `load_runs`.

    Args:
        records: any.
        wanted: `column=value`.

    Raises:
        UserError: there is no such column, or no such record; the message lists what there is.
    """
    frame = runs_frame(records)
    for text in wanted:
        column, found, value = text.partition("=")
        if not found or column not in frame:
            hint = did_you_mean(column, list(frame.columns))
            raise UserError(f"{text}: expected COLUMN=VALUE with a column of load_runs(){hint}")
        keep = [_same(each, value) for each in frame[column]]
        if not any(keep):
            there = ", ".join(sorted({str(each) for each in frame[column]}))
            raise UserError(f"no run has {text}; of the others, {column} is {there or 'nothing'}")
        frame = frame[keep]
    kept = set(frame.run_id)
    return [record for record in records if record["run_id"] in kept]


def _same(value: Any, text: str) -> bool:
    """Whether a value is what somebody means by a text: 1e-3 is 0.001."""
    try:
        return float(value) == float(text)
    except (TypeError, ValueError):
        return str(value) == text


def networks(records: Sequence[Record]) -> list[Network]:
    """The networks of these records, in the order of their settings and names."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        identity = dict(record["science"])
        kept = {k: v for k, v in identity.items() if k != "seed"}
        if _is_system(identity["model"]["name"]):  # of which each seed has its own
            del kept["baseline"]
        groups.setdefault(canonical_json(kept), []).append(record)
    found = []
    for group in groups.values():
        identity = group[0]["science"]
        setting = {key: value for key, value in identity.items() if key not in ALIKE}
        found.append(
            Network(
                re.sub(r"-s\d+-[0-9a-f]{8}$", "", group[0]["run_id"]),
                variant_name(identity["variant"]),
                canonical_json(setting),
                bool(differences(identity)),
                sorted(group, key=lambda record: record["science"]["seed"]),
            )
        )
    return sorted(found, key=lambda network: (network.setting, network.name))


def _is_system(model: str) -> bool:
    """Whether a model starts from another one's trained network; records may outlive models."""
    return model in model_names() and architecture(model).baseline is not None


def networks_grid(found: Sequence[Network], against: str, metric: str) -> Grid:
    """A row for each network.

    Args:
        found: the networks.
        against: the variant that the others of its setting are compared with.
        metric: see `Network.accuracies`.
    """
    header = ["Network", "Parameters", "MACs (M)", f"Accuracy, {metric} (%)", "Seeds"]
    header.append(f"Against {against} (points)")
    body = []
    for network in found:
        values, first = network.accuracies(metric), network.records[0]
        others = [n for n in found if (n.setting, n.variant) == (network.setting, against)]
        others = [n for n in others if not n.differs] or others
        body.append(
            [
                network.name,
                f"{first['params']:,}",
                f"{first['macs_inference']['factored'] / 1e6:.1f}",
                mean_text(values, spread=True),
                ", ".join(str(record["science"]["seed"]) for record in network.records),
                _difference(network, others, metric, _noise(found, network.setting, metric)),
            ]
        )
    return Grid(header, body)


def _noise(found: Sequence[Network], setting: str, metric: str) -> Noise | None:
    """That of a run in a setting."""
    return pooled_noise(
        network.accuracies(metric) for network in found if network.setting == setting
    )


def _difference(
    network: Network, others: Sequence[Network], metric: str, noise: Noise | None
) -> str:
    """From the one network of the others, if there is one; with an interval if there is noise."""
    if len(others) != 1 or network in others:
        return ""
    return str(difference(network.accuracies(metric), others[0].accuracies(metric), noise))


def run_lines(found: Sequence[Network]) -> list[dict[str, Any]]:
    """A line for each run, with the columns of `load_runs`."""
    return [
        {"network": network.name} | {str(key): value for key, value in line.items()}
        for network in found
        for line in _lines(runs_frame(network.records))
    ]


def _lines(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    return frame.astype(object).where(frame.notna(), "").to_dict("records")


def accuracy_curves(found: Sequence[Network], title: str) -> Figure:
    """Test accuracy over the epochs: the mean over the seeds, and their range."""
    lines = [
        {"network": network.name, "seed": record["science"]["seed"]}
        | {name: entry[name] for name in ("epoch", "train_acc", "test_acc")}
        for network in found
        for record in network.records
        for entry in record["curve"]
    ]
    return Figure(
        "networks",
        title,
        "Test accuracy (dotted: training accuracy), mean over the seeds; shaded: their range.",
        lines,
        [],
        lambda width: _draw(found, width),
    )


def _draw(found: Sequence[Network], width: float) -> Canvas:
    canvas = Canvas(figsize=(width, 0.55 * width + 0.17 * len(found)))
    axes = canvas.subplots()
    for network in found:
        label = f"{network.name} ({seeds([len(network.records)])})"
        color = axes.plot([], [], label=label)[0].get_color()
        curves = [record["curve"] for record in network.records]
        draw_mean(axes, curves, "test_acc", shade=True, color=color, lw=1)
        draw_mean(axes, curves, "train_acc", shade=False, color=color, lw=1, linestyle=":")
    axes.set_xlabel("Epoch")
    axes.set_ylabel("Accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#dddddd", linewidth=0.5)
    canvas.legend(loc="outside lower center")
    return canvas
