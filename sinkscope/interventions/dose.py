"""Dose and response: a bias on the logits of the sinks, and the same on random keys."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import xarray as xr
from torch import Tensor, nn

from sinkscope.errors import SinkscopeError
from sinkscope.interventions.evict_keys import EvictKeys
from sinkscope.interventions.intervene import run_interventions

DOSES = (-math.inf, -8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
ARMS = ("sinks", "random")


def dose_response(
    model: nn.Module,
    ids: Tensor | Sequence[Tensor],
    doses: Iterable[float] = DOSES,
    *,
    count: int = 1,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    start: int = 64,
    seed: int = 0,
    progress: bool | None = None,
    **attributes: Any,
) -> xr.Dataset:
    """Losses, sink mass and head output against a bias on the logits of the first keys, or of as many random ones.

    Args:
        model: a decoder in eval mode with a language head, inside transformers' attention interface.
        ids: token ids [sequence, token], or a list of 1-D tensors.
        doses: the biases, natural logarithm: minus infinity evicts, with log(2) a key weighs twice as much.
        count: how many first keys.
        layers, heads: where; all when None.
        start: the first query that notices; what is scored comes after it.
        seed: of the random keys.
        progress: whether to show a progress bar; once two seconds have passed when None.
        attributes: noted in the record's attrs.

    Returns:
        A record [arm, dose, ...] with arm "sinks" or "random" keys: `nll` [.., sequence, token], nats; `sink_mass` on
        the first keys and `output_norm` [.., sequence, layer, head], means over the queries from the start on.

    Raises:
        SinkscopeError: as `intervene`; no doses, or one that is no bias.
    """
    given = [float(dose) for dose in (doses if isinstance(doses, Iterable) else [doses])]
    if not given or len(set(given)) < len(given) or any(math.isnan(dose) or dose == math.inf for dose in given):
        raise SinkscopeError(f"doses={given!r}: give different numbers, or -math.inf to evict.")
    given = sorted(given)
    every = {(arm, dose): EvictKeys(arm, count, dose, layers, heads) for arm in ARMS for dose in given}
    record = run_interventions(
        model, ids, list(every.values()), start=start, sinks=count, first=count, seed=seed, progress=progress
    )
    order = record.sel(policy=[each.name for each in every.values()])
    shape = (len(ARMS), len(given))
    both = xr.Dataset(
        {
            name: (("arm", "dose", *values.dims[1:]), values.values.reshape(*shape, *values.shape[1:]), values.attrs)
            for name, values in order.data_vars.items()
        },
        coords={**order.drop_vars(["policy", "control"]).coords, "arm": list(ARMS), "dose": given},
    )
    where = {"layers": "all" if layers is None else list(layers), "heads": "all" if heads is None else list(heads)}
    return both.assign_attrs(record.attrs | {"kind": "dose response", "count": count} | where | attributes)
