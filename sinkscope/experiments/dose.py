"""Dose and response: a bias on the logits of the sinks, and the same on random keys."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import xarray as xr
from torch import Tensor, nn

from sinkscope.arguments import whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.inside_model import EvictKeys
from sinkscope.experiments.interventions import run_interventions

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
    sinks: int = 4,
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
        sinks: among how many first tokens there is no random key.
        seed: of the random keys.
        progress: whether to show a progress bar; once two seconds have passed when None.
        attributes: noted in the record's attrs.

    Returns:
        A record [arm, dose, ...] with arm "sinks" or "random" keys: `nll` [.., sequence, token], nats; `sink_mass` on
        the first keys and `output_norm` [.., sequence, layer, head], means over the queries from the start on.

    Raises:
        SinkscopeError: as `intervene`; no doses, or one that is no bias.
    """
    given = checked_doses(doses)
    every = [EvictKeys(arm, whole_number(count, "count", 1), dose, layers, heads) for arm in ARMS for dose in given]
    record = run_interventions(
        model, ids, every, start=start, sinks=sinks, first=count, seed=seed, progress=progress
    ).sel(policy=[each.name for each in every])
    shape = (len(ARMS), len(given))
    both = xr.Dataset(
        {
            name: (("arm", "dose", *values.dims[1:]), values.values.reshape(*shape, *values.shape[1:]), values.attrs)
            for name, values in record.data_vars.items()
        },
        coords={**record.drop_vars(["policy", "control", "same_tokens"]).coords, "arm": list(ARMS), "dose": given},
    )
    where = {"layers": "all" if layers is None else list(layers), "heads": "all" if heads is None else list(heads)}
    return both.assign_attrs(record.attrs | {"kind": "dose response", "count": count} | where | attributes)


def checked_doses(doses: Any) -> list[float]:
    """The doses in order; their numbers, or SinkscopeError."""
    try:
        given = sorted(float(dose) for dose in (doses if isinstance(doses, Iterable) else [doses]))
    except (TypeError, ValueError):
        given = []
    if not given or len(set(given)) < len(given) or any(math.isnan(dose) or dose == math.inf for dose in given):
        raise SinkscopeError(
            f"doses={doses!r}: give different numbers, such as [-2.0, 0.0, 2.0], or -math.inf to evict."
        )
    return given
