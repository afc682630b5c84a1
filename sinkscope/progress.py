"""The one way to show progress: a bar, once a user has waited for two seconds, and a line for each stage of a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm

PATIENCE = 2.0  # seconds
_in_stage: ContextVar[bool] = ContextVar("in a stage", default=False)


def progress_bar(total: int, unit: str, shown: bool | None = None, **options: Any) -> tqdm[Any]:
    """A bar, to be used as a context: shown from the start (True), never (False), or after two seconds (None).

    In a stage it goes away when it is done, as the stage has a line of its own.
    """
    delay = PATIENCE if shown is None else 0.0
    return tqdm(total=total, unit=unit, disable=shown is False, delay=delay, leave=not _in_stage.get(), **options)


class Stages:
    """The stages of a long run: as each ends, a line with its name, its time and what is left.

    Args:
        names: of the stages, in their order.
        shown: from the start (True), never (False), or where a user has waited for two seconds (None).
    """

    def __init__(self, names: Sequence[str], shown: bool | None = None) -> None:
        self._left = list(names)
        self._shown = shown
        self._began = time.monotonic()

    @contextmanager
    def next(self) -> Iterator[list[str]]:
        """Run the next stage in this context, which is given the names of those behind it."""
        name, *self._left = self._left
        token, began = _in_stage.set(True), time.monotonic()
        try:
            yield self._left
        finally:
            _in_stage.reset(token)
        now = time.monotonic()
        if self._shown or (self._shown is None and now - self._began > PATIENCE):
            left = f"left: {'; '.join(self._left)}" if self._left else "all measured"
            tqdm.write(f"{name}: {now - began:.0f} s ({left})", file=sys.stderr)
