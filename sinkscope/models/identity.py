"""Who a model is: everything that determines its numbers, as words.

By it a checkpoint, a cell, a saved cache or a sweep knows the model that it was made with, and says what differs: the
configuration, the modules and the plain values that they hold, the weights, what was hung on or put in the place of a
part, the attention in use, the precision of the machine and the versions of what runs it. Where the weights are kept,
what the model is called and what acts in training alone is left out, and so are the wrappers of a compiler or trainer.

What is the user's own (a hook, a forward method, a class) is told by its code and all that it reads. Where that cannot
be told the entry is `Unknown`, and `check_resumable` refuses to keep anything on disk.
"""

from __future__ import annotations

import functools
import json
import re
import types
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor, nn

from sinkscope.definition import Unknown, definition, is_found
from sinkscope.hf.configuration import PLACES, SILENT, attention_functions, configuration
from sinkscope.hf.models import core, is_foreign
from sinkscope.hf.placement import reading_device
from sinkscope.models.hooks import HOOKS, OURS, PLAIN, innermost, told_hooks, top_of
from sinkscope.models.rotary import changes_with_length
from sinkscope.models.surroundings import hooks_on_every_module, machine, replaced
from sinkscope.models.trial import DROPOUTS, check_module
from sinkscope.models.weights import weights_hash

NONE = "not there"
OF_A_MODULE = {*vars(nn.Module()), "_hf_hook", "_old_forward", "_is_hf_initialized", "_compiled_call_impl"}
HASHES = {"weights": "it has other weights or buffers", "text": "the text is another"}  # whose values say nothing
HASHED = re.compile(r"[0-9a-f]{16}(, [0-9a-f]{16})*")
SHOWN = 3  # differences in a message
LONGEST = 60  # letters of a value in it


def identity(model: nn.Module) -> dict[str, str]:
    """Everything that determines the numbers of a model, by name.

    It is the same wherever the weights are kept, for a compiled model and for one inside a trainer's wrapper, and in
    another process. Two models whose identities are equal give the same numbers on machines of one kind.

    Args:
        model: any torch module; of one of transformers also its configuration.

    Returns:
        Words, of which `difference` makes a sentence. Values that cannot be told are `Unknown`: `check_resumable`
        refuses them for what is to be kept on disk.

    Raises:
        SinkscopeError: there are no weights, or some cannot be read.
    """
    check_module(model)
    weights = weights_hash(model)  # first: says of weights that are nowhere what is the matter
    told = {"model": type(core(model)).__name__}
    told |= {f"config.{name}": _plain(value) for name, value in configuration(model).items()}
    told |= {"dtype": ", ".join(sorted({str(each.dtype)[6:] for each in model.parameters()}))}
    told |= _Modules(model).told()
    told |= _attending(model)
    return told | {"weights": weights}


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What differs between two identities, in words such as "rope_theta was 10000.0 and now is 500000.0".

    Empty where nothing does. Other settings may stand among them. What can be named is named first.
    """
    names = [name for name in (*now, *(before.keys() - now.keys())) if before.get(name) != now.get(name)]
    named = [each for name in names if name not in HASHES for each in _changes(name, before.get(name), now.get(name))]
    named += [words for name, words in HASHES.items() if name in names]
    more = len(named) - SHOWN
    return "; ".join(named[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _changes(name: str, before: str | None, now: str | None) -> Iterator[str]:
    """A change of one entry, or of some of the modules that share it."""
    shown = re.sub(r"^(config\.|module )", "", name)
    one, two = _by_place(before), _by_place(now)
    for place in sorted({*one, *two}, key=lambda each: (len(each), each)):
        old, new = (each.get(place, each.get("", NONE)) for each in (one, two))
        if old != new:
            numbers = iter(place.split(","))
            where = re.sub(r"\*", lambda _: next(numbers, "*"), shown) if place else shown  # noqa: B023
            if all(map(HASHED.fullmatch, (old, new))):
                yield f"{where} does or holds something else than it did"
            else:
                yield f"{where} was {_short(old)} and now is {_short(new)}"


def _by_place(value: str | None) -> dict[str, str]:
    if value is not None and value.startswith('{"": '):
        return dict(json.loads(value))
    return {} if value is None else {"": value}


def _short(value: str) -> str:
    return value if len(value) <= LONGEST else f"{value[: LONGEST - 3]}..."


def _attending(model: nn.Module) -> dict[str, str]:
    """By which functions it attends, and the machine that runs it."""
    told = {}
    for name, (used, function) in attention_functions(model).items():
        own = function is not None and top_of(function) not in OURS
        told[name] = used
        if own:
            told[f"{name} function"] = definition(function)
    return told | machine(reading_device(model).type)


class _Modules:
    """The modules of a model: their classes, the plain values they hold, and what is not as their class has it."""

    def __init__(self, model: nn.Module) -> None:
        inner = core(model)
        inside = set(inner.modules())
        self.count = len(inside)
        self.named = dict(inner.named_modules())
        self.named |= {f"around.{name}": each for name, each in model.named_modules() if each not in inside}
        # what refers to a module or a configuration refers to something that is told already
        self.known = [*self.named.values(), *(each.config for each in self.named.values() if hasattr(each, "config"))]
        self.unseen = PLACES | ({"attention_scaling"} if changes_with_length(model) else set())

    def told(self) -> dict[str, str]:
        """Each value once for all modules whose paths differ in numbers alone."""
        places: dict[str, list[str]] = {}
        groups: dict[tuple[str, str], dict[str, str]] = {}
        for path, module in self.named.items():
            steps = path.split(".")
            pattern = ".".join("*" if step.isdigit() else step for step in steps) or "the model"
            places.setdefault(pattern, []).append(place := ",".join(filter(str.isdigit, steps)))
            for name, value in self._values(path, module):
                groups.setdefault((name, pattern), {})[place] = value
        told = {"modules": str(self.count)}
        for (name, pattern), values in groups.items():
            told[name.replace("{}", pattern)] = _together({place: values.get(place, NONE) for place in places[pattern]})
        classes = {base for module in self.named.values() for base in type(module).__mro__}
        return told | hooks_on_every_module(self.known) | replaced(classes, self.known)

    def _values(self, path: str, module: nn.Module) -> Iterator[tuple[str, str]]:
        """What is told of one module, by names in which {} stands for its path."""
        if not (path.startswith("around.") and top_of(type(module)) == "torch"):  # a compiler's or trainer's wrapper
            yield "module {}", self._kind(type(module))
            for name, value in vars(module).items():
                if name not in OF_A_MODULE and (told := self._attribute(module, name, value)) is not None:
                    yield f"module {{}}.{name}", told
        for kind, name in HOOKS.items():
            if hooks := told_hooks(getattr(module, name), self.known):
                yield f"{kind} on {{}}", hooks
        around = getattr(module, "_hf_hook", None)
        for hook in getattr(around, "hooks", [around]):
            if hook is not None and top_of(type(hook)) not in OURS:
                yield "hook of accelerate on {}", definition(hook, self.known)
        if before := vars(module).get("_old_forward"):  # under accelerate's own
            told = self._attribute(module, "forward", before)
            yield from [] if told is None else [("module {}.forward", told)]

    def _kind(self, kind: type) -> str:
        """A class by its name where a library has it, and by its code too where it is the user's own."""
        name = f"{kind.__module__}.{kind.__qualname__}"
        if top_of(kind) in ("torch", "transformers") and is_found(kind, kind.__module__):
            return name
        told = definition(kind, self.known)
        return told if isinstance(told, Unknown) else f"{name} {told}"

    def _attribute(self, module: nn.Module, name: str, value: Any) -> str | None:
        """A plain value or a function of a module as words; None for what says nothing about its numbers."""
        brought = not is_foreign(module)
        if name in self.unseen or name.endswith(SILENT) or (isinstance(module, DROPOUTS) and name == "p"):
            return None
        if brought and (name.startswith("_") or value is None):
            return None
        if _is_plain(value):
            return _plain(value)
        if isinstance(value, (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)):
            return self._function(module, name, value)
        if isinstance(value, (Tensor, types.SimpleNamespace)) or is_dataclass(value) or _holds_modules(value):
            return None if brought else definition(value, self.known)
        return None

    def _function(self, module: nn.Module, name: str, value: Any) -> str | None:
        """A function that hangs on a module, without the module that it may be bound to."""
        inner = innermost(value)
        if top_of(inner) in ("sinkscope", "accelerate") or inner is getattr(type(module), name, None):
            return None
        bound = isinstance(value, types.MethodType) and any(value.__self__ is each for each in self.known)
        return definition(inner if bound else value, self.known)


def _together(values: dict[str, str]) -> str:
    """One value for many places: the most frequent one, and the others by their places where there are any."""
    unknown = next((each for each in values.values() if isinstance(each, Unknown)), None)
    most = Counter(values.values()).most_common(1)[0][0]
    others = {place: value for place, value in values.items() if value != most}
    return unknown or (most if not others else json.dumps({"": most} | others))


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    many = value if isinstance(value, (list, tuple, set, frozenset)) else [value]
    return all(each is None or isinstance(each, PLAIN) for each in many)


def _plain(value: Any) -> str:
    """A plain value as words that are the same in every process."""
    if isinstance(value, Mapping):
        return str({str(name): _plain(held) for name, held in sorted(value.items(), key=str)})
    if isinstance(value, (set, frozenset)):
        return str(sorted(map(_plain, value)))
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_plain, value))}]"
    return value if isinstance(value, str) else repr(value)


def _holds_modules(value: Any) -> bool:
    held = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return any(isinstance(each, nn.Module) for each in held)
