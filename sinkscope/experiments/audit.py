"""The audit: does what sinkscope says hold on every type of model that transformers knows?

Of each type a tiny model with random weights is built, and four things are compared with what the model does by itself:

- capture: attention maps with those of its own eager attention, and its logits inside a scope with those outside.
- perplexity: losses under `Dense` with those of one plain forward pass.
- streaming: losses under `Window` and `SinkWindow` with one token at a time on the model's own cache, whose entries are
  taken away by hand. Sinks are brought near by reading them again at later positions: nothing is rotated. Places are
  counted in the text where a model reads more from them than distances, such as the scale of its queries.
- cache: the logits of `SinkCache`, and what `generate` writes with it, with the same loop.
"""

from __future__ import annotations

import inspect
import traceback
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import sinkscope
from sinkscope.arguments import checks_types, several, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.hf.caches import growing_cache, growing_window, returned_cache, with_cache
from sinkscope.hf.models import quiet_transformers
from sinkscope.hf.tiny import causal_types, check_type, eager_twin, tiny_model
from sinkscope.models.facts import find_anatomy
from sinkscope.progress import progress_bar
from sinkscope.undo import Undo

TOKENS, SINKS, WINDOW, NEW = 40, 2, 14, 8
TOLERANCES = {"capture": 1e-4, "perplexity": 1e-5, "streaming": 1e-5, "cache": 1e-5}
"""Of each check the largest error that counts as right: of a probability; of a logit or loss beside the largest one."""

CHECKS = tuple(TOLERANCES)
VERDICTS = ("right", "refused", "wrong", "crash", "unchecked", "not built")


class Finding(NamedTuple):
    """What one check of one type found.

    Attributes:
        type: the type of the model, as transformers names it.
        model: its class.
        check: one of `CHECKS`.
        verdict: one of `VERDICTS`.
        error: the largest difference; NaN where nothing was compared.
        sentence: why something was refused or not checked, or where it crashed.
    """

    type: str
    model: str
    check: str
    verdict: str
    error: float
    sentence: str


class Unchecked(Exception):
    """The model offers nothing to compare with."""


@checks_types
def audit(types: str | Iterable[str] | None = None, *, workers: int = 1, progress: bool | None = None) -> pd.DataFrame:
    """Check tiny random models of every type of causal language model that transformers knows.

    >>> table = sinkscope.audit("gpt2")
    >>> sorted(table.verdict.unique())
    ['refused', 'right']

    Args:
        types: which, as transformers names them ("llama"), or variants ("llama+llama3"); all of them when None.
        workers: processes at the same time.
        progress: show a bar; after two seconds when None.

    Returns:
        Four rows for each type, in alphabetical order: `type`, `class`, `check`, `verdict`, `error` and `sentence`, as
        `Finding` describes them. `attrs` has the versions and the tolerance.

    Raises:
        SinkscopeError: no type, or one that transformers does not know; fewer than one worker.
    """
    workers, chosen = whole_number(workers, "workers", 1), checked_types(types)
    found: list[Finding] = []
    with progress_bar(len(chosen), "type", progress, desc="audit") as bar:
        for rows in Parallel(workers, return_as="generator")(delayed(audit_type)(name) for name in chosen):
            found += rows
            bar.update()
    table = pd.DataFrame(found, columns=Finding._fields).rename(columns={"model": "class"})
    table.attrs = {
        "sinkscope": sinkscope.__version__, "transformers": version("transformers"), "torch": version("torch"),
        "tolerance_maps": TOLERANCES["capture"], "tolerance": TOLERANCES["cache"],
        "tokens": TOKENS, "sinks": SINKS, "window": WINDOW,
    }  # fmt: skip
    return table


def checked_types(types: str | Iterable[str] | None) -> list[str]:
    """The types to check, in alphabetical order; SinkscopeError for none, or one that transformers does not know."""
    chosen = causal_types() if types is None else sorted({str(name) for name in several(types, "types")})
    if not chosen:
        raise SinkscopeError("types names no type of model: give one, such as 'llama', or None for all of them.")
    for name in chosen:
        check_type(name)
    return chosen


def audit_type(model_type: str) -> list[Finding]:
    """The findings for one type."""
    with quiet_transformers(), warnings.catch_warnings(action="ignore"):
        return _findings(model_type)


def _findings(model_type: str) -> list[Finding]:
    try:
        model = tiny_model(model_type)
    except SinkscopeError as error:
        return [Finding(model_type, "", check, "not built", float("nan"), str(error)) for check in CHECKS]
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 100, (2, TOKENS), generator=generator)
    loop = _Loop(model, ids)
    checks = {"capture": _capture, "perplexity": _perplexity, "streaming": _streaming, "cache": _cache}
    return [_finding(model_type, model, check, partial(run, model, ids, loop)) for check, run in checks.items()]


def _finding(model_type: str, model: nn.Module, check: str, run: Callable[[], float]) -> Finding:
    error, sentence = float("nan"), ""
    try:
        with torch.no_grad():
            error = run()
        verdict = "right" if error <= TOLERANCES[check] else "wrong"
    except SinkscopeError as refused:
        verdict, sentence = "refused", str(refused)
    except Unchecked as reason:
        verdict, sentence = "unchecked", str(reason)
    except Exception as crash:  # whatever the code of any type may raise
        place = traceback.extract_tb(crash.__traceback__)[-1]
        where = f"{place.filename.rpartition('/')[2]}:{place.lineno}"
        verdict, sentence = "crash", f"{type(crash).__name__}: {' '.join(str(crash).split())[:300]} ({where})"
    return Finding(model_type, type(model).__name__, check, verdict, error, sentence)


# --- the checks, each giving the largest error -----------------------------------------------------------------------


def _capture(model: nn.Module, ids: Tensor, loop: _Loop) -> float:
    outside = _logits(model(ids))
    with sinkscope.capture(model) as scope:
        inside = _logits(model(ids))
    if (moved := _relative(inside, outside)) > TOLERANCES["cache"]:
        return moved
    maps = [sinkscope.attention_maps(model, row) for row in ids]
    ours = torch.stack([torch.from_numpy(each.transpose("layer", ...).values) for each in maps], 1)
    known = ~ours.flatten(1).isnan().all(-1)
    ours, layers = ours[known], maps[0]["layer"].values[known.numpy()]
    own = _own_maps(model, ids, outside, layers)
    gap = max(_gap(a, b) for a, b in zip(ours, own, strict=True))
    mass = torch.from_numpy(scope.record["sink_mass"].transpose("layer", "sequence", ...).values)
    mass = mass[~mass.flatten(1).isnan().all(-1)]
    gap = max(gap, float((mass - ours[..., : mass.shape[-1]]).abs().max()))
    return max(gap, moved)


def _perplexity(model: nn.Module, ids: Tensor, loop: _Loop) -> float:
    plain = torch.stack([_losses(_logits(model(row[None]))[0], row) for row in ids])
    return _relative(_streamed(model, ids, sinkscope.Dense()), plain)


def _streaming(model: nn.Module, ids: Tensor, loop: _Loop) -> float:
    policies = {(0, WINDOW): sinkscope.Window(WINDOW), (SINKS, WINDOW): sinkscope.SinkWindow(SINKS, WINDOW)}
    streamed = {sizes: _streamed(model, ids, policy) for sizes, policy in policies.items()}
    return max(
        _relative(losses, torch.stack([_losses(rows, row) for rows, row in zip(loop.logits(*sizes), ids, strict=True)]))
        for sizes, losses in streamed.items()
    )


def _cache(model: Any, ids: Tensor, loop: _Loop) -> float:
    with sinkscope.SinkCache(model, sinks=SINKS, window=WINDOW) as cache:
        stepped = [_logits(model(ids[:, at : at + 1], **with_cache(model, cache)))[:, -1] for at in range(TOKENS)]
    reference = loop.logits(SINKS, WINDOW)
    error = _relative(torch.stack(stepped, 1), reference)
    with sinkscope.SinkCache(model, sinks=SINKS, window=WINDOW) as cache:
        written: Any = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False, **with_cache(model, cache)
        )
    chosen = reference[:, -1].gather(1, written[:, -1:])
    return max(error, _relative(chosen, reference[:, -1].amax(-1, keepdim=True)))


def _gap(ours: Tensor, own: Tensor) -> float:
    """The largest difference of maps.

    Some families leave the learned sink out of the maps that they show; others show keys that are no tokens behind the
    others; and where layers have more and fewer heads, the record is empty in what is not there.
    """
    ours, own = ours[:, : own.shape[1]], own[..., : ours.shape[-1]]
    if ours.shape != own.shape:
        return float("inf")
    shares = ours / ours.sum(-1, keepdim=True)
    return min(float((ours - own).abs().max()), float((shares - own).abs().max()))


def _streamed(model: nn.Module, ids: Tensor, policy: Any) -> Tensor:
    """Losses [sequence, token] in nats, by blocks that are no divisor of anything."""
    record = sinkscope.perplexity(model, list(ids), [policy], block=7, progress=False)
    return torch.from_numpy(record["nll"].isel(policy=0).values)[..., -(TOKENS - 1) :]


def _losses(logits: Tensor, ids: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits[:-1].float(), ids[1:], reduction="none")


def _logits(output: Any) -> Tensor:
    return (output[0] if isinstance(output, tuple) else output.logits).float()


def _relative(values: Tensor, expected: Tensor) -> float:
    """The largest difference, beside the largest value where that is above one."""
    gap = float((values - expected).abs().max())
    return gap / max(1.0, float(expected.abs().max())) if gap == gap else float("inf")


# --- what the model does by itself -----------------------------------------------------------------------------------


def _own_maps(model: Any, ids: Tensor, logits: Tensor, layers: np.ndarray) -> list[Tensor]:
    """Attention maps [sequence, head, query, key] of the softmax layers, by the model's own eager attention.

    Args:
        logits: of the model as it is.
        layers: the numbers of the layers to compare with.

    Raises:
        Unchecked: it shows other maps than of those layers, or gives other logits than the model does.
    """
    twin = eager_twin(model)
    with _SpiedSoftmax(ids.shape[1]) as spy:
        output = twin(ids, output_attentions=True)
    if (gap := _relative(_logits(output), logits)) > TOLERANCES["cache"]:
        raise Unchecked(f"the model's own eager attention gives other logits than the model does, by {gap:.1g}")
    given = output.get("attentions") if hasattr(output, "get") else None
    square = [maps for maps in given or () if isinstance(maps, Tensor) and maps.dim() == 4]
    if len(square) > layers.max(initial=0) >= len(layers):  # it shows one of every layer, those without a softmax too
        square = [square[layer] for layer in layers]
    maps = square if len(square) == len(layers) else spy.maps
    if len(maps) != len(layers):
        shown = len(square or spy.maps)
        raise Unchecked(f"the record has {len(layers)} layers, and the model itself shows {shown} attention maps")
    return [each.float() for each in maps]


class _SpiedSoftmax(TorchFunctionMode):
    """Collects what softmax gives, where it has the shape of attention maps."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.maps: list[Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        is_softmax = getattr(function, "__name__", "") == "softmax" and isinstance(result, Tensor)
        if is_softmax and result.dim() == 4 and result.shape[-2:] == (self.tokens, self.tokens):
            self.maps.append(result.detach())
        return result


class _Loop:
    """One token at a time on the model's own cache, with the entries taken away that a policy does not keep."""

    def __init__(self, model: nn.Module, ids: Tensor) -> None:
        self.model, self.ids = model, ids
        self._known: dict[tuple[int, int], Tensor] = {}
        forward = getattr(model, getattr(model, "base_model_prefix", ""), model).forward
        language: Any = model.forward
        with suppress(SinkscopeError):
            language = find_anatomy(model).base.forward  # those around it may hand on what they do not name
        accepted = {name for each in (forward, model.forward, language) for name in inspect.signature(each).parameters}
        self._takes_positions = "position_ids" in accepted

    def logits(self, sinks: int, window: int) -> Tensor:
        """[sequence, token, vocabulary], of a text of `TOKENS` tokens.

        Raises:
            Unchecked: the model gives no cache that entries can be taken from.
        """
        if (sinks, window) not in self._known:
            try:
                self._known[sinks, window] = self._run(sinks, window, tells=self._takes_positions)
            except RuntimeError:  # it makes its masks by what it is told
                self._known[sinks, window] = self._run(sinks, window, tells=False)
        return self._known[sinks, window]

    def _run(self, sinks: int, window: int, tells: bool) -> Tensor:
        cache, rows = self._empty(), []
        for at in range(self.ids.shape[1]):
            place = min(at, sinks + window)
            if at > place:
                self._bring_near(cache, sinks, at - place)
            output = self._read(self.ids[:, at : at + 1], cache, at)
            rows.append(_logits(output)[:, -1])
            cache = returned_cache(output)
            if not getattr(cache, "layers", None):
                raise Unchecked("the model gives back no cache with layers")
            for layer in self._full(cache):
                if layer.keys.shape[-2] > sinks + window:
                    for slot in ("keys", "values"):
                        held = getattr(layer, slot)
                        setattr(layer, slot, torch.cat([held[..., :sinks, :], held[..., -window:, :]], -2))
            if tells:  # how many tokens were read, by which some count their places, and not by what is held
                cache.get_query_offset = partial(self._held, cache)
                cache.get_seq_length = partial(self._seen, at + 1)
        return torch.stack(rows, 1)

    def _held(self, cache: Any, layer: int = 0) -> int:
        """Tokens whose keys a layer of a cache holds."""
        return int(cache.layers[layer].get_seq_length())

    def _seen(self, count: int, layer: int = 0) -> int:
        """Tokens read."""
        return count

    def _read(self, ids: Tensor, cache: Any, start: int, shift: int = 0) -> Any:
        """Read tokens from a place in the text on; what depends on distances alone takes them for `shift` later."""
        given = with_cache(self.model, cache)
        with Undo() as undo:
            for module in self._rotary:
                undo.hang(module, partial(_shifted, shift), before=True, with_kwargs=True)
            if self._takes_positions:
                first = start if self._rotary else start + shift
                given["position_ids"] = torch.arange(first, first + ids.shape[1]).expand(len(ids), -1)
            return self.model(ids, **given)

    @cached_property
    def _rotary(self) -> list[nn.Module]:
        """What rotates queries and keys, where a model reads more from positions than that; else nothing."""
        if not self._takes_positions:
            return []
        near, far = (
            _logits(self.model(self.ids, position_ids=torch.arange(start, start + TOKENS).expand(len(self.ids), -1)))
            for start in (0, TOKENS)
        )
        if _relative(far, near) < TOLERANCES["cache"]:
            return []
        return [
            module
            for module in self.model.modules()
            if any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False))
        ]

    def _bring_near(self, cache: Any, sinks: int, shift: int) -> None:
        """Put in the place of the sinks what the model makes of them `shift` positions later."""
        if not sinks or not self._takes_positions:  # biases by distance are counted in the cache
            return
        moved = returned_cache(self._read(self.ids[:, :sinks], self._empty(), 0, shift))
        for layer, near in zip(self._full(cache), self._full(moved), strict=True):
            for slot in ("keys", "values"):
                getattr(layer, slot)[..., :sinks, :] = getattr(near, slot)[..., :sinks, :]

    def _empty(self) -> Any:
        """A cache to begin with: where all layers have a native window, whose place a policy takes, one without any."""
        with suppress(Exception):  # a cache of the model's own kind
            if all(growing_window(layer) for layer in growing_cache(self.model).layers):
                return growing_cache()
        return None

    def _full(self, cache: Any) -> list[Any]:
        """The layers that a policy acts on: of a model with native windows in some, the others."""
        layers = [
            layer
            for layer in cache.layers
            if isinstance(getattr(layer, "keys", None), Tensor) and layer.keys.dim() == 4
        ]
        wide = [layer for layer in layers if not getattr(layer, "is_sliding", False)]
        if not wide:
            raise Unchecked("no layer of the model's own cache holds keys that can be taken away")
        return wide


def _shifted(shift: int, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Before a rotary embedding: its arguments, with positions `shift` later."""
    if "position_ids" in named:
        return arguments, {**named, "position_ids": named["position_ids"] + shift}
    return (arguments[0], arguments[1] + shift, *arguments[2:]), named
