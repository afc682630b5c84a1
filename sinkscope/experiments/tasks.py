"""Tasks beside perplexity: a needle in a text, a value beside its key, and questions along a stream of lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor, nn

from sinkscope.arguments import checks_types, finite_number, one_or_several, whole_number
from sinkscope.errors import SinkscopeError, shown
from sinkscope.experiments.answering import answers
from sinkscope.experiments.perplexity import Run, named_ways, policy_coordinates
from sinkscope.experiments.questions import Asked, Lines, Wording, needles
from sinkscope.models.facts import model_attributes
from sinkscope.models.requirements import check_eval, check_reader
from sinkscope.normalisers import Normaliser
from sinkscope.policies import TOVA, Dense, HeavyHitters, Policy, Recompute, SinkWindow, Window
from sinkscope.scope.measure import texts_of

SIX_WAYS = (Dense(), Window(256), Recompute(256), SinkWindow(4, 252), HeavyHitters(128, 128), TOVA(256))
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
MOST_TRIALS = 100_000  # texts of one kind


@checks_types
def needle_recall(
    model: nn.Module,
    tokenizer: Any,
    ids: Tensor,
    policies: Iterable[Policy] = SIX_WAYS,
    *,
    lengths: int | Sequence[int] = (256, 512, 1024),
    depths: float | Sequence[float] = DEPTHS,
    trials: int = 16,
    needle: str = "\nThe secret word is {value}.\n",
    question: str = "\nWhat is the secret word?",
    values: Iterable[str] | None = None,
    chat: bool = False,
    seed: int = 0,
    block: int = 1024,
    normaliser: Normaliser | None = None,
    max_memory: int | None = None,
    progress: bool | None = None,
    **attributes: Any,
) -> xr.Dataset:
    """Whether a model finds a fact in a long text, against where it stands.

    A text is a piece of `ids` drawn at random, with the needle in it and the question at its end, up to the answer. The
    value is drawn evenly from a few words, each one token; the answer is the likeliest of these, so that whoever cannot
    see the needle is right once in as many. Whether it is the likeliest of all tokens is `said`.

    >>> record = sinkscope.needle_recall(model, tokenizer, ids[:1], [sinkscope.Dense()], lengths=64)

    Args:
        model: a decoder with a language head, in eval mode.
        tokenizer: that belongs to it.
        ids: [token] or [1, token], the text around the needles.
        policies: which keys a query may see.
        lengths: tokens up to the answer, all in all.
        depths: where the needle stands, from 0, in front, to 1, right before the question.
        trials: texts of each length and depth.
        needle, question: in words; {value} stands for the value, and the answer begins with the words before it.
        values: the words; those of a usual list that are one token each when None.
        chat: whether text and question are a turn of the tokenizer's chat template, and the answer the next.
        seed: of all that is drawn.
        block, normaliser, max_memory, progress, attributes: as of `sinkscope.perplexity`.

    Returns:
        A record with `correct`, `said` and `nll` (of the right answer, nats) [policy, length, depth, trial, question]
        and the coordinate `distance` [length, depth], tokens from the value to the place where it is asked for.

    Raises:
        SinkscopeError: a needle that does not fit, too little text around it, no tokenizer, a chat without a template,
            values that are no single tokens, or as `perplexity`.
    """
    how, ways, count = _checked(model, policies, trials, seed, block, normaliser)
    sizes = sorted(one_or_several(lengths, "lengths", lambda each: whole_number(each, "lengths", 2)))
    at = _depths(depths)
    wording, texts = Wording(tokenizer, needle, question, values, chat), texts_of(ids)
    if len(texts) > 1:
        raise SinkscopeError(f"needles are put into one text, and {len(texts)} were given; give one of them.")
    words, tokens, _ = wording.choices("")
    random, hay = np.random.default_rng(seed), texts[0].cpu().numpy()
    asked = [needles(wording, hay, size, depth, count, random) for size in sizes for depth in at]
    found = answers(model, asked, tokens, ways, how, max_memory=max_memory, progress=progress)
    axes = {"length": sizes, "depth": at}
    return _record(model, ways, axes, asked, found, _about(wording, words, seed, how) | attributes, "needle")


@checks_types
def key_value_recall(
    model: nn.Module,
    tokenizer: Any,
    policies: Iterable[Policy] = SIX_WAYS,
    *,
    pairs: int | Sequence[int] = (16, 64),
    depths: float | Sequence[float] = DEPTHS,
    trials: int = 16,
    fact: str = "\n{key}: {value}",
    question: str = "\nWhich word stands behind {key}?",
    values: Iterable[str] | None = None,
    chat: bool = False,
    seed: int = 0,
    block: int = 1024,
    normaliser: Normaliser | None = None,
    max_memory: int | None = None,
    progress: bool | None = None,
    **attributes: Any,
) -> xr.Dataset:
    """Whether a model finds the value beside a key among many such pairs, after Liu et al. 2023 (Lost in the Middle).

    The values of all pairs are drawn evenly and apart from each other, so that the other pairs say nothing of the one
    that is asked about: whoever cannot see that is right once in as many words.

    >>> record = sinkscope.key_value_recall(model, tokenizer, [sinkscope.Dense()], pairs=2, depths=0.5)
    >>> sinkscope.accuracy_table(record).policy.tolist()
    ['dense']

    Args:
        pairs: how many pairs in a text.
        depths: where the pair stands that is asked about, from 0, the first, to 1, the last.
        fact, question: in words; {key} stands for the key and {value} for the value.
        model, tokenizer, policies, trials, values, chat, seed, block, normaliser, max_memory, progress, attributes: as
            of `needle_recall`.

    Returns:
        A record as of `needle_recall`, [policy, pairs, depth, trial, question].

    Raises:
        SinkscopeError: more pairs than there are keys, or as `needle_recall`.
    """
    how, ways, count = _checked(model, policies, trials, seed, block, normaliser)
    sizes = sorted(one_or_several(pairs, "pairs", lambda each: whole_number(each, "pairs", 1)))
    at, wording = _depths(depths), Wording(tokenizer, fact, question, values, chat)
    lines, random = Lines(wording), np.random.default_rng(seed)
    asked = [lines.pairs(size, depth, count, random) for size in sizes for depth in at]
    found = answers(model, asked, lines.tokens, ways, how, max_memory=max_memory, progress=progress)
    axes, words = {"pairs": sizes, "depth": at}, wording.choices(lines.names[0])[0]
    return _record(model, ways, axes, asked, found, _about(wording, words, seed, how) | attributes, "key value")


@checks_types
def stream_recall(
    model: nn.Module,
    tokenizer: Any,
    policies: Iterable[Policy] = SIX_WAYS,
    *,
    lines: int = 120,
    every: int = 10,
    back: int | Sequence[int] = (5, 20, 60),
    trials: int = 8,
    fact: str = "\n{key}: {value}",
    question: str = "\nWhich word stands behind {key}?",
    values: Iterable[str] | None = None,
    chat: bool = False,
    seed: int = 0,
    block: int = 1024,
    normaliser: Normaliser | None = None,
    max_memory: int | None = None,
    progress: bool | None = None,
    **attributes: Any,
) -> xr.Dataset:
    """Questions along a stream of lines, each about a line a fixed distance back: StreamEval (Xiao et al. 2023, 4.4).

    There a question comes behind every 10 lines, about the line 20 lines back. What stands behind a question here is
    the right answer, whatever the model said, so that no mistake leads to another. In a chat each question ends a turn
    of the user's, and its answer is the next turn.

    >>> record = sinkscope.stream_recall(model, tokenizer, [sinkscope.Dense()], lines=4, every=2, back=1)

    Args:
        lines: in a stream.
        every: lines between two questions.
        back: how many lines back the line stands that is asked about; 0 is the last one read.
        trials: streams for each of these.
        fact, question: as of `key_value_recall`.
        model, tokenizer, policies, values, chat, seed, block, normaliser, max_memory, progress, attributes: as of
            `needle_recall`.

    Returns:
        A record as of `needle_recall`, [policy, back, trial, question], NaN where a stream has fewer questions than
        another, with the coordinate `place` [back, question]: tokens read up to the answer.

    Raises:
        SinkscopeError: a line that far back is never asked about, or as `key_value_recall`.
    """
    how, ways, count = _checked(model, policies, trials, seed, block, normaliser)
    size, step = whole_number(lines, "lines", 1), whole_number(every, "every", 1)
    away = sorted(one_or_several(back, "back", lambda each: whole_number(each, "back", 0)))
    wording = Wording(tokenizer, fact, question, values, chat)
    made, random = Lines(wording), np.random.default_rng(seed)
    asked = [made.stream(size, step, each, count, random) for each in away]
    found = answers(model, asked, made.tokens, ways, how, max_memory=max_memory, progress=progress)
    about = _about(wording, wording.choices(made.names[0])[0], seed, how) | {"lines": size, "every": step} | attributes
    record = _record(model, ways, {"back": away}, asked, found, about, "stream")
    places = np.full((len(away), record.sizes["question"]), -1)
    for row, group in enumerate(asked):
        places[row, : len(group.places)] = np.array(group.places) + 1
    return record.assign_coords(place=(("back", "question"), places))


def _checked(
    model: nn.Module, policies: Iterable[Policy], trials: int, seed: int, block: int, normaliser: Normaliser | None
) -> tuple[Run, list[Policy], int]:
    check_eval(model, "answers")
    check_reader(model, False)
    count = whole_number(trials, "trials", 1, MOST_TRIALS)
    run = Run(whole_number(block, "block", 1), seed=whole_number(seed, "seed", 0), normaliser=normaliser)
    return run, named_ways(policies), count


def _depths(given: float | Sequence[float]) -> list[float]:
    def depth(value: Any) -> float:
        number = finite_number(value, "depths", 0.0, inclusive=True)
        if number > 1:
            raise SinkscopeError(f"depths={shown(value)} is beyond the end: give numbers from 0 to 1.")
        return number

    return sorted(one_or_several(given, "depths", depth))


def _about(wording: Wording, words: Sequence[str], seed: int, run: Run) -> dict[str, Any]:
    own = {name: value for name, value in run.attributes().items() if name != "samples"}
    return own | {
        "chance": 1 / len(words), "values": " ".join(words), "fact": wording.fact, "question_words": wording.question,
        "chat": int(wording.chat), "seed": seed,
    }  # fmt: skip


def _record(
    model: nn.Module,
    ways: list[Policy],
    axes: dict[str, list[Any]],
    asked: list[Asked],
    found: list[list[Any]],
    about: dict[str, Any],
    task: str,
) -> xr.Dataset:
    sizes, trials = [len(values) for values in axes.values()], len(asked[0].texts)
    most = max(len(group.places) for group in asked)

    def stacked(name: str) -> np.ndarray:
        whole = np.full((len(ways), len(asked), trials, most), np.nan, dtype=np.float32)
        for row, groups in enumerate(found):
            for column, group in enumerate(groups):
                each = getattr(group, name)
                whole[row, column, :, : each.shape[1]] = each
        return whole.reshape(len(ways), *sizes, trials, most)

    dims = ("policy", *axes, "trial", "question")
    units = {"correct": "1 for yes", "said": "1 for yes", "nll": "nats"}
    return xr.Dataset(
        {name: (dims, stacked(name), {"units": unit}) for name, unit in units.items()},
        coords={
            **policy_coordinates(ways),
            **axes,
            "distance": (tuple(axes), np.array([group.distances[0] for group in asked]).reshape(sizes)),
            "tokens": (tuple(axes), np.array([group.texts.shape[1] for group in asked]).reshape(sizes)),
        },
        attrs=model_attributes(model) | {"policies": "; ".join(map(repr, ways)), "kind": "task", "task": task} | about,
    )
