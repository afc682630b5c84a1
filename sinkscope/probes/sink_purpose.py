"""What the strongest key of each head is for, and what a gate leaves of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sinkscope.arguments import open_unit
from sinkscope.attention.layer import AHEAD, TILE_ENTRIES, FusedLayer, Layer
from sinkscope.attention.masks import ranges
from sinkscope.errors import SinkscopeError
from sinkscope.probes.base import PER_HEAD, PER_QUERY, LayerProbe, Measurements, Variable, check_whole

EARLY = 16  # first keys that are looked at before all others


@dataclass(frozen=True)
class SinkPurpose(LayerProbe):
    """What a head's strongest key is for (Fesser et al. 2026, "A Unifying View of Attention Sinks", arXiv 2606.08105).

    With A the attention of a head over all T queries, v_j its values and W_O its part of the output projection, the
    key is ``s = argmax_j mean_i A_ij`` and every token is handed on as ``u_j = W_O v_j``. A key that takes much
    attention and hands on little is a no-op; one whose u_s is what every query gets is a broadcast. Makes, [sequence,
    layer, head]:

        sink_key             s
        sink_mean            mean_i A_is
        sink_share           share of the queries with A_is >= `mass`
        sink_norm_ratio      ``r = ||u_s|| / mean_{j != s} ||u_j||``; NaN in a text of one token
        output_stable_rank   ``||U||_F^2 / sigma_1(U)^2`` of ``U = A u`` [query, width]

    U is what the heads hand on before any gate. Nothing of the size T x T is made: the norms and the singular values
    follow from W_O^T W_O [dim, dim]. The attention that all keys receive is that of `Received`, where that measures
    too; else it is summed only in heads in which the first keys leave so much of it that another key could have more.
    A text has to be read in one forward pass.

    >>> record = sinkscope.measure(model, ids, [sinkscope.SinkPurpose()])
    >>> list(record.data_vars)[:3]
    ['sink_key', 'sink_mean', 'sink_share']

    Args:
        mass: the attention from which on a query counts.
    """

    mass: float = 0.5

    one_text: ClassVar = True
    needs: ClassVar = "projection"
    makes: ClassVar = {
        "sink_key": Variable(PER_HEAD, "1", "key with the most attention, averaged over queries"),
        "sink_mean": Variable(PER_HEAD, "1", "mean attention on that key"),
        "sink_share": Variable(PER_HEAD, "1", "share of the queries that hold on to it"),
        "sink_norm_ratio": Variable(PER_HEAD, "1", "norm of what it hands on over the mean of other keys"),
        "output_stable_rank": Variable(PER_HEAD, "1", "stable rank of what the head hands on"),
    }

    def __post_init__(self) -> None:
        open_unit(self.mass, "mass")

    @property
    def coordinates(self) -> Mapping[str, np.ndarray]:
        return {"sink_share_from": np.array([self.mass])}

    def observe(self, layer: Layer) -> Measurements:
        check_whole(self, layer)
        if layer.projection is None or layer.value is None or layer.output is None:
            raise SinkscopeError("this layer does not show what its heads hand on; leave SinkPurpose() out.")
        keys, held = strongest(layer)
        roots = _roots(layer.projection)
        values = layer.value.float().repeat_interleave(layer.heads // layer.value.shape[1], 1)
        norms = (values @ roots.float()).norm(dim=-1).double()  # [sequence, head, key]
        own = norms.gather(-1, keys[..., None])[..., 0]
        others = (
            (norms.sum(-1) - own) / (norms.shape[-1] - 1) if norms.shape[-1] > 1 else torch.full_like(own, torch.nan)
        )
        handed = layer.output.double()
        gram = torch.linalg.eigvalsh(roots.mT @ (handed.mT @ handed) @ roots)  # the squared singular values of U
        return {
            "sink_key": keys.int(),
            "sink_mean": held.mean(-1),
            "sink_share": (held >= self.mass).double().mean(-1),
            "sink_norm_ratio": torch.where(own == 0, 0.0, own / others),
            "output_stable_rank": gram.sum(-1) / gram[..., -1],
        }


@dataclass(frozen=True)
class Gates(LayerProbe):
    """What a head's output is multiplied by before W_O (Qiu et al. 2025, "Gated attention", arXiv 2505.06708).

    ``Y' = Y * sigmoid(X W)``, one number for each head or for each of its dimensions; whether there are such gates is
    found by trial, in any family. Makes, [sequence, layer, head, query]:

        gate       mean over the head's dimensions
        gate_low   share of its dimensions with a gate below `low`

    NaN where the output is 0, which tells nothing of its gate.

    >>> sinkscope.Gates(low=0.1).makes.keys()
    dict_keys(['gate', 'gate_low'])

    Args:
        low: what counts as shut.
    """

    low: float = 0.1

    one_text: ClassVar = True
    needs: ClassVar = "gate"
    makes: ClassVar = {
        "gate": Variable(PER_QUERY, "1", "mean gate on a head's output"),
        "gate_low": Variable(PER_QUERY, "1", "share of a head's dimensions with a gate near 0"),
    }

    def __post_init__(self) -> None:
        open_unit(self.low, "low")

    def observe(self, layer: Layer) -> Measurements:
        gate = layer.gate
        if gate is None:
            return {}
        low = torch.where(gate.isnan(), torch.nan, (gate < self.low).to(gate))
        return {"gate": gate.nanmean(-1), "gate_low": low.nanmean(-1)}


def strongest(layer: Layer) -> tuple[Tensor, Tensor]:
    """The key with the most attention [sequence, head], and the attention on it [sequence, head, query]."""
    first = slice(0, min(EARLY, layer.reach))
    early = _columns(layer, first)
    if layer.received is not None:
        return _held(layer, early, layer.received.argmax(-1))
    means = early.double().mean(2)  # [sequence, head, key]
    best, keys = means.max(-1)
    left = 1 - means.sum(-1)
    shares = not (isinstance(layer, FusedLayer) and layer.weighing.replaces_softmax)  # rows sum to 1 at most
    if first.stop == layer.reach:
        return _held(layer, early, keys)
    asked = ~(best > left + 1e-4) if shares else torch.ones_like(left, dtype=torch.bool)
    for sequence, head in asked.nonzero().tolist():
        one = layer.one_head(sequence, head, torch.arange(layer.rows, device=keys.device))
        room = 1 - early[sequence, head].double().sum(-1) if shares else None
        key = _later(one, float(best[sequence, head]) * layer.rows, room)
        if key is not None:
            keys[sequence, head] = key
    return _held(layer, early, keys)


def _held(layer: Layer, early: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Keys [sequence, head], and the attention on them [sequence, head, query], that on the first keys being known."""
    count = early.shape[-1]
    held = early.gather(-1, keys.clamp(max=count - 1)[..., None, None].expand(*early.shape[:3], 1))[..., 0]
    for sequence, head in (keys >= count).nonzero().tolist():
        key = int(keys[sequence, head])
        one = layer.one_head(sequence, head, torch.arange(layer.rows, device=keys.device))
        held[sequence, head] = _columns(one, slice(key, key + 1))[0, 0, :, 0]
    return keys, held


def _later(one: Layer, known: float, room: Tensor | None) -> int | None:
    """The key of one head with the most attention, or None where none has more than an early one is known to have.

    Queries are read from the first on, whose rows are short, until those left over have too little attention to give:
    `room` [query], what each leaves to later keys; where rows have no sum, all are read.
    """
    total = torch.zeros(one.reach, dtype=torch.float64, device=one.lse.device)
    behind = None if room is None else room.clamp(min=0).flip(0).cumsum(0).flip(0).tolist()
    for rows in ranges(0, one.rows, max(1, TILE_ENTRIES // one.reach)):
        if behind is not None and float(total[EARLY:].max()) + behind[rows.start] <= known:
            return None
        seen = one.mask.columns(rows, one.reach) if isinstance(one, FusedLayer) else slice(0, one.reach)
        total[seen] += one.probabilities(rows, seen)[0, 0].sum(0)
    return int(total.argmax())


def _chunks(layer: Layer) -> list[slice]:
    return ranges(0, layer.rows, AHEAD)


def _columns(layer: Layer, columns: slice) -> Tensor:
    """Attention [sequence, head, query, key] of all queries on some keys."""
    return torch.cat([layer.probabilities(rows, columns) for rows in _chunks(layer)], 2)


def _roots(projection: Tensor) -> Tensor:
    """R [head, dim, dim] with the norms and inner products of W_O [head, width, dim]: R R^T = W_O^T W_O, float64."""
    weights = projection.double()
    values, vectors = torch.linalg.eigh(weights.mT @ weights)
    return vectors * values.clamp(min=0).sqrt()[:, None]
