"""Tokens that stand out: sinks at any position, and massive activations.

A sink is a key that some heads hold on to and that gets more than an even share. Massive activations are those of Sun
et al. (2024, "Massive activations in large language models").
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.importance import EPSILON, importance
from sinkscope.analysis.reading import reads
from sinkscope.analysis.spans import by_span, spans_of
from sinkscope.analysis.variables import is_causal, sequence_lengths, variable, whole
from sinkscope.arguments import finite_number, open_unit, whole_number

if TYPE_CHECKING:
    from sinkscope.spans import Spans

COLUMNS = ("sequence", "position", "token_text", "kind", "heads", "importance", "null", "times_null")
FEWEST_QUERIES = 16
SHARE_OF_QUERIES = 0.25

SPECIAL = re.compile(r"<[^<>\s]+>|\[[A-Z]+\d*\]")
"""<s>, <|im_start|>, <bos>, [CLS]: how tokenizers write tokens that stand for no text."""
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
WRITTEN_SPACES = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n", "ĉ": "\t", "č": "\r"})
"""How byte-level and SentencePiece vocabularies write white space."""


@reads
def discover(
    record: xr.Dataset,
    epsilon: float = EPSILON,
    times_null: float = 2.0,
    top: int | None = 10,
    queries: int | None = None,
    spans: Spans | Sequence[Spans] | None = None,
) -> pd.DataFrame:
    """The sinks of each text, strongest first: one row per sequence and position.

    A position is listed if the importance alpha of its key (see `importance`) is above `epsilon` in at least one head,
    and its mean over heads is at least `times_null` times the null, the alpha of uniform attention for that position.

    heads        fraction of layers x heads with alpha > epsilon (at position 0 the sink rate of that text)
    importance   mean of alpha over layers and heads; null, times_null: that of uniform attention, how often it fits
    kind         "first"; "delimiter": only punctuation or white space, or a special token such as <s>; "other" (also
                 where the record has no texts)
    top          rows per sequence, ordered by heads, then importance; None for all.
    queries      keys seen by fewer are left out; by default a quarter of the text and at least 16 (a shorter text is
                 judged at position 0 alone), in an encoder none. Every query must put its attention somewhere: a head
                 that only looks nearby gives each key about one query's worth, alpha = 1/n with n queries. For n of T/4
                 that is 3.5 nulls, and for the last tokens it passes any threshold.
    spans        whole spans are judged in the place of tokens, as `Spans.words(tokenizer, ids)` are: importance and
                 null are sums over the tokens of each, position is that of its first, and token_text its name.

    Needs `received`; with `sink_mass` alone only the first keys are judged (attrs["from"]).
    Raises SinkscopeError if epsilon is outside (0, 1), times_null is negative, top or queries is below 1.
    """
    record, epsilon = whole(record), open_unit(epsilon, "epsilon")
    times_null = finite_number(times_null, "times_null", 0.0, inclusive=True)
    top = None if top is None else whole_number(top, "top", 1)
    queries = None if queries is None else whole_number(queries, "queries", 1)
    alpha = importance(record)
    every: list[Any] = []
    if spans is not None:
        every = spans_of(spans, alpha.sizes["sequence"])
        alpha = by_span(alpha, spans).rename(key_span="key")
    heads = (alpha > epsilon).where(alpha.notnull()).mean(["layer", "head"]).values
    mean, null = alpha.mean(["layer", "head"]).values, alpha["null"].values
    with np.errstate(invalid="ignore", divide="ignore"):
        times = mean / null
    fewest = queries
    if queries is None:
        lengths = sequence_lengths(record).values[:, None]
        share = np.maximum(FEWEST_QUERIES, np.ceil(SHARE_OF_QUERIES * lengths))
        fewest = np.minimum(lengths, share) if is_causal(record) else 1  # no more than a text has
    listed = (heads > 0) & (times >= times_null) & (alpha["queries"].values >= fewest)
    rows = []
    for s, number in enumerate(alpha["sequence"].values):
        found = np.flatnonzero(listed[s])
        for column in found[np.lexsort((found, -mean[s, found], -heads[s, found]))][:top]:
            if every:
                text = str(alpha["key"].values[column])
                position = every[s].rows[every[s].names.index(text)][0][0]
            else:
                position = int(alpha["key"].values[column])
                text = text_of(record, s, position)
            kind = "first" if position == 0 else "delimiter" if is_delimiter(text) else "other"
            rows.append((number, position, text, kind, *(each[s, column] for each in (heads, mean, null, times))))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table = table.astype({"sequence": np.int64, "position": np.int64} | dict.fromkeys(COLUMNS[4:], np.float64))
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


@reads
def massive_activations(record: xr.Dataset, magnitude: float = 100, ratio: float = 1000) -> pd.DataFrame:
    """The tokens whose largest hidden-state entry is above `magnitude` and at least `ratio` times the layer's median.

    One row per (sequence, layer, position): token_text ("" if unknown), dimension (-1 if not measured), magnitude,
    times_median; ordered by sequence, layer and position. Only each token's largest entry was recorded, so a second
    massive dimension of a token does not show. attrs hold what was computed and the record's provenance.
    Raises SinkscopeError if the record has no hidden-state extremes, or a threshold is not above zero.
    """
    magnitude, ratio = finite_number(magnitude, "magnitude", 0.0), finite_number(ratio, "ratio", 0.0)
    record = whole(record)
    axes = ("sequence", "layer", "token")
    largest, median = (variable(record, f"activation_{name}").transpose(*axes) for name in ("max", "median"))
    values, medians = largest.values.astype(np.float64), median.values.astype(np.float64)
    massive = (values > magnitude) & (values >= ratio * medians)
    where = np.argwhere(massive)
    table = pd.DataFrame(
        {name: largest[name].values[at].astype(np.int64) for name, at in zip(axes, where.T, strict=True)}
    ).rename(columns={"token": "position"})
    table["token_text"] = [text_of(record, s, p) for s, p in where[:, [0, 2]]]
    table["dimension"] = -1
    if "activation_dimension" in record:
        table["dimension"] = record["activation_dimension"].transpose(*axes).values[massive].astype(np.int64)
    table["magnitude"] = values[massive]
    with np.errstate(divide="ignore"):
        table["times_median"] = values[massive] / medians[massive]
    table.attrs = {
        **record.attrs,
        "computed": f"largest magnitude above {magnitude:g} and at least {ratio:g} times the layer's median "
        "(Sun et al. 2024)",
        "magnitude": magnitude,
        "ratio": ratio,
    }
    return table


def text_of(record: xr.Dataset, sequence: int, position: int) -> str:
    """The text of the token at these indices; "" if the record has no texts."""
    if "token_text" not in record.coords:
        return ""
    return str(record["token_text"].transpose("sequence", "token").values[sequence, position])


def is_delimiter(text: str) -> bool:
    """Whether a token is only punctuation, white space or control characters, or a special token.

    >>> [is_delimiter(text) for text in (".", "\\n", "<s>", "<|im_start|>", "[SEP]", "Ċ", "<0x0A>")]
    [True, True, True, True, True, True, True]
    >>> [is_delimiter(text) for text in (" the", "a.", "")]
    [False, False, False]
    """
    if byte := BYTE.fullmatch(text):
        text = chr(int(byte[1], 16))
    elif SPECIAL.fullmatch(text):
        return True
    text = text.translate(WRITTEN_SPACES)
    kinds = ((character, unicodedata.category(character)) for character in text)
    return bool(text) and all(each in string.punctuation or kind[0] in "PZ" or kind == "Cc" for each, kind in kinds)
