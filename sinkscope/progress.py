"""The one way to show progress: a bar that appears once a user has waited for two seconds."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm

PATIENCE = 2.0  # seconds


def progress_bar(total: int, unit: str, shown: bool | None = None, **options: Any) -> tqdm[Any]:
    """A bar, to be used as a context: shown from the start (True), never (False), or after two seconds (None)."""
    return tqdm(total=total, unit=unit, disable=shown is False, delay=PATIENCE if shown is None else 0.0, **options)
