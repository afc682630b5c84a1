"""How sinks emerge: small models trained on the Bigram-Backcopy task, with softmax and with what may replace it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn import functional

from sinkscope.arguments import checks_types, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.runner import Advance
from sinkscope.lab.decoder import NAMES, Arm, Decoder, Sizes
from sinkscope.lab.runs import Comparison, Text, TrainingRun, TrainingSchedule, UnderWay
from sinkscope.streaming.readers import next_token_losses

MOST_CHARACTERS = 64
MOST_LAYERS = 3
TRIGGERS = 3
DRAWN_AT_ONCE = 32  # batches: drawing one character at a time is quicker for many sequences
EVALUATION_SEED = 2**40  # of the sequences that every run is measured on; no run trains with it
TOKENS = ("all", "trigger", "non-trigger")
"""Queries apart: every character, triggers, all others. BOS, which sees itself alone, is none of them."""
DIMS = {
    "loss": ("tokens",),
    "bos_mass": ("layer", "head", "tokens"),
    "previous_mass": ("layer", "head", "tokens"),
    "row_sum": ("layer", "head", "tokens"),
    "gate": ("layer", "head", "tokens"),
    "bos_value_norm": ("layer", "head"),
    "value_norm": ("layer", "head"),
    "bos_hidden_norm": ("layer",),
    "hidden_norm": ("layer",),
}


@checks_types
def bigram_backcopy(
    arms: str | Arm | Iterable[str | Arm] = NAMES,
    seeds: int | Iterable[int] = range(8),
    steps: int = 1000,
    layers: int = 1,
    *,
    heads: int = 1,
    width: int = 64,
    length: int = 64,
    batch: int = 64,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.01,
    every: int = 25,
    evaluated: int = 128,
    source: str | os.PathLike[str] | None = None,
    text: str | None = None,
    triggers: str | None = None,
    device: str = "cpu",
    folder: str | os.PathLike[str] | None = None,
    n_jobs: int | None = 1,
    progress: bool | None = None,
    **attributes: Any,
) -> xr.Dataset:
    """Train small models from scratch, one for each arm and seed, and watch whether a sink grows on BOS.

    The task is Bigram-Backcopy (Guo et al. 2024, "Active-dormant attention heads", section 2): after BOS each character
    follows from the one before it, as in a text, except that after a trigger the character before it comes again. A
    head that copies has nothing to do after all other characters, and softmax still makes it spend one whole unit of
    attention there.

    Runs of one seed share their first weights and all training sequences, so that arms can be compared pairwise. All
    are measured on the same other sequences.

    >>> record = lab.bigram_backcopy("softmax", seeds=0, steps=2, width=16, length=12, batch=4, every=1)
    >>> record.arm.values.tolist()
    ['softmax']

    Args:
        arms: any of "softmax", "softmax1", "learned sink" (a logit for each head, trained with the rest), "clipped
            softmax", "sigmoid", "relu", "sink token" (softmax, with a learned token in front of BOS), "softpick" and
            "gated" (softmax, and a sigmoid gate on the output of each head), or `Arm` objects; all when none are named.
        seeds: one run each; intervals take three or more. Eight take 72 runs of half a minute on one quiet core.
        steps, batch: updates, and sequences in each.
        layers, heads, width: of the model; 1 to 3 layers.
        length: tokens of a sequence, BOS included. The default was chosen for softmax's sink to have grown after 1,000
            steps; over 96 tokens it had got to 0.23 by then (mean of eight seeds).
        learning_rate, weight_decay: of AdamW.
        every: steps between two measurements; the first and the last step are always measured.
        evaluated: sequences measured on.
        source, text: where the characters come from, as in `read_text`, or the text itself; the demo text when None.
        triggers: characters; the three most frequent ones that are not white space when None.
        device: "cpu", "cuda".
        folder: keeps a file for each run, named by a hash of all that it depends on; the same run is not run again,
            and a damaged file is refused. In the user's cache folder when None.
        n_jobs: runs at the same time, each in a process of its own; as the surrounding `joblib.parallel_config` says
            when None. On a CPU one run for each core is quicker than several cores for one run.
        progress, attributes: as in `perplexity`.

    Returns:
        A record with the dimensions arm, seed, step, layer, head, and tokens: "trigger" and "non-trigger" queries, and
        "all" of them without BOS; attrs hold all that is needed to repeat it.

        loss                          what follows the query, nats; `best_loss` is that of the true probabilities
        bos_mass, previous_mass       attention of the query on BOS, and on the token before it
        row_sum                       attention on BOS and all characters; the rest is on a virtual key or sink token
        gate                          mean gate on the head's output at the query; 1 in arms without one
        bos_value_norm, value_norm    of the value of BOS, and of those of the characters
        bos_hidden_norm, hidden_norm  the same of the hidden states behind each layer
        bos_null                      `bos_mass` of a head that looks at every key alike

    Raises:
        SinkscopeError: no seeds, an unknown arm, numbers out of range, layers outside 1 to 3, an empty text, triggers
            it does not have, a damaged file of a run, a loss that is not finite.
    """
    if whole_number(layers, "layers", 1) > MOST_LAYERS:
        raise SinkscopeError(
            f"layers={layers} is more than the laboratory's small models have: give 1 to {MOST_LAYERS}."
        )
    read = Text.of(source, text)
    task = Backcopy.of(read, triggers)
    sizes = Sizes.of(task.tokens, whole_number(length, "length", 2), layers, heads, width)
    counts = {"steps": steps, "batch": batch, "every": every, "evaluated": evaluated}
    run = partial(BackcopyRun, task, read.sha256, sizes, Schedule.of(learning_rate, weight_decay, **counts))
    found = Comparison(run, arms, seeds, device, folder, n_jobs, progress)
    about = {
        "kind": "emergence",
        "task": "Bigram-Backcopy",
        "model": f"Bigram-Backcopy, {layers} layer{'s' * (layers > 1)}",
        "characters": task.characters,
        "triggers": task.triggers,
    }
    return _record(found).assign_attrs(about | found.attributes(read) | attributes)


@dataclass(frozen=True, eq=False)
class Backcopy:
    """The task over the characters of one text."""

    characters: str  # the vocabulary; a token is a place in it, and BOS the place behind it
    triggers: str  # after which the character before is copied
    transition: np.ndarray  # [character, next] probabilities of the bigram
    first: np.ndarray  # [character] probabilities; never a trigger: two in a row would copy each other for ever

    @classmethod
    def of(cls, text: Text, triggers: str | None = None, most: int = MOST_CHARACTERS) -> Backcopy:
        """The `most` most frequent characters of a text, and how often each follows each, the text closed to a circle.

        Raises:
            SinkscopeError: triggers the text does not have, or that leave nothing to copy.
        """
        characters, encoded = text.encoded(most)
        if triggers is None:
            triggers = "".join(each for each in characters if not each.isspace())[:TRIGGERS]
        triggers = "".join(dict.fromkeys(triggers))
        if not triggers or not set(triggers) <= set(characters):
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

    @property
    def trigger_ids(self) -> list[int]:
        return [self.characters.index(each) for each in self.triggers]

    @property
    def chances(self) -> np.ndarray:
        """[token, next] probabilities after each token that is no trigger, BOS included."""
        return np.vstack([self.transition, self.first])

    def is_trigger(self, ids: Tensor) -> Tensor:
        """Booleans of the shape of `ids`."""
        return torch.isin(ids, torch.tensor(self.trigger_ids, device=ids.device))

    def sample(self, sequences: int, length: int, generator: torch.Generator) -> Tensor:
        """Sequences of BOS and `length` characters: [sequence, 1 + length]."""
        until = torch.from_numpy(self.chances.cumsum(1))
        until[:, -1] = 1.0
        copies = self.is_trigger(torch.arange(self.tokens))
        drawn = torch.rand(sequences, length, generator=generator, dtype=torch.float64)
        ids = torch.full((sequences, 1 + length), self.bos)
        for place in range(length):
            now = ids[:, place]
            follows = (until[now] <= drawn[:, place, None]).sum(1)
            ids[:, place + 1] = torch.where(copies[now], ids[:, place - 1], follows)  # BOS is no trigger
        return ids

    def entropies(self, ids: Tensor) -> Tensor:
        """Nats that the best prediction of what follows each token loses on average, of the shape of `ids`."""
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -np.nansum(self.chances * np.log(self.chances), axis=1)
        entropy[self.trigger_ids] = 0.0
        return torch.from_numpy(entropy)[ids]


@dataclass(frozen=True)
class Schedule(TrainingSchedule):
    """How a model is trained, and the number of sequences it is measured on."""

    evaluated: int


@dataclass(frozen=True, eq=False)
class BackcopyRun(TrainingRun[Backcopy]):
    """A decoder trained on the task."""

    betas = (0.9, 0.99)  # as Guo et al. have them

    @property
    def settings(self) -> dict[str, Any]:  # type: ignore[override]
        own = {"characters": self.material.characters, "triggers": self.material.triggers}
        return super().settings | own | {"task": "bigram backcopy"}

    def train(self, advance: Advance, way: UnderWay) -> dict[str, Tensor]:
        """What `observed` gives, with the step as one more dimension in front."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = Decoder(self.sizes, self.arm).to(self.device)
        observe = partial(observed, model, self.material, self.evaluation_ids().to(self.device))
        optimiser = self.optimiser(model)
        done, kept = way.resume(model, optimiser)
        advance(done)
        found = [dict(zip(kept, each, strict=True)) for each in zip(*kept.values(), strict=True)] or [observe()]
        for step, ids in enumerate(self._batches(), start=1):
            if step <= done:
                continue
            logits, _ = model(ids[:, :-1])
            loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if step in self.schedule.recorded:
                found.append(observe())
                self.check_finite(found[-1]["loss"][0], step)
            if way.due():
                way.keep(step, model, optimiser, _stacked(found))
            advance(1)
        return {name: values.float() for name, values in _stacked(found).items()}

    def evaluation_ids(self) -> Tensor:
        """The sequences [sequence, 1 + token] that every run is measured on."""
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        return self.material.sample(self.schedule.evaluated, self.sizes.length, generator)

    def _batches(self) -> Iterator[Tensor]:
        """Token ids [batch, 1 + token] of each step, drawn on the CPU, so that they are the same on every device."""
        generator = torch.Generator().manual_seed(self.seed)
        for start in range(0, self.size, DRAWN_AT_ONCE):
            sequences = min(DRAWN_AT_ONCE, self.size - start) * self.schedule.batch
            ids = self.material.sample(sequences, self.sizes.length, generator)
            yield from ids.to(self.device).split(self.schedule.batch)


def _stacked(found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What was observed, by name, with the step as one more dimension in front."""
    return {name: torch.stack([each[name].cpu() for each in found]) for name in found[0]}


@torch.no_grad()
def observed(model: Decoder, task: Backcopy, ids: Tensor) -> dict[str, Tensor]:
    """The variables of a record, of the shapes in `DIMS`, of a model on sequences [sequence, 1 + token]: means over
    sequences and over the queries of each kind, or over the characters."""
    seen, target = ids[:, :-1], ids[:, 1:]
    logits, traces = model(seen)
    kinds, own = kinds_of(task, seen), slice(-seen.shape[1], None)  # without a learned sink token
    weights = torch.stack([trace.weights for trace in traces])[..., own, own]  # [layer, sequence, head, query, key]
    masses = {
        "bos_mass": weights[..., 0],
        "previous_mass": functional.pad(weights.diagonal(-1, dim1=-2, dim2=-1), (1, 0)),
        "row_sum": weights.sum(-1),
    }
    masses["gate"] = torch.stack([trace.gates for trace in traces])[..., own]
    values = torch.stack([trace.values for trace in traces])[..., own, :].norm(dim=-1).mean(1)  # [layer, head, token]
    hidden = torch.stack([trace.hidden for trace in traces])[..., own, :].norm(dim=-1).mean(1)  # [layer, token]
    return {
        "loss": _means(next_token_losses(logits, target), kinds),
        **{name: torch.stack([_means(mass, kinds) for mass in layers]) for name, layers in masses.items()},
        "bos_value_norm": values[..., 0],
        "value_norm": values[..., 1:].mean(-1),
        "bos_hidden_norm": hidden[..., 0],
        "hidden_norm": hidden[..., 1:].mean(-1),
    }


def kinds_of(task: Backcopy, seen: Tensor) -> Tensor:
    """Which queries [sequence, token] are of each kind: booleans [tokens, sequence, token]."""
    character, trigger = seen != task.bos, task.is_trigger(seen)
    return torch.stack([character, trigger, character & ~trigger])


def uniform_bos_mass(task: Backcopy, ids: Tensor, sink_tokens: int) -> Tensor:
    """Attention on BOS [tokens] of a head that looks at every key alike, over the same queries."""
    seen = ids[:, :-1]
    share = 1.0 / (torch.arange(seen.shape[1], dtype=torch.float64) + 1 + sink_tokens)
    return _means(share.expand(seen.shape), kinds_of(task, seen))


def _means(values: Tensor, kinds: Tensor) -> Tensor:
    """[sequence, ..., token] over the queries of each kind: [..., tokens]; NaN for a kind that there is none of."""
    return torch.einsum("s...t,kst->...k", values.double(), kinds.double()) / kinds.sum((1, 2))


def _record(found: Comparison[BackcopyRun]) -> xr.Dataset:
    first = found.runs[0]
    task, ids = first.material, first.evaluation_ids()
    entropy = task.entropies(ids[:, :-1])
    nulls = [uniform_bos_mass(task, ids, int(arm.has_sink_token)) for arm in found.arms]
    return xr.Dataset(
        {
            **{name: (("arm", "seed", "step", *dims), found.joined(name)) for name, dims in DIMS.items()},
            "best_loss": ("tokens", [float(entropy[kind].mean()) for kind in kinds_of(task, ids[:, :-1])]),
            "bos_null": (("arm", "tokens"), np.stack(nulls)),
            "seconds": (("arm", "seed"), found.joined("seconds")),
        },
        coords={
            **found.coordinates,
            "step": [0, *first.schedule.recorded],
            "tokens": list(TOKENS),
            "length": first.sizes.length,
        },
    )
