"""How far a head reaches: its attention inside sinks and a window, and what it would lose if it streamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sinkscope.arguments import whole_number
from sinkscope.attention.layer import FusedLayer, Layer
from sinkscope.attention.masks import CausalMask, is_hidden, ranges, weights_of
from sinkscope.errors import SinkscopeError, shown
from sinkscope.probes.base import LayerProbe, Measurements, Variable, check_whole

ROWS = 128  # queries in one go
KEPT = ("reach_sinks", "reach_window")


@dataclass(frozen=True)
class Reach(LayerProbe):
    """Attention inside the first k keys and the last w, the query's own among them, and the error of streaming.

    ``reach(k, w) = mean_i sum_{j < k or i - w < j <= i} A_ij``. A head that streams has the weights of those keys
    alone, over their sum: the error is ``||O - O'|| / ||O||`` over all queries (Frobenius norms), all positions
    kept. Exact, from the bands of the scores near the diagonal: the cost is that of the widest window. Makes:

        reach            [sequence, layer, head, reach_sinks, reach_window]
        reach_null       [sequence, layer, reach_sinks, reach_window], of even attention to all keys that a query sees
        stream_error     as `reach`; 0 of a head that hands on nothing
        group_error      [sequence, layer, kv_head, reach_sinks, reach_window], of all heads that share keys and values

    Errors are not made for models outside the attention interface. A text has to be read in one forward pass, by a
    model that reads from left to right. `sinkscope.reach` gives the same masses for any sinks and windows, from what
    `DistanceProfile` and `SinkMass` make.

    >>> record = sinkscope.measure(model, ids, [sinkscope.Reach(sinks=1, windows=(4, 16))])
    >>> list(record.data_vars)
    ['reach', 'reach_null', 'stream_error', 'group_error']

    Args:
        sinks: numbers k of first keys.
        windows: numbers w of last keys; a cache for them is ``SinkWindow(k, w - 1)``.
    """

    sinks: Sequence[int] = (0, 4)
    windows: Sequence[int] = (64, 256)

    one_text: ClassVar = True
    makes: ClassVar = {
        "reach": Variable(("sequence", "head", *KEPT), "1", "attention inside sinks and window"),
        "reach_null": Variable(("sequence", *KEPT), "1", "share of the keys seen that are inside sinks and window"),
        "stream_error": Variable(("sequence", "head", *KEPT), "1", "error of a head's output if it streamed"),
        "group_error": Variable(("sequence", "kv_head", *KEPT), "1", "the same of heads that share keys and values"),
    }

    def __post_init__(self) -> None:
        for name, least in (("sinks", 0), ("windows", 1)):
            object.__setattr__(self, name, checked_sizes(getattr(self, name), name, least))

    @property
    def coordinates(self) -> Mapping[str, np.ndarray]:
        return {"reach_sinks": np.asarray(self.sinks), "reach_window": np.asarray(self.windows)}

    def check_places(self, tokens: int) -> None:
        if (first := max(self.sinks)) >= tokens:
            raise SinkscopeError(
                f"Reach(sinks={shown(self.sinks)}) sets {first} first keys apart in a text of {tokens} tokens; give "
                "fewer, or a longer text."
            )

    def observe(self, layer: Layer) -> Measurements:
        check_whole(self, layer)
        if layer.looks_ahead():
            raise SinkscopeError("Reach is of models that read from left to right, and this one sees later tokens.")
        if isinstance(layer, FusedLayer) and (layer.evictions or layer.weighing.replaces_softmax):
            raise SinkscopeError("Reach reads a dense pass of softmax attention; leave out the policy or normaliser.")
        sizes = (len(self.sinks), len(self.windows))
        mass = layer.lse.new_zeros(*layer.lse.shape[:2], *sizes, dtype=torch.float64)
        lost, null = torch.zeros_like(mass), mass.new_zeros(1, *sizes)
        seen = layer.keys_seen().clamp(min=1).to(mass)[..., None, None]
        for rows in ranges(0, layer.rows, ROWS):
            null = null + (self._visible(layer, rows) / seen[:, :, rows]).sum(2).mean(1)
            inside, missing = self._kept(layer, rows)
            mass += inside.double().sum(2)
            lost += 0.0 if missing is None else missing.double().sum(2)
        found = {"reach": mass / layer.rows, "reach_null": null.expand(len(mass), *sizes) / layer.rows}
        if layer.value is None or layer.output is None:
            return found
        whole = layer.output.double().square().sum((2, 3))[..., None, None]
        groups = (layer.value.shape[1], -1)
        shared = _share(lost.unflatten(1, groups).sum(2), whole.unflatten(1, groups).sum(2))
        return found | {"stream_error": _share(lost, whole).sqrt(), "group_error": shared.sqrt()}

    def _visible(self, layer: Layer, rows: slice) -> Tensor:
        """How many of the keys that some queries see are inside: [sequence or 1, head or 1, query, sinks, window]."""
        query = torch.arange(rows.start, rows.stop, device=layer.lse.device)[:, None]
        if isinstance(layer, FusedLayer) and isinstance(layer.mask, CausalMask):
            windows = torch.tensor(self.windows, device=query.device)
            far = torch.stack([(query + 1 - windows).clamp(0, count) for count in self.sinks], 1)
            return (far + (query + 1).minimum(windows)[:, None])[None, None].double()
        parts = self._near(rows), slice(0, min(max(self.sinks), layer.reach))
        near, early = (~layer.hidden(rows, part) for part in parts)
        near_by, early_by = (query - torch.arange(part.start, part.stop, device=query.device) for part in parts)
        counts = [
            (near & (near_by < window)).sum(-1) + (early & (early_by >= window))[..., :count].sum(-1)
            for count in self.sinks
            for window in self.windows
        ]
        return torch.stack(counts, -1).unflatten(-1, (len(self.sinks), len(self.windows))).double()

    def _near(self, rows: slice) -> slice:
        """The keys that some query's widest window holds, and some behind the others."""
        return slice(max(0, rows.start - self.windows[-1] + 1), rows.stop)

    def _kept(self, layer: Layer, rows: slice) -> tuple[Tensor, Tensor | None]:
        """Of some queries, [sequence, head, query, sinks, window]: the attention on what they keep, and the squared
        norm of what their outputs lose; None where those are not there."""
        near, early = self._near(rows), slice(0, min(max(self.sinks), layer.reach))
        first = near.start
        scores = layer.logits(rows, near)
        sinks = layer.logits(rows, early) if early.stop else scores[..., :0]
        top = torch.maximum(
            scores.amax(-1, keepdim=True), sinks.amax(-1, keepdim=True) if early.stop else scores[..., :1]
        )
        lse, query = layer.lse[:, :, rows, None], torch.arange(rows.start, rows.stop, device=scores.device)[:, None]
        own = layer.virtual_logit
        virtual = torch.zeros_like(top)
        if own is not None:
            virtual = ((own[None, :, None] if own.dim() == 1 else own[:, :, rows])[..., None] - top).exp()
        value = layer.value if layer.output is not None else None
        weights = [_weights(part, top) for part in (scores, sinks)]
        away = [query - torch.arange(part.start, part.stop, device=query.device) for part in (near, early)]
        inside, missing = [], []
        total, summed = torch.zeros_like(top), None
        for last, window in pairwise((0, *self.windows)):
            # a window is the one before it and a band beyond
            columns = slice(max(0, rows.start - window + 1), rows.stop - last)
            if columns.start < columns.stop:
                cut = slice(columns.start - first, columns.stop - first)
                band = weights[0][..., cut] * ((away[0][:, cut] >= last) & (away[0][:, cut] < window)).to(scores.dtype)
                total = total + band.sum(-1, keepdim=True)
                summed = _added(summed, _handed(band, value, columns))
            far = weights[1] * (away[1] >= window)
            for count in self.sinks:
                kept = total + far[..., :count].sum(-1, keepdim=True)
                inside.append((kept * (top - lse).exp())[..., 0])
                if value is None:
                    continue
                assert layer.output is not None
                handed = _added(summed, _handed(far[..., :count], value, slice(0, count)) if count else None)
                assert handed is not None
                sums = (kept + virtual).clamp(min=torch.finfo(kept.dtype).tiny)
                apart = torch.addcdiv(layer.output[:, :, rows].float(), handed, sums, value=-1)
                missing.append(torch.linalg.vecdot(apart, apart))
        shape = (len(self.windows), len(self.sinks))
        mass, lost = (torch.stack(each, -1).unflatten(-1, shape).mT if each else None for each in (inside, missing))
        assert mass is not None
        return mass, lost


def checked_sizes(given: object, name: str, least: int) -> tuple[int, ...]:
    """Different whole numbers in order, from one or several."""
    several = list(given) if isinstance(given, (Sequence, np.ndarray)) and not isinstance(given, str) else [given]
    found = sorted({whole_number(each, name, least) for each in several})
    if not found or len(found) < len(several):
        raise SinkscopeError(f"{name}={shown(given)}: give one or more different whole numbers, such as (1, 4).")
    return tuple(found)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(part == 0, 0.0, part / whole)


def _weights(scores: Tensor, top: Tensor) -> Tensor:
    """``exp(scores - top)``, 0 where the key is hidden, also in rows that see nothing."""
    if bool(is_hidden(top).any()):
        top = top.masked_fill(is_hidden(top), 0.0)
    logs = scores - top
    return weights_of(logs, out=logs)


def _handed(weights: Tensor, value: Tensor | None, columns: slice) -> Tensor | None:
    """What keys hand on by their weights [sequence, head, query, key]: [sequence, head, query, dim]."""
    if value is None:
        return None
    part = value[:, :, columns].float()
    stacked = weights.reshape(len(part), part.shape[1], -1, weights.shape[-1])  # heads that share keys, one product
    return (stacked @ part).view(*weights.shape[:3], part.shape[-1])


def _added(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other
