"""One figure of a report: the record it reads, what it needs of it, and what it means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import xarray as xr
from matplotlib.figure import Figure

from sinkscope.analysis.variables import is_causal


@dataclass(frozen=True)
class Plate:
    """One figure of the report.

    draw: record -> Figure. records: names of the records that may serve it, the best first.
    variables: what that record must hold. meaning: the definition and the null, in words, for the page.
    """

    name: str
    title: str
    draw: Callable[[xr.Dataset], Figure]
    records: tuple[str, ...]
    variables: tuple[str, ...]
    meaning: str
    causal_only: bool = False

    def record(self, records: Mapping[str, xr.Dataset]) -> xr.Dataset | None:
        """The first of `records` that can serve this plate, or None."""
        for name in self.records:
            record = records.get(name)
            if record is None or not all(variable in record for variable in self.variables):
                continue
            if is_causal(record) or not self.causal_only:
                return record
        return None
