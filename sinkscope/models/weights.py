"""A hash of a model's weights: by it a cache or a checkpoint knows the model that it was made with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinkscope.definition import Unknown, definition
from sinkscope.errors import SinkscopeError
from sinkscope.hf.models import core, is_foreign
from sinkscope.hf.placement import own_state
from sinkscope.models.rotary import changes_with_length
from sinkscope.models.trial import check_module, check_weights

PIECE = 1 << 21  # bytes added up at once: they stay in a processor's cache


def weights_hash(model: nn.Module) -> str:
    """A hash that changes with any weight, and with its place.

    It sees what modules keep as parameters, as buffers, or packed; and of adapters also their settings, such as which
    is active and its scale. It is the same wherever the weights are kept, for a compiled model and for one inside a
    trainer's wrapper. `Unknown` where a tensor of another class says in no words how it is made.

    Raises:
        SinkscopeError: there are no weights, or some cannot be read.
    """
    check_module(model)
    digest, inner, adapts = hashlib.sha256(), core(model), changes_with_length(model)
    parts = set(inner.modules())
    named = list(inner.named_modules())
    named += [(f"around {name}", module) for name, module in model.named_modules() if module not in parts]
    for name, module in named:
        try:
            state = own_state(module)
        except KeyError:
            check_weights(model)  # says what accelerate has lost
            raise
        if adapts:  # the frequencies in use follow the last text
            state = {own: value for own, value in state.items() if f"original_{own}" not in state}
        for kind, kept in (("weights", state), ("setting", settings(module))):
            for path, value in _leaves(kept, name):
                if isinstance(value, Unknown):
                    return value
                digest.update(f"{kind} {path} ".encode())
                digest.update(_digest(value, path) if isinstance(value, Tensor) else repr(value).encode())
    return digest.hexdigest()


def settings(module: nn.Module) -> dict[str, Any]:
    """Numbers, words and choices by which a module that neither torch nor transformers brings acts beside its weights.

    Whole numbers are left out: they are sizes, which the weights have too, or count what runs.
    """
    if not is_foreign(module):
        return {}
    plain = {name: value for name, value in vars(module).items() if name != "training"}
    return {name: value for name, value in plain.items() if _is_setting(value)}


def _is_setting(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    many = value if isinstance(value, (list, tuple, set)) else [value]
    return all(isinstance(each, (bool, float, str)) for each in many)


def _leaves(kept: Any, path: str) -> Iterator[tuple[str, Any]]:
    """What is inside nested containers, by its path: tensors and plain values."""
    if isinstance(kept, Mapping):
        for name in sorted(kept, key=str):
            yield from _leaves(kept[name], f"{path}.{name}")
    elif isinstance(kept, (list, tuple)):
        for place, each in enumerate(kept):
            yield from _leaves(each, f"{path}.{place}")
    elif isinstance(kept, Tensor) and kept.is_quantized:
        yield from ((f"{path}.bits", kept.int_repr()), (f"{path}.values", kept.dequantize()))
    elif hasattr(kept, "__tensor_flatten__"):  # a tensor made of others, and of what says how
        names, how = kept.__tensor_flatten__()
        for name in names:
            yield from _leaves(getattr(kept, name), f"{path}.{name}")
        yield f"{path} is made", definition(how)
    elif isinstance(kept, (Tensor, bool, int, float, str, bytes, torch.dtype)):
        yield path, kept


def _digest(values: Tensor, path: str) -> bytes:
    """Shape, dtype and sums of the bits of a tensor, made where it is."""
    if values.device.type == "meta":
        raise SinkscopeError(
            f"the weights {path.strip('.')} are on torch's meta device, which holds no numbers; load them, as "
            "from_pretrained does."
        )
    kept = f"{tuple(values.shape)} {values.dtype}".encode()
    if not values.numel():
        return kept
    pieces = values.detach().contiguous().flatten().view(torch.uint8).split(PIECE)
    factors = _factors().to(values.device)
    return kept + torch.stack([_sums(piece, factors) for piece in pieces]).cpu().numpy().tobytes()


@cache
def _factors() -> Tensor:
    """Odd numbers of 64 bits, one for each place."""
    spread = torch.arange(1, PIECE // 8 + 1) * 0x1E3779B97F4A7C15
    spread = (spread ^ (spread >> 29)) * 0x2545F4914F6CDD1D
    return (spread ^ (spread >> 32)) | 1


def _sums(piece: Tensor, factors: Tensor) -> Tensor:
    """Two sums of the words of 64 bits, each by its factor; the second of their upper halves, which the first loses.

    Whole numbers wrap, so that the order of adding does not matter, and hence no device.
    """
    words = F.pad(piece, (0, -len(piece) % 8)).view(torch.int64)
    factors = factors[: len(words)]
    return torch.stack([(words * factors).sum(), ((words >> 32) * factors).sum()])
