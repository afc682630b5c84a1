"""The Bigram-Backcopy task (Guo et al. 2024, "Active-dormant attention heads", section 2), one small model trained on
it, and what is measured meanwhile.

A sequence is BOS, then characters. After most characters the next one follows from the current one alone, as in a text
(a bigram). After a trigger comes the character before the trigger once more. So a head has something to do after
triggers, to look one character back, and nothing to do anywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import sinkscope
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.runner import Advance
from sinkscope.lab.decoder import Arm, Decoder, Sizes, Trace
from sinkscope.lab.runs import TrainingRun
from sinkscope.lab.texts import Text
from sinkscope.streaming.readers import next_token_losses

MOST_CHARACTERS = 64
TRIGGERS = 3
DRAWN_AT_ONCE = 32  # batches: drawing one character at a time is quicker for many sequences
BETAS = (0.9, 0.99)  # of AdamW, as Guo et al. have them
EVALUATION_SEED = 2**40  # of the sequences that every run is measured on; no run trains with it
TOKENS = ("all", "trigger", "non-trigger")
"""Queries apart: every character, triggers, all others. BOS, which sees itself alone, is none of them."""


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


@dataclass(frozen=True)
class Schedule:
    """How a model is trained.

    Attributes:
        steps: updates.
        batch: sequences in each.
        learning_rate, weight_decay: of AdamW, the same throughout.
        every: steps between two measurements; the last step is measured too.
        evaluated: sequences measured on.
    """

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    every: int
    evaluated: int

    @property
    def measured(self) -> list[int]:
        """Updates done at each measurement."""
        return [*range(0, self.steps, self.every), self.steps]


@dataclass(frozen=True)
class BackcopyRun(TrainingRun):
    """One arm and one seed, which decides the first weights and the sequences: runs of one seed share both."""

    task: Backcopy
    text_sha256: str
    sizes: Sizes
    schedule: Schedule
    arm: Arm
    seed: int
    device: str

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "task": "bigram backcopy",
            "text": self.text_sha256,
            "characters": self.task.characters,
            "triggers": self.task.triggers,
            "sizes": self.sizes,
            "schedule": self.schedule,
            "arm": self.arm,
            "seed": self.seed,
            "device": self.device.partition(":")[0],
            "torch": torch.__version__,
            "sinkscope": sinkscope.__version__,
        }

    def train(self, advance: Advance) -> dict[str, Tensor]:
        """What `observed` gives, with the step as one more dimension in front."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = Decoder(self.sizes, self.arm).to(self.device)
        evaluated = evaluation_ids(self.task, self.sizes, self.schedule).to(self.device)
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=self.schedule.learning_rate, betas=BETAS, weight_decay=self.schedule.weight_decay
        )
        found = [observed(model, self.task, evaluated)]
        for step, ids in enumerate(self._batches(), start=1):
            logits, _ = model(ids[:, :-1])
            loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if step in self.schedule.measured:
                found.append(observed(model, self.task, evaluated))
                self.check_finite(found[-1]["loss"][0], step)
            advance(1)
        return {name: torch.stack([each[name] for each in found]).float().cpu() for name in found[0]}

    def _batches(self) -> Iterator[Tensor]:
        """Token ids [batch, 1 + token] of each step, drawn on the CPU, so that they are the same on every device."""
        generator = torch.Generator().manual_seed(self.seed)
        for start in range(0, self.size, DRAWN_AT_ONCE):
            batches = min(DRAWN_AT_ONCE, self.size - start)
            ids = self.task.sample(batches * self.schedule.batch, self.sizes.length, generator)
            yield from ids.to(self.device).split(self.schedule.batch)


def evaluation_ids(task: Backcopy, sizes: Sizes, schedule: Schedule) -> Tensor:
    """The sequences [sequence, 1 + token] that every run is measured on."""
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    return task.sample(schedule.evaluated, sizes.length, generator)


@torch.no_grad()
def observed(model: Decoder, task: Backcopy, ids: Tensor) -> dict[str, Tensor]:
    """Measure a model on sequences [sequence, 1 + token]; means over sequences and over the queries of each kind.

    Returns:
        loss [tokens]: nats.
        bos_mass, previous_mass [layer, head, tokens]: attention on BOS, and on the token before the query's.
        row_sum [layer, head, tokens]: on BOS and all characters together, a learned sink token left out.
        bos_value_norm, value_norm [layer, head]: of BOS, and mean over the characters.
        bos_hidden_norm, hidden_norm [layer]: the same of the hidden states behind each layer.
    """
    seen, target = ids[:, :-1], ids[:, 1:]
    logits, traces = model(seen)
    kinds = kinds_of(task, seen)
    found = {"loss": _means(next_token_losses(logits, target), kinds)}
    own = [_without_sink_token(trace, seen.shape[1]) for trace in traces]
    on_previous = [functional.pad(trace.weights.diagonal(-1, dim1=-2, dim2=-1), (1, 0)) for trace in own]
    masses = {
        "bos_mass": [trace.weights[..., 0] for trace in own],
        "previous_mass": on_previous,
        "row_sum": [trace.weights.sum(-1) for trace in own],
    }
    found |= {name: torch.stack([_means(mass, kinds) for mass in layers]) for name, layers in masses.items()}
    values = torch.stack([trace.values.norm(dim=-1).mean(0) for trace in own])  # [layer, head, token]
    hidden = torch.stack([trace.hidden.norm(dim=-1).mean(0) for trace in own])  # [layer, token]
    found |= {"bos_value_norm": values[..., 0], "value_norm": values[..., 1:].mean(-1)}
    return found | {"bos_hidden_norm": hidden[..., 0], "hidden_norm": hidden[..., 1:].mean(-1)}


def kinds_of(task: Backcopy, seen: Tensor) -> Tensor:
    """Which queries [sequence, token] are of each kind: booleans [tokens, sequence, token]."""
    character, trigger = seen != task.bos, task.is_trigger(seen)
    return torch.stack([character, trigger, character & ~trigger])


def uniform_bos_mass(task: Backcopy, ids: Tensor, sink_tokens: int) -> Tensor:
    """Attention on BOS [tokens] of a head that looks at every key alike, over the same queries."""
    seen = ids[:, :-1]
    share = 1.0 / (torch.arange(seen.shape[1], dtype=torch.float64) + 1 + sink_tokens)
    return _means(share.expand(seen.shape), kinds_of(task, seen))


def _without_sink_token(trace: Trace, tokens: int) -> Trace:
    """The layer as the characters and BOS are in it."""
    weights, values, hidden = trace
    return Trace(weights[:, :, -tokens:, -tokens:], values[:, :, -tokens:], hidden[:, -tokens:])


def _means(values: Tensor, kinds: Tensor) -> Tensor:
    """[sequence, ..., token] over the queries of each kind: [..., tokens]; NaN for a kind that there is none of."""
    total = torch.einsum("s...t,kst->...k", values.double(), kinds.double())
    return total / kinds.sum((1, 2))
