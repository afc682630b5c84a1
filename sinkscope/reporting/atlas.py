"""Many models in one call: their reports, made or opened, and one table of their headline numbers."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sinkscope.analysis.atlas import atlas_table, differences, named_reports
from sinkscope.arguments import checks_types, is_listed
from sinkscope.definition import check_resumable
from sinkscope.directories import MANIFEST
from sinkscope.errors import SinkscopeError, shown
from sinkscope.experiments.run_folder import key_of, settings_text
from sinkscope.figures.style import model_name
from sinkscope.hf.loading import load_beside
from sinkscope.models.identity import identity
from sinkscope.reporting.atlas_section import ATLAS, HEADLINE, KIND, stored
from sinkscope.reporting.content import MAIN, SUMMARY
from sinkscope.reporting.document import Report
from sinkscope.reporting.gather import WITHIN, report
from sinkscope.sampling import COUNT
from sinkscope.texts import read_stream, text_name


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
        folder: where the reports of models that are given by name are saved, and found by the next call that asks the
            same of the same model: weights, tokens and versions are compared. Nowhere when None.
        progress: False for no progress bars.

    Returns:
        A `Report` whose table `atlas` has a row for each model, and `headline` every headline number of each report.

    Raises:
        SinkscopeError: no models, or as `report` of one of them.
    """
    named = dict(models) if isinstance(models, Mapping) else None
    if named is None and (isinstance(models, (str, bytes)) or not is_listed(models)):
        raise SinkscopeError(f"atlas takes a list of models, not {shown(models)}: put it in brackets.")
    given = list(named.values()) if named is not None else list(models)
    if not given:
        raise SinkscopeError("there is nothing to put into an atlas: give models, or folders of saved reports.")
    asked = {"segments": segments, "length": length, "streaming": streaming, "softmax": False}
    reports = [_report(each, text, folder, progress, asked, load_options) for each in given]
    names = [str(each) for each in named] if named is not None else [_called(report) for report in reports]
    by_name = named_reports([report.records for report in reports], names)
    table = atlas_table(by_name)
    summaries = [report.tables[SUMMARY].assign(model=name) for report, name in zip(reports, by_name, strict=True)]
    numbers = (
        pd.concat([each for each in summaries if len(each)], ignore_index=True) if any(map(len, summaries)) else None
    )
    records = {MAIN: stored(table, "model", table.attrs)}
    if numbers is not None:
        records[HEADLINE] = stored(numbers, "row", table.attrs | {"kind": KIND})
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
    for each in (one, other):
        if not isinstance(each, Report) and not _is_saved(each):
            raise SinkscopeError(f"{shown(each)} is no report: give two folders that `sinkscope report` wrote.")
    found = [each.records if isinstance(each, Report) else Report.open(each).records for each in (one, other)]
    return differences(found[0], found[1])


def _is_saved(given: Any) -> bool:
    return isinstance(given, (str, os.PathLike)) and os.path.isfile(Path(os.path.expanduser(given)) / MANIFEST)


def _report(given: Any, text: Any, folder: Any, progress: bool | None, asked: dict[str, Any], loading: Any) -> Report:
    """The report of one model: given, saved, or made now."""
    if isinstance(given, Report):
        return given
    if _is_saved(given):
        return Report.open(given)
    is_named = given is None or isinstance(given, (str, os.PathLike))
    if folder is None or not is_named:
        model, tokenizer = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
        return report(model, tokenizer, text, progress=progress, **asked, **loading)
    model, tokenizer = load_beside(given, None, **loading)
    ids, front = read_stream(tokenizer, text, max(asked["segments"] * asked["length"], WITHIN))
    tokens = hashlib.sha256(repr((front, ids.tolist())).encode()).hexdigest()
    settings = {**identity(model), "tokens": tokens, "text": text_name(text), **asked}
    check_resumable(settings, "a report cannot be kept and found again")
    name = re.sub("[^A-Za-z0-9._-]+", "-", os.fspath(given or "demo")).strip("-.")[-40:]
    own = Path(os.path.expanduser(folder)) / f"{name}-{key_of(settings_text(settings))}"
    if _is_saved(own):
        return Report.open(own)
    made = report(model, tokenizer, text, progress=progress, **asked)
    made.save(own, progress=progress)
    return made


def _called(report: Report) -> str:
    return model_name(report.records[MAIN].attrs)
