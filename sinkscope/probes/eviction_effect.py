"""Eviction in closed form: what taking keys away would do to each head, from one dense pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sinkscope.arguments import MOST, are_places
from sinkscope.attention.layer import FusedLayer, Layer
from sinkscope.errors import SinkscopeError, shown
from sinkscope.probes.base import PER_QUERY, LayerProbe, Measurements, Variable

THIN = 1 / 16  # with less mass than this left, the rest is attended anew: a difference would have too few digits


@dataclass(frozen=True)
class EvictionEffect(LayerProbe):
    """What evicting the keys at the places `keys` from one layer would do to its heads, exactly, without doing it.

    With the mass ``m = sum_{j in E} A_j`` on the evicted keys and ``b = sum_{j in E} A_j v_j``, what they hand on, a
    head's output ``o`` becomes ``o' = (o - b) / (1 - m)``: sum-to-one multiplies every other weight by ``1 / (1 - m)``.
    The change ``o' - o`` is the sum of two parts, ``m o'`` (the *lost denominator*: parked mass forced onto the others)
    and ``-b`` (the *lost value*). First order means one layer at a time: what later layers make of it is not in it.

    Makes, [sequence, layer, head, query], NaN for queries up to the last of the keys:

        log_amplification   -log(1 - m), nats
        output_norm         Euclidean norm of o
        change_norm         of o' - o
        lost_denominator    of m o'
        lost_value          of b

    Only the first is made for models outside the attention interface.

    >>> record = sinkscope.measure(model, ids, [sinkscope.EvictionEffect(keys=(0,))])
    >>> list(record.data_vars)
    ['log_amplification', 'output_norm', 'change_norm', 'lost_denominator', 'lost_value']
    """

    keys: Sequence[int] = (0, 1, 2, 3)

    one_text: ClassVar = True
    makes: ClassVar = {
        "log_amplification": Variable(PER_QUERY, "nats", "logarithm of what the other weights are multiplied by"),
        "output_norm": Variable(PER_QUERY, "1", "Euclidean norm of what a head hands on"),
        "change_norm": Variable(PER_QUERY, "1", "norm of the change of a head's output"),
        "lost_denominator": Variable(PER_QUERY, "1", "norm of the part of it that other keys' weights make"),
        "lost_value": Variable(PER_QUERY, "1", "norm of the part of it that the evicted values make"),
    }

    def __post_init__(self) -> None:
        keys = self.keys
        if not isinstance(keys, Sequence) or not are_places(keys[:MOST]):
            raise SinkscopeError(
                f"EvictionEffect(keys={shown(keys)}) evicts nothing; give different places, as (0, 1, 2)."
            )

    @property
    def coordinates(self) -> Mapping[str, np.ndarray]:
        return {"evicted_key": np.asarray(sorted(self.keys))}

    def check_places(self, tokens: int) -> None:
        if (last := max(self.keys)) >= tokens - 1:
            raise SinkscopeError(
                f"EvictionEffect(keys={shown(self.keys)}) looks at queries behind place {last}, and a text of {tokens} "
                "tokens has none; give earlier places or a longer text."
            )

    def observe(self, layer: Layer) -> Measurements:
        effect = eviction_effect(layer, self.keys)
        early = max(0, max(self.keys) + 1 - layer.start)
        found = {"log_amplification": effect.log_amplification}
        if effect.change is not None and effect.value is not None and layer.output is not None:
            vectors = {
                "output_norm": layer.output,
                "change_norm": effect.change,
                "lost_denominator": effect.change + effect.value,
                "lost_value": effect.value,
            }
            found |= {name: vector.float().norm(dim=-1) for name, vector in vectors.items()}
        for norm in found.values():
            norm[..., :early] = torch.nan
        return found


class Effect(NamedTuple):
    """The effect of evicting keys from one layer; the last two are None where the layer does not show its output."""

    log_amplification: Tensor  # [sequence, head, query] logarithm of what the other weights are multiplied by
    change: Tensor | None  # [sequence, head, query, dim] of the output
    value: Tensor | None  # [sequence, head, query, dim] what the evicted keys handed on


def eviction_effect(layer: Layer, keys: Sequence[int]) -> Effect:
    """The closed form, for queries that see another key too; what it gives for others means nothing."""
    if isinstance(layer, FusedLayer) and layer.evictions:
        raise SinkscopeError("EvictionEffect reads a dense pass; leave out the policy, or its layer.")
    if isinstance(layer, FusedLayer) and layer.weighing.replaces_softmax:
        raise SinkscopeError(
            f"under {layer.weighing.pointwise or layer.weighing.whole!r} the weights are not shares of a denominator, "
            "which is all that this closed form knows; EvictionEffect is for normalisers that have one."
        )
    rows, places = slice(0, layer.rows), [key - layer.key_start for key in sorted(keys)]
    seen = [place for place in places if 0 <= place < layer.length - layer.key_start]
    columns = [layer.probabilities(rows, slice(place, place + 1)) for place in seen]
    weights = torch.cat(columns, -1) if columns else layer.lse.new_zeros(*layer.lse.shape, 0)
    mass = weights.double().sum(-1)
    amplification = -torch.log1p(-mass.clamp(max=1 - 1e-12)).to(layer.lse)
    if layer.output is None or layer.value is None or not isinstance(layer, FusedLayer):
        return Effect(amplification, None, None)
    value = weights @ layer.value[:, :, seen].float().repeat_interleave(layer.heads // layer.value.shape[1], 1)
    output, left = layer.output.float(), (1 - mass).to(layer.lse)[..., None]
    change = (output - value) / left.clamp(min=torch.finfo(torch.float32).tiny) - output
    for sequence, head in (mass > 1 - THIN).any(-1).nonzero().tolist():
        thin = (mass[sequence, head] > 1 - THIN).nonzero().flatten()
        rest, lse = _attended_anew(layer, sequence, head, thin, seen)
        change[sequence, head, thin] = rest - output[sequence, head, thin]
        amplification[sequence, head, thin] = layer.lse[sequence, head, thin] - lse
    return Effect(amplification, change, value)


def _attended_anew(
    layer: FusedLayer, sequence: int, head: int, rows: Tensor, evicted: list[int]
) -> tuple[Tensor, Tensor]:
    """Output [query, dim] and lse [query] of some queries of one head over the keys that are not evicted."""
    one = layer.one_head(sequence, head, rows)
    scores = one.logits(slice(0, len(rows)), slice(0, one.key.shape[2]))
    scores[..., evicted] = torch.finfo(scores.dtype).min
    lse = scores.logsumexp(-1)
    if layer.virtual_logit is not None:
        lse = torch.logaddexp(lse, layer.virtual_logit[head])
    assert one.value is not None
    output = (scores - lse[..., None]).exp() @ one.value.float()
    return output[0, 0], lse[0, 0]
