"""What all commands share: how they end."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from configs.cli import FAILED, exit_now, printable


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Exit with the code of a command's `main`.

    Names that the terminal's encoding lacks are escaped, and a reader that has gone, as in
    `| head`, ends the command without a traceback.
    """
    printable()
    try:
        try:
            code = main()
        except SystemExit as end:  # argparse
            code = end.code
    except BrokenPipeError:
        code = FAILED
    exit_now(code)
