"""Measuring a model on many sequences in one call."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from math import prod
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from sinkscope.arguments import checks_types, whole_number
from sinkscope.attention.placement import is_built_in
from sinkscope.errors import SinkscopeError
from sinkscope.hf.models import core, is_pretrained, query_heads
from sinkscope.hf.placement import reading_device
from sinkscope.interrupts import finishing_blocks, saying
from sinkscope.models.as_found import AsFound
from sinkscope.models.facts import find_streams
from sinkscope.models.memory import TILES, fitting_rows, sizes_of
from sinkscope.models.requirements import check_eval, check_wrapper
from sinkscope.policies import Policy
from sinkscope.probes import FREE, Maps, Probe, SinkMass
from sinkscope.progress import progress_bar
from sinkscope.scope.binding import check_table, within_table
from sinkscope.scope.fitting import fitting
from sinkscope.scope.forward import check_vocabulary
from sinkscope.scope.kept import KeptBatches
from sinkscope.scope.scope import Scope
from sinkscope.scope.streams import check_inputs
from sinkscope.tokens import TokenTexts
from sinkscope.undo import Undo

WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@checks_types
def measure(
    model: nn.Module,
    ids: Tensor | Sequence[Tensor] | Mapping[str, Any],
    probes: Iterable[Probe] | None = None,
    *,
    policy: Policy | None = None,
    stream: str | None = None,
    tokenizer: Any = None,
    batch_tokens: int = 4096,
    checkpoint: str | os.PathLike[str] | None = None,
    max_memory: int | None = None,
    progress: bool | None = None,
    **attributes: Any,
) -> xr.Dataset:
    """Measure where a model's attention goes on given texts.

    The model's layers are run without its language-modelling head, whose logits nobody needs here.

    >>> record = sinkscope.measure(model, ids)
    >>> record.sink_mass.dims
    ('sequence', 'layer', 'head', 'query', 'sink')

    Args:
        model: a transformers model in eval mode.
        ids: token ids [sequence, token], or a list of 1-D tensors of any lengths. `read_tokens` makes them. Or all
            arguments of one forward pass by name, as a processor gives them (input_ids, pixel_values,
            attention_mask, ...); an encoder-decoder needs decoder_input_ids among them.
        probes: what to measure; those that cost no second pass when None.
        policy: which keys a query may see, as in `attached`; all of them when None.
        stream: which part of a model of several: "text" or "vision" of one that reads images; "decoder", "cross" or
            "encoder" of an encoder-decoder. The part that predicts tokens when None. `capture` records all at once.
        tokenizer: adds the text of each token to the record.
        batch_tokens: neighbouring sequences of equal length run together up to so many tokens.
        checkpoint: a folder that keeps what was measured of each batch of texts; the same call again goes on from
            there, to the bit.
        max_memory: bytes that the run may take beside the weights, by the estimate of `sinkscope.models.memory`: fewer
            texts are run together where it asks for that. When None, a run that would take more than is free is
            refused.
        progress: whether to show a progress bar; once two seconds have passed when None.
        attributes: noted in the record's attrs (the name of the text, for one).

    Returns:
        The record.

    Raises:
        SinkscopeError: no tokens, a text shorter than the first keys asked for or longer than the model's table of
            positions, ids outside the vocabulary, a model that cannot be measured or is in training mode, weights
            that are not finite; arguments that the model does not take, images without tokens that stand for them.
    """
    name = _checked_stream(model, stream)
    probes = fitting(FREE, find_streams(model)[name]) if probes is None else probes
    scope = Scope(model, probes, policy=policy, stream=name, alone=True)
    if isinstance(ids, Mapping):
        if beside := [name for name, each in {"checkpoint": checkpoint, "max_memory": max_memory}.items() if each]:
            raise SinkscopeError(f"{beside[0]}= is for batches of texts, not for the inputs of one pass; leave it out.")
        texts_read = token_texts(tokenizer, ids.get("input_ids"))
        check_wrapper(model)
        with _as_found(scope), scope, torch.no_grad():
            _read_inputs(scope, ids)
            record = scope.record
        if texts_read is not None and "token_id" in record.coords:
            record = with_token_texts(record, texts_read)
        return record.assign_attrs(attributes)
    texts = texts_of(ids)
    check_table(model, max(map(len, texts)), "the longest text")
    scope.policy.check_places(max(map(len, texts)))
    for probe in scope.probes:
        probe.check_places(max(map(len, texts)))
    shortest = min(map(len, texts))
    for probe in scope.probes:
        if isinstance(probe, SinkMass) and probe.first > shortest:
            raise SinkscopeError(
                f"a text has {shortest} tokens, but {probe} needs at least {probe.first}; "
                "give a longer text or a smaller first."
            )
    for text in texts if tokenizer is not None else ():
        check_vocabulary(scope.anatomy.base, text)
    texts_read = token_texts(tokenizer, texts)
    check_wrapper(model)
    most = None if max_memory is None else whole_number(max_memory, "max_memory", 1)
    batch_tokens = _fitting_batch(scope, texts, whole_number(batch_tokens, "batch_tokens", 1), most)
    kept = None if checkpoint is None else KeptBatches(checkpoint, scope)
    with _as_found(scope), scope, torch.no_grad():
        _read(scope, texts, batch_tokens, progress, kept)
        record = scope.record
    if texts_read is not None:
        record = with_token_texts(record, texts_read)
    return record.assign_attrs(attributes)


@checks_types
def attention_maps(
    model: nn.Module,
    ids: Tensor | Mapping[str, Any],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    resolution: int | None = None,
    pool: str = "mass",
    stream: str | None = None,
) -> xr.DataArray:
    """Attention maps of one text; at full resolution the only thing here that makes T x T tensors.

    >>> sinkscope.attention_maps(model, ids[:1], layers=[1]).dims
    ('layer', 'head', 'query', 'key')

    Args:
        model: a transformers model in eval mode.
        ids: token ids [1, token], or the arguments of one forward pass of one text, as for `measure`.
        layers, heads: which; all when None.
        resolution: cells along each side at most, pooled as in the `Maps` probe; every token when None.
        pool: "mass" or "max", as in `Maps`.
        stream: as for `measure`; maps of "cross" have as many keys as the encoder has tokens.

    Returns:
        Probabilities [layer, head, query, key] in float32, 4 bytes each.

    Raises:
        SinkscopeError: as `measure`; also layers or heads out of range, or more than one text.
    """
    texts = [] if isinstance(ids, Mapping) else texts_of(ids)
    probe = Maps(layers, heads, resolution, pool)  # type: ignore[arg-type]
    check_wrapper(model)
    if texts:
        check_table(model, max(map(len, texts)), "the text")
    with Scope(model, [probe], stream=_checked_stream(model, stream), alone=True) as scope, torch.no_grad():
        if isinstance(ids, Mapping):
            _read_inputs(scope, ids)
        elif len(texts) == 1:
            _read(scope, texts, len(texts[0]), None)
        found = scope.array("attention_map") if len(texts) < 2 else texts
        if len(found) != 1:
            raise SinkscopeError(f"attention_maps takes one text [1, token], got {len(found)}; call it once for each.")
        maps = scope.array("attention_map")[0]
    maps = maps if layers is None else maps.sel(layer=list(layers))
    return maps.rename(map_query="query", map_key="key").drop_vars("sequence")


def token_texts(tokenizer: Any, texts: Any) -> TokenTexts | None:
    """How the tokens of texts read, None without a tokenizer; one that cannot decode them is found before they run."""
    if tokenizer is None:
        return None
    read, rows = TokenTexts(tokenizer), [texts] if isinstance(texts, Tensor) else texts or ()
    for token in sorted({token for row in rows if isinstance(row, Tensor) for token in row.flatten().tolist()}):
        read.of(int(token))
    return read


def with_token_texts(record: xr.Dataset, read: TokenTexts) -> xr.Dataset:
    """The record with `token_text` [sequence, token] beside its `token_id`; empty past the end of a sequence."""
    ids = record.token_id.values
    texts = np.full(ids.shape, "", dtype=object)
    for row, shown in zip(ids, texts, strict=True):
        is_token = row >= 0
        shown[is_token] = read(row[is_token])
    return record.assign_coords(token_text=(("sequence", "token"), texts))


def _checked_stream(model: nn.Module, stream: str | None) -> str:
    """The name of a stream of a model, that of the main one when None."""
    names = list(find_streams(model))
    if stream is not None and stream not in names:
        raise SinkscopeError(
            f"{type(model).__name__} has no stream of attention {stream!r}; it has {', '.join(map(repr, names))}."
        )
    return stream or names[0]


@contextmanager
def _as_found(scope: Scope) -> Iterator[None]:
    """Raise SinkscopeError where probes from outside the package changed the model, and take off what they hung on."""
    own = [type(probe) for probe in scope.probes if not is_built_in(type(probe))]
    if not own:
        yield
        return
    found, names = AsFound(scope.model, *own), [kind.__name__ for kind in own]
    with found.put_back(" or ".join(names)):
        yield
    found.check_same(*names)


def _read_inputs(scope: Scope, inputs: Mapping[str, Any]) -> None:
    """Run a whole model, without its head, on what its processor made."""
    check_eval(scope.model, "attention")
    check_inputs(scope.model, inputs)
    whole: Any = getattr(scope.model, "base_model", None) if is_pretrained(scope.model) else None
    taken = inspect.signature(whole.forward).parameters if whole is not None else {}
    if whole is None or not set(inputs) <= set(taken):
        whole = scope.model
    device = reading_device(scope.model)
    given = {name: each.to(device) if isinstance(each, Tensor) else each for name, each in inputs.items()}
    if "use_cache" in inspect.signature(whole.forward).parameters:
        given["use_cache"] = not scope.anatomy.interface
    whole(**given)


def _read(
    scope: Scope, texts: list[Tensor], batch_tokens: int, progress: bool | None, kept: KeptBatches | None = None
) -> None:
    """Run the model's layers over all texts; a wrapper as a whole, since what it does around them counts."""
    check_eval(scope.model, "attention")
    if "encoder" in find_streams(scope.model):
        raise SinkscopeError(
            f"{type(scope.model).__name__} reads with an encoder and writes with a decoder; give what both of them get "
            "by name (input_ids, decoder_input_ids), or pass model.get_encoder() alone."
        )
    base, interface = scope.anatomy.base, scope.anatomy.interface
    accepted = inspect.signature(base.forward).parameters
    if "input_ids" not in accepted:
        raise SinkscopeError(
            f"{type(base).__name__} has no tokens to read; run it on its own inputs inside sinkscope.capture(model)."
        )
    # outside the interface keys and values show in the cache only; else it would just cost memory
    options = {"use_cache": not interface} if "use_cache" in accepted else {}
    runs, device = base if core(scope.model) is scope.model else scope.model, reading_device(base)
    told = None if kept is None else kept.told
    with saying(told), finishing_blocks(told) as stop, _progress(scope, sum(map(len, texts)), progress) as begin:
        for batch in batches_of(texts, batch_tokens):
            begin(batch.numel())
            if kept is None or not kept.read(scope, batch):
                if kept is not None:
                    kept.begin(scope)
                with within_table(scope.model, batch.shape[1]):
                    runs(input_ids=batch.to(device), **options)
                if kept is not None:
                    kept.write(scope, batch)
            if stop.asked:
                return  # and out of the context, where the signal takes its way


def _fitting_batch(scope: Scope, texts: list[Tensor], batch_tokens: int, most: int | None) -> int:
    """Tokens to run together, `batch_tokens` at most, with which measuring keeps within a budget of bytes."""
    try:
        sizes = sizes_of(scope.model)
    except (AttributeError, SinkscopeError):  # what reads no tokens says so itself
        return batch_tokens
    longest, heads = max(map(len, texts)), query_heads(scope.model) or 1
    together = max(batch.numel() for batch in batches_of(texts, batch_tokens))
    held = sum(_entries(probe, longest, heads) for probe in scope.probes) * sizes.layers * 4 * len(texts)
    each = sizes.measuring
    what = f"measuring {len(texts)} texts of up to {longest:,} tokens, {together:,} tokens at once,"
    advice = "give a smaller batch_tokens=, shorter or fewer texts, cheaper probes, or the budget itself as max_memory="
    fixed = TILES + 2 * held + (longest - 1) * each  # a text is not divided
    return longest - 1 + fitting_rows(max(1, together - longest + 1), fixed, each, most, scope.model, what, advice)


def _entries(probe: Probe, tokens: int, heads: int) -> int:
    """Numbers that a probe makes of one text in one layer, as far as its dimensions tell."""
    known = {"head": heads, "query": tokens, "token": tokens, "map_query": tokens, "map_key": tokens}
    if isinstance(probe, Maps) and probe.resolution:
        known |= dict.fromkeys(("map_query", "map_key"), min(tokens, probe.resolution))
    known |= {name: len(numbers) for name, numbers in probe.coordinates.items()}
    return sum(prod(known.get(dim, 1) for dim in about.dims[2:]) for about in probe.makes.values())


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

    with bar, Undo() as undo:
        for layer in layers:
            undo.hang(layer, advance)
        yield begin
        bar.update(begun - bar.n)


def batches_of(texts: list[Tensor], batch_tokens: int) -> Iterator[Tensor]:
    """Neighbouring texts of equal length, stacked."""
    for length, alike in groupby(texts, len):
        yield from torch.stack(list(alike)).split(max(1, batch_tokens // length))


def _check_plain(ids: Any) -> None:
    """Raise SinkscopeError for a tensor that holds its numbers in a form of its own, or none."""
    if isinstance(ids, Tensor) and (ids.is_meta or ids.is_nested or ids.is_quantized or ids.layout != torch.strided):
        kind = (
            "on torch's meta device, which holds no numbers" if ids.is_meta else "a sparse, nested or quantised tensor"
        )
        raise SinkscopeError(f"token ids are {kind}; give a plain one, such as ids.to_dense().")


def texts_of(ids: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Token ids of any shape a caller may give, as 1-D tensors.

    Raises:
        SinkscopeError: what cannot be texts, or an empty one.
    """
    for each in [ids] if isinstance(ids, Tensor) or not isinstance(ids, Sequence) else ids:
        _check_plain(each)
    try:
        one = isinstance(ids, Tensor) or all(isinstance(token, int) for token in ids)
        rows = torch.atleast_2d(torch.as_tensor(ids)) if one else [torch.as_tensor(row) for row in ids]
        if any(row.dim() != 1 for row in rows):
            raise TypeError
    except (TypeError, ValueError, RuntimeError) as problem:
        shape = f" and shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else ""
        raise SinkscopeError(
            f"token ids of type {type(ids).__name__}{shape} are not texts; "
            "give a tensor [sequence, token], or a list of 1-D tensors"
            f"{' (the input_ids of this)' if isinstance(ids, Mapping) and 'input_ids' in ids else ''}."
        ) from problem
    texts = list(rows)
    if not texts or any(len(text) == 0 for text in texts):
        raise SinkscopeError(
            "there is an empty text among the tokens, or no text at all; give at least one token each."
        )
    if other := [text.dtype for text in texts if text.dtype not in WHOLE]:
        raise SinkscopeError(f"token ids are whole numbers; got {other[0]}, as floating-point ones and booleans are.")
    return [text.long() for text in texts]
