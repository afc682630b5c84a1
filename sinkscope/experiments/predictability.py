"""Sink mass of each query beside how predictable its next token is: the no-op reading, put to the test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from sinkscope.arguments import whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.perplexity import Run, check_run
from sinkscope.models.requirements import not_finite
from sinkscope.policies import Dense
from sinkscope.probes import Probe, SinkMass
from sinkscope.progress import progress_bar
from sinkscope.scope.binding import check_limits
from sinkscope.scope.measure import texts_of
from sinkscope.scope.scope import attached
from sinkscope.streaming.readers import next_token_losses


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

    Args:
        model: a decoder in eval mode with a language head.
        ids: token ids [sequence, token], or a list of 1-D tensors.
        first: how many first keys.
        probes: what to measure in the same pass beside the sink mass.
        progress: whether to show a progress bar; once two seconds have passed when None.
        attributes: noted in the record's attrs (the name of the text, for one).

    Returns:
        A record with `sink_mass` [sequence, layer, head, query, sink], and of the token after each query `next_loss`
        [sequence, query], nats, NaN for the last, and `next_entropy` [sequence, query], nats, of its distribution.

    Raises:
        SinkscopeError: as `measure`; a text of one token, a model without a language head.
    """
    texts = texts_of(ids)
    check_run(model, texts, Run(1, None, 0))
    check_limits(model, Dense(), max(map(len, texts)))
    first = whole_number(first, "first", 1)
    if min(map(len, texts)) <= first:
        raise SinkscopeError(
            f"a text of {min(map(len, texts))} tokens has no query after its first {first}; give more."
        )
    longest, device = max(map(len, texts)), next(model.parameters()).device
    losses, entropies = (np.full((len(texts), longest), np.nan, dtype=np.float32) for _ in range(2))
    bar = progress_bar(sum(map(len, texts)), "token", progress)
    with bar, torch.no_grad(), attached(model, probes=[SinkMass(first), *probes]) as scope:
        for row, text in enumerate(texts):
            logits = model(input_ids=text[None].to(device), use_cache=False).logits[0]
            if not bool(logits.isfinite().all()):
                raise not_finite("the logits", model)
            losses[row, : len(text) - 1] = next_token_losses(logits[:-1], text[1:].to(device)).cpu()
            entropies[row, : len(text)] = torch.cat([_entropy(piece) for piece in logits.split(256)]).cpu()
            bar.update(len(text))
        record = scope.record
    return record.assign(
        next_loss=(("sequence", "query"), losses, {"units": "nats"}),
        next_entropy=(("sequence", "query"), entropies, {"units": "nats"}),
    ).assign_attrs(kind="predictability", first=first, **attributes)


def _entropy(logits: Tensor) -> Tensor:
    """Entropy [query] of the distributions of logits [query, vocabulary], in nats."""
    logs = logits.float().log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)
