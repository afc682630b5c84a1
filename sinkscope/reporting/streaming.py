"""The second section of a report, what it costs to forget: what it measures, and its items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr

from sinkscope import figures as draw
from sinkscope.analysis.ablation import ablation_table
from sinkscope.analysis.batches import FEWEST_TEXTS, scope_said
from sinkscope.analysis.costs import (
    after_eviction,
    costs_of,
    estimates,
    families,
    four_policies,
    perplexities,
    scored_everywhere,
    timing_table,
    with_costs,
)
from sinkscope.analysis.familiarity import familiarity_note
from sinkscope.analysis.perplexity import ppl_table
from sinkscope.errors import SinkscopeError
from sinkscope.reporting.content import Item, Measure, Numbers, Records, Section, Table
from sinkscope.reporting.plan import CACHE, SINKS
from sinkscope.reporting.planned import numbered, other_front, ways

if TYPE_CHECKING:
    import torch

    from sinkscope.reporting.passes import Passes

SEGMENTS, LENGTH = 8, 384  # texts whose losses are shown, from all over the text, and tokens of each
LONGEST = 3072  # tokens of the one text where there are not so many, and of that whose time is taken
FEWEST = 128
COUNTS = (0, 1, 2, 4, 8)
SAMPLES = 16  # tokens of each text that re-computation scores once its cache is full, L² operations each
REPEATS = 3


def run(passes: Passes) -> Mapping[str, xr.Dataset | Measure]:
    """Losses under four policies and for several numbers of sinks, over segments of a text, and time per token."""
    from sinkscope.experiments.ablation import run_ablation
    from sinkscope.experiments.timing import run_timing
    from sinkscope.streaming.cost import cost_table

    texts, cache = parts_of(passes)
    sinks = passes.plan.sinks
    shown: dict[str, Any] = {"sinks": sinks, "repeats": REPEATS, "progress": passes.progress}
    policies = ways(passes.plan, cache)
    curve = passes.perplexity(texts, policies, samples=SAMPLES * SEGMENTS // min(len(texts), SEGMENTS))
    if note := familiarity_note(curve):
        passes.notes.append(note)
    try:
        curve = with_costs(curve, cost_table(passes.model, policies, texts.shape[1]))
    except SinkscopeError as reason:  # what can be streamed need not have a cost that can be told
        passes.notes.append(f"What each policy costs was not counted: {reason}")
    counts = sorted({*COUNTS, sinks})
    timed = passes.one_text[:LONGEST]
    every = max(1, len(texts) // FEWEST_TEXTS)  # four segments are enough for an interval
    other = other_front(texts[::every], passes.front, passes.tokenizer)
    found = families(curve)
    pair = [policy for policy in policies if policy.name in (found.window, found.sinks)]
    return {
        "perplexity": passes.named(curve),
        **({} if other is None else {"other_bos_losses": lambda: numbered(passes.perplexity(other, pair), every)}),
        "ablation": lambda: run_ablation(
            passes.model, texts, counts, cache, known=passes.losses, progress=passes.progress
        ),
        "decode": lambda: run_timing(passes.model, timed[None], timed_caches(passes.model, len(timed), cache), **shown),
    }


def parts_of(passes: Passes) -> tuple[torch.Tensor, int]:
    """What losses are shown of [sequence, token], and how many tokens of it a cache keeps.

    Segments from all over each text, or its first part where one is too short for some.

    Raises SinkscopeError for a text too short, or a model that predicts no next token.
    """
    passes.check_one_text()
    plan = passes.plan
    count, length, cache = sizes_of(passes.model, passes.fewest, len(passes.front), plan.cache, plan.sinks)
    return passes.segments(length, count), cache


def sizes_of(model: Any, tokens: int, front: int = 0, cache: int = CACHE, sinks: int = SINKS) -> tuple[int, int, int]:
    """What suits a model and a text: how many texts, the tokens of each, and the cache size, which is a power of two
    where it cannot be what was asked for.

    Raises SinkscopeError for a text too short, or a model that predicts no next token.
    """
    from sinkscope.models.requirements import check_decoder
    from sinkscope.models.rotary import position_limit
    from sinkscope.policies import Dense
    from sinkscope.scope.binding import check_limits

    check_decoder(model, predicts=True)  # a model that cannot be streamed says so here, and once
    count = min(SEGMENTS, tokens // (LENGTH - front))
    count, length = (count, LENGTH) if count >= FEWEST_TEXTS else (1, min(tokens + front, LONGEST))
    limit = position_limit(model) or LONGEST
    try:
        check_limits(model, Dense(), length)
    except SinkscopeError:  # it can read no further
        length = min(length, limit)
    if length < FEWEST:
        raise SinkscopeError(f"it needs {FEWEST} tokens, and there are {length}.")
    most = min(cache, length // 3, limit - 1)
    if most < cache:
        most = 1 << (most.bit_length() - 1)
    if most <= max(*COUNTS, sinks):
        raise SinkscopeError(
            f"{type(model).__name__} has only {limit} positions."
            if limit <= length
            else f"{sinks} sinks leave no window in a cache of {most}, and a longer one takes a text of more tokens."
        )
    return count, length, most


def timed_caches(model: Any, tokens: int, cache: int) -> list[int]:
    """Cache sizes whose time a text and a model have room for: larger ones than losses are shown for, if any."""
    from sinkscope.models.rotary import position_limit

    limit = position_limit(model) or LONGEST
    return [times * cache for times in (2, 4, 8) if times * cache < min(tokens, limit)] or [cache]


def ablated(record: xr.Dataset) -> pd.DataFrame:
    """Perplexity for each number of sinks, with paired ratios."""
    return ablation_table(record).drop(columns=["cell", "policy", "policy_kind", "seconds"], errors="ignore")


def collapsed(curve: xr.Dataset) -> Numbers:
    """The window's perplexity over that of sinks + window, at every token after the first eviction."""
    found = families(curve)
    if found.window is None or found.sinks is None:
        return []
    table = ppl_table(after_eviction(curve).sel(policy=[found.window, found.sinks]), baseline=found.sinks)
    worse = table.iloc[0]
    note = (
        f"window over sinks + window, both a cache of {int(worse.cache_size):,} tokens, over the "
        f"{int(worse.tokens):,} tokens after the first eviction; not re-computation; "
        f"{scope_said(table.attrs['bounds'], worse.to_dict())}"
    )
    bounds = {"lower": float(worse.ratio_low), "upper": float(worse.ratio_high), "null": 1.0, "note": note}
    quantity = "perplexity ratio, without / with sinks"
    return [{"quantity": quantity, "unit": "ratio", "value": float(worse.ratio), **bounds}]


def headline(records: Records) -> str:
    """What the section found, in one sentence; nothing without dense, window and sinks + window."""
    curve = records.get("perplexity")
    found = None if curve is None else families(curve)
    if curve is None or found is None or None in (found.dense, found.window, found.sinks):
        return ""
    late = after_eviction(curve)
    whole = ppl_table(late.sel(policy=[found.dense, found.window, found.sinks]), resamples=1)
    dense, window, sinks = (f"{value:,.1f}" for value in whole["ppl"])
    size, kept = (int(whole[name].iloc[2]) for name in ("cache_size", "sinks"))
    text = (
        f"With a cache of {size:,} tokens, perplexity goes from {dense} (dense) to {window} in a window that drops the "
        f"first tokens, and is {sinks} where {kept} of them {'stays as a sink' if kept == 1 else 'stay as sinks'}"
    )
    if found.recompute is None:
        return text + "."
    pair = ppl_table(late.sel(policy=[found.recompute, found.sinks]), baseline=found.sinks, resamples=1).iloc[0]
    sampled = "" if found.recompute in scored_everywhere(late) else " sampled"
    scored = f"{pair.tokens:,} tokens{sampled}"
    return f"{text}; re-computing the window for each token gives {pair.ratio:.2f} times that ({scored})."


POLICIES = (
    "Dense: a token sees all tokens before it, and the cache grows. Window: only the last L tokens are kept, with keys "
    "and values as they were computed; the first token is dropped. Recompute, sliding window with re-computation, is "
    "not that window: keys and values of the last L tokens are computed anew, from them alone, for every new token, so "
    "its first token is a first token again. Sinks S+W (StreamingLLM): the first S tokens stay beside the last W."
)
ITEMS = (
    Item(
        "four_policies",
        "Four ways to attend to a long text",
        record="perplexity",
        variables=("nll", "cost_attention_size"),
        table=lambda curve: four_policies(costs_of(curve), estimates(curve)),
        meaning="Attention size (keys the last token sees), operations of one token, bytes of keys and values kept "
        "after the whole text, all counted from the model's shapes, T tokens read, L kept. Perplexity over the tokens "
        "after the first eviction; of a policy scored at a sample of them, that of the policy most like it times their "
        f"ratio at the sample. {POLICIES}",
    ),
    Item(
        "log_perplexity",
        "What happens when the first tokens leave the cache",
        record="perplexity",
        variables="nll",
        figure=draw.log_perplexity,
        numbers=collapsed,
        meaning=f"Mean loss by position under each policy, over segments from all over the text. {POLICIES} Bands and "
        "bars are pointwise 95% t intervals over the segments, so that they say how the text differs from place to "
        "place; of a text too short for four segments, over batches of its first part. The dotted line is where the "
        "caches are full: before it nothing is evicted and all policies are equal. Re-computation is scored at a "
        "sample of tokens: its points are the nearest line plus the mean difference to it at those tokens.",
        table=Table(
            perplexities,
            "perplexity",
            "Perplexity under each policy",
            "Over tokens after the first eviction; 95% t intervals over segments of the text, paired for the ratios. "
            "Of a text too short for four segments they are over eight batches of its first part, say nothing of "
            "other texts, and are left out where that drifts (drift below 1%: parts of it lie farther apart than "
            "their own pieces would have them). Window keeps keys and values as they were computed; recompute "
            "computes them anew for every token. A cache size of −1: the cache keeps everything.",
        ),
    ),
    Item(
        "ablation",
        "How many sinks it takes",
        record="ablation",
        variables="nll",
        figure=draw.ablation,
        meaning="Perplexity of the same tokens with 0, 1, 2, .. first tokens kept as sinks, in a cache of the same "
        "total size; positions are counted in the cache or as in the text (original). Without sinks (0) it is the "
        "plain window, where keys and values stay as they were computed; nothing here is re-computed. Whiskers are "
        "95% t intervals over segments of the text; overlapping whiskers do not mean equal: the segments are the "
        "same, and the table has the paired ratios.",
        table=Table(
            ablated,
            title="Perplexity and the number of sinks",
            meaning="0 sinks is the plain window, not re-computation. 95% t intervals over segments of the text; "
            "ratios are paired, to the most sinks. Columns ending in evicted: over the tokens "
            "after the first eviction.",
        ),
    ),
    Item(
        "decode_cost",
        "What a token costs",
        record="decode",
        variables=("milliseconds", "kv_bytes"),
        figure=draw.decode_cost,
        meaning="Measured: wall time of one more token with a full cache of L tokens (median and quartiles; policies "
        "take turns), and the memory that keys and values take. Window and sinks (sinks + window) evict one token and "
        "keep the rest, in an arena that holds up to 256 tokens more than it keeps, to move them in. Dense is the "
        "growing cache at a length of L. Recompute is the sliding window with re-computation: it runs the last L "
        "tokens afresh for each token, so its time grows with L; the others' barely does. Times are of one machine "
        "(device and threads in the source line); StreamingLLM's Figure 10 has recompute and sinks on a GPU.",
        table=Table(
            timing_table,
            title="Time and memory per token, measured",
            meaning="Median wall time of one more token with a full cache of that size, and its quartiles. kv bytes: "
            "memory taken; kv bytes kept and flops per token: counted from the model's shapes. Window is not "
            "re-computation (recompute), which runs the last tokens afresh for every new one.",
        ),
    ),
)
STREAMING = Section(
    "What it costs to forget",
    ITEMS,
    run,
    records={
        "perplexity": "Streaming",
        "other_bos_losses": "The collapse with the other choice of BOS",
        "ablation": "The number of sinks",
        "decode": "Time per token",
    },
    subject="Streaming",
    probed=(),
    causal_only=True,
    headline=headline,
)
