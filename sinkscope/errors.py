"""The one error a user can cause."""

from __future__ import annotations


class SinkscopeError(ValueError):
    """Something given to sinkscope cannot be used; the message says what was given, what was expected and what to do.

    The command line prints the message as one line and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, without its full stop; its class where it has none."""
    lines = str(error).strip().splitlines()
    return (lines[0].strip().rstrip(".:") if lines else "") or type(error).__name__
