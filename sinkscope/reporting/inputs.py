"""What a report reads: a text in sequences, or all that a processor made for one call of a model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sinkscope.analysis.intervals import FEWEST
from sinkscope.errors import SinkscopeError
from sinkscope.hf.generation import written_by
from sinkscope.hf.images import thumbnails
from sinkscope.hf.models import begin_token, position_limits
from sinkscope.models.facts import find_streams
from sinkscope.models.requirements import check_decoder
from sinkscope.reporting.planned import cut

if TYPE_CHECKING:
    from sinkscope.reporting.plan import Plan

FEWEST_TOKENS = 8  # a text must reach past the first four keys, with a few queries to average over
WRITTEN = 64  # tokens that an encoder-decoder writes, where its decoder is given nothing to read
PLAIN = ("input_ids", "attention_mask", "token_type_ids")


def given_inputs(text: Any) -> dict[str, Any] | None:
    """The arguments of one call of a model, where that is what was given in the place of a text; else None."""
    if isinstance(text, Tensor):
        return {"input_ids": torch.atleast_2d(text)}
    return dict(text) if isinstance(text, Mapping) else None


def plain_text(model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, tuple[int, ...]] | None:
    """The tokens [token] of inputs that are one text and no more, and the BOS before them; None for other inputs."""
    ids, mask, kinds = (inputs.get(name) for name in PLAIN)
    if not isinstance(ids, Tensor) or ids.dim() != 2 or len(ids) != 1 or not set(inputs) <= set(PLAIN):
        return None
    if "encoder" in find_streams(model) or (isinstance(kinds, Tensor) and bool(kinds.any())):
        return None
    tokens = ids[0] if mask is None else ids[0][mask[0].bool()]
    bos = begin_token(model)
    front = tuple(tokens[:1].tolist()) if bos is not None and bool(np.isin(tokens[:1], bos).any()) else ()
    return tokens[len(front) :], front


def text_for_encoder(model: Any, rows: Tensor) -> dict[str, Any]:
    """The inputs of an encoder-decoder whose encoder reads these sequences [sequence, token]."""
    if "input_ids" not in (taken := inspect.signature(model.forward).parameters):
        first = next((name for name in taken if name.startswith("input")), "other things")
        raise SinkscopeError(
            f"{type(model).__name__} reads {first}, and no text; give what its processor makes as text= "
            "(--audio on the command line)."
        )
    return {"input_ids": rows}


def with_decoder_inputs(model: Any, inputs: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The inputs with something for the decoder of an encoder-decoder to read, and a note where the model wrote it."""
    names = {"decoder_input_ids", "decoder_inputs_embeds", "labels"}
    if "encoder" not in find_streams(model) or names & set(inputs):
        return inputs, []
    ids, real = written_by(model, inputs, min([WRITTEN, *(limit // 2 for limit in position_limits(model))]))
    note = (
        f"The decoder reads what the model itself writes, greedily: {int(real.sum(1).max())} tokens at most; give "
        "decoder_input_ids for another text."
    )
    masks = {} if bool(real.all()) else {"decoder_attention_mask": real.long()}
    return inputs | {"decoder_input_ids": ids} | masks, [note]


def check_one_text(model: Any, inputs: Mapping[str, Any]) -> None:
    """Raise SinkscopeError, saying why inputs are no text that can be cut or read in parts."""
    if "encoder" in find_streams(model):
        check_decoder(model)
    if beside := [name for name in inputs if name not in PLAIN]:
        raise SinkscopeError(f"it reads token ids alone, and here they stand beside {', '.join(beside)}.")
    raise SinkscopeError(f"it reads one text, and the report was given {len(inputs['input_ids'])} at once.")


def fewest_tokens(inputs: Mapping[str, Any]) -> int:
    """Tokens of the shortest text that the part of a model reads which predicts tokens; 4 where nothing says."""
    for prefix in ("decoder_", ""):
        for name in (f"{prefix}attention_mask", f"{prefix}input_ids"):
            if isinstance(each := inputs.get(name), Tensor) and each.dim() == 2:
                return int((each.bool() if name.endswith("mask") else torch.ones_like(each)).sum(1).min())
    return 4


def with_pictures(record: xr.Dataset, model: Any, inputs: Mapping[str, Any]) -> xr.Dataset:
    """The record of a text with `picture` [sequence, image_number, y, x], the images in it in grey, where known."""
    pictures = thumbnails(model, inputs)
    if pictures is None or "image" not in record.coords:
        return record
    counts = (record["image"].max("token") + 1).values
    if counts.sum() != len(pictures):
        return record
    shown = np.full((len(counts), counts.max(), *pictures.shape[1:]), np.nan, dtype=np.float32)
    for row, part in zip(shown, np.split(pictures.numpy(), np.cumsum(counts)[:-1]), strict=True):
        row[: len(part)] = part
    about = {"long_name": "the images, in grey and square", "units": "1"}
    return record.assign(picture=(("sequence", "image_number", "picture_y", "picture_x"), shown, about))


def text_rows(model: Any, texts: Sequence[Tensor], plan: Plan, front: tuple[int, ...]) -> tuple[Tensor, list[str]]:
    """Sequences [sequence, token] of the tokens [token] of one text or several, as many of each, and notes on what is
    less than was planned."""
    length, sequences, notes = plan.length, plan.count, []
    limit = min(position_limits(model), default=length)
    if 0 < limit < length:
        notes.append(f"Sequences have {limit:,} tokens, not {length:,}: the model has no more positions.")
        length = limit
    own, got = length - len(front), min(text.numel() for text in texts)
    which = "text" if len(texts) == 1 else "shortest text"
    if length < FEWEST_TOKENS:
        raise SinkscopeError(f"length is {length}, and a report needs at least {FEWEST_TOKENS} tokens in a sequence.")
    if got + len(front) < FEWEST_TOKENS:
        raise SinkscopeError(
            f"The {which} has {got} token{'' if got == 1 else 's'}, and a report needs at least "
            f"{FEWEST_TOKENS}: give a longer text."
        )
    if got < own:
        alone = f"one sequence of them was measured{' of each' * (len(texts) > 1)}"
        none = ", so there are no intervals" * (len(texts) < FEWEST)
        notes.append(f"The {which} has only {got:,} tokens: {alone}{none}.")
        own = got
    elif got < sequences * own:
        notes.append(f"The {which} has only {got:,} tokens: {got // own} of {sequences} sequences were measured.")
    count = min(sequences, got // own)
    return torch.cat([cut(plan, text, own + len(front), count, front) for text in texts]), notes
