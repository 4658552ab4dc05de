"""Atomic file writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file next to `path` for writing; rename it to `path` on success."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def delete_partial(path: Path) -> None:
    """Delete what processes that were killed while they wrote `path` have left beside it.

    Args:
        path: a file that no other process is writing; a pattern as name means several.
    """
    for partial in path.parent.glob(f".{path.name}.*.part"):
        partial.unlink(missing_ok=True)
