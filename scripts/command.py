"""What all commands share: how they end."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable
from typing import NoReturn, TextIO

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
        if not _is_closed(sys.stdout):
            raise  # another pipe
        code = FAILED
    exit_now(code)


def _is_closed(stream: TextIO) -> bool:
    """Whether nobody reads a pipe any more; flushing it may not tell a second time."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return bool(poll.poll(0))
