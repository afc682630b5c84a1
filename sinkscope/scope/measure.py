"""Measuring a model on many sequences in one call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from sinkscope.errors import SinkscopeError
from sinkscope.hf.models import core
from sinkscope.hf.placement import reading_device
from sinkscope.models.requirements import check_eval, check_wrapper
from sinkscope.probes import FREE, Maps, Probe, SinkMass
from sinkscope.progress import progress_bar
from sinkscope.scope.scope import Scope
from sinkscope.tokens import TokenTexts


def measure(
    model: nn.Module,
    ids: Tensor | Sequence[Tensor],
    probes: Iterable[Probe] | None = None,
    *,
    tokenizer: Any = None,
    batch_tokens: int = 4096,
    progress: bool | None = None,
    **attributes: Any,
) -> xr.Dataset:
    """Measure where a model's attention goes on given texts.

    The model's layers are run without its language-modelling head, whose logits nobody needs here.

    Args:
        model: a transformers model in eval mode.
        ids: token ids [sequence, token], or a list of 1-D tensors of any lengths. `read_tokens` makes them.
        probes: what to measure; those that cost no second pass when None.
        tokenizer: adds the text of each token to the record.
        batch_tokens: neighbouring sequences of equal length run together up to so many tokens.
        progress: whether to show a progress bar; once two seconds have passed when None.
        attributes: noted in the record's attrs (the name of the text, for one).

    Returns:
        The record.

    Raises:
        SinkscopeError: no tokens, a text shorter than the first keys asked for, ids outside the vocabulary, a model
            that cannot be measured or is in training mode, weights that are not finite.
    """
    scope = Scope(model, FREE if probes is None else probes)
    texts = texts_of(ids)
    shortest = min(map(len, texts))
    for probe in scope.probes:
        if isinstance(probe, SinkMass) and probe.first > shortest:
            raise SinkscopeError(
                f"a text has {shortest} tokens, but {probe} needs at least {probe.first}; "
                "give a longer text or a smaller first."
            )
    check_wrapper(model)
    with scope, torch.no_grad():
        _read(scope, texts, batch_tokens, progress)
        record = scope.record
    if tokenizer is not None:
        record = with_token_texts(record, tokenizer)
    return record.assign_attrs(attributes)


def attention_maps(
    model: nn.Module,
    ids: Tensor,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    resolution: int | None = None,
    pool: str = "mass",
) -> xr.DataArray:
    """Attention maps of one text; at full resolution the only thing here that makes T x T tensors.

    Args:
        model: a transformers model in eval mode.
        ids: token ids [1, token].
        layers, heads: which; all when None.
        resolution: cells along each side at most, pooled as in the `Maps` probe; every token when None.
        pool: "mass" or "max", as in `Maps`.

    Returns:
        Probabilities [layer, head, query, key] in float32, 4 bytes each.

    Raises:
        SinkscopeError: as `measure`; also layers or heads out of range, or more than one text.
    """
    texts = texts_of(ids)
    if len(texts) != 1:
        raise SinkscopeError(f"attention_maps takes one text [1, token], got {len(texts)}; call it once for each.")
    check_wrapper(model)
    with Scope(model, [Maps(layers, heads, resolution, pool)]) as scope, torch.no_grad():  # type: ignore[arg-type]
        _read(scope, texts, len(texts[0]), None)
        maps = scope.array("attention_map")[0]
    maps = maps if layers is None else maps.sel(layer=list(layers))
    return maps.rename(map_query="query", map_key="key").drop_vars("sequence")


def with_token_texts(record: xr.Dataset, tokenizer: Any) -> xr.Dataset:
    """The record with `token_text` [sequence, token] beside its `token_id`; empty past the end of a sequence."""
    ids, read = record.token_id.values, TokenTexts(tokenizer)
    texts = np.full(ids.shape, "", dtype=object)
    for row, shown in zip(ids, texts, strict=True):
        is_token = row >= 0
        shown[is_token] = read(row[is_token])
    return record.assign_coords(token_text=(("sequence", "token"), texts))


def _read(scope: Scope, texts: list[Tensor], batch_tokens: int, progress: bool | None) -> None:
    """Run the model's layers over all texts; a wrapper as a whole, since what it does around them counts."""
    check_eval(scope.model, "attention")
    base, interface = scope.anatomy.base, scope.anatomy.interface
    accepted = inspect.signature(base.forward).parameters
    if "input_ids" not in accepted:
        raise SinkscopeError(
            f"{type(base).__name__} has no tokens to read; run it on its own inputs inside sinkscope.capture(model)."
        )
    # outside the interface keys and values show in the cache only; else it would just cost memory
    options = {"use_cache": not interface} if "use_cache" in accepted else {}
    runs, device = base if core(scope.model) is scope.model else scope.model, reading_device(base)
    with _progress(scope, sum(map(len, texts)), progress) as begin:
        for batch in batches_of(texts, batch_tokens):
            begin(batch.numel())
            runs(input_ids=batch.to(device), **options)


@contextmanager
def _progress(scope: Scope, total: int, shown: bool | None) -> Iterator[Callable[[int], None]]:
    """A bar that counts tokens and moves with every layer; by default it shows once two seconds have passed."""
    layers, batch, done, begun = [part.attention for part in scope.anatomy.parts], 0, 0.0, 0
    bar = progress_bar(total, "token", shown)

    def begin(tokens: int) -> None:
        nonlocal batch, begun, done
        batch, done, begun = tokens, float(begun), begun + tokens  # some layers run never, others several times

    def advance(*_: Any) -> None:
        nonlocal done
        done = min(done + batch / len(layers), begun)
        bar.update(round(done) - bar.n)

    with bar, ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_hook(advance).remove)
        yield begin
        bar.update(begun - bar.n)


def batches_of(texts: list[Tensor], batch_tokens: int) -> Iterator[Tensor]:
    """Neighbouring texts of equal length, stacked."""
    for length, alike in groupby(texts, len):
        yield from torch.stack(list(alike)).split(max(1, batch_tokens // length))


def texts_of(ids: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Token ids of any shape a caller may give, as 1-D tensors.

    Raises:
        SinkscopeError: what cannot be texts, or an empty one.
    """
    try:
        one = isinstance(ids, Tensor) or all(isinstance(token, int) for token in ids)
        rows = torch.atleast_2d(torch.as_tensor(ids)) if one else [torch.as_tensor(row) for row in ids]
        if any(row.dim() != 1 for row in rows):
            raise TypeError
    except (TypeError, ValueError, RuntimeError) as problem:
        shape = f" and shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else ""
        raise SinkscopeError(
            f"token ids of type {type(ids).__name__}{shape} are not texts; "
            "give a tensor [sequence, token], or a list of 1-D tensors."
        ) from problem
    texts = list(rows)
    if not texts or any(len(text) == 0 for text in texts):
        raise SinkscopeError(
            "there is an empty text among the tokens, or no text at all; give at least one token each."
        )
    if any(text.is_floating_point() for text in texts):
        raise SinkscopeError("token ids are whole numbers; got floating-point ones.")
    return [text.long() for text in texts]
