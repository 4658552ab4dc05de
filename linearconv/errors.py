"""The exception for user errors, and errors in one line."""


class UserError(Exception):
    """A user error: the message states the problem, what was expected and what to do.

    Entry points print only the message, without a traceback, and exit with status 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message; torch's messages go on with its own advice."""
    return str(error).strip().partition("\n")[0]
