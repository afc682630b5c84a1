"""What happens to a model under interventions, each beside its control."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd
import xarray as xr
from torch import Tensor, nn

from sinkscope.analysis.intervention_table import intervention_table
from sinkscope.arguments import whole_number
from sinkscope.core.measure import texts_of
from sinkscope.core.policies import Dense
from sinkscope.errors import SinkscopeError
from sinkscope.interventions.changed_texts import Repeat, ReplaceTokens, Shift
from sinkscope.interventions.evict_keys import EvictKeys
from sinkscope.interventions.intervention import Intervention, Nothing, Setting
from sinkscope.interventions.run_arms import run_arms
from sinkscope.streaming.limits import check_limits
from sinkscope.streaming.perplexity import Run, check_run


def intervene(
    model: nn.Module,
    ids: Tensor | Sequence[Tensor],
    interventions: Iterable[Intervention] | None = None,
    *,
    tokenizer: Any = None,
    start: int = 64,
    sinks: int = 4,
    first: int = 1,
    seed: int = 0,
    resamples: int = 2000,
    progress: bool | None = None,
    **attributes: Any,
) -> pd.DataFrame:
    """Loss and sink mass under interventions and their controls, over the same tokens.

    Every text is read once, whole, under each intervention. Keys go, and losses are scored, from query `start` on, so
    that all keys to be evicted have been read by then, as in a cache.

    Args:
        model: a decoder in eval mode with a language head.
        ids: token ids [sequence, token], or a list of 1-D tensors; several texts give the sink mass an interval.
        interventions: instances such as `EvictKeys("sinks")`; when None those of `usual` that this model and these
            texts can take.
        tokenizer: finds delimiters and the line break.
        start: the first query that notices.
        sinks: how many first tokens count as sinks.
        first: of how many first keys the sink mass is shown.
        seed: of all that is drawn at random, and of the bootstrap.
        resamples: of the bootstrap.
        progress: whether to show a progress bar; once two seconds have passed when None.
        attributes: noted in the table's attrs (the name of the text, for one).

    Returns:
        One row for each intervention and, below it, one for its control; columns as in `intervention_table`.

    Raises:
        SinkscopeError: texts too short for the start, a model without a language head or in training mode, an
            intervention that this model or these texts cannot take, one given twice.
    """
    record = run_interventions(
        model,
        ids,
        interventions,
        tokenizer=tokenizer,
        start=start,
        sinks=sinks,
        first=first,
        seed=seed,
        progress=progress,
    )
    return intervention_table(record.assign_attrs(attributes), resamples=resamples, seed=seed)


def run_interventions(
    model: nn.Module,
    ids: Tensor | Sequence[Tensor],
    interventions: Iterable[Intervention] | None = None,
    *,
    tokenizer: Any = None,
    start: int = 64,
    sinks: int = 4,
    first: int = 1,
    seed: int = 0,
    progress: bool | None = None,
) -> xr.Dataset:
    """The record that `intervene` makes its table of; arguments and errors are its own.

    Returns:
        As `run_arms`, the baseline "nothing" first; `control` [policy] names what to set beside each, or nothing.
    """
    texts = texts_of(ids)
    check_run(model, texts, Run(1, None, 0))
    check_limits(model, Dense(), max(map(len, texts)))
    start, sinks = whole_number(start, "start", 2), whole_number(sinks, "sinks", 1)
    first, seed = whole_number(first, "first", 1), whole_number(seed, "seed", 0)
    setting = Setting(start, sinks, seed, tokenizer)
    if min(map(len, texts)) < start + 3:
        raise SinkscopeError(
            f"a text of {min(map(len, texts))} tokens leaves nothing to score from query {start} on; give longer "
            "texts, or an earlier start."
        )

    def check(intervention: Intervention) -> None:
        for each in filter(None, (intervention, intervention.control())):
            each.check(model, texts, setting)

    chosen = _checked(_possible(usual(tokenizer), check) if interventions is None else interventions)
    for intervention in chosen:
        check(intervention)
    arms = _with_controls(chosen)
    prepared = [arm.prepare(model, texts, setting) for arm in arms]
    record = run_arms(model, texts, prepared, setting, first, progress)
    controls = [control.name if (control := arm.control()) is not None else "" for arm in arms]
    return record.assign_coords(control=("policy", controls)).assign_attrs(kind="interventions")


def usual(tokenizer: Any) -> list[Intervention]:
    """What `intervene` does when nothing is asked for."""
    words: list[Intervention] = [] if tokenizer is None else [EvictKeys("delimiters"), ReplaceTokens("line breaks")]
    return [EvictKeys("sinks"), EvictKeys("recent"), *words, ReplaceTokens("random"), Shift(), Repeat()]


def _possible(chosen: list[Intervention], check: Callable[[Intervention], None]) -> list[Intervention]:
    """Those that pass the check, with a warning for each that does not."""
    left = []
    for intervention in chosen:
        try:
            check(intervention)
            left.append(intervention)
        except SinkscopeError as problem:
            warnings.warn(f"`{intervention.name}` is left out: {problem}", stacklevel=4)
    return left


def _checked(interventions: Iterable[Intervention]) -> list[Intervention]:
    chosen = list(interventions) if isinstance(interventions, Iterable) else [interventions]
    for intervention in chosen:
        if not isinstance(intervention, Intervention):
            raise SinkscopeError(
                f"{intervention!r} is not an intervention; give instances such as "
                'sinkscope.EvictKeys("sinks") or sinkscope.Shift(16).'
            )
    names = [intervention.name for intervention in chosen]
    if not chosen or len(set(names)) < len(names):
        raise SinkscopeError("no intervention was given, or one of them twice; give each one once.")
    return chosen


def _with_controls(chosen: list[Intervention]) -> list[Intervention]:
    """The baseline, each intervention and its control; a control that several share only once."""
    every = {"nothing": Nothing()} | {each.name: each for each in chosen}
    for each in chosen:
        control = each.control()
        if control is not None:
            every.setdefault(control.name, control)
    return list(every.values())
