"""What a process computes with: versions and precision, and what somebody put in the place of a library's code.

Nothing of it is in a model, and so nothing of it travels with one to another process.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

import sinkscope
from sinkscope.definition import definition, is_found, library_of
from sinkscope.errors import SinkscopeError
from sinkscope.hf.attention import own_functions
from sinkscope.models.hooks import HOOKS, innermost, told_hooks, top_of

HOMES = ("torch", "torch.nn.functional")  # whose functions are looked at whatever the model is
COARSE = {"bf16": 2.0**-7, "medium": 2.0**-7, "tf32": 2.0**-10, "high": 2.0**-10}


def machine(device: str) -> dict[str, str]:
    """At what precision and with which versions a kind of device ("cpu", "cuda") computes now."""
    is_on = device != "meta" and torch.is_autocast_enabled(device)
    autocast = torch.get_autocast_dtype(device) if is_on else "off"
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


def coarseness(device: str) -> float:
    """The machine epsilon of what a kind of device multiplies float32 matrices in; 0 where that is float32 itself."""
    told = machine(device)
    by_precision = COARSE.get(told["precision of matrix products"], 0.0)
    by_autocast = 0.0 if told["autocast"] == "off" else torch.finfo(getattr(torch, told["autocast"])).eps
    return max(by_precision, by_autocast)


def surroundings() -> dict[str, str]:
    """What of this process is in no model and changes its numbers, by name: equal in two that compute alike.

    Libraries are told only where somebody changed them, so that it does not matter which parts of them are imported,
    nor which versions: they are in the identity of a model.
    """
    settings = ("precision of matrix products", "autocast", "default dtype")
    told = {f"{name} ({device})": machine(device)[name] for device in ("cpu", "cuda") for name in settings}
    told |= {name: definition(function) for name, function in own_functions().items()}
    return told | hooks_on_every_module() | replaced(_below(nn.Module))


def hooks_on_every_module(known: Sequence[Any] = ()) -> dict[str, str]:
    """The hooks that torch calls for every module there is."""
    told = {kind: told_hooks(getattr(torch_module, f"_global{name}"), known) for kind, name in HOOKS.items()}
    return {f"{kind} on every module": hooks for kind, hooks in told.items() if hooks}


def replaced(classes: Iterable[type], known: Sequence[Any] = ()) -> dict[str, str]:
    """Methods of library classes, of tensors, and functions of their modules, in whose place another was put."""
    own = {base for base in classes if top_of(base) in ("torch", "transformers")} | {Tensor}
    held: list[tuple[str, Mapping[str, Any], bool]] = [
        (base.__qualname__, vars(base), base is Tensor)
        for base in sorted(own, key=lambda each: f"{each.__module__}.{each.__qualname__}")
    ]
    homes = {base.__module__ for base in own if top_of(base) == "transformers"} & sys.modules.keys()
    held += [(home, vars(sys.modules[home]), home in HOMES) for home in sorted(homes | {*HOMES})]
    return {
        f"{owner}.{name}": definition(value, known)
        for owner, members, is_torch in held
        for name, value in list(members.items())
        if _is_other(name, value, is_torch)
    }


def _is_other(name: str, value: Any, is_torch: bool) -> bool:
    """Whether this is not what a library has under the name: what is somebody's own; in torch also another of its."""
    inner = innermost(value)
    if isinstance(inner, types.FunctionType) and not library_of(inner.__globals__.get("__name__")):
        return True
    if isinstance(inner, (type, types.ModuleType)) or not callable(inner) or not is_torch or name.startswith("_"):
        return False
    if isinstance(inner, (types.FunctionType, types.BuiltinFunctionType)):
        named = str(getattr(inner, "__name__", name))
        return isinstance(value, functools.partial) or named.replace("_", "") != name.replace("_", "")
    return not library_of(type(inner).__module__)


def _below(kind: Any) -> Iterator[type]:
    """The classes made of another that stand in a module; not those that a compiler made of one model."""
    for each in kind.__subclasses__():
        if is_found(each, each.__module__):
            yield each
        yield from _below(each)


def check_surroundings(here: Mapping[str, str]) -> None:
    """Raise SinkscopeError where this process computes with other things than that whose surroundings are `here`."""
    now = surroundings()
    differ = [name for name in (*here, *(now.keys() - here.keys())) if here.get(name) != now.get(name)]
    if differ:
        more = f", and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise SinkscopeError(
            f"what this process changed for all models is not so in its workers: {', '.join(differ[:3])}{more}; run "
            "with n_jobs=1, or change it in a module that workers import too."
        )
