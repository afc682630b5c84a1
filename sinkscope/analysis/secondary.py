"""Secondary sinks, the tags that sinks leave, and how far what one token says spreads."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.importance import importance
from sinkscope.analysis.intervals import interval
from sinkscope.analysis.reading import reads
from sinkscope.analysis.variables import check_begins, is_causal, sequence_lengths, variable, whole
from sinkscope.arguments import open_unit, whole_number
from sinkscope.errors import SinkscopeError

PARALLEL, SHORT, SPARED = 0.9, 4, 15  # the code of Wong et al. 2025
SINK_KINDS = ("primary", "secondary", "short", "undecided")
COLUMNS = ("sequence", "position", "token_text", "kind", "birth", "last", "lifetime", "cosine", "importance", "null")


@reads
def secondary_sinks(
    record: xr.Dataset, parallel: float = PARALLEL, short: int = SHORT, spared: int = SPARED
) -> pd.DataFrame:
    """Tokens whose hidden state is parallel to the first token's, one row for each text and token (Wong et al. 2025,
    "On the existence and behaviour of secondary attention sinks", arXiv 2512.22213).

    The first token is a sink from the layer behind which the norm of its state has risen most, up to the one before
    that behind which it falls most. Another token is one in those of these layers behind which the cosine of their
    states is beyond `parallel` either way. With a lifetime of n of L layers it is

        primary      n >= L - `spared`, as the first token
        secondary    `short` < n < L - `spared`
        short        neither; the authors call it noise
        undecided    in a model of L <= `short` + `spared` + 1 layers, of which these numbers tell nothing apart

    Columns: sequence, position, token_text, kind; birth and last, the first and last such layer; lifetime, their
    number; cosine, the mean over them; importance, the mean attention on the token (see `importance`) over the heads of
    the layers that read these states, and null, that of uniform attention there: NaN without `received`.

    attrs: rise and fall, of the first token, by text (fall -1: it never falls); outside, the share of the other tokens
    and layers that are parallel in the remaining layers, a null; secondary, secondary_low and secondary_high, of how
    many there are in a text, with a 95% t interval over texts (NaN where undecided).

    >>> list(sinkscope.secondary_sinks(record))[:4]
    ['sequence', 'position', 'token_text', 'kind']

    Args:
        record: with `first_cosine` and `state_norm` (`FirstCosine`, `Compression`).
        parallel: the cosine.
        short, spared: numbers of layers. In a model of at most `short` + `spared` + 1 layers give other numbers, which
            are then not the authors'.

    Raises:
        SinkscopeError: a record without them, a cosine outside 0 to 1.
    """
    parallel, short = open_unit(parallel, "parallel"), whole_number(short, "short", 0)
    spared = whole_number(spared, "spared", 0)
    record = whole(record)
    check_begins(record)
    cosines = variable(record, "first_cosine").transpose("sequence", "layer", "token").values.astype(np.float64)
    rises_of = steps(record).transpose("sequence", "layer", "token").values[..., 0]
    layers, lengths = record["layer"].values, np.atleast_1d(sequence_lengths(record).values)
    if len(layers) < 2:
        raise SinkscopeError("secondary_sinks follows states over depth, and this record has one layer; measure more.")
    alpha = importance(record) if "received" in record else None
    texts = record["token_text"].transpose("sequence", "token").values if "token_text" in record.coords else None
    rows: list[tuple[Any, ...]] = []
    rises, falls, counts, outside = [], [], [], []
    is_decided = len(layers) > short + spared + 1
    for row, sequence in enumerate(record["sequence"].values):
        begin, end = _life(rises_of[row])
        rises.append(int(layers[begin]))
        falls.append(int(layers[end]) if end < len(layers) else -1)
        is_parallel = np.abs(cosines[row, :, : lengths[row]]) > parallel
        inside = np.zeros(len(layers), bool)
        inside[begin:end] = True
        outside.append(is_parallel[~inside, 1:].mean() if (~inside).any() and lengths[row] > 1 else np.nan)
        found = is_parallel & inside[:, None]
        secondary = 0
        for position in np.flatnonzero(found[:, 1:].any(0)) + 1:
            life = np.flatnonzero(found[:, position])
            kind = "primary" if len(life) >= len(layers) - spared else "secondary" if len(life) > short else "short"
            kind = kind if is_decided else "undecided"
            secondary += kind == "secondary"
            mean, null = _attention(alpha, row, int(position), layers, life)
            said = "" if texts is None else str(texts[row, position])
            cosine = float(cosines[row, life, position].mean())
            born = (int(layers[life[0]]), int(layers[life[-1]]), len(life))
            rows.append((int(sequence), int(position), said, kind, *born, cosine, mean, null))
        counts.append(float(secondary) if is_decided else np.nan)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    over = interval(record["first_cosine"].isel(layer=0, token=0, drop=True).copy(data=np.array(counts)), at_least=0)
    table.attrs = {
        **record.attrs, "parallel": parallel, "short": short, "spared": spared, "layers": len(layers),
        "rise": rises, "fall": falls, "outside": float(np.nanmean(outside)) if np.isfinite(outside).any() else np.nan,
        "secondary": float(over["mean"]), "secondary_low": float(over["lower"]), "secondary_high": float(over["upper"]),
        "computed": f"tokens with |cosine| > {parallel:g} to the first one while that is a sink (Wong et al. 2025)",
    }  # fmt: skip
    return table


def steps(record: xr.Dataset) -> xr.DataArray:
    """What each layer adds to the norm of each token's state [sequence, layer, token], float64."""
    norms = variable(record, "state_norm").astype(np.float64)
    between = norms.diff("layer").reindex(layer=norms["layer"], fill_value=np.nan)
    return record["state_rise"].astype(np.float64).fillna(between) if "state_rise" in record else between


def _life(rises: np.ndarray) -> tuple[int, int]:
    """Layers, as places [begin, end), behind which the state of the first token is large: from its largest rise up to
    its largest fall after that, or to the end where it does not fall."""
    begin = int(np.nanargmax(rises))
    later = rises[begin + 1 :]
    return begin, begin + 1 + int(later.argmin()) if len(later) and later.min() < 0 else len(rises)


def _attention(
    alpha: xr.DataArray | None, row: int, position: int, layers: np.ndarray, life: np.ndarray
) -> tuple[float, float]:
    """Importance of a key over the heads of the layers that read its states, each the one behind, and its null."""
    reading = [layers[place + 1] for place in life if place + 1 < len(layers)]
    if alpha is None or not reading:
        return np.nan, np.nan
    own = alpha.isel(sequence=row).sel(key=position, layer=reading)
    return float(own.mean()), float(alpha["null"].isel(sequence=row).sel(key=position))


@reads
def tags_table(record: xr.Dataset) -> pd.DataFrame:
    """How much of each head's output the values of its sinks span, one row for each head that has a sink in some text.

    sinks, rank              means over the texts in which the head has a sink
    share, low, high         of its output in that span, with a 95% t interval over these texts
    control                  in the span of as many other values
    excess, excess_low, excess_high   share - control, text by text
    null                     of an output in all directions alike
    texts                    share of the texts in which it has a sink

    >>> list(sinkscope.tags_table(record))[:4]
    ['layer', 'head', 'sinks', 'rank']

    Raises:
        SinkscopeError: a record without what `sink_tags` makes.
    """
    if "tag_share" not in record:
        raise SinkscopeError("the record has no tag_share: make it with sinkscope.sink_tags.")
    record = whole(record)
    share, control = (record[name].astype(np.float64) for name in ("tag_share", "tag_control"))
    own, apart = interval(share, at_least=0, at_most=1), interval(share - control, at_least=-1, at_most=1)
    means = record[["tag_sinks", "tag_rank", "tag_control", "tag_null"]].where(share.notnull()).mean("sequence")
    columns = {
        "sinks": means["tag_sinks"], "rank": means["tag_rank"], "share": own["mean"], "low": own["lower"],
        "high": own["upper"], "control": means["tag_control"], "excess": apart["mean"],
        "excess_low": apart["lower"], "excess_high": apart["upper"], "null": means["tag_null"],
        "texts": share.notnull().mean("sequence"),
    }  # fmt: skip
    frame = xr.Dataset({name: each.reset_coords(drop=True) for name, each in columns.items()})
    table = frame.to_dataframe(["layer", "head"]).reset_index()
    table = table[table["texts"] > 0].reset_index(drop=True)
    table.attrs = {**record.attrs, "computed": "share of a head's output in the span of its sinks' values"}
    return table


@reads
def spread_table(record: xr.Dataset) -> pd.DataFrame:
    """How far a change of one token spreads, one row for each layer, with the first token kept and removed.

    first_token, layer
    own                      relative distance of the states of the token that was changed
    spread, low, high        the mean over all tokens behind it, with a 95% t interval over texts
    difference, .._low, .._high   to the spread with the first token kept, text by text; NaN where it was not measured

    Before the change nothing moves: the null is 0.

    >>> list(sinkscope.spread_table(record))[:4]
    ['first_token', 'layer', 'own', 'spread']

    Raises:
        SinkscopeError: a record without what `perturbation_spread` makes.
    """
    if "relative_distance" not in record or "place" not in record.coords:
        raise SinkscopeError("the record has no relative_distance: make it with sinkscope.perturbation_spread.")
    record = whole(record)
    moved = record["relative_distance"].astype(np.float64)
    behind = moved.where(moved["token"] > record["place"]).mean("token")
    own = moved.where(moved["token"] == record["place"]).mean(["token", "sequence"])
    ways = [str(each) for each in np.atleast_1d(record["first_token"].values)]
    tables = []
    for way in ways:
        spread = interval(behind.sel(first_token=way, drop=True), at_least=0)
        table = pd.DataFrame({"first_token": way, "layer": record["layer"].values})
        table["own"] = own.sel(first_token=way).values
        for name, source in {"spread": "mean", "low": "lower", "high": "upper"}.items():
            table[name] = spread[source].values
        names = {"difference": "mean", "difference_low": "lower", "difference_high": "upper"}
        for name in names:
            table[name] = np.nan
        if way != "kept" and "kept" in ways:
            paired = behind.sel(first_token=way, drop=True) - behind.sel(first_token="kept", drop=True)
            apart = interval(paired)
            for name, source in names.items():
                table[name] = apart[source].values
        tables.append(table)
    whole_table = pd.concat(tables, ignore_index=True)
    whole_table.attrs = {**record.attrs, "computed": "distance over norm, means over the tokens behind the change"}
    return whole_table


@reads
def rollout(record: xr.Dataset) -> xr.DataArray:
    """Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928): [sequence, layer, query, key].

    With A_l the mean over heads of a layer's attention, ``R_l = norm(A_l + I) R_(l-1)``, R_0 = I, where norm divides
    each row by its sum, as the authors' code does. It is to say how much of a state comes from which token.

    What it leaves out is known: values, W_O, gates, norms and perceptrons, whatever differs between heads, and that a
    residual stream may weigh more than half. Where heads hold on to a sink, rollout says that later states come from
    it, though its value may be next to nothing (`sinkscope.purposes` tells which). Read it as an account of the
    attention alone.

    The coordinate `null` [layer, query] is that of uniform attention, for the first key.

    >>> sinkscope.rollout(record).dims
    ('sequence', 'layer', 'query', 'key')

    Args:
        record: with `attention_map` of all layers and heads in which each token has its own cell:
            ``Maps(resolution=None)``, or one from `from_maps`.

    Raises:
        SinkscopeError: a record without such maps.
    """
    record = whole(record)
    maps = variable(record, "attention_map").transpose("sequence", "layer", "head", "map_query", "map_key")
    lengths, tokens = np.atleast_1d(sequence_lengths(record).values), maps.sizes["map_query"]
    if others := record.attrs.get("layers_without_attention"):
        raise SinkscopeError(
            f"rollout follows the attention of all layers, and layers {others} of this model mix its tokens in another "
            "way, or attend in a way that is not seen; it cannot be told of such a model."
        )
    if tokens < lengths.max() or maps.sizes["map_key"] < lengths.max() or "key_length" in record.coords:
        raise SinkscopeError(
            "rollout takes maps in which each token has its own cell, and these are pooled, or of cross-attention; "
            "measure a short text with the probe Maps(resolution=None)."
        )
    is_part = re.search(r"heads=(?!None)", str(maps.attrs.get("probe", ""))) is not None
    found = np.full((*maps.shape[:2], tokens, tokens), np.nan)
    for row, length in enumerate(lengths):
        means = maps.values[row, :, :, :length, :length].astype(np.float64).mean(1)
        if not np.isfinite(means).all() or is_part:
            raise SinkscopeError("rollout needs the maps of all layers and heads; measure with Maps(resolution=None).")
        found[row, :, :length, :length] = rolled(means)
    uniform = np.tril(np.ones((tokens, tokens))) if is_causal(record) else np.ones((tokens, tokens))
    uniform /= uniform.sum(-1, keepdims=True)
    null = rolled(np.broadcast_to(uniform, (maps.sizes["layer"], tokens, tokens)))[..., 0]
    coords = {
        "sequence": record["sequence"].values, "layer": record["layer"].values, "query": np.arange(tokens),
        "key": np.arange(tokens), "null": (("layer", "query"), null),
    }  # fmt: skip
    attrs = {**record.attrs, "computed": "attention rollout (Abnar and Zuidema 2020)"}
    return xr.DataArray(found, coords, ("sequence", "layer", "query", "key"), "rollout", attrs)


def rolled(maps: np.ndarray) -> np.ndarray:
    """Rollout [layer, query, key] of the attention of one text [layer, query, key]."""
    found, before = np.empty(maps.shape), np.eye(maps.shape[-1])
    for layer, each in enumerate(maps):
        mixed = each + np.eye(len(each))
        before = mixed / mixed.sum(-1, keepdims=True) @ before
        found[layer] = before
    return found
