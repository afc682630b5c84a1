"""The next token of an answer: the likeliest one, or one drawn with transformers' own rules and a seed of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from sinkscope.arguments import finite_number, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.hf.generation import sampling_rules


class Sampler:
    """Chooses tokens; the draws are those of `generate()` after `torch.manual_seed(seed)`.

    Args:
        temperature: the logits are divided by it; 0 takes the likeliest token.
        top_k: draw among the k likeliest tokens; among all when None.
        top_p: draw among the likeliest tokens that together have this probability.
        seed: of the draws.
        device: where the logits are.

    Raises:
        SinkscopeError: temperature < 0, top_k < 1, or top_p not above 0 and up to 1.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.temperature = finite_number(temperature, "temperature", 0.0, inclusive=True)
        likeliest = None if top_k is None else whole_number(top_k, "top_k", 1)
        share = finite_number(top_p, "top_p", 0.0)
        if share > 1.0:
            raise SinkscopeError(f"top_p={top_p!r} is no probability above 0 and up to 1: give one, such as top_p=0.9.")
        self._rules = sampling_rules(self.temperature, likeliest, share) if self.temperature else None
        self._generator = torch.Generator(device).manual_seed(whole_number(seed, "seed", 0))

    def __call__(self, logits: Tensor) -> int:
        """The token chosen by logits [1, token of the vocabulary]."""
        if self._rules is None:
            return int(logits.argmax())
        weights = self._rules(logits.float()).softmax(-1)
        return int(torch.multinomial(weights, 1, generator=self._generator))
