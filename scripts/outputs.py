"""Where a command may write what it was asked for."""

from __future__ import annotations

import os
from pathlib import Path

from linearconv.errors import UserError


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
