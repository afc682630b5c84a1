"""What happens to a model under interventions: every text run whole under each, all scored at the same tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from sinkscope.arguments import checks_types, whole_number
from sinkscope.errors import SinkscopeError, shown, warn
from sinkscope.experiments.inside_model import EvictKeys
from sinkscope.experiments.intervention import Conditions, Intervention, Nothing, Repeat, ReplaceTokens, Shift, Trial
from sinkscope.experiments.perplexity import dense_texts
from sinkscope.experiments.plain_texts import TOGETHER, PlainText, Run, changes_nothing, plain_texts, run
from sinkscope.models.as_found import AsFound
from sinkscope.models.facts import find_anatomy, model_attributes, token_attributes
from sinkscope.normalisers import Normaliser
from sinkscope.policies import Dense, Policy
from sinkscope.progress import progress_bar
from sinkscope.scope.binding import check_limits
from sinkscope.scope.forward import check_vocabulary
from sinkscope.streaming.readers import text_coordinates


@checks_types
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
    draws: int | None = None,
    progress: bool | None = None,
    **attributes: Any,
) -> xr.Dataset:
    """Losses and sink mass under interventions and their controls.

    Every text is read once, whole, under each intervention, and as often as there are draws under what is drawn at
    random: 20 draws of a control take the time of 20 interventions. Keys go, and losses are scored, from query `start`
    on, so that all keys to be evicted have been read by then, as in a cache.

    >>> record = sinkscope.run_interventions(model, ids, [sinkscope.EvictKeys()], start=16)
    >>> list(record.data_vars)[:2]
    ['nll', 'draw_nll']

    Args:
        model, ids, progress, attributes: as in `perplexity`; several texts give the sink mass an interval.
        interventions: instances such as `EvictKeys("sinks")`, or of a class of your own (see `Intervention`); when None
            those of `usual` that this model and these texts can take.
        tokenizer: finds delimiters and the line break.
        start: the first query that notices.
        sinks: how many first tokens count as sinks.
        first: of how many first keys the sink mass is shown.
        seed: of all that is drawn at random.
        draws: of each random control (and of random tokens) in each text, two or more; 20, or as many as there are,
            when None. Of four texts and more two of each do for intervals over texts, and those over draws are wider. A
            shuffled text is drawn once, as its losses are compared with nothing.

    Returns:
        A record with the interventions along `policy`, the baseline "nothing" first: `nll` [policy, sequence, token],
        nats, at the places tokens had in the text as it was, NaN up to the start and where there is none; `sink_mass`
        and `output_norm` [policy, sequence, layer, head], means over the queries from the start on. `control` [policy]
        names what to set beside each, or nothing; `same_tokens` [policy] is 0 where the tokens scored are not those of
        the text. Of `draws` [policy], all three are means over them, and `draw_nll` [policy, draw, sequence] has the
        mean loss in each. `removed_mass` [policy, sequence] is the attention that an eviction takes away: what the
        evicted keys have of it in the text as it is, mean over layers, heads and these queries.

    Raises:
        SinkscopeError: texts too short for the start, a model without a language head or in training mode, an
            intervention that this model or these texts cannot take, one given twice, what is no intervention or gives
            no trial; fewer than two draws, or more than there are keys to draw.
    """
    if draws is not None:
        whole_number(draws, "draws", 2)
    conditions = Conditions(start, sinks, seed, tokenizer, draws)
    record = run_under(model, ids, interventions, conditions, whole_number(first, "first", 1), progress)
    return record.assign_attrs({"kind": "interventions"} | attributes)


def run_under(
    model: nn.Module,
    ids: Tensor | Sequence[Tensor],
    interventions: Iterable[Intervention] | None,
    conditions: Conditions,
    first: int,
    progress: bool | None,
    beside: bool = True,
) -> xr.Dataset:
    """`run_interventions` under these conditions, whatever they are; `beside` their controls and the attention
    that they take away, or by themselves."""
    tokenizer = conditions.tokenizer
    texts = _texts(model, ids, conditions)
    if interventions is None:
        chosen, refused = possible(model, texts, usual(tokenizer), **vars(conditions))
        for name, why in refused.items():
            warn(f"`{name}` is left out: {why}")
        found = AsFound(model, *map(type, chosen))
    else:
        chosen = _checked(interventions)
        found = AsFound(model, *map(type, chosen))
        for intervention in chosen:
            found.after(
                partial(_check, intervention, model, texts, conditions), type(intervention), f"`{intervention.name}`"
            )
            found.check_same(f"`{intervention.name}`")
    every, prepared = _beside_controls(chosen, beside), dict[str, Intervention]()
    for name, each in every.items():
        made = found.after(partial(each.prepare, model, _copies(texts), conditions), type(each), f"`{name}`")
        if not isinstance(made, Intervention):
            raise SinkscopeError(f"`{name}` is prepared as {made!r}; let `prepare` return an intervention, as self.")
        found.check_same(f"`{name}`")
        prepared[name] = made
    record = _record(found, texts, prepared, conditions, first, progress, beside)
    controls = [control.name if (control := each.control()) is not None else "" for each in every.values()]
    controls = [name if name in record["policy"].values else "" for name in controls]  # none for what is one itself
    return record.assign_coords(control=("policy", controls))


def possible(
    model: nn.Module,
    ids: Tensor | Sequence[Tensor],
    interventions: Iterable[Intervention],
    **conditions: Any,
) -> tuple[list[Intervention], dict[str, str]]:
    """The interventions that a model and texts can take, and why not, by name, of the others; `conditions` are the
    tokenizer, start, sinks and seed of `run_interventions`."""
    shared = Conditions(**conditions)
    texts, chosen, refused = _texts(model, ids, shared), [], {}
    for intervention in _checked(interventions):
        try:
            _check(intervention, model, texts, shared)
            chosen.append(intervention)
        except SinkscopeError as problem:
            refused[intervention.name] = str(problem)
    return chosen, refused


def usual(tokenizer: Any) -> list[Intervention]:
    """What is done when nothing is asked for."""
    words: list[Intervention] = [] if tokenizer is None else [EvictKeys("delimiters"), ReplaceTokens("line breaks")]
    keys = [EvictKeys("sinks"), EvictKeys("attended"), EvictKeys("recent")]
    return [*keys, *words, ReplaceTokens("random"), Shift(), Repeat()]


def _texts(model: nn.Module, ids: Tensor | Sequence[Tensor], conditions: Conditions) -> list[Tensor]:
    texts, start = _copies(dense_texts(model, ids)), conditions.start
    if (shortest := min(map(len, texts))) < start + 3:
        raise SinkscopeError(
            f"a text of {shortest} tokens leaves nothing to score from query {start} on; give longer texts, or an "
            "earlier start."
        )
    return texts


def _copies(texts: Sequence[Tensor]) -> list[Tensor]:
    """Texts that may be written into."""
    return [text.clone() for text in texts]


def _beside_controls(chosen: Sequence[Intervention], beside: bool) -> dict[str, Intervention]:
    """The baseline, the interventions and, where asked, their controls by name; one that several share only once."""
    every: dict[str, Intervention] = {Nothing.name: Nothing()} | {each.name: each for each in chosen}
    for each in chosen:
        control = each.control() if beside else None
        if control is not None and not _is_same(every.setdefault(control.name, control), control):
            raise SinkscopeError(
                f"the control of `{each.name}` is called `{control.name}`, as is another intervention or control that "
                "is not equal to it; give it a name of its own, or make its class a frozen dataclass."
            )
    return every


def _is_same(one: Any, other: Any) -> bool:
    """Whether two interventions of one name, or two policies, do one thing."""
    try:
        return one is other or (type(one) is type(other) and (one == other or vars(one) == vars(other)))
    except (RuntimeError, TypeError, ValueError):  # fields such as tensors, which are not simply equal or not
        return False


def _checked(interventions: Iterable[Intervention]) -> list[Intervention]:
    chosen = list(interventions) if isinstance(interventions, Iterable) else [interventions]
    for intervention in chosen:
        _check_class(intervention)
    if not chosen:
        raise SinkscopeError("no intervention was given; give one at least, such as sinkscope.EvictKeys().")
    names = [intervention.name for intervention in chosen]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SinkscopeError(
            f"two interventions are called `{shown(twice)[1:-1]}`; give each one once, and others names of their own, "
            "as a frozen dataclass has them."
        )
    return chosen


def _check_class(intervention: Any) -> None:
    if not isinstance(intervention, Intervention):
        raise SinkscopeError(
            f"{intervention!r} is not an intervention; give instances such as "
            'sinkscope.EvictKeys("sinks") or sinkscope.Shift(16).'
        )
    if not isinstance(intervention.name, str) or not intervention.name:
        raise SinkscopeError(f"the name of {intervention!r} is {intervention.name!r}; give it some words.")
    if intervention.name == Nothing.name and type(intervention) is not Nothing:
        raise SinkscopeError(f"{intervention!r} is called {Nothing.name!r} as the baseline is; give it another name.")


def _check(intervention: Intervention, model: nn.Module, texts: Sequence[Tensor], conditions: Conditions) -> None:
    """Raise SinkscopeError when it or its control cannot be carried out."""
    intervention.check(model, _copies(texts), conditions)
    control = intervention.control()
    if control is not None:
        _check_class(control)
        if control.name == intervention.name:
            raise SinkscopeError(f"`{intervention.name}` has a control of the same name; give it one of its own.")
        control.check(model, _copies(texts), conditions)


def _record(
    found: AsFound,
    texts: Sequence[Tensor],
    interventions: Mapping[str, Intervention],
    conditions: Conditions,
    first: int,
    shown: bool | None,
    weighed: bool,
) -> xr.Dataset:
    """Every text run under each intervention, the baseline first; `weighed` by the attention that is taken away."""
    model, longest, shape = found.model, max(map(len, texts)), (len(interventions), len(texts))
    plain = plain_texts(model, texts, conditions.start, first)
    conditions = replace(conditions, attention=lambda number: plain[number].attention)
    draws = [
        whole_number(found.after(partial(each.draws, conditions), type(each), f"`{name}`"), f"draws of `{name}`", 1)
        for name, each in interventions.items()
    ]
    losses, same = np.zeros((*shape, longest)), np.ones(shape, dtype=bool)
    every, removed = np.full((shape[0], max(draws), shape[1]), np.nan), np.zeros(shape)
    means: dict[str, np.ndarray] = {}
    with progress_bar(sum(draws) * sum(map(len, texts)), "token", shown, desc="interventions") as bar:
        for row, (name, intervention) in enumerate(interventions.items()):
            for draw in range(draws[row]):
                bar.set_description(f"{name}, draw {draw + 1} of {draws[row]}" if draws[row] > 1 else name, False)
                own = replace(conditions, draw=draw)
                for number, trial, places, one in _runs(found, name, intervention, texts, plain, own, first):
                    scored = places[1:] > conditions.start
                    at, lost = places[1:][scored], np.full(longest, np.nan)
                    lost[at] = one.nll[scored].numpy()
                    losses[row, number] += lost / draws[row]
                    every[row, draw, number] = np.nanmean(lost)
                    if weighed:
                        removed[row, number] += plain[number].removed_mass(trial) / draws[row]
                    same[row, number] &= torch.equal(trial.tokens[1:][scored], texts[number][at])
                    late = one.record.isel(sequence=0, query=slice(int((places < conditions.start).sum()), None))
                    late = late.assign(sink_mass=late["sink_mass"].sum("sink"))
                    for each in ("sink_mass", "output_norm"):
                        if each in late:  # no output outside the attention interface
                            mean = late[each].mean("query").transpose("layer", "head").values
                            kept = means.setdefault(each, np.zeros((*shape, *mean.shape)))
                            kept[row, number] += mean / draws[row]
                    bar.update(len(texts[number]))
            found.check_same(f"`{name}`")
    dims = ("policy", "sequence", "layer", "head")
    record = xr.Dataset(
        {
            "nll": (("policy", "sequence", "token"), losses.astype(np.float32), {"units": "nats"}),
            "draw_nll": (("policy", "draw", "sequence"), every, {"units": "nats"}),
            "removed_mass": (("policy", "sequence"), removed),
            **{name: (dims, mean.astype(np.float32)) for name, mean in means.items()},
        },
        coords={
            "policy": list(interventions),
            "same_tokens": ("policy", same.all(1).astype(int)),
            "draws": ("policy", draws),
            "layer": late["layer"].values,
            "head": late["head"].values,
            **text_coordinates(texts),
        },
    )
    about = {"start": conditions.start, "sinks": conditions.sinks, "first": first, "seed": conditions.seed}
    return record.assign_attrs(**model_attributes(model), **token_attributes(record, model), **about)


def _runs(
    found: AsFound,
    name: str,
    intervention: Intervention,
    texts: Sequence[Tensor],
    plain: Sequence[PlainText],
    conditions: Conditions,
    first: int,
) -> Iterator[tuple[int, Trial, Tensor, Run]]:
    """Each text's number, its trial under an intervention, where its tokens stood, and what it gave.

    Texts behind each other to which the same is done run together. One with hooks runs before the next is made.
    """
    waiting: list[tuple[int, Trial, Tensor]] = []

    def run_waiting() -> Iterator[tuple[int, Trial, Tensor, Run]]:
        trials = [trial for _, trial, _ in waiting]
        since = min(int((places[1:] > conditions.start).nonzero()[0]) for *_, places in waiting) + 1
        runs = found.after(partial(run, found.model, trials, first, since=since), type(intervention), f"`{name}`")
        for given, one in zip(waiting, runs, strict=True):
            yield *given, one
        waiting.clear()

    for number, text in enumerate(texts):
        trial = found.after(
            partial(intervention.apply, text.clone(), number, conditions), type(intervention), f"`{name}`"
        )
        places = _checked_places(found.model, f"`{name}`", trial, text)
        if not bool((places[1:] > conditions.start).any()):
            raise SinkscopeError(
                f"`{name}` leaves nothing of text {number} to score: none of its tokens stood behind query "
                f"{conditions.start}; keep some of them, or give an earlier start."
            )
        if len(trial.tokens) > len(text):
            check_limits(found.model, trial.policy or Dense(), len(trial.tokens))
        if changes_nothing(trial, text):
            yield number, trial, places, plain[number].whole
            continue
        if waiting and not _goes_with([trial for _, trial, _ in waiting], trial):
            yield from run_waiting()
        waiting.append((number, trial, places))
        if trial.hooks is not None:
            yield from run_waiting()
    if waiting:
        yield from run_waiting()


def _goes_with(trials: Sequence[Trial], trial: Trial) -> bool:
    """Whether a trial can run in one batch with others, to all of which the same is done."""
    one = trials[0]
    if len(one.tokens) != len(trial.tokens) or (len(trials) + 1) * len(one.tokens) > TOGETHER:
        return False
    alike = type(one.policy) is type(trial.policy) and _is_same(one.policy, trial.policy)
    return alike and one.normaliser is trial.normaliser and one.hooks is trial.hooks is None


def _checked_places(model: nn.Module, name: str, trial: Any, text: Tensor) -> Tensor:
    """Where each token of a trial stood in the text [token], or SinkscopeError that names the intervention."""
    if not isinstance(trial, Trial):
        raise SinkscopeError(f"{name} made a {type(trial).__name__} of a text; return a sinkscope.Trial.")
    tokens: Any = trial.tokens
    if not isinstance(tokens, Tensor) or tokens.dim() != 1 or len(tokens) < 2 or tokens.dtype != torch.int64:
        raise SinkscopeError(f"the tokens of {name} are no text; give two or more ids as a 1-D tensor of int64.")
    check_vocabulary(find_anatomy(model).base, tokens)
    for slot, kind in (("policy", Policy), ("normaliser", Normaliser)):
        value = getattr(trial, slot)
        if value is not None and not isinstance(value, kind):
            raise SinkscopeError(f"the {slot} of {name} is {value!r}; give an instance of a {slot}.")
    if trial.hooks is not None and not callable(trial.hooks):
        raise SinkscopeError(f"the hooks of {name} are {trial.hooks!r}; give a function of the model and a stack.")
    try:
        places = torch.arange(len(tokens)) if trial.places is None else torch.as_tensor(trial.places).cpu()
        is_whole = not (places.is_floating_point() or places.is_complex() or places.dtype == torch.bool)
    except (RuntimeError, TypeError, ValueError):
        is_whole = False
    if not is_whole or places.shape != tokens.shape or bool(((places >= len(text)) | (places < -1)).any()):
        raise SinkscopeError(
            f"the places of {name} do not tell of its {len(tokens)} tokens where they stood in a text of {len(text)}; "
            "give a whole number for each, -1 for a token that was not there."
        )
    stood = places[places >= 0]
    if len(stood.unique()) < len(stood):
        raise SinkscopeError(f"two tokens of {name} stood at one place of the text; give each a place of its own.")
    return places.long()
