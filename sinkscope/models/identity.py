"""Who a model is: everything that determines its numbers, as words.

By it a checkpoint, a cell, a saved cache or a sweep knows the model that it was made with, and says what differs: the
configuration, the modules and the plain values that they hold, the weights, what was hung on or put in the place of a
part, the attention in use, the precision of the machine and the versions of what runs it. Where the weights are kept,
what the model is called and what acts in training alone is left out, and so are the wrappers of a compiler or trainer.

What is the user's own (a hook, a forward method, a class) is told by its code and all that it reads. Where that cannot
be told the entry is `Unknown`, and `check_resumable` refuses to keep anything on disk.
"""

from __future__ import annotations

import builtins
import dis
import functools
import json
import re
import sys
import types
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from importlib.metadata import version
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

import sinkscope
from sinkscope.definition import Unknown, codes, definition, is_found, library_of, mentioned
from sinkscope.hf.configuration import PLACES, SILENT, attention_functions, configuration
from sinkscope.hf.models import core, is_foreign
from sinkscope.hf.placement import reading_device
from sinkscope.models.rotary import changes_with_length
from sinkscope.models.trial import DROPOUTS, check_module
from sinkscope.models.weights import weights_hash

OURS = ("sinkscope", "transformers", "accelerate")  # hooks and functions of theirs hand on the same numbers
HOOKS = {"forward hook": "_forward_hooks", "forward pre-hook": "_forward_pre_hooks"}
NONE = "not there"
PLAIN = (bool, int, float, complex, str, bytes, torch.dtype)
OF_A_MODULE = {*vars(nn.Module()), "_hf_hook", "_old_forward", "_is_hf_initialized", "_compiled_call_impl"}
HASHES = {"weights": "it has other weights or buffers", "text": "the text is another"}  # whose values say nothing
HASHED = re.compile(r"[0-9a-f]{16}(, [0-9a-f]{16})*")
SHOWN = 3  # differences in a message
LONGEST = 60  # letters of a value in it
LOOKING = {  # what a hook may call that only looks; in the place of a module these would be plain functions of torch
    *(
        "print",
        "len",
        "range",
        "enumerate",
        "zip",
        "isinstance",
        "hasattr",
        "int",
        "str",
        "bool",
        "tuple",
        "list",
        "type",
    ),
    *("append", "extend", "add", "get", "items", "keys", "values", "time", "perf_counter", "monotonic", "no_grad"),
    *("detach", "clone", "cpu", "cuda", "to", "float", "double", "half", "bfloat16", "numpy", "item", "tolist"),
    *("mean", "sum", "norm", "abs", "max", "min", "amax", "amin", "std", "var", "argmax", "argmin", "topk", "isnan"),
    *("shape", "size", "dtype", "device", "ndim", "dim", "numel", "Tensor", "is_tensor", "is_complex", "round"),
    *("isfinite", "all", "any", "reshape", "flatten", "squeeze", "unsqueeze", "last_hidden_state", "logits"),
}


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
    told = {"model": type(core(model)).__name__}
    told |= {f"config.{name}": _plain(value) for name, value in configuration(model).items()}
    told |= {"dtype": ", ".join(sorted({str(each.dtype)[6:] for each in model.parameters()}))}
    told |= _Modules(model).told()
    told |= _attending(model)
    return told | {"weights": weights_hash(model)}


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
        own = function is not None and _top(function) not in OURS
        told[name] = used
        if own:
            told[f"{name} function"] = definition(function)
    return told | machine(reading_device(model).type)


def machine(device: str) -> dict[str, str]:
    """At what precision and with which versions a kind of device ("cpu", "cuda") computes now."""
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else "off"
    return {
        "device": device,
        "precision of matrix products": _precision(device),
        "autocast": str(autocast).removeprefix("torch."),
        "default dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "torch": str(torch.__version__),
        "transformers": version("transformers"),
        "sinkscope": sinkscope.__version__,
    }


def _precision(device: str) -> str:
    """What float32 is multiplied in, by torch's own name; releases before 2.9 have one word for all devices."""
    place = torch.backends.cuda.matmul if device == "cuda" else getattr(torch.backends.mkldnn, "matmul", None)
    word = getattr(place, "fp32_precision", None)
    return str(torch.get_float32_matmul_precision() if word is None else word).replace("none", "ieee")


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
        for kind, name in HOOKS.items():
            if hooks := self._hooks(getattr(torch_module, f"_global{name}")):
                told[f"{kind} on every module"] = hooks
        return told | self._replaced()

    def _values(self, path: str, module: nn.Module) -> Iterator[tuple[str, str]]:
        """What is told of one module, by names in which {} stands for its path."""
        if not (path.startswith("around.") and _top(type(module)) == "torch"):  # a compiler's or trainer's wrapper
            yield "module {}", self._kind(type(module))
            for name, value in vars(module).items():
                if name not in OF_A_MODULE and (told := self._attribute(module, name, value)) is not None:
                    yield f"module {{}}.{name}", told
        for kind, name in HOOKS.items():
            if hooks := self._hooks(getattr(module, name)):
                yield f"{kind} on {{}}", hooks
        around = getattr(module, "_hf_hook", None)
        for hook in getattr(around, "hooks", [around]):
            if hook is not None and _top(type(hook)) not in OURS:
                yield "hook of accelerate on {}", definition(hook, self.known)
        if before := vars(module).get("_old_forward"):  # under accelerate's own
            told = self._attribute(module, "forward", before)
            yield from [] if told is None else [("module {}.forward", told)]

    def _kind(self, kind: type) -> str:
        """A class by its name where a library has it, and by its code too where it is the user's own."""
        name = f"{kind.__module__}.{kind.__qualname__}"
        if _top(kind) in ("torch", "transformers") and is_found(kind, kind.__module__):
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
        inner = _innermost(value)
        if _top(inner) in ("sinkscope", "accelerate") or inner is getattr(type(module), name, None):
            return None
        bound = isinstance(value, types.MethodType) and any(value.__self__ is each for each in self.known)
        return definition(inner if bound else value, self.known)

    def _hooks(self, hooks: Mapping[int, Any]) -> str:
        """The hooks of the user's own, in the order in which they run; empty without any."""
        own = [hook for hook in hooks.values() if _top(_innermost(hook)) not in OURS]
        told = [definition(_code_of(hook) if _only_looks(hook) else hook, self.known) for hook in own]
        return next((each for each in told if isinstance(each, Unknown)), ", ".join(told))

    def _replaced(self) -> dict[str, str]:
        """Methods of library classes, and functions of their modules, in whose place another was put."""
        told = {}
        classes = {base for module in self.named.values() for base in type(module).__mro__}
        for base in sorted(classes, key=lambda each: f"{each.__module__}.{each.__qualname__}"):
            if _top(base) not in ("torch", "transformers"):
                continue
            for name, member in vars(base).items():
                inner = _innermost(member)
                if isinstance(inner, types.FunctionType) and not _library(inner):
                    told[f"{base.__qualname__}.{name}"] = definition(inner, self.known)
        homes = {base.__module__ for base in classes if _top(base) == "transformers"}
        for home in sorted(homes | {"torch", "torch.nn.functional"}):
            for name, value in list(vars(sys.modules.get(home, torch)).items()):
                if isinstance(value, types.FunctionType) and not _library(value):
                    told[f"{home}.{name}"] = definition(value, self.known)
        return told


def _innermost(function: Any) -> Any:
    """The function inside partial ones, bound and static methods."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, (types.MethodType, staticmethod, classmethod)):
            function = function.__func__
        else:
            return function


def _code_of(hook: Any) -> types.CodeType | None:
    """The code that runs when a hook of Python is called."""
    inner = _innermost(hook)
    return getattr(inner if isinstance(inner, types.FunctionType) else type(inner).__call__, "__code__", None)


def _only_looks(hook: Any) -> bool:
    """Whether the code of a hook gives nothing back and changes nothing but what is its own: it counts or collects.

    What such a hook has seen so far is no part of who a model is. Where the code does not show it, it is held to act:
    when it mentions anything but `LOOKING` and plain data of its own, or writes anywhere but there.
    """
    code, owner = _code_of(hook), hook.__self__ if isinstance(hook, types.MethodType) else hook
    inner = _innermost(hook)
    if isinstance(hook, functools.partial) or isinstance(owner, nn.Module) or code is None:
        return False
    if code.co_flags & (CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR):
        return False
    function = inner if isinstance(inner, types.FunctionType) else type(inner).__call__
    held = [*(cell.cell_contents for cell in function.__closure__ or ()), *(function.__defaults__ or ())]
    mine, read = getattr(owner, "__dict__", {}), function.__globals__
    known = {**vars(builtins), **read, **mine}
    held += [known.get(name, print) for name in mentioned(code) if name not in LOOKING]
    held = [each for each in held if not (isinstance(each, type) and issubclass(each, BaseException))]  # that it raises
    if function.__kwdefaults__ or not all(map(_is_data, held)):
        return False  # what it calls, or what is not known here, may change what it is given
    me = code.co_varnames[0] if owner is not function else None
    for each in codes(code):
        if any(isinstance(const, tuple) and "out" in const for const in each.co_consts):  # an argument that is written
            return False
        steps = list(dis.get_instructions(each))
        for before, step in pairwise([steps[0], *steps]):
            if each is code and step.opname in ("RETURN_VALUE", "RETURN_CONST"):
                given = step if step.opname == "RETURN_CONST" else before
                if step.is_jump_target or not given.opname.endswith("_CONST") or given.argval is not None:
                    return False
            is_read = before.opname.startswith("LOAD_")
            if step.opname in ("COPY", "STORE_ATTR") and is_read and before.argval != me:
                return False
            if step.opname.startswith(("STORE_SUBSCR", "STORE_SLICE", "DELETE_", "STORE_GLOBAL")):
                return False
            if before.argrepr.endswith("=") and before.opname == "BINARY_OP" and step.opname.startswith("STORE_FAST"):
                return False  # a tensor would be changed in place
    return True


def _is_data(value: Any) -> bool:
    """Whether a value, or all in it, is plain: there is nothing in it that can be called."""
    if isinstance(value, Mapping):
        value = [*value.values()]
    if type(value) in (list, tuple, set, frozenset, deque):
        return all(map(_is_data, value))
    plain = (*PLAIN, type(None), Tensor, np.ndarray, np.generic, torch.device, types.ModuleType)
    return isinstance(value, plain) and not isinstance(value, nn.Parameter)


def _top(thing: Any) -> str:
    """The library of a class, of a function's code or of an object that can be called."""
    told = getattr(thing, "__globals__", {}).get("__name__") or getattr(thing, "__module__", None)
    module = told or type(thing).__module__
    return str(module).partition(".")[0]


def _library(function: types.FunctionType) -> str:
    return library_of(function.__globals__.get("__name__"))


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
