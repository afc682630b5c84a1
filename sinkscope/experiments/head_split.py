"""Perplexity against the share of heads that stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor, nn

from sinkscope.arguments import checks_types, finite_number, several, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.perplexity import perplexity
from sinkscope.policies import Dense, PerHead, SinkWindow

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@checks_types
def head_split(
    model: nn.Module,
    ids: Tensor | Sequence[Tensor],
    gates: Any,
    shares: Sequence[float] = SHARES,
    *,
    sinks: int = 4,
    window: int = 252,
    **options: Any,
) -> xr.Dataset:
    """Losses when ever more key-value heads see sinks and a window alone, those that need the whole text least first.

    Beside each share stands the same number of heads chosen the other way round, those with the highest gates first:
    what a split that means nothing could not be told from.

    >>> gates = sinkscope.head_gates(sinkscope.measure(model, ids, [sinkscope.Reach(1, (4, 16))]))
    >>> record = sinkscope.head_split(model, ids, gates, (0, 0.5, 1), sinks=1, window=8)
    >>> record.sizes["policy"]
    4

    Args:
        model, ids, options: as of `sinkscope.perplexity`.
        gates: [layer, kv_head], as `sinkscope.head_gates` makes of a record, better of other texts.
        shares: of the heads, from 0 to 1, rounded to whole heads.
        sinks, window: what a head that streams sees.

    Returns:
        A record of `sinkscope.perplexity` with the coordinates `share` and `worst_first` [policy].

    Raises:
        SinkscopeError: shares out of range, gates of another model, or as `perplexity`.
    """
    if not isinstance(gates, xr.DataArray) or set(gates.dims) != {"layer", "kv_head"}:
        raise SinkscopeError("give gates [layer, kv_head], as sinkscope.head_gates makes of a record.")
    if not bool(np.isfinite(gates).all()):
        raise SinkscopeError("some gates are not finite; give a number for each layer and key-value head.")
    streams = SinkWindow(whole_number(sinks, "sinks", 0), whole_number(window, "window", 1))
    asked = sorted({finite_number(each, "shares", 0.0, inclusive=True) for each in several(shares, "shares")})
    if not asked or asked[-1] > 1:
        raise SinkscopeError(f"shares={shares!r} are not shares of the heads; give numbers from 0 to 1.")
    counts = sorted({round(share * gates.size) for share in asked})
    every = [(count, False) for count in counts] + [(count, True) for count in counts if 0 < count < gates.size]
    policies = [_policy(gates, count, streams, worst) for count, worst in every]
    record = perplexity(model, ids, policies, **options)
    return record.assign_coords(
        share=("policy", np.asarray([count for count, _ in every]) / gates.size),
        worst_first=("policy", np.asarray([worst for _, worst in every])),
    ).assign_attrs(kind="head split")


def _policy(gates: xr.DataArray, count: int, streams: SinkWindow, worst: bool) -> PerHead:
    """So many of all key-value heads stream, those with the lowest gates first, or those with the highest."""
    values = gates.transpose("layer", "kv_head").values
    order = np.argsort(-values if worst else values, axis=None, kind="stable")
    needs = np.ones(values.size)
    needs[order[:count]] = 0
    layers = gates["layer"].values.tolist()
    policy = PerHead.from_table(needs.reshape(values.shape), Dense(), streams, layers=layers)
    label = f"{count} of {values.size} key-value heads stream"
    return replace(policy, label=f"{label}, the neediest first" if worst else label)
