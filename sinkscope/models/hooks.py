"""What is hung on modules, as words: hooks that act by their code, those that only look by nothing else."""

from __future__ import annotations

import builtins
import dis
import functools
import types
from collections import deque
from collections.abc import Mapping, Sequence
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sinkscope.definition import Unknown, codes, definition, mentioned

OURS = ("sinkscope", "transformers", "accelerate")  # hooks and functions of theirs hand on the same numbers
HOOKS = {"forward hook": "_forward_hooks", "forward pre-hook": "_forward_pre_hooks"}
PLAIN = (bool, int, float, complex, str, bytes, torch.dtype)
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


def told_hooks(hooks: Mapping[int, Any], known: Sequence[Any] = ()) -> str:
    """The hooks of the user's own, in the order in which they run; empty without any.

    What they use that is `known` is told elsewhere.
    """
    own = [hook for hook in hooks.values() if top_of(innermost(hook)) not in OURS]
    told = [definition(_code_of(hook) if _only_looks(hook) else hook, known) for hook in own]
    return next((each for each in told if isinstance(each, Unknown)), ", ".join(told))


def innermost(function: Any) -> Any:
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
    inner = innermost(hook)
    return getattr(inner if isinstance(inner, types.FunctionType) else type(inner).__call__, "__code__", None)


def _only_looks(hook: Any) -> bool:
    """Whether the code of a hook gives nothing back and changes nothing but what is its own: it counts or collects.

    What such a hook has seen so far is no part of who a model is. Where the code does not show it, it is held to act:
    when it mentions anything but `LOOKING` and plain data of its own, or writes anywhere but there.
    """
    code, owner = _code_of(hook), hook.__self__ if isinstance(hook, types.MethodType) else hook
    inner = innermost(hook)
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


def top_of(thing: Any) -> str:
    """The library of a class, of a function's code or of an object that can be called."""
    told = getattr(thing, "__globals__", {}).get("__name__") or getattr(thing, "__module__", None)
    module = told or type(thing).__module__
    return str(module).partition(".")[0]
