"""The streaming section of a report: what it measures, at sizes that take a small model two minutes on two cores."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import xarray as xr

from sinkscope.errors import SinkscopeError

if TYPE_CHECKING:
    import torch

LENGTH = 3072  # tokens of one text, under each policy
ABLATED = 2048  # the first of them, for each number of sinks
FEWEST = 128
CACHE = 256  # tokens; L in everything but the timing
SINKS = 4
COUNTS = (0, 1, 2, 4, 8)
SAMPLES = 64  # tokens that re-computation scores once its cache is full, L² operations each
REPEATS = 5


class Sizes(NamedTuple):
    """What suits a model and a text: tokens read, cache size, and the cache sizes that are timed."""

    length: int
    cache: int
    timed: list[int]


def streaming_records(
    model: Any, ids: torch.Tensor, *, progress: bool | None = None, **attributes: Any
) -> tuple[dict[str, xr.Dataset], list[str]]:
    """The records "perplexity", "ablation" and "decode" of one text, ids [token], and notes on those left out, with the
    reason: a text too short, or a model that cannot be streamed.
    """
    try:
        sizes = _sizes(model, ids.numel())
    except SinkscopeError as reason:
        return {}, [f"Streaming was not measured: {reason}"]
    shown = {"progress": progress, **attributes}
    steps: dict[str, tuple[str, Callable[[], xr.Dataset]]] = {
        "perplexity": ("Streaming", partial(_perplexity, model, ids, sizes, shown)),
        "ablation": ("The number of sinks", partial(_ablation, model, ids, sizes, shown)),
        "decode": ("Time per token", partial(_decode, model, ids, sizes, shown)),
    }
    records: dict[str, xr.Dataset] = {}
    notes = []
    for name, (what, measure) in steps.items():
        try:
            records[name] = measure()
        except SinkscopeError as reason:
            notes.append(f"{what} was not measured: {reason}")
            if name == "perplexity":
                break  # the others would say the same
    return records, notes


def _sizes(model: Any, tokens: int) -> Sizes:
    """Raises SinkscopeError for a text too short, or a model that predicts no next token."""
    from sinkscope.core.policies import Dense
    from sinkscope.core.readiness import check_decoder
    from sinkscope.core.rotary import position_limit
    from sinkscope.streaming.limits import check_limits

    check_decoder(model, predicts=True)
    length, limit = min(tokens, LENGTH), position_limit(model) or LENGTH
    try:
        check_limits(model, Dense(), length)
    except SinkscopeError:  # it can read no further
        length = min(length, limit)
    if length < FEWEST:
        raise SinkscopeError(f"it needs {FEWEST} tokens, and there are {length}.")
    most = min(CACHE, length // 4, limit - 1)
    if most <= max(COUNTS):
        raise SinkscopeError(f"{type(model).__name__} has only {limit} positions.")
    cache = 1 << (most.bit_length() - 1)
    timed = [size for size in (cache, 2 * cache, 4 * cache) if size < min(length, limit)]
    return Sizes(length, cache, timed)


def _perplexity(model: Any, ids: torch.Tensor, sizes: Sizes, shown: dict[str, Any]) -> xr.Dataset:
    from sinkscope.analysis.table_records import with_costs
    from sinkscope.core.policies import Dense, Recompute, SinkWindow, Window
    from sinkscope.streaming.costs.cost import cost_table
    from sinkscope.streaming.perplexity import perplexity

    cache = sizes.cache
    policies = [Dense(), Window(cache), Recompute(cache), SinkWindow(SINKS, cache - SINKS)]
    curve = perplexity(model, ids[None, : sizes.length], policies, samples=SAMPLES, **shown)
    return with_costs(curve, cost_table(model, policies, sizes.length))


def _ablation(model: Any, ids: torch.Tensor, sizes: Sizes, shown: dict[str, Any]) -> xr.Dataset:
    from sinkscope.analysis.ablation import ablate
    from sinkscope.analysis.table_records import record_of_table

    return record_of_table(ablate(model, ids[None, : min(sizes.length, ABLATED)], COUNTS, sizes.cache, **shown))


def _decode(model: Any, ids: torch.Tensor, sizes: Sizes, shown: dict[str, Any]) -> xr.Dataset:
    from sinkscope.analysis.table_records import record_of_table
    from sinkscope.streaming.costs.decode import time_per_token

    table = time_per_token(model, ids[None, : sizes.length], sizes.timed, sinks=SINKS, repeats=REPEATS, **shown)
    return record_of_table(table)
