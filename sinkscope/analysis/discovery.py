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
from scipy.special import betaincinv

from sinkscope.analysis.importance import EPSILON, importance
from sinkscope.analysis.intervals import TEXT, same_rows
from sinkscope.analysis.mass import position_within
from sinkscope.analysis.reading import reads
from sinkscope.analysis.spans import by_span, spans_of
from sinkscope.analysis.variables import is_causal, sequence_lengths, variable, whole
from sinkscope.arguments import finite_number, one_of, open_unit, whole_number
from sinkscope.errors import SinkscopeError

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

    A position is listed if the importance alpha of its key (Gu et al. 2024; see `importance`) is above `epsilon` in at
    least one head, and its mean over heads is at least `times_null` times the null, the alpha of uniform attention for
    that position. These thresholds are ours.

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

    >>> list(sinkscope.discover(record, epsilon=0.3, top=3))[:4]
    ['sequence', 'position', 'token_text', 'kind']
    """
    record, epsilon = whole(record), open_unit(epsilon, "epsilon")
    times_null = finite_number(times_null, "times_null", 0.0, inclusive=True)
    top = None if top is None else whole_number(top, "top", 1)
    alpha = importance(record)
    every: list[Any] = []
    if spans is not None:
        every = spans_of(spans, alpha.sizes["sequence"])
        alpha = by_span(alpha, spans).rename(key_span="key")
    heads, mean, null, times, judged = _sizes(record, alpha, epsilon, queries)
    listed = (heads > 0) & (times >= times_null) & judged
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
def recurrence_table(
    record: xr.Dataset,
    by: str = "position",
    epsilons: Sequence[float] = (0.2, 0.3, 0.4),
    times_null: float = 2.0,
    queries: int | None = None,
    position: int = 0,
) -> pd.DataFrame:
    """In how many of the texts a position, or a head, comes up as a sink: one row for each and threshold.

    position                 listed by `discover` for the text, with these thresholds and queries; or
    layer, head              its alpha of the key at `position` is above epsilon on the text
    epsilon                  the threshold
    texts, of                on how many texts, of those that can tell: that are long enough and have a number
    share, low, high         of the texts, and its exact 95% interval (Clopper and Pearson 1934), over texts
    alpha, alpha_sd          mean over the texts, and its standard deviation from text to text; of a position, of the
                             mean over layers and heads

    Texts that are one (`same_text`, or the same numbers) count once. Most frequent first, at the middle threshold;
    what comes up on no text at any threshold is left out. attrs["flips"] is, for each epsilon, how many come up on
    one text and not on another.

    >>> list(sinkscope.recurrence_table(record, "position", epsilons=0.1))
    ['position', 'epsilon', 'texts', 'of', 'share', 'low', 'high', 'alpha', 'alpha_sd']

    Args:
        record: with `received`, or for heads and the first keys `sink_mass`.
        by: "position" or "head".
        epsilons: thresholds, each in (0, 1).
        times_null, queries: as in `discover`, for positions.
        position: of the key, for heads.

    Raises:
        SinkscopeError: fewer than two different texts; another word for `by`; as `discover`.
    """
    record, by = whole(record), one_of(by, "by", ("position", "head"))
    thresholds = sorted({open_unit(each, "epsilon") for each in np.atleast_1d(epsilons).tolist()})
    times_null = finite_number(times_null, "times_null", 0.0, inclusive=True)
    if not thresholds:
        raise SinkscopeError(f"epsilons={epsilons!r} holds no threshold: give one or more.")
    alpha = importance(record)
    flat = alpha.values.reshape(alpha.sizes["sequence"], -1)
    text = record[TEXT].values if TEXT in record.coords else same_rows(flat)
    kept = np.sort(np.unique(text, return_index=True)[1])
    if len(kept) < 2:
        raise SinkscopeError("recurrence is over texts, and the record has one: measure several, or segments of one.")
    if by == "head":
        key = position_within(int(sequence_lengths(record).max()), position)
        if key not in alpha["key"].values:
            raise SinkscopeError(f"position={key} has no importance in this record: measure with the probe Received().")
        names = ["layer", "head"]
        sizes = alpha.sel(key=key).stack(place=names).transpose("sequence", "place")
        places, values = [*sizes["place"].values], sizes.values[kept]
        found = {each: (values > each, np.isfinite(values)) for each in thresholds}
    else:
        names, places, found = ["position"], [(int(key),) for key in alpha["key"].values], {}
        for each in thresholds:
            heads, values, _, times, judged = (part[kept] for part in _sizes(record, alpha, each, queries))
            found[each] = (heads > 0) & (times >= times_null) & judged, judged & np.isfinite(values)
    rows, flips = [], {}
    for each, (listed, known) in found.items():
        count, of = (listed & known).sum(0), known.sum(0)
        flips[f"{each:g}"] = int(((count > 0) & (count < of)).sum())
        low = np.where(count > 0, betaincinv(np.maximum(count, 1), of - count + 1, 0.025), 0.0)
        high = np.where(count < of, betaincinv(count + 1, np.maximum(of - count, 1), 0.975), 1.0)
        for place in np.flatnonzero(of):
            own = values[known[:, place], place]
            spread = own.std(ddof=1) if len(own) > 1 else np.nan
            bounds = (count[place] / of[place], low[place], high[place], own.mean(), spread)
            rows.append((*places[place], each, count[place], of[place], *bounds))
    numbers = ["epsilon", "texts", "of", "share", "low", "high", "alpha", "alpha_sd"]
    table = pd.DataFrame(rows, columns=[*names, *numbers])
    most = table.groupby(names)["texts"].transform("max")
    middle = table[table["epsilon"] == thresholds[len(thresholds) // 2]].set_index(names)["share"]
    order = pd.Series([middle.get(tuple(key) if len(key) > 1 else key[0], 0.0) for key in table[names].to_numpy()])
    table = table.assign(order=-order)[most > 0].sort_values(["order", *names, "epsilon"], kind="stable")
    table = table.drop(columns="order").reset_index(drop=True)
    computed = f"texts on which each {by} comes up as a sink"
    about: dict[Any, Any] = {"computed": computed, "by": by, "flips": flips, "texts": len(kept)}
    table.attrs = {**record.attrs, **about, "bounds": f"exact 95% intervals of a share, over {len(kept)} texts"}
    return table


def _sizes(
    record: xr.Dataset, alpha: xr.DataArray, epsilon: float, queries: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each text and key: the share of heads above epsilon, mean alpha, its null, their ratio, and whether enough
    queries see the key to judge it."""
    queries = None if queries is None else whole_number(queries, "queries", 1)
    heads = (alpha > epsilon).where(alpha.notnull()).mean(["layer", "head"]).values
    mean, null = alpha.mean(["layer", "head"]).values, alpha["null"].values
    with np.errstate(invalid="ignore", divide="ignore"):
        times = mean / null
    fewest: Any = queries
    if queries is None:
        lengths = sequence_lengths(record).values[:, None]
        share = np.maximum(FEWEST_QUERIES, np.ceil(SHARE_OF_QUERIES * lengths))
        fewest = np.minimum(lengths, share) if is_causal(record) else 1  # no more than a text has
    return heads, mean, null, times, alpha["queries"].values >= fewest


@reads
def massive_activations(record: xr.Dataset, magnitude: float = 100, ratio: float = 1000) -> pd.DataFrame:
    """The tokens whose largest hidden-state entry is above `magnitude` and at least `ratio` times the layer's median.

    After Sun et al. 2024 (arXiv 2402.17762).

    One row per (sequence, layer, position): token_text ("" if unknown), dimension (-1 if not measured), magnitude,
    times_median; ordered by sequence, layer and position. Only each token's largest entry was recorded, so a second
    massive dimension of a token does not show. attrs hold what was computed and the record's provenance.
    Raises SinkscopeError if the record has no hidden-state extremes, or a threshold is not above zero.

    >>> list(sinkscope.massive_activations(record, magnitude=5, ratio=2))[:4]
    ['sequence', 'layer', 'position', 'token_text']
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
