"""The one error a user can cause, and warnings that point to the user's own line."""

from __future__ import annotations

import sys
import warnings
from typing import Any

LONGEST = 600  # characters of a message, beyond which its middle is left out


class SinkscopeError(ValueError):
    """Something given to sinkscope cannot be used; the message says what was given, what was expected and what to do.

    The message is one line, whatever was given, and may end with the title of the page of the documentation that tells
    more. The command line prints it and exits with code 2.

    >>> try:
    ...     sinkscope.uniform_mass(0)
    ... except sinkscope.SinkscopeError as problem:
    ...     print(problem)
    length=0 is not a whole number of 1 or more: give one.
    """

    def __init__(self, message: str = "", *, page: str | None = None) -> None:
        told = _cut(" ".join(message.split()), LONGEST)
        super().__init__(f'{told} The documentation tells more, in "{page}".' if page else told)


def shown(value: Any, longest: int = 80) -> str:
    """The repr of a value as a message can hold it: on one line, not too long, and its class where it has none."""
    return _cut(" ".join(safe_repr(value).split()), longest)


def safe_repr(value: Any) -> str:
    """The repr of a value; its class where it has none."""
    try:
        return repr(value)
    except Exception:  # of anybody's class; Python itself writes no whole number of more than 4,300 digits
        return f"<{type(value).__name__}>"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest * 2 // 3]} ... {text[-longest // 3 :]}"


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
