"""Likeness of hidden states to that of the first token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cosine_similarity

from sinkscope.probes.base import HiddenProbe, Measurements, Variable


@dataclass(frozen=True)
class FirstCosine(HiddenProbe):
    """Cosine between each token's hidden state and the first token's, in float64.

    A token whose hidden state is parallel to the first one's in the layers in which that is large can take attention
    as the first one does: a secondary sink (Wong et al. 2025). Makes ``first_cosine`` [sequence, layer, token], 1 at
    the first token. A text has to be read in one forward pass, not as `generate` does it.

    >>> record = sinkscope.measure(model, ids, [sinkscope.FirstCosine()])
    >>> record.first_cosine.dims
    ('sequence', 'layer', 'token')
    """

    one_pass: ClassVar = True
    makes: ClassVar = {"first_cosine": Variable(("sequence", "token"), "1", "cosine with the first token's state")}

    def observe_hidden(self, hidden: Tensor) -> Measurements:
        hidden = hidden.double()
        return {"first_cosine": cosine_similarity(hidden, hidden[:, :1], dim=-1).float()}
