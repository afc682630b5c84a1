"""Losses whose truth is known, for `coverage.py`: autoregressive ones, and interventions beside controls that are drawn
at random, made up or measured; as many trials as are asked for, along the last axis."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.signal import lfilter

from sinkscope.analysis.batches import FEWEST_TEXTS

SINKS, KEYS = (2.5, 8, 12), (1.0, 1, 60)
"""Nats that a unit of attention costs, and the beta distribution of how much is taken: of sinks, and of random keys."""


class Drawn(NamedTuple):
    """Losses with sinks evicted, and with random keys, beyond those with nothing done."""

    losses: np.ndarray  # [2, text, token, trial], those of random keys the mean over draws
    draws: np.ndarray  # [draw, text, trial], mean losses of random keys
    taken: np.ndarray  # [2, text, trial], attention that is taken away
    ratio: np.ndarray  # [trial] the true difference of the two, of texts of the kind, or of these where there are few
    within: np.ndarray  # [trial] that of these texts as they are, over all draws
    per_mass: np.ndarray  # [2, trial] true nats for each unit of attention; NaN where that is not known


def series(random: np.random.Generator, tokens: int, trials: int, correlation: float) -> np.ndarray:
    """[token, trial] autoregressive values of mean 0 and variance 1."""
    noise = random.standard_normal((tokens, trials))
    noise[1:] *= np.sqrt(1 - correlation**2)
    return lfilter([1.0], [1.0, -correlation], noise, axis=0)


def made_up_controls(random: np.random.Generator, texts: int, tokens: int, draws: int, trials: int) -> Drawn:
    """Neighbours among the tokens are alike (AR 0.5), the attention that a draw takes is skewed, and each text has a
    cost of its own."""
    (sinks, *of_sinks), (keys, *of_keys) = SINKS, KEYS
    scale, usual = np.array([sinks, keys]), np.array([each[0] / sum(each) for each in (of_sinks, of_keys)])
    taken, drawn = random.beta(*of_sinks, (texts, trials)), random.beta(*of_keys, (draws, texts, trials))
    own = random.normal(0, [[[0.1]], [[0.02]]], (2, texts, trials))
    cost = keys * drawn + random.normal(0, 0.03, drawn.shape) + own[1]
    noise = 0.3 * series(random, tokens, 2 * texts * trials, 0.5).reshape(tokens, 2, texts, trials).transpose(
        1, 2, 0, 3
    )
    means = np.stack([sinks * taken + own[0], cost.mean(0)])
    mass = np.stack([taken, np.full_like(taken, usual[1])])  # of each text, over all draws
    expected = scale[:, None, None] * mass + own
    late = noise.mean(2)
    if texts >= FEWEST_TEXTS:
        losses, masses = (np.broadcast_to(each[:, None], (2, trials)) for each in (scale * usual, usual))
    else:
        losses, masses = expected.mean(1), mass.mean(1)
    within = (late[0] + expected[0] - late[1] - expected[1]).mean(0)
    each = noise + means[:, :, None]
    both = np.stack([taken, drawn.mean(0)])
    return Drawn(each, cost + late[1], both, losses[0] - losses[1], within, losses / masses)


class Measured(NamedTuple):
    """Interventions in real texts, beyond what the texts lose with nothing done."""

    losses: np.ndarray  # [2, text, token], those of random keys the mean over draws
    draws: np.ndarray  # [draw, text], mean losses of random keys
    taken: np.ndarray  # [text], attention that the sinks have


def resampled_controls(
    random: np.random.Generator, real: Measured, texts: int, draws: int, trials: int, run: int = 50
) -> Drawn:
    """Texts of those measured, and in each some of its draws, with replacement; of a single text runs of its tokens."""
    one = len(real.taken) == 1
    picked = random.integers(len(real.taken), size=(texts, trials))
    drawn = real.draws[random.integers(len(real.draws), size=(draws, texts, trials)), picked]
    if one:
        starts = random.integers(real.losses.shape[2], size=(real.losses.shape[2] // run, trials))
        places = (starts[:, None] + np.arange(run)[:, None]).reshape(-1, trials) % real.losses.shape[2]
        losses = real.losses[:, 0][:, None, places]
    else:
        losses = real.losses.mean(2)[:, picked][:, :, None]
    whole = losses.mean(2)  # of these tokens, over all draws
    drawn = drawn + whole[1] - real.draws.mean(0)[picked]
    losses[1] += (drawn.mean(0) - whole[1])[:, None]
    truth = real.losses.mean((1, 2))
    per_mass = [truth[0] / real.taken.mean(), np.nan]
    return Drawn(
        losses,
        drawn,
        np.stack([real.taken[picked], np.full(picked.shape, np.nan)]),
        np.full(trials, truth[0] - truth[1]),
        (whole[0] - whole[1]).mean(0),
        np.broadcast_to(np.array(per_mass)[:, None], (2, trials)),
    )
