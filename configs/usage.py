"""The help of train.py and eval.py, and the keys that they know."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from configs.groups import group_names
from configs.schema import PATH_KEYS, EvalConfig, TrainConfig
from linearconv.errors import UserError, did_you_mean

SCHEMAS = {"train": TrainConfig, "eval": EvalConfig}
GROUPS = {"train": ("model", "variant", "dataset", "recipe", "runtime"), "eval": ()}
ABOUT = {
    "train": "Train one network, or resume it: python train.py model=vgg11 variant=LRr",
    "eval": "Evaluate a trained network, unfused and fused: python eval.py run=<run_id>",
}
WIDTH = 100
PAPERS_NAMES = {"lambda": "regularizer.strength"}
"""Keys by what the paper and the run_ids call them."""


def usage(config_name: str) -> str:
    """The help of an entry point: its flags, the choices of config groups, its keys."""
    lines = [ABOUT[config_name], "", f"usage: python {config_name}.py KEY=VALUE ...", ""]
    flags = {
        "-m": "a sweep over values with commas, as in seed=0,1,2",
        "--cfg job": "print every key with its value and stop",
    }
    lines += [_entry(flag, text) for flag, text in flags.items()]
    if groups := GROUPS[config_name]:
        lines += ["", "choices (model and variant are required):"]
        lines += [_entry(f"{group}=", " ".join(group_names(group))) for group in groups]
    lines += ["", "keys:"]
    schema = SCHEMAS[config_name]
    defaults = {field.name: _default(field) for field in fields(schema)}
    described = re.findall(r"^ {8}([\w.]+): (.*(?:\n {12}.*)*)", schema.__doc__ or "", re.MULTILINE)
    for key, text in described:
        lines.append(_entry(f"{key}={defaults.get(key, '')}", " ".join(text.split()).rstrip(".")))
    if groups:
        lines += ["", "Those of recipe, regularizer, dataset and runtime: --cfg job, and configs/."]
    return "\n".join(lines)


def check_keys(arguments: Sequence[str], config_name: str) -> None:
    """Reject arguments of a command line that nothing reads: keys, choices, options.

    Values and everything that Hydra's grammar adds are left to Hydra.

    Raises:
        UserError: all mistakes in one message, each with what is spelled similarly.
    """
    leaves, problems = _leaves(SCHEMAS[config_name]), []
    known = (*GROUPS[config_name], *leaves)
    neighbours = zip(["", *arguments], arguments, [*arguments[1:], ""], strict=False)
    for before, argument, after in neighbours:
        key, equals, value = argument.lstrip("+~").partition("=")
        if argument.startswith("--") and argument.partition("=")[0] not in _hydra_options():
            name, equals, value = argument.lstrip("-").partition("=")
            name = name.replace("-", "_")
            hint = _hint(name, leaves)
            if name in known:  # as other programs write it
                value = value if equals else re.sub(r"^-.*|.*=.*|^$", "...", after)
                hint = f"; did you mean {name}={value}?"
            problems.append(f"unknown option: {argument}, expected KEY=VALUE{hint}")
        if argument.startswith("-") or key.startswith("hydra") or "@" in key:
            continue
        if argument.startswith("~"):
            problems.append(f"{argument}: expected a value, no key can do without: {key}=...")
        elif not equals:
            if not before.startswith("-"):
                hint = "; did you mean run=" + argument + "?" if config_name == "eval" else ""
                problems.append(f"expected KEY=VALUE, got {argument}{hint}")
        elif key not in known and not key.startswith(tuple(f"{name}." for name in leaves)):
            problems.append(f"unknown key: {key}{_hint(key, known)}")
        elif key in PATH_KEYS and (number := _number(argument)) is not None:
            problems.append(
                f"{key}={value} would be read as {number}: write {key}=./{value} for that folder"
            )
        elif key in GROUPS[config_name] and re.fullmatch(r"[\w,.-]+|\[.*", value):
            choices = group_names(key)
            for each in dict.fromkeys(value.split(",")):
                if each not in choices:
                    near = did_you_mean(each, choices)
                    problems.append(f"{key}={each}: expected one of {', '.join(choices)}{near}")
    if problems:
        raise UserError("\n".join(problems))


def _number(argument: str) -> bool | int | float | None:
    """What Hydra makes of KEY=VALUE, if that is a number or a truth value."""
    try:
        (override,) = OverridesParser.create().parse_overrides([argument])
    except HydraException:  # said where the config is composed
        return None
    value = None if override.is_sweep_override() else override.value()
    return value if isinstance(value, bool | int | float) else None


def _hint(key: str, known: Collection[str]) -> str:
    """The known keys that end like one, or the one that is spelled most similarly."""
    key = PAPERS_NAMES.get(key, key)
    full = [name for name in known if name == key or name.endswith(f".{key}")]
    return f"; did you mean {' or '.join(full)}?" if full else did_you_mean(key, known)


@cache
def _hydra_options() -> frozenset[str]:
    return frozenset(get_args_parser()._option_string_actions)


@cache
def _leaves(schema: type) -> tuple[str, ...]:
    """The keys that have values, dotted; some of these are lists or dicts."""
    found: list[str] = []
    for name, kind in get_type_hints(schema).items():
        inner = _leaves(kind) if is_dataclass(kind) else ()
        found += [f"{name}.{each}" for each in inner] or [name]
    return tuple(found)


def _entry(name: str, text: str) -> str:
    """A name and, beside it, its wrapped description."""
    first, others = f"  {name:<26} ", " " * 29
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=others)


def _default(field: Field[Any]) -> str:
    """The value of a key that is not given, as it would be written."""
    value = field.default
    if value is None or value is MISSING:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return re.sub(r"\$\{checkout:(\w+)\}", r"\1", str(value))
