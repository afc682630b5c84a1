"""Intervals of a mean loss by Student's t: over texts, or over batches of one text, with a test of whether it drifts.

Over texts, each text is one value, so an interval holds what differs from text to text (random effects) beside what
differs within. Over one text, the values are means of eight batches of it (Schmeiser 1982): neighbours that rise and
fall together fall into one batch, and t allows for there being eight. That covers for a text much longer than its
memory, and a shorter one has no bounds. It does not where a text keeps to a topic as long as itself, and no interval
could. Batches then lie farther apart than pieces of a batch would have them: an F test says so, the chi-square of their
means against a standard error that is estimated too. Where it does there are no bounds. `docs/intervals.md` has what is
covered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
from scipy.special import fdtrc, stdtrit

from sinkscope.analysis.intervals import FEWEST, UNEVEN, effective, weighted
from sinkscope.arguments import one_of
from sinkscope.errors import SinkscopeError

BATCHES = 8
PIECES = 4
"""Pieces of a batch, whose differences say how far apart batches would lie if the text did not drift."""

FEWEST_TEXTS = 4
"""With as many texts an interval is over texts, unless it is asked for otherwise."""

DRIFTS = 0.01
"""A text drifts, and has no interval, where batches so far apart had less than this probability."""

MEMORIES = 4
"""A text has no interval where its batches are shorter than as many times the memory of its losses: so few of them tell
too little of one another."""

ROUNDING = 1e-12
"""Of a loss: means of the same losses differ by less."""

Losses = Sequence[Sequence[np.ndarray]]
"""Losses [token, column] of each text in each stretch of positions, in reading order."""

Contrast = Callable[[np.ndarray], np.ndarray]
"""What an interval is of: from mean losses [.., column] to what is made of them [.., quantity], linear."""


class Stretch(NamedTuple):
    """Means of what an interval is over, in one stretch of positions."""

    share: float  # of all tokens
    means: np.ndarray  # [unit, column]
    weights: np.ndarray  # [unit], which add up to 1
    pieces: np.ndarray | None  # [unit, piece, column], of about equal size
    tokens: Sequence[np.ndarray] = ()  # [token, column] of each text, where units are batches of it


class Chance(NamedTuple):
    """What an estimate hangs on beside the text, such as places drawn at random."""

    square: np.ndarray  # of the standard error
    freedom: np.ndarray


def chance_of_draws(one: np.ndarray, two: np.ndarray, counts: np.ndarray) -> Chance:
    """How uncertain draws make the mean difference in loss of two things, of which one or both are drawn at random.

    Those of a text differ within it, and the errors of the texts add up (Satterthwaite). Where both are drawn as often,
    they are paired draw by draw.

    Args:
        one, two: mean losses [draw, text, ..]; a single draw for what is not drawn.
        counts: tokens of each text [text].
    """
    is_paired = len(one) == len(two) or min(len(one), len(two)) == 1
    shares = ((counts / counts.sum()) ** 2).reshape(-1, *[1] * (one.ndim - 2))
    total, spent = np.zeros(one.shape[2:]), np.zeros(one.shape[2:])
    for drawn in [one - two] if is_paired else [one, two]:
        squares = shares * drawn.var(0, ddof=1) / len(drawn)
        total, spent = total + squares.sum(0), spent + (squares**2).sum(0) / (len(drawn) - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Chance(total, np.where(spent > 0, total**2 / spent, np.inf))


class Estimate(NamedTuple):
    """Quantities with 95% bounds, NaN where there are none, and how likely batches so far apart are [quantity]."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    drift: np.ndarray


class Units:
    """What intervals of mean losses are over.

    Args:
        losses: as `Losses` are. Each text has one array in each stretch, empty where it has no token there; one without
            any token is none.
        text: numbers of the texts, the same for those that are one.
        over: "texts" or "batches"; when None texts, where there are four or more.

    Raises:
        SinkscopeError: intervals over texts of fewer than three.
    """

    def __init__(self, losses: Losses, text: np.ndarray, over: str | None = None) -> None:
        scored = [any(len(parts[row]) for parts in losses) for row in range(len(text))]
        losses, text = [list(compress(parts, scored)) for parts in losses], text[scored]
        texts = len(np.unique(text))
        if over is None:
            over = "texts" if texts >= FEWEST_TEXTS else "batches"
        if one_of(over, "over", ("texts", "batches")) == "texts" and texts < FEWEST:
            there = "there is one text" if texts == 1 else f"there are {texts} texts"
            raise SinkscopeError(
                f"an interval over texts needs {FEWEST} texts that share no passage, and {there}: give more, or "
                "over='batches'."
            )
        self.over, self.texts, self._given = over, texts, len(text)
        counts = [sum(map(len, parts)) for parts in losses]
        self._mean = sum(part.sum(0) for parts in losses for part in parts) / sum(counts)
        self._nothing = (ROUNDING * np.abs(self._mean[np.isfinite(self._mean)]).max(initial=0)) ** 2
        self.stretches = [_texts(losses, text)] if over == "texts" else _batches(losses, text)
        self.count = sum(len(stretch.means) for stretch in self.stretches)
        self._counts_as = effective(self.stretches[0].weights) if over == "texts" else float(self.count)

    @property
    def said(self) -> str:
        """What the intervals are, in words."""
        if self.over == "texts":
            shared = f" (of {self._given}, those that share passages as one)" * (self._given > self.texts)
            if self._counts_as < UNEVEN:
                return f"no intervals: of {self.count} sequences{shared} one holds most tokens"
            uneven = f", uneven ones, which count as {self._counts_as:.1f}" * (self._counts_as < 0.9 * self.count)
            return f"95% t intervals over {self.count} sequences{shared}{uneven}"
        those = "one text" if self.texts == 1 else f"{self.texts} texts"
        if self.count < FEWEST:
            return f"no intervals: too few tokens of {those}"
        return f"95% t intervals over {self.count} batches of {those}, which say nothing of other texts"

    def of(self, contrast: Contrast, chance: Chance | None = None) -> Estimate:
        """Quantities with their bounds, `chance` in them. A quantity whose text drifts has none, nor has an infinite
        loss."""
        with np.errstate(invalid="ignore"):  # infinity less infinity
            mean = contrast(self._mean)
            drift = self._drift(contrast)
            error, freedom = self._error(contrast, chance)
            half = stdtrit(freedom, 0.975) * error
            half = np.where((drift < DRIFTS) | self._is_short(contrast), np.nan, half)
        return Estimate(mean, mean - half, mean + half, drift)

    def of_share(self, above: Contrast, below: Contrast) -> Estimate:
        """Ratios of two quantities, with the bounds of Fieller (1954), which hold however uncertain the lower one is:
        NaN where it could be zero."""
        top, bottom = self.of(above), self.of(below)
        error, freedom = self._error(above)
        under, _ = self._error(below)
        both = (self._error(lambda x: above(x) + below(x))[0] ** 2 - error**2 - under**2) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            square = stdtrit(freedom, 0.975) ** 2
            outer = bottom.mean**2 - square * under**2
            middle = top.mean * bottom.mean - square * both
            root = np.sqrt(np.maximum(middle**2 - outer * (top.mean**2 - square * error**2), 0))
            bounds = np.stack([middle - root, middle + root]) / np.where(outer > 0, outer, np.nan)
            drift = np.fmin(top.drift, bottom.drift)
            low, high = np.where((drift < DRIFTS) | self._is_short(above) | self._is_short(below), np.nan, bounds)
            return Estimate(top.mean / bottom.mean, low, high, drift)

    def _error(self, contrast: Contrast, chance: Chance | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Standard errors and their degrees of freedom (Satterthwaite's, over stretches and chance), NaN for fewer than
        three."""
        squares: list[np.ndarray] = []
        freedoms: list[Any] = []
        for share, means, weights, *_ in self.stretches:
            squares.append(share**2 * weighted(contrast(means), weights)[1])
            freedoms.append(max(effective(weights) - 1, 1))
        if chance is not None:
            squares.append(np.full_like(squares[0], chance.square))
            freedoms.append(chance.freedom)
        total = np.sum(squares, axis=0)
        total = np.where(total <= self._nothing, 0.0, total)
        if self.count < FEWEST or self._counts_as < UNEVEN:
            return np.full_like(total, np.nan), np.full_like(total, np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            freedom = total**2 / sum(square**2 / each for square, each in zip(squares, freedoms, strict=True))
        return np.sqrt(total), np.where(total > 0, freedom, 1.0)

    def _is_short(self, contrast: Contrast) -> np.ndarray:
        """Whether batches are too short for how long losses stay alike: (1 + r) / (1 - r) tokens, with the correlation
        r of neighbours, as in an autoregressive series."""
        alike, squares, count = 0.0, 0.0, 0
        for tokens in (part for stretch in self.stretches for part in stretch.tokens):
            apart = contrast(tokens.astype(np.float64))
            apart = apart - apart.mean(0)
            alike, squares = alike + (apart[1:] * apart[:-1]).sum(0), squares + (apart**2).sum(0)
            count += len(tokens)
        with np.errstate(divide="ignore", invalid="ignore"):
            neighbours = np.clip(np.asarray(alike) / squares, 0, 1)
            memory = (1 + neighbours) / (1 - neighbours)
        return count / max(self.count, 1) < np.where(np.isnan(memory), 0.0, MEMORIES * memory)

    def _drift(self, contrast: Contrast) -> np.ndarray:
        """Probability of batches so far apart, going by their pieces; NaN over texts, and where batches are short or
        all the same."""
        between, within, apart, inside = 0.0, 0.0, 0, 0
        for _, means, _, pieces, _ in self.stretches:
            if pieces is None:
                continue
            values, parts = contrast(means), contrast(pieces)
            between = between + ((values - values.mean(0)) ** 2).sum(0)
            within = within + ((parts - parts.mean(1, keepdims=True)) ** 2).sum((0, 1)) / PIECES
            apart, inside = apart + len(values) - 1, inside + len(values) * (PIECES - 1)
        if not apart:
            return np.full(np.shape(contrast(self._mean)), np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            drift = np.asarray(fdtrc(apart, inside, (between / apart) / (within / inside)))
        return np.where(between > self._nothing, drift, np.nan)


def scope_said(bounds: str, row: Mapping[Any, Any]) -> str:
    """Over what the interval of a ratio generalises, for a sentence: `bounds` of a table, and a row of it."""
    if row["ratio_drift"] < DRIFTS:
        return (
            f"no interval: the text drifts, with p = {row['ratio_drift']:.1g}, and another passage would give another "
            "number"
        )
    if np.isfinite(row["ratio"]) and not np.isfinite(row["ratio_low"]) and not bounds.startswith("no intervals"):
        return "no interval: the text is too short for how long its losses are alike"
    return bounds


def _texts(losses: Losses, text: np.ndarray) -> Stretch:
    """Each text one unit, over all stretches, and as heavy as all tokens of it: what is there twice weighs twice."""
    whole = [np.concatenate(parts) for parts in zip(*losses, strict=True)]
    each = [np.concatenate([whole[row] for row in np.flatnonzero(text == one)]) for one in np.unique(text)]
    lengths = np.array([len(part) for part in each], dtype=float)
    return Stretch(1.0, np.array([part.mean(0) for part in each]), lengths / lengths.sum(), None)


def _batches(losses: Losses, text: np.ndarray) -> list[Stretch]:
    """Eight batches of about equal size, none of them in two stretches or two texts; texts that are one count once."""
    once = np.unique(text, return_index=True)[1]
    kept = [[parts[row] for row in np.sort(once) if len(parts[row])] for parts in losses]
    counts = [sum(map(len, parts)) for parts in kept]
    total, stretches = sum(counts), []
    for parts, count in zip(kept, counts, strict=True):
        if not count:
            continue
        most = min(max(2, round(BATCHES * count / total)), max(1, count // 2))
        batches = [
            each for part in parts for each in _split(part, min(len(part), max(1, round(most * len(part) / count))))
        ]
        means = np.array([batch.mean(0) for batch in batches])
        pieces = None
        if len(batches) > 1 and min(map(len, batches)) >= 2 * PIECES:
            pieces = np.array([[piece.mean(0) for piece in _split(batch, PIECES)] for batch in batches])
        stretches.append(Stretch(count / total, means, np.array(list(map(len, batches))) / count, pieces, parts))
    return stretches


def _split(part: np.ndarray, into: int) -> list[np.ndarray]:
    return [piece.astype(np.float64) for piece in np.array_split(part, into)]
