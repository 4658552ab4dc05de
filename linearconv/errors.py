"""The one exception that means "the user asked for something that cannot be done"."""


class UserError(Exception):
    """A user's mistake: the message names it, what was expected and what to do.

    Entry points print the message alone, without a traceback, and exit with status 2.
    """
