"""Which keys each query may see, whatever it gives them: the choice of an indexer, a window, a policy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from sinkscope.arguments import is_whole
from sinkscope.attention.layer import Layer, Tile
from sinkscope.errors import SinkscopeError, shown
from sinkscope.probes.base import PER_HEAD, PER_QUERY, LayerProbe, Measurements, Variable
from sinkscope.probes.maps import Maps


@dataclass(frozen=True)
class Seen(LayerProbe):
    """How many keys each query may see, and whether the `first` keys and the next one are among them.

    That is the choice of the indexer in sparse attention (deepseek_v32), and what a native window, a chunk or a policy
    leaves in other layers. Makes ``seen_keys`` [sequence, layer, head, query], itself included, and ``sink_seen``
    [sequence, layer, head, query, sink], 1 where the query may see that key, else 0; ``next_seen`` [sequence, layer,
    head, query] likewise of the token behind its own, as in the prefix of PaliGemma. `SeenMaps` has every key.

    >>> record = sinkscope.measure(model, ids, [sinkscope.Seen(1)])
    >>> list(record.data_vars)
    ['seen_keys', 'sink_seen', 'next_seen']
    """

    first: int = 4

    makes: ClassVar = {
        "seen_keys": Variable(PER_QUERY, "keys", "keys that a query may see"),
        "sink_seen": Variable((*PER_QUERY, "sink"), "1", "whether a query may see each of the first keys"),
        "next_seen": Variable(PER_QUERY, "1", "whether a query may see the token behind its own"),
    }

    def __post_init__(self) -> None:
        if not is_whole(self.first) or self.first < 1:
            raise SinkscopeError(f"Seen(first={shown(self.first)}) looks at no key; give a whole first >= 1.")

    def observe(self, layer: Layer) -> Measurements:
        seen = layer.lse.new_zeros(*layer.lse.shape, self.first)
        visible = min(self.first, layer.reach) - layer.key_start
        if visible > 0:
            near = ~layer.hidden(slice(0, layer.rows), slice(0, visible))
            seen[..., layer.key_start : layer.key_start + visible] = near.to(seen.dtype)
        keys = layer.keys_seen().to(seen).expand(layer.lse.shape)
        return {"seen_keys": keys, "sink_seen": seen, "next_seen": layer.next_seen().to(seen)}


@dataclass(frozen=True)
class SeenMaps(Maps):
    """Maps [query, key] of the keys that each query may see, 1 or 0, as `Maps` has them of attention.

    Makes ``seen_map`` [sequence, layer, head, map_query, map_key]. Where neighbouring tokens share a cell, it holds how
    many of its keys a query of it sees, on average (``pool="mass"``), or whether any does (``pool="max"``).

    >>> record = sinkscope.measure(model, ids, [sinkscope.SeenMaps(layers=[0])])
    >>> list(record.data_vars)
    ['seen_map']
    """

    makes: ClassVar = {"seen_map": Variable((*PER_HEAD, "map_query", "map_key"), "keys", "keys that queries may see")}

    def add(self, total: Tensor, layer: Layer, tile: Tile) -> None:
        seen = ~layer.hidden(tile.rows, tile.columns, tile.heads)
        super().add(total, layer, replace(tile, probabilities=seen.to(total.dtype)))

    def finish(self, total: Tensor, layer: Layer) -> Measurements:
        return {"seen_map": super().finish(total, layer)["attention_map"]}
