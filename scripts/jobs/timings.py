"""The duration of an epoch, from measurements only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from configs.identity import Identity
from linearconv.engine.checkpoint import Checkpoints, load
from linearconv.engine.digests import canonical_json
from linearconv.engine.record import read_record
from linearconv.errors import UserError


class Timings:
    """Measured seconds per epoch on one device.

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

    def per_epoch(self, identity: Identity) -> float | None:
        """Median seconds for the same network and dataset, else for the same model, else None."""
        for key in _keys(identity):
            if self._seconds.get(key):
                return median(self._seconds[key])
        return None


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


def in_words(seconds: float) -> str:
    """A duration in its two largest units: "45 s", "12 min", "3 h 20 min", "2 d 5 h"."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"
