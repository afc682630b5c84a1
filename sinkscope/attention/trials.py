"""Rules of one's own, tried on small inputs before anything runs.

A text may be read whole, in blocks or token by token, and beside other texts. A rule that answers otherwise then cannot
be carried out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sinkscope.attention.eviction import Eviction, RuleRaised, Seeing, SeenEviction
from sinkscope.attention.scored import HeldKeys, Scoring, check_order
from sinkscope.errors import SinkscopeError

PLACES = (256, 48, 8)  # the first that a rule knows: one that looks into a table ends with it
FARTHEST = 4096  # evictions that are noticed later are not tried


class _OnlyHere(TorchDispatchMode):
    """Refuse tensors of an accelerator, on which a place beyond a table could not be caught."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(each, Tensor) and each.device.type != "cpu" for each in tree_leaves((args, kwargs))):
            raise RuntimeError("a tensor is on another device")
        return func(*args, **(kwargs or {}))


def try_sees(policy: Seeing) -> None:
    """Raise SinkscopeError unless the `sees` of a policy follows from places, and each query sees itself."""
    rule = SeenEviction(since=0, policy=policy)
    seen = _tried(rule.sees, f"`sees` of {policy!r}", 0)
    if seen is not None:
        rule.check_own(seen.diagonal())


def try_eviction(eviction: Eviction, policy: Any) -> None:
    """Raise SinkscopeError unless what `bind` of a policy gave leaves each query a key, and is what its `sees` says."""
    told = f"{type(eviction).__name__}, which `bind` of {policy!r} gave"
    seen = _tried(eviction.sees, told, eviction.since)
    if seen is None:
        return
    blind = ~seen.any(-1)
    if bool(blind.any()):
        query = eviction.since + int(blind.nonzero()[0])
        raise SinkscopeError(f"{told}, hides every key from query {query}; leave each query a key, such as its own.")
    if not callable(getattr(policy, "sees", None)):
        return
    rule = SeenEviction(since=eviction.since, policy=policy)
    said = _tried(rule.sees, f"`sees` of {policy!r}", eviction.since)
    if said is not None and said.shape == seen.shape and not torch.equal(said, seen):
        raise SinkscopeError(
            f"`sees` of {policy!r} says otherwise than what its `bind` gave, and nobody asks it; leave out `sees`, or "
            "derive the policy from sinkscope.StaticPolicy and give it `sees` alone."
        )


def _tried(sees: Callable[[Tensor, Tensor], Tensor], told: str, since: int) -> Tensor | None:
    """Which keys [query, key] the queries from `since` on see, none behind them; None where it cannot be tried."""
    if since > FARTHEST:
        return None
    for count in PLACES:
        rows, columns = torch.arange(since, since + count), torch.arange(since + count)
        causal = columns <= rows[:, None]
        firsts = [0, *(3**power for power in range(6) if 3**power < count - 3), count - 3]  # from where a part is read
        parts = [slice(first, first + 3) for first in firsts]
        try:
            with _OnlyHere():
                whole, again = (_booleans(sees(rows[:, None], columns), causal, told) for _ in range(2))
                alone = [
                    _booleans(
                        sees(rows[part, None], columns[: since + part.stop]), causal[part, : since + part.stop], told
                    )
                    for part in parts
                ]
        except RuleRaised:
            continue
        except SinkscopeError:
            raise
        except Exception:
            continue
        same = (torch.equal(each, whole[part, : since + part.stop]) for each, part in zip(alone, parts, strict=True))
        if not torch.equal(whole, again) or not all(same):
            raise SinkscopeError(
                f"{told} answers otherwise for the same places when it is asked again, or with other queries and keys "
                "beside them, so it depends on how a text is read; let each pair of a query and a key answer by itself."
            )
        return whole
    return None


def _booleans(seen: Any, causal: Tensor, told: str) -> Tensor:
    if not isinstance(seen, Tensor) or seen.dtype != torch.bool:
        given = f"{seen.dtype} numbers" if isinstance(seen, Tensor) else f"a {type(seen).__name__}"
        raise SinkscopeError(f"{told} says by {given} which keys are seen; it has to give a tensor of booleans.")
    return seen & causal


def try_score(policy: Scoring, heads: int, kv_heads: int) -> None:
    """Raise SinkscopeError unless the `score` of a policy goes by each text alone and leaves the keys as they are."""
    generator = torch.Generator().manual_seed(0)
    keys, dim = 9, 8
    key, value = torch.randn(2, 3, kv_heads, keys, dim, generator=generator)
    weights = torch.randn(3, heads, 1, keys, generator=generator).softmax(-1)
    previous = torch.rand(3, kv_heads, keys, generator=generator)
    previous[..., -1] = 0
    held = HeldKeys(weights, previous, torch.arange(keys).expand(3, kv_heads, keys).clone(), key, value)

    def scored(rows: slice) -> tuple[Tensor, HeldKeys]:
        given = HeldKeys(**{name: states[rows].clone() for name, states in vars(held).items()})
        kept = replace(given)
        scores = policy.score(given)
        check_order(policy, scores)
        return scores.expand_as(given.previous).double().clone(), kept

    try:
        with _OnlyHere(), torch.no_grad():
            (found, given), (again, _) = scored(slice(None)), scored(slice(None))
            alone = torch.cat([scored(slice(row, row + 1))[0] for row in range(3)])
    except SinkscopeError:
        raise
    except Exception:
        return
    for name in ("key", "value", "places", "weights"):
        if not torch.equal(getattr(given, name), getattr(held, name)):
            raise SinkscopeError(
                f"`score` of {policy!r} changes the `{name}` it is given, which attention goes on with; let it work on "
                f"a copy, such as held.{name}.clone()."
            )
    for others, reason in (
        (again, "other scores when it is asked again"),
        (alone, "other scores to a text beside other texts"),
    ):
        if not _ranks_alike(found, others):
            raise SinkscopeError(
                f"`score` of {policy!r} gives {reason}, so the keys that stay depend on how the texts are read; let "
                "the scores of a text follow from that text alone."
            )


def _ranks_alike(one: Tensor, other: Tensor) -> bool:
    ranks = [scores.sort(dim=-1, descending=True, stable=True).indices for scores in (one, other)]
    return torch.equal(*ranks) or torch.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)
