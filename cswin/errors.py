"""Errors that a person can act on."""


class UserError(Exception):
    """Something that the user can put right: the message names the file, key or value and the remedy.

    The command line prints the message without a traceback and exits with code 2.
    """


class BadImage(UserError):
    """An image file that cannot be decoded; the message says why."""
