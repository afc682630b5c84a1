"""Sink mass of each query beside how predictable its next token is: the no-op reading, put to the test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from sinkscope.arguments import checks_types, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.perplexity import dense_texts
from sinkscope.hf.placement import reading_device
from sinkscope.models.requirements import not_finite
from sinkscope.probes import Probe, SinkMass
from sinkscope.progress import progress_bar
from sinkscope.scope.scope import Scope
from sinkscope.streaming.readers import next_token_losses


@checks_types
def predictability(
    model: nn.Module,
    ids: Tensor | Sequence[Tensor],
    first: int = 1,
    *,
    probes: Iterable[Probe] = (),
    progress: bool | None = None,
    **attributes: Any,
) -> xr.Dataset:
    """What each query gives to the first keys, and how well the token after it is predicted from there.

    If a sink is where a head parks attention when it has nothing to say, its mass should go with what the model knows
    about the next token; `predictability_table` says how much, head by head.

    >>> record = sinkscope.predictability(model, ids)
    >>> list(record.data_vars)[:3]
    ['sink_mass', 'next_loss', 'next_entropy']

    Args:
        model, ids, progress, attributes: as in `perplexity`.
        first: how many first keys.
        probes: what to measure in the same pass beside the sink mass.

    Returns:
        A record with `sink_mass` [sequence, layer, head, query, sink], and of the token after each query `next_loss`
        [sequence, query], nats, NaN for the last, and `next_entropy` [sequence, query], nats, of its distribution.

    Raises:
        SinkscopeError: as `measure`; a text of one token, a model without a language head.
    """
    texts, first = dense_texts(model, ids), whole_number(first, "first", 1)
    lengths, device = [len(text) for text in texts], reading_device(model)
    if min(lengths) <= first:
        raise SinkscopeError(f"a text of {min(lengths)} tokens has no query after its first {first}; give more.")
    losses, entropies = (np.full((len(texts), max(lengths)), np.nan, dtype=np.float32) for _ in range(2))
    bar = progress_bar(sum(lengths), "token", progress)
    with bar, torch.no_grad(), Scope(model, [SinkMass(first), *probes], alone=True) as scope:
        for row, text in enumerate(texts):
            logits = model(input_ids=text[None].to(device), use_cache=False).logits[0]
            if not bool(logits.isfinite().all()):
                raise not_finite("the logits", model)
            losses[row, : len(text) - 1] = next_token_losses(logits[:-1], text[1:].to(device)).cpu()
            pieces = (piece.float().log_softmax(-1) for piece in logits.split(256))  # one at a time: they are large
            entropies[row, : len(text)] = torch.cat([-(logs.exp() * logs).sum(-1) for logs in pieces]).cpu()
            bar.update(len(text))
        record = scope.record
    return record.assign(
        next_loss=(("sequence", "query"), losses, {"units": "nats"}),
        next_entropy=(("sequence", "query"), entropies, {"units": "nats"}),
    ).assign_attrs(kind="predictability", first=first, **attributes)
