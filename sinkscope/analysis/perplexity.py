"""Perplexity of streaming records: the exponential of the mean loss, with paired intervals; and how much of the
collapse of window attention each part of a sink takes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.batches import Units
from sinkscope.analysis.intervals import block_length, resampled_means, same_rows
from sinkscope.analysis.reading import reads
from sinkscope.analysis.variables import same_texts
from sinkscope.arguments import MOST_RESAMPLES, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.record import first_evicted

CONFIDENCE = 0.95
DIMS = ("policy", "sequence", "token")
RATIO = ["ratio", "ratio_low", "ratio_high"]
LOSSES = ["ppl", "low", "high", *RATIO]

PARTS = {
    "full sinks": "kept",
    "phantom, mean values": "mean",
    "phantom, values zeroed": "zeroed",
    "values only": "added",
    "window": None,
}
"""What is left of the sinks, and `sink_values` of such a policy; the window has no sinks."""

ARMS = {
    "phantom, random values": "drawn",
    "phantom, own direction, ordinary norm": "long",
    "phantom, other direction, own norm": "turned",
}
"""Further parts, which tell a value's norm from its direction."""

DECIDING = (
    "policy_kind", "cache_size", "sinks", "recomputed", "sink_values", "sink_bias", "positions", "placement",
)  # fmt: skip
"""Coordinates that say which part a policy is."""


@reads
def ppl(curve: xr.Dataset, common: bool = True) -> xr.DataArray:
    """Perplexity of each policy: [policy], exp of the mean loss over tokens of all sequences, in float64.

    common  over the tokens that every policy scored, so that the figures can be compared; otherwise over each policy's
            own (NaN for a policy without any).
    attrs: `common`, and `tokens_used`, their number (one for each policy if not common).
    Raises SinkscopeError if `curve` holds no losses, or no token is scored by every policy.

    >>> sinkscope.ppl(record).dims
    ('policy',)
    """
    nll = losses(curve)
    used = nll.where(_common_tokens(nll)) if common else nll
    counts = used.notnull().sum(["sequence", "token"]).values
    mean = used.mean(["sequence", "token"])
    result = mean.copy(data=np.exp(mean.values))
    result.attrs = {
        **curve.attrs,
        "computed": f"exp of the mean loss over {'the tokens every policy scored' if common else 'the tokens scored'}",
        "common": int(common),
        "tokens_used": int(counts[0]) if common else [int(each) for each in counts],
    }
    return result.rename("ppl")


@reads
def ppl_table(
    curve: xr.Dataset,
    baseline: str | None = None,
    block: int | str | None = None,
    resamples: int = 2000,
    seed: int = 0,
    over: str | None = None,
) -> pd.DataFrame:
    """Perplexity with 95% intervals, one row per policy, all over the tokens that every policy scored.

    policy, sinks, cache_size       as the record has them (cache_size -1: dense)
    ppl, low, high, tokens          perplexity, its interval, and the number of tokens
    ratio, ratio_low, ratio_high    perplexity over that of the baseline, with its paired interval
    drift, ratio_drift              probability of parts of the text so far apart, if it did not drift, for either; NaN
                                    over texts

    The intervals are Student's t of the mean loss, and for a ratio of the mean difference in loss, which pairs what
    makes a passage hard: over texts, where there are four or more, and otherwise over eight batches of the text. Over
    texts they speak of other texts of the kind; over batches of that text alone, and where it drifts (a probability
    below 1%) they are left out. Tokens read before and after a cache is full are batched apart, as how many there are
    is no accident of the text. Texts that share passages count as one. Where a policy scored a sample of positions, as
    re-computation does, the others have that sample too, and batches are runs of it: for all tokens, select
    curve.sel(policy=[..]) first.

    >>> sinkscope.ppl_table(record, resamples=50).policy.tolist()
    ['dense', 'window 64', 'recompute 64', 'sinks 4+60']

    Args:
        curve: of `sinkscope.perplexity`.
        baseline: name of a policy; by default the first that re-computes, otherwise the dense one, otherwise the first.
        block: tokens in a block, for percentiles of a circular block bootstrap over positions instead (Künsch 1989;
            Politis and Romano 1992); "auto" chooses from the autocorrelation of the losses (see `block_length`). They
            are too narrow where a text drifts, and nothing says so.
        resamples, seed: of that bootstrap.
        over: "texts" or "batches", whatever the number of texts.

    Returns:
        attrs: baseline, bounds (what the intervals are, in words), over, units (how many texts or batches), confidence,
        and of a bootstrap block, resamples and seed. One token has no interval (NaN), nor has an infinite loss.

    Raises:
        SinkscopeError: `curve` holds no losses or no common tokens, or losses of different tokens; `baseline` is not
            one of its policies; `over` is "texts" with fewer than three; `block` is below 1 or leaves fewer than two
            blocks, resamples is below 1 or seed below 0.
    """
    nll = losses(curve)
    strata = _common_losses(nll)
    names = [str(name) for name in nll["policy"].values]
    reference = _baseline(nll, names, baseline)
    resamples, seed = whole_number(resamples, "resamples", 1, MOST_RESAMPLES), whole_number(seed, "seed", 0)
    units, count = units_of(nll, over), _count(strata)
    own, ratio = units.of(lambda mean: mean), units.of(lambda mean: mean - mean[..., [reference]])
    bounds: list[np.ndarray] = [own.low, own.high, ratio.low, ratio.high]
    about: dict[Any, Any] = {"over": units.over, "units": units.count}
    said = units.said
    if block is not None:
        length = _checked_block(strata, reference, block)
        drawn = _resampled(strata, length, resamples, seed)
        with np.errstate(invalid="ignore"):  # infinity less infinity
            bounds = [*_bounds(drawn), *_bounds(drawn - drawn[:, [reference]])]
        said = f"95% percentiles of a circular block bootstrap over positions, {length} tokens in a block"
        about = {"over": "blocks", "block": length, "resamples": resamples, "seed": seed}
    held = {name: nll[name].values for name in ("sinks", "cache_size") if name in nll.coords}
    table = pd.DataFrame({"policy": names, **held, "ppl": np.exp(own.mean)})
    table["low"], table["high"] = np.exp(bounds[:2])
    table["tokens"] = count
    table["ratio"] = np.exp(ratio.mean)
    table["ratio_low"], table["ratio_high"] = np.exp(bounds[2:])
    table["drift"], table["ratio_drift"] = own.drift, ratio.drift
    table.attrs = {
        **curve.attrs,
        "computed": f"exp of the mean loss over the tokens every policy scored; {said}, paired for ratios",
        "baseline": names[reference],
        "bounds": said,
        **about,
        "confidence": CONFIDENCE,
        "tokens_used": count,
    }
    if (table["low"] == table["high"]).any():
        table.attrs["note"] = f"bounds of no width, where all {units.over} have the same loss, say nothing of others"
    return table


def units_of(nll: xr.DataArray, over: str | None = None) -> Units:
    """What intervals of the losses [policy, sequence, token] are over, at the tokens that every policy scored."""
    every = _by_text(nll)
    if nll.sizes["sequence"] == 1:
        return Units(every, np.zeros(1, int), over)
    flat = nll.transpose("sequence", ...).values.reshape(nll.sizes["sequence"], -1)
    return Units(every, same_texts(nll, overlapping=True) if "token_id" in nll.coords else same_rows(flat), over)


@reads
def losses(curve: xr.Dataset) -> xr.DataArray:
    """[policy, sequence, token] losses in float64, in nats; NaN where not scored. One policy or one sequence may be
    selected away: curve.sel(policy="dense"). Raises SinkscopeError if `curve` is not a perplexity record."""
    if not isinstance(curve, xr.Dataset) or "nll" not in curve or not set(curve["nll"].dims) <= set(DIMS):
        raise SinkscopeError("the record has no nll [policy, sequence, token]: make one with sinkscope.perplexity.")
    nll = _of_one_text(curve["nll"].astype(np.float64))
    if "policy" not in nll.dims:
        own = [name for name, coord in nll.coords.items() if not coord.dims and name not in DIMS]
        nll = nll.expand_dims("policy").assign_coords({name: ("policy", [nll[name].item()]) for name in own})
    nll = nll.expand_dims([dim for dim in DIMS if dim not in nll.dims]).transpose(*DIMS)
    if "policy" in nll.coords:
        return nll
    return nll.assign_coords(policy=[f"policy {number}" for number in range(nll.sizes["policy"])])


def _of_one_text(nll: xr.DataArray) -> xr.DataArray:
    """The losses; SinkscopeError if policies were put together that read other tokens, as other tokenizers make."""
    if "token_id" not in nll.coords or "policy" not in nll["token_id"].dims:
        return nll
    ids = nll["token_id"].transpose("policy", ...)
    other = (ids != ids.isel(policy=0)).any([dim for dim in ids.dims if dim != "policy"])
    if bool(other.any()):
        name = str(nll["policy"].values[int(other.values.argmax())]) if "policy" in nll.coords else "another policy"
        raise SinkscopeError(
            f"{name} read other tokens than the first policy of the record, as of another text or tokenizer, and "
            "losses of different tokens cannot be paired: make a table of each."
        )
    return nll.assign_coords(token_id=ids.isel(policy=0, drop=True))


@reads
def losses_from(curve: xr.Dataset, token: int) -> xr.Dataset:
    """The record with the losses of earlier tokens left out.

    >>> later = sinkscope.losses_from(record, 100)
    """
    return curve.assign(nll=curve["nll"].where(curve["token"] >= token))


def _common_tokens(nll: xr.DataArray) -> xr.DataArray:
    """[sequence, token] bool: scored by every policy; one at least."""
    common = nll.notnull().all("policy")
    if not bool(common.any()):
        counts = nll.notnull().sum(["sequence", "token"]).values
        scored = ", ".join(f"{name} {count}" for name, count in zip(nll["policy"].values, counts, strict=True))
        raise SinkscopeError(f"no token is scored by every policy ({scored}): select policies that share positions.")
    return common


def _by_text(nll: xr.DataArray) -> list[list[np.ndarray]]:
    """Losses [token, policy] at the tokens every policy scored, in order: one array for each sequence, in one list for
    each stretch of positions between the cache sizes that has any."""
    common = _common_tokens(nll).values
    sizes = np.unique(nll["cache_size"].values) if "cache_size" in nll.coords else np.array([])
    stretch = np.digitize(np.arange(nll.sizes["token"]), sizes[sizes > 0], right=True)
    strata = []
    for number in np.unique(stretch):
        strata.append([nll.values[:, s, each & (stretch == number)].T for s, each in enumerate(common)])
    return [parts for parts in strata if any(map(len, parts))]


def _common_losses(nll: xr.DataArray) -> list[list[np.ndarray]]:
    """The same without empty arrays."""
    return [[part for part in parts if len(part)] for parts in _by_text(nll)]


def _count(strata: Sequence[Sequence[np.ndarray]]) -> int:
    return sum(len(part) for parts in strata for part in parts)


def _resampled(strata: Sequence[Sequence[np.ndarray]], block: int, resamples: int, seed: int) -> np.ndarray:
    """[resample, policy] mean losses, each stretch with its own share; NaN where there is only one token. A stretch too
    short for two blocks takes shorter ones, rather than be a constant."""
    count, random = _count(strata), np.random.default_rng(seed)
    drawn = np.full((resamples, strata[0][0].shape[1]), 0.0 if count > 1 else np.nan)
    for parts in strata:
        own = _count([parts])
        drawn += own / count * resampled_means(parts, min(block, max(1, own // 2)), resamples, random)
    return drawn


def _bounds(drawn: np.ndarray) -> np.ndarray:
    """[resample, policy] to low and high [2, policy]; NaN where a resample is not finite."""
    finite = np.isfinite(drawn).all(0)
    bounds = np.full((2, drawn.shape[1]), np.nan)
    bounds[:, finite] = np.quantile(drawn[:, finite], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return bounds


def _baseline(nll: xr.DataArray, names: Sequence[str], baseline: str | None) -> int:
    if baseline is not None:
        if baseline not in names:
            raise SinkscopeError(
                f"baseline={baseline!r} is not a policy of this record: give one of {', '.join(names)}."
            )
        return names.index(baseline)
    for coord, value in (("recomputed", 1), ("policy_kind", "Dense")):
        if coord in nll.coords and (nll[coord].values == value).any():
            return int(np.flatnonzero(nll[coord].values == value)[0])
    return 0


def _checked_block(strata: Sequence[Sequence[np.ndarray]], reference: int, block: int | str) -> int:
    """Automatic: from losses and their differences to the baseline, less their means over each stretch."""
    if block == "auto":
        with np.errstate(invalid="ignore"):
            both = [[np.hstack([part, part - part[:, [reference]]]) for part in parts] for parts in strata]
            centred = [part - np.concatenate(parts).mean(0) for parts in both for part in parts]
        return block_length(centred)
    block, count = whole_number(block, "block", 1), _count(strata)
    if count > 1 and sum(max(1.0, len(part) / block) for parts in strata for part in parts) < 2:
        raise SinkscopeError(
            f"block={block} leaves fewer than two blocks in {count} tokens: give {count // 2} or less."
        )
    return block


@reads
def collapse_table(
    curve: xr.Dataset,
    resamples: int = 2000,
    seed: int = 0,
    block: int | str | None = None,
    over: str | None = None,
) -> pd.DataFrame:
    """Perplexity with what is left of the sinks, one row for each part, over the tokens after the first eviction.

    part                        "full sinks"; "phantom, mean values", "phantom, values zeroed" (keys in the
                                denominator); "values only" (keys out of it); the `ARMS` that were measured; "window"
                                (neither)
    policy, sinks, cache_size   as the record has them
    ppl, low, high, tokens      perplexity, its 95% interval and the number of tokens
    ratio, .._low, .._high      to the perplexity with full sinks, and its paired interval
    recovered, .._low, .._high  share of the gap in mean loss between window and full sinks that the part closes, and
                                its paired interval (Fieller 1954): 1 for full sinks, 0 for the window, below 0 for what
                                is worse. NaN where there is no gap: where the interval of the window's ratio reaches
                                down to 1.
    drift, ratio_drift          as in `ppl_table`

    All intervals are over the same texts or batches, as in `ppl_table`, with a `block` percentiles of one bootstrap.
    Raises SinkscopeError if the record has no losses, does not say what its policies do, has no policy with full sinks
    or no window, policies of several cache sizes, or no token after the first eviction.

    >>> list(sinkscope.collapse_table(record, resamples=50))[:3]
    ['part', 'policy', 'sinks']
    """
    late, named = decomposed(curve)
    table = ppl_table(late, next(iter(named)), block, resamples, seed, over)
    table.insert(0, "part", list(named.values()))
    nll = losses(late)
    shares = units_of(nll, over).of_share(lambda x: x[..., [-1]] - x, lambda x: x[..., [-1]] - x[..., [0]] + 0 * x)
    table["recovered"], table["recovered_low"], table["recovered_high"] = shares.mean, shares.low, shares.high
    if block is not None:
        drawn = _recovered(_resampled(_common_losses(nll), table.attrs["block"], resamples, seed))
        table["recovered_low"], table["recovered_high"] = np.quantile(drawn, [0.025, 0.975], axis=0)
    window = table.iloc[-1]
    if not window["ratio"] > 1 or window["ratio_low"] <= 1:
        table[["recovered", "recovered_low", "recovered_high"]] = np.nan
    return table


def decomposed(curve: xr.Dataset) -> tuple[xr.Dataset, dict[str, str]]:
    """The losses after the first eviction of the first policy that is each part, and the parts by the policies' names,
    in the order of `PARTS`. Raises SinkscopeError as `collapse_table`."""
    losses(curve)  # or an error that says what is needed
    names, parts = [str(name) for name in curve["policy"].values], policy_parts(curve)
    for part in ("full sinks", "window"):
        if part not in parts:
            raise SinkscopeError(f"the record has no policy that is the {part}: make one with sinkscope.decompose.")
    order = [*list(PARTS)[:-1], *ARMS, "window"]
    named = {names[parts.index(part)]: part for part in order if part in parts}  # the first of each, in this order
    sizes = sorted({int(size) for size in curve["cache_size"].sel(policy=list(named)).values})
    if len(sizes) > 1:
        raise SinkscopeError(f"the policies have caches of {sizes[0]} and {sizes[-1]} tokens: decompose one at a time.")
    late = losses_from(curve.sel(policy=list(named)), first_evicted(sizes[0]))
    if not bool(late["nll"].notnull().any()):
        raise SinkscopeError(f"no token comes after the first eviction from a cache of {sizes[0]}: give a longer text.")
    return late, named


def is_decomposed(curve: xr.Dataset) -> bool:
    """Whether a perplexity record has full sinks, the window and something between them."""
    found = set(policy_parts(curve))
    return {"full sinks", "window"} <= found and len(found - {""}) > 2


def policy_parts(curve: xr.Dataset | xr.DataArray) -> list[str]:
    """The part that each policy is, whatever it is called; "" for one that is none.

    A part acts in all layers and heads, counts positions in the cache, adds no bias and rebuilds nothing. Raises
    SinkscopeError if the record does not say what its policies do.
    """
    check_coordinates(curve, DECIDING, "policies do", "sinkscope.perplexity or sinkscope.decompose")
    policies = zip(*(np.atleast_1d(curve[name].values).tolist() for name in DECIDING), strict=True)
    part_of, parts = {values: part for part, values in (PARTS | ARMS).items()}, []
    for kind, size, sinks, again, values, bias, positions, placement in policies:
        is_plain = size > 0 and not again and not bias and not placement and positions == "cache"
        is_known = kind == "SinkWindow" or (kind == "Window" and not sinks)
        parts.append(part_of.get(values if sinks else None, "") if is_plain and is_known else "")
    return parts


def check_coordinates(record: xr.Dataset | xr.DataArray, names: Sequence[str], what: str, maker: str) -> None:
    """Raise SinkscopeError for a record of an older version, which does not say what its policies or arms are."""
    for name in names:
        if name not in record.coords:
            raise SinkscopeError(
                f"the record does not say what its {what}: {name} is missing, as in records of older versions; "
                f"make it again with {maker}."
            )


def _recovered(mean: np.ndarray) -> np.ndarray:
    """[resample, policy] mean losses to shares of the gap between the last policy and the first."""
    gap = mean[:, [-1]] - mean[:, [0]]
    with np.errstate(divide="ignore", invalid="ignore"):
        return (mean[:, [-1]] - mean) / gap
