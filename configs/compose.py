"""Composing overrides into a checked config."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from configs.checks import check
from configs.groups import CONFIG_DIR, group_file, group_names
from configs.messages import in_words
from configs.schema import (
    PATH_KEYS,
    DatasetConfig,
    EvalConfig,
    TrainConfig,
    register_schemas,
)
from configs.usage import check_keys
from data.dataset_file import default_root
from data.own import describe
from linearconv.engine.files import in_checkout
from linearconv.errors import UserError

VERSION_BASE = "1.3"

CUSTOM = "custom"
"""The dataset whose config is computed from its file."""

register_schemas()
OmegaConf.register_new_resolver(
    "from_file", lambda path, key: attrgetter(key)(describe(path)), replace=True
)
OmegaConf.register_new_resolver("checkout", lambda name: str(in_checkout(name)), replace=True)


def compose(overrides: Sequence[str], config_name: str = "train") -> TrainConfig | EvalConfig:
    """The config that `python train.py <overrides>` runs with.

    Args:
        overrides: as on the command line, e.g. ["model=base", "variant=Lr", "alpha=0.25"].
        config_name: "train" or "eval".

    Raises:
        UserError: an unknown key or choice, a wrong type, or an invalid value.
    """
    check_keys(overrides, config_name)
    with user_errors():
        config = to_config(compose_raw(list(overrides), config_name))
        check(config)
        return config


def compose_raw(overrides: list[str], config_name: str) -> DictConfig:
    """Compose with Hydra, inside or outside a Hydra application."""
    if GlobalHydra.instance().is_initialized():
        context = nullcontext()
    else:
        context = hydra.initialize_config_dir(str(CONFIG_DIR), version_base=VERSION_BASE)
    with context:
        return hydra.compose(config_name, overrides)


def to_config(composed: DictConfig) -> TrainConfig | EvalConfig:
    """Convert Hydra's config tree to the dataclasses of `configs.schema`, interpolations resolved.

    In paths, ~ is expanded: shells do not where it follows "=".

    Raises:
        UserError: a key that is not in the schema was added with "+key=", or the file of
            dataset=custom cannot be used.
    """
    with user_errors():
        config = OmegaConf.to_object(composed)
    unknown = list(_unknown_keys(config))
    if unknown:
        raise UserError(f"unknown key: {', '.join(unknown)}; nothing would read it")
    _expand_home(config)
    config.dataset.root = config.dataset.root or default_root()
    return config


def _expand_home(config: TrainConfig | EvalConfig) -> None:
    for key in PATH_KEYS:
        node, _, name = key.rpartition(".")
        owner = getattr(config, node) if node else config
        path = getattr(owner, name, None)  # some are keys of one config alone
        if not path or not path.startswith("~"):
            continue
        try:
            setattr(owner, name, str(Path(path).expanduser()))
        except RuntimeError:
            raise UserError(f"{key}={path}: there is no such user's folder here") from None


def _unknown_keys(node: Any, prefix: str = "") -> Iterator[str]:
    known = {field.name for field in fields(node)}
    for name, child in vars(node).items():
        if name not in known:
            yield prefix + name
        elif is_dataclass(child):
            yield from _unknown_keys(child, f"{prefix}{name}.")


def dataset_names() -> list[str]:
    """The datasets that have a config of their own, sorted."""
    return [name for name in group_names("dataset") if name != CUSTOM]


def dataset_config(name: str) -> DatasetConfig:
    """The config of one dataset, from configs/dataset/<name>.yaml.

    Raises:
        UserError: unknown dataset; the message lists the choices.
    """
    known = dataset_names()
    if name not in known:
        raise UserError(f"unknown dataset {name!r}; choose from {', '.join(known)}")
    with user_errors(f"configs/dataset/{name}.yaml"):
        values = group_file("dataset", name)
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DatasetConfig), values))


@contextmanager
def user_errors(where: str = "") -> Iterator[None]:
    """Convert exceptions of Hydra, OmegaConf and the YAML parser into `UserError`.

    Args:
        where: the file that is read, for messages that do not name it.
    """
    try:
        yield
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{mark.name}, line {mark.line + 1}: " if mark else ""
        raise UserError(f"{where}{getattr(error, 'problem', None) or error}") from None
    except (HydraException, OmegaConfBaseException) as error:
        if (ours := _user_error_behind(error)) is not None:
            raise ours from None
        if isinstance(error, OverrideParseException) and _lacks_quotes(error.override):
            raise UserError(_how_to_quote(error.override)) from None
        text = str(error)
        if error.__cause__ is not None and str(error.__cause__) not in text:
            text += f"\n{error.__cause__}"
        raise UserError(in_words(text, where)) from None


def _lacks_quotes(override: str) -> bool:
    """Whether a value cannot be read since it is a text with other characters than Hydra reads."""
    key, _, value = override.partition("=")
    if {"'", '"'} & set(value):
        return False
    return "=" in value or key.lstrip("+~") in PATH_KEYS


def _how_to_quote(override: str) -> str:
    key, _, value = override.partition("=")
    return (
        f"{key}: the value {value} contains characters that only quoted values may; "
        f"""write '{key}="{value}"' (both pairs of quotes)"""
    )


def _user_error_behind(error: BaseException | None) -> UserError | None:
    """The `UserError` of a resolver, which OmegaConf wraps in exceptions of its own."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error
