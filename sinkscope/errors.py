"""The one error a user can cause."""

from __future__ import annotations


class SinkscopeError(ValueError):
    """Something given to sinkscope cannot be used; the message says what was given, what was expected and what to do.

    The command line prints the message as one line and exits with code 2.
    """
