"""`Passes`: what the sections of a report run of one model over one text, each pass once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xarray as xr

from sinkscope.experiments import perplexity as experiment
from sinkscope.models.facts import find_streams
from sinkscope.normalisers import Normaliser
from sinkscope.policies import Policy, SinkWindow, Window
from sinkscope.probes import Probe, SinkMass
from sinkscope.reporting.content import MAIN
from sinkscope.reporting.inputs import check_one_text, fewest_tokens, with_pictures
from sinkscope.reporting.plan import Plan
from sinkscope.reporting.planned import cut
from sinkscope.sampling import sequences as split
from sinkscope.scope.binding import check_limits
from sinkscope.scope.fitting import fitting
from sinkscope.scope.measure import measure
from sinkscope.streaming.checkpoint import Checkpoint, Progress


@dataclass(eq=False)
class Passes:
    """What sections run of one model over one text.

    A pass is a model over tokens, under a policy and with probes on. Whoever asks for one that was run before, over
    the same tokens or over more of the same text, is given its result.

    Args:
        model, tokenizer: a loaded model and its tokenizer.
        tokens: [token] of the text, without a token in front.
        rows: [sequence, token] of the main record.
        front: the tokens that this tokenizer puts in front of a text by itself.
        probes: by record, what to measure beside what its section measures.
        progress: False for no progress bars.
        inputs: of one call of the model, in the place of a text; there are no tokens, rows and front then.
        others: [token] of each further text.
        plan: what was asked for.
        names: of all texts, where there are several.

    Attributes:
        notes: where a section says what it had to leave out.
    """

    model: Any
    tokenizer: Any
    tokens: torch.Tensor
    rows: torch.Tensor
    front: tuple[int, ...] = ()
    probes: Mapping[str, Iterable[Probe]] = field(default_factory=dict)
    progress: bool | None = None
    inputs: Mapping[str, Any] | None = None
    others: Sequence[torch.Tensor] = ()
    plan: Plan = field(default_factory=Plan)
    names: Sequence[str] = ()
    notes: list[str] = field(default_factory=list, init=False)
    _measured: list[tuple[torch.Tensor, list[Probe], bool, xr.Dataset]] = field(default_factory=list, init=False)
    _read: list[tuple[torch.Tensor, Policy, experiment.Run, Progress]] = field(default_factory=list, init=False)

    @cached_property
    def one_text(self) -> torch.Tensor:
        """The whole text [token], the first of several, with the tokens in front that this tokenizer puts there."""
        self.check_one_text()
        return split(self.tokens, self.tokens.numel() + len(self.front), 1, bos=self.front)[0]

    @property
    def fewest(self) -> int:
        """Tokens of the shortest text, without those in front."""
        return min(text.numel() for text in (self.tokens, *self.others))

    def check_one_text(self) -> None:
        """Raise SinkscopeError where there is no text that can be cut."""
        if self.inputs is not None:
            check_one_text(self.model, self.inputs)

    def segments(self, length: int, count: int) -> torch.Tensor:
        """`count` pieces from all over each text, [sequence, token], each with the tokens in front.

        Raises:
            SinkscopeError: there is no text that can be cut, or one too short.
        """
        self.check_one_text()
        spread = replace(self.plan, sequences=None, segments=count)
        return torch.cat([cut(spread, text, length, count, self.front) for text in (self.tokens, *self.others)])

    def pieces(self, count: int, length: int) -> torch.Tensor | None:
        """Up to `count` shorter sequences: of those of the main record, or where these are segments from all over the
        texts. None for fewer than two, or none shorter than those of the main record."""
        if self.inputs is not None or length >= self.rows.shape[1]:
            return None
        texts = [self.tokens, *self.others]
        if self.plan.sequences is not None:
            texts = list(self.rows[:, len(self.front) :].reshape(len(texts), -1))
        each = min(count // len(texts), min(text.numel() for text in texts) // (length - len(self.front)))
        if each * len(texts) < 2:
            return None
        return torch.cat([cut(self.plan, text, length, each, self.front) for text in texts])

    def named(self, record: xr.Dataset) -> xr.Dataset:
        """The record with `source` [sequence], the text that a sequence is of, where there are several."""
        if not self.names:
            return record
        each = record.sizes["sequence"] // len(self.names)
        return record.assign_coords(source=("sequence", np.repeat(np.array(self.names, dtype=object), each)))

    def main(self, probes: Iterable[Probe]) -> xr.Dataset:
        """The main record: of the rows of a text, or of the part of a model that predicts tokens, from its inputs."""
        if self.inputs is None:
            return self.named(self.measure(MAIN, self.rows, probes))
        wanted = different([*self._short(probes), *self.probes.get(MAIN, ())])
        record = measure(self.model, self.inputs, wanted, tokenizer=self.tokenizer, progress=self.progress)
        return with_pictures(record, self.model, self.inputs)

    @property
    def streams(self) -> list[str]:
        """The parts of the model beside the main one, where it is given all that it reads."""
        return [] if self.inputs is None else list(find_streams(self.model))[1:]

    def stream(self, name: str, probes: Iterable[Probe]) -> xr.Dataset:
        """The record of a part of the model beside the main one, with those probes that can look at it."""
        assert self.inputs is not None
        wanted = fitting(different([*probes, *self.probes.get(name, ())]), find_streams(self.model)[name])
        return measure(self.model, self.inputs, wanted, stream=name, progress=self.progress)

    def _short(self, probes: Iterable[Probe]) -> list[Probe]:
        """The probes, for texts of fewer tokens than some look at."""
        assert self.inputs is not None
        few = fewest_tokens(self.inputs)
        return [
            SinkMass(first=max(1, few)) if isinstance(probe, SinkMass) and probe.first > few else probe
            for probe in probes
        ]

    def measure(
        self, record: str, ids: torch.Tensor, probes: Iterable[Probe] = (), *, token_texts: bool = True
    ) -> xr.Dataset:
        """What `sinkscope.measure` makes of token ids [sequence, token], with the probes of this record's items on too.

        The text of each token is kept with `token_texts`.
        """
        wanted = different([*probes, *self.probes.get(record, ())])
        for known, made, texts, result in self._measured:
            if torch.equal(known, ids) and len(different([*made, *wanted])) == len(made) and texts >= token_texts:
                return result
        tokenizer = self.tokenizer if token_texts else None
        result = measure(self.model, ids, wanted, tokenizer=tokenizer, progress=self.progress)
        self._measured.append((ids, wanted, token_texts, result))
        return result

    def perplexity(
        self,
        ids: torch.Tensor,
        policies: Sequence[Policy],
        samples: int | None = 256,
        normaliser: Normaliser | None = None,
    ) -> xr.Dataset:
        """The record that `sinkscope.perplexity` makes of texts [sequence, token]; no policy reads them twice."""
        run, texts = experiment.Run(1024, samples, self.plan.seed, normaliser), list(ids)
        experiment.check_run(self.model, texts, run)
        for policy in policies:
            check_limits(self.model, policy, ids.shape[1])
        finished = [self.losses(texts, policy, run) for policy in policies]
        return experiment.record_of(self.model, texts, list(policies), finished).assign_attrs(run.attributes())

    def losses(self, texts: list[torch.Tensor], policy: Policy, run: experiment.Run) -> Progress:
        """The losses of texts of one length, as `read_texts` finds them, or out of those of longer ones."""
        ids = torch.stack(texts)
        if policy.kept is not None and policy == SinkWindow(0, policy.kept.last):
            policy = Window(policy.kept.last)  # without sinks it is the same
        for known, other, way, done in self._read:
            sampled = policy.recomputed and (known.shape != ids.shape or way.samples != run.samples)
            same = other == policy and way.normaliser is run.normaliser and not sampled
            if same and torch.equal(known[:, : ids.shape[1]], ids):
                return Progress(done.losses[:, : ids.shape[1]], seconds=done.seconds)
        done = experiment.read_texts(self.model, texts, policy, run, Checkpoint(None, {}), None, self.progress)
        self._read.append((ids, policy, run, done))
        return done


def different(probes: Iterable[Probe]) -> list[Probe]:
    """Each probe once. They may be of classes that cannot be hashed, and hold what is not simply equal, as tensors."""
    found: list[Probe] = []
    for probe in probes:
        if not any(_is_same(probe, other) for other in found):
            found.append(probe)
    return found


def _is_same(one: Any, other: Any) -> bool:
    try:
        return one is other or bool(one == other)
    except (RuntimeError, TypeError, ValueError):
        return False
