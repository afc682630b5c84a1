"""Whether a model knows a text by heart: its loss says how well it reads, and not whether it has read this before.

A token is recited if it stands in a run of tokens that the model would write by itself, since each has more than half
of the probability, and that did not stand in this order earlier in the same text. Such runs are what is called
extractable memorisation (Carlini et al. 2023, arXiv 2202.07646), shorter than there and found in one reading: greedy
decoding writes a run exactly where each of its tokens is the likeliest one.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.intervals import TEXT, interval
from sinkscope.analysis.reading import check_source, reads
from sinkscope.analysis.variables import same_texts, variable
from sinkscope.arguments import whole_number
from sinkscope.errors import SinkscopeError

RUN = 8
"""Tokens in a row, at least."""

LIKELY = 0.02
"""Share of recited tokens from which a text is likely to have been among what a model was trained on."""


@reads
def recited(record: xr.Dataset, run: int = RUN) -> xr.DataArray:
    """Share of the scored tokens of each text that a model recites: [sequence], in 0..1.

    From the losses of dense attention, and so of the whole context: a token whose loss is below log 2 has more than
    half of the probability. attrs: `run`, `likely`.

    >>> sinkscope.recited(record).dims
    ('sequence',)

    Args:
        record: of `perplexity`, with a dense policy.
        run: tokens in a row, at least.

    Raises:
        SinkscopeError: a record without losses of dense attention, or without its tokens.
    """
    run, losses = whole_number(run, "run", 1), _dense(record)
    if "token_id" not in record.coords:
        raise SinkscopeError("the record does not say which tokens were read, `token_id`: make it with this release.")
    shares = []
    for row, text in zip(losses.values, record["token_id"].transpose("sequence", "token").values, strict=True):
        scored = np.isfinite(row)
        shares.append(_is_recited(row < np.log(2), text, run)[scored].mean() if scored.any() else np.nan)
    attributes = {**record.attrs, "units": "1", "run": run, "likely": LIKELY}
    texts = {TEXT: ("sequence", same_texts(losses))}  # many have the same share, none
    return xr.DataArray(np.array(shares), texts, "sequence", name="recited", attrs=attributes)


@reads
def familiarity_table(record: xr.Dataset, new: xr.Dataset | None = None, run: int = RUN) -> pd.DataFrame:
    """How well a model reads a text, and how much of it it recites, beside a text that it cannot have seen.

    text            its name
    sequences       how many were read
    loss            mean over them of the mean loss of a token in nats; loss_low, loss_high
    recited         mean share of recited tokens; recited_low, recited_high
    is_familiar     whether that is 2% or more, as in texts that were likely among what the model was trained on

    Intervals are those of `interval` over sequences, and missing where there are too few.

    >>> list(sinkscope.familiarity_table(record))
    ['text', 'sequences', 'loss', 'loss_low', 'loss_high', 'recited', 'recited_low', 'recited_high', 'is_familiar']

    Args:
        record: of `perplexity`, with a dense policy.
        new: of the same model on a text known to be new, such as "demo:ferry".
        run: as in `recited`.

    Raises:
        SinkscopeError: as `recited`; records of two models.
    """
    records = [record] if new is None else [record, new]
    for each in records:
        check_source(each, "familiarity_table")
    if len({each.attrs.get("model") for each in records}) > 1:
        raise SinkscopeError("the records are of two models; give one model on two texts.")
    rows = []
    for each in records:
        shares, losses = recited(each, run), _dense(each)
        row = {"text": each.attrs.get("text", ""), "sequences": shares.size}
        found_of = {
            "loss": interval(losses.mean("token").assign_coords({TEXT: shares[TEXT]})),
            # plain t, which a least value far below leads to: where most are 0, their logarithms say nothing
            "recited": interval(shares, at_least=-1.0).clip(0.0, 1.0),
        }
        for name, found in found_of.items():
            row |= {name: float(found["mean"])}
            row |= {f"{name}_low": float(found["lower"]), f"{name}_high": float(found["upper"])}
        rows.append(row | {"is_familiar": row["recited"] >= LIKELY})
    return pd.DataFrame(rows)


def familiarity_note(record: xr.Dataset) -> str:
    """What a reader should know of a text that a model recites much of; nothing where it does not."""
    share = float(recited(record).mean())
    if not share >= LIKELY:
        return ""
    return (
        f"{share:.0%} of the text's tokens stand in runs of {RUN} and more that the model writes by itself, and that "
        "the text itself did not hold before: it was likely trained on this text, and reads it better than a new one."
    )


def _dense(record: xr.Dataset) -> xr.DataArray:
    """Losses [sequence, token] of dense attention in float64."""
    losses = variable(record, "nll").transpose("policy", "sequence", "token")
    kinds = record["policy_kind"].values if "policy_kind" in record.coords else np.array([])
    dense = np.flatnonzero(kinds == "Dense")
    if not len(dense):
        raise SinkscopeError("the record has no losses of dense attention: run perplexity with sinkscope.Dense() too.")
    return losses.isel(policy=int(dense[0])).astype(np.float64)


def _is_recited(is_likely: np.ndarray, text: np.ndarray, run: int) -> np.ndarray:
    """[token]: whether a run of likely tokens that is new to the text goes through it."""
    found, seen = np.zeros(len(text), bool), set()
    length = 0
    for end, likely in enumerate(is_likely, start=1):
        length = length + 1 if likely else 0
        if end < run:
            continue
        words = tuple(text[end - run : end].tolist())
        if length >= run and words not in seen:
            found[end - run : end] = True
        seen.add(words)
    return found
