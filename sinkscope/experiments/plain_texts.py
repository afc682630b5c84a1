"""Texts run whole, as they are or under one intervention, and how much attention an intervention on keys removes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional as F

from sinkscope.attention.masks import ranges
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.intervention import Trial
from sinkscope.hf.placement import reading_device
from sinkscope.models.facts import find_anatomy
from sinkscope.models.requirements import not_finite
from sinkscope.policies import Dense, Dose, Evict, EvictRecent, Policy
from sinkscope.probes import DistanceProfile, OutputNorm, Probe, Received, SinkMass
from sinkscope.scope.binding import layer_evictions
from sinkscope.scope.scope import Scope
from sinkscope.streaming.readers import next_token_losses, only_last

TOGETHER = 2048  # tokens of texts that are run at once
BY_KEY: tuple[Probe, ...] = (Received(), DistanceProfile())


class Run(NamedTuple):
    """What one text gave."""

    nll: Tensor  # [token - 1] losses of the second token on, nats
    record: xr.Dataset


class PlainText:
    """One text [token] as it is, and `whole`, what it gave; all that is asked of it is measured once."""

    def __init__(self, model: nn.Module, text: Tensor, start: int, first: int, whole: Run) -> None:
        self.model, self.text, self.start, self.first, self.whole = model, text, start, first, whole

    @cached_property
    def attention(self) -> xr.Dataset:
        """Attention by key and by distance, of the queries from the start on: [sequence, layer, head, ..], in queries.

        No query sees a later one, so it is that of the whole text less that of its first tokens by themselves.
        """
        names = ("received", "distance_mass")
        every = self.whole.record[list(names)].astype("float64")
        early = run(self.model, [Trial(self.text[: self.start])], self.first, BY_KEY)[0].record[list(names)]
        filled = early.astype("float64").reindex(key=every["key"].values, distance=every["distance"].values)
        return every.drop_attrs() - filled.fillna(0.0).assign_coords(every.coords)

    def removed_mass(self, trial: Trial) -> float:
        """Attention of the queries from the start on to the keys that a trial takes from them, of the text as it is:
        mean over layers and heads, 0 for those left alone. NaN for what takes no keys away, or does more than that."""
        policy = trial.policy
        takes = (type(policy) is Evict and not policy.once_read) or type(policy) is EvictRecent  # no class of one's own
        changed = trial.normaliser is not None or trial.hooks is not None or not torch.equal(trial.tokens, self.text)
        if policy is None or not takes or changed or policy.start != self.start:  # type: ignore[attr-defined]
            return float("nan")
        if isinstance(policy, Evict):
            gone = self.attention["received"].isel(key=sorted(policy.keys)).sum("key")
        elif isinstance(policy, EvictRecent):
            reach = slice(policy.behind + 1, policy.behind + policy.recent + 1)
            gone = self.attention["distance_mass"].isel(distance=reach).sum("distance")
        mass = gone.isel(sequence=0).transpose("layer", "head") / (len(self.text) - self.start)
        return float(mass.where(xr.DataArray(self._acts(policy, mass), dims=("layer", "head")), 0.0).mean())

    def _acts(self, policy: Policy, mass: xr.DataArray) -> np.ndarray:
        """Whether a policy acts [layer, head]."""
        anatomy = find_anatomy(self.model)
        acts = np.zeros(mass.shape, dtype=bool)
        places = {int(number): place for place, number in enumerate(mass["layer"].values)}
        for number, evictions in zip(anatomy.numbers, layer_evictions(policy, self.model, anatomy), strict=True):
            for each in evictions:
                acts[places[number]] |= True if each.heads is None else each.heads.cpu().numpy()
        return acts


def plain_texts(model: nn.Module, texts: Sequence[Tensor], start: int, first: int) -> list[PlainText]:
    """Texts with nothing done to them; those of one length behind each other run together."""
    more, found = BY_KEY if find_anatomy(model).interface else (), list[PlainText]()
    for length, alike in groupby(texts, len):
        together = list(alike)
        for part in ranges(0, len(together), max(1, TOGETHER // length)):
            runs = run(model, [Trial(text) for text in together[part]], first, more)
            found += [PlainText(model, text, start, first, one) for text, one in zip(together[part], runs, strict=True)]
    return found


def changes_nothing(trial: Trial, text: Tensor) -> bool:
    """Whether the text [token] is run as it is."""
    policy = trial.policy
    undosed = type(policy) is Dose and not policy.bias and policy.values == "kept"  # a subclass may do anything
    idle = policy is None or type(policy) is Dense or undosed
    return idle and trial.normaliser is None and trial.hooks is None and torch.equal(trial.tokens, text)


def run(
    model: nn.Module, trials: Sequence[Trial], first: int, more: tuple[Probe, ...] = (), since: int = 1
) -> list[Run]:
    """Texts of one length run together under one intervention, that of the first trial: the mass on their `first`
    keys, the norms of outputs, and more probes. Losses are those of the tokens from place `since` on, NaN before."""
    ids, (trial, *_) = torch.stack([each.tokens for each in trials]).to(reading_device(model)), trials
    policy, probes = Dense() if trial.policy is None else trial.policy, [SinkMass(first), OutputNorm(), *more]
    with ExitStack() as undo, torch.no_grad():
        if trial.hooks is not None:
            trial.hooks(model, undo)
        with Scope(model, probes, trial.normaliser, policy, alone=True) as scope:
            asked = {} if trial.hooks is not None else only_last(model, ids.shape[1] - since + 1)
            logits = model(input_ids=ids, use_cache=False, **asked).logits
            record = scope.record
    if trial.hooks is not None and logits.shape[1] != ids.shape[1]:
        raise SinkscopeError(
            f"under the hooks of an intervention the model gave logits for {logits.shape[1]} tokens of {ids.shape[1]}, "
            "so which loss is whose cannot be told; leave every token its hidden state."
        )
    logits = logits[:, :-1]
    losses = next_token_losses(logits, ids[:, -logits.shape[1] :]).cpu()
    if not bool(losses.isfinite().all()):
        raise not_finite("the logits", model)
    nll = F.pad(losses, (ids.shape[1] - 1 - losses.shape[1], 0), value=torch.nan)
    return [Run(each, record.isel(sequence=[row])) for row, each in enumerate(nll)]
