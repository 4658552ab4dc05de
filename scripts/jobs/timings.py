"""The duration of an epoch: measured or, until one was trained here, estimated from benchmarks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from configs import dataset_config, variant_name
from configs.identity import Identity
from linearconv.engine.checkpoint import Checkpoints, load
from linearconv.engine.device import is_cpu
from linearconv.engine.digests import canonical_json
from linearconv.engine.record import read_record
from linearconv.errors import UserError

BENCHMARKS = Path(__file__).resolve().parents[2] / "results" / "benchmarks"


@dataclass(frozen=True)
class Epoch:
    """The duration of an epoch.

    Attributes:
        seconds: training and evaluation.
        source: the device of the benchmark that it is estimated from; None: measured in runs here.
    """

    seconds: float
    source: str | None = None


def recorded_device(folder: Path, wanted: str) -> str | None:
    """The device of a kind, cpu or cuda, that the latest of a folder's records was trained on.

    Args:
        folder: of records.
        wanted: `device` of the config; None is found for auto, which says no kind.
    """
    latest: dict[str, str] = {}
    for path in folder.glob("*.json"):
        try:
            start = read_record(path)["provenance"][-1]
            latest[start["started"]] = start["device"]
        except (UserError, KeyError, TypeError, IndexError):
            continue
    devices = (latest[started] for started in sorted(latest, reverse=True))
    kind = wanted.partition(":")[0]
    return next((each for each in devices if kind == ("cpu" if is_cpu(each) else "cuda")), None)


class Timings:
    """Seconds per epoch on one device.

    Args:
        device: its name in provenance.
        runtime: the name of the runtime preset.
    """

    def __init__(self, device: str, runtime: str) -> None:
        self._device, self._runtime = device, runtime
        self._seconds: dict[str, list[float]] = defaultdict(list)

    def add(
        self, identity: Identity, seconds: Sequence[float], starts: Sequence[dict[str, Any]]
    ) -> None:
        """Add the epochs of a run that were trained on this device.

        Args:
            identity: identity of the run.
            seconds: duration of each of its epochs.
            starts: provenance of each process that trained it.
        """
        for start in starts:
            here = start["device"], start["runtime"]["name"]
            if here == (self._device, self._runtime) and start["last_epoch"] is not None:
                measured = seconds[start["first_epoch"] - 1 : start["last_epoch"]]
                for key in _keys(identity):
                    self._seconds[key].extend(measured)

    def add_records(self, folder: Path) -> None:
        """Add all readable records of a folder."""
        for path in sorted(folder.glob("*.json")):
            try:
                record = read_record(path)
                timing = record["timing"]["seconds_per_epoch"]
                self.add(record["science"], timing, record["provenance"])
            except (UserError, KeyError, TypeError):
                continue

    def add_checkpoint(self, folder: Path) -> None:
        """Add the newest checkpoint of an unfinished run's folder, if it is readable."""
        for path in Checkpoints(folder).epochs()[-1:]:
            try:
                state = load(path)
                self.add(state["science"], state["seconds"], state["starts"])
            except (UserError, OSError, KeyError):
                return  # the run's process may have just deleted it

    def per_epoch(self, identity: Identity) -> Epoch | None:
        """The median for the same network and dataset, else for the same model, else an estimate
        from `benchmarked`, else None.
        """
        for key in _keys(identity):
            if self._seconds.get(key):
                return Epoch(median(self._seconds[key]))
        dataset = identity["dataset"]
        images = dataset["limit_train"] or dataset_config(dataset["name"]).train_size
        model = identity["model"]["name"]
        for device, speeds in benchmarked(self._device, self._runtime).items():
            for variant in (variant_name(identity["variant"]), "Conv"):  # r and e train plain ones
                if (model, variant) in speeds:
                    return Epoch(images / speeds[model, variant], device)
        return None


@cache
def benchmarked(device: str, runtime: str) -> dict[str, dict[tuple[str, str], float]]:
    """Training images a second, evaluation included, from results/benchmarks.

    Args:
        device: its name in provenance; for a CPU other CPUs count too, for a GPU no other device.
        runtime: the name of the runtime preset.

    Returns:
        By the device that was measured, this one first, and (model, variant).
    """
    files = sorted(BENCHMARKS.glob("*.csv"))
    if not files:
        return {}
    frame = pd.concat(map(pd.read_csv, files))
    rows = frame[(frame["mode"] == runtime) & frame["precision"].isin(["fp32", "tf32"])]
    # A newer row replaces an older one, and one in tf32, the default, one in fp32.
    rows = rows.sort_values(["precision", "date"], na_position="first")
    found: dict[str, dict[tuple[str, str], float]] = {}
    for name, speeds in rows.groupby("device"):
        if name == device or (is_cpu(name) and is_cpu(device)):
            networks = zip(speeds["model"], speeds["variant"], strict=True)
            found[name] = dict(zip(networks, speeds["images_per_s"], strict=True))
    return dict(sorted(found.items(), key=lambda each: each[0] != device))


def _keys(identity: Identity) -> tuple[str, str]:
    """Two keys of comparable durations: the same model, variant and dataset; the same model."""
    dataset = identity["dataset"]
    model = {
        "model": identity["model"],
        "precision": identity["precision"],
        "batch_size": identity["recipe"]["batch_size"],
        "limits": [dataset["limit_train"], dataset["limit_test"]],
    }
    exact = model | {"variant": identity["variant"], "dataset": dataset["name"]}
    return canonical_json(exact), canonical_json(model)
