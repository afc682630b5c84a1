"""What a report shows: the items of its sections, each from the record that serves it.

Knows no HTML, no files, no notebook and no torch; `page` and `saving` take the Content, and `Report` stands above them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from sinkscope.analysis.mass import above_null
from sinkscope.analysis.variables import is_causal
from sinkscope.arguments import check_fields, several
from sinkscope.errors import SinkscopeError, shown
from sinkscope.reporting.made import (
    COLUMNS,
    Figures,
    Made,
    Tables,
    check_functions,
    check_records,
    checked,
    measured_on,
    named,
    plain_table,
    read_only,
    summary_rows,
)

if TYPE_CHECKING:
    from sinkscope.probes import Probe
    from sinkscope.reporting.passes import Passes

Records = Mapping[str, xr.Dataset]
Numbers = list[dict[str, Any]]
Measure = Callable[[], xr.Dataset]
T = TypeVar("T")

MAIN = "text"
SUMMARY = "summary"
SHARES = ("probability", "fraction of heads")


@dataclass(frozen=True)
class Table:
    """The table of an item, where it is called or explained otherwise than its figure.

    >>> table = sinkscope.Table(sinkscope.discover, name="strongest")

    Args:
        make: record -> DataFrame.
        name: under which it is found and saved; the item's when empty.
        title: the item's when empty.
        meaning: what the title leaves open, for the page and the caption.
        variables: what the record must hold beside what the item needs.
    """

    make: Callable[..., pd.DataFrame]
    name: str = ""
    title: str = ""
    meaning: str = ""
    variables: tuple[str, ...] = ()

    @property
    def caption(self) -> str:
        """Title and meaning, as a paper has them."""
        return f"{self.title}. {self.meaning}" if self.meaning else self.title


@dataclass(frozen=True)
class Item:
    """One thing that a report shows: a figure, its table, the sentence they say, and numbers for the summary.

    An item may be written anywhere and handed to `report(model, items=[*ITEMS, item])`; where its record or a variable
    is missing it is left out, and `Report.notes` say so.

    >>> item = sinkscope.Item("strongest", "Sinks", variables=("received",), table=sinkscope.discover)
    >>> table = sinkscope.Report(record, items=[item]).tables["strongest"]

    Args:
        name: of the figure and the table, and of their files: letters, digits, underscores.
        title: for the page; made of the name when empty.
        record: the record that serves it, or several, the best first.
        variables: what that record must hold.
        figure: record -> matplotlib Figure.
        table: record -> DataFrame, or a `Table` with a title and a caption of its own.
        sentence: record, table -> what they show, in words made of their numbers; the table is None where there is
            none.
        numbers: record -> rows of the summary, each a dict with "quantity" and "value", and if there are any "unit",
            "lower" and "upper" (of the 95% interval), "null" and "note".
        meaning: the definition and the null, in words, for the page.
        probes: what its record must be measured with, beside the probes that are there anyway.
        beside: further records that table, sentence and numbers take as arguments; None where there is none.
        causal_only: whether it is defined by causal attention.

    Raises:
        SinkscopeError: a name that is none, or nothing to show.
    """

    name: str
    title: str = ""
    record: str | Sequence[str] = MAIN
    variables: str | Sequence[str] = ()
    figure: Callable[[xr.Dataset], Figure] | None = None
    table: Callable[..., pd.DataFrame] | Table | None = None
    sentence: Callable[..., str] | None = None
    numbers: Callable[..., Numbers] | None = None
    meaning: str = ""
    probes: Sequence[Probe] = ()
    beside: str | Sequence[str] = ()
    causal_only: bool = False

    def __post_init__(self) -> None:
        for name in ("record", "variables", "beside", "probes"):
            given = getattr(self, name)
            object.__setattr__(self, name, tuple(several(given, name)))
        if not self.title and isinstance(self.name, str):
            object.__setattr__(self, "title", self.name.replace("_", " ").capitalize())
        check_functions(self, "figure", "table", "sentence", "numbers")
        names = [self.name, *self.record]
        if self.table is not None:
            meaning = self.meaning if self.figure is None else ""  # it stands once: at the figure, if there is one
            table = self.table if isinstance(self.table, Table) else Table(self.table, meaning=meaning)
            named = replace(table, name=table.name or self.name, title=table.title or self.title)
            object.__setattr__(self, "table", named)
            names.insert(1, named.name)
        for name in names:
            if not (isinstance(name, str) and name.isidentifier() and name.isascii()):
                raise SinkscopeError(f"{shown(name)} cannot name a file; give letters, digits and underscores.")
        check_fields(self)
        if all(made is None for made in (self.figure, self.table, self.sentence, self.numbers)):
            raise SinkscopeError(
                f"the item `{self.name}` shows nothing; give a figure, a table, a sentence or numbers."
            )

    def served_by(self, records: Records, variables: Iterable[str] = ()) -> tuple[xr.Dataset | None, str]:
        """The first of its records that holds what is needed, or None and the reason."""
        check_records(records)
        reasons = []
        for name in self.record:
            record = records.get(name)
            asked = (*self.variables, *several(variables, "variables"))
            missing = [] if record is None else [name for name in asked if name not in list(record.variables)]
            if record is None:
                reasons.append(f"there is no record `{name}`")
            elif missing:
                reasons.append(f"the record `{name}` holds no {missing[0]}")
            elif self.causal_only and not is_causal(record):
                reasons.append("it is defined by causal attention, and this model reads a text both ways")
            else:
                return record, ""
        return None, "; ".join(reasons)


@dataclass(frozen=True)
class Section:
    """A part of a report: records that one function measures, and the items made of them.

    >>> section = sinkscope.Section("My measurements", items=sinkscope.ITEMS[:1])

    Args:
        title: of the part.
        items: in the order of the page.
        run: what to measure: Passes -> records by name, each a record or a function that measures it. Where such a
            function, or the whole, raises SinkscopeError, the rest is measured all the same and the notes say why. None
            where records are handed over, or belong to another section.
        records: the names of the records that `run` makes, and what to call each in a note; those of the items when
            empty.
        subject: what to call all of it in a note; the title when empty.
        probed: which of its records can be measured with the probes of items; all when None.
        causal_only: whether it measures models alone that read a text from left to right.
        headline: records by name -> a sentence for the top of the report, or nothing.

    Raises:
        SinkscopeError: two items of one name.
    """

    title: str
    items: Sequence[Item] = ()
    run: Callable[[Passes], Mapping[str, xr.Dataset | Measure]] | None = None
    records: Mapping[str, str] = field(default_factory=dict)
    subject: str = ""
    probed: tuple[str, ...] | None = None
    causal_only: bool = False
    headline: Callable[[Records], str] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "items", _checked(self.items, Item, "an item"))
        if not isinstance(self.records, Mapping):
            raise SinkscopeError(
                f"records={shown(self.records)} of a section are no names: give a dict, name to title."
            )
        check_functions(self, "run", "headline")
        object.__setattr__(self, "subject", self.subject or self.title)
        if not self.records and self.run is not None:
            known = {name: f"The record `{name}`" for item in self.items for name in item.record if name != MAIN}
            object.__setattr__(self, "records", known)  # the main one is another section's
        check_names(self.items)


def arranged(sections: Iterable[Section], items: Iterable[Item] | None = None) -> tuple[Section, ...]:
    """The sections with these items and no others, each in the section that has it, or one whose record it reads."""
    every = _checked(sections, Section, "a section")
    made = [name for section in every for name in section.records]
    for name in made:
        if made.count(name) > 1:
            raise SinkscopeError(f"two sections of a report make the record `{name}`; give each a name of its own.")
    if items is None:
        check_names(item for section in every for item in section.items)
        return every
    chosen = _checked(items, Item, "an item")
    check_names(chosen)
    homes: list[list[Item]] = [[] for _ in every]
    for item in chosen:
        having = [place for place, section in enumerate(every) if item in section.items]
        making = [place for place, section in enumerate(every) if set(item.record) & set(section.records)]
        if not having and not making:
            raise SinkscopeError(
                f"the item `{item.name}` reads the record `{item.record[0]}`, which no section makes; give one of "
                f"{', '.join(made)}, or a section that makes it."
            )
        homes[(having or making)[0]].append(item)
    return tuple(replace(section, items=tuple(own)) for section, own in zip(every, homes, strict=True))


def check_names(items: Iterable[Item]) -> None:
    """Raise SinkscopeError when two figures or two tables would have one name."""
    items = list(items)
    tables = [item.table.name for item in items if isinstance(item.table, Table)]
    for names in ([item.name for item in items], [SUMMARY, *tables]):
        if twice := [name for name in names if names.count(name) > 1]:
            raise SinkscopeError(f"two items of a report are named `{twice[0]}`; give each a name of its own.")


def record_names(sections: Sequence[Section]) -> list[str]:
    """The names of all records that sections make or their items read, the main one first."""
    made = [name for section in sections for name in section.records]
    read = [name for section in sections for item in section.items for name in (*item.record, *item.beside)]
    return list(dict.fromkeys([MAIN, *made, *read]))


class Content:
    """Records, and the items of sections that they can serve.

    Where no record serves them, the `expected` items are noted; others are left out without a word, as what was not
    measured has its note already.

    Attributes:
        items: those there is a record for, by name.
        figures, tables: by name; drawn and computed when asked for, each once. The first table is the summary.
        captions: titles, captions and sources of the tables, by name.
    """

    def __init__(self, records: Records, sections: Sequence[Section], expected: Iterable[Item] = ()) -> None:
        every = [item for section in sections for item in section.items]
        check_records(records)
        known = record_names(sections)
        for name in records:
            if name not in known:
                raise SinkscopeError(f"a report has the records {', '.join(known)}, not {name!r}.")
        if MAIN not in records:
            raise SinkscopeError(f'a report needs its main record: pass it as {{"{MAIN}": record}}.')
        self.records = {name: records[name] for name in known if name in records}
        self.sections = sections
        self._failed: dict[str, None] = {}  # notes on what items could not make, in order
        self._served: dict[str, xr.Dataset] = {}
        self._left_out: list[str] = []
        for item in every:
            record, reason = item.served_by(self.records)
            if record is not None:
                self._served[item.name] = record
            elif item in expected:
                self._left_out.append(f"`{item.name}` was left out: {reason}.")
        self.items = {item.name: item for item in every if item.name in self._served}
        drawn = {name: item.figure for name, item in self.items.items() if item.figure is not None}
        self.figures = Figures({name: partial(self._figure, name, figure) for name, figure in drawn.items()})
        self.captions: dict[str, tuple[Table, xr.Dataset]] = {
            SUMMARY: (Table(self._summary, SUMMARY, "Summary"), self.records[MAIN])
        }
        makers: dict[str, Callable[[], pd.DataFrame]] = {SUMMARY: self._summary}
        for item in self.items.values():
            if not isinstance(item.table, Table):
                continue
            record, _ = item.served_by(self.records, item.table.variables)
            if record is not None:
                self.captions[item.table.name] = item.table, record
                makers[item.table.name] = partial(self._table, item, item.table.make, record)
        self.tables = Tables(makers)

    def source(self, name: str) -> xr.Dataset:
        """The record that serves the item of this name."""
        return self._served[name]

    def sentence(self, name: str) -> str:
        """What the item of this name shows, in words made of its numbers; nothing for most."""
        item = self.items.get(name)
        if item is None or item.sentence is None:
            return ""
        try:
            called = item.table.name if isinstance(item.table, Table) else ""
            table = self.tables.get(called)
            if table is None and called in self.captions:
                return ""  # the note on its table says why
            said = self._called(item, item.sentence, self._served[name], table, part="sentence")
            return checked(said, str, f"the sentence of `{name}`", "words, none at all as ''")
        except SinkscopeError as reason:
            self.leave_out(str(reason))
            return ""

    def tried(self, things: Made[T], name: str) -> T | None:
        """The figure or the table of this name; None, and a note, where its item cannot make it."""
        try:
            return things.get(name)
        except SinkscopeError as reason:
            self.leave_out(str(reason), things, name)
            return None

    def leave_out(self, reason: str, things: Made[Any] | None = None, name: str = "") -> None:
        """Do without a thing, and note why."""
        self._failed[reason] = None
        if things is not None:
            things.drop(name)

    @property
    def headline(self) -> str:
        """The sentences of the sections that have one."""
        said = []
        for section in self.sections:
            try:
                with named(f"the headline of the section `{section.title}`"):
                    said.append(section.headline(self.records) if section.headline is not None else "")
            except SinkscopeError as reason:
                self.leave_out(str(reason))
        return " ".join(str(each) for each in said if each)

    @property
    def notes(self) -> list[str]:
        """What differs from what was asked for: a shorter text, a model's limit, an item that no record serves."""
        noted = str(self.records[MAIN].attrs.get("notes", "")).split("\n")
        return [*filter(None, noted), *self._left_out, *self._failed]

    def _called(self, item: Item, make: Callable[..., T], *given: Any, part: str) -> T:
        with named(f"the {part} of `{item.name}`"):
            beside = (self.records.get(name) for name in item.beside)
            return make(*(read_only(each) for each in (*given, *beside)))

    def _table(self, item: Item, make: Callable[..., pd.DataFrame], record: xr.Dataset) -> pd.DataFrame:
        what = f"the table of `{item.name}`"
        table = checked(self._called(item, make, record, part="table"), pd.DataFrame, what, "a pandas DataFrame")
        return plain_table(table, what)

    def _figure(self, name: str, draw: Callable[[xr.Dataset], Figure]) -> Figure:
        what, words = f"the figure of `{name}`", "a matplotlib Figure; a Drawing becomes one under @figures.figure"
        with named(what):
            drawn = draw(read_only(self._served[name]))
        figure = checked(drawn, Figure, what, words)
        figure.name = name  # type: ignore[attr-defined]
        return figure

    def _summary(self) -> pd.DataFrame:
        """One row per headline quantity; NaN where an interval or a null does not exist."""
        blank = {"unit": "", "lower": np.nan, "upper": np.nan, "null": np.nan, "note": ""}
        rows = []
        for item in self.items.values():
            try:
                rows += [{**blank, **row} for row in self._numbers(item)]
            except SinkscopeError as reason:
                self.leave_out(str(reason))
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        null = table["null"].astype(float)
        is_share = table["unit"].isin(SHARES) & (null < 1)
        table["above_null"] = above_null(table["value"].astype(float), null).where(is_share)
        return table

    def _numbers(self, item: Item) -> Numbers:
        """The rows that an item gives for the summary."""
        if item.numbers is None:
            return []
        record, what = self._served[item.name], f"the numbers of `{item.name}`"
        given: Any = self._called(item, item.numbers, record, part="numbers")
        rows = summary_rows(given, what)
        with named(what):
            return [{"measured_on": measured_on(record), **row} for row in rows]


def _checked(given: Any, kind: type[T], words: str) -> tuple[T, ...]:
    every = tuple(several(given, words))
    for each in every:
        if not isinstance(each, kind):
            raise SinkscopeError(f"{shown(each)} is not {words}; give instances of sinkscope.{kind.__name__}.")
    return every
