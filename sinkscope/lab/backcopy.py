"""The Bigram-Backcopy task (Guo et al. 2024, "Active-dormant attention heads", section 2).

A sequence is BOS, then characters. After most characters the next one follows from the current one alone, as in a text
(a bigram). After a trigger comes the character before the trigger once more. So a head has something to do after
triggers, to look one character back, and nothing to do anywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sinkscope.errors import SinkscopeError
from sinkscope.lab.texts import Text

MOST_CHARACTERS = 64
TRIGGERS = 3


@dataclass(frozen=True, eq=False)
class Backcopy:
    """The task over the characters of one text.

    Attributes:
        characters: the vocabulary; a token is a place in it, and BOS the place behind it.
        triggers: those after which the character before is copied.
        transition: [character, next] probabilities of the bigram.
        first: [character] probabilities of the first one, never a trigger: two triggers in a row would copy each other
            for ever.
    """

    characters: str
    triggers: str
    transition: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, text: Text, triggers: str | None = None, most: int = MOST_CHARACTERS) -> Backcopy:
        """The task of a text: its most frequent characters, and how often each follows each.

        Args:
            text: closed to a circle, so that every character has one behind it.
            triggers: characters of the text; the three most frequent ones that are not white space when None.
            most: characters in the vocabulary.

        Raises:
            SinkscopeError: triggers the text does not have, or that leave nothing to copy.
        """
        characters, encoded = text.encoded(most)
        if triggers is None:
            triggers = "".join(each for each in characters if not each.isspace())[:TRIGGERS]
        triggers = "".join(dict.fromkeys(triggers))
        foreign = [each for each in triggers if each not in characters]
        if foreign or not triggers:
            raise SinkscopeError(
                f"triggers={triggers!r} are not all among the {len(characters)} most frequent characters of the text; "
                "give one or more of those."
            )
        if len(triggers) == len(characters):
            raise SinkscopeError(
                f"the text has no character beside the triggers {triggers!r}, so there is nothing to copy; give a "
                "longer text, or fewer triggers."
            )
        size = len(characters)
        pairs = np.bincount(encoded * size + np.roll(encoded, -1), minlength=size**2).reshape(size, size)
        counts = np.bincount(encoded, minlength=size).astype(np.float64)
        counts[[characters.index(each) for each in triggers]] = 0
        return cls(characters, triggers, pairs / pairs.sum(1, keepdims=True), counts / counts.sum())

    @property
    def bos(self) -> int:
        return len(self.characters)

    @property
    def tokens(self) -> int:
        """Size of the vocabulary, with BOS."""
        return len(self.characters) + 1

    def is_trigger(self, ids: Tensor) -> Tensor:
        """Booleans of the shape of `ids`."""
        triggers = torch.tensor([self.characters.index(each) for each in self.triggers], device=ids.device)
        return torch.isin(ids, triggers)

    def sample(self, sequences: int, length: int, generator: torch.Generator) -> Tensor:
        """Sequences of BOS and `length` characters: [sequence, 1 + length]."""
        size = len(self.characters)
        until = torch.from_numpy(np.vstack([self.transition, self.first]).cumsum(1))  # of a character, and of BOS
        until[:, -1] = 1.0
        copies = self.is_trigger(torch.arange(size + 1))
        chances = torch.rand(sequences, length, generator=generator, dtype=torch.float64)
        ids = torch.full((sequences, 1 + length), self.bos)
        for place in range(length):
            now = ids[:, place]
            ids[:, place + 1] = (until[now] <= chances[:, place, None]).sum(1)
            if place:
                ids[:, place + 1] = torch.where(copies[now], ids[:, place - 1], ids[:, place + 1])
        return ids

    def entropies(self, ids: Tensor) -> Tensor:
        """Nats that the best prediction of what follows each token loses on average; as `ids` [.., token]."""
        chance = np.vstack([self.transition, self.first])
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -np.nansum(chance * np.log(chance), axis=1)
        entropy[[self.characters.index(each) for each in self.triggers]] = 0.0
        return torch.from_numpy(entropy)[ids]
