"""Many models in one call: their reports, made or opened, one table of their headline numbers, and one page."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope import figures as draw
from sinkscope.analysis.atlas import (
    PUBLISHED,
    atlas_table,
    differences,
    named_reports,
    strength_and_collapse,
    vocabularies,
)
from sinkscope.arguments import checks_types, is_listed
from sinkscope.directories import MANIFEST
from sinkscope.errors import SinkscopeError, shown
from sinkscope.figures.style import model_name
from sinkscope.reporting.content import MAIN, SUMMARY, Item, Records, Section
from sinkscope.sampling import COUNT

if TYPE_CHECKING:
    from sinkscope.reporting.document import Report

KIND = "atlas"
HEADLINE = "headline"


@checks_types
def atlas(
    models: Any,
    text: str | os.PathLike[str] | None = None,
    *,
    segments: int = COUNT,
    length: int = 1024,
    streaming: bool = True,
    folder: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    **load_options: Any,
) -> Report:
    """The headline numbers of several models' reports, in one table and on one page.

    A saved report is opened; any other model is measured as `sinkscope.report` does, without the part on softmax. Rows
    that differ from the first in more than the model say in what, and models that read other tokens are told apart.

    >>> made = sinkscope.atlas(["one/", "two/"])
    >>> len(made.tables["atlas"])
    2

    Args:
        models: a list of folders of saved reports, `Report`s, names on the Hub, directories, .gguf files, or None for
            the demo model; or a dict from names to these, or to pairs (model, tokenizer).
        text, segments, length, streaming, load_options: as of `sinkscope.report`, of those that are measured.
        folder: where the reports that are made are saved, each under its name, and found by the next call; nowhere when
            None.
        progress: False for no progress bars.

    Returns:
        A `Report` whose table `atlas` has a row for each model, and `headline` every headline number of each report.

    Raises:
        SinkscopeError: no models, or as `report` of one of them.
    """
    from sinkscope.reporting.document import Report

    named = dict(models) if isinstance(models, Mapping) else None
    if named is None and (isinstance(models, (str, bytes)) or not is_listed(models)):
        raise SinkscopeError(f"atlas takes a list of models, not {shown(models)}: put it in brackets.")
    given = list(named.values()) if named is not None else list(models)
    if not given:
        raise SinkscopeError("there is nothing to put into an atlas: give models, or folders of saved reports.")
    options = {"segments": segments, "length": length, "streaming": streaming, "softmax": False, **load_options}
    reports = [_report(each, text, folder, progress, options) for each in given]
    names = [str(each) for each in named] if named is not None else [_called(report) for report in reports]
    by_name = named_reports([report.records for report in reports], names)
    table = atlas_table(by_name)
    summaries = [report.tables[SUMMARY].assign(model=name) for report, name in zip(reports, by_name, strict=True)]
    numbers = (
        pd.concat([each for each in summaries if len(each)], ignore_index=True) if any(map(len, summaries)) else None
    )
    records = {MAIN: _stored(table, "model", table.attrs)}
    if numbers is not None:
        records[HEADLINE] = _stored(numbers, "row", table.attrs | {"kind": KIND})
    return Report(records, sections=(ATLAS,))


@checks_types
def compare_reports(one: Any, other: Any) -> pd.DataFrame:
    """What differs between two reports, with paired intervals where both read the same tokens.

    >>> list(sinkscope.compare_reports("one/", "two/"))[:3]
    ['quantity', 'one', 'other']

    Args:
        one, other: folders of saved reports, or `Report`s.

    Returns what `sinkscope.analysis.atlas.differences` does.

    Raises:
        SinkscopeError: what is no report.
    """
    from sinkscope.reporting.document import Report

    for each in (one, other):
        if not isinstance(each, Report) and not _is_saved(each):
            raise SinkscopeError(f"{shown(each)} is no report: give two folders that `sinkscope report` wrote.")
    found = [each.records if isinstance(each, Report) else Report.open(each).records for each in (one, other)]
    return differences(found[0], found[1])


def _is_saved(given: Any) -> bool:
    return isinstance(given, (str, os.PathLike)) and os.path.isfile(Path(os.path.expanduser(given)) / MANIFEST)


def _report(given: Any, text: Any, folder: Any, progress: bool | None, options: dict[str, Any]) -> Report:
    """The report of one model: given, saved, or made now."""
    from sinkscope.reporting.document import Report

    if isinstance(given, Report):
        return given
    if _is_saved(given):
        return Report.open(given)
    own = None
    if folder is not None and (given is None or isinstance(given, (str, os.PathLike))):
        said = os.fspath(given) if given is not None else "demo"
        name = re.sub("[^A-Za-z0-9._-]+", "-", said).strip("-.")[-40:]
        own = Path(os.path.expanduser(folder)) / f"{name}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
        if _is_saved(own):
            return _same_setting(Report.open(own), own, text, options)
    from sinkscope.reporting.gather import report

    model, tokenizer = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    made = report(model, tokenizer, text, progress=progress, **options)
    if own is not None:
        made.save(own, progress=progress)
    return made


def _same_setting(found: Report, folder: Path, text: Any, options: Mapping[str, Any]) -> Report:
    """A report that an earlier call saved; SinkscopeError where it is of another text, or of another part of it."""
    from sinkscope.texts import text_name

    record = found.records[MAIN]
    sizes = (record.sizes["sequence"], int(record["length"].max()))
    asked = (options["segments"], options["length"])
    is_other = record.attrs.get("text") != text_name(text)
    if is_other or (sizes != asked and not record.attrs.get("notes")):  # notes say why it had to be shorter
        raise SinkscopeError(
            f"the report in {folder} is of {sizes[0]} x {sizes[1]:,} tokens of {record.attrs.get('text')!r}, and "
            f"{asked[0]} x {asked[1]:,} of {text_name(text)!r} are asked for; give another folder, or delete it."
        )
    return found


def _called(report: Report) -> str:
    return model_name(report.records[MAIN].attrs)


def _stored(table: pd.DataFrame, dim: str, attributes: Mapping[Any, Any]) -> xr.Dataset:
    """A table as a record; numbers that are missing in some rows are NaN, and words empty."""
    columns = {}
    for name in table.columns:
        values = table[name]
        is_text = not pd.api.types.is_numeric_dtype(values)
        columns[f"{dim}_{name}" if name == dim else str(name)] = (
            dim, values.fillna("").astype(str).to_numpy(object) if is_text else values.to_numpy()
        )  # fmt: skip
    return xr.Dataset(columns, attrs=dict(attributes))


def _table(record: xr.Dataset) -> pd.DataFrame:
    dim = str(next(iter(record.dims)))
    table = pd.DataFrame({str(name).removeprefix(f"{dim}_"): each.values for name, each in record.data_vars.items()})
    table.attrs = dict(record.attrs)
    return table


def say_atlas(record: xr.Dataset, table: pd.DataFrame) -> str:
    """What differs, whether strength predicts collapse, and what cannot be compared."""
    said = []
    if other := [
        f"{row['model']} ({row['differs'].replace('_', ' ')})" for row in table.to_dict("records") if row["differs"]
    ]:
        said.append(f"These differ from the first in more than the model: {'; '.join(other)}.")
    try:
        found = strength_and_collapse(table)
        said.append(
            f"Over {found['n']:.0f} models the rank correlation of sink mass with collapse is {found['rho']:.2f} "
            f"[{found['low']:.2f}, {found['high']:.2f}], if they were independent of each other."
        )
    except SinkscopeError as reason:
        said.append(f"Whether strong sinks go with a large collapse: {reason}")
    return " ".join(filter(None, [*said, vocabularies(table)]))


def headline(records: Records) -> str:
    """How many models, and between which values."""
    table = _table(records[MAIN])
    said = f"{len(table)} model{'s' * (len(table) > 1)}: the first token takes "
    said += f"{_between(100 * table['sink_mass'], 1, '%')} of all attention (T = {int(table['T'].iloc[0]):,})"
    collapse = table["collapse"].dropna() if "collapse" in table else pd.Series(dtype=float)
    if len(collapse):
        said += f", and without sinks perplexity is {_between(collapse, 2)} times that with them"
    return f"{said}."


def _between(values: pd.Series, digits: int, unit: str = "") -> str:
    """The smallest and the largest value, or the one that all show."""
    return " to ".join(dict.fromkeys(f"{value:.{digits}f}{unit}" for value in (values.min(), values.max())))


def _compared(record: xr.Dataset) -> Any:
    table = _table(record)
    return draw.comparison(table[np.isfinite(table["collapse"])])


def _described(record: xr.Dataset) -> Any:
    table = _table(record)
    return draw.comparison.describe(table[np.isfinite(table["collapse"])])


_compared.describe = _described  # type: ignore[attr-defined]


def _published(record: xr.Dataset) -> pd.DataFrame:
    return PUBLISHED.assign(collapse=PUBLISHED["window"] / PUBLISHED["sinks"])


ITEMS = (
    Item(
        "atlas",
        "One row for each model",
        variables="sink_mass",
        table=_table,
        sentence=say_atlas,
        meaning="Mass on the first token and sink rate over the tokens that all texts have; the published rate over "
        "many short texts (Gu et al. 2024); collapse: perplexity of the window over that of sinks + window of the same "
        "cache, after the first eviction; sinks needed: the fewest with which perplexity is within 1% of that with the "
        "most; massive tokens: tokens of a text with a massive activation (Sun et al. 2024). Tokens as: models of one "
        "name there read the same tokens. 95% intervals over texts.",
    ),
    Item(
        "comparison",
        "Strength of the sinks and collapse",
        variables=("collapse_low", "cache_size"),
        figure=_compared,
        meaning="Collapse against sink rate and mass. Hollow points differ from the first model in more than the "
        "model.",
    ),
    Item(
        HEADLINE,
        "Every headline number of every report",
        record=HEADLINE,
        variables="quantity",
        table=_table,
        meaning="As the summaries of the reports have them, each with its interval and its null.",
    ),
    Item(
        "published",
        "Published figures, measured by others",
        variables="sink_mass",
        table=_published,
        meaning="Perplexity without sinks and with four, and their ratio: Xiao et al. 2023 (StreamingLLM), Table 2. "
        "Other texts, other caches: to be set beside the rows above, not among them.",
    ),
)
ATLAS = Section(
    "Models side by side",
    ITEMS,
    None,
    records={MAIN: "The atlas", HEADLINE: "Headline numbers"},
    headline=headline,
)
"""What the page of an atlas shows: `Report.open(folder)` opens one by itself."""
