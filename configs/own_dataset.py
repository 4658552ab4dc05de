"""Writing the config of a user's own dataset: configs/dataset/<name>.yaml."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from omegaconf import OmegaConf

from configs.compose import CUSTOM, dataset_config, dataset_names
from configs.groups import CONFIG_DIR, group_file
from data.own import NAME, NAME_RULE
from data.spec import DatasetSpec
from linearconv.engine.files import atomic_write
from linearconv.errors import UserError

HEADER = "# Images of your own, packed by scripts/prepare_data.py (docs/datasets.md).\n"


def config_path(name: str) -> Path:
    """The config of a dataset."""
    return CONFIG_DIR / "dataset" / f"{name}.yaml"


def check_new_name(name: str, packed: Path, *, overwrite: bool) -> None:
    """Reject a name that cannot be given to a new dataset.

    Args:
        name: the dataset's name.
        packed: the file that it is to be packed into.
        overwrite: whether to replace another dataset of the user's own.

    Raises:
        UserError: an invalid name, that of one of the project's datasets, or one in use.
    """
    if NAME.fullmatch(name) is None:
        raise UserError(f"--name {name!r} {NAME_RULE}")
    if name == CUSTOM or (name in dataset_names() and not dataset_config(name).own):
        raise UserError(f"--name {name} is a dataset of the project: choose another name")
    used = [str(path) for path in (config_path(name), packed) if path.exists()]
    if used and not overwrite:
        raise UserError(
            f"{' and '.join(used)} exist{'s' * (len(used) == 1)}: choose another --name, or "
            "replace with --overwrite"
        )


def write_config(spec: DatasetSpec) -> Path:
    """Write the config of a packed dataset, with its digest; returns its path."""
    values = {k: v for k, v in asdict(spec).items() if k not in ("path", "official_md5")}
    path = config_path(spec.name)
    with atomic_write(path) as file:
        file.write((HEADER + OmegaConf.to_yaml(OmegaConf.create(values))).encode())
    group_file.cache_clear()  # it may have been read before it was replaced
    return path
