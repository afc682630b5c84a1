"""What a token costs while a model writes, measured: time and memory with a full cache (Xiao et al. 2023, Fig. 10)."""

from __future__ import annotations

import copy
import platform
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from tqdm import tqdm

from sinkscope.arguments import checks_types, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.perplexity import Run, check_run
from sinkscope.hf.attention import implementation
from sinkscope.hf.caches import growing_cache, held_layers, held_states, put_states, states_of, with_cache
from sinkscope.hf.placement import reading_device
from sinkscope.models.facts import model_attributes
from sinkscope.policies import Dense, Policy, Recompute, SinkWindow, Window
from sinkscope.progress import progress_bar
from sinkscope.scope.binding import check_limits
from sinkscope.scope.measure import texts_of
from sinkscope.streaming.cost import cost_table
from sinkscope.streaming.readers import only_last
from sinkscope.streaming.sink_cache import SinkCache

FAMILIES = ("dense", "window", "recompute", "sinks")
STEPS = 4  # tokens timed one by one in each round; of re-computation, which takes far longer, one


@torch.no_grad()
@checks_types
def run_timing(
    model: nn.Module,
    ids: Tensor | Sequence[Tensor],
    cache_sizes: int | Iterable[int] = (256, 512, 1024),
    policies: str | Iterable[str] = FAMILIES,
    *,
    sinks: int = 4,
    repeats: int = 9,
    progress: bool | None = None,
    **attributes: Any,
) -> xr.Dataset:
    """The time that one more token takes with a full cache of L tokens, and the memory the cache takes.

    "dense" reads it with transformers' `DynamicCache` of L tokens, "window" and "sinks" with a `SinkCache` that evicts
    a token for it, and "recompute" runs the last L tokens afresh. All policies of a cache size take turns, round after
    round, so that a machine that slows down does so for all of them. A token is one forward pass, up to its logits.

    >>> record = sinkscope.run_timing(model, ids[:1], 8, ("dense", "window"), repeats=1)
    >>> list(record.data_vars)[:2]
    ['policy', 'cache_size']

    Args:
        model, progress, attributes: as in `perplexity`.
        ids: one text of more tokens than the largest cache, [1, token] or [token].
        cache_sizes: L, in tokens; one or several.
        policies: of "dense", "window" (no sinks), "recompute", "sinks" (sinks + window).
        sinks: how many of the L tokens are sinks under "sinks".
        repeats: rounds; each times one token of re-computation and four of every other policy.

    Returns:
        A record along `cell`, one for each policy and cache size, attrs with all that is needed to repeat it:
        `policy`, `cache_size`; `milliseconds`, the median wall time of a token, and `low` and `high`, its quartiles;
        `kv_bytes`, the memory that keys and values take; `kv_bytes_kept` and `flops_per_token`, counted from the
        model's shapes; `samples`, how many tokens were timed.

    Raises:
        SinkscopeError: a text too short, several texts, an unknown policy, sinks that leave no room for a window, or a
            model that cannot be streamed.
    """
    sizes = sorted({whole_number(size, "cache_sizes", 1) for size in _several(cache_sizes)})
    repeats, sinks = whole_number(repeats, "repeats", 1), whole_number(sinks, "sinks", 1)
    texts, names = texts_of(ids), list(dict.fromkeys(_several(policies)))
    if not sizes or len(texts) != 1 or len(texts[0]) <= sizes[-1]:
        raise SinkscopeError(
            f"got {len(texts)} text(s), the first of {len(texts[0])} tokens, and cache_sizes={sizes}; give one text of "
            "more tokens than the largest cache, and one size at least."
        )
    check_run(model, texts, Run())
    if (unknown := [name for name in names if name not in FAMILIES]) or not names:
        raise SinkscopeError(f"policies={unknown or names} cannot be timed; give some of {', '.join(FAMILIES)}.")
    text = texts[0][None].to(reading_device(model))
    plan = {size: {name: _policy(name, size, sinks) for name in names} for size in sizes}
    for size, ways in plan.items():
        for policy in ways.values():
            check_limits(model, policy, size + 1)
    rows: list[dict[str, Any]] = []
    with progress_bar(len(sizes) * repeats, "round", progress, desc="time per token") as bar:
        for size, ways in plan.items():
            rows += _rows(model, text, size, ways, repeats, bar)
    columns = {name: ("cell", np.asarray([row[name] for row in rows])) for name in rows[0]}
    origin = {
        "kind": "decode",
        "attention": implementation(model),
        "tokens": text.shape[1],
        "sinks": sinks,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "computed": "median wall time of one forward pass over one more token with a full cache, and its quartiles",
    }
    return xr.Dataset(columns, attrs={**model_attributes(model), **origin, **attributes, "columns": ", ".join(columns)})


def _rows(
    model: nn.Module, text: Tensor, size: int, ways: dict[str, Policy], repeats: int, bar: tqdm[Any]
) -> list[dict[str, Any]]:
    """The rows of one cache size; the tokens that follow are read on and on, from their start again."""
    kept = cost_table(model, ways.values(), size)["kv_bytes"]
    flops = cost_table(model, ways.values(), size + 1)["flops_per_token"]
    following, taken = text[:, size:], {name: list[float]() for name in ways}
    with ExitStack() as stack:
        decoders = {
            name: stack.enter_context(closing(Decoder(model, text[:, :size], policy))) for name, policy in ways.items()
        }
        for number in range(-1, repeats):  # the first round is not counted: it makes what later ones find made
            for name, decoder in decoders.items():
                steps = int(number >= 0) if name == "recompute" else STEPS  # it makes all anew every time
                for step in range(steps):
                    at = ((number + 1) * STEPS + step) % following.shape[1]
                    begun = time.perf_counter()
                    decoder.step(following[:, at : at + 1])[0].item()  # reading a logit waits until it is there
                    if number >= 0:
                        taken[name].append(1000 * (time.perf_counter() - begun))
                    decoder.rewind()
            bar.update(number >= 0)
        return [
            {
                "policy": name,
                "cache_size": size,
                **dict(zip(("low", "milliseconds", "high"), np.percentile(taken[name], [25, 50, 75]), strict=True)),
                "kv_bytes": decoder.kv_bytes,
                "kv_bytes_kept": int(kept.iloc[row]),
                "flops_per_token": float(flops.iloc[row]),
                "samples": len(taken[name]),
            }
            for row, (name, decoder) in enumerate(decoders.items())
        ]


def _policy(name: str, size: int, sinks: int) -> Policy:
    if name != "sinks":
        return {"dense": Dense(), "window": Window(size), "recompute": Recompute(size)}[name]
    if sinks >= size:
        raise SinkscopeError(f"sinks={sinks} leave no room for a window in a cache of {size}; give fewer.")
    return SinkWindow(sinks, size - sinks)


def _several(given: Any) -> list[Any]:
    return list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]


class Decoder:
    """A text `ids` [1, token] that has been read under a policy, ready for its next token."""

    def __init__(self, model: nn.Module, ids: Tensor, policy: Policy) -> None:
        self.model, self.ids, self.policy, self.last = model, ids, policy, only_last(model)
        self.open = ExitStack()
        if policy.recomputed or policy.kept is None:
            self.cache: Any = growing_cache(model)
        else:  # keys and values stay as they were computed
            self.cache = self.open.enter_context(SinkCache(model, *policy.kept))
        if not policy.recomputed:
            self._logits(ids, self.cache)
        is_dense = not policy.recomputed and policy.kept is None
        self._states = {name: state.clone() for name, state in states_of(self.cache).items()} if is_dense else {}

    def step(self, token: Tensor) -> Tensor:
        """Read `token` [1, 1]; logits [vocabulary] of the one after it."""
        if self.policy.recomputed:  # the last tokens afresh, of which the new one is one
            self.ids, self.cache = torch.cat([self.ids[:, 1:], token], 1), growing_cache(self.model)
            return self._logits(self.ids, self.cache)
        if self.policy.kept is not None:
            return self._logits(token, self.cache)
        # from the same length every time, so that all steps cost the same
        grown = copy.copy(self.cache)  # shares the tensors: a layer that grows makes new ones
        grown.layers = [copy.copy(layer) for layer in self.cache.layers]
        return self._logits(token, grown)

    def rewind(self) -> None:
        """Be where the text ended, also in recurrent states, which a dense step writes to in place."""
        if self._states:
            put_states(self.cache, {name: state.clone() for name, state in self._states.items()})

    @property
    def kv_bytes(self) -> int:
        """Bytes of memory that keys and values take; of re-computation, in its last step."""
        if isinstance(self.cache, SinkCache):
            return self.cache.nbytes
        places = range(len(held_layers(self.cache)))
        return sum(states.nbytes for place in places for states in held_states(self.cache, place).values())

    def close(self) -> None:
        self.open.close()

    def _logits(self, ids: Tensor, cache: Any) -> Tensor:
        logits: Tensor = self.model(ids, **with_cache(self.model, cache), **self.last).logits
        return logits[0, -1]
