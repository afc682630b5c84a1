"""What is public, found by looking: functions, classes, and what their instances offer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import sinkscope
from sinkscope import figures, lab, normalisers, policies, probes
from sinkscope.explorer.app import Explorer
from sinkscope.figures import marks
from sinkscope.figures.matplotlib_renderer import PaperFigure
from sinkscope.scope.scope import Scope

NAMESPACES = {"": sinkscope, "figures": figures, "figures.marks": marks, "lab": lab, "normalisers": normalisers,
              "policies": policies, "probes": probes}  # fmt: skip
RETURNED = (Scope, Explorer, PaperFigure)
"""Classes that nobody names, and that calls give back."""

PAPER = PaperFigure.__module__
BY_THE_ENGINE = "called by the engine, with tensors of its own making, or by transformers"
ENGINE = (
    "acting_heads", "activate_past_recording", "acts_in", "add", "after_forward", "apply", "at_once",
    "batch_repeat_interleave",
    "batch_select_indices", "before_forward", "before_generation", "bind", "check", "check_gradients", "check_place",
    "check_places", "columns",
    "check_weights", "control", "finish", "get_query_offset", "keep", "load_tensors", "memory", "named_keys", "observe",
    "observe_hidden", "observe_layer", "places", "positions", "prepare", "reorder_cache", "score", "sees", "start",
    "tensors", "token_coordinates", "virtual_logit", "wants", "weigh", "weights",
)  # fmt: skip
"""Methods of the contracts: what a class of one's own gives, and the engine asks for."""

LEFT_OUT = {
    **dict.fromkeys(ENGINE, BY_THE_ENGINE),
    "SinkscopeError": "an exception",
    "Cost": "a result of `cost`, which keeps what it is given",
    "Measured": "a result of a probe, which is checked when it is recorded",
    "PaperFigure.set": "matplotlib's",
    "policies.Kept": "a pair of numbers",
}
"""Public callables that are not tried, by name or by "Class.name", each with the reason."""


@dataclass(frozen=True)
class Subject:
    """Something to call.

    Attributes:
        name: as in "figures.recall" or "Conversation.ask".
        call: takes the arguments by name; of a method, also `self`.
        parameters: those of its signature.
        owner: the class of a method of instances, else None.
    """

    name: str
    call: Callable[..., Any]
    parameters: tuple[inspect.Parameter, ...]
    owner: type | None = None


def public() -> dict[str, Any]:
    """Every public object by the name that it is reached by, each once."""
    found: dict[str, Any] = {}
    for prefix, namespace in NAMESPACES.items():
        names = getattr(namespace, "__all__", None) or [name for name in vars(namespace) if _is_own(namespace, name)]
        for name in names:
            thing = getattr(namespace, name)
            is_one = inspect.isclass(thing) or inspect.isfunction(thing)
            if is_one and not any(thing is each for each in found.values()):
                found[f"{prefix}.{name}".strip(".")] = thing
    return found | {each.__name__: each for each in RETURNED}


def subjects() -> dict[str, Subject]:
    """All there is to try."""
    found: dict[str, Subject] = {}
    seen: set[int] = set()  # what an earlier class was tried with and this one inherits
    for name, thing in public().items():
        if name in LEFT_OUT:
            continue
        if inspect.isclass(thing):
            if thing not in RETURNED and not inspect.isabstract(thing):
                found[name] = Subject(name, thing, _parameters(thing))
            found |= {each.name: each for each in _methods(thing, seen)}
        else:
            found[name] = Subject(name, thing, _parameters(thing))
            if hasattr(thing, "describe"):
                found[f"{name}.describe"] = Subject(f"{name}.describe", thing.describe, _parameters(thing))
    return found


def _methods(cls: type, seen: set[int]) -> Iterator[Subject]:
    """What a class of ours adds to those of others."""
    for name in dict.fromkeys(name for base in cls.__mro__ if _is_ours(base) for name in vars(base)):
        if name.startswith("_") or f"{cls.__name__}.{name}" in LEFT_OUT or name in LEFT_OUT:
            continue
        thing = inspect.getattr_static(cls, name)
        if id(thing) in seen or inspect.isabstract(cls):
            continue
        seen.add(id(thing))
        said = f"{cls.__name__}.{name}"
        if isinstance(thing, property):
            yield Subject(said, _reading(name), (), cls)
        elif isinstance(thing, (classmethod, staticmethod)):
            yield Subject(said, getattr(cls, name), _parameters(getattr(cls, name)))
        elif inspect.isfunction(thing):
            yield Subject(said, _calling(name), _parameters(thing)[1:], cls)


def _reading(name: str) -> Callable[..., Any]:
    return lambda self: getattr(self, name)


def _calling(name: str) -> Callable[..., Any]:
    def call(self: Any, **given: Any) -> Any:
        return getattr(self, name)(**given)

    return call


def _parameters(thing: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    """Those of its own; what it hands on to another library by any name is that library's."""
    found = inspect.signature(thing).parameters.values()
    noted = ("attributes", "options") if inspect.isfunction(thing) and thing.__module__ != PAPER else ()
    return tuple(each for each in found if each.kind is not each.VAR_KEYWORD or each.name in noted)


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "sinkscope"


def _is_own(namespace: ModuleType, name: str) -> bool:
    thing = getattr(namespace, name)
    return not name.startswith("_") and getattr(thing, "__module__", "").startswith(namespace.__name__)
