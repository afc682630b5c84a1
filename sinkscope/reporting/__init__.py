"""The report: what is measured for it, what it shows, its page, and how it is saved and opened again.

Opening a saved report needs no torch, so the function that measures is imported when it is asked for.
"""

from __future__ import annotations

from typing import Any

from sinkscope.reporting.content import Item, Section, Table
from sinkscope.reporting.document import ITEMS, SECTIONS, Report
from sinkscope.reporting.saving import check_directory

__all__ = ["ITEMS", "SECTIONS", "Item", "Report", "Section", "Table", "check_directory", "report"]


def __getattr__(name: str) -> Any:
    if name != "report":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sinkscope.reporting.gather import report

    return report
