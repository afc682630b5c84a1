"""How far a change of one token spreads over the tokens behind it (after Barbero et al. 2025)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from sinkscope.arguments import checks_types, each_once, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.hf.placement import reading_device
from sinkscope.models.facts import find_anatomy, model_attributes, token_attributes
from sinkscope.models.requirements import check_eval
from sinkscope.probes import HiddenProbe, Variable
from sinkscope.probes.base import Measurements
from sinkscope.scope.forward import check_vocabulary
from sinkscope.scope.measure import texts_of
from sinkscope.scope.scope import Scope
from sinkscope.streaming.readers import text_coordinates

FIRST = ("kept", "removed")
SHORTEST = 4  # a first token, one that takes its place, one that changes, and one behind it


@dataclass(frozen=True)
class _Apart(HiddenProbe):
    """Distances between the hidden states of two texts that are read side by side."""

    one_pass: ClassVar = True
    makes: ClassVar = {
        "distance": Variable(("sequence", "token"), "1", "distance from the states of the text as it was"),
        "relative_distance": Variable(("sequence", "token"), "1", "the same over the norm of these states"),
    }

    def observe_hidden(self, hidden: Tensor) -> Measurements:
        one, two = hidden.double()
        distance = (one - two).norm(dim=-1)
        return {name: each.expand(2, -1) for name, each in
                (("distance", distance), ("relative_distance", distance / one.norm(dim=-1)))}  # fmt: skip


@checks_types
def perturbation_spread(
    model: nn.Module,
    ids: Tensor | Sequence[Tensor],
    place: int | None = None,
    *,
    first: str | Iterable[str] = FIRST,
    seed: int = 0,
    **attributes: Any,
) -> xr.Dataset:
    """How far the states of later tokens move when one token of a text is another.

    Barbero et al. 2025 ("Why do LLMs attend to the first token?", arXiv 2504.02732) say that sinks keep tokens from
    mixing too much: without its first token, a change would spread further. The text x' is x with the token at one
    place replaced, and ``D[l, i] = ||h_i^l(x) - h_i^l(x')||``, with the first token kept, and with it removed from both
    texts. Which measure their figures show we could not check: this formula, and that over ``||h_i^l(x)||``, are ours.

    >>> record = sinkscope.perturbation_spread(model, ids, first="kept")
    >>> list(record.data_vars)[:2]
    ['distance', 'relative_distance']

    Args:
        model: a transformers model in eval mode.
        ids: [sequence, token], or 1-D tensors. What is removed is whatever token they begin with.
        place: of the token that is replaced, 2 or later; a quarter into each text when None. The new one is drawn from
            the other tokens of all texts.
        first: "kept", "removed".
        seed: of what is drawn; the same token replaces it in both.
        attributes: noted in the record.

    Returns:
        `distance` and `relative_distance` [first_token, sequence, layer, token], 0 before the place, and NaN for the
        token that was removed. `place` and `new_token` [sequence] say what was done.

    Raises:
        SinkscopeError: texts of fewer than four tokens, a place outside them or with no token behind it, texts of one
            token said again and again; a model that cannot be measured.
    """
    ways = each_once(first, FIRST, "first")
    find_anatomy(model)  # or what is no model says so
    texts, start = texts_of(ids), whole_number(seed, "seed", 0)
    shortest = min(map(len, texts))
    if shortest < SHORTEST:
        raise SinkscopeError(f"a text has {shortest} tokens, and a change takes {SHORTEST} to spread over; give more.")
    if place is not None and whole_number(place, "place", 2) > shortest - 2:
        raise SinkscopeError(
            f"place={place} leaves no token behind it in a text of {shortest} tokens; give {shortest - 2} or less."
        )
    known = torch.cat(texts).unique()
    if len(known) < 2:
        raise SinkscopeError("the texts say one token again and again, so none can replace another; give other texts.")
    check_eval(model, "the spread of a change")
    for text in texts:
        check_vocabulary(find_anatomy(model).base, text)
    places = [max(2, len(text) // 4) if place is None else place for text in texts]
    found, new = {name: [] for name in _Apart.makes}, []  # type: ignore[var-annotated]
    for number, (text, at) in enumerate(zip(texts, places, strict=True)):
        others = known[known != text[at]]
        new.append(int(others[np.random.default_rng([start, number]).integers(len(others))]))
        for way in ways:
            measured = _pair(model, text, at, new[-1], 0 if way == "kept" else 1)
            for name, each in found.items():
                each.append(measured[name])
    layers = found["distance"][0]["layer"]
    coords = text_coordinates(texts)
    dims = ("sequence", "first_token", "layer", "token")
    record = xr.Dataset(coords={**coords, "first_token": ways, "layer": layers.values})
    for name, each in found.items():
        shape = (len(texts), len(ways), len(layers), record.sizes["token"])
        values = np.full(shape, np.nan)
        for cell, one in zip(np.ndindex(shape[:2]), each, strict=True):
            begin = 0 if ways[cell[1]] == "kept" else 1
            values[cell][:, begin : begin + one.sizes["token"]] = one.transpose("layer", "token").values
        record[name] = (dims, values, {"units": "1", "long_name": _Apart.makes[name].description})
    record = record.transpose("first_token", ...).assign_coords(place=("sequence", places), new_token=("sequence", new))
    about = {"kind": "perturbation", "seed": start}
    return record.assign_attrs(**model_attributes(model), **token_attributes(record, model), **about, **attributes)


def _pair(model: nn.Module, text: Tensor, place: int, new: int, begin: int) -> xr.Dataset:
    """[layer, token] of one text beside itself with another token at a place, both from a token on."""
    other = text.clone()
    other[place] = new
    with Scope(model, [_Apart()], alone=True) as scope, torch.no_grad():
        pair = torch.stack([text, other])[:, begin:].to(reading_device(model))
        find_anatomy(model).base(input_ids=pair, use_cache=False)
        return scope.record[list(_Apart.makes)].isel(sequence=0).drop_vars("sequence")
