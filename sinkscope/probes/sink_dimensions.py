"""How far a few dimensions stand out of a hidden state, by which visual sinks are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sinkscope.arguments import check_places
from sinkscope.errors import SinkscopeError
from sinkscope.probes.base import HiddenProbe, Measurements, Variable


@dataclass(frozen=True)
class SinkDimensions(HiddenProbe):
    """The largest magnitude of a token's hidden state over its root mean square, among some dimensions.

    That is phi of Kang et al. 2025 (arXiv 2503.03321), for whom a token of an image is a visual sink where it is 20 or
    more; it cannot exceed the square root of the width. Makes ``normalised_max`` [sequence, layer, token], of what each
    decoder layer hands on.

    >>> record = sinkscope.measure(model, ids, [sinkscope.SinkDimensions([3, 7])])
    >>> list(record.data_vars)
    ['normalised_max']

    Args:
        dimensions: the sink dimensions of the model (1415 and 2533 of LLaMA-2); all when None.
    """

    makes: ClassVar = {
        "normalised_max": Variable(("sequence", "token"), "1", "largest magnitude over the root mean square")
    }

    dimensions: Sequence[int] | None = None

    def __post_init__(self) -> None:
        check_places(self.dimensions, "dimensions")
        if self.dimensions is not None:
            object.__setattr__(self, "dimensions", tuple(map(int, self.dimensions)))

    def observe_hidden(self, hidden: Tensor) -> Measurements:
        hidden = hidden.detach().float()
        scale = torch.linalg.vector_norm(hidden, dim=-1) * hidden.shape[-1] ** -0.5
        if self.dimensions is not None:
            if (last := max(self.dimensions)) >= hidden.shape[-1]:
                raise SinkscopeError(
                    f"dimension {last} is out of range: the hidden states have dimensions 0 to {hidden.shape[-1] - 1}."
                )
            hidden = hidden[..., list(self.dimensions)]
        largest = hidden.abs().amax(-1)
        return {"normalised_max": largest / scale.clamp(min=torch.finfo(torch.float32).tiny)}
