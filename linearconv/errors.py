"""The exception for user errors."""


class UserError(Exception):
    """A user error: the message states the problem, what was expected and what to do.

    Entry points print only the message, without a traceback, and exit with status 2.
    """
