"""A reading beside that of the model as it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sinkscope.explorer.readings import Reading
from sinkscope.explorer.setting import Setting


@dataclass(frozen=True)
class Loss:
    """How two readings compare over the same tokens.

    Attributes:
        dense, changed: perplexities.
        tokens: how many tokens were scored under both.
        first: the first of them.
    """

    dense: float
    changed: float
    tokens: int
    first: int


def loss_of(dense: Reading, changed: Reading) -> Loss | None:
    """Perplexities over the tokens that are `compared`; None where there are none."""
    tokens = compared(dense, changed)
    if not len(tokens):
        return None
    before, after = (float(np.exp(each.losses[tokens].mean(dtype=np.float64))) for each in (dense, changed))
    return Loss(before, after, len(tokens), int(tokens[0]))


def compared(dense: Reading, changed: Reading) -> np.ndarray:
    """The tokens that the policy acts on and both readings scored: [token], rising."""
    both = np.isfinite(dense.losses) & np.isfinite(changed.losses)
    both[: first_changed(changed.setting) + 1] = False
    return np.flatnonzero(both)


def first_changed(setting: Setting) -> int:
    """The first query that notices a setting; 0 when all do."""
    policy = setting.policy
    if setting.weights is not None:
        return 0
    if policy.cache_size is not None:
        return policy.cache_size + (0 if policy.recomputed else 1)
    if policy.keys and policy.once_read:
        return max(policy.start or 0, min(policy.keys) + 1)
    return policy.start or 0


def guesses_at(
    query: int, dense: Reading, changed: Reading, count: int
) -> list[tuple[int, float | None, float | None]]:
    """The likeliest next tokens at a query: id, probability of the model as it is, and under the setting.

    None stands for a probability below those that were kept. Empty where one of them was not read at this query.
    """
    found: list[dict[int, float]] = []
    for reading in (dense, changed):
        kept = reading.guesses
        if kept.ids[query, 0] < 0:
            return []
        found.append(dict(zip(kept.ids[query].tolist(), kept.probabilities[query].tolist(), strict=True)))
    before, after = found
    best = {*list(before)[:count], *list(after)[:count]}
    order = sorted(best, key=lambda token: -max(before.get(token, 0.0), after.get(token, 0.0)))
    return [(token, before.get(token), after.get(token)) for token in order[:count]]
