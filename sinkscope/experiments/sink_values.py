"""What the final states of a model owe to the values of its sinks (Fesser et al. 2026)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from sinkscope.arguments import checks_types, each_once, is_listed, is_whole, several, whole_number
from sinkscope.attention.eviction import Eviction, KeyEviction
from sinkscope.attention.layer import Layer
from sinkscope.errors import SinkscopeError, shown
from sinkscope.hf.placement import reading_device
from sinkscope.models.facts import find_anatomy, model_attributes, token_attributes
from sinkscope.models.requirements import check_eval
from sinkscope.policies import Dose, Evict, PerHead, Policy
from sinkscope.policies.base import BoundLayer
from sinkscope.probes import LayerProbe, Variable
from sinkscope.probes.base import PER_HEAD, Measurements
from sinkscope.probes.sink_purpose import strongest
from sinkscope.scope.binding import native_windows, policy_layers
from sinkscope.scope.measure import texts_of
from sinkscope.scope.scope import Scope
from sinkscope.streaming.readers import text_coordinates

KINDS = ("zero", "mean", "other text", "ordinary", "removed", "random zero")


@dataclass(frozen=True)
class _Values(LayerProbe):
    """The values as attention sees them, and the key with the most attention."""

    one_text: ClassVar = True
    makes: ClassVar = {
        "values": Variable(("sequence", "kv_head", "token", "value_dim")),
        "sink_key": Variable(PER_HEAD),
    }

    def observe(self, layer: Layer) -> Measurements:
        if layer.value is None:
            raise SinkscopeError(
                "sink_values changes the values of keys, which models outside transformers' attention interface do not "
                "show; give another model."
            )
        if layer.looks_ahead():
            raise SinkscopeError("sink_values is of models that read from left to right; this one sees later tokens.")
        return {"values": layer.value, "sink_key": strongest(layer)[0].int()}


@dataclass(frozen=True, repr=False)
class _Given(Policy):
    """Another value in the place of one key's: by layer, [kv_head, dim]."""

    key: int
    given: Mapping[int, Tensor]

    def bind(self, layer: BoundLayer) -> tuple[Eviction, ...]:
        value = self.given[layer.number]
        return (KeyEviction(since=self.key, keys=(self.key,), values="given", given=value),)


@checks_types
def sink_values(
    model: nn.Module,
    ids: Tensor | Sequence[Tensor],
    *,
    kinds: str | Iterable[str] = KINDS,
    heads: Any = None,
    seed: int = 0,
    **attributes: Any,
) -> xr.Dataset:
    """How much the final states change when the value of each head's strongest key is another.

    The key s of a head is that of `SinkPurpose`, in the text as it is. In all chosen heads at once its value becomes

        zero           0
        mean           the mean value of the head's other keys
        other text     that of the next text's own strongest key in this head
        ordinary       that of another key of the head, drawn at random
        removed        its column is taken out of A, and the rest renormalised, for the queries behind s
        random zero    the value of s stays, and that of another key, drawn at random, becomes 0: the control

    Values are those of the text as it is. P are the states that the language head reads.

    >>> record = sinkscope.sink_values(model, ids, kinds=("zero", "mean"))
    >>> list(record.data_vars)
    ['change']

    Args:
        model: a decoder in eval mode, inside transformers' attention interface.
        ids: [sequence, token], or 1-D tensors.
        kinds: some of the above.
        heads: pairs (layer, head); all of the layers that a policy acts in when None.
        seed: of what is drawn.
        attributes: noted in the record.

    Returns:
        `change` [intervention, sequence]: ``sqrt(mean ||P' - P||^2) / sqrt(mean ||P||^2)`` over the text's tokens.

    Raises:
        SinkscopeError: an unknown kind, heads that are not there or slide over a window of their own, one text where
            another's value is asked for, texts of fewer than three tokens.
    """
    chosen = each_once(kinds, KINDS, "kinds")
    find_anatomy(model)  # or what is no model says so
    texts, start = texts_of(ids), whole_number(seed, "seed", 0)
    if min(map(len, texts)) < 3:
        raise SinkscopeError("a text has fewer than three tokens, so no key can be drawn beside its sink; give more.")
    if "other text" in chosen and len(texts) < 2:
        raise SinkscopeError("the value of another text needs two texts or more; give them, or leave that kind out.")
    check_eval(model, "attention")
    clean = [_run(model, text, probes=True) for text in texts]
    places = _places(model, clean[0][1], heads)
    change = np.zeros((len(chosen), len(texts)))
    for number, (text, (states, record)) in enumerate(zip(texts, clean, strict=True)):
        other = clean[(number + 1) % len(texts)][1]
        for row, kind in enumerate(chosen):
            random = np.random.default_rng([start, number])
            policy = PerHead({place: _policy(kind, place, record, other, random) for place in places})
            changed, _ = _run(model, text, policy)
            change[row, number] = float((changed - states).norm() / states.norm())
    found = xr.Dataset(
        {"change": (("intervention", "sequence"), change, {"units": "1"})},
        coords={"intervention": chosen, **text_coordinates(texts)},
    )
    about = {"kind": "sink values", "heads": len(places), "seed": start}
    return found.assign_attrs(**model_attributes(model), **token_attributes(found, model), **about, **attributes)


def _run(
    model: nn.Module, text: Tensor, policy: Policy | None = None, probes: bool = False
) -> tuple[Tensor, xr.Dataset]:
    """The final states [token, width] of one text in float64, and what was measured."""
    asked = [_Values()] if probes else []
    base = find_anatomy(model).base
    with Scope(model, asked, policy=policy, alone=True) as scope, torch.no_grad():
        made = base(input_ids=text[None].to(reading_device(model)), use_cache=False)
        return made.last_hidden_state[0].double().cpu(), scope.record if probes else xr.Dataset()


def _places(model: nn.Module, record: xr.Dataset, heads: Any) -> list[tuple[int, int]]:
    """The heads to act in; SinkscopeError for those in which nothing can be done."""
    numbers, acting = find_anatomy(model).numbers, policy_layers(model)
    able = {numbers[index] for index in acting}
    measured = record["sink_key"].isel(sequence=0).transpose("layer", "head")
    there = [(int(measured["layer"][row]), int(head)) for row, head in np.argwhere(measured.values >= 0)]
    windows = native_windows(model).values()
    if windows and None not in windows:
        raise SinkscopeError(
            f"every layer of {type(model).__name__} slides over a window of its own and stays as it is, so no value "
            "can be changed; give a model with a layer that sees the whole text."
        )
    if heads is None:
        return [place for place in there if place[0] in able]
    given = several(heads, "heads")
    if not all(is_listed(each) and len(each) == 2 and all(map(is_whole, each)) for each in given):
        raise SinkscopeError(f"heads={shown(heads)} are no pairs (layer, head); give such as heads=[(5, 3), (0, 1)].")
    asked = [(int(layer), int(head)) for layer, head in given]
    for place in asked:
        if place not in there:
            raise SinkscopeError(f"the model has no head {place[1]} in an attention layer {place[0]}; give others.")
        if place[0] not in able:
            raise SinkscopeError(
                f"layer {place[0]} slides over the model's own window and stays as it is; give heads of other layers."
            )
    if not asked:
        raise SinkscopeError("heads= names no head; give pairs (layer, head), or None for all.")
    if len(set(asked)) < len(asked):
        raise SinkscopeError(f"heads={shown(heads)} name a head twice; give each once.")
    return asked


def _policy(
    kind: str, place: tuple[int, int], record: xr.Dataset, other: xr.Dataset, random: np.random.Generator
) -> Policy:
    """What is done in one head."""
    layer, _ = place
    key, tokens = _key(record, place), record.sizes["token"]
    drawn = int((key + 1 + random.integers(tokens - 1)) % tokens)
    if kind == "removed":
        return Evict((key,), start=key + 1)
    if kind in ("zero", "random zero"):
        gone = key if kind == "zero" else drawn
        return Dose(0.0, (gone,), start=gone, values="zeroed")
    values = _values(record, layer)
    if kind == "mean":
        given = np.delete(values, key, axis=1).mean(1)
    else:
        given = values[:, drawn] if kind == "ordinary" else _values(other, layer)[:, _key(other, place)]
    return _Given(key, {layer: torch.from_numpy(given.astype(np.float32))})


def _key(record: xr.Dataset, place: tuple[int, int]) -> int:
    return int(record["sink_key"].isel(sequence=0).sel(layer=place[0], head=place[1]))


def _values(record: xr.Dataset, layer: int) -> np.ndarray:
    """Values [kv_head, token, dim] of one layer."""
    values = record["values"].isel(sequence=0).sel(layer=layer).transpose("kv_head", "token", "value_dim")
    held = values.dropna("kv_head", how="all").dropna("value_dim", how="all").values
    return np.asarray(held, dtype=np.float64)
