"""Losses of what a processor made of texts with images or sound, in one forward pass of the whole model."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn

from sinkscope.errors import SinkscopeError
from sinkscope.hf.models import core, placeholder_ids
from sinkscope.hf.placement import reading_device
from sinkscope.models.cached import ACAUSAL, find_reading
from sinkscope.models.facts import find_streams
from sinkscope.models.requirements import check_decoder, not_a_decoder
from sinkscope.normalisers import Normaliser
from sinkscope.policies import Policy
from sinkscope.probes import Seen
from sinkscope.scope.binding import goes_by_token
from sinkscope.scope.scope import Scope
from sinkscope.scope.streams import check_inputs
from sinkscope.streaming.checkpoint import Progress
from sinkscope.streaming.readers import scored

TEXT_ALONE = {"input_ids", "attention_mask"}
SEEN_AND_HEARD = ("image", "video", "audio")


def texts_of_inputs(model: nn.Module, inputs: Mapping[str, Any]) -> list[Tensor]:
    """The tokens of each text [token] without its padding.

    Raises:
        SinkscopeError: what is no output of the model's processor, or has no tokens of which losses could be told.
    """
    if "encoder" in find_streams(model):
        check_decoder(model)
    check_inputs(model, inputs)
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or not len(ids):
        raise SinkscopeError("the inputs hold no input_ids [sequence, token] to score; give the processor's output.")
    if mask is None:
        return list(ids.long().cpu())
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        raise SinkscopeError(
            "attention_mask is no tensor [sequence, token] that says what is padding, as input_ids is; give the "
            "processor's output."
        )
    return [row[real].long().cpu() for row, real in zip(ids, mask.bool(), strict=True)]


def stands_alone(inputs: Mapping[str, Any]) -> bool:
    """Whether inputs are tokens of texts and no more."""
    return set(inputs) <= TEXT_ALONE


def read_inputs(
    model: nn.Module,
    inputs: Mapping[str, Any],
    policies: Sequence[Policy],
    normaliser: Normaliser | None,
) -> list[Progress]:
    """The losses under each policy; NaN for the first token of a text, for those that stand for images or sound, and
    for those that the query before them sees, as in the prefix of PaliGemma.

    Raises:
        SinkscopeError: a policy that cannot be carried out in one pass, or beside these images; logits that are not
            those of the tokens; tokens all of which are seen by the query before them.
    """
    for policy in policies:
        _check_one_pass(model, policy, normaliser)
    return [_read(model, inputs, policy, normaliser) for policy in policies]


def with_images(record: xr.Dataset, model: nn.Module) -> xr.Dataset:
    """The record with `is_image` [sequence, token], as that of `measure`."""
    return record.assign_coords(is_image=record.token_id.isin(placeholder_ids(model)))


def _check_one_pass(model: nn.Module, policy: Policy, normaliser: Normaliser | None) -> None:
    name = type(model).__name__
    if policy.recomputed:
        raise SinkscopeError(
            f"`{policy.name}` reads windows of the text as texts of their own, and the images that {name} reads beside "
            "it have a place in it; leave the policy or the images out."
        )
    if goes_by_token(model) and not (policy.is_dense and normaliser is None):
        raise SinkscopeError(
            f"{name} can follow `{policy.name}` only token by token, and images are read whole; leave one of them out."
        )
    if not (policy.is_dense and normaliser is None) and find_reading(model) == ACAUSAL:
        raise not_a_decoder(name, "has attention that is not causal")


@torch.no_grad()
def _read(model: nn.Module, inputs: Mapping[str, Any], policy: Policy, normaliser: Normaliser | None) -> Progress:
    begun, device = time.perf_counter(), reading_device(model)
    given = {name: each.to(device) if isinstance(each, Tensor) else each for name, each in inputs.items()}
    if "use_cache" in inspect.signature(core(model).forward).parameters:
        given["use_cache"] = False
    plain, ahead = policy.is_dense and normaliser is None, find_reading(model) == ACAUSAL
    scope = None if plain and not ahead else Scope(model, [Seen(1)] * ahead, normaliser, policy, alone=True)
    with scope or nullcontext():
        logits = model(**given).logits
    ids = given["input_ids"]
    if logits.shape[:2] != ids.shape:
        raise SinkscopeError(
            f"{type(model).__name__} gives {' x '.join(map(str, logits.shape[:2]))} logits for "
            f"{' x '.join(map(str, ids.shape))} tokens, so which token each predicts cannot be told; leave out what "
            "changes that (logits_to_keep)."
        )
    mask, marks = given.get("attention_mask"), torch.tensor(placeholder_ids(model, SEEN_AND_HEARD), device=device)
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    losses = torch.full((len(ids), int(real.sum(1).max())), torch.nan)
    for row, places in enumerate(each.nonzero().flatten() for each in real):
        text = ids[row, places]
        queries = (~torch.isin(text[1:], marks.to(text))).nonzero().flatten().cpu()  # whose next token is one of text
        if len(queries):
            step = scored(model, logits[row, places[queries.to(device)]][None], text[None], queries, 0)
            losses[row, step.tokens] = step.losses
    if scope is not None and ahead:
        seen = scope.record["next_seen"].max(["layer", "head"]).transpose("sequence", "query").values > 0
        losses[:, 1:][torch.from_numpy(seen[:, :-1])] = torch.nan
        if bool(losses.isnan().all()):
            raise SinkscopeError(
                f"in {type(model).__name__} each query sees the token that it would predict, so no loss says what it "
                "predicts; give texts with a suffix, which is read in order (PaliGemma: `suffix=` of its processor)."
            )
    return Progress(losses, batch=1, seconds=time.perf_counter() - begun)
