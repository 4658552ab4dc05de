"""Atomic file writes, and where files lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from linearconv.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[2]
"""The folder of the project."""


def in_checkout(name: str) -> Path:
    """A file or folder of the project, relative to the working directory if it is in that.

    All commands have their default folders there, wherever they are called; relative paths that are
    given to them count from the working directory.
    """
    path, here = CHECKOUT / name, Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file next to `path` for writing; rename it to `path` on success."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Write and delete an empty file under the name that `atomic_write` will need.

    Raises:
        OSError: it cannot be written; a file system may take no names as long.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = _partial(path).name
    tried = path.with_name(f"~{name[1:]}")  # which no process is writing
    tried.touch()
    tried.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def delete_partial(path: Path) -> None:
    """Delete what processes that were killed while they wrote `path` have left beside it.

    Args:
        path: a file that no other process is writing; a pattern as name means several.
    """
    for partial in path.parent.glob(f".{path.name}.*.part"):
        partial.unlink(missing_ok=True)


def check_output(option: str, path: Path) -> None:
    """Check, before anything is computed, that a file can be written.

    Args:
        option: the option that names the file, for the message.
        path: the file.

    Raises:
        UserError: it is a folder, or its folder is missing or cannot be written to.
    """
    if path.is_dir():
        raise UserError(f"{option}: {path} is a folder; expected the name of a file")
    if not path.parent.is_dir():
        raise UserError(f"{option}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{option}: {path.parent} cannot be written to")


def check_output_folder(option: str, path: Path) -> None:
    """Check, before anything is computed, that a folder for results is there or can be made.

    Args:
        option: the option that names the folder, for the message.
        path: the folder.

    Raises:
        UserError: it, or what it would be in, is a file or cannot be written to.
    """
    there = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not there.is_dir():
        raise UserError(f"{option}: {there} is a file; expected the name of a folder")
    if not os.access(there, os.W_OK):
        raise UserError(f"{option}: {there} cannot be written to")
