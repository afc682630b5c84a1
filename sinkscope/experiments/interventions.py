"""What happens to a model under interventions, and under doses on the logits of its sinks: every text run whole under
each, all scored at the same tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from sinkscope.arguments import checks_types, whole_number
from sinkscope.errors import SinkscopeError, warn
from sinkscope.experiments.as_found import AsFound
from sinkscope.experiments.inside_model import EvictKeys
from sinkscope.experiments.intervention import Conditions, Intervention, Nothing, Repeat, ReplaceTokens, Shift, Trial
from sinkscope.experiments.perplexity import dense_texts
from sinkscope.hf.placement import reading_device
from sinkscope.models.facts import find_anatomy, model_attributes, token_attributes
from sinkscope.models.requirements import not_finite
from sinkscope.normalisers import Normaliser
from sinkscope.policies import Dense, Dose, Policy
from sinkscope.probes import OutputNorm, SinkMass
from sinkscope.progress import progress_bar
from sinkscope.scope.forward import check_vocabulary
from sinkscope.scope.scope import Scope
from sinkscope.streaming.readers import next_token_losses, text_coordinates

DOSES = (-math.inf, -8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
ARMS = ("sinks", "random")


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
    progress: bool | None = None,
    **attributes: Any,
) -> xr.Dataset:
    """Losses and sink mass under interventions and their controls.

    Every text is read once, whole, under each intervention. Keys go, and losses are scored, from query `start` on, so
    that all keys to be evicted have been read by then, as in a cache.

    Args:
        model, ids, progress, attributes: as in `perplexity`; several texts give the sink mass an interval.
        interventions: instances such as `EvictKeys("sinks")`, or of a class of your own (see `Intervention`); when None
            those of `usual` that this model and these texts can take.
        tokenizer: finds delimiters and the line break.
        start: the first query that notices.
        sinks: how many first tokens count as sinks.
        first: of how many first keys the sink mass is shown.
        seed: of all that is drawn at random.

    Returns:
        A record with the interventions along `policy`, the baseline "nothing" first: `nll` [policy, sequence, token],
        nats, at the places tokens had in the text as it was, NaN up to the start and where there is none; `sink_mass`
        and `output_norm` [policy, sequence, layer, head], means over the queries from the start on. `control` [policy]
        names what to set beside each, or nothing; `same_tokens` [policy] is 0 where the tokens scored are not those of
        the text.

    Raises:
        SinkscopeError: texts too short for the start, a model without a language head or in training mode, an
            intervention that this model or these texts cannot take, one given twice, what is no intervention or gives
            no trial.
    """
    conditions, first = Conditions(start, sinks, seed, tokenizer), whole_number(first, "first", 1)
    texts = _texts(model, ids, conditions)
    if interventions is None:
        chosen, refused = possible(model, texts, usual(tokenizer), **vars(conditions))
        for name, why in refused.items():
            warn(f"`{name}` is left out: {why}")
        found = AsFound(model, chosen)
    else:
        chosen = _checked(interventions)
        found = AsFound(model, chosen)
        for intervention in chosen:
            found.after(partial(_check, intervention, model, texts, conditions), intervention)
            found.check_weights(intervention)
    every, prepared = _beside_controls(chosen), dict[str, Intervention]()
    for name, each in every.items():
        made = found.after(partial(each.prepare, model, _copies(texts), conditions), each)
        if not isinstance(made, Intervention):
            raise SinkscopeError(f"`{name}` is prepared as {made!r}; let `prepare` return an intervention, as self.")
        found.check_weights(each)
        prepared[name] = made
    record = _record(found, texts, prepared, conditions, first, progress)
    controls = [control.name if (control := each.control()) is not None else "" for each in every.values()]
    controls = [name if name in record["policy"].values else "" for name in controls]  # none for what is one itself
    return record.assign_coords(control=("policy", controls)).assign_attrs({"kind": "interventions"} | attributes)


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
    return [EvictKeys("sinks"), EvictKeys("recent"), *words, ReplaceTokens("random"), Shift(), Repeat()]


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


def _beside_controls(chosen: Sequence[Intervention]) -> dict[str, Intervention]:
    """The baseline, the interventions and their controls by name; a control that several share only once."""
    every: dict[str, Intervention] = {Nothing.name: Nothing()} | {each.name: each for each in chosen}
    for each in chosen:
        control = each.control()
        if control is not None and not _is_same(every.setdefault(control.name, control), control):
            raise SinkscopeError(
                f"the control of `{each.name}` is called `{control.name}`, as is another intervention or control that "
                "is not equal to it; give it a name of its own, or make its class a frozen dataclass."
            )
    return every


def _is_same(one: Intervention, other: Intervention) -> bool:
    """Whether two interventions of one name do one thing."""
    try:
        return one is other or (type(one) is type(other) and (one == other or vars(one) == vars(other)))
    except (RuntimeError, TypeError, ValueError):  # fields such as tensors, which are not simply equal or not
        return False


def _checked(interventions: Iterable[Intervention]) -> list[Intervention]:
    chosen = list(interventions) if isinstance(interventions, Iterable) else [interventions]
    for intervention in chosen:
        _check_class(intervention)
    if not chosen or len({intervention.name for intervention in chosen}) < len(chosen):
        raise SinkscopeError("no intervention was given, or one of them twice; give each one once.")
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
) -> xr.Dataset:
    """Every text run under each intervention, the baseline first."""
    model, longest, shape = found.model, max(map(len, texts)), (len(interventions), len(texts))
    losses, same = np.full((*shape, longest), np.nan, dtype=np.float32), np.ones(shape, dtype=bool)
    means: dict[str, list[np.ndarray]] = {}
    unchanged: dict[int, tuple[Tensor, xr.Dataset]] = {}  # by text: a dose of 0 is no other run than the baseline
    with progress_bar(len(interventions) * sum(map(len, texts)), "token", shown, desc="interventions") as bar:
        for row, (name, intervention) in enumerate(interventions.items()):
            for number, text in enumerate(texts):
                trial = found.after(partial(intervention.apply, text.clone(), number, conditions), intervention)
                places = _checked_places(model, f"`{name}`", trial, text)
                scored = places[1:] > conditions.start
                if not bool(scored.any()):
                    raise SinkscopeError(
                        f"`{name}` leaves nothing of text {number} to score: none of its tokens stood behind query "
                        f"{conditions.start}; keep some of them, or give an earlier start."
                    )
                is_plain = _changes_nothing(trial, text)
                run = partial(_run, model, trial, first)
                nll, measured = (unchanged.get(number) if is_plain else None) or found.after(run, intervention)
                if is_plain:
                    unchanged[number] = nll, measured
                at = places[1:][scored]
                losses[row, number, at] = nll[scored].numpy()
                same[row, number] = torch.equal(trial.tokens[1:][scored], text[at])
                late = measured.isel(sequence=0, query=slice(int((places < conditions.start).sum()), None))
                late = late.assign(sink_mass=late["sink_mass"].sum("sink"))
                for each in ("sink_mass", "output_norm"):
                    if each in late:  # no output outside the attention interface
                        means.setdefault(each, []).append(late[each].mean("query").transpose("layer", "head").values)
                bar.update(len(text))
            found.check_weights(intervention)
    dims = ("policy", "sequence", "layer", "head")
    record = xr.Dataset(
        {
            "nll": (("policy", "sequence", "token"), losses, {"units": "nats"}),
            **{name: (dims, np.stack(found).reshape(*shape, *found[0].shape)) for name, found in means.items()},
        },
        coords={
            "policy": list(interventions),
            "same_tokens": ("policy", same.all(1).astype(int)),
            "layer": measured["layer"].values,
            "head": measured["head"].values,
            **text_coordinates(texts),
        },
    )
    about = {"start": conditions.start, "sinks": conditions.sinks, "first": first, "seed": conditions.seed}
    return record.assign_attrs(**model_attributes(model), **token_attributes(record, model), **about)


def _changes_nothing(trial: Trial, text: Tensor) -> bool:
    """Whether the text [token] is run as it is."""
    policy = trial.policy
    undosed = type(policy) is Dose and not policy.bias and policy.values == "kept"  # a subclass may do anything
    idle = policy is None or type(policy) is Dense or undosed
    return idle and trial.normaliser is None and trial.hooks is None and torch.equal(trial.tokens, text)


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


def _run(model: nn.Module, trial: Trial, first: int) -> tuple[Tensor, xr.Dataset]:
    """Losses [token - 1] of the second token on, and the record, of one text."""
    ids = trial.tokens[None].to(reading_device(model))
    policy, probes = trial.policy or Dense(), [SinkMass(first), OutputNorm()]
    with ExitStack() as undo, torch.no_grad():
        if trial.hooks is not None:
            trial.hooks(model, undo)
        with Scope(model, probes, trial.normaliser, policy, alone=True) as scope:
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            record = scope.record
    nll = next_token_losses(logits, ids[0, 1:]).cpu()
    if not bool(nll.isfinite().all()):
        raise not_finite("the logits", model)
    return nll, record


@checks_types
def dose_response(
    model: nn.Module,
    ids: Tensor | Sequence[Tensor],
    doses: Iterable[float] = DOSES,
    *,
    count: int = 1,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    start: int = 64,
    sinks: int = 4,
    seed: int = 0,
    progress: bool | None = None,
    **attributes: Any,
) -> xr.Dataset:
    """Losses, sink mass and head output against a bias on the logits of the first keys, or of as many random ones.

    Args:
        model, ids, progress, attributes: as in `perplexity`; a model inside transformers' attention interface.
        doses: the biases, natural logarithm: minus infinity evicts, with log(2) a key weighs twice as much.
        count: how many first keys.
        layers, heads: where; all when None.
        start: the first query that notices; what is scored comes after it.
        sinks, seed: among how many first tokens there is no random key, and the seed of these keys.

    Returns:
        A record [arm, dose, ...] with arm "sinks" or "random" keys: `nll` [.., sequence, token], nats; `sink_mass` on
        the first keys and `output_norm` [.., sequence, layer, head], means over the queries from the start on.

    Raises:
        SinkscopeError: as `intervene`; no doses, or one that is no bias.
    """
    given = checked_doses(doses)
    every = [EvictKeys(arm, whole_number(count, "count", 1), dose, layers, heads) for arm in ARMS for dose in given]
    record = run_interventions(
        model, ids, every, start=start, sinks=sinks, first=count, seed=seed, progress=progress
    ).sel(policy=[each.name for each in every])
    both = (
        record.drop_vars(["policy", "control", "same_tokens"])
        .coarsen(policy=len(given))
        .construct(policy=("arm", "dose"))
        .assign_coords(arm=list(ARMS), dose=given)
    )
    where = {"layers": "all" if layers is None else list(layers), "heads": "all" if heads is None else list(heads)}
    return both.assign_attrs(record.attrs | {"kind": "dose response", "count": count} | where | attributes)


def checked_doses(doses: Any) -> list[float]:
    """The doses in order; their numbers, or SinkscopeError."""
    try:
        given = sorted(float(dose) for dose in (doses if isinstance(doses, Iterable) else [doses]))
    except (TypeError, ValueError):
        given = []
    if not given or len(set(given)) < len(given) or any(math.isnan(dose) or dose == math.inf for dose in given):
        raise SinkscopeError(
            f"doses={doses!r}: give different numbers, such as [-2.0, 0.0, 2.0], or -math.inf to evict."
        )
    return given
