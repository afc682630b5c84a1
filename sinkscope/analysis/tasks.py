"""The table of tasks: how often the right answer is the likeliest, beside chance, with intervals of shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import stdtrit
from scipy.stats import beta

from sinkscope.analysis.intervals import FEWEST
from sinkscope.analysis.reading import reads
from sinkscope.arguments import one_of
from sinkscope.errors import SinkscopeError

AXES = ("length", "pairs", "back", "depth")
"""What the texts of a task differ in."""

BOUNDS = "95% interval of a share over {unit} (Clopper-Pearson; Korn-Graubard where a text has several questions)"


@reads
def accuracy_table(record: xr.Dataset, by: str | None = None) -> pd.DataFrame:
    """How often a model answers rightly, one row for each policy and kind of text.

    length, pairs, back, depth   what the texts are, as far as they differ in it
    distance                     tokens from the value to the place where it is asked for; the mean where they differ
    accuracy, low, high          share of questions whose right answer is the likeliest of the choices, with its 95%
                                 interval over texts
    chance                       one in as many as there are choices: of whoever has not seen the value
    said                         share of questions whose right answer is the likeliest of all tokens
    nll                          mean loss of the right answer, nats
    trials, questions            texts, and questions in them

    Intervals are those of Clopper and Pearson (1934), exact for texts with one question each. Where a text has several,
    they are for as many independent questions as would be as uncertain (Korn and Graubard 1998), no more than there
    are; where all answers, or none, are right, for as many as there are texts; with fewer than three such texts there
    is none.

    >>> list(sinkscope.accuracy_table(record))[:4]
    ['policy', 'length', 'depth', 'distance']

    Args:
        record: of `sinkscope.needle_recall`, `key_value_recall` or `stream_recall`.
        by: only by this, over all else that the texts differ in, such as "depth".

    Raises:
        SinkscopeError: another record, or one whose texts do not differ in that.
    """
    if record.attrs.get("kind") != "task" or "correct" not in record:
        raise SinkscopeError(
            "this record holds no answers; give one of sinkscope.needle_recall, key_value_recall or stream_recall."
        )
    axes = [str(dim) for dim in record["correct"].dims if dim in AXES]
    kept = axes if by is None else [one_of(by, "by", axes)]
    order = ["policy", *kept, *(axis for axis in axes if axis not in kept), "trial", "question"]
    correct, said, nll = (record[name].transpose(*order).values for name in ("correct", "said", "nll"))
    away = record["distance"].transpose(*order[1 : 1 + len(axes)]).values.astype(float)
    cells = [record.sizes[name] for name in order[: 1 + len(kept)]]
    rows = []
    for at in np.ndindex(*cells):
        each = correct[at].reshape(-1, correct.shape[-1])
        share, low, high = share_interval(each)
        labels = {name: record[name].values[place] for name, place in zip(order, at, strict=False)}
        rows.append(
            {
                **labels, "distance": away[at[1:]].mean(), "accuracy": share, "low": low, "high": high,
                "chance": record.attrs["chance"], "said": np.nanmean(said[at]), "nll": np.nanmean(nll[at]),
                "trials": len(each), "questions": int(np.isfinite(each).sum()),
            }
        )  # fmt: skip
    table = pd.DataFrame(rows)
    table.attrs = {**record.attrs, "bounds": BOUNDS.format(unit="texts")}
    return table


def share_interval(right: np.ndarray | Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """The share of right answers among those of texts [text, question], 1 or 0 or NaN for none, and its 95% bounds."""
    right = np.asarray(right, dtype=float)
    right = right[np.isfinite(right).any(1)]
    counts, sums = np.isfinite(right).sum(1), np.nansum(right, axis=1)
    texts, total = len(right), int(counts.sum())
    if not total:
        return np.nan, np.nan, np.nan
    share = sums.sum() / total
    size = float(total)
    if total > texts:
        if texts < FEWEST:
            return share, np.nan, np.nan
        size = float(texts)
        variance = texts / (texts - 1) * ((sums - share * counts) ** 2).sum() / total**2
        if 0 < share < 1:
            wider = (stdtrit(total - 1, 0.975) / stdtrit(texts - 1, 0.975)) ** 2
            size = float(total) if variance == 0 else min(total, share * (1 - share) / variance * wider)
    hits = share * size
    low = beta.ppf(0.025, hits, size - hits + 1) if hits > 0 else 0.0
    high = beta.ppf(0.975, hits + 1, size - hits) if hits < size else 1.0
    return share, float(low), float(high)
