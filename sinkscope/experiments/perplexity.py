"""Perplexity of texts under several ways to attend to them."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from sinkscope.arguments import checks_types, several, whole_number
from sinkscope.definition import check_resumable
from sinkscope.errors import SinkscopeError, shown
from sinkscope.experiments.one_pass import read_inputs, stands_alone, texts_of_inputs, with_images
from sinkscope.interrupts import finishing_blocks, saying
from sinkscope.models.facts import find_anatomy, model_attributes, token_attributes
from sinkscope.models.identity import identity
from sinkscope.models.memory import PIECE, TILES, fitting_rows, sizes_of
from sinkscope.models.requirements import check_eval, check_reader
from sinkscope.normalisers import Normaliser
from sinkscope.policies import Dense, Policy, Recompute, SinkWindow, Window
from sinkscope.progress import progress_bar
from sinkscope.scope.binding import (
    block_within_limits,
    check_limits,
    goes_by_token,
    native_windows,
    policy_layers,
    reads_in_blocks,
)
from sinkscope.scope.forward import check_vocabulary
from sinkscope.scope.measure import batches_of, texts_of, token_texts, with_token_texts
from sinkscope.streaming.checkpoint import Checkpoint, Progress
from sinkscope.streaming.readers import BlockReader, Reader, TokenReader, WindowReader, text_coordinates

FOUR_WAYS = (Dense(), Window(512), Recompute(512), SinkWindow(4, 508))
LONGEST = 80  # letters of a file's name
BATCH_TOKENS = 4096  # texts of one length, or windows to recompute, that run together


@dataclass(frozen=True)
class Run:
    """What the losses depend on besides model, text and policy; the arguments of `perplexity`.

    Args:
        asked: places of the tokens that re-computation predicts from, from the end where negative, and no others; as
            `samples` says when None.
    """

    block: int = 1
    samples: int | None = None
    seed: int = 0
    normaliser: Normaliser | None = None
    asked: tuple[int, ...] | None = None

    def attributes(self) -> dict[str, Any]:
        own = {name: value for name, value in vars(self).items() if name != "asked"}
        return own | {"normaliser": "the model's own" if self.normaliser is None else repr(self.normaliser)}


@checks_types
def perplexity(
    model: nn.Module,
    ids: Tensor | Sequence[Tensor] | Mapping[str, Any],
    policies: Iterable[Policy] | None = None,
    *,
    block: int = 1024,
    samples: int | None = 256,
    seed: int = 0,
    normaliser: Normaliser | None = None,
    tokenizer: Any = None,
    checkpoint: str | os.PathLike[str] | None = None,
    max_memory: int | None = None,
    progress: bool | None = None,
    **attributes: Any,
) -> xr.Dataset:
    """The loss of every token under each policy, over the same tokens.

    Policies are read in blocks, exact for blocks of any size, but for re-computation, which runs every window as a text
    of its own; families outside transformers' attention interface go token by token, and those that read on otherwise
    than they read a whole text are given it whole. A policy acts on the layers with attention to keys, and not on
    linear attention and other recurrent states, which run on as they are; `policy_layers` in the record's attrs says
    which layers that leaves. The first token of a text is not
    scored, with or without a BOS token.

    What a processor made of texts with images is read in one forward pass of the whole model. Losses are those of the
    tokens of text, given the images; tokens that stand for a part of an image (`is_image` in the record) have none.

    >>> record = sinkscope.perplexity(model, ids, [sinkscope.Dense(), sinkscope.SinkWindow(2, 14)])
    >>> record.nll.dims
    ('policy', 'sequence', 'token')

    Args:
        model: a decoder with a language head, in eval mode.
        ids: token ids [sequence, token], or a list of 1-D tensors; each text starts with an empty cache. Or a
            processor's output by name (input_ids, pixel_values, attention_mask, ...).
        policies: which keys a query may see. When None, dense, window, re-computation and sinks of a cache of 512; of
            a processor's output dense alone.
        block: tokens per forward pass; changes time and memory, not losses.
        samples: how many tokens of each text re-computation scores beyond its first window; all when None.
        seed: of that sample.
        normaliser: how scores become weights, under every policy; the model's own when None.
        tokenizer: adds the text of each token to the record.
        checkpoint: a folder that keeps the progress of each policy; the same call again goes on from there, to the bit.
        max_memory: bytes that the run may take beside the weights, by the estimate of `sinkscope.models.memory`:
            blocks are smaller where it asks for that. When None, a run that would take more than is free is refused.
        progress: whether to show progress bars; once two seconds have passed when None.
        attributes: noted in the record's attrs (the name of the text, for one).

    Returns:
        A record with `nll` [policy, sequence, token], nats, NaN where a token was not scored.

    Raises:
        SinkscopeError: a text of fewer than two tokens, ids outside the vocabulary, a model that predicts no next
            token, a policy that it cannot carry out, a checkpoint that is damaged or of other settings.
    """
    texts = texts_of(texts_of_inputs(model, ids) if isinstance(ids, Mapping) else ids)
    inputs = ids if isinstance(ids, Mapping) and not stands_alone(ids) else None
    usual = FOUR_WAYS if inputs is None else (Dense(),)
    ways, run = named_ways(usual if policies is None else policies), Run(block, samples, seed, normaliser)
    check_run(model, texts, run, looks_ahead=inputs is not None)
    texts_read = token_texts(tokenizer, texts)
    if inputs is None:
        record = losses_of(model, texts, ways, run, checkpoint=checkpoint, max_memory=max_memory, progress=progress)
    else:
        if kept := [name for name, each in {"checkpoint": checkpoint, "max_memory": max_memory}.items() if each]:
            raise SinkscopeError(f"{kept[0]}= is for batches of texts, not for the inputs of one pass; leave it out.")
        for policy in ways:
            check_limits(model, policy, max(map(len, texts)))
        run = replace(run, block=max(map(len, texts)), samples=None)
        record = record_of(model, texts, ways, read_inputs(model, inputs, ways, normaliser))
        record = with_images(record, model).assign_attrs(run.attributes())
    record = record.assign_attrs(attributes)
    return record if texts_read is None else with_token_texts(record, texts_read)


def losses_of(
    model: nn.Module,
    texts: list[Tensor],
    ways: list[Policy],
    run: Run,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    max_memory: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """The record of `perplexity`, of texts that can be read; its arguments, and what it raises of them."""
    for policy in ways:
        check_limits(model, policy, max(map(len, texts)))
    most = None if max_memory is None else whole_number(max_memory, "max_memory", 1)
    run = replace(run, block=fitting_block(model, texts, ways, run, most))
    who = {} if checkpoint is None else identity(model)
    stays = [_checkpoint(checkpoint, who, texts, policy, run) for policy in ways]
    batches = list(batches_of(texts, BATCH_TOKENS))
    starts = [stay.read(batches) for stay in stays]  # before anything runs: a refused checkpoint costs nothing
    finished = [
        read_texts(model, texts, policy, run, stay, start, progress)
        for policy, stay, start in zip(ways, stays, starts, strict=True)
    ]
    return record_of(model, texts, ways, finished).assign_attrs(run.attributes())


def named_ways(given: Iterable[Policy]) -> list[Policy]:
    """Policies, at least one, each of a name of its own; SinkscopeError for others."""
    ways = checked_policies(given)
    if not ways:
        raise SinkscopeError("no policy was given; give at least one, such as sinkscope.SinkWindow(4, 508).")
    names = [policy.name for policy in ways]
    if twice := [name for name in names if names.count(name) > 1]:
        raise SinkscopeError(f"two of the policies are named {twice[0]!r}; give each once, or a label of its own.")
    return ways


def read_texts(
    model: nn.Module,
    texts: list[Tensor],
    policy: Policy,
    run: Run,
    stay: Checkpoint,
    start: Progress | None,
    shown: bool | None,
) -> Progress:
    """Read all texts under one policy, from where an earlier run stopped."""
    now = start or Progress(torch.full((len(texts), max(map(len, texts))), torch.nan))
    batches = list(batches_of(texts, BATCH_TOKENS))
    rows = np.cumsum([0, *map(len, batches)])
    total = sum(batch.shape[0] * len(_queries(batch, policy, run)) for batch in batches)
    begun, known = time.perf_counter() - now.seconds, now.losses.isfinite()
    count, summed = int(known.sum()), float(now.losses[known].double().sum())
    bar = progress_bar(total, "token", shown, desc=policy.name)
    with saying(stay.told), finishing_blocks(stay.told) as stop, bar:
        bar.update(count)
        for number in range(now.batch, len(batches)):
            reader = reader_of(model, batches[number], policy, run)
            if now.done:
                reader.resume(now.done, now.state)
            for step in reader.steps():
                now.losses[rows[number] : rows[number + 1], step.tokens] = step.losses
                now.done, now.seconds = step.done, time.perf_counter() - begun
                count, summed = count + step.losses.numel(), summed + float(step.losses.double().sum())
                bar.set_postfix(perplexity=f"{np.exp(summed / count):.2f}", refresh=False)
                bar.update(step.losses.numel())
                if stay.due() or stop.asked:
                    now.state = reader.state()
                    stay.write(now)
                    now.state = {}  # else what the cache held now would stay in memory until the next time
                if stop.asked:
                    return now  # and out of the context, where the signal takes its way
            now.batch, now.done, now.state = number + 1, 0, {}
    if start is None or start.batch < len(batches):
        stay.write(now)
    return now


def reader_of(model: nn.Module, ids: Tensor, policy: Policy, run: Run) -> Reader:
    """How a batch of texts [sequence, token] is read under a policy."""
    if policy.recomputed and policy.kept is not None:
        rows = max(1, BATCH_TOKENS // (policy.kept.last * len(ids)))
        return WindowReader(model, ids, policy, _queries(ids, policy, run), rows, run.normaliser)
    if policy.kept is not None and goes_by_token(model):
        return TokenReader(model, ids, policy)
    return BlockReader(model, ids, policy, block_within_limits(model, policy, run.block), run.normaliser)


def fitting_block(model: nn.Module, texts: list[Tensor], policies: Sequence[Policy], run: Run, most: int | None) -> int:
    """The largest block up to that of a run with which every policy keeps within a budget of bytes."""
    sizes, block = sizes_of(model), int(run.block)
    rows, longest = max((batch.shape for batch in batches_of(texts, BATCH_TOKENS)), key=prod)
    for policy in policies:
        reads, advice = min(block, longest), "give a smaller block=, or the budget itself as max_memory="
        what = f"reading {longest:,} tokens of {rows} texts under `{policy.name}`, {reads:,} at once,"
        kept = min(longest, (policy.cache_size or longest) + reads)
        fixed = TILES + PIECE * sizes.vocabulary + rows * kept * sizes.key_values * sizes.itemsize
        if policy.recomputed and policy.kept is not None:  # whole windows, whatever the block
            first = min(policy.kept.last, longest)  # of which all logits are needed
            each = 2 * sizes.layer * max(rows * first, BATCH_TOKENS) + rows * first * sizes.vocabulary * sizes.itemsize
            fitting_rows(1, fixed, each, most, model, what, "give a smaller window")
        elif policy.kept is not None and goes_by_token(model):
            fitting_rows(1, fixed, rows * sizes.reading, most, model, what, "give a smaller window")
        elif not reads_in_blocks(model):
            fitting_rows(1, fixed, rows * longest * sizes.reading, most, model, what, "give shorter texts")
        else:
            fits = fitting_rows(reads, fixed, rows * sizes.reading, most, model, what, advice)
            block = fits if fits < reads else block
    return block


def _queries(ids: Tensor, policy: Policy, run: Run) -> Tensor:
    """Places of the tokens that predict: all but the last, or a sample of them for re-computation."""
    every = torch.arange(ids.shape[1] - 1)
    if not policy.recomputed or policy.kept is None:
        return every
    if run.asked is not None:
        return torch.tensor(sorted({place % ids.shape[1] for place in run.asked}))
    if run.samples is None:
        return every
    early, late = every[: policy.kept.last], every[policy.kept.last :]
    if len(late) <= run.samples:
        return every
    picked = np.random.default_rng(run.seed).choice(len(late), run.samples, replace=False)
    return torch.cat([early, late[torch.from_numpy(np.sort(picked))]])


def record_of(model: nn.Module, texts: list[Tensor], policies: list[Policy], finished: list[Progress]) -> xr.Dataset:
    """The losses under all policies as a record."""
    losses, natives = np.stack([run.losses.numpy() for run in finished]), native_windows(model)
    numbers = find_anatomy(model).numbers
    record = xr.Dataset(
        {"nll": (("policy", "sequence", "token"), losses, {"units": "nats"})},
        coords={
            **policy_coordinates(policies),
            **text_coordinates(texts),
            "seconds": ("policy", [run.seconds for run in finished]),
            "scored": ("policy", np.isfinite(losses).sum((1, 2))),
        },
    )
    sliding = [str(numbers[index]) for index, window in natives.items() if window and None in natives.values()]
    return record.assign_attrs(
        kind="perplexity",
        **model_attributes(model),
        **token_attributes(record, model),
        policies="; ".join(map(repr, policies)),
        native_sliding_layers=", ".join(sliding) or "none",
        policy_layers=", ".join(str(numbers[index]) for index in policy_layers(model)),
    )


def policy_coordinates(policies: Sequence[Policy]) -> dict[str, Any]:
    """The dimension `policy` of a record, and what it keeps of each policy."""
    known = [policy.coordinates for policy in policies]
    return {
        "policy": [policy.name for policy in policies],
        **{name: ("policy", [each[name] for each in known]) for name in known[0]},
    }


def checked_policies(given: Iterable[Policy]) -> list[Policy]:
    """One policy or several as a list; SinkscopeError for what is none."""
    policies: list[Policy] = several(given, "policies")
    for policy in policies:
        if not isinstance(policy, Policy):
            raise SinkscopeError(
                f"{shown(policy)} is not a policy; give instances such as sinkscope.SinkWindow(4, 508)."
            )
    return policies


def dense_texts(model: nn.Module, ids: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """The texts, each of which the model can read whole and predict; SinkscopeError where it cannot."""
    texts = texts_of(ids)
    check_run(model, texts, Run())
    check_limits(model, Dense(), max(map(len, texts)))
    return texts


def check_run(model: nn.Module, texts: list[Tensor], run: Run, looks_ahead: bool = False) -> None:
    """Raise SinkscopeError when there can be no losses of these texts; see `check_reader`."""
    base = find_anatomy(model).base
    check_eval(model, "losses")
    check_reader(model, looks_ahead)
    whole_number(run.block, "block", 1)
    if run.samples is not None:
        whole_number(run.samples, "samples", 1)
    if not isinstance(run.normaliser, (Normaliser, NoneType)):
        raise SinkscopeError(
            f"{shown(run.normaliser)} is not a normaliser; give an instance such as sinkscope.Softmax1()."
        )
    if min(map(len, texts)) < 2:
        raise SinkscopeError("a text of one token has nothing to predict; give two tokens at least.")
    for text in texts:
        check_vocabulary(base, text)


def settings_of(who: Mapping[str, str], texts: list[Tensor], policy: Policy, run: Run) -> dict[str, Any]:
    """All that the losses depend on, beside the identity of the model."""
    tokens = hashlib.sha256(b"|".join(text.numpy().tobytes() for text in texts)).hexdigest()
    given = {"text": tokens, "block": int(run.block), "samples": run.samples and int(run.samples), "seed": run.seed}
    changed: dict[str, Any] = {} if run.normaliser is None else {"normaliser": run.normaliser}
    changed |= {} if run.asked is None else {"asked": run.asked}
    for name, slot in (("policy", policy), ("normaliser", run.normaliser)):
        if slot is not None and slot.definition:
            changed[f"{name}_definition"] = slot.definition
    return {"policy": policy} | given | changed | dict(who)


def _checkpoint(
    folder: str | os.PathLike[str] | None, who: Mapping[str, str], texts: list[Tensor], policy: Policy, run: Run
) -> Checkpoint:
    if folder is None:
        return Checkpoint(None, {})
    slug = re.sub("[^a-z0-9+.-]+", "-", policy.name)
    if len(slug) > LONGEST or re.search("[^a-z0-9+., -]", policy.name):  # else another name could have the same
        slug = f"{slug[:LONGEST]}-{hashlib.sha256(policy.name.encode()).hexdigest()[:8]}"
    file, settings = Path(folder) / f"{slug}.safetensors", settings_of(who, texts, policy, run)
    check_resumable(settings)
    return Checkpoint(file, settings)
