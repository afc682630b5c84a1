"""The one error a user can cause, and warnings that point to the user's own line."""

from __future__ import annotations

import sys
import warnings


class SinkscopeError(ValueError):
    """Something given to sinkscope cannot be used; the message says what was given, what was expected and what to do.

    The command line prints the message as one line and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, without its full stop; its class where it has none."""
    lines = str(error).strip().splitlines()
    return (lines[0].strip().rstrip(".:") if lines else "") or type(error).__name__


def warn(message: str) -> None:
    """Warn at the line that called sinkscope, however deep in it the reason was found."""
    level, frame = 1, sys._getframe(1)
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in (__package__, "importlib"):
        level += "importlib._bootstrap" not in frame.f_code.co_filename  # which `warnings` does not count either
        frame = frame.f_back  # type: ignore[assignment]
    warnings.warn(message, stacklevel=level + 1)
