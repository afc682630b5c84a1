"""How much of what a head hands on lies in the span of its sinks' values (after Zhang et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import xarray as xr
from torch import Tensor, nn

from sinkscope.arguments import checks_types, open_unit
from sinkscope.attention.layer import AHEAD, Layer
from sinkscope.attention.masks import ranges
from sinkscope.errors import SinkscopeError
from sinkscope.probes import LayerProbe, Variable
from sinkscope.probes.base import PER_HEAD, Measurements
from sinkscope.scope.measure import measure

EPSILON = 0.3  # Gu et al. 2024
FEWEST_QUERIES = 16  # that see a key before its mean attention says much
PARALLEL = 1e-6  # of the largest singular value; less is rounding


@dataclass(frozen=True)
class _Tags(LayerProbe):
    """The variables of `sink_tags`."""

    epsilon: float = EPSILON

    one_text: ClassVar = True
    makes: ClassVar = {
        "tag_sinks": Variable(PER_HEAD, "1", "keys that are sinks of the head"),
        "tag_rank": Variable(PER_HEAD, "1", "dimensions that their values span"),
        "tag_share": Variable(PER_HEAD, "1", "share of the head's output in that span"),
        "tag_control": Variable(PER_HEAD, "1", "share in the span of as many other values"),
        "tag_null": Variable(PER_HEAD, "1", "share of an output in all directions alike"),
    }

    def observe(self, layer: Layer) -> Measurements:
        if layer.start:
            raise SinkscopeError("sink_tags takes sums over a whole text, read in one forward pass, as model(ids).")
        if layer.value is None or layer.output is None:
            raise SinkscopeError(
                "sink_tags needs the values and outputs of heads, which models outside transformers' attention "
                "interface do not show; give another model."
            )
        received = layer.lse.new_zeros(*layer.lse.shape[:2], layer.reach, dtype=torch.float64)
        for rows in ranges(0, layer.rows, AHEAD):
            received += layer.probabilities(rows, slice(0, layer.reach)).double().sum(2)
        keys = torch.arange(layer.reach, device=received.device)
        queries = torch.full_like(keys, layer.rows) if layer.looks_ahead() else layer.rows - keys
        is_sink = (received / queries > self.epsilon) & (queries >= min(FEWEST_QUERIES, layer.rows))
        group = layer.heads // layer.value.shape[1]
        found = received.new_full((len(self.makes), *layer.lse.shape[:2]), torch.nan)
        for sequence, head in is_sink.any(-1).nonzero().tolist():
            values, output = layer.value[sequence, head // group].double(), layer.output[sequence, head].double()
            sinks, others = (each.nonzero().flatten() for each in (is_sink[sequence, head], ~is_sink[sequence, head]))
            share, rank = _share(output, values[sinks])
            spread = torch.linspace(0, max(len(others) - 1, 0), min(len(sinks), len(others))).round().long()
            control = _share(output, values[others[spread]])[0] if len(others) else torch.nan
            numbers = (len(sinks), rank, share, control, rank / values.shape[-1])
            found[:, sequence, head] = torch.tensor(numbers, dtype=torch.float64)
        found[:1] = is_sink.sum(-1)
        return dict(zip(self.makes, found, strict=True))


def _share(output: Tensor, values: Tensor) -> tuple[float, int]:
    """``||O P||^2 / ||O||^2`` of outputs [query, dim], P the projector on the span of values [key, dim]; its rank."""
    singular, directions = torch.linalg.svd(values, full_matrices=False)[1:]
    inside = directions[singular > PARALLEL * singular.max().clamp(min=torch.finfo(torch.float32).tiny)]
    whole = output.square().sum()
    return float((output @ inside.mT).square().sum() / whole), len(inside)


@checks_types
def sink_tags(
    model: nn.Module,
    ids: Tensor | Sequence[Tensor],
    epsilon: float = EPSILON,
    *,
    progress: bool | None = None,
    **attributes: Any,
) -> xr.Dataset:
    """How much of what each head hands on lies in the span of the values of its sinks.

    A query that holds on to sinks hands on little beside a combination of their values: a tag that all of them share
    (Zhang et al. 2025, "Catch, tag, release", arXiv 2502.00919). With S the sinks of a head, those keys whose mean
    attention from the queries that see them is above `epsilon`, among keys that 16 queries see, O its outputs
    [query, dim] before W_O and any gate, and P_S the projector on the span of v_s, the share is
    ``||O P_S||_F^2 / ||O||_F^2``. That formula is ours.

    >>> record = sinkscope.sink_tags(model, ids)
    >>> list(record.data_vars)[:2]
    ['tag_sinks', 'tag_rank']

    Args:
        model: a transformers model in eval mode, inside transformers' attention interface.
        ids: [sequence, token], or 1-D tensors.
        epsilon: from which mean attention on a key is a sink.
        progress: as in `measure`.
        attributes: noted in the record.

    Returns:
        A record, [sequence, layer, head] each, NaN in a head without a sink:

        tag_sinks     how many sinks the head has
        tag_rank      dimensions that their values span, fewer where values are parallel or 0
        tag_share     the share
        tag_control   the share in the span of as many other values, of keys spread evenly over the text; NaN where
                      all keys are sinks
        tag_null      tag_rank / dim: of an output in all directions alike

    Raises:
        SinkscopeError: as `measure`; also a model that does not show its values, a threshold outside 0 to 1.
    """
    probe = _Tags(open_unit(epsilon, "epsilon"))
    found = measure(model, ids, [probe], progress=progress, **attributes)
    return found.assign_attrs(kind="sink tags", probes=f"sink_tags(epsilon={probe.epsilon:g})", epsilon=probe.epsilon)
