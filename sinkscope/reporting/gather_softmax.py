"""The softmax section of a report: what it measures, at sizes that take a small model a minute or two on two cores."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import xarray as xr

from sinkscope.errors import SinkscopeError
from sinkscope.reporting.gather_streaming import ABLATED, CACHE, LENGTH, SINKS

if TYPE_CHECKING:
    import torch

TEXTS = (4, 512)  # sequences, tokens in each
CHANGED = 256  # the first tokens of each, for interventions and doses
FEWEST = 64
START = 64  # the first query that notices an intervention
DOSES = (-math.inf, -4.0, -2.0, 0.0, 2.0)


class Sizes(NamedTuple):
    """What suits a model and a text: texts and tokens in each, where interventions start, and of the collapse the
    tokens read and the cache size.
    """

    texts: int
    length: int
    start: int
    read: int
    cache: int


def softmax_records(
    model: Any, tokens: torch.Tensor, front: int | None, tokenizer: Any, *, progress: bool | None = None, **about: Any
) -> tuple[dict[str, xr.Dataset], list[str]]:
    """The records "forced", "collapse", "dose", "interventions" and "predictability" of one text, tokens [token], and
    notes on those left out, with the reason: a text too short, or a model that cannot take it.

    Args:
        front: the token that this tokenizer puts in front of a text, or None.
        about: noted in the attrs of the records (the name of the text, for one).
    """
    from sinkscope.data import sequences as split

    try:
        sizes = _sizes(model, tokens.numel(), front is not None)
    except SinkscopeError as reason:
        return {}, [f"What softmax forces was not measured: {reason}"]
    texts = split(tokens, sizes.length, sizes.texts, bos=front)
    one = tokens if front is None else split(tokens, tokens.numel() + 1, 1, bos=front)[0]
    short, shown = texts[:, :CHANGED], {"progress": progress}
    left_out: list[str] = []
    steps: dict[str, tuple[str, Callable[[], xr.Dataset]]] = {
        "forced": ("Forced mass", partial(_forced, model, texts, shown)),
        "collapse": ("The collapse decomposed", partial(_collapse, model, one, sizes, shown)),
        "dose": ("Dose and response", partial(_dose, model, short, sizes, shown)),
        "interventions": ("Interventions", partial(_interventions, model, short, tokenizer, sizes, shown, left_out)),
        "predictability": ("Sink mass against predictability", partial(_predictability, model, texts, sizes, shown)),
    }
    records: dict[str, xr.Dataset] = {}
    refused: dict[str, list[str]] = {}
    for name, (what, measure) in steps.items():
        try:
            records[name] = measure().assign_attrs(about)
        except SinkscopeError as reason:
            refused.setdefault(str(reason), []).append(what)
    return records, [*(_note(whats, reason) for reason, whats in refused.items()), *left_out]


def _note(whats: list[str], reason: str) -> str:
    """One sentence for all that was refused for one reason."""
    if len(whats) == 1:
        return f"{whats[0]} was not measured: {reason}"
    listed = ", ".join([whats[0], *(what[0].lower() + what[1:] for what in whats[1:-1])])
    return f"{listed} and {whats[-1][0].lower()}{whats[-1][1:]} were not measured: {reason}"


def _sizes(model: Any, tokens: int, fronted: bool) -> Sizes:
    """Raises SinkscopeError for a text or a model too short."""
    from sinkscope.core.rotary import position_limit

    count, longest = TEXTS
    limit = position_limit(model) or LENGTH
    read = min(tokens + fronted, ABLATED)
    length = min(longest, limit, max(tokens // count, min(tokens, 2 * FEWEST)) + fronted)
    if length < FEWEST:
        raise SinkscopeError(f"it needs {FEWEST} tokens, and there are {length}.")
    cache = 1 << (min(CACHE, read // 4, limit - 1).bit_length() - 1)
    return Sizes(min(count, tokens // (length - fronted)), length, min(START, min(length, CHANGED) // 4), read, cache)


def _forced(model: Any, texts: torch.Tensor, shown: dict[str, Any]) -> xr.Dataset:
    from sinkscope.core.measure import measure
    from sinkscope.core.probes import EvictionEffect

    return measure(model, texts, [EvictionEffect(tuple(range(SINKS)))], **shown)


def _collapse(model: Any, one: torch.Tensor, sizes: Sizes, shown: dict[str, Any]) -> xr.Dataset:
    from sinkscope.experiments.decomposition import decompose

    return decompose(model, one[None, : sizes.read], sizes.cache, SINKS, **shown)


def _dose(model: Any, texts: torch.Tensor, sizes: Sizes, shown: dict[str, Any]) -> xr.Dataset:
    from sinkscope.experiments.dose import dose_response

    return dose_response(model, texts, DOSES, start=sizes.start, **shown)


def _interventions(
    model: Any, texts: torch.Tensor, tokenizer: Any, sizes: Sizes, shown: dict[str, Any], notes: list[str]
) -> xr.Dataset:
    """Those that model and texts can take; what is left out goes to `notes`. Raises SinkscopeError if all are."""
    from sinkscope.experiments.inside_model import EvictKeys
    from sinkscope.experiments.intervention import Conditions, ReplaceTokens, Shift
    from sinkscope.experiments.interventions import run_interventions

    conditions, possible = Conditions(sizes.start, SINKS, 0, tokenizer), []
    refused: dict[str, list[str]] = {}
    wanted = [EvictKeys("sinks"), EvictKeys("recent"), EvictKeys("delimiters"), ReplaceTokens("line breaks"),
              Shift(sizes.start // 4)]  # fmt: skip
    for each in wanted:
        try:
            each.check(model, list(texts), conditions)
            possible.append(each)
        except SinkscopeError as reason:
            refused.setdefault(str(reason), []).append(each.name)
    if not possible:
        raise SinkscopeError(next(iter(refused)))
    record = run_interventions(model, texts, possible, tokenizer=tokenizer, start=sizes.start, sinks=SINKS, **shown)
    notes += [f"`{'`, `'.join(names)}` left out of the interventions: {why}" for why, names in refused.items()]
    return record


def _predictability(model: Any, texts: torch.Tensor, sizes: Sizes, shown: dict[str, Any]) -> xr.Dataset:
    from sinkscope.experiments.predictability import predictability

    return predictability(model, texts, start=sizes.start, **shown)
