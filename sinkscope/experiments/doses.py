"""What a bias on the logits of sinks does, beside the same on keys that are none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import xarray as xr
from torch import Tensor, nn

from sinkscope.arguments import checks_types, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.inside_model import EvictKeys
from sinkscope.experiments.intervention import Conditions
from sinkscope.experiments.interventions import run_under

DOSES = (-math.inf, -8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
ARMS = ("sinks", "next", "random")


@checks_types
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
    arms: Sequence[str] = ARMS,
    progress: bool | None = None,
    **attributes: Any,
) -> xr.Dataset:
    """Losses, sink mass and head output against a bias on the logits of the first keys, and of as many others.

    >>> record = sinkscope.dose_response(model, ids, doses=(-2.0, 0.0), start=16)
    >>> record.sizes["dose"]
    2

    Args:
        model, ids, progress, attributes: as in `perplexity`; a model inside transformers' attention interface.
        doses: the biases, natural logarithm: minus infinity evicts, with log(2) a key weighs twice as much.
        count: how many first keys.
        layers, heads: where; all when None.
        start: the first query that notices; what is scored comes after it.
        sinks, seed: among how many first tokens there is no other key, and the seed of the random ones.
        arms: the keys, some of "sinks", the first ones; "next", those right behind the sinks, which stand nearest to
            them of all that are none; and "random", drawn once in each text from those before the start.

    Returns:
        A record [arm, dose, ...]: `nll` [.., sequence, token], nats; `sink_mass` on the first keys and `output_norm`
        [.., sequence, layer, head], means over the queries from the start on.

    Raises:
        SinkscopeError: as `intervene`; no doses, or one that is no bias; no arms, or one that is none.
    """
    given, chosen = checked_doses(doses), _checked_arms(arms)
    every = [EvictKeys(arm, whole_number(count, "count", 1), dose, layers, heads) for arm in chosen for dose in given]
    conditions = Conditions(start, sinks, seed, draws=1)
    record = run_under(model, ids, every, conditions, count, progress, beside=False).sel(
        policy=[each.name for each in every]
    )
    both = (
        record.drop_vars(["policy", "control", "same_tokens", "draws", "draw_nll", "removed_mass"], errors="ignore")
        .coarsen(policy=len(given))
        .construct(policy=("arm", "dose"))
        .assign_coords(arm=chosen, dose=given)
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


def _checked_arms(arms: Any) -> list[str]:
    """The arms in the order of `ARMS`, or SinkscopeError."""
    given = [arms] if isinstance(arms, str) else list(arms) if isinstance(arms, Iterable) else []
    if not given or any(each not in ARMS for each in given) or len(set(given)) < len(given):
        raise SinkscopeError(f"arms={arms!r}: give some of {', '.join(ARMS)}, each once.")
    return [arm for arm in ARMS if arm in given]
