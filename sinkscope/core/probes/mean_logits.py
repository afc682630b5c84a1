"""Mean logits and mean probabilities among the first tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sinkscope.core.layer import Layer
from sinkscope.core.masks import is_hidden
from sinkscope.core.probes.base import LayerProbe, Measurements, Variable
from sinkscope.errors import SinkscopeError

CORNER = ("sequence", "head", "corner_query", "corner_key")


@dataclass(frozen=True)
class MeanLogits(LayerProbe):
    """Mean over sequences of the attention *logits*, and beside them of the *probabilities*, of the first tokens.

    StreamingLLM (Xiao et al. 2023) shows logits in its Figure 2 (256 sentences of 16 tokens) and probabilities in
    Figure 12; the two are easily mixed up, so both are kept, each under its name. Makes ``mean_logit`` and
    ``mean_probability`` [layer, head, corner_query, corner_key], NaN where the key is hidden. Logits are scaled and
    soft-capped as the softmax sees them.

    Args:
        tokens: side of the corner of the map, in tokens.
    """

    tokens: int = 16

    makes: ClassVar = {
        "mean_logit": Variable(CORNER, "1", "mean attention logit among the first tokens", averaged=True),
        "mean_probability": Variable(CORNER, "1", "mean attention among the first tokens", averaged=True),
    }

    def __post_init__(self) -> None:
        if not isinstance(self.tokens, int) or self.tokens < 1:
            raise SinkscopeError(f"MeanLogits(tokens={self.tokens!r}) measures nothing; give a whole tokens >= 1.")

    def observe(self, layer: Layer) -> Measurements:
        shape = (*layer.lse.shape[:2], self.tokens, self.tokens)
        logit = torch.full(shape, torch.nan, device=layer.lse.device)
        probability = logit.clone()
        stop = min(self.tokens, layer.length)
        if layer.start < stop and layer.key_start == 0:
            queries, keys = slice(0, stop - layer.start), slice(0, stop)
            corner = layer.logits(queries, keys)
            hidden = is_hidden(corner)
            logit[:, :, layer.start : stop, :stop] = corner.masked_fill(hidden, torch.nan)
            weights = layer.probabilities(queries, keys).masked_fill(hidden, torch.nan)
            probability[:, :, layer.start : stop, :stop] = weights
        return {"mean_logit": logit, "mean_probability": probability}
