"""Sinks at any position: keys that some heads hold on to, and that get more than an even share."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.importance import importance
from sinkscope.analysis.token_texts import is_delimiter, text_of
from sinkscope.analysis.variables import is_causal, sequence_lengths, whole
from sinkscope.arguments import finite_number, open_unit, whole_number

COLUMNS = ("sequence", "position", "token_text", "kind", "heads", "importance", "null", "times_null")
FEWEST_QUERIES = 16
SHARE_OF_QUERIES = 0.25


def discover(
    record: xr.Dataset,
    epsilon: float = 0.3,
    times_null: float = 2.0,
    top: int | None = 10,
    queries: int | None = None,
) -> pd.DataFrame:
    """The sinks of each text, strongest first: one row per sequence and position.

    A position is listed if the importance alpha of its key (see `importance`) is above `epsilon` in at least
    one head, and its mean over heads is at least `times_null` times the null, the alpha of uniform attention
    for that very position.

    heads        fraction of layers x heads with alpha > epsilon (at position 0 the sink rate of that text)
    importance   mean of alpha over layers and heads;  null, times_null: that of uniform attention, and how
                 often it fits
    kind         "first"; "delimiter": only punctuation or white space, or a special token such as <s>;
                 "other" (also where the record has no texts)

    Late keys are seen by few queries, and every query must put its attention somewhere: a head that only
    looks nearby gives each key about one query's worth, alpha = 1/n with n queries. For n of T/4 that is 3.5
    nulls, and for the last tokens it passes any threshold. So keys seen by fewer than `queries` queries are
    left out: by default a quarter of the text and at least 16 (a text shorter than that is judged at position
    0 alone). An encoder's keys are all seen by all queries.
    top          rows per sequence, ordered by heads, then importance; None for all.

    Needs `received`; with `sink_mass` alone only the first keys are judged (attrs["from"]).
    Raises SinkscopeError if epsilon is outside (0, 1), times_null is negative, top or queries is below 1.
    """
    record, epsilon = whole(record), open_unit(epsilon, "epsilon")
    times_null = finite_number(times_null, "times_null", 0.0, inclusive=True)
    top = None if top is None else whole_number(top, "top", 1)
    queries = None if queries is None else whole_number(queries, "queries", 1)
    alpha = importance(record)
    present = alpha.notnull()
    heads = (alpha > epsilon).where(present).mean(["layer", "head"], skipna=True).values
    mean = alpha.mean(["layer", "head"], skipna=True).values
    null = alpha["null"].values
    seen_by = alpha["queries"].values
    with np.errstate(invalid="ignore", divide="ignore"):
        times = mean / null
    fewest = _fewest_queries(record, queries)[:, None]
    listed = (heads > 0) & (times >= times_null) & (seen_by >= fewest)
    rows = []
    for s in range(len(mean)):
        found = np.flatnonzero(listed[s])
        order = found[np.lexsort((found, -mean[s, found], -heads[s, found]))]
        for column in order[:top]:
            position = int(alpha["key"].values[column])
            text = text_of(record, s, position)
            kind = "first" if position == 0 else "delimiter" if is_delimiter(text) else "other"
            number = int(alpha["sequence"].values[s])
            rows.append(
                (
                    number,
                    position,
                    text,
                    kind,
                    heads[s, column],
                    mean[s, column],
                    null[s, column],
                    times[s, column],
                )
            )
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    numbers = {"sequence": np.int64, "position": np.int64} | dict.fromkeys(COLUMNS[4:], np.float64)
    table = table.astype(numbers)
    table.attrs = {
        **record.attrs,
        "computed": f"keys with importance above {epsilon:g} in some head and a mean of at least "
        f"{times_null:g} times the null",
        "epsilon": epsilon,
        "times_null_at_least": times_null,
        "queries_at_least": "a quarter of the text, at least 16" if queries is None else queries,
        "from": alpha.attrs["from"],
    }
    return table


def _fewest_queries(record: xr.Dataset, queries: int | None) -> np.ndarray:
    """[sequence] the number of queries that must see a key; never more than the text has."""
    lengths = np.atleast_1d(sequence_lengths(record).values)
    if queries is not None:
        return np.full(len(lengths), queries)
    if not is_causal(record):
        return np.ones(len(lengths), dtype=int)
    return np.minimum(lengths, np.maximum(FEWEST_QUERIES, np.ceil(SHARE_OF_QUERIES * lengths).astype(int)))
