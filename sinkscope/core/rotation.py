"""Moving rotated queries and keys along the text."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rotation:
    """Rotary geometry of one layer (Su et al. 2021): pairs of dimensions turn by position times frequency.

    Attributes:
        slot: "keys" or "values", the cached state that turns; latent attention (MLA) keeps its rotated part in the
            slot of the values.
        low, high: the dimensions that turn.
        interleaved: whether neighbours form a pair, rather than dimensions half the width apart.
        frequencies: [pair], radians per position, float64.
    """

    slot: str
    low: int
    high: int
    interleaved: bool
    frequencies: Tensor

    def turned(self, states: Tensor, by: Tensor | int) -> Tensor:
        """States moved along the text.

        Args:
            states: [batch, head, token, dim], rotated already, at any position.
            by: positions to move by: one number, [token] or [batch, token].

        Returns:
            States of the same shape and dtype; angles are formed in float64.
        """
        return self.turned_by(states, *self.angles(torch.as_tensor(by, device=states.device), states.dtype))

    def angles(self, by: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines of turning states of a dtype by so many positions, as `turned_by` takes them."""
        delta = torch.atleast_1d(by).double()
        angles = delta[..., None] * self.frequencies.to(delta.device)
        if delta.dim() == 2:
            angles = angles[:, None]
        wide = torch.promote_types(dtype, torch.float32)
        return angles.cos().to(wide), angles.sin().to(wide)

    def turned_by(self, states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """States turned by known angles."""
        first, second = self.pairs(states.to(cosine.dtype))
        turned = (
            torch.addcmul(first * cosine, second, sine, value=-1),
            torch.addcmul(second * cosine, first, sine),
        )
        moved = torch.stack(turned, -1).flatten(-2) if self.interleaved else torch.cat(turned, -1)
        if moved.shape[-1] == states.shape[-1]:
            return moved.to(states.dtype)
        return torch.cat([states[..., : self.low], moved.to(states.dtype), states[..., self.high :]], -1)

    def pairs(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """The two members of every pair: [..., pair] each."""
        rotary = states[..., self.low : self.high]
        if self.interleaved:
            return rotary[..., 0::2], rotary[..., 1::2]
        first, second = rotary.chunk(2, -1)
        return first, second

    def is_like(self, other: Rotation) -> bool:
        """Whether the two turn alike."""
        layout = (self.slot, self.low, self.high, self.interleaved)
        others = (other.slot, other.low, other.high, other.interleaved)
        return layout == others and torch.equal(self.frequencies, other.frequencies)

    def of_query(self, dim: int) -> Rotation:
        """The geometry of the layer's queries of width `dim`: latent attention rotates their last dimensions."""
        if self.slot == "keys":
            return self
        return replace(self, slot="keys", low=dim - (self.high - self.low), high=dim)
