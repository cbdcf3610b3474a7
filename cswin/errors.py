"""Errors with a remedy."""


class UserError(Exception):
    """An error that the user can fix: the message names the file, key or value and the remedy.

    The command line prints the message without a traceback and exits with code 2.
    """


class BadImage(UserError):
    """An image file that cannot be decoded; the message says why."""
