"""How a text's hidden states fold together over depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sinkscope.probes.base import HiddenProbe, Measurements, Variable


@dataclass(frozen=True)
class Compression(HiddenProbe):
    """Entropy and anisotropy of the hidden states X [token, dim] that each layer hands on (Queipo-de-Llano et al. 2025,
    "Attention sinks and compression valleys", arXiv 2510.06477; the entropy as of Skean et al. 2025).

    With ``p_j = sigma_j^2 / ||X||_F^2`` of the singular values, in float64 from the smaller Gram matrix of X. Makes:

        matrix_entropy   [sequence, layer] ``-sum_j p_j log p_j / log min(T, dim)``: 0 on one line, 1 in all directions
        anisotropy       [sequence, layer] ``p_1``, the largest share
        state_kurtosis   [sequence, layer] of all entries of X about their mean, 3 for a normal distribution
        state_norm       [sequence, layer, token] Euclidean norm of each token's state
        state_rise       [sequence, layer, token] the same less that of the state that the layer read; NaN where it
                         is not known

    A text has to be read in one forward pass. NaN where X is 0, and the entropy of one token.

    >>> record = sinkscope.measure(model, ids, [sinkscope.Compression()])
    >>> list(record.data_vars)
    ['matrix_entropy', 'anisotropy', 'state_kurtosis', 'state_norm', 'state_rise']
    """

    one_pass: ClassVar = True
    makes: ClassVar = {
        "matrix_entropy": Variable(("sequence",), "1", "normalised matrix entropy of the hidden states"),
        "anisotropy": Variable(("sequence",), "1", "share of the largest direction in the hidden states"),
        "state_kurtosis": Variable(("sequence",), "1", "kurtosis of all entries of the hidden states"),
        "state_norm": Variable(("sequence", "token"), "1", "Euclidean norm of each token's hidden state"),
        "state_rise": Variable(("sequence", "token"), "1", "rise of that norm in the layer"),
    }

    def observe_layer(self, before: Tensor | None, hidden: Tensor) -> Measurements:
        found = self.observe_hidden(hidden)
        norms = found["state_norm"]
        assert isinstance(norms, Tensor)
        rise = torch.full_like(norms, torch.nan) if before is None else norms - before.double().norm(dim=-1)
        return {**found, "state_rise": rise}

    def observe_hidden(self, hidden: Tensor) -> Measurements:
        found = [self._of_text(states) for states in hidden.detach()]
        entropy, anisotropy, kurtosis, norms = (torch.stack(each) for each in zip(*found, strict=True))
        return {"matrix_entropy": entropy, "anisotropy": anisotropy, "state_kurtosis": kurtosis, "state_norm": norms}

    def _of_text(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        states = states.double()
        tokens, width = states.shape
        gram = states.mT @ states if tokens > width else states @ states.mT
        squares = torch.linalg.eigvalsh(gram).clamp(min=0)
        shares = squares / squares.sum()
        most = torch.tensor(float(min(tokens, width)), dtype=torch.float64, device=states.device).log()
        entropy = torch.special.entr(shares).sum() / most
        centred = (states - states.mean()).square_()
        kurtosis = centred.square().mean() / centred.mean() ** 2
        return entropy, shares[-1], kurtosis, states.norm(dim=-1)
