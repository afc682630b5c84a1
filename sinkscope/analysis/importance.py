"""The importance of a key, and the sink rate: in what fraction of heads a key is a sink (Gu et al. 2024, "When
attention sink emerges")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from sinkscope.analysis.intervals import TEXT, interval
from sinkscope.analysis.mass import even_share, position_within
from sinkscope.analysis.reading import reads
from sinkscope.analysis.variables import (
    PER_QUERY,
    is_causal,
    key_lengths,
    measured_queries,
    sequence_lengths,
    text_length,
    variable,
    whole,
)
from sinkscope.arguments import open_unit, whole_number
from sinkscope.errors import SinkscopeError

EPSILON = 0.3  # Gu et al. 2024
FEW_TEXTS = 16
RATE_NOTE = "no interval of a rate over fewer than 16, which would hold it in 85% to 93%, not 95% (the page Intervals)"
EPSILONS = tuple(round(0.05 * step, 2) for step in range(1, 20))


@reads
def importance(record: xr.Dataset) -> xr.DataArray:
    """alpha of every key (Gu et al. 2024, arXiv 2410.10781): [sequence, layer, head, key], in 0..1.

    alpha(l, h, k) = sum_i A(l, h)[i, k] / (number of queries i >= k), k's own query included; in an encoder, where all
    queries see every key, the mean over all of them. Only measured queries count. NaN past the end of a text and for
    heads a layer lacks. The coordinate `null` [sequence, key] holds the alpha of uniform attention, `queries`
    [sequence, key] the number of queries in the mean: with few of them alpha is noisy.

    From `received`; without it from `sink_mass`, for the first keys only (attrs["from"] says which).
    Raises SinkscopeError if the record has neither.

    >>> sinkscope.importance(record).dims
    ('sequence', 'layer', 'head', 'key')
    """
    record = whole(record)
    if "received" in record or "sink_mass" not in record:
        total, source = variable(record, "received").astype("float64"), "received"
    else:
        kept = record["sink_mass"].sel(sink=record["sink"] < text_length(record))
        total = kept.sum("query", skipna=True, min_count=1, dtype="float64").rename(sink="key")
        source = "sink_mass"
    key = total["key"]
    counts = _sum_from_key(measured_queries(record).astype("float64"), key, record)
    null = _sum_from_key(even_share(record).fillna(0.0), key, record) / counts.where(counts > 0)
    in_text = key < key_lengths(record)
    alpha = (total / _queries_per_head(record, key, counts)).where(in_text)
    alpha = alpha.transpose("sequence", "layer", "head", "key").assign_coords(
        null=null.where(in_text).transpose("sequence", "key"),
        queries=counts.where(in_text, 0).astype("int64").transpose("sequence", "key"),
    )
    alpha.attrs = {
        **record.attrs,
        "computed": "importance alpha of each key: mean attention it receives from the queries that see it "
        "(Gu et al. 2024)",
        "from": source,
        "null": "coordinate null: the same mean for uniform attention",
    }
    return alpha.rename("importance")


@reads
def sink_features(record: xr.Dataset, top: int = 10, queries: int = 1) -> xr.DataArray:
    """The largest importances of each head, sorted: [sequence, layer, head, rank], the features of SinkProbe.

    SinkProbe (Binkowski et al. 2026, arXiv 2604.10697) tells hallucinations by the sink scores of a text with its
    answer, the mean attention that each token receives from later ones: the highest of each head, whatever token they
    belong to, into a logistic regression with an L1 penalty. Here the score is alpha of `importance`, which counts a
    key's own query too. `generate_record` reads an answer with its prompt.

        sinkscope.sink_features(record).stack(feature=("layer", "head", "rank")).values  # [sequence, feature]

    >>> sinkscope.sink_features(record, top=3).dims
    ('sequence', 'layer', 'head', 'rank')

    Args:
        record: with `received`; from `sink_mass` there are the first keys only (attrs["from"] says which).
        top: scores of each head; NaN where a text has fewer keys.
        queries: keys that fewer queries see are left out; the last key has its own query alone.

    Raises:
        SinkscopeError: neither variable, numbers below 1.
    """
    top, queries = whole_number(top, "top", 1), whole_number(queries, "queries", 1)
    alpha = importance(record)
    most = int(alpha["queries"].max())
    if queries > most:
        raise SinkscopeError(f"queries={queries} leaves no key: give {most} or less, the most that see one.")
    scores = alpha.where(alpha["queries"] >= queries).values
    ordered = -np.sort(-scores, axis=-1)[..., :top]  # NaN last
    padded = np.pad(ordered, [*[(0, 0)] * 3, (0, top - ordered.shape[-1])], constant_values=np.nan)
    coords = {name: alpha[name] for name in ("sequence", "layer", "head")}
    attrs = {**alpha.attrs, "computed": f"the {top} largest importances of each head, sorted (SinkProbe)"}
    attrs.pop("null")
    dims = ("sequence", "layer", "head", "rank")
    return xr.DataArray(padded, coords | {"rank": np.arange(top)}, dims, "sink_features", attrs)


def _sum_from_key(values: xr.DataArray, key: xr.DataArray, record: xr.Dataset) -> xr.DataArray:
    """[..., query] to [..., key]: the sum over the queries that can see each key."""
    if not is_causal(record):
        return values.sum("query") * xr.ones_like(key, dtype="float64")
    from_end = values.isel(query=slice(None, None, -1)).cumsum("query").isel(query=slice(None, None, -1))
    tail = from_end.rename(query="key").assign_coords(key=values["query"].values)
    return tail.reindex(key=key.values, fill_value=0.0).assign_coords(key=key)


def _queries_per_head(record: xr.Dataset, key: xr.DataArray, counts: xr.DataArray) -> xr.DataArray:
    """The number of queries behind each sum: per head, where layers began at different queries."""
    for name in PER_QUERY:
        if name in record:
            found = record[name].notnull()
            found = found.isel(sink=0, drop=True) if "sink" in found.dims else found
            if not bool((found == found.any(["layer", "head"])).where(found.any("query"), True).all()):
                counts = _sum_from_key(found.astype("float64"), key, record).where(found.any("query"), counts)
            break
    return counts.where(counts > 0)


@reads
def sink_rate(record: xr.Dataset, epsilon: float = EPSILON, position: int = 0) -> xr.DataArray:
    """Fraction of heads, over layers and sequences, with an importance alpha of `position` above epsilon.

    After Gu et al. 2024 (arXiv 2410.10781).

    No dimensions. A fraction of heads, not a mass; heads a layer lacks are left out, and so are texts that end before
    the position. It falls as T grows and depends on BOS, so attrs hold epsilon, position, T (of the longest text),
    T_shortest, bos, sequences, null_alpha (alpha under uniform attention, mean over sequences: H_T / T for position 0)
    and null_rate (of such heads); heads, their number, median_alpha, over heads, and of several texts flips, the heads
    whose alpha is above epsilon on one text and not on another. alpha of position 0 includes the first query's
    attention to itself, which is 1.
    Raises SinkscopeError if epsilon is outside (0, 1), the position is in no text, or the record cannot give its alpha.

    >>> rate = sinkscope.sink_rate(record, epsilon=0.3)
    >>> 0 <= float(rate) <= 1
    True
    """
    record, epsilon = whole(record), open_unit(epsilon, "epsilon")
    position = position_within(int(sequence_lengths(record).max()), position)
    alpha = _importance_at(record, position)
    counted = alpha.notnull().any(["layer", "head"])
    if not bool(counted.any()):
        raise SinkscopeError(f"the record holds no attention to position {position}: measure with SinkMass().")
    null, lengths = alpha["null"].where(counted), sequence_lengths(record).where(counted)
    rate = (alpha > epsilon).where(alpha.notnull()).mean().reset_coords(drop=True)
    rate.attrs = {
        **record.attrs,
        "computed": f"fraction of heads with importance of position {position} above {epsilon:g} (Gu et al. 2024)",
        "epsilon": epsilon,
        "position": position,
        "T": int(lengths.max()),
        "T_shortest": int(lengths.min()),
        "bos": record.attrs.get("bos", "unknown"),
        "sequences": int(counted.sum()),
        "null_alpha": float(null.mean()),
        "null_rate": float((null > epsilon).where(counted).mean()),
        "heads": int(alpha.notnull().any("sequence").sum()),
        "median_alpha": float(alpha.mean("sequence").median()),
    }
    if int(counted.sum()) > 1:
        rate.attrs["flips"] = int(flips_of(alpha, epsilon))
    return rate.rename("sink_rate")


@reads
def sink_rate_curve(
    record: xr.Dataset,
    epsilons: Sequence[float] | None = None,
    lengths: Sequence[int] | None = None,
    position: int = 0,
) -> xr.Dataset:
    """The sink rate against epsilon and the number T of tokens read: rate, lower, upper [length, epsilon].

    After Gu et al. 2024 (arXiv 2410.10781).

    A causal query sees no later token, so alpha over the queries below t is exactly that of the text's first t tokens.
    epsilons  thresholds; default 0.05, 0.10 .. 0.95.
    lengths   numbers of tokens; default 16, 32, 64 .. and that of the longest text. An encoder has no prefixes: only
              the lengths of its texts are allowed.
    lower and upper are a 95% t interval over sequences. With fewer than 16 they are NaN, and attrs["note"] says why: a
    rate can depend on what a text begins with, and an interval over few texts would hold it less often than that.
    null_alpha [length] is the alpha of uniform attention; sequences [length] is how many texts are that long: shorter
    ones are left out. flips [length, epsilon] is how many of `heads` [length] have an alpha above epsilon on one text
    and not on another (NaN with one), median_alpha [length] the median over heads of their mean alpha.

    Raises SinkscopeError if an epsilon is outside (0, 1), a length or the position is in no text, or the record keeps
    too few first keys apart (`sink_mass`).

    >>> sinkscope.sink_rate_curve(record, epsilons=[0.1, 0.3], lengths=[20, 40]).rate.shape
    (2, 2)
    """
    record = whole(record)
    texts = sequence_lengths(record)
    position = position_within(int(texts.max()), position)
    thresholds = [
        open_unit(each, "epsilon") for each in _several(EPSILONS if epsilons is None else epsilons, "epsilons")
    ]
    prefixes = _checked_lengths(record, lengths, position)
    kept = variable(record, "sink_mass")
    if position >= kept.sizes["sink"]:
        raise SinkscopeError(
            f"position={position} is beyond the {kept.sizes['sink']} first keys the record keeps apart: "
            f"measure with the probe SinkMass(first={position + 1})."
        )
    attention, share, query = kept.isel(sink=position, drop=True).astype("float64"), even_share(record), kept["query"]
    rates, nulls, counts, flips, heads, medians = [], [], [], [], [], []
    for prefix in prefixes:
        long_enough = (texts >= prefix) if is_causal(record) else (texts == prefix)
        seen = (query < prefix) & (query >= position) if is_causal(record) else query < prefix
        alpha = attention.where(seen).mean("query").where(long_enough)
        above = (alpha > xr.DataArray(thresholds, dims="epsilon")).where(alpha.notnull())
        rates.append(above.mean(["layer", "head"]).drop_vars("length", errors="ignore"))
        nulls.append(float(share.where(seen).mean("query").where(long_enough).mean()))
        counts.append(int(alpha.notnull().any(["layer", "head"]).sum()))
        flips.append([float(flips_of(alpha, each)) if counts[-1] > 1 else np.nan for each in thresholds])
        heads.append(int(alpha.notnull().any("sequence").sum()))
        medians.append(float(alpha.mean("sequence").median()))
    every = xr.concat(rates, dim="length")
    if TEXT not in every.coords:  # equal rates are no sign of equal texts
        every = every.assign_coords({TEXT: ("sequence", np.arange(every.sizes["sequence"]))})
    curve = interval(every, at_least=0, at_most=1).rename(mean="rate").transpose("length", "epsilon")
    curve = curve.assign_coords(length=prefixes, epsilon=thresholds)
    curve = curve.assign(null_alpha=("length", nulls), sequences=("length", counts))
    curve = curve.assign(
        flips=(("length", "epsilon"), flips), heads=("length", heads), median_alpha=("length", medians)
    )
    several = (curve["sequences"] >= FEW_TEXTS) & (curve.attrs["n"] >= FEW_TEXTS)
    if not bool(several.all()):
        count = min(int(curve["sequences"].min()), curve.attrs["n"])
        said = f"{count} sequence{'s' * (count != 1)}: {RATE_NOTE}"
        curve = curve.assign({end: curve[end].where(several) for end in ("lower", "upper")})
        curve = curve.assign_attrs(note=said, bounds=f"{curve.attrs['bounds']}; {said}" if several.any() else said)
    curve.attrs = {
        **record.attrs,
        **curve.attrs,
        "computed": f"fraction of heads with importance of position {position} above epsilon, over "
        f"the first `length` tokens (Gu et al. 2024); {curve.attrs['bounds']}",
        "position": position,
        "T": text_length(record),
        "bos": record.attrs.get("bos", "unknown"),
    }
    return curve


def flips_of(alpha: xr.DataArray, epsilon: float) -> xr.DataArray:
    """How many heads are sinks on one text and not on another, from their alpha [sequence, ..]."""
    above, known = alpha > epsilon, alpha.notnull()
    return (above.any("sequence") & (known & ~above).any("sequence")).sum()


def _importance_at(record: xr.Dataset, position: int) -> xr.DataArray:
    """[sequence, layer, head] alpha of one key."""
    if "received" not in record:
        variable(record, "sink_mass")
    kept = record.sizes.get("sink", 0) if "sink_mass" in record else 0
    if position < kept:
        record = record.drop_vars("received", errors="ignore").isel(sink=[position])
    elif "received" not in record:
        raise SinkscopeError(
            f"position={position} is beyond the {kept} first keys the record keeps apart, and it has no "
            f"received: measure with the probe Received() or SinkMass(first={position + 1})."
        )
    return importance(record).sel(key=position, drop=True)


def _checked_lengths(record: xr.Dataset, lengths: Sequence[int] | None, position: int) -> list[int]:
    texts = sorted({int(each) for each in sequence_lengths(record).values})
    longest = texts[-1]
    if lengths is None:
        if not is_causal(record):
            return [each for each in texts if each > position]
        return [*(2**power for power in range(4, 40) if position < 2**power < longest), longest]
    chosen = [whole_number(each, "length", 1) for each in _several(lengths, "lengths")]
    for each in chosen:
        if not is_causal(record) and each not in texts:
            raise SinkscopeError(
                f"length={each} is not that of a whole text, and in an encoder every token sees the whole "
                f"text: give {' or '.join(map(str, texts[:5]))}."
            )
        if not position < each <= longest:
            raise SinkscopeError(
                f"length={each} does not fit position {position} in texts of up to {longest} tokens: "
                f"give one from {position + 1} to {longest}."
            )
    return chosen


def _several(values: Sequence[float] | np.ndarray, name: str) -> list[Any]:
    items = [] if isinstance(values, str) else np.asarray(values).ravel().tolist()
    if not items:
        raise SinkscopeError(f"{name}={values!r} holds no number: give a list of at least one.")
    return items
