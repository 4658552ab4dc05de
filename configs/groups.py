"""The yaml files of the config groups, as they are written."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

CONFIG_DIR = Path(__file__).resolve().parent


def group_names(group: str) -> list[str]:
    """The choices of a config group, sorted; hidden files, as editors leave them, are none."""
    paths = (CONFIG_DIR / group).glob("*.yaml")
    return sorted(path.stem for path in paths if not path.name.startswith("."))


@cache
def group_file(group: str, name: str) -> dict[str, Any]:
    """The values in configs/<group>/<name>.yaml."""
    return OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / group / f"{name}.yaml"))
