"""Another policy in every layer and head."""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from sinkscope.arguments import checks_types, is_whole, several
from sinkscope.attention.eviction import Eviction
from sinkscope.attention.placement import chosen_heads
from sinkscope.errors import SinkscopeError, shown
from sinkscope.policies.base import BoundLayer, Policy, bound_evictions
from sinkscope.policies.static import Dense, SinkWindow


@dataclass(frozen=True, repr=False)
class PerHead(Policy):
    """Sinks in these heads, dense attention in those: DuoAttention (Xiao et al. 2024) and its like.

    A cache holds all keys for it, since some head may see them.

    >>> policy = sinkscope.PerHead({(1, 0): sinkscope.SinkWindow(2, 8)}, default=sinkscope.Dense())
    >>> sinkscope.perplexity(model, ids, [policy]).sizes["policy"]
    1

    Args:
        policies: (layer, head) -> the policy of that head.
        default: the policy of all other heads.
        shared: whether heads are numbered as key-value heads, each standing for the query heads that share it.
        table_shape: layers and heads of the table that it came from, which have to be the model's; None without one.

    Raises:
        SinkscopeError: entries that are no (layer, head), or no policies; policies that say themselves where they act,
            that are recomputed, or made of others.
    """

    policies: Mapping[tuple[int, int], Policy] = field(default_factory=dict)
    default: Policy = field(default_factory=Dense)
    shared: bool = field(default=False, kw_only=True)
    table_shape: tuple[int, int] | None = field(default=None, kw_only=True)

    _asked = ()

    def __post_init__(self) -> None:
        given: Any = self.policies
        try:
            entries = tuple(given.items() if isinstance(given, Mapping) else given)
        except TypeError as problem:
            raise SinkscopeError(
                f"PerHead takes (layer, head) -> policy, got {shown(given)}; give for example "
                "PerHead({(3, 1): Dense()})."
            ) from problem
        for entry in entries:
            if not (isinstance(entry, tuple) and len(entry) == 2 and _is_place(entry[0])):
                raise SinkscopeError(
                    f"PerHead holds {shown(entry)}, which is no (layer, head) with its policy; give for example "
                    "PerHead({(3, 1): Dense()}, default=SinkWindow(4, 60))."
                )
        for policy in (self.default, *(policy for _, policy in entries)):
            _check_part(policy)
        if not isinstance(self.shared, bool):
            raise SinkscopeError(f"shared={shown(self.shared)} is neither True nor False; give one of them.")
        if self.table_shape is not None and not _is_place(self.table_shape):
            raise SinkscopeError(f"table_shape={shown(self.table_shape)} is no (layers, key-value heads); give both.")
        if self.layers is not None or self.heads is not None:
            raise SinkscopeError("PerHead says by its entries where it acts; leave out layers= and heads=.")
        places = Counter(place for place, _ in entries)
        if twice := [place for place, count in places.items() if count > 1]:
            raise SinkscopeError(f"PerHead names head {twice[0]} twice; give each (layer, head) one policy.")
        object.__setattr__(self, "policies", tuple(sorted(entries, key=lambda entry: entry[0])))

    @classmethod
    @checks_types
    def from_table(
        cls,
        table: Any,
        full: Policy | None = None,
        streaming: Policy | None = None,
        threshold: float = 0.5,
        layers: Sequence[int] | None = None,
    ) -> PerHead:
        """The policy of a table of gates, as DuoAttention publishes its patterns.

        Args:
            table: numbers [layer, kv_head] in [0, 1], or a file of them with tabs between columns: how much a head
                needs the whole text.
            full: the policy of heads above the threshold; `Dense()` when None.
            streaming: the policy of the others; ``SinkWindow(128, 256)``, as in DuoAttention, when None.
            threshold: above it a head is given `full`.
            layers: the number of the layer of each row; 0, 1, 2, ... when None.
        """
        try:
            is_file = isinstance(table, (str, os.PathLike))
            table = table.detach().cpu() if isinstance(table, torch.Tensor) else table
            with warnings.catch_warnings(action="ignore"):  # of an empty file, whose shape is told below
                gates = np.loadtxt(table, delimiter="\t", ndmin=2) if is_file else np.asarray(table, dtype=float)
        except (OSError, ValueError, TypeError) as problem:
            raise SinkscopeError(f"{shown(table)} is no table of gates [layer, kv_head] ({problem}).") from problem
        gates = np.atleast_2d(gates)
        numbers = list(range(len(gates))) if layers is None else several(layers, "layers")
        if not all(is_whole(number) for number in numbers) or len(set(numbers)) < len(numbers):
            raise SinkscopeError(
                f"layers={shown(layers)} are not the numbers of different layers; give one for each row."
            )
        got = ""
        if gates.ndim != 2 or len(numbers) != len(gates) or not gates.size:
            got = f"the shape {gates.shape} for {len(numbers)} layers"
        elif not np.isfinite(gates).all():
            got = "some that are not finite"
        elif gates.min() < 0 or gates.max() > 1:
            got = f"numbers from {gates.min():g} to {gates.max():g}"
        if got:
            raise SinkscopeError(
                f"a table of gates has a number from 0 to 1 for each layer and key-value head; got {got}."
            )
        if math.isnan(threshold):
            raise SinkscopeError("threshold=nan is above and below nothing; give a number, such as 0.5.")
        chosen = {
            (int(layer), head): Dense() if full is None else full
            for layer, row in zip(numbers, gates, strict=True)
            for head, gate in enumerate(row)
            if gate > threshold
        }
        return cls(
            chosen,
            default=SinkWindow(128, 256) if streaming is None else streaming,
            shared=True,
            table_shape=gates.shape,
        )

    def bind(self, layer: BoundLayer) -> tuple[Eviction, ...]:
        groups: dict[Policy, list[int]] = {}
        own = {head: policy for (number, head), policy in self._entries if number == layer.number}
        group = layer.heads // layer.kv_heads if self.shared else 1
        for head in range(layer.heads):
            groups.setdefault(own.get(head // group, self.default), []).append(head)
        return tuple(
            replace(eviction, heads=chosen if eviction.heads is None else chosen & eviction.heads)
            for policy, heads in groups.items()
            for chosen in (chosen_heads(heads, layer.heads),)
            for eviction in bound_evictions(policy, layer)
        )

    def check(self) -> None:
        super().check()
        for policy in self.parts:
            _check_part(policy)

    def check_places(self, tokens: int) -> None:
        for policy in self.parts:
            policy.check_places(tokens)

    def check_place(self, layers: Sequence[int], heads: int | None, kv_heads: int | None = None) -> None:
        most = kv_heads if self.shared else heads
        if self.table_shape is not None and self.table_shape != (len(layers), most):
            raise SinkscopeError(
                f"this table has {self.table_shape[0]} layers of {self.table_shape[1]} heads, and the model has "
                f"{len(layers)} attention layers of {most} key-value heads; give a table of the whole model."
            )
        for (layer, head), _ in self._entries:
            if layer not in layers or head < 0 or (most is not None and head >= most):
                kind = "key-value head" if self.shared else "head"
                raise SinkscopeError(
                    f"PerHead names {kind} {head} of layer {layer}, which the model does not have; its attention "
                    f"layers are {min(layers)} to {max(layers)}" + (f", with {most} {kind}s each." if most else ".")
                )

    @property
    def is_dense(self) -> bool:
        return all(policy.is_dense for policy in self.parts)

    @property
    def is_partial(self) -> bool:
        return True

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        return any(policy.remembers for policy in self.parts)

    @property
    def place(self) -> str:
        counts = Counter(policy.name for _, policy in self._entries)
        return "; ".join(f"{name} in {count} heads" for name, count in counts.items())

    @property
    def description(self) -> str:
        return f"{self.default.name} but" if self._entries else self.default.name

    @property
    def name(self) -> str:
        return self.label or f"{self.description} {self.place}".strip()

    @property
    def parts(self) -> tuple[Policy, ...]:
        return (self.default, *(policy for _, policy in self._entries))

    @property
    def _entries(self) -> tuple[tuple[tuple[int, int], Policy], ...]:
        entries: Any = self.policies
        return entries


def _is_place(given: Any) -> bool:
    whole = (int, np.integer)
    is_pair = isinstance(given, tuple) and len(given) == 2
    return is_pair and all(isinstance(number, whole) and not isinstance(number, bool) for number in given)


def _check_part(policy: Any) -> None:
    if not isinstance(policy, Policy):
        raise SinkscopeError(
            f"PerHead holds {shown(policy)}, which is no policy; give instances such as sinkscope.Dense()."
        )
    if policy.recomputed or isinstance(policy, PerHead):
        raise SinkscopeError(f"{policy!r} cannot be the policy of single heads; give one that evicts keys, or Dense().")
    policy.check()
    if policy.is_partial:
        raise SinkscopeError(f"{policy!r} says itself where it acts; leave out its layers and heads, PerHead has them.")
