"""What is looked at as a short text, and back: to be pasted into a message or a cell.

    text=1f0c…&model=9ab3…&policy=sinks&window=64&head=3.2&query=200&scale=linear

It names its text and its model by hashes, and holds only what differs from how the explorer opens. Nothing in it is
evaluated.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote

from sinkscope.errors import SinkscopeError, shown
from sinkscope.explorer.comparing import NEEDS_MODEL, NOT_PINNED, Pinned
from sinkscope.explorer.configuration import CONTROLS, Choice, Configuration, Number
from sinkscope.explorer.derived import why_not
from sinkscope.explorer.pixels import MAP_CONTROLS, MapOptions
from sinkscope.explorer.results import Results, Unit

if TYPE_CHECKING:
    from sinkscope.explorer.controller import Controller
    from sinkscope.explorer.text_model import TextModel

LETTERS = 12  # of a hash
OF = {"text": "text", "model": "model"}
PINNED = "pinned."  # before what belongs to the partner


@dataclass(frozen=True)
class State:
    """What is looked at.

    Attributes:
        unit, query, map_options: as those of a `Controller`; `unit` is None where nothing was read yet.
        pinned, pinned_unit: the setting and the head that were pinned, or None.
    """

    configuration: Configuration
    unit: Unit | None
    query: int
    map_options: MapOptions
    pinned: Configuration | None = None
    pinned_unit: Unit | None = None


def signature(model: TextModel | None, tokens: Sequence[str]) -> dict[str, str]:
    """The hashes that name a text, by its ids or else its tokens, and a model, by its weights."""
    if model is None:
        told = "\0".join(tokens).encode("utf-8", "surrogatepass"), "a saved record"
    else:
        told = model.ids.cpu().numpy().tobytes(), model.identity
    text, name = (hashlib.sha256(each).hexdigest()[:LETTERS] for each in (told[0], told[1].encode()))
    return {"text": text, "model": name}


def state_of(controller: Controller) -> State:
    """What a controller looks at, or is about to."""
    units, beside, (unit, other) = controller.units, controller.comparison, controller.awaited
    return State(
        controller.configuration,
        units[controller.unit] if units else unit,
        controller.query,
        controller.map_options,
        None if beside.pinned is None else beside.pinned.configuration,
        other if beside.pinned_unit is None else units[beside.pinned_unit],
    )


def adopt(controller: Controller, state: State) -> None:
    """Have a controller look at a state of its text and model; what has to be read for it is not read yet.

    Raises:
        SinkscopeError: it asks for what is not here; the controller is as it was.
    """
    units, beside = controller.units, controller.comparison
    if controller.model is None:
        if state.map_options.scale == "logit":
            raise SinkscopeError("logits need the model; a saved map holds probabilities only.")
        if state.pinned is not None or not state.configuration.is_baseline:
            raise SinkscopeError(f"the state asks for a policy, and {NEEDS_MODEL}.")
    options = state.map_options
    if problem := why_not(controller.now_maps, controller.unit, options) or controller.parts.why_not(options):
        raise SinkscopeError(f"the state cannot be shown: {problem}.")
    for configuration in (state.configuration, state.pinned):
        if configuration is not None:
            configuration.check(len(controller.tokens))
            _check_layers(configuration, controller.model)
    if state.pinned is not None and state.pinned.is_recomputed:
        raise SinkscopeError(f"the state pins re-computation: {NOT_PINNED}.")
    for unit in (state.unit, state.pinned_unit):
        if unit is not None and units and unit not in units:
            raise SinkscopeError(f"{unit} of the state is not here; the last of the heads is {units[-1]}.")
    controller.configuration, controller.query = state.configuration, state.query
    controller.map_options, beside.pinned, beside.pinned_unit = state.map_options, None, None
    if state.pinned is not None:
        results = controller.dense if state.pinned.is_baseline else Results()
        beside.pinned = Pinned(state.pinned, results)
    controller.awaited = state.unit, state.pinned_unit
    controller.find_awaited()


def look_as(controller: Controller, other: Controller, configuration: Configuration) -> None:
    """Have a controller look at its text as another one does at its own, under a configuration; before it begins."""
    controller.configuration, controller.offered = configuration, other.offered
    controller.awaited = (other.units[other.unit] if other.units else None, None)
    options, parts = replace(other.map_options, region=None, compare="nothing"), controller.parts
    controller.map_options = replace(options, spans="none", cells="tokens") if parts.why_not(options) else options


def _check_layers(configuration: Configuration, model: TextModel | None) -> None:
    """Raise SinkscopeError for layers that the model lacks, where a policy or a normaliser is to act in them."""
    if model is None or configuration.layers is None or "layers" not in configuration.uses:
        return
    (first, last), layers = configuration.layers, model.anatomy.numbers
    if not layers[0] <= first <= last <= layers[-1]:
        raise SinkscopeError(
            f"layers {first} to {last} of the state are not here; the model has {layers[0]} to {layers[-1]}."
        )


def state_text(state: State, signed: Mapping[str, str], length: int) -> str:
    """A state of a text of `length` tokens as a line of letters that any cell or address takes.

    Raises:
        SinkscopeError: a policy or a normaliser that is an object of one's own, which no text can carry.
    """
    found = dict(signed) | _told(state.configuration, Configuration.of_text(length))
    if state.unit is not None:
        found["head"] = f"{state.unit.layer}.{state.unit.head}"
    if state.query != length - 1:
        found["query"] = str(state.query)
    found |= _told(state.map_options, MapOptions())
    if state.pinned is not None:
        found |= {PINNED + name: text for name, text in _told(state.pinned, Configuration.of_text(length)).items()}
        found.setdefault(f"{PINNED}policy", str(state.pinned.policy))
    if state.pinned_unit is not None:
        found[f"{PINNED}head"] = f"{state.pinned_unit.layer}.{state.pinned_unit.head}"
    return "&".join(f"{name}={quote(text, safe=',.+ ').replace(' ', '+')}" for name, text in found.items())


def _told(value: Any, usual: Any) -> dict[str, str]:
    """The fields that differ from the usual, by name, as text."""
    told = {}
    for name in (field.name for field in fields(value)):
        given = getattr(value, name)
        if isinstance(given, (str, int, float, tuple, list)) or given is None:
            if given != getattr(usual, name):
                told[name] = _written(given)
        else:
            raise SinkscopeError(
                f"the {name} {shown(given)} is an object of your own, which no short text can carry; save the view "
                "instead, whose code holds it."
            )
    return told


def _written(value: Any) -> str:
    if value is None:
        return "all"
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def read_state(text: str, signed: Mapping[str, str], length: int) -> State:
    """The state that a text tells of, for the text of `length` tokens and the model that are `signed`.

    Raises:
        SinkscopeError: it is of another text or model, or no state at all.
    """
    if not isinstance(text, str):
        raise SinkscopeError(f"state is {shown(text)}; give the text that `app.state` has.")
    try:
        pairs = parse_qsl(text.strip(), keep_blank_values=True, strict_parsing=True, max_num_fields=64)
    except ValueError:
        pairs = []
    found = dict(pairs)
    if not found.keys() >= signed.keys() or len(found) < len(pairs):
        raise SinkscopeError(f"{shown(text)} is no state of the explorer; give the text that `app.state` has.")
    for name, expected in signed.items():
        given = found.pop(name)
        if given != expected:
            raise SinkscopeError(
                f"this state is of another {OF[name]} ({shown(given)}, and here it is {expected!r}); open the explorer "
                f"on the {OF[name]} that it was made with."
            )
    pinned = {name.removeprefix(PINNED): found.pop(name) for name in list(found) if name.startswith(PINNED)}
    pinned_unit = _unit(pinned.pop("head", None))
    unit, query = _unit(found.pop("head", None)), _query(found.pop("query", None), length)
    of_map = {name: found.pop(name) for name in list(found) if name in vars(MapOptions())}
    return State(
        _configuration(found, length),
        unit,
        query,
        replace(MapOptions(), **_read(of_map, MAP_CONTROLS, length)),
        _configuration(pinned, length) if pinned else None,
        pinned_unit,
    )


def _configuration(told: Mapping[str, str], length: int) -> Configuration:
    return replace(Configuration.of_text(length), **_read(told, CONTROLS, length))


def _unit(told: str | None) -> Unit | None:
    if told is None:
        return None
    numbers = _numbers("head", told.replace(".", ","), 2)
    return Unit(*numbers)


def _query(told: str | None, length: int) -> int:
    if told is None:
        return length - 1
    (query,) = _numbers("query", told, 1)
    if query >= length:
        raise _unclear("query", told, f"0 to {length - 1}")
    return query


def _read(told: Mapping[str, str], controls: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Fields from their texts, each by the control that sets it."""
    found: dict[str, Any] = {}
    for name, text in told.items():
        control = controls.get(name)
        if isinstance(control, Number):
            low, _ = control.limits(length)
            (found[name],) = _numbers(name, text, 1)
            if found[name] < low:
                raise _unclear(name, text, f"{low} or more")
        elif isinstance(control, Choice) and name != "dose":
            if text not in control.values.values():
                raise _unclear(name, text, ", ".join(control.values.values()))
            found[name] = text
        elif name in _READERS:
            found[name] = _READERS[name](text, length)
        else:
            raise SinkscopeError(f"a state has no {shown(name)}; give the text that `app.state` has.")
    return found


def _dose(text: str, length: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value) or value == math.inf:
        raise _unclear("dose", text, "a number of nats, or -inf")
    return value


def _region(text: str, length: int) -> tuple[int, ...] | None:
    found = _numbers("region", text, 4)
    if not (found[0] < found[1] <= length and found[2] < found[3] <= length):
        raise _unclear("region", text, "first query, last query, first key, last key, the last ones left out")
    return found


def _layers(text: str, length: int) -> tuple[int, ...] | None:
    return None if text == "all" else _numbers("layers", text, 2)


def _evicted(text: str, length: int) -> tuple[int, ...]:
    return _numbers("evicted", text, None) if text else ()


_READERS: dict[str, Callable[[str, int], Any]] = {
    "dose": _dose, "region": _region, "layers": _layers, "evicted": _evicted,
}  # fmt: skip


def _numbers(name: str, text: str, count: int | None) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts) or len(parts) != (
        count or len(parts)
    ):
        raise _unclear(name, text, "whole numbers from 0 on" if count != 1 else "a whole number from 0 on")
    return tuple(map(int, parts))


def _unclear(name: str, text: str, expected: str) -> SinkscopeError:
    return SinkscopeError(f"{name}={shown(text)} in the state is none of its values; give {expected}.")
