"""Running texts under several interventions, all scored at the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn
from tqdm.auto import tqdm

from sinkscope.core.finite import not_finite
from sinkscope.core.measure import PATIENCE
from sinkscope.core.probes import OutputNorm, SinkMass
from sinkscope.core.provenance import model_attributes, token_attributes
from sinkscope.core.scope import attached
from sinkscope.interventions.intervention import Arm, Intervention, Setting


def run_arms(
    model: nn.Module,
    texts: Sequence[Tensor],
    interventions: Sequence[Intervention],
    setting: Setting,
    first: int = 1,
    progress: bool | None = None,
) -> xr.Dataset:
    """Run every text under every intervention.

    Args:
        model: a decoder in eval mode with a language head.
        texts: 1-D tensors of ids.
        interventions: prepared ones, of different names.
        setting: what they share.
        first: how many first keys the sink mass is of.

    Returns:
        A record with the interventions along `policy`: `nll` [policy, sequence, token], nats, at the places tokens had
        in the text as it was, NaN up to the start and where there is none; `sink_mass` and `output_norm` [policy,
        sequence, layer, head], means over the queries from the start on. `same_tokens` [policy] is 0 where the tokens
        scored are not those of the text.
    """
    longest, arms = max(map(len, texts)), (len(interventions), len(texts))
    losses = np.full((*arms, longest), np.nan, dtype=np.float32)
    means: dict[str, dict[tuple[int, int], xr.DataArray]] = {"sink_mass": {}, "output_norm": {}}
    bar = tqdm(
        total=len(interventions) * sum(map(len, texts)), unit="token", desc="interventions",
        disable=progress is False, delay=PATIENCE if progress is None else 0,
    )  # fmt: skip
    with bar:
        for row, intervention in enumerate(interventions):
            for number, text in enumerate(texts):
                arm = intervention.arm(text, number, setting)
                nll, measured = _run(model, arm, first)
                scored = arm.places[1:] > setting.start
                losses[row, number, arm.places[1:][scored]] = nll[scored].numpy()
                late = measured.isel(sequence=0, query=slice(int((arm.places < setting.start).sum()), None))
                for name in means.keys() & set(late):
                    values = late[name].sum("sink") if name == "sink_mass" else late[name]
                    means[name][row, number] = values.mean("query").transpose("layer", "head")
                bar.update(len(text))
    tokens = np.full((len(texts), longest), -1, dtype=np.int64)
    for line, text in zip(tokens, texts, strict=True):
        line[: len(text)] = text.numpy()
    one = means["sink_mass"][0, 0]
    stacked = {
        name: np.stack([found[place].values for place in np.ndindex(arms)]).reshape(*arms, *one.shape)
        for name, found in means.items()
        if found  # what heads hand on is not shown outside the attention interface
    }
    record = xr.Dataset(
        {
            "nll": (("policy", "sequence", "token"), losses, {"units": "nats"}),
            **{name: (("policy", "sequence", "layer", "head"), values) for name, values in stacked.items()},
        },
        coords={
            "policy": [intervention.name for intervention in interventions],
            "same_tokens": ("policy", [int(intervention.same_tokens) for intervention in interventions]),
            "sequence": np.arange(len(texts)),
            "token": np.arange(longest),
            "layer": one["layer"].values,
            "head": one["head"].values,
            "length": ("sequence", [len(text) for text in texts]),
            "token_id": (("sequence", "token"), tokens),
        },
    )
    about = {"start": setting.start, "sinks": setting.sinks, "first": first, "seed": setting.seed}
    return record.assign_attrs(**model_attributes(model), **token_attributes(record, model), **about)


def _run(model: nn.Module, arm: Arm, first: int) -> tuple[Tensor, xr.Dataset]:
    """Losses [token - 1] of the second token on, and the record, of one text."""
    ids = arm.tokens[None].to(next(model.parameters()).device)
    probes: Any = [SinkMass(first), OutputNorm()]
    slots: Any = {"policy": arm.policy, "normaliser": arm.normaliser, "probes": probes}
    with ExitStack() as undo, torch.no_grad():
        if arm.hang is not None:
            arm.hang(model, undo)
        scope = undo.enter_context(attached(model, **slots))
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        record = scope.record
    losses = [
        F.cross_entropy(piece.float(), targets, reduction="none").cpu()
        for piece, targets in zip(logits.split(256), ids[0, 1:].split(256), strict=True)
    ]
    nll = torch.cat(losses)
    if not bool(nll.isfinite().all()):
        raise not_finite("the logits", model)
    return nll, record
