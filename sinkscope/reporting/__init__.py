"""The report: what is gathered for it, its tables and page, and how it is saved and opened again.

Opening a saved report needs no torch, so the function that measures is imported when it is asked for.
"""

from __future__ import annotations

from typing import Any

from sinkscope.reporting.directory import check_directory
from sinkscope.reporting.document import Report

__all__ = ["Report", "check_directory", "report"]


def __getattr__(name: str) -> Any:
    if name != "report":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sinkscope.reporting.gather import report

    return report
