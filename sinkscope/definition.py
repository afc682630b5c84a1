"""What the numbers of a class from outside the package follow from, as one text: its code and all that its code reads.

Told are functions with their defaults, closures and the module-level names they read, classes with the members of all
their bases, tensors by their content, and other objects as they would be pickled. What is part of Python or of an
installed library is told by its name and the library's version. What cannot be told is said to be unknown, so that no
run is taken up again with another definition.
"""

from __future__ import annotations

import copyreg
import dis
import functools
import hashlib
import importlib
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinkscope.errors import SinkscopeError

PLAIN = (type(None), bool, int, float, complex, str, bytes, range, type(Ellipsis), type(NotImplemented))
BUILT_IN = (
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
    types.ClassMethodDescriptorType,
)
UNSEEN = ("open", "eval", "exec", "globals", "input", "compile", "__import__")  # what they give is in no code
READING = {  # names in libraries by which code of one's own gets what no code says
    *("load_file", "loadtxt", "genfromtxt", "fromfile", "memmap", "open_dataset", "read_text", "read_bytes"),
    *("read_csv", "read_json", "read_parquet", "environ", "getenv", "from_pretrained", "urlopen"),
}
OPENING = {"load", "open"}  # the same, where a module that the code reads has them; else they may be its own
MADE = {  # by Python for every class, from members that are told themselves
    *("__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__abstractmethods__", "_abc_impl"),
    *("__dataclass_fields__", "__dataclass_params__", "__match_args__", "__parameters__", "__orig_bases__"),
    *(
        "__slotnames__",
        "__firstlineno__",
        "__static_attributes__",
        "__annotate__",
        "__annotate_func__",
        "__annotations_cache__",
    ),
}


class Unknown(str):
    """A definition that cannot be told, with the reason."""


class _Untold(Exception):
    """Something in a definition that cannot be told."""


def definition(value: Any, known: Sequence[Any] = ()) -> str:
    """A hash of a definition; `Unknown` where there is something in it that cannot be told.

    What is `known` is told elsewhere already, and here by its place alone.
    """
    try:
        met = {id(each): (-1 - place, each) for place, each in enumerate(known)}
        return hashlib.sha256(_Telling(met).tell(value).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    except _Untold as problem:
        return Unknown(problem)
    except Exception as problem:  # a class of one's own may raise anything while it is looked at
        return Unknown(f"something that raises {type(problem).__name__} when it is looked at")


def check_resumable(settings: Mapping[str, Any], what: str = "a run cannot be kept and resumed") -> None:
    """Raise SinkscopeError when what has these settings cannot be told from others, and no file may stand for it."""
    for name, told in settings.items():
        if isinstance(told, Unknown):
            slot = name.removesuffix("_definition")
            off = "take it off the model (`remove()` of its handle), " if "hook" in name else ""
            raise SinkscopeError(
                f"{what} with {repr(settings.get(slot)) if slot != name else f'the {name}'}: it uses {told}, which may "
                f"be another one the next time; {off}keep nothing on disk (no checkpoint=, no folder=), or let it use "
                "values, tensors and functions."
            )


def is_found(given: Any, module: Any) -> bool:
    """Whether a class or function is what its module has under its name."""
    found: Any = sys.modules.get(module) if isinstance(module, str) else None
    for name in given.__qualname__.split("."):
        found = getattr(found, "__dict__", {}).get(name)
    return found is given


def library_of(module: Any) -> str:
    """The library that a module belongs to, with its version; empty for code that may change from run to run."""
    top = module.partition(".")[0] if isinstance(module, str) else ""
    if top in sys.stdlib_module_names or top == "sinkscope":
        return top
    found = sys.modules.get(top)
    places = [getattr(found, "__file__", None) or "", *map(str, getattr(found, "__path__", []))]
    installed = any(kind in place for place in places for kind in ("site-packages", "dist-packages"))
    return f"{top} {getattr(found, '__version__', '')}" if installed else ""


class _Telling:
    """One walk through a definition, which tells each class, function and object once."""

    def __init__(self, met: dict[int, tuple[int, Any]] | None = None) -> None:
        self.met = met or {}
        self.names: frozenset[str] = frozenset()  # which the code being told mentions

    def tell(self, value: Any) -> str:
        if type(value) in PLAIN:
            return f"{type(value).__name__} {value!r}"
        if type(value) in (tuple, list):
            return f"{type(value).__name__}[{', '.join(map(self.tell, value))}]"
        if type(value) in (dict, types.MappingProxyType):
            return f"{{{', '.join(f'{self.tell(key)}: {self.tell(held)}' for key, held in value.items())}}}"
        if type(value) in (set, frozenset):
            return f"set[{', '.join(sorted(_Telling(dict(self.met)).tell(each) for each in value))}]"
        if isinstance(value, (Tensor, np.ndarray, np.generic)):
            return self._objects(np.asarray(value)) if _is_of_objects(value) else _numbers(value)
        if isinstance(value, BUILT_IN):
            return f"{type(value).__name__} {value.__qualname__}"
        if isinstance(value, types.CodeType):
            return self._code(value)
        if id(value) in self.met:
            return f"#{self.met[id(value)][0]}"
        self.met[id(value)] = len(self.met), value
        if isinstance(value, types.ModuleType):
            return self._module(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        return self._object(value)

    def _objects(self, value: np.ndarray) -> str:
        return f"{value.shape} {self.tell(value.tolist())}"

    def _module(self, module: types.ModuleType) -> str:
        if library := library_of(module.__name__):
            return f"module {module.__name__} of {library}"
        held, names = vars(module), sorted(self.names & vars(module).keys())
        told = f"module {module.__name__} {', '.join(f'{name}={self.tell(held[name])}' for name in names)}"
        del self.met[id(module)]  # other code mentions other names of it
        return told

    def _class(self, cls: type) -> str:
        library, is_compiled = library_of(cls.__module__), not cls.__flags__ & 1 << 9  # Py_TPFLAGS_HEAPTYPE
        if is_compiled or (library and is_found(cls, cls.__module__)):
            return f"class {cls.__module__}.{cls.__qualname__} of {library}"
        members = [(name, member) for name, member in sorted(vars(cls).items()) if name not in MADE]
        told = [f"{name}={self.tell(member)}" for name, member in members]
        return f"class {cls.__qualname__} {self.tell(type(cls))} {self.tell(cls.__bases__)} {'; '.join(told)}"

    def _function(self, function: types.FunctionType) -> str:
        module = function.__globals__.get("__name__")
        known = getattr(sys.modules.get(module or ""), "__dict__", None) is function.__globals__
        library = library_of(module) if known and not function.__code__.co_filename.startswith("<") else ""
        if library and is_found(function, module):
            return f"function {module}.{function.__qualname__} of {library}"
        parts = [function.__defaults__, function.__kwdefaults__, vars(function)]
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # one that is empty yet
                parts.append(cell.cell_contents)
        before, self.names = self.names, self.names | frozenset(mentioned(function.__code__))
        if not library:
            values, names = list(self._read(function)), set(mentioned(function.__code__))
            modules = [each for each in values if isinstance(each, types.ModuleType)]
            opened = {name for name in OPENING & names if any(hasattr(each, name) for each in modules)}
            if read := sorted(READING & names | opened):
                raise _Untold(f"`{read[0]}`, whose result is in no code")
            parts += values
        told = f"function {function.__qualname__} {library or self._code(function.__code__)} {self.tell(parts)}"
        self.names = before
        return told

    def _read(self, function: types.FunctionType) -> Iterator[Any]:
        """The values that a function reads from its module, and those it imports."""
        held = function.__globals__
        for kind, name in sorted(set(_global_names(function.__code__))):
            if kind == "import":
                package = held.get("__package__") or ""
                for full in filter(None, (name, f"{package}.{name}".strip(".") if package else "")):
                    with suppress(Exception):
                        yield importlib.import_module(full)
            elif name in held:
                yield name
                yield held[name]
            elif name in UNSEEN:
                raise _Untold(f"`{name}()`, whose result is in no code")

    def _code(self, code: types.CodeType) -> str:
        counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
        consts = ", ".join(map(self.tell, code.co_consts))
        return f"{counts} {code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars} ({consts})"

    def _object(self, value: Any) -> str:
        kind = self.tell(type(value))
        if isinstance(value, property):
            parts: Any = (value.fget, value.fset)
        elif isinstance(value, (staticmethod, classmethod)):
            parts = value.__func__
        elif isinstance(value, functools.cached_property):
            parts = value.func
        elif isinstance(value, functools._lru_cache_wrapper):
            parts = value.__wrapped__
        elif isinstance(value, types.MethodType):
            parts = (value.__func__, value.__self__)
        elif isinstance(value, types.BuiltinFunctionType):
            whose = value.__self__
            parts = (value.__qualname__, None if isinstance(whose, types.ModuleType) else whose)
        elif hasattr(type(value), "definition") and hasattr(type(value), "settings"):  # one that can be placed
            parts = value.settings
        else:
            parts = _pickled(value)
        return f"{kind} {self.tell(parts)}"


def _pickled(value: Any) -> Any:
    """What an object would be made of again: its class, arguments, state and items."""
    try:
        registered = copyreg.dispatch_table.get(type(value))
        reduced = registered(value) if registered else value.__reduce_ex__(4)
    except Exception as problem:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise _Untold(f"a {kind}, whose values cannot be read") from problem
    if isinstance(reduced, str):
        return getattr(value, "__module__", None), reduced
    made, arguments, state, items, entries = (*reduced, None, None, None)[:5]
    if isinstance(state, dict):  # without what follows from the rest
        kept = functools.cached_property
        state = {name: held for name, held in state.items() if not isinstance(getattr(type(value), name, None), kept)}
    return [made, arguments, state, list(items or ()), list(entries or ())]


def _is_of_objects(value: Any) -> bool:
    return not isinstance(value, Tensor) and value.dtype.hasobject


def _numbers(value: Any) -> str:
    """The numbers of a tensor or an array, to the bit."""
    if isinstance(value, Tensor):
        if value.is_meta:
            raise _Untold("a tensor without numbers")
        shape = tuple(value.shape)
        whole = value.detach().to_dense() if value.layout != torch.strided else value.detach()
        bits = whole.cpu().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8).numpy()
        return f"{value.dtype} {shape} {hashlib.sha256(bits.tobytes()).hexdigest()}"
    return f"{value.dtype} {value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code and those of the functions within it."""
    yield code
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from codes(each)


def mentioned(code: types.CodeType) -> Iterator[str]:
    for each in codes(code):
        yield from each.co_names


def _global_names(code: types.CodeType) -> Iterator[tuple[str, str]]:
    for each in codes(code):
        for step in dis.get_instructions(each):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                yield "global", step.argval
            elif step.opname == "IMPORT_NAME" and step.argval:
                yield "import", step.argval
