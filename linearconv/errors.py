"""The exception for user errors, and how messages are worded."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A user error: the message states the problem, what was expected and what to do.

    Entry points print only the message, without a traceback, and exit with status 2.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name that is most similar; nothing if none is."""
    names = sorted(known)  # ties must not depend on the order of a set
    near = [each for each in names if each.lower() == name.lower()]
    near = near or get_close_matches(name, names, 1)
    return f"; did you mean {near[0]}?" if near else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; torch's messages go on with its own advice."""
    return str(error).strip().partition("\n")[0]
