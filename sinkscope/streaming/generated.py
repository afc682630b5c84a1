"""Attention of generated tokens: a prompt or a chat and what a model writes behind it, in one record.

A text is written first, and then read once more, in one forward pass in which the probes look: the attention of every
token that was written, step by step, at the cost of reading it. Under a policy both are under that policy, and the
tokens see the same keys in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from sinkscope.arguments import checks_types, whole_number
from sinkscope.chats import NO_TURN, THINK, THINKING, checked_tags, rendered_chat
from sinkscope.errors import SinkscopeError, shown
from sinkscope.hf.caches import with_cache
from sinkscope.hf.generation import end_ids, generated
from sinkscope.hf.placement import reading_device
from sinkscope.places import majority, specials, texts_of
from sinkscope.policies import Policy
from sinkscope.probes import FREE, Probe, Received, SinkMass, SpanMass
from sinkscope.scope.binding import check_table
from sinkscope.scope.forward import check_vocabulary
from sinkscope.scope.measure import measure
from sinkscope.scope.scope import Scope, attached
from sinkscope.spans import SPECIAL, Spans
from sinkscope.streaming.conversation import Sampler, check_writer
from sinkscope.streaming.readers import only_last
from sinkscope.streaming.reading_cache import reading_cache
from sinkscope.streaming.turns import encoded

ANSWER, PROMPT = "answer", "prompt"


@checks_types
def generate_record(
    model: nn.Module,
    tokenizer: Any,
    prompt: Any,
    max_new_tokens: int = 64,
    *,
    policy: Policy | None = None,
    probes: Iterable[Probe] | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    think: tuple[str, str] = THINK,
    progress: bool | None = None,
    **attributes: Any,
) -> xr.Dataset:
    """Let a model answer, and measure where the attention of prompt and answer goes, token by token.

        messages = [{"role": "user", "content": "Name one river of Eden."}]
        record = sinkscope.generate_record(model, tokenizer, messages, 40)
        sinkscope.span_mass(record)  # from the answer to system, user, template, .. , beside the null
        record.sink_mass.where(record.is_generated.rename(token="query"))  # of the generated tokens

    The tokens are those of `model.generate`, with the model's own generation_config but for what is given here; texts
    of one length are written side by side. The numbers are those of `measure` on prompt and answer together.

    >>> record = sinkscope.generate_record(model, tokenizer, "the cat", 4)
    >>> record.sink_mass.dims
    ('sequence', 'layer', 'head', 'query', 'sink')

    Args:
        model: a decoder with a language head, in eval mode.
        tokenizer: that belongs to it.
        prompt: a text, which gets the special tokens that the tokenizer adds; messages, dicts with "role" and
            "content", which the chat template puts together with the header of an answer; or a list of either.
        max_new_tokens: of each answer at most.
        policy: which keys a query may see while the text is written and measured; all of them when None. Texts are
            written one by one under it.
        probes: what to measure; the free ones, `Received` and `SpanMass` of the parts below when None.
        temperature: 0 takes the likeliest token each time; otherwise tokens are drawn.
        top_k, top_p: draw among the k likeliest, or those that together have probability p.
        seed: of the draws.
        think: the tags around what a model thinks before it answers.
        progress: whether measuring shows a progress bar; once two seconds have passed when None.
        attributes: noted in the record's attrs.

    Returns:
        A record as `measure` gives it, with the coordinates `prompt_length` [sequence], `is_generated` and `span`
        [sequence, token]. The spans of a chat are the roles of its messages, "think", "answer", and "template" for
        headers, tags and end tokens; those of a plain text "special", "prompt", "think" and "answer".

    Raises:
        SinkscopeError: an empty prompt or chat, more tokens than the model's table of positions has, no chat template
            or one without the roles given, a model that cannot write or that ends its answer at once, a policy under
            which nothing can be written and measured.
    """
    check_writer(model)
    limit = whole_number(max_new_tokens, "max_new_tokens", 1)
    sampler = Sampler(temperature, top_k, top_p, seed, reading_device(model))
    think = checked_tags(think)
    texts = [read_prompt(tokenizer, each, think) for each in _prompts(prompt)]
    chosen = None if probes is None else tuple(probes) if isinstance(probes, Iterable) else (probes,)
    scope = Scope(model, chosen or (), policy=policy)  # what cannot be measured says so before anything is written
    for text in texts:
        check_vocabulary(scope.anatomy.base, torch.tensor(text.ids))
        check_table(model, len(text.ids) + limit, f"a prompt of {len(text.ids)} tokens with {limit} new ones")
    if policy is None or policy.is_dense:
        sampling = {"temperature": temperature, "top_k": top_k or 0, "top_p": top_p} if temperature else None
        _write(model, texts, limit, sampling, seed)
    else:
        for text in texts:
            text.answer = _written_under(policy, model, text.ids, limit, sampler)
    spans = [answer_spans(model, tokenizer, text, think, number) for number, text in enumerate(texts)]
    wholes = [torch.tensor(text.ids + text.answer) for text in texts]
    if chosen is None:
        first = SinkMass(min(4, *map(len, wholes)))
        chosen = (first, *(probe for probe in FREE if not isinstance(probe, SinkMass)), Received(), SpanMass(spans))
    rules = f"temperature={temperature:g}, top_k={top_k}, top_p={top_p:g}, seed={seed}" if temperature else "greedy"
    told = {"generated": rules, "max_new_tokens": limit, **attributes}
    record = measure(model, wholes, chosen, policy=policy, tokenizer=tokenizer, progress=progress, **told)
    prompts = np.array([len(text.ids) for text in texts])
    places, lengths = record["token"].values, record["length"].values[:, None]
    labels = np.full((len(texts), len(places)), "", dtype=object)
    for row, each in enumerate(spans):
        labels[row, : len(wholes[row])] = each.labels(len(wholes[row]))
    return record.assign_coords(
        prompt_length=("sequence", prompts),
        is_generated=(("sequence", "token"), (places >= prompts[:, None]) & (places < lengths)),
        span=(("sequence", "token"), labels),
    )


@dataclass
class Prompt:
    """A prompt: its ids, the name of the span of each, whether thinking is open at its end, and its answer."""

    ids: list[int]
    labels: list[str]
    thinks: bool
    outside: str  # the span of what belongs to nobody
    answer: list[int]


def _prompts(prompt: Any) -> list[Any]:
    """Texts or chats, one or several, as a list of them."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise SinkscopeError(f"prompt={shown(prompt)} is no text and no chat; give a text, or a list of messages.")
    if not prompt:
        raise SinkscopeError("the prompt is empty: it has neither messages nor texts; give one at least.")
    is_one_chat = all(isinstance(each, Mapping) for each in prompt)
    if not is_one_chat and any(isinstance(each, Mapping) for each in prompt):
        raise SinkscopeError(f"prompt={shown(prompt)} has messages beside something else; give a list of chats.")
    return [list(prompt)] if is_one_chat else list(prompt)


def read_prompt(tokenizer: Any, prompt: Any, think: tuple[str, str] = THINK) -> Prompt:
    """The ids of a text or of messages, and what each is; SinkscopeError for a chat as `rendered_chat` has them."""
    if isinstance(prompt, str):
        ids = encoded(tokenizer, prompt, special=True)
        is_special = specials(tokenizer, ids, texts_of(tokenizer, ids))
        return Prompt(ids, [SPECIAL if each else PROMPT for each in is_special], False, SPECIAL, [])
    chat = rendered_chat(tokenizer, prompt, think)[-1]
    ids = encoded(tokenizer, chat.text)
    labels = Spans.chat(tokenizer, ids, prompt, think=think).labels(len(ids))
    end = max((stop for _, _, stop in chat.parts), default=0)
    begins, ends = (chat.text.rfind(tag, end) for tag in think)
    return Prompt(ids, labels, begins > ends, NO_TURN, [])


def _write(model: nn.Module, texts: list[Prompt], limit: int, sampling: Mapping[str, Any] | None, seed: int) -> None:
    """Write the answers by the model's own `generate()`, those to prompts of one length together."""
    for _, alike in groupby(sorted(texts, key=lambda text: len(text.ids)), key=lambda text: len(text.ids)):
        group = list(alike)
        answers = generated(model, torch.tensor([text.ids for text in group]), limit, sampling, seed)
        for text, answer in zip(group, answers, strict=True):
            text.answer = answer


def _written_under(policy: Policy, model: nn.Module, ids: list[int], limit: int, sampler: Sampler) -> list[int]:
    """An answer under a policy, from what that keeps of the text; the token that ends it included."""
    cache, device, ends = reading_cache(model, policy), reading_device(model), end_ids(model)
    written: list[int] = []
    with torch.no_grad(), attached(model, policy=policy):
        new: Tensor = torch.tensor([ids], device=device)
        while len(written) < limit and not (written and written[-1] in ends):
            given = with_cache(model, cache) | cache.positions(new.shape[1], device)
            written.append(sampler(model(new, **given, **only_last(model)).logits[:, -1]))
            new = torch.tensor([written[-1:]], device=device)
    return written


def answer_spans(model: Any, tokenizer: Any, text: Prompt, think: tuple[str, str] = THINK, number: int = 0) -> Spans:
    """The spans of a prompt and its answer; SinkscopeError where that is empty."""
    ends = end_ids(model)
    spoken = text.answer[:-1] if text.answer[-1] in ends else text.answer
    if not spoken:
        (end,) = texts_of(tokenizer, text.answer)
        raise SinkscopeError(
            f"the model ends its answer to text {number} at once, with {end!r}, so it has written nothing; give "
            "another prompt, or measure this one by itself with sinkscope.measure."
        )
    texts = texts_of(tokenizer, text.ids + spoken)[len(text.ids) :]
    names = [ANSWER, THINKING, text.outside]
    marks = _thoughts("".join(texts), think, text.thinks)
    answer = [names[mark] for mark in majority(texts, marks)]
    order = dict.fromkeys(each for each in (*text.labels, THINKING, ANSWER) if each != text.outside)
    return Spans.of_labels(text.labels + answer + [text.outside] * (len(text.answer) - len(spoken)), order)


def _thoughts(said: str, think: tuple[str, str], thinks: bool) -> np.ndarray:
    """For each character of an answer 0, 1 where it is thought, 2 in the tags around that."""
    marks, place = np.zeros(len(said), dtype=int), 0
    while place < len(said):
        tag = think[thinks]
        found = said.find(tag, place)
        stop = len(said) if found < 0 else found
        marks[place:stop] = int(thinks)
        if found < 0:
            break
        place = found + len(tag)
        marks[found:place] = 2
        thinks = not thinks
    return marks
