"""What an attention module does with the outputs of its heads: the gate on them, and W_O that mixes them.

Both are found by trial, in any family. Each attention module of the model is handed outputs of known numbers, in one
text twice as large as in the other, and itself hands on nothing, so that both texts are alike everywhere else. The
first module inside it that reads numbers of which one half is twice the other, to the bit, is W_O if it is linear, and
these numbers over those handed in are the gate.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sinkscope.attention.layer import Layer
from sinkscope.errors import SinkscopeError
from sinkscope.hf.attention import AttentionCall
from sinkscope.hf.models import input_embeddings
from sinkscope.hf.placement import reading_device
from sinkscope.models.facts import Anatomy
from sinkscope.probes import Probe
from sinkscope.scope.interface import TRIED
from sinkscope.undo import Undo

TOKENS = 4
CLOSE = 1e-2  # of what is linear, in bfloat16 too; a norm is off by half
SCALED = 0.1  # of what was multiplied by the gates of one text, made twice: in bfloat16 they differ by some per cent


@dataclass(frozen=True)
class Mixing:
    """What follows on the heads of one attention module."""

    module: nn.Module  # W_O
    factor: float  # a constant that their outputs are multiplied by before it
    is_gated: bool
    rows: Tensor | None  # W_O [width, head and dim], where it is no plain linear module

    def beside(self, layer: Layer, mixed: Tensor | None) -> Layer:
        """A layer with its projection, and with its gate where W_O read `mixed` [.., head and dim]."""
        output = layer.output
        if output is None:
            return layer
        weight: Any = self.module.weight if self.rows is None else self.rows
        projection = weight.detach().unflatten(1, (layer.heads, output.shape[-1])).transpose(0, 1) * self.factor
        if mixed is None or not self.is_gated:
            return replace(layer, projection=projection)
        batch, heads, rows, dim = output.shape
        mixed = mixed.reshape(batch, rows, heads, dim).transpose(1, 2)
        is_told = output.abs() > 16 * torch.finfo(output.dtype).tiny  # below, a quotient would have too few digits
        gate = torch.where(is_told, mixed.float() / output.float(), torch.nan)
        return replace(layer, projection=projection, gate=gate)


class _Sigmoids(TorchFunctionMode):
    """Notes in which attention module a sigmoid runs."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: nn.Module | None = None
        self.found: set[nn.Module] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.inside is not None and getattr(func, "__name__", "").rstrip("_") == "sigmoid":
            self.found.add(self.inside)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def find_mixing(anatomy: Anatomy, asking: Sequence[Probe]) -> dict[nn.Module, Mixing]:
    """The mixing of each attention module of a model whose attention is the scope's, by one run over a few tokens.

    Raises:
        SinkscopeError: there is no W_O, or no gate, and a probe asks for one.
    """
    handed: dict[nn.Module, Tensor] = {}
    read: dict[nn.Module, tuple[nn.Module, Tensor]] = {}
    sigmoids, base = _Sigmoids(), anatomy.base

    def hand(call: AttentionCall) -> Tensor:
        heads, dim, rows = call.query.shape[1], call.value.shape[-1], call.query.shape[2]
        numbers = 1 + torch.arange(heads * dim, device=call.value.device) * 37 % 251  # which bfloat16 holds exactly
        one = numbers.to(call.value.dtype).view(1, heads, 1, dim).expand(1, -1, rows, -1)
        handed[call.module] = one[0].transpose(0, 1).flatten(1)  # [query, head and dim]
        return torch.cat([one, 2 * one])

    def look(attention: nn.Module) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            known = handed.get(attention)
            states = args[0] if args and isinstance(args[0], Tensor) else None
            if known is None or states is None or attention in read or states.numel() != 2 * known.numel():
                return
            one, two = states.reshape(2, -1)
            if bool(one.any()) and torch.allclose(2 * one, two, rtol=SCALED, atol=0):
                read[attention] = module, one.view_as(known)

        return before

    def enter(module: nn.Module, args: Any) -> None:
        sigmoids.inside = module

    def hand_nothing(module: nn.Module, args: Any, output: Any) -> Any:
        sigmoids.inside = None
        if isinstance(output, tuple):
            return torch.zeros_like(output[0]), *output[1:]
        return torch.zeros_like(output)

    size = getattr(input_embeddings(base), "num_embeddings", TOKENS)
    ids = torch.arange(TOKENS, device=reading_device(base)) % size
    accepted = inspect.signature(base.forward).parameters
    with Undo() as undo:
        for part in anatomy.parts:
            undo.callback(TRIED.pop, part.attention, None)
            TRIED[part.attention] = hand
            undo.hang(part.attention, enter, before=True)
            for module in part.attention.modules():
                if module is not part.attention:
                    undo.hang(module, look(part.attention), before=True)
            undo.hang(part.attention, hand_nothing)
        with sigmoids:
            base(input_ids=ids.expand(2, -1), **({"use_cache": False} if "use_cache" in accepted else {}))
    found = {}
    for part in anatomy.parts:
        if part.attention not in handed:  # it does not run on a text this short
            continue
        mixing = _mixing(read.get(part.attention), handed[part.attention], part.attention in sigmoids.found)
        if mixing is None:
            raise SinkscopeError(
                f"{asking[0]!r} asks for W_O, and {type(part.attention).__name__} does not hand the outputs of its "
                "heads to a linear module inside it as they are, or times a gate; leave the probe out."
            )
        found[part.attention] = mixing
    if not any(mixing.is_gated for mixing in found.values()):
        for probe in asking:
            if probe.needs == "gate":
                raise SinkscopeError(
                    f"{probe!r} asks for gates, and {type(base).__name__} multiplies no output of its heads by one; "
                    "leave the probe out."
                )
    return found


def _mixing(read: tuple[nn.Module, Tensor] | None, handed: Tensor, has_sigmoid: bool) -> Mixing | None:
    """What a module is that read some numbers [query, head and dim] where heads handed on others; None for no W_O."""
    if read is None:
        return None
    module, states = read
    factors = states.float() / handed.float()
    varies = bool(((factors - factors[:1]).abs() > 1e-6 * factors[:1].abs()).any())
    is_even = bool((factors == factors[0, 0]).all())
    is_one = is_even and float(factors[0, 0]) == 1
    is_gated = bool((factors >= 0).all()) and (varies or (has_sigmoid and bool((factors <= 1).all()) and not is_one))
    if not is_gated and not is_even:
        return None
    factor = 1.0 if is_gated else float(factors[0, 0])
    weight = getattr(module, "weight", None)
    if type(module) is nn.Linear and isinstance(weight, Tensor) and weight.device.type != "meta":
        return Mixing(module, factor, is_gated, None)
    inputs = torch.randn(3, states.shape[-1], generator=torch.Generator().manual_seed(0)).to(states)
    inputs[0], inputs[2] = 0, 2 * inputs[1]
    made = module(inputs)
    if not isinstance(made, Tensor) or made.shape[:-1] != (3,):
        return None
    once, twice = (made[row].float() - made[0].float() for row in (1, 2))
    if not torch.allclose(twice, 2 * once, rtol=CLOSE, atol=CLOSE * float(once.abs().max())):
        return None
    units = torch.eye(states.shape[-1], dtype=states.dtype, device=states.device)
    return Mixing(module, factor, is_gated, (module(units).float() - made[0].float()).T.contiguous())
