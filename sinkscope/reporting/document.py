"""`Report`: the records of one model, and every figure and table drawn from them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xarray as xr

from sinkscope.arguments import checks_types
from sinkscope.directories import Manifest, restore
from sinkscope.errors import warn
from sinkscope.figures.style import source_line
from sinkscope.reporting.atlas_section import ATLAS, KIND
from sinkscope.reporting.attention import ATTENTION
from sinkscope.reporting.content import MAIN, Content, Item, Records, Section, arranged, record_names
from sinkscope.reporting.made import Figures, Tables
from sinkscope.reporting.page import fragment
from sinkscope.reporting.purposes import PURPOSES
from sinkscope.reporting.saving import save
from sinkscope.reporting.softmax import SOFTMAX
from sinkscope.reporting.streaming import STREAMING
from sinkscope.reporting.streams import PARTS

SECTIONS: tuple[Section, ...] = (ATTENTION, PARTS, STREAMING, SOFTMAX, PURPOSES)
"""The parts of a report.

>>> sinkscope.SECTIONS[0].title
'Where attention goes'
"""

ITEMS: tuple[Item, ...] = tuple(item for section in SECTIONS for item in section.items)
"""What a report shows; `report(model, items=[*ITEMS, Item(...)])` shows more.

>>> [item.name for item in sinkscope.ITEMS[:3]]
['sink_mass_heatmap', 'texts', 'mass_by_layer']
"""

SHOWN = ("sink_mass_heatmap", "received_by_position", "sink_rate_curve")


class Report:
    """Where a model's attention goes: records in, figures, tables and a page out. Needs no model and no torch.

    >>> report = sinkscope.Report(record, items=sinkscope.ITEMS[:1])
    >>> report.save("report").name
    'report'

    Args:
        records: one record, or several by name: "text" (the main one), and if there are "short" (many short sequences,
            for the sink rate as it is published), "sentences" (for mean logits), of streaming "perplexity", "ablation"
            and "decode", of what softmax forces "forced", "collapse", "dose", "interventions" and "predictability", and
            those that the items read or the sections make beside these.
        items: what to show; all items of the sections when None.
        sections: the parts of the page.

    Attributes:
        content: all that is shown.
        records: by name.
        figures: name -> matplotlib Figure, drawn when asked for; only those the records can give.
        tables: name -> pandas DataFrame, computed when asked for.

    Raises:
        SinkscopeError: records without "text" or of an unknown name; two items of one name.
    """

    def __init__(
        self,
        records: xr.Dataset | Records,
        *,
        items: Iterable[Item] | None = None,
        sections: Iterable[Section] = SECTIONS,
    ) -> None:
        parts = arranged(sections, items)
        outside = [item for section in parts for item in section.items if item not in ITEMS]
        self.content = Content({MAIN: records} if isinstance(records, xr.Dataset) else records, parts, outside)
        self.records: dict[str, xr.Dataset] = self.content.records
        self.figures: Figures = self.content.figures
        self.tables: Tables = self.content.tables

    @property
    def headline(self) -> str:
        """The result in one sentence, and what streaming costs in another."""
        return self.content.headline

    @checks_types
    def finding(self, name: str) -> str:
        """What the figure of this name shows, in words made of its numbers; nothing for most."""
        return self.content.sentence(name)

    @property
    def notes(self) -> list[str]:
        """What differs from what was asked for: a shorter text, a model's limit, an item that no record serves."""
        return self.content.notes

    @checks_types
    def save(self, directory: str | os.PathLike[str], *, prints: bool = True, progress: bool | None = None) -> Path:
        """Write report.html, figures/, tables/, records/ and manifest.json to `directory`.

        All of it or nothing: it is written beside and renamed. An earlier report in `directory` is replaced, if all
        that is there is as it was saved.

        Args:
            directory: new, empty, or an earlier report.
            prints: False for the page and the records alone, without figures/ and tables/.
            progress: False for no progress bar.

        Returns:
            Its absolute path.

        Raises:
            SinkscopeError: `directory` holds anything else, or a file that was changed since, or cannot be written to.
        """
        return save(self.content, directory, progress, prints)

    @classmethod
    @checks_types
    def open(
        cls,
        directory: str | os.PathLike[str],
        *,
        items: Iterable[Item] | None = None,
        sections: Iterable[Section] = SECTIONS,
    ) -> Report:
        """The report saved in `directory`, from its records alone; items and sections are those it was made with.

        Raises:
            SinkscopeError: there is none, or its manifest or a record is not as it was saved.
        """
        path = Path(os.path.abspath(os.path.expanduser(directory)))
        restore(path)
        saved = Manifest(path)
        main = f"records/{MAIN}.nc"
        if sections is SECTIONS and main in saved.files and saved.record(main).attrs.get("kind") == KIND:
            sections = (ATLAS,)
        parts = arranged(sections, items)
        names = {name: f"records/{name}.nc" for name in record_names(parts)}
        records = {name: saved.record(file) for name, file in names.items() if file in saved.files}
        if changed := saved.changed:
            warn(f"{path / changed[0]} was changed since the report was saved; what is opened is made of its records.")
        return cls(records, items=items, sections=sections)

    def __repr__(self) -> str:
        return f"{self.headline}\n{source_line(self.records[MAIN].attrs)}\nfigures: {', '.join(self.figures)}\n" + (
            f"tables: {', '.join(self.tables)}"
        )

    def _repr_html_(self) -> str:
        return fragment(self.content, [name for name in SHOWN if name in self.figures] or list(self.figures)[:2])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}
