"""The errors a user of `dalang dev` sees: one line of what happened, and what to do about it."""


class DevError(Exception):
    """Something the user should read; the command prints it without a traceback and exits with 1."""
